"""The equations: the sigmoid law of ScaleRL (arXiv 2510.13786, eq. 1) and the shapes of its rivals.

Symbols: C → compute, R(C) → reward, A → ceiling, B → exponent, C_mid → midpoint, R0 → initial, D → tail.

Every curve here is R(C) = R0 + (A − R0)·s(C; θ): linear in (R0, A), and a *shape* s that rises from 0 to 1 with
one to three nonlinear parameters θ, each on a logarithmic scale. The solver needs no more than s and ∂s/∂θ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


# -- the law ---------------------------------------------------------------------------------------------------


def sigmoid_law(
    compute: ArrayLike, ceiling: ArrayLike, exponent: ArrayLike, midpoint: ArrayLike, initial: ArrayLike
) -> Array:
    """R(C) = R0 + (A − R0) / (1 + (C_mid/C)^B) (ScaleRL, eq. 1).

    Args:
        compute: C ≥ 0, in any unit; R(0) = R0.
        ceiling, exponent, midpoint, initial: A, B > 0, C_mid > 0 (unit of `compute`), R0; they broadcast.

    Returns:
        The reward, shape of the broadcast.

    Half of the way is made at the midpoint; with B = 1 three quarters at three times the midpoint:

    >>> sigmoid_law([0.0, 100.0, 300.0], ceiling=0.6, exponent=1.0, midpoint=100.0, initial=0.2).round(9).tolist()
    [0.2, 0.4, 0.5]
    """
    bottom = np.asarray(initial, float)
    return bottom + (np.asarray(ceiling, float) - bottom) * saturation(compute, exponent, midpoint)


def saturation(compute: ArrayLike, exponent: ArrayLike, midpoint: ArrayLike) -> Array:
    """s(C) = 1 / (1 + (C_mid/C)^B): the share of the way from R0 to A that is made at C; 0 at C = 0.

    >>> saturation([0.0, 2542.0, 5084.0], 2.0, 2542.0).tolist()
    [0.0, 0.5, 0.8]
    """
    with np.errstate(divide="ignore"):
        log_ratio = np.log(np.asarray(compute, float)) - np.log(midpoint)
    return _expit(np.asarray(exponent, float) * log_ratio)


def tail(ceiling: float, exponent: float, midpoint: float, initial: float) -> float:
    """D of the power law that the sigmoid becomes for C ≫ C_mid: R(C) ≈ A − D/C^B, D = (A − R0)·C_mid^B.

    >>> tail(ceiling=0.6, exponent=2.0, midpoint=10.0, initial=0.1)
    50.0
    """
    return (ceiling - initial) * midpoint**exponent


def compute_to_reach(
    reward: ArrayLike, ceiling: ArrayLike, exponent: ArrayLike, midpoint: ArrayLike, initial: ArrayLike
) -> Array:
    """C at which the law reaches a reward: C_mid·((R − R0)/(A − R))^(1/B); 0 at or below R0, ∞ at or above A.

    >>> compute_to_reach([0.1, 0.2, 0.5, 0.6, 0.7], 0.6, 1.0, 100.0, 0.2).round(9).tolist()
    [0.0, 0.0, 300.0, inf, inf]
    """
    target, top, bottom = np.broadcast_arrays(
        np.asarray(reward, float), np.asarray(ceiling, float), np.asarray(initial, float)
    )
    above, below = np.maximum(target - bottom, 0.0), np.maximum(top - target, 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = np.asarray(midpoint) * (above / below) ** (1.0 / np.asarray(exponent))
    return np.where(target >= top, np.inf, np.where(target <= bottom, 0.0, found))


def law_jacobian(
    compute: ArrayLike, ceiling: ArrayLike, exponent: ArrayLike, midpoint: ArrayLike, initial: ArrayLike
) -> Array:
    """∂R/∂(R0, A, log B, log C_mid).

    Args:
        compute: shape [..., n].
        ceiling, exponent, midpoint, initial: of shape [...]; one law for each row.

    Returns:
        Shape [..., n, 4].

    At the midpoint, where s = ½: R0 and A share equally, B does not matter, and a 1 % later midpoint costs B·(A − R0)/4 %:

    >>> law_jacobian([100.0], 0.6, 2.0, 100.0, 0.2).round(12).tolist()
    [[0.5, 0.5, 0.0, -0.2]]
    """
    a, b, m, r = (np.asarray(value, float)[..., None] for value in (ceiling, exponent, midpoint, initial))
    with np.errstate(divide="ignore"):
        u = np.log(np.asarray(compute, float))
    s, ds = sigmoid_shape(u, np.stack([np.log(b[..., 0]), np.log(m[..., 0])], -1))
    return np.concatenate([(1 - s)[..., None], s[..., None], (a - r)[..., None] * ds], -1)


# -- shapes ------------------------------------------------------------------------------------------------------


def sigmoid_shape(u: Array, theta: Array) -> tuple[Array, Array]:
    """The law's s = 1/(1 + e^−z), z = B·(u − log C_mid).

    Args:
        u: log compute, shape [n] or [..., n]; −∞ is allowed.
        theta: (log B, log C_mid), shape [..., 2].

    Returns:
        s of shape [..., n] and ∂s/∂θ of shape [..., n, 2].
    """
    z, exponent = _logit(u, theta)
    s = _expit(z)
    return s, _by_chain(s * (1 - s), z, exponent)


def gompertz_shape(u: Array, theta: Array) -> tuple[Array, Array]:
    """Gompertz in log compute: s = exp(−e^−z); arguments as in `sigmoid_shape`. At the midpoint s = 1/e."""
    z, exponent = _logit(u, theta)
    q = _exp(-z)
    s = np.exp(-q)
    return s, _by_chain(_times(s, q), z, exponent)


def richards_shape(u: Array, theta: Array) -> tuple[Array, Array]:
    """The generalised logistic s = (1 + ν·e^−z)^(−1/ν): ν = 1 is the sigmoid, ν → 0 Gompertz.

    Args:
        u: log compute, [n].
        theta: (log B, log C_mid, log ν), shape [..., 3].
    """
    z, exponent = _logit(u, theta[..., :2])
    nu = np.exp(theta[..., 2:3])
    q = _exp(-z)
    grown = np.log1p(nu * q)
    s = np.exp(-grown / nu)
    ratio = np.where(np.isinf(q), 1 / nu, q / (1 + nu * np.minimum(q, 1e300)))
    by_nu = _times(s, grown / nu - ratio)
    return s, np.concatenate([_by_chain(_times(s, ratio), z, exponent), by_nu[..., None]], -1)


def power_shape(u: Array, theta: Array) -> tuple[Array, Array]:
    """Power law R = A − D·C^−B as a shape: s = 1 − e^(−B·(u − u₀)), u₀ = min(u); so R0 is the reward at the first C.

    Args:
        u: log compute, [n], finite.
        theta: (log B), shape [..., 1].
    """
    exponent = np.exp(theta[..., :1])
    x = exponent * (u - u.min())
    left = np.exp(-x)
    return 1 - left, (left * x)[..., None]


def log_linear_shape(u: Array, theta: Array) -> tuple[Array, Array]:
    """R = a + b·log C: no ceiling at all. s runs from 0 at the first to 1 at the last C; θ is empty, shape [..., 0]."""
    s = (u - u.min()) / max(float(u.max() - u.min()), 1e-300)
    s = np.broadcast_to(s, (*theta.shape[:-1], u.shape[-1]))
    return s, np.zeros((*s.shape, 0))


class Shape(NamedTuple):
    """A family of curves.

    Attributes:
        name: in the field's words.
        function: (u, θ) → (s, ∂s/∂θ).
        num_parameters: nonlinear ones; R0 and A come on top.
        has_ceiling: whether s → 1 for C → ∞, so that A is a ceiling.
    """

    name: str
    function: Callable[[Array, Array], tuple[Array, Array]]
    num_parameters: int
    has_ceiling: bool


SIGMOID = Shape("sigmoid", sigmoid_shape, 2, True)
RIVALS = (
    Shape("power law", power_shape, 1, True),
    Shape("log-linear", log_linear_shape, 0, False),
    Shape("Gompertz", gompertz_shape, 2, True),
    Shape("generalised logistic", richards_shape, 3, True),
)


# -- criteria ----------------------------------------------------------------------------------------------------


def aicc(sum_squares: float, num_points: int, num_parameters: int) -> float:
    """Akaike's criterion with the small-sample term, for least squares: n·log(SSE/n) + 2k + 2k(k + 1)/(n − k − 1).

    Args:
        sum_squares: SSE > 0.
        num_points: n.
        num_parameters: of the curve; the noise's variance is counted here as one more (k = num_parameters + 1).

    Returns:
        The criterion; lower is better; ∞ with too few points.

    >>> round(aicc(10.0, 10, 2), 6)  # k = 3: 10·log 1 + 6 + 24/6
    10.0
    """
    k = num_parameters + 1
    if num_points <= k + 1:
        return math.inf
    fit = num_points * math.log(max(sum_squares, 1e-300) / num_points)
    return fit + 2 * k + 2 * k * (k + 1) / (num_points - k - 1)


def bic_of_window(
    sum_squares: float, num_points: int, num_effective: float, num_parameters: int, num_excluded: int
) -> float:
    """Schwarz's criterion of a curve that ignores some points: each of these costs two parameters, its own value and the
    choice to leave it out (with one, a point in twenty would go by chance).

    Args:
        sum_squares: over the points that are left.
        num_points: all of them, the excluded ones too.
        num_effective: how many independent points these are worth.
        num_parameters: of the curve.
        num_excluded: how many are left out.

    >>> round(bic_of_window(math.e * 10, 10, 10.0, 0, 0), 6)
    10.0
    """
    fit = num_effective * math.log(max(sum_squares, 1e-300) / num_points)
    return fit + (num_parameters + 2 * num_excluded) * math.log(num_points)


# -- helpers -----------------------------------------------------------------------------------------------------


def _expit(z: Array) -> Array:
    half: Any = np.tanh(0.5 * z)
    return 0.5 + 0.5 * half


def _exp(x: Array) -> Array:
    return np.exp(np.minimum(x, 700.0))


def _times(zero_wins: Array, other: Array) -> Array:
    """The product, in which 0·∞ is 0."""
    return np.where(zero_wins == 0, 0.0, zero_wins * np.where(zero_wins == 0, 0.0, other))


def _logit(u: Array, theta: Array) -> tuple[Array, Array]:
    exponent = np.exp(theta[..., 0:1])
    return exponent * (u - theta[..., 1:2]), exponent


def _by_chain(slope: Array, z: Array, exponent: Array) -> Array:
    """∂s/∂(log B, log C_mid) from ∂s/∂z: z and −B."""
    return np.stack([_times(slope, np.where(np.isinf(z), 0.0, z)), -slope * exponent], -1)
