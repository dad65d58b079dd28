"""Which choice of a recipe matters: axes, the arms of an ablation, and when a choice counts as better. Needs no torch.

Leave-one-out (ScaleRL, arXiv 2510.13786, §4): the full recipe, and for every axis the recipe with that axis reverted to its
baseline. Forward search: from a baseline recipe, each round tries every remaining axis on top of what is kept, and keeps the
best. Every arm runs over the same seeds, and differences are paired by seed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from postgrad.core.config import Config, deep_merge, nest, read_toml, validate
from postgrad.core.errors import ConfigError, nearest
from postgrad.core.statistics import mean_interval
from postgrad.rl.config import RLConfig

Overrides = dict[str, Any]


class Axis(NamedTuple):
    """One choice of ScaleRL.

    Attributes:
        baseline: dotted options that take it back.
        chosen: dotted options that make it.
        source: section of the paper (arXiv 2510.13786) that compares the two, or whose choice the baseline is.
    """

    baseline: Mapping[str, Any]
    chosen: Mapping[str, Any]
    source: str


def _axis(key: str, baseline: Any, chosen: Any, source: str) -> Axis:
    return Axis({key: baseline}, {key: chosen}, source)


AXES: dict[str, Axis] = {
    "off-policy": _axis("schedule.mode", "ppo", "pipeline", "§3.1: generate k batches, then update k times"),
    "loss": _axis("algorithm.loss", "dapo", "cispo", "§3.2, and §4: B = 1.77 against 2.01"),
    "loss-gspo": _axis("algorithm.loss", "gspo", "cispo", "§3.2; arXiv 2507.18071"),
    "fp32-head": _axis("algorithm.fp32_head", False, True, "§3.2"),
    "aggregation": _axis("algorithm.aggregation", "sample", "prompt", "§3.4: as in GRPO"),
    "advantage": _axis("algorithm.advantage_norm", "group", "batch", "§3.4: as in GRPO"),
    "advantage-none": _axis("algorithm.advantage_norm", "none", "batch", "§3.4: as in Dr. GRPO"),
    "zero-variance": _axis("algorithm.zero_variance", "keep", "drop", "§3.4"),
    "no-positive-resampling": _axis("algorithm.history_threshold", None, 0.9, "§3.4"),
    "interruption": Axis(
        {"length.interrupt_min": None},
        {"length.interrupt_min": 10240, "length.interrupt_max": 12288},
        "§3.1; ours: no length control, where the paper may have a penalty",
    ),
    "truncated": _axis("algorithm.truncated", "keep", "exclude", "ours: truncated samples are trained on"),
}
"""Name → axis, in the order of the tables. An axis that changes nothing in a recipe is left out."""

REFERENCE = {"leave-one-out": "full", "forward": "start"}
"""Name of the arm that others are compared with."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TAKEN = ("full", "start", "checkpoints", "figures")


class AblationConfig(Config):
    """`postgrad rl ablate`."""

    mode: Literal["leave-one-out", "forward"] = "leave-one-out"
    """`leave-one-out`: revert one axis at a time. `forward`: add axes one by one, as long as they help beyond noise."""
    seeds: int = Field(default=5, ge=1)
    """Runs of every arm, with the recipe's seed and those that follow it."""
    recipe: RLConfig = Field(default_factory=RLConfig)
    """What is taken apart, or built upon."""
    axes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name → options, as put on the recipe."""

    @model_validator(mode="after")
    def _enough(self) -> AblationConfig:
        if self.mode == "forward" and self.seeds < 2:
            raise ValueError(
                "a forward search keeps what helps beyond noise, which one seed cannot tell; give seeds = 2 or more"
            )
        return self

    @property
    def reference(self) -> str:
        """Name of the arm without any axis."""
        return REFERENCE[self.mode]

    @property
    def seed_list(self) -> list[int]:
        """Seeds of every arm."""
        return [self.recipe.seed + index for index in range(self.seeds)]


class Axes(NamedTuple):
    """Axes that can be tried on a recipe.

    Attributes:
        overrides: name → options, nested.
        left_out: sentences about those that cannot.
    """

    overrides: dict[str, Overrides]
    left_out: list[str]


def leave_one_out(
    recipe: RLConfig | None = None, axes: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Overrides]:
    """For every axis, the options that revert it; axes that the recipe does not have are left out.

    Args:
        recipe: default: the paper's.
        axes: name → options (dotted or nested); default: those of ScaleRL.

    >>> leave_one_out()["loss"], len(leave_one_out())
    ({'algorithm': {'loss': 'dapo'}}, 11)
    >>> "interruption" in leave_one_out(validate(RLConfig, {"length": {"interrupt_min": "none"}}))
    False
    """
    return choose_axes(recipe or RLConfig(), "leave-one-out", given=axes).overrides


def choose_axes(
    recipe: RLConfig,
    mode: Literal["leave-one-out", "forward"],
    *,
    names: Sequence[str] = (),
    given: Mapping[str, Mapping[str, Any]] | None = None,
) -> Axes:
    """The axes by name, as options that change the recipe.

    Args:
        recipe: that they are put on.
        mode: whether ScaleRL's own axes are reverted or added.
        names: only these, in this order.
        given: axes of one's own, in place of ScaleRL's.

    Raises:
        ConfigError: an unknown or unusable name, options that are no options, or no axis that changes anything.
    """
    known = _overrides(mode) if given is None else {name: nest(options) for name, options in given.items()}
    for name in known:
        check_name(name)
    for name in names:
        if name not in known:
            raise ConfigError(f"No axis {name!r}. {nearest(name, known)}")
    kept: dict[str, Overrides] = {}
    seen = {_dump(recipe): "the recipe itself"}
    left_out: list[str] = []
    for name in names or known:
        try:
            changed = _dump(put_on(recipe, known[name]))
        except ConfigError as error:
            if given is not None:
                raise ConfigError(f"Axis {name!r}: {error}") from None
            left_out.append(f"{name}: {error}")
            continue
        if changed in seen:
            left_out.append(f"{name}: the same as {seen[changed]}")
            continue
        seen[changed] = name
        kept[name] = known[name]
    if not kept:
        raise ConfigError(
            "No axis adds anything to this recipe. A forward search starts from a baseline, such as --preset deepseek-grpo."
            if mode == "forward"
            else f"No axis changes this recipe: {'; '.join(left_out)}."
        )
    return Axes(kept, left_out)


def _overrides(mode: Literal["leave-one-out", "forward"]) -> dict[str, Overrides]:
    return {
        name: nest(axis.baseline if mode == "leave-one-out" else axis.chosen) for name, axis in AXES.items()
    }


def read_axes(path: Path) -> dict[str, Overrides]:
    """`[axes.NAME]` tables of a TOML file. Raises ConfigError if there is none, or anything else."""
    data = read_toml(path)
    axes = data.pop("axes", None)
    if data or not isinstance(axes, dict) or not axes:
        found = f" (received {', '.join(data)})" if data else ""
        raise ConfigError(
            f"{path} is no file of axes: it has tables [axes.NAME], each with options such as optimizer.lr = 1e-5, "
            f"and nothing else{found}."
        )
    for name, options in axes.items():
        if not isinstance(options, dict) or not options:
            raise ConfigError(f"Axis {name!r} in {path} has no options.")
    return axes


def check_name(name: str) -> None:
    """Raises ConfigError if a name cannot be that of a directory beside others."""
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise ConfigError(
            f"An axis cannot be called {name!r}: names are letters, digits, '-', '_' and '.', and not {', '.join(_TAKEN)}."
        )


def put_on(recipe: RLConfig, *overrides: Mapping[str, Any]) -> RLConfig:
    """The recipe with options on top. Raises ConfigError as `core.config.validate` does."""
    data: dict[str, Any] = recipe.model_dump()
    for options in overrides:
        data = deep_merge(data, options)
    return validate(RLConfig, data)


def _dump(recipe: RLConfig) -> str:
    return recipe.model_dump_json()


def flat(overrides: Mapping[str, Any], prefix: str = "") -> Overrides:
    """Nested options as dotted ones.

    >>> flat({"algorithm": {"loss": "dapo"}, "steps": 3})
    {'algorithm.loss': 'dapo', 'steps': 3}
    """
    dotted: Overrides = {}
    for key, value in overrides.items():
        dotted |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return dotted


def describe(overrides: Mapping[str, Any]) -> str:
    """Options in words.

    >>> describe({"algorithm": {"fp32_head": False, "history_threshold": None}})
    'algorithm.fp32_head = false, algorithm.history_threshold = none'
    """
    words = {None: "none", True: "true", False: "false"}

    def show(value: Any) -> str:
        return words[value] if value is None or isinstance(value, bool) else str(value)

    return ", ".join(f"{key} = {show(value)}" for key, value in flat(overrides).items())


def best_beyond_noise(
    candidates: Mapping[str, Sequence[float]], confidence: float = 0.95
) -> tuple[str | None, str | None]:
    """The rule of the forward search: which axis is best, and whether it helps beyond noise.

    Best: the greatest mean difference of held-out scores to what is kept so far, paired by seed. It helps if the lower end of the
    interval of that mean (Student's t) is above 0, where the intervals of all axes of the round hold together at
    `confidence` (Bonferroni: the best of many would look good by chance alone).

    Args:
        candidates: axis → difference of each seed.
        confidence: of all intervals together.

    Returns:
        (best axis or None, the same axis if it helps or None).

    >>> best_beyond_noise({"a": [0.10, 0.11, 0.12], "b": [0.3, -0.2, 0.3]})
    ('b', None)
    >>> best_beyond_noise({"a": [0.10, 0.11, 0.12], "b": [0.0, 0.01, 0.0]})
    ('a', 'a')
    """
    intervals = {
        name: mean_interval(values, 1 - (1 - confidence) / len(candidates))
        for name, values in candidates.items()
    }
    told = {name: found for name, found in intervals.items() if not math.isnan(found.mean)}
    if not told:
        return None, None
    best = max(told, key=lambda name: told[name].mean)
    return best, best if told[best].low > 0 else None
