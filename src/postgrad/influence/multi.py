"""Influence over several checkpoints of one training: the mean of the scores, one checkpoint in memory at a time.

With method gradient and weights by learning rate it is TracIn (arXiv 2002.08484, eq. 1) divided by the sum of η·steps.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from postgrad.core.config import validate
from postgrad.core.errors import ConfigError
from postgrad.core.models import Model, load
from postgrad.influence import ops
from postgrad.influence.api import Log, run
from postgrad.influence.checkpoints import (
    check_tokenizers,
    checkpoint_shares,
    find_checkpoints,
    put_weights,
    weights_kept,
)
from postgrad.influence.config import InfluenceConfig
from postgrad.influence.data import Example, parse_given
from postgrad.influence.examples import Examples
from postgrad.influence.result import Result
from postgrad.influence.state import ChainFiles

_PROBES = 64
_WORST: dict[str, Callable[[Iterable[float]], float]] = {
    "diagnostics/r_hat": max,
    "diagnostics/ess": min,
    "diagnostics/drift": max,
    "diagnostics/stability": min,
    "diagnostics/agreement": min,
    "sampler/curvature": max,
    "time/attribute_s": sum,
}


class Part(NamedTuple):
    """What was found at one checkpoint (without the draws), and its share in the mean."""

    checkpoint: str
    share: float
    result: Result


@dataclass
class CheckpointsResult(Result):
    """The mean over checkpoints. Of `diagnostics` that have a limit it has the worst, of the others the mean; `problems` are
    those of every checkpoint, so that one that fails withholds the ranking.

    Attributes:
        parts: of each checkpoint.
    """

    parts: list[Part] = field(default_factory=list[Part])


def run_checkpoints(
    paths: str | Path | Sequence[str | Path],
    train: Any,
    queries: Any,
    config: InfluenceConfig | None = None,
    *,
    model: Model | nn.Module | None = None,
    device: str = "auto",
    log: Log | None = None,
    state: Path | str | None = None,
    **options: Any,
) -> CheckpointsResult:
    """As `run`, averaged over checkpoints; see `checkpoint_weights`.

    Each checkpoint has chains of its own (its place among them is added to the seed), so that standard errors of the mean are
    √Σ(share·error)². They are those of the draws: how the checkpoints differ is in `diagnostics/checkpoint_agreement`.

    Args:
        paths: model directories; of a directory of checkpoints (`step_…`, as by `CheckpointCallback` or a run) all of them.
        train, queries: as of `run`; `Examples` with a `model` alone.
        config: settings; `options` override its fields.
        model: takes the weights of one checkpoint after the other, and has its own back afterwards: for a module, for adapters
            (peft), for checkpoints without a tokenizer. None = each checkpoint is loaded as a model.
        device: of models that are loaded.
        log: as of `run`; draws are counted on.
        state: as of `run`; each checkpoint has a directory of its own in it.

    Raises:
        ConfigError: no checkpoint, no learning rates to weigh by, or `max_draws`.
        ModelError: checkpoints with different tokenizers, or weights that do not fit the model.
        and what `run` raises.
    """
    config = validate(InfluenceConfig, {**(config or InfluenceConfig()).model_dump(), **options})
    _check_draws(config)
    found = find_checkpoints(paths)
    shares = check_checkpoints(found, config)
    roles: list[list[Example] | Examples] = []
    for given, role in ((train, "training"), (queries, "query")):
        rows = parse_given(given, role, config)
        if rows is None and model is None:
            raise ConfigError(
                "Examples with losses of their own need the module that they belong to: give model."
            )
        roles.append(given if rows is None else rows)
    texts = [one.text for given in roles if isinstance(given, list) for one in given[:_PROBES]]
    own = model.tokenizer if isinstance(model, Model) else None
    check_tokenizers(found, own, texts, needed=model is None)
    parts: list[Part] = []
    with contextlib.nullcontext() if model is None else weights_kept(_module(model)):
        for number, (path, share) in enumerate(zip(found, shares, strict=True)):
            settings = config.model_copy(update={"seed": config.seed + number, "tokens": False})
            result = _run_one(
                path,
                model,
                device,
                roles,
                settings,
                _count_on(log, number, config),
                _state(state, number),
            )
            parts.append(Part(str(path), share, result))
    return combine(parts)


def check_checkpoints(found: Sequence[Path], config: InfluenceConfig) -> list[float]:
    """The share of each checkpoint. Raises ConfigError for what `run_checkpoints` would refuse before it loads any."""
    _check_draws(config)
    return checkpoint_shares(found, config.checkpoint_weights)


def _check_draws(config: InfluenceConfig) -> None:
    if config.max_draws > 0:
        raise ConfigError(
            "max_draws is for one model: checkpoints are averaged over equally many draws. Give draws."
        )


def _run_one(
    path: Path,
    model: Model | nn.Module | None,
    device: str,
    roles: Sequence[list[Example] | Examples],
    config: InfluenceConfig,
    log: Log | None,
    state: Path | None,
) -> Result:
    """At one checkpoint. What it loads is gone when it returns."""
    if model is None:
        model = load(path, device=device)
    else:
        put_weights(_module(model), path)
    result = run(model, roles[0], roles[1], config, log=log, state=state)
    result.draws = None  # which would take memory for each checkpoint
    return result


def _state(state: Path | str | None, number: int) -> Path | None:
    return None if state is None else Path(state) / f"checkpoint-{number}"


def count_draws(state: Path, num_checkpoints: int) -> int:
    """Draws that are kept in `state`, of a run or of as many checkpoints."""
    folders = [state] if num_checkpoints == 0 else [state / f"checkpoint-{n}" for n in range(num_checkpoints)]
    return sum(ChainFiles(folder).num_draws() for folder in folders)


def combine(parts: Sequence[Part]) -> CheckpointsResult:
    """The mean over checkpoints by their shares. A part without errors, or with unknown ones, leaves none."""
    results = [part.result for part in parts]
    shares = [part.share for part in parts]

    def mean(name: str, power: int = 1) -> Tensor | None:
        tensors = [getattr(result, name) for result in results]
        if any(tensor is None for tensor in tensors):
            return None
        return torch.stack([(share * t) ** power for share, t in zip(shares, tensors, strict=True)]).sum(0)

    variance = mean("errors", 2)
    scores = mean("scores")
    assert scores is not None
    return CheckpointsResult(
        scores,
        None if variance is None else variance.sqrt(),
        mean("correlation"),
        _diagnostics(results),
        [f"{part.checkpoint}: {problem}" for part in parts for problem in part.result.problems],
        list(dict.fromkeys(note for result in results for note in result.notes)),
        results[0].train,
        results[0].queries,
        self_scores=mean("self_scores"),
        losses=mean("losses"),
        parts=list(parts),
    )


def _diagnostics(results: Sequence[Result]) -> dict[str, float]:
    """Worst or mean over checkpoints, and how well these agree."""
    found: dict[str, float] = {}
    for key in dict.fromkeys(key for result in results for key in result.diagnostics):
        values = [result.diagnostics[key] for result in results if key in result.diagnostics]
        unknown = any(math.isnan(value) for value in values)
        found[key] = math.nan if unknown else _WORST.get(key, statistics.fmean)(values)
    scores = [result.scores for result in results]
    if len(scores) > 1 and scores[0].shape[1] > 2:
        agreement = [ops.spearman(one, other) for one, other in itertools.combinations(scores, 2)]
        found["diagnostics/checkpoint_agreement"] = float(torch.stack(agreement).mean(0).median())
    return found


def _module(model: Model | nn.Module) -> nn.Module:
    return cast("nn.Module", model.module if isinstance(model, Model) else model)


def _count_on(log: Log | None, number: int, config: InfluenceConfig) -> Log | None:
    """Draws of a later checkpoint are counted on from those of the earlier ones."""
    if log is None:
        return None
    start = number * config.chains * config.num_draws

    def logged(step: int, metrics: Mapping[str, Any]) -> None:
        log(start + step, {"checkpoint/number": number + 1, **metrics})

    return logged
