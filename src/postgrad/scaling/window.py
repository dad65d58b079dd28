"""Where the law begins: the early regime (warm-up, format learning) does not follow it and is left out.

The paper drops its first 1,500 GPU-hours by eye. By data: leaving out a point gives it a value of its own and is a choice,
so it costs two parameters. Among the first 0, 1, 2, … points, as many are left out as lowers Schwarz's criterion most; noise that
remembers (autocorrelation ρ) is worth fewer points, and the gain counts accordingly less.
"""

from __future__ import annotations

import numpy as np

from postgrad.scaling.noise import estimate_noise
from postgrad.scaling.ops import SIGMOID, Array, bic_of_window, law_jacobian
from postgrad.scaling.solver import Limits, solve


def early_points(u: Array, reward: Array, bounds: Array, limits: Limits, most: int) -> int:
    """How many of the first points to leave out.

    Args:
        u: log compute, [n], increasing.
        reward: [n].
        bounds: of (log B, log C_mid).
        limits: of R0 and A.
        most: no more than this.

    Returns:
        0 to `most`.
    """
    if most < 1:
        return 0
    n = len(u)
    excluded = np.arange(most + 1)
    weights = (np.arange(n) >= excluded[:, None]).astype(float)
    found = solve(SIGMOID, u, np.broadcast_to(reward, weights.shape), bounds, limits, weights=weights)
    # ρ from the latest window: an early regime in the residuals would look like noise that remembers.
    a, b, m, r = (
        found.ceiling[-1:],
        np.exp(found.theta[-1:, 0]),
        np.exp(found.theta[-1:, 1]),
        found.initial[-1:],
    )
    jacobian = law_jacobian(np.exp(u)[None, most:], a, b, m, r)[0]
    s, _ = SIGMOID.function(u[most:], found.theta[-1])
    residuals = reward[most:] - (r[0] + (a[0] - r[0]) * s)
    worth = n * estimate_noise(residuals, jacobian).num_effective / len(residuals)
    criteria = [
        bic_of_window(float(sse), n, worth, SIGMOID.num_parameters + 2, int(m))
        for m, sse in zip(excluded, found.sum_squares, strict=True)
    ]
    return int(np.argmin(criteria))
