"""Training with what other rooms have to give: the same in this process and in an actor of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from typing import Any

from postgrad.core.config import validate
from postgrad.core.protocols import RewardTransform, TransformContext
from postgrad.core.run import Run
from postgrad.rl.config import RLConfig


def train_here(
    config: RLConfig,
    out: Path,
    *,
    resume: bool,
    overwrite: bool,
    command: list[str],
    stop: Event | None = None,
) -> Run:
    """`rl.api.train` with what other rooms have to give."""
    from postgrad.rl.api import train
    from postgrad.scaling.live import Forecaster

    return train(
        config=None if resume else config,
        out=out,
        resume=resume,
        overwrite=overwrite,
        command=command,
        transform=make_transform(config.mara),
        forecaster=Forecaster(name=out.name),
        cluster=config.cluster.address,
        stop=stop,
    )


def make_transform(options: Mapping[str, Any]) -> Callable[[TransformContext], RewardTransform] | None:
    """What re-rewards, if the recipe has a table for it; its options are checked before any model is loaded."""
    if not options:
        return None
    from postgrad.mara.config import MaraConfig
    from postgrad.mara.rewards import transform

    validate(MaraConfig, options)
    return transform
