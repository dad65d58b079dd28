"""What the runs of an ablation say: one summary per arm, over seeds. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from postgrad.core.run import Run
from postgrad.core.runfiles import pretty_json, read_object, replace_file
from postgrad.core.statistics import Interval, mean_interval
from postgrad.rl.ablation import Overrides

KIND = "rl.ablate"
RESULT = "result.json"

_LAST = 0.1
"""Share of the updates, at the end, over which truncation is averaged."""


class SeedResult(NamedTuple):
    """One finished run.

    Attributes:
        score: held-out pass rate after the last update.
        samples_per_s: median over updates.
        truncated: share of samples cut off by the length limit, in the last tenth of the updates.
        curve: step of an evaluation → (FLOP so far, held-out pass rate).
    """

    score: float
    samples_per_s: float
    truncated: float
    curve: dict[int, tuple[float, float]]


class ArmCurve(NamedTuple):
    """Held-out pass rate over compute, at the evaluations that all seeds have.

    Attributes:
        compute: FLOP, mean over seeds, [n].
        mean, low, high: pass rate and the ends of its 95 % interval, [n].
    """

    compute: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


class ArmResult(NamedTuple):
    """One arm.

    Attributes:
        name: of its directory.
        overrides: put on the recipe, nested.
        reference: the arm it is compared with; empty for the one without any.
        score: final held-out pass rate, mean over seeds with its 95 % interval (Student's t).
        difference: to the reference, paired by seed, likewise.
        scores: seed → final held-out pass rate.
        samples_per_s, truncated: means over seeds, see `SeedResult`.
        curve: mean over seeds.
        failed: seed → why its run ended early.
    """

    name: str
    overrides: Overrides
    reference: str
    score: Interval
    difference: Interval
    scores: dict[int, float]
    samples_per_s: float
    truncated: float
    curve: ArmCurve
    failed: dict[int, str]


class Round(NamedTuple):
    """Of a forward search.

    Attributes:
        tried: names of the arms.
        best: the axis of the greatest mean difference, or None.
        kept: the same one if it helps beyond noise, or None.
    """

    tried: list[str]
    best: str | None
    kept: str | None


class Ablation(NamedTuple):
    """What came out.

    Attributes:
        path: the directory; `postgrad report PATH` writes its page.
        arms: the reference first.
        rounds: of a forward search, in order; empty for leave-one-out.
    """

    path: Path
    arms: list[ArmResult]
    rounds: list[Round]

    @property
    def kept(self) -> list[str]:
        """Axes that a forward search kept, in order."""
        return [found.kept for found in self.rounds if found.kept is not None]


def read_seed(run: Run) -> SeedResult | None:
    """The result of a run; None without an evaluation after training."""
    rows = run.metrics()
    evaluated = [row for row in rows if row.get("eval/pass_rate") is not None]
    updates = [row for row in rows if row.get("speed/samples_per_s") is not None]
    if not evaluated or not updates:
        return None
    last = updates[-max(1, math.ceil(_LAST * len(updates))) :]
    return SeedResult(
        score=float(evaluated[-1]["eval/pass_rate"]),
        samples_per_s=float(np.median([row["speed/samples_per_s"] for row in updates])),
        truncated=float(np.mean([row["rollout/truncated_fraction"] for row in last])),
        curve={
            int(row["step"]): (
                float(row["compute/generate_flops"] + row["compute/train_flops"]),
                float(row["eval/pass_rate"]),
            )
            for row in evaluated
        },
    )


def summarise_arm(
    name: str,
    overrides: Overrides,
    results: Mapping[int, SeedResult],
    failed: Mapping[int, str],
    reference: ArmResult | None = None,
) -> ArmResult:
    """One arm from the runs of its seeds; differences are over the seeds that both arms have."""
    scores = {seed: result.score for seed, result in results.items()}
    differences = [] if reference is None else paired(scores, reference.scores)
    return ArmResult(
        name,
        overrides,
        "" if reference is None else reference.name,
        mean_interval(list(scores.values())),
        mean_interval(differences),
        scores,
        _mean([result.samples_per_s for result in results.values()]),
        _mean([result.truncated for result in results.values()]),
        mean_curve([result.curve for result in results.values()]),
        dict(failed),
    )


def paired(scores: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """Differences of the seeds that both have.

    >>> paired({0: 0.5, 1: 0.75, 2: 0.9}, {0: 0.25, 1: 0.5})
    [0.25, 0.25]
    """
    return [scores[seed] - reference[seed] for seed in scores if seed in reference]


def mean_curve(curves: Sequence[Mapping[int, tuple[float, float]]]) -> ArmCurve:
    """Mean over seeds at the steps that all have, with the interval of the mean; without one, its ends are the mean.

    >>> mean_curve([{0: (0.0, 0.2), 5: (8.0, 0.5)}, {0: (0.0, 0.4)}]).mean
    [0.30000000000000004]
    """
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    intervals = [mean_interval([curve[step][1] for curve in curves]) for step in steps]
    return ArmCurve(
        [_mean([curve[step][0] for curve in curves]) for step in steps],
        [found.mean for found in intervals],
        [found.mean if math.isnan(found.low) else max(0.0, found.low) for found in intervals],
        [found.mean if math.isnan(found.high) else min(1.0, found.high) for found in intervals],
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def arm_record(arm: ArmResult) -> dict[str, Any]:
    """As JSON; what is not known is null."""
    record = {
        **arm._asdict(),
        "score": arm.score._asdict(),
        "difference": arm.difference._asdict(),
        "curve": arm.curve._asdict(),
    }
    return _plain(record)


def arm_from_record(record: Mapping[str, Any]) -> ArmResult:
    """Back from `arm_record`."""

    def interval(name: str) -> Interval:
        return Interval(*(_number(record[name][end]) for end in ("mean", "low", "high")))

    return ArmResult(
        record["name"],
        record["overrides"],
        record["reference"],
        interval("score"),
        interval("difference"),
        {int(seed): score for seed, score in record["scores"].items()},
        _number(record["samples_per_s"]),
        _number(record["truncated"]),
        ArmCurve(**record["curve"]),
        {int(seed): words for seed, words in record["failed"].items()},
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_result(run: Run, found: Ablation, **further: Any) -> None:
    """result.json."""
    record = {
        "arms": [arm_record(arm) for arm in found.arms],
        "rounds": [item._asdict() for item in found.rounds],
        **further,
    }
    replace_file(run.path / RESULT, pretty_json(_plain(record)))


def read_result(path: Path) -> Ablation:
    """Back from result.json in a directory. Raises RunError if it is missing or damaged."""
    record = read_object(path / RESULT)
    arms = [arm_from_record(item) for item in record["arms"]]
    return Ablation(path, arms, [Round(**item) for item in record["rounds"]])
