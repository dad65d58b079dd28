"""Huber's loss by reweighting: residuals beyond 1.345 robust standard deviations pull with constant force."""

from __future__ import annotations

import numpy as np

from postgrad.scaling.ops import Array, Shape
from postgrad.scaling.solver import Limits, Solution, solve

HUBER = 1.345
"""95 % efficient under Gaussian noise (Huber 1981)."""


def huber_weights(residuals: Array) -> Array:
    """min(1, 1.345·s/|r|) per row, s = 1.4826 · median |r|.

    >>> huber_weights(np.array([[1.0, -1.0, 1.0, 20.0]])).round(4).tolist()
    [[1.0, 1.0, 1.0, 0.0997]]
    """
    size = np.abs(residuals)
    scale = 1.4826 * np.median(size, axis=-1, keepdims=True)
    return np.minimum(1.0, HUBER * scale / np.maximum(size, 1e-300))


def solve_robustly(
    shape: Shape,
    u: Array,
    rewards: Array,
    bounds: Array,
    limits: Limits,
    *,
    starts: Array | None = None,
    grid: int = 24,
    rounds: int = 8,
) -> Solution:
    """As `solver.solve`, under Huber's loss.

    Args:
        shape, u, rewards, bounds, limits, starts, grid: as for `solve`.
        rounds: of reweighting.
    """
    rewards = np.atleast_2d(rewards)
    found = solve(shape, u, rewards, bounds, limits, starts=starts, grid=grid)
    for _ in range(rounds):
        s, _ = shape.function(u, found.theta)
        fitted = found.initial[:, None] + (found.ceiling - found.initial)[:, None] * s
        weights = huber_weights(rewards - fitted)
        found = solve(
            shape, u, rewards, bounds, limits, weights=weights, starts=found.theta, grid=0, tolerance=1e-8
        )
    return found
