"""From a log's columns to a curve: which one is compute, which one is the reward.

Columns are found by the names that frameworks log them under. Where a name fits several columns equally well, nothing
is guessed: the error lists them. Of two columns the first is compute and the second the reward, whatever they are called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from postgrad.core.errors import DataError, nearest
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.curve import Axis, Curve, Log
from postgrad.scaling.ops import Array
from postgrad.scaling.readers.columns import number


class _Kind(NamedTuple):
    """One kind of compute axis: regular expressions of columns, best first, and a factor to its unit."""

    name: str
    unit: str
    columns: tuple[tuple[str, float], ...]


_HOUR = 1 / 3600
KINDS = (
    _Kind("gpu_hours", "GPU-hours", ((r"(.*/)?(total_)?gpu[_ -]?hours?", 1.0),)),
    _Kind(
        "flops",
        "FLOP",
        (
            (r"compute/train_flops\+compute/generate_flops", 1.0),
            (r"(.*/)?total_flops?", 1.0),
            (r"(.*/)?(cumulative_)?flops?", 1.0),
        ),
    ),
    _Kind("compute", "compute", ((r"compute", 1.0),)),
    _Kind(
        "tokens",
        "tokens",
        (
            (r"compute/total_tokens", 1.0),
            (r"(train/)?num_tokens", 1.0),
            (r"eval[_/]num_tokens", 1.0),
            (
                r"(.*/)?(total_tokens|num_total_tokens|num_input_tokens_seen|tokens_seen|(cumulative|consumed)_tokens)",
                1.0,
            ),
            (r"(.*/)?tokens", 1.0),
        ),
    ),
    _Kind(
        "samples",
        "samples",
        (
            (r"(.*/)?((total|consumed|num|seen)_)(samples|rollouts|episodes)", 1.0),
            (r"(.*/)?(samples|episodes?)", 1.0),
        ),
    ),
    _Kind(
        "steps",
        "steps",
        (
            # W&B counts its own calls in _step, so the trainer's count comes first
            (r"(.*/)?(global|training|train)_steps?", 1.0),
            (r"step", 1.0),
            (r"_step", 1.0),
            (r"(.*/)?steps?", 1.0),
            (r"(.*/)?epoch", 1.0),
        ),
    ),
    _Kind(
        "hours",
        "hours",
        (
            (r"(.*/)?(elapsed_hours|hours)", 1.0),
            (r"time/elapsed_s", _HOUR),
            (r"_runtime", _HOUR),
            (r"wall_s", _HOUR),
            (r"(.*/)?(elapsed|elapsed_s|runtime|seconds)", _HOUR),
        ),
    ),
)
_TOTALS = ("gpu_hours", "compute", "steps")
"""Kinds whose columns are totals by their name, also where a file's rows have no order."""

REWARDS = (
    # held-out, then training; within each from the most to the least specific
    r"eval/pass_rate",
    r"(val-core|val)/.*mean@\d+",
    r"(val-core|val)/.*(acc|pass)@\d+(/mean)?",
    r"eval/.*(mean|avg)@\d+",
    r"eval/.*pass@1",
    r"eval/.*pass@\d+",
    r"eval[_/](reward|scores?|accuracy|acc|pass_rate)(/mean|/all/mean)?",
    r"eval/objective/verifiable_correct_rate",
    r"eval[_/](.*[_/])?(reward|score|accuracy|acc|pass_rate|correct_rate)(/mean|/all/mean)?",
    r"(val|test|heldout|held_out)[_/-](.*[_/])?(reward|score|acc(uracy)?|pass_rate)(/mean|/all/mean)?",
    r"rollout/pass_rate",
    r"critic/score/mean",
    r"reward(/all)?/mean",
    r"objective/verifiable_correct_rate",
    r"(train/|objective/|critic/)?(rewards?(/mean)?|scores?(/mean)?|pass_rate|accuracy|acc)",
)
_RATE = re.compile(
    r"(pass_rate|correct_rate|accuracy|(^|[/_])acc|pass@\d+|mean@\d+|avg@\d+)(/mean)?$", re.IGNORECASE
)


def to_curve(log: Log, config: ScalingConfig) -> Curve:
    """The curve that `config.x` and `config.y` name, or that the log's framework is known to log.

    Raises:
        DataError: no such column (with the columns that there are), several that fit, or no point with both.
    """
    numeric = _numeric(log)
    reward_key = _choose_reward(numeric, config.y, log.name)
    reward = numeric[reward_key]
    # GPUs were counted, so hours are what is meant
    asked = (
        "hours" if config.x == "auto" and config.num_gpus != 1 and "gpu_hours" not in numeric else config.x
    )
    axis, compute = _choose_compute(numeric, asked, log.name, reward_key)
    if axis.unit == "hours" and config.num_gpus != 1:
        axis, compute = Axis(axis.key, "GPU-hours"), compute * config.num_gpus
    rows = ~np.isnan(reward) | _was_logged(log, reward_key)
    elapsed = _elapsed(numeric)
    return Curve.from_points(
        _fill(compute, numeric, reward)[rows],
        reward[rows],
        name=log.name,
        axis=axis,
        reward_key=reward_key,
        limits=_limits(config, reward_key, reward),
        elapsed_s=None if elapsed is None else _fill(elapsed, numeric, reward)[rows],
        segment=config.segment,
        max_points=config.max_points,
    )


def _numeric(log: Log) -> dict[str, Array]:
    """Columns with at least one number; NaN where there is none."""
    found: dict[str, Array] = {}
    for key, column in log.columns.items():
        values = [number(cell) for cell in column]
        if any(value is not None for value in values):
            found[key] = np.array([np.nan if value is None else value for value in values])
    if not found:
        raise DataError(
            f"{log.name}: no column holds numbers; there are {_list(list(log.columns))}. Is it a log of metrics?"
        )
    train, generate = (found.get(f"compute/{side}_flops") for side in ("train", "generate"))
    if train is not None and generate is not None:
        found["compute/train_flops+compute/generate_flops"] = train + generate
    return found


def _was_logged(log: Log, key: str) -> np.ndarray:
    """Cells that hold something, be it NaN; our runs write non-finite numbers as null beside a count."""
    return np.array([cell is not None for cell in log.columns.get(key, ())], bool)


def _plain(key: str) -> str:
    """A key as the patterns know it: without the run's name that W&B's export puts before it, with / between its parts.

    >>> _plain("run-7 - eval/acc"), _plain("eval.acc")
    ('eval/acc', 'eval/acc')
    """
    return key.rsplit(" - ", 1)[-1].replace(".", "/")


def _matching(pattern: str, keys: Iterable[str]) -> list[str]:
    return [key for key in keys if re.fullmatch(pattern, _plain(key), re.IGNORECASE)]


def _choose_reward(numeric: dict[str, Array], asked: str, name: str) -> str:
    if asked != "auto":
        if asked in numeric:
            return asked
        ending = [key for key in numeric if re.search(rf"(^|[/_. ]){re.escape(asked)}$", key)]
        if len(ending) == 1:
            return ending[0]
        if ending:
            raise DataError(
                f"{name}: several columns end in {asked!r}: {_list(ending)}. Give --y one of them."
            )
        raise DataError(f"{name}: no column {asked!r}. {nearest(asked, numeric)}")
    for pattern in REWARDS:
        found = _matching(pattern, numeric)
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(
                f"{name}: several columns could be the reward: {_list(found)}. Give --y one of them."
            )
    if len(_nameless(numeric)) == 2:
        return _nameless(numeric)[1]
    raise DataError(
        f"{name}: no column is known as a reward; there are {_list(list(numeric))}. Give --y one of them."
    )


def _nameless(numeric: dict[str, Array]) -> list[str]:
    """Columns, without the clock if there are others."""
    hours = next(kind for kind in KINDS if kind.name == "hours")
    clock = (
        {key for pattern, _ in hours.columns for key in _matching(pattern, numeric)}
        if len(numeric) > 2
        else set()
    )
    return [key for key in numeric if key not in clock]


def _choose_compute(numeric: dict[str, Array], asked: str, name: str, reward_key: str) -> tuple[Axis, Array]:
    others = {key: column for key, column in numeric.items() if key != reward_key}
    kinds = {kind.name: kind for kind in KINDS}
    if asked in numeric or "+" in asked:
        parts = [asked] if asked in numeric else [part.strip() for part in asked.split("+")]
        missing = [part for part in parts if part not in numeric]
        if missing:
            raise DataError(f"{name}: no column {missing[0]!r}. {nearest(missing[0], numeric)}")
        unit, factor = _unit_of(asked)
        return Axis(asked, unit), factor * sum((numeric[part] for part in parts), np.zeros(1))
    if asked in kinds:
        found = _find_kind(kinds[asked], others, name)
        if found is None:
            raise DataError(
                f"{name}: no column is known to count {asked}; there are {_list(list(others))}. Give --x one of them."
            )
        return found
    if asked != "auto":
        raise DataError(
            f"{name}: no column {asked!r}. {nearest(asked, list(dict.fromkeys([*numeric, *kinds, 'auto'])))}"
        )
    for kind in KINDS:
        found = _find_kind(kind, others, name, only_totals=True)
        if found is not None:
            return found
    if len(_nameless(numeric)) == 2:
        key = next(key for key in _nameless(numeric) if key != reward_key)
        return Axis(key, key), numeric[key]
    raise DataError(
        f"{name}: no column is known as compute; there are {_list(list(others))}. Give --x one of them."
    )


def _find_kind(
    kind: _Kind, columns: dict[str, Array], name: str, *, only_totals: bool = False
) -> tuple[Axis, Array] | None:
    """The column of a kind; with `only_totals` one that counts up over the log.

    Raises:
        DataError: several with different numbers.
    """
    for pattern, factor in kind.columns:
        found = _matching(pattern, columns)
        if only_totals:
            found = [key for key in found if _is_total(columns[key], columns, by_name=kind.name in _TOTALS)]
        if not found:
            continue
        first = columns[found[0]]
        if any(not np.array_equal(first, columns[key], equal_nan=True) for key in found[1:]):
            raise DataError(
                f"{name}: several columns could be the compute: {_list(found)}. Give --x one of them."
            )
        return Axis(found[0], "epochs" if found[0].endswith("epoch") else kind.unit), factor * first
    return None


def _unit_of(key: str) -> tuple[str, float]:
    for kind in KINDS:
        for pattern, factor in kind.columns:
            if re.fullmatch(pattern, _plain(key), re.IGNORECASE):
                return kind.unit, factor
    return key.rsplit("/", 1)[-1], 1.0


def _is_total(column: Array, columns: dict[str, Array], *, by_name: bool) -> bool:
    """Whether it counts up over the steps, as a total does; a count per step does not. Resumed runs step back a few times."""
    step = _steps(columns)
    known = ~np.isnan(column) & (~np.isnan(step) if step is not None else True)
    values = column[known]
    if step is not None:
        values = values[np.argsort(step[known], kind="stable")]
    if len(values) < 2 or values.max() <= values.min():
        return False
    return by_name or bool((np.diff(values) >= 0).mean() > 0.8)


def _steps(columns: dict[str, Array]) -> Array | None:
    """The step of each row: of the columns that count steps the one with the fewest gaps."""
    keys = [
        key for key in columns if _plain(key).lower() in ("_step", "step", "global_step", "train/global_step")
    ]
    return min((columns[key] for key in keys), key=lambda column: int(np.isnan(column).sum()), default=None)


def _fill(values: Array, columns: dict[str, Array], reward: Array) -> Array:
    """Compute (or time) at rows that log only the reward: interpolated over steps, as frameworks log it in other rows."""
    missing, step = np.isnan(values) & ~np.isnan(reward), _steps(columns)
    if step is None or not missing.any():
        return values
    known = ~np.isnan(values) & ~np.isnan(step)
    if known.sum() < 2:
        return values
    order = np.argsort(step[known], kind="stable")
    filled = values.copy()
    xs, ys = step[known][order], values[known][order]
    filled[missing] = np.interp(step[missing], xs, ys)
    rate = (ys[-1] - ys[0]) / max(xs[-1] - xs[0], 1e-300)
    later, earlier = missing & (step > xs[-1]), missing & (step < xs[0])
    filled[later] = ys[-1] + rate * (step[later] - xs[-1])
    filled[earlier] = np.maximum(ys[0] - rate * (xs[0] - step[earlier]), 0.0)
    filled[missing & np.isnan(step)] = np.nan
    return filled


def _elapsed(columns: dict[str, Array]) -> Array | None:
    """Seconds since the start, if the log has one such column."""
    hours = next(kind for kind in KINDS if kind.name == "hours")
    for pattern, factor in hours.columns:
        for key in _matching(pattern, columns):
            return factor * columns[key] / _HOUR
    return None


def _limits(config: ScalingConfig, key: str, reward: Array) -> tuple[float, float]:
    if isinstance(config.limits, tuple):
        return config.limits
    seen = reward[np.isfinite(reward)]
    if (
        config.limits == "auto"
        and _RATE.search(_plain(key))
        and len(seen)
        and seen.min() >= 0
        and seen.max() <= 1
    ):
        return 0.0, 1.0
    return -np.inf, np.inf


def _list(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:12])
    return shown + (f", … ({len(keys)} in all)" if len(keys) > 12 else "")
