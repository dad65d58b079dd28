"""Intervals for rates and means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of independent values with the interval of Student's t; ends are NaN for a single value.

    >>> [round(x, 3) for x in mean_interval([1.0, 2.0, 3.0])]  # 2 ± 4.3027·1/√3
    [2.0, -0.484, 4.484]
    """
    count = len(values)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, math.nan, math.nan)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = student_t_quantile(confidence, count - 1) * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half)


def student_t_quantile(confidence: float, degrees: int) -> float:
    """t with P(|T| < t) = confidence, for a whole number of degrees of freedom, by bisection.

    >>> [round(student_t_quantile(0.95, n), 3) for n in (1, 2, 4, 9)], round(student_t_quantile(0.99, 5), 3)
    ([12.706, 4.303, 2.776, 2.262], 4.032)
    """
    low, high = 0.0, 1.0
    while _within(high, degrees) < confidence:
        high *= 2
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return 0.5 * (low + high)


def _within(t: float, degrees: int) -> float:
    """P(|T| < t) of Student's t: the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


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
