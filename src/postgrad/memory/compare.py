"""Methods side by side: what each learned against what it kept, over learning rates, on the same facts from the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postgrad.core.config import validate
from postgrad.core.errors import DataError, TrainingError
from postgrad.core.models import Model, load
from postgrad.memory.config import CompareConfig, LearnConfig, Method, StreamConfig
from postgrad.memory.data import Fact
from postgrad.memory.learning import Probes, encode_edits, learn
from postgrad.memory.plan import edit_flops, read_sizes

LEARNING_RATES: Mapping[Method, tuple[float, ...]] = {
    "sparse": (1.0, 2.0, 5.0, 10.0, 20.0),
    "full": (3e-6, 1e-5, 3e-5, 1e-4, 3e-4),
    "lora": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    "replay": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
    "ewc": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
}
"""Tried for each method, with its default optimizer."""


@dataclass(frozen=True)
class Trial:
    """A stream that was learned.

    Attributes:
        method, learning_rate: how.
        learned, kept: shares of questions answered exactly at the end, of the facts taught and of those known before.
        seconds: of learning alone, evaluation not counted.
        flops: multiplications and additions that learning takes (`plan.edit_flops`).
    """

    method: Method
    learning_rate: float
    learned: float
    kept: float
    seconds: float
    flops: float

    @property
    def point(self) -> tuple[float, float]:
        """(learned, kept)."""
        return self.learned, self.kept


class _Seconds:
    """A logger that adds up `learn/seconds`."""

    def __init__(self) -> None:
        self.total = 0.0

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.total += metrics.get("learn/seconds", 0.0)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        pass


def trial(
    model: Model,
    folder: Path,
    facts: Sequence[Fact],
    config: LearnConfig,
    probes: Probes,
    background: Sequence[str] = (),
) -> Trial:
    """Learns the stream in memory; `model` changes in place, `folder` (with the background profile) does not.

    Raises:
        DataError: no question says what was learned or what was kept; and what `learn` raises.
    """
    sizes, seconds = read_sizes(model.module), _Seconds()
    flops = sum(
        edit_flops(sizes, config, len(edit) * max(map(len, edit)))
        for edit in encode_edits(model, facts, config)
    )
    metrics = learn(
        model, folder, facts, config, seconds, probes=probes, background=background, keep_patches=False
    )
    if not {"learned/exact", "kept/exact"} <= metrics.keys():
        raise DataError(
            "A comparison needs questions about what is taught (in the facts, or --ask) and about what was known before (--keep)."
        )
    return Trial(
        config.method,
        config.learning_rate,
        metrics["learned/exact"],
        metrics["kept/exact"],
        seconds.total,
        flops,
    )


def compare(
    folder: Path,
    facts: Sequence[Fact],
    config: CompareConfig,
    probes: Probes,
    *,
    background: Sequence[str] = (),
    device: str = "auto",
    learning_rates: Mapping[Method, Sequence[float]] = LEARNING_RATES,
    known: Sequence[Trial] = (),
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Trial]:
    """Every method with every learning rate of its own, each from the model as it is in `folder`, as they come.

    Args:
        folder: model directory, with memory and background profile; it stays as it is.
        facts: what is taught.
        config: which methods; how the streams go.
        probes: with questions about what was known before.
        background: for replay and ewc.
        device: as for `load`.
        learning_rates: of each method.
        known: trials of before, which are not made again.
        note: told of trials whose loss was not finite, which are left out.
    """
    done = {(one.method, one.learning_rate) for one in known}
    shared = {key: value for key, value in config.model_dump().items() if key in StreamConfig.model_fields}
    for method in config.methods:
        for rate in learning_rates[method]:
            if (method, rate) not in done:
                options = validate(LearnConfig, {**shared, "method": method, "lr": rate})
                try:
                    yield trial(load(folder, device=device), folder, facts, options, probes, background)
                except TrainingError as error:
                    note(f"{method} with lr {rate:g} is left out: {error}")


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both coordinates, by the first one.

    >>> front([(0.1, 1.0), (0.5, 0.9), (0.4, 0.8), (0.5, 0.7)])
    [(0.1, 1.0), (0.5, 0.9)]
    """
    best: list[tuple[float, float]] = []
    for point in sorted(set(points), reverse=True):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best[::-1]


def area(points: Iterable[tuple[float, float]]) -> float:
    """Of the unit square, what lies below and left of a point: 1 is everything learned and everything kept.

    >>> round(area([(0.5, 1.0), (1.0, 0.5)]), 3)
    0.75
    """
    total, reached = 0.0, 0.0
    for learned, kept in front(points):
        total += (learned - reached) * kept
        reached = learned
    return total


def kept_at(points: Iterable[tuple[float, float]], learned: float) -> float | None:
    """The most that a point keeps which learned at least so much; None if none did.

    >>> kept_at([(0.5, 0.9), (0.8, 0.6)], 0.6)
    0.6
    """
    return max((kept for reached, kept in points if reached >= learned), default=None)
