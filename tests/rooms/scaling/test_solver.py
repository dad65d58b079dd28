"""The solver against obvious references: a dense grid, SciPy, differences; and what must not change the answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares, lsq_linear

from postgrad.scaling import ops
from postgrad.scaling.grid import CEILINGS, MIDPOINTS, grid_fit
from postgrad.scaling.ops import SIGMOID, Array
from postgrad.scaling.robust import solve_robustly
from postgrad.scaling.solver import Limits, _evaluate, _linear, _Moments, solve

X = np.linspace(1500.0, 16000.0, 44)
U = np.log(X)
BOUNDS = np.array([[np.log(0.2), np.log(12.0)], [np.log(75.0), np.log(320_000.0)]])
TRUTH = (0.61, 1.92, 2542.0, 0.35)


def curves(count: int, sigma: float = 0.004, seed: int = 0, truth: tuple[float, ...] = TRUTH) -> Array:
    noise = np.random.default_rng(seed).normal(size=(count, len(X)))
    return ops.sigmoid_law(X, *truth) + sigma * noise


def sum_squares(p: Array, y: Array) -> float:
    return float(np.sum((y - ops.sigmoid_law(X, p[1], np.exp(p[2]), np.exp(p[3]), p[0])) ** 2))


def test_without_noise_the_truth_comes_back() -> None:
    found = solve(SIGMOID, U, curves(1, 0.0), BOUNDS, Limits())
    got = [found.ceiling[0], *np.exp(found.theta[0]), found.initial[0]]
    np.testing.assert_allclose(got, TRUTH, rtol=1e-5)


def test_no_worse_than_scipy_from_the_truth_and_from_many_starts() -> None:
    y = curves(6, 0.01)
    found = solve(SIGMOID, U, y, BOUNDS, Limits())
    for row in range(len(y)):

        def residuals(p: Array, row: int = row) -> Array:
            return y[row] - ops.sigmoid_law(X, p[1], np.exp(p[2]), np.exp(p[3]), p[0])

        low, high = [-np.inf, -np.inf, *BOUNDS[:, 0]], [np.inf, np.inf, *BOUNDS[:, 1]]
        starts = [
            [0.35, 0.61, b, m]
            for b in np.linspace(*BOUNDS[0], 5)[1:-1]
            for m in np.linspace(*BOUNDS[1], 7)[1:-1]
        ]
        best = min(2 * least_squares(residuals, start, bounds=(low, high)).cost for start in starts)
        assert found.sum_squares[row] <= best * (1 + 1e-6)


def test_the_projected_jacobian_equals_differences() -> None:
    """∂/∂θ of the projected sum of squares, ½·Σr², is Jᵀr; free, with A fixed, with R0 fixed, on the upper edge."""
    y, w = curves(1, 0.01), np.random.default_rng(1).uniform(0.5, 2, (1, len(X)))
    theta = np.array([[0.3, 7.5]])
    for limits in (Limits(), Limits(ceiling=0.6), Limits(initial=0.3), Limits(0.0, 0.58)):
        gradient = _evaluate(SIGMOID, U, y, w, theta, limits)[1].jtr[0]
        for index in range(2):
            step = np.zeros((1, 2))
            step[0, index] = 1e-6
            up, down = (
                _evaluate(SIGMOID, U, y, w, theta + side * step, limits)[0].sum_squares[0] for side in (1, -1)
            )
            assert gradient[index] == pytest.approx((up - down) / 4e-6, rel=1e-4, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-1.0, 1.0), st.floats(-1.0, 1.0), st.floats(-0.5, 0.4), st.floats(0.5, 1.2), st.integers(0, 99)
)
def test_the_closed_form_under_limits_equals_a_quadratic_program(
    r0: float, a: float, low: float, high: float, seed: int
) -> None:
    """low ≤ R0 ≤ A ≤ high as R0 = low + x₁, A = R0 + x₂ has the slack x₁ + x₂ ≤ high − low: compared with a fine search."""
    s, _ = ops.sigmoid_shape(U, np.array([0.6, 8.0]))
    y = r0 + (a - r0) * s + 0.1 * np.random.default_rng(seed).normal(size=len(s))
    p = 1 - s
    sums = _Moments(*(np.array([value]) for value in (p @ p, p @ s, s @ s, p @ y, s @ y, y @ y)))
    found = _linear(sums, Limits(low, high))
    assert low - 1e-12 <= found.initial[0] <= found.ceiling[0] + 1e-12 <= high + 2e-12
    edge = np.linspace(low, high, 401)
    grid_r, grid_a = np.meshgrid(edge, edge)
    feasible = grid_r <= grid_a
    cost = ((y[:, None] - p[:, None] * grid_r[feasible] - s[:, None] * grid_a[feasible]) ** 2).sum(0)
    assert found.sum_squares[0] <= cost.min() + 1e-9
    if low + 1e-6 < found.initial[0] < found.ceiling[0] - 1e-6 < high - 2e-6:
        free = lsq_linear(np.stack([p, s], 1), y).cost
        assert found.sum_squares[0] == pytest.approx(2 * free, rel=1e-9)


def test_scale_shift_unit_order_and_company_do_not_matter() -> None:
    y = curves(3, 0.01)
    base = solve(SIGMOID, U, y, BOUNDS, Limits())
    scaled = solve(SIGMOID, U, 3.0 * y - 1.0, BOUNDS, Limits())
    np.testing.assert_allclose(scaled.ceiling, 3 * base.ceiling - 1, rtol=1e-6)
    np.testing.assert_allclose(scaled.theta, base.theta, atol=1e-5)
    shift = np.log(1e12)
    moved = solve(SIGMOID, U + shift, y, BOUNDS + np.array([[0.0], [shift]]), Limits())
    np.testing.assert_allclose(moved.theta - [0, shift], base.theta, atol=1e-5)
    order = np.random.default_rng(3).permutation(len(U))
    shuffled = solve(SIGMOID, U[order], y[:, order], BOUNDS, Limits())
    np.testing.assert_allclose(shuffled.theta, base.theta, atol=1e-5)
    alone = solve(SIGMOID, U, y[1], BOUNDS, Limits())
    np.testing.assert_allclose(alone.theta[0], base.theta[1], atol=1e-6)


@settings(max_examples=30, deadline=None)
@example(b=1.0, m=1500.0, rise=0.0625, sigma=0.01953125, scale=1.0, shift=2.0, seed=9696)
@given(
    st.floats(0.7, 4.0),
    st.floats(1500.0, 9000.0),
    st.floats(0.05, 0.6),
    st.floats(0.0, 0.02),
    st.floats(0.01, 100.0),
    st.floats(-10.0, 10.0),
    st.integers(0, 10_000),
)
def test_any_fit_is_monotone_equivariant_and_independent_of_order(
    b: float, m: float, rise: float, sigma: float, scale: float, shift: float, seed: int
) -> None:
    """Flat valleys let parameters wander, so what must agree is the law itself, at the points and in its sum of squares."""
    rng = np.random.default_rng(seed)
    y = ops.sigmoid_law(X, 0.2 + rise, b, m, 0.2) + sigma * rng.normal(size=len(X))
    order = rng.permutation(len(X))

    def law(rewards: Array, u: Array = U) -> Array:
        found = solve(SIGMOID, u, rewards, BOUNDS, Limits())
        return ops.sigmoid_law(np.exp(u), found.ceiling[0], *np.exp(found.theta[0]), initial=found.initial[0])

    base = law(y)
    size = float(np.ptp(y))
    assert (np.diff(base) >= -1e-9 * size).all()
    rounding = 1e-9 * abs(shift) / scale
    for other in ((law(scale * y + shift) - shift) / scale, law(y[order], U[order])[order.argsort()]):
        np.testing.assert_allclose(other, base, atol=1e-3 * size + rounding)
        squares, others = (float(np.square(fitted - y).sum()) for fitted in (base, other))
        assert others == pytest.approx(squares, rel=1e-4, abs=len(y) * (2e-4 * size + rounding) ** 2)


def test_a_weight_is_a_repetition() -> None:
    y = curves(1, 0.01)
    weights = np.where(np.arange(len(X)) % 3 == 0, 2.0, 1.0)
    repeated = np.repeat(np.arange(len(X)), weights.astype(int))
    weighted = solve(SIGMOID, U, y, BOUNDS, Limits(), weights=weights)
    twice = solve(SIGMOID, U[repeated], y[:, repeated], BOUNDS, Limits())
    np.testing.assert_allclose(weighted.theta, twice.theta, atol=1e-6)


def test_fixed_values_stay_and_limits_hold() -> None:
    y = curves(2, 0.02)
    fixed = solve(SIGMOID, U, y, BOUNDS, Limits(ceiling=np.array([0.60, 0.65]), initial=0.3))
    assert fixed.ceiling.tolist() == [0.60, 0.65]
    assert fixed.initial.tolist() == [0.3, 0.3]
    bounded = solve(SIGMOID, U, y, BOUNDS, Limits(0.0, 0.58))
    assert (bounded.ceiling <= 0.58).all()


def test_a_falling_curve_is_flat_under_a_law_that_rises() -> None:
    found = solve(SIGMOID, U, curves(1, 0.002)[:, ::-1], BOUNDS, Limits())
    assert found.ceiling[0] == pytest.approx(found.initial[0])


def test_huber_bounds_the_pull_of_outliers() -> None:
    y = curves(1, 0.004)
    y[0, [12, 30]] -= 0.3  # two evaluations that went wrong
    plain = solve(SIGMOID, U, y, BOUNDS, Limits(0, 1))
    robust = solve_robustly(SIGMOID, U, y, BOUNDS, Limits(0, 1))
    clean = solve(SIGMOID, U, curves(1, 0.004), BOUNDS, Limits(0, 1))
    assert abs(robust.ceiling[0] - clean.ceiling[0]) < 0.005 < abs(plain.ceiling[0] - clean.ceiling[0])


def test_the_papers_grid_on_a_coarser_grid_is_the_best_pair_of_a_double_loop() -> None:
    y = curves(1)[0]
    ceilings, midpoints = CEILINGS[28:36:2], MIDPOINTS[4:10]
    found = grid_fit(X, y, 0.35, ceilings=ceilings, midpoints=midpoints)
    exponents = np.linspace(0.5, 4, 3501)
    cost = [
        (float(((y - ops.sigmoid_law(X, a, exponents[:, None], m, 0.35)) ** 2).sum(1).min()), a, m)
        for a in ceilings
        for m in midpoints
    ]
    assert found.sum_squares == pytest.approx(min(cost)[0], rel=1e-4)
    assert (found.ceiling, found.midpoint) == min(cost)[1:]


def test_the_grid_is_the_one_that_the_paper_prints() -> None:
    assert (CEILINGS[0], CEILINGS[1], CEILINGS[2], CEILINGS[-1]) == (0.450, 0.455, 0.460, 0.800)
    assert len(CEILINGS) == 71
    assert (MIDPOINTS[0], MIDPOINTS[-1], len(MIDPOINTS)) == (100.0, 40_000.0, 100)
    np.testing.assert_allclose(np.diff(MIDPOINTS), 39_900 / 99)


def test_ours_is_no_worse_than_the_grid() -> None:
    y = curves(1)[0]
    peer = grid_fit(X, y, 0.35, ceilings=CEILINGS[24:40:2], midpoints=MIDPOINTS[2:14])
    ours = solve(SIGMOID, U, y, BOUNDS, Limits(initial=0.35))
    assert ours.sum_squares[0] <= peer.sum_squares
