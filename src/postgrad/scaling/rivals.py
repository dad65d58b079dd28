"""Other curves on the same points, by an information criterion: does the log ask for the sigmoid at all?"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from postgrad.scaling.ops import RIVALS, SIGMOID, Array, Shape, aicc
from postgrad.scaling.solver import Limits, solve


class Rival(NamedTuple):
    """One family, fitted to the points of the window with C > 0.

    Attributes:
        name: of the family.
        num_parameters: R0 and A included.
        rmse: root of the mean squared residual.
        aicc: Akaike's criterion; lower is better.
        weight: Akaike weight among all families, 0 to 1.
        ceiling: where it ends for C → ∞; None for a family without ceiling.
    """

    name: str
    num_parameters: int
    rmse: float
    aicc: float
    weight: float
    ceiling: float | None


def compare_shapes(u: Array, reward: Array, bounds: Array, limits: Limits) -> list[Rival]:
    """The sigmoid, the power law, log-linear, Gompertz and the generalised logistic, best first.

    Args:
        u: log compute, [n], finite.
        reward: [n].
        bounds: of (log B, log C_mid).
        limits: of R0 and A; a line in log C has no ceiling, so `high` does not bind it.

    Returns:
        One entry per family, by AICc.
    """
    n = len(u)
    rows: list[tuple[Shape, float, int, float]] = []
    for shape in (SIGMOID, *RIVALS):
        allowed = limits if shape.has_ceiling else Limits(rising=limits.rising)
        if shape.name == "power law":  # its R0 is the reward at the first C, not at 0
            allowed = replace(allowed, initial=None)
        found = solve(shape, u, reward, _bounds(shape, bounds), allowed, grid=16)
        sse = float(found.sum_squares[0])
        count = shape.num_parameters + 2 - (allowed.ceiling is not None) - (allowed.initial is not None)
        rows.append((shape, sse, count, float(found.ceiling[0])))
    criteria = np.array([aicc(sse, n, count) for _, sse, count, _ in rows])
    best = criteria.min()
    likelihood = np.exp(-0.5 * (criteria - best)) if np.isfinite(best) else np.ones(len(rows))
    weights = likelihood / likelihood.sum()
    rivals = [
        Rival(
            shape.name,
            count,
            float(np.sqrt(sse / n)),
            float(criterion),
            float(weight),
            ceiling if shape.has_ceiling else None,
        )
        for (shape, sse, count, ceiling), criterion, weight in zip(rows, criteria, weights, strict=True)
    ]
    return sorted(rivals, key=lambda rival: rival.aicc)


def _bounds(shape: Shape, bounds: Array) -> Array:
    if shape.num_parameters == 3:
        return np.concatenate([bounds, [[np.log(1e-2), np.log(1e2)]]])
    return bounds[: shape.num_parameters]
