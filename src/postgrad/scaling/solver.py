"""Least squares by variable projection (Golub & Pereyra 1973), for many curves on the same compute at once.

R0 and A enter linearly, so for each θ they have a closed form, and only θ (two numbers for the sigmoid) is searched:
a grid of starts whose cost is two matrix products, then Levenberg-Marquardt with the exact Jacobian of the projected
residual. A bootstrap's thousand curves are solved in one call.

Cost for K curves of n points, I iterations: about K·n·(20 + 10·p)·I floating-point operations; K = 1, n = 44: a few milliseconds,
nearly all of it NumPy's overhead per call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from postgrad.scaling.ops import Array, Shape

_TINY = 1e-13
"""Relative determinant below which (1 − s, s) count as one column."""
_LONGEST_STEP = 1.5
"""In log B and log C_mid, so that one bad linearisation does not leave the neighbourhood."""
_NEGLIGIBLE = 1e-24
"""A shape that is 0 (or 1) at every point to this share cannot tell A (or R0)."""


@dataclass(frozen=True)
class Limits:
    """What R0 and A may be.

    Attributes:
        low, high: of both (0 and 1 for pass rates); the curve rises: low ≤ R0 ≤ A ≤ high.
        ceiling, initial: fixed values, one number or one per curve; None = fitted.
        rising: whether A ≥ R0 is asked for.
    """

    low: float = -np.inf
    high: float = np.inf
    ceiling: float | Array | None = None
    initial: float | Array | None = None
    rising: bool = True


class Solution(NamedTuple):
    """Of K curves; p nonlinear parameters.

    Attributes:
        theta: [K, p].
        initial, ceiling: R0 and A, [K].
        sum_squares: weighted, [K].
        at_low, at_high: which θ ended on its bound, [K, p].
        converged: [K].
    """

    theta: Array
    initial: Array
    ceiling: Array
    sum_squares: Array
    at_low: np.ndarray
    at_high: np.ndarray
    converged: np.ndarray


class _Moments(NamedTuple):
    """Sums over the points, with p = 1 − s: Σp², Σps, Σs², Σpy, Σsy, Σy²; any shape."""

    pp: Array
    ps: Array
    ss: Array
    py: Array
    sy: Array
    yy: Array


class _Linear(NamedTuple):
    """The best (R0, A) for given shapes, and the inverse Gram matrix of those that are free (0 for the others)."""

    initial: Array
    ceiling: Array
    sum_squares: Array
    inverse: tuple[Array, Array, Array]


def solve(
    shape: Shape,
    u: Array,
    rewards: Array,
    bounds: Array,
    limits: Limits,
    *,
    weights: Array | None = None,
    starts: Array | None = None,
    grid: int = 24,
    num_starts: int = 3,
    tolerance: float = 1e-10,
    max_iterations: int = 60,
) -> Solution:
    """Fits `shape` to each row of `rewards`.

    Args:
        shape: the family.
        u: log compute, [n].
        rewards: [K, n].
        bounds: of θ, [p, 2].
        limits: of R0 and A.
        weights: ≥ 0, [n] or [K, n]; default 1.
        starts: further θ to start from, [K, p] or [p].
        grid: points per axis of the grid of starts; 0 = only `starts`.
        num_starts: how many of the grid's local minima are refined, per curve.
        tolerance: relative change of the sum of squares at which a curve is done.
        max_iterations: of Levenberg-Marquardt.

    Returns:
        The best of all starts, per curve.
    """
    rewards = np.atleast_2d(rewards)
    num_curves, num_points = rewards.shape
    w = np.broadcast_to(np.ones(num_points) if weights is None else weights, rewards.shape)
    candidates: list[Array] = []
    if starts is not None:
        candidates.append(np.broadcast_to(starts, (num_curves, shape.num_parameters)))
    if shape.num_parameters == 0:
        candidates = [np.zeros((num_curves, 0))]
    elif grid:
        candidates += _grid_starts(shape, u, rewards, w, bounds, limits, grid, num_starts)
    best: Solution | None = None
    for start in candidates:
        found = _refine(shape, u, rewards, w, bounds, limits, start, tolerance, max_iterations)
        best = found if best is None else _better(best, found)
    if best is None:
        raise ValueError("no grid and no starts: nothing to start from")
    return best


def _better(first: Solution, second: Solution) -> Solution:
    wins = second.sum_squares < first.sum_squares

    def choose(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(wins if a.ndim == 1 else wins[:, None], b, a)

    return Solution(*(choose(a, b) for a, b in zip(first, second, strict=True)))


# -- R0 and A in closed form -------------------------------------------------------------------------------------


def _fixed(value: float | Array | None, like: Array) -> Array | None:
    return None if value is None else np.broadcast_to(np.asarray(value, float), like.shape)


def _linear(moments: _Moments, limits: Limits) -> _Linear:
    """Minimises ‖y − R0·(1−s) − A·s‖² under `limits`.

    The problem is convex in two unknowns: either the free minimum is feasible, or the answer lies on an edge, where it
    is the edge's own minimum, clipped.
    """
    pp, ps, ss, py, sy, yy = moments
    floor = _NEGLIGIBLE * (pp + ss) + 1e-300
    fixed_r, fixed_a = _fixed(limits.initial, yy), _fixed(limits.ceiling, yy)
    if fixed_r is not None or fixed_a is not None:
        return _one_fixed(moments, limits, floor, fixed_r, fixed_a)
    det = pp * ss - ps * ps
    regular = (det > _TINY * pp * ss) & (pp > floor) & (ss > floor)
    safe = np.where(regular, det, 1.0)
    r, a = (ss * py - ps * sy) / safe, (pp * sy - ps * py) / safe
    good = regular & (r >= limits.low) & (a <= limits.high)
    if limits.rising:
        good &= a >= r
    inverse = [np.where(good, part / safe, 0.0) for part in (ss, -ps, pp)]
    best = np.where(good, _cost(moments, r, a), np.inf)
    for edge in () if good.all() else _edges(moments, limits, floor):
        wins = ~good & (edge.sum_squares < best)
        r, a, best = (np.where(wins, new, old) for new, old in zip(edge[:3], (r, a, best), strict=True))
        inverse = [np.where(wins, new, old) for new, old in zip(edge.inverse, inverse, strict=True)]
    return _Linear(r, a, np.maximum(best, 0.0), (inverse[0], inverse[1], inverse[2]))


def _cost(moments: _Moments, r: Array, a: Array) -> Array:
    pp, ps, ss, py, sy, yy = moments
    return yy - 2 * (r * py + a * sy) + r * r * pp + 2 * r * a * ps + a * a * ss


def _one_fixed(
    moments: _Moments, limits: Limits, floor: Array, initial: Array | None, ceiling: Array | None
) -> _Linear:
    """R0, A or both are given; the other is its own minimum, clipped. A clipped value is not free either."""
    zero = np.zeros_like(moments.yy)
    if initial is not None and ceiling is not None:
        return _Linear(initial, ceiling, _cost(moments, initial, ceiling), (zero, zero, zero))
    if ceiling is not None:
        size = np.maximum(moments.pp, floor)
        free = (moments.py - moments.ps * ceiling) / size
        r = np.clip(free, limits.low, np.minimum(limits.high, ceiling) if limits.rising else limits.high)
        return _Linear(
            r, ceiling, _cost(moments, r, ceiling), (np.where(r == free, 1 / size, 0.0), zero, zero)
        )
    assert initial is not None
    size = np.maximum(moments.ss, floor)
    free = (moments.sy - moments.ps * initial) / size
    a = np.clip(free, np.maximum(limits.low, initial) if limits.rising else limits.low, limits.high)
    return _Linear(initial, a, _cost(moments, initial, a), (zero, zero, np.where(a == free, 1 / size, 0.0)))


def _edges(moments: _Moments, limits: Limits, floor: Array) -> list[_Linear]:
    """The best point of each edge of low ≤ R0 ≤ A ≤ high: R0 = A, A = high, R0 = low."""
    pp, ps, ss, py, sy, yy = moments
    zero = np.zeros_like(yy)
    flat = np.clip((py + sy) / np.maximum(pp + 2 * ps + ss, floor), limits.low, limits.high)
    edges = [_Linear(flat, flat, _cost(moments, flat, flat), (zero, zero, zero))]
    if np.isfinite(limits.high):
        edges.append(_one_fixed(moments, limits, floor, None, np.full_like(yy, limits.high)))
    if np.isfinite(limits.low):
        edges.append(_one_fixed(moments, limits, floor, np.full_like(yy, limits.low), None))
    return edges


# -- starts --------------------------------------------------------------------------------------------------------


def _grid_starts(
    shape: Shape,
    u: Array,
    rewards: Array,
    w: Array,
    bounds: Array,
    limits: Limits,
    grid: int,
    num_starts: int,
) -> list[Array]:
    """The lowest local minima of each curve on a grid of θ, as `num_starts` arrays [K, p]."""
    sizes = [max(4, grid // 2) if axis == 2 else grid for axis in range(shape.num_parameters)]
    axes = [np.linspace(low, high, size) for (low, high), size in zip(bounds, sizes, strict=True)]
    theta = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    s, _ = shape.function(u, theta)
    p = 1 - s
    common = w.strides[0] == 0
    left = (w[:1] if common else w).T
    wy = (w * rewards).T
    yy = (w * rewards * rewards).sum(-1)[None, :]
    target = (len(theta), len(rewards))
    pp, ps, ss = (np.broadcast_to(q @ left, target) for q in (p * p, p * s, s * s))
    cost = _linear(_Moments(pp, ps, ss, p @ wy, s @ wy, np.broadcast_to(yy, target)), limits).sum_squares
    order = np.argsort(np.where(_is_local_minimum(cost, sizes), cost, np.inf), axis=0, kind="stable")
    return [theta[order[rank]] for rank in range(num_starts)]


def _is_local_minimum(cost: Array, sizes: list[int]) -> np.ndarray:
    """Which grid points are no higher than their neighbours along each axis; cost [G, K] → bool [G, K]."""
    cube = cost.reshape(*sizes, -1)
    found = np.ones(cube.shape, bool)
    for axis in range(len(sizes)):
        step = np.diff(cube, axis=axis)
        edge = np.zeros_like(np.take(cube, [0], axis))
        found &= np.concatenate([edge, step], axis) <= 0
        found &= np.concatenate([step, edge], axis) >= 0
    return found.reshape(cost.shape)


# -- refinement ----------------------------------------------------------------------------------------------------


class _State(NamedTuple):
    """Jacobian and residual at some θ, contracted: JᵀJ [K, p, p] and Jᵀr [K, p]."""

    jtj: Array
    jtr: Array


def _evaluate(
    shape: Shape, u: Array, y: Array, w: Array, theta: Array, limits: Limits
) -> tuple[_Linear, _State]:
    """R0, A and the exact Jacobian of the residual projected onto them (Golub & Pereyra 1973, eq. 5.4)."""
    s, ds = shape.function(u, theta)
    p = 1 - s
    wp, ws, wy = w * p, w * s, w * y
    sums = (wp * p, wp * s, ws * s, wp * y, ws * y, wy * y)
    linear = _linear(_Moments(*(part.sum(-1) for part in sums)), limits)
    i00, i01, i11 = (part[:, None] for part in linear.inverse)
    height = (linear.ceiling - linear.initial)[:, None]
    r = y - linear.initial[:, None] * p - linear.ceiling[:, None] * s
    # ∂Φ = (−ds, ds): its action on the coefficients is ds·(A − R0), its transpose on r is ±Σ ds·r.
    projected0 = np.einsum("kn,knp->kp", wp, ds)
    projected1 = np.einsum("kn,knp->kp", ws, ds)
    pull = np.einsum("kn,knp->kp", w * r, ds)
    c0 = height * (i00 * projected0 + i01 * projected1) - (i01 - i00) * pull
    c1 = height * (i01 * projected0 + i11 * projected1) - (i11 - i01) * pull
    j = p[..., None] * c0[:, None, :] + s[..., None] * c1[:, None, :] - height[..., None] * ds
    jw = j * w[..., None]
    return linear, _State(np.einsum("knp,knq->kpq", jw, j), np.einsum("knp,kn->kp", jw, r))


def _refine(
    shape: Shape,
    u: Array,
    rewards: Array,
    w: Array,
    bounds: Array,
    limits: Limits,
    start: Array,
    tolerance: float,
    max_iterations: int,
) -> Solution:
    """Levenberg-Marquardt with bounds on θ; curves that are done leave the batch."""
    num_curves, p = start.shape
    low, high = (bounds[:, 0], bounds[:, 1]) if p else (np.zeros(0), np.zeros(0))
    theta = np.clip(start, low, high)
    linear, state = _evaluate(shape, u, rewards, w, theta, limits)
    initial, ceiling, cost = (values.copy() for values in linear[:3])
    damping, converged = np.full(num_curves, 1e-3), np.full(num_curves, p == 0)
    alive = np.flatnonzero(~converged)
    for _ in range(max_iterations):
        if not len(alive):
            break
        here, lam = theta[alive], damping[alive]
        trial = np.clip(here + _step(state, here, low, high, lam), low, high)
        tried, fresh = _evaluate(shape, u, rewards[alive], w[alive], trial, _pick(limits, alive))
        old, new = cost[alive], tried.sum_squares
        better = new <= old
        won = alive[better]
        theta[won], cost[won] = trial[better], new[better]
        initial[won], ceiling[won] = tried.initial[better], tried.ceiling[better]
        damping[alive] = np.where(better, np.maximum(lam / 5, 1e-12), lam * 4)
        moved = np.abs(trial - here).max(-1)
        done = (better & (old - new <= tolerance * old) & (moved < 1e-4)) | (moved < 1e-9) | (lam > 1e9)
        converged[alive[done]] = True
        keep = ~done
        state = _State(
            np.where(better[:, None, None], fresh.jtj, state.jtj)[keep],
            np.where(better[:, None], fresh.jtr, state.jtr)[keep],
        )
        alive = alive[keep]
    near = 1e-6 * (high - low)
    return Solution(theta, initial, ceiling, cost, theta <= low + near, theta >= high - near, converged)


def _step(state: _State, theta: Array, low: Array, high: Array, damping: Array) -> Array:
    """−(JᵀJ + λ·diag)⁻¹Jᵀr, in which a parameter pressed against its bound stays there."""
    stuck = ((theta <= low) & (state.jtr > 0)) | ((theta >= high) & (state.jtr < 0))
    free = ~stuck
    matrix = state.jtj * (free[:, :, None] & free[:, None, :])
    diagonal = np.einsum("kpp->kp", state.jtj)
    diagonal = damping[:, None] * np.maximum(diagonal, 1e-12 * diagonal.max(-1, keepdims=True) + 1e-300)
    index = np.arange(theta.shape[1])
    matrix[:, index, index] += np.where(free, diagonal, 1.0)
    gradient = np.where(free, state.jtr, 0.0)
    step = -np.linalg.solve(matrix, gradient[..., None])[..., 0]
    return np.clip(step, -_LONGEST_STEP, _LONGEST_STEP).astype(np.float64, copy=False)


def _pick(limits: Limits, index: np.ndarray) -> Limits:
    """The limits of some of the curves."""

    def pick(value: float | Array | None) -> float | Array | None:
        return value[index] if isinstance(value, np.ndarray) and value.ndim else value

    return Limits(limits.low, limits.high, pick(limits.ceiling), pick(limits.initial), limits.rising)
