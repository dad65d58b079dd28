"""Synthetic curves at the parameters of the paper's Table 1 (ScaleRL, arXiv 2510.13786)."""

from __future__ import annotations

import numpy as np

from postgrad.scaling.curve import Axis, Curve
from postgrad.scaling.fitting import Law

INITIAL = 0.35
"""R0 of all rows; the paper does not print it."""
SIGMA = 0.004
"""Of one evaluation: mean@16 over 1,000 prompts."""
NUM_POINTS = 44
FIRST = 1_500.0
"""GPU-hours that the paper leaves out."""

TABLE_1 = {
    "ScaleRL": Law(0.610, 1.92, 2542, INITIAL),
    "32k length": Law(0.645, 1.89, 11272, INITIAL),
    "8 generations": Law(0.585, 2.44, 2542, INITIAL),
    "24 generations": Law(0.590, 2.22, 3054, INITIAL),
    "32 generations": Law(0.595, 2.07, 2936, INITIAL),
    "Scout": Law(0.710, 1.65, 4242, INITIAL),
    "batch 512": Law(0.605, 1.77, 2818, INITIAL),
    "batch 2048": Law(0.645, 1.70, 10909, INITIAL),
}
"""A, B, C_mid of the paper."""


def last_compute(truth: Law) -> float:
    """Where the log ends: 16,000 GPU-hours, or 50,000 for the two rows whose midpoint is past 10,000.

    The paper does not state the length of every run; these two cannot end before they have made most of their way.
    """
    return 50_000.0 if truth.midpoint > 10_000 else 16_000.0


def curve_of(
    truth: Law, generator: np.random.Generator, *, rho: float = 0.0, share: float = 1.0, sigma: float = SIGMA
) -> Curve:
    """A log at some parameters.

    Args:
        truth: the law.
        generator: of the noise.
        rho: autocorrelation of neighbouring evaluations.
        share: of the log that has been written so far.
        sigma: of the noise.
    """
    compute = np.linspace(FIRST, last_compute(truth), NUM_POINTS)
    noise = generator.normal(size=NUM_POINTS)
    for index in range(1, NUM_POINTS):
        noise[index] = rho * noise[index - 1] + np.sqrt(1 - rho**2) * noise[index]
    reward = truth(compute) + sigma * noise
    keep = slice(0, round(share * NUM_POINTS))
    return Curve(
        "synthetic", compute[keep], reward[keep], Axis("gpu_hours", "GPU-hours"), "eval/pass_rate", (0.0, 1.0)
    )
