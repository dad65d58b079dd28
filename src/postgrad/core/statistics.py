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
