"""The nouns: a Log is what a file holds, a Curve is what a law is fitted to.

`Curve.from_points` is the one way to a curve, and it says in `notes` what it did to the log:

- a row without compute or reward is no point; one that is NaN or infinite is dropped and counted;
- compute that goes back to an earlier value is a run resumed from a checkpoint: what it overwrote is dropped;
- compute that starts over is another run in the same log: the last one is taken (`segment` chooses another);
- many steps back are a file without order: it is sorted;
- points at the same compute are averaged;
- more than `max_points` are averaged in bins of equally many neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from postgrad.core.errors import DataError
from postgrad.scaling.ops import Array

Segment = int | Literal["last"]


@dataclass(frozen=True)
class Log:
    """A table of metrics in the order in which it was written.

    Attributes:
        name: of the run, for legends.
        kind: what was read, in words ("TensorBoard", "trainer_state.json", …).
        columns: key → one value per row; None where nothing was logged; NaN and ±inf where that was logged.
    """

    name: str
    kind: str
    columns: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Axis:
    """What compute is measured in.

    Attributes:
        key: column(s) of the log it comes from.
        unit: for reading, such as "FLOP", "GPU-hours", "tokens", "steps".
    """

    key: str
    unit: str


@dataclass(frozen=True)
class Curve:
    """Reward over compute, in order and without repetition.

    Attributes:
        name: of the run.
        compute: [n], ≥ 0, increasing.
        reward: [n], finite.
        axis: unit of compute.
        reward_key: column of the log.
        limits: (lowest, highest) possible reward; (0, 1) for pass rates; infinite where unknown.
        elapsed_s: wall seconds at each point, [n], or None.
        notes: what was done to the log, in words.
    """

    name: str
    compute: Array
    reward: Array
    axis: Axis = Axis("compute", "compute")
    reward_key: str = "reward"
    limits: tuple[float, float] = (-np.inf, np.inf)
    elapsed_s: Array | None = None
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.compute)

    def upto(self, compute: float) -> Curve:
        """The points up to a compute."""
        return self.select(self.compute <= compute)

    def select(self, keep: np.ndarray) -> Curve:
        """The points for which `keep` holds."""
        elapsed = None if self.elapsed_s is None else self.elapsed_s[keep]
        return Curve(
            self.name,
            self.compute[keep],
            self.reward[keep],
            self.axis,
            self.reward_key,
            self.limits,
            elapsed,
            self.notes,
        )

    @classmethod
    def from_points(
        cls,
        compute: ArrayLike,
        reward: ArrayLike,
        *,
        name: str = "run",
        axis: Axis = Axis("compute", "compute"),
        reward_key: str = "reward",
        limits: tuple[float, float] = (-np.inf, np.inf),
        elapsed_s: ArrayLike | None = None,
        segment: Segment = "last",
        max_points: int = 256,
    ) -> Curve:
        """A curve from points in the order in which they were logged; see the module for what is done to them.

        Raises:
            DataError: different lengths, negative compute, no finite point, a segment that is not there, or rewards
                outside `limits`.

        >>> curve = Curve.from_points([1, 2, 3, 2, 3, 4], [0.1, 0.2, 0.9, 0.3, 0.4, 0.5])
        >>> curve.compute.tolist(), curve.reward.tolist()
        ([1.0, 2.0, 3.0, 4.0], [0.1, 0.3, 0.4, 0.5])
        >>> curve.notes
        ('resumed once: 2 rows that were logged again later are dropped',)
        """
        x, y = np.asarray(compute, float).ravel(), np.asarray(reward, float).ravel()
        if len(x) != len(y):
            raise DataError(f"{name}: {len(x)} values of compute and {len(y)} of reward; they must be pairs.")
        elapsed = np.full(len(x), np.nan) if elapsed_s is None else np.asarray(elapsed_s, float).ravel()
        notes: list[str] = []
        columns = _finite(np.stack([x, y, elapsed]), name, notes)
        columns = _one_segment(columns, segment, name, notes)
        columns = _merge_equal(columns, notes)
        columns = _bin(columns, max_points, notes)
        x, y, elapsed = columns
        outside = (y < limits[0] - 1e-9) | (y > limits[1] + 1e-9)
        if outside.any():
            raise DataError(
                f"{name}: {reward_key} should lie in {limits[0]:g} to {limits[1]:g}, but is {y[outside][0]:g} at "
                f"{x[outside][0]:g} {axis.unit}. Say what is possible with --limits LOW,HIGH, or --limits none."
            )
        known = None if np.isnan(elapsed).any() else elapsed
        return cls(name, x, y, axis, reward_key, limits, known, tuple(notes))


def _finite(columns: Array, name: str, notes: list[str]) -> Array:
    bad = ~np.isfinite(columns[:2]).all(0)
    if bad.any():
        notes.append(f"{_count(int(bad.sum()), 'row')} with NaN or infinite values dropped")
    columns = columns[:, ~bad]
    if not columns.shape[1]:
        raise DataError(f"{name}: no finite point in {bad.size} rows.")
    if (columns[0] < 0).any():
        worst = float(columns[0].min())
        raise DataError(f"{name}: compute cannot be negative, but is {worst:g}. Choose the axis with --x.")
    return columns


def _one_segment(columns: Array, segment: Segment, name: str, notes: list[str]) -> Array:
    """Sorts, or follows resumed and restarted runs; see the module."""
    x = columns[0]
    back = np.flatnonzero(np.diff(x) < 0) + 1
    if len(back) > max(2, len(x) // 8):
        notes.append(f"the log had no order ({len(back)} steps back in {len(x)} rows): sorted")
        return columns[:, np.argsort(x, kind="stable")]
    runs: list[Array] = []
    current = columns[:, : back[0]] if len(back) else columns
    resumed = overwritten = 0
    for begin, end in pairwise([*back, len(x)]):
        part = columns[:, begin:end]
        kept = current[:, current[0] < part[0, 0]]
        if kept.shape[1]:
            resumed += 1
            overwritten += current.shape[1] - kept.shape[1]
            current = np.concatenate([kept, part], 1)
        else:
            runs.append(current)
            current = part
    runs.append(current)
    if resumed:
        times = "once" if resumed == 1 else f"{resumed} times"
        rows = _count(overwritten, "row")
        notes.append(f"resumed {times}: {rows} that were logged again later are dropped")
    chosen = len(runs) if segment == "last" else segment
    if not 1 <= chosen <= len(runs):
        raise DataError(f"{name} holds {_count(len(runs), 'run')}, so there is no segment {chosen}.")
    if len(runs) > 1:
        sizes = ", ".join(str(run.shape[1]) for run in runs)
        notes.append(
            f"the log starts over {_count(len(runs) - 1, 'time')}: it holds {len(runs)} runs of {sizes} points; "
            f"run {chosen} is taken (--segment chooses)"
        )
    return runs[chosen - 1]


def _merge_equal(columns: Array, notes: list[str]) -> Array:
    distinct, where = np.unique(columns[0], return_inverse=True)
    repeated = columns.shape[1] - len(distinct)
    if not repeated:
        return columns
    notes.append(f"{_count(repeated, 'point')} at a compute already there: averaged")
    return _average(columns, where, len(distinct))


def _bin(columns: Array, max_points: int, notes: list[str]) -> Array:
    n = columns.shape[1]
    if n <= max_points:
        return columns
    notes.append(f"{n} points averaged to {max_points}, neighbours together")
    return _average(columns, np.arange(n) * max_points // n, max_points)


def _average(columns: Array, where: np.ndarray, groups: int) -> Array:
    sizes = np.bincount(where, minlength=groups)
    return np.stack([np.bincount(where, row, groups) / sizes for row in columns])


def _count(number: int, noun: str) -> str:
    """
    >>> _count(1, "row"), _count(2, "row")
    ('1 row', '2 rows')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"
