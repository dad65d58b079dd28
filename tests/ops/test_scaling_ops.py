"""The sigmoid law and its rivals: values by hand, derivatives by differences, limits that theory gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postgrad.scaling import ops
from postgrad.scaling.ops import Array, Shape

SHAPES = (ops.SIGMOID, *ops.RIVALS)
THETA = {
    0: [],
    1: [np.log(0.7)],
    2: [np.log(1.9), np.log(2500.0)],
    3: [np.log(1.9), np.log(2500.0), np.log(0.6)],
}
U = np.log(np.linspace(300.0, 16000.0, 23))


def test_the_law_by_hand() -> None:
    # C = 3·C_mid, B = 2: s = 1/(1 + 1/9) = 0.9; R = 0.1 + 0.5·0.9
    assert ops.sigmoid_law(300.0, 0.6, 2.0, 100.0, 0.1) == pytest.approx(0.55)
    assert ops.sigmoid_law(0.0, 0.6, 2.0, 100.0, 0.1) == 0.1


@given(
    st.floats(0.3, 5), st.floats(1, 1e6), st.floats(0.0, 0.5), st.floats(0.01, 0.5), st.floats(0.001, 0.999)
)
def test_compute_to_reach_inverts_the_law(b: float, m: float, r0: float, rise: float, share: float) -> None:
    target = r0 + share * rise
    compute = ops.compute_to_reach(target, r0 + rise, b, m, r0)
    assert ops.sigmoid_law(compute, r0 + rise, b, m, r0) == pytest.approx(target, abs=1e-9)


def test_far_beyond_the_midpoint_the_law_is_the_power_law_of_the_tail() -> None:
    a, b, m, r0 = 0.61, 1.92, 2542.0, 0.35
    compute = 1e3 * m
    assert ops.sigmoid_law(compute, a, b, m, r0) == pytest.approx(
        a - ops.tail(a, b, m, r0) / compute**b, abs=1e-9
    )


@given(st.floats(1e-3, 1e3), st.floats(-5, 5), st.floats(0.1, 10))
def test_the_law_is_equivariant(unit: float, shift: float, scale: float) -> None:
    compute = np.geomspace(10, 1e5, 9)
    base = ops.sigmoid_law(compute, 0.6, 1.7, 3000.0, 0.2)
    moved = ops.sigmoid_law(compute * unit, 0.6 * scale + shift, 1.7, 3000.0 * unit, 0.2 * scale + shift)
    np.testing.assert_allclose(moved, base * scale + shift, atol=1e-9 * (scale + abs(shift)))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_derivatives_equal_differences(shape: Shape) -> None:
    theta = np.array(THETA[shape.num_parameters])
    s, ds = shape.function(U, theta)
    assert s.shape == U.shape
    assert ds.shape == (*U.shape, shape.num_parameters)
    for index in range(shape.num_parameters):
        step = np.zeros_like(theta)
        step[index] = 1e-6
        slope = (shape.function(U, theta + step)[0] - shape.function(U, theta - step)[0]) / 2e-6
        np.testing.assert_allclose(ds[:, index], slope, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_shapes_rise_and_those_with_a_ceiling_end_at_one(shape: Shape) -> None:
    theta = np.array(THETA[shape.num_parameters])
    s, _ = shape.function(U, theta)
    assert (np.diff(s) > 0).all()
    if shape.has_ceiling:
        far = np.concatenate([U, [60.0]])
        assert shape.function(far, theta)[0][-1] == pytest.approx(1, abs=1e-6)


def test_the_generalised_logistic_holds_both_its_relatives() -> None:
    theta = np.array(THETA[2])
    at_one = ops.richards_shape(U, np.array([*theta, 0.0]))[0]
    np.testing.assert_allclose(at_one, ops.sigmoid_shape(U, theta)[0], atol=1e-12)
    near_zero = ops.richards_shape(U, np.array([*theta, np.log(1e-8)]))[0]
    np.testing.assert_allclose(near_zero, ops.gompertz_shape(U, theta)[0], atol=1e-6)


@pytest.mark.parametrize("function", [ops.sigmoid_shape, ops.gompertz_shape], ids=["sigmoid", "Gompertz"])
def test_no_compute_gives_the_initial_reward_and_no_slope(function: object) -> None:
    s, ds = function(np.array([-np.inf]), np.array(THETA[2]))  # type: ignore[operator]
    assert s.tolist() == [0.0]
    assert ds.tolist() == [[0.0, 0.0]]


def test_a_batch_of_theta_is_a_loop() -> None:
    thetas = np.array([[0.1, 7.0], [0.6, 8.5]])
    s, ds = ops.sigmoid_shape(U, thetas)
    for row, theta in enumerate(thetas):
        one: tuple[Array, Array] = ops.sigmoid_shape(U, theta)
        np.testing.assert_array_equal(s[row], one[0])
        np.testing.assert_array_equal(ds[row], one[1])


def test_law_jacobian_equals_differences() -> None:
    compute = np.array([0.0, 500.0, 2542.0, 9000.0])
    at = np.array([0.35, 0.61, np.log(1.92), np.log(2542.0)])

    def law(p: Array) -> Array:
        return ops.sigmoid_law(compute, p[1], np.exp(p[2]), np.exp(p[3]), p[0])

    found = ops.law_jacobian(compute, 0.61, 1.92, 2542.0, 0.35)
    for index in range(4):
        step = np.zeros(4)
        step[index] = 1e-6
        np.testing.assert_allclose(found[:, index], (law(at + step) - law(at - step)) / 2e-6, atol=1e-8)


def test_aicc_by_hand_and_without_enough_points() -> None:
    # n = 20, 3 parameters: k = 4, 2k = 8, 2·4·5/15 = 8/3
    assert ops.aicc(20.0, 20, 3) == pytest.approx(8 + 8 / 3)
    assert ops.aicc(1.0, 5, 3) == np.inf


def test_an_excluded_point_must_be_worth_its_two_parameters() -> None:
    """With n points of equal worth, leaving one out pays if it lowers log SSE by more than 2·log(n)/n."""
    n = 50
    base = ops.bic_of_window(1.0, n, n, 4, 0)
    just = np.exp(-2 * np.log(n) / n)
    assert ops.bic_of_window(just * 1.001, n, n, 4, 1) > base
    assert ops.bic_of_window(just * 0.999, n, n, 4, 1) < base
