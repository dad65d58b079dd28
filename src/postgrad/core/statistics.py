"""Intervals for rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def clustered_rate(passed: Sequence[Sequence[bool]], z: float = 1.959964) -> Interval:
    """mean@k of k samples per prompt, with a 95 % interval that takes the prompt as the unit of chance.

    Wilson's interval with the effective number of samples n = p(1−p)/var, where var is the variance of the mean of the
    prompts' means (so k identical samples of a prompt count once). When that variance is 0, n is the number of prompts.

    Args:
        passed: one sequence of outcomes per prompt, none empty.

    >>> clustered_rate([[True, True], [False, False]] * 50).mean
    0.5
    >>> [round(x, 3) for x in clustered_rate([[True]] * 10)]
    [1.0, 0.722, 1.0]
    """
    means = [sum(outcomes) / len(outcomes) for outcomes in passed]
    count = len(means)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = sum(means) / count
    variance = sum((m - mean) ** 2 for m in means) / (count - 1) / count if count > 1 else 0.0
    effective = mean * (1 - mean) / variance if variance > 0 else float(count)
    if effective <= 0:
        effective = float(count)
    centre = (mean + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z / (1 + z * z / effective) * math.sqrt(mean * (1 - mean) / effective + (z / (2 * effective)) ** 2)
    return Interval(mean, max(0.0, centre - half), min(1.0, centre + half))


def paired_difference(pairs: Sequence[tuple[bool, bool]]) -> Interval:
    """Share of first outcomes minus that of second ones, both of the same prompts, with a 95 % interval.

    Newcombe (1998), Statistics in Medicine 17, 2635-2650: the Wilson intervals of both shares, combined with the correlation of
    the outcomes.

    Args:
        pairs: of each prompt, both outcomes.

    >>> [round(x, 3) for x in paired_difference([(True, True)] * 40 + [(True, False)] * 20 + [(False, False)] * 40)]
    [0.2, 0.12, 0.274]
    """
    count = len(pairs)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    first, second = (clustered_rate([[pair[side]] for pair in pairs]) for side in (0, 1))
    both = sum(a and b for a, b in pairs) / count
    spread = math.sqrt(first.mean * (1 - first.mean) * second.mean * (1 - second.mean))
    correlation = (both - first.mean * second.mean) / spread if spread else 0.0

    def combined(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))

    mean = first.mean - second.mean
    return Interval(
        mean,
        mean - combined(first.mean - first.low, second.high - second.mean),
        mean + combined(first.high - first.mean, second.mean - second.low),
    )
