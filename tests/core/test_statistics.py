"""The interval of mean@k: known values, the effect of clustering, and its coverage."""

from __future__ import annotations

import numpy as np
import pytest

from postgrad.core.statistics import clustered_rate


def wilson(p: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def test_one_sample_per_prompt_is_wilson() -> None:
    rate = clustered_rate([[True]] * 30 + [[False]] * 70)
    # With one sample each, p(1-p)/var(mean) is n - 1 (the sample variance has n - 1 below).
    assert (rate.low, rate.high) == pytest.approx(wilson(0.3, 99), abs=1e-6)


def test_copies_of_a_sample_add_no_certainty() -> None:
    outcomes = [[bool(i % 3)] for i in range(60)]
    assert clustered_rate([o * 16 for o in outcomes]) == pytest.approx(clustered_rate(outcomes))


def test_all_or_nothing_has_a_width() -> None:
    assert clustered_rate([[True] * 8] * 20).low < 0.9
    assert clustered_rate([[False] * 8] * 20).high > 0.1


def test_it_covers_the_truth() -> None:
    """Beta-binomial prompts: the interval holds the mean in about 95 of 100 draws."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(600):
        p = rng.beta(0.8, 1.2, size=80)
        rate = clustered_rate([list(rng.random(4) < q) for q in p])
        held += rate.low <= 0.4 <= rate.high
    assert 0.92 < held / 600 < 0.98
