"""What a log goes through before a law is fitted: nothing is lost silently, nothing is guessed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postgrad.core.errors import DataError
from postgrad.scaling.axes import to_curve
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.curve import Curve, Log


def points(*pairs: tuple[float, float]) -> Curve:
    x, y = zip(*pairs, strict=True)
    return Curve.from_points(x, y)


def test_nan_and_infinite_rows_are_dropped_and_counted() -> None:
    nan, inf = float("nan"), float("inf")
    curve = points((1, 0.1), (2, nan), (nan, 0.3), (4, 0.4), (5, inf))
    assert curve.compute.tolist() == [1, 4]
    assert curve.notes == ("3 rows with NaN or infinite values dropped",)


def test_a_resumed_run_overwrites_what_it_logs_again() -> None:
    curve = points((1, 0.1), (2, 0.2), (3, 0.9), (4, 0.9), (3, 0.3), (4, 0.4), (5, 0.5), (5, 0.5), (6, 0.6))
    assert curve.compute.tolist() == [1, 2, 3, 4, 5, 6]
    assert curve.reward.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert "resumed once: 2 rows" in curve.notes[0]
    assert "averaged" in curve.notes[1]


def test_two_restarts_in_one_log_are_three_runs_of_which_the_last_is_taken() -> None:
    runs = [[(c, level + 0.01 * c) for c in range(1, 9)] for level in (0.1, 0.2, 0.3)]
    rows = [row for run in runs for row in run]
    curve = points(*rows)
    assert len(curve) == 8
    assert curve.reward[0] == pytest.approx(0.31)
    assert "starts over 2 times: it holds 3 runs of 8, 8, 8 points; run 3 is taken" in curve.notes[0]
    x, y = zip(*rows, strict=True)
    assert Curve.from_points(x, y, segment=1).reward[0] == pytest.approx(0.11)
    with pytest.raises(DataError, match="holds 3 runs, so there is no segment 4"):
        Curve.from_points(x, y, segment=4)


def test_a_run_that_starts_over_and_is_resumed() -> None:
    first, second = [(1, 0.9), (2, 0.9), (3, 0.9)], [(1, 0.1), (2, 0.2), (3, 0.9), (3, 0.3), (4, 0.4)]
    curve = points(*first, *second)
    assert curve.compute.tolist() == [1, 2, 3, 4]
    assert curve.reward[[0, 1, 3]].tolist() == [0.1, 0.2, 0.4]


def test_a_file_without_order_is_sorted() -> None:
    order = np.random.default_rng(0).permutation(30)
    curve = Curve.from_points(order + 1.0, 0.01 * order)
    assert (np.diff(curve.compute) > 0).all()
    np.testing.assert_allclose(curve.reward, 0.01 * np.arange(30))
    assert "no order" in curve.notes[0]


@given(st.permutations(range(24)))
def test_whatever_the_order_computes_increase_and_rewards_stay_with_them(order: list[int]) -> None:
    x = np.array(order, float)
    curve = Curve.from_points(x, 2 * x)
    assert (np.diff(curve.compute) > 0).all()
    np.testing.assert_array_equal(curve.reward, 2 * curve.compute)


def test_long_logs_are_averaged_and_keep_their_mean() -> None:
    x = np.arange(1.0, 1001.0)
    curve = Curve.from_points(x, x**0.5, max_points=100)
    assert len(curve) == 100
    assert curve.compute[0] == pytest.approx(5.5)
    assert curve.reward.mean() == pytest.approx((x**0.5).mean())


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([1, 2], [0.1], "2 values of compute and 1 of reward"),
        ([-1, 2], [0.1, 0.2], "compute cannot be negative, but is -1"),
        ([1.0, 2.0], [float("nan")] * 2, "no finite point in 2 rows"),
        ([1.0, 2.0], [0.1, 1.3], "should lie in 0 to 1, but is 1.3 at 2"),
    ],
)
def test_bad_points_are_answered(x: list[float], y: list[float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Curve.from_points(x, y, limits=(0.0, 1.0))


def log(**columns: list[object]) -> Log:
    return Log("a-run", "test", {key.replace("__", "/"): column for key, column in columns.items()})


def test_our_own_runs_need_no_names() -> None:
    rows = log(
        step=[0, 1, 2],
        eval__pass_rate=[0.1, None, 0.3],
        rollout__pass_rate=[None, 0.2, 0.2],
        compute__train_flops=[0.0, 3.0, 6.0],
        compute__generate_flops=[0.0, 1.0, 2.0],
        time__elapsed_s=[0.0, 10.0, 20.0],
    )
    curve = to_curve(rows, ScalingConfig())
    assert (curve.reward_key, curve.axis.unit, curve.limits) == ("eval/pass_rate", "FLOP", (0.0, 1.0))
    assert curve.compute.tolist() == [0.0, 8.0]
    assert curve.elapsed_s is not None
    assert curve.elapsed_s.tolist() == [0.0, 20.0]


def test_evaluation_rows_without_tokens_get_them_from_the_steps_around() -> None:
    rows = log(
        step=[10, 15, 20, 20, 30, 40],
        num_tokens=[100, None, 200, None, 300, None],
        reward=[0.1, None, 0.2, None, 0.3, None],
        eval_reward=[None, 0.5, None, 0.6, None, 0.7],
    )
    curve = to_curve(rows, ScalingConfig())
    assert (curve.reward_key, curve.axis.unit) == ("eval_reward", "tokens")
    assert curve.compute.tolist() == [150, 200, 400]
    assert to_curve(rows, ScalingConfig(y="reward", x="steps")).compute.tolist() == [10, 20, 30]


def test_a_count_per_step_is_no_axis() -> None:
    rows = log(step=[1, 2, 3, 4], tokens=[90.0, 80.0, 95.0, 70.0], reward=[0.1, 0.2, 0.3, 0.4])
    assert to_curve(rows, ScalingConfig()).axis.unit == "steps"
    assert to_curve(rows, ScalingConfig(x="tokens")).axis.unit == "tokens"


def test_hours_and_gpus_make_gpu_hours() -> None:
    rows = log(_runtime=[3600.0, 7200.0], reward=[0.1, 0.2])
    curve = to_curve(rows, ScalingConfig(num_gpus=8))
    assert (curve.axis.unit, curve.compute.tolist()) == ("GPU-hours", [8.0, 16.0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"y": "rewrad"}, "no column 'rewrad'. Did you mean 'reward'"),
        ({"x": "stepp"}, "no column 'stepp'. Did you mean 'step'"),
        ({"x": "flops"}, "no column is known to count flops; there are step"),
        ({"x": "step+tokns"}, "no column 'tokns'"),
    ],
)
def test_unknown_columns_are_answered_by_name(options: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        to_curve(log(step=[1, 2], reward=[0.1, 0.2]), ScalingConfig(**options))


def test_several_candidates_are_listed_not_guessed() -> None:
    rows = log(step=[1, 2], eval_gsm_reward=[0.1, 0.2], eval_math_reward=[0.1, 0.2])
    with pytest.raises(
        DataError, match="several columns could be the reward: eval_gsm_reward, eval_math_reward"
    ):
        to_curve(rows, ScalingConfig())
    with pytest.raises(DataError, match="no column is known as a reward; there are step, loss"):
        to_curve(log(step=[1, 2], loss=[3.0, 2.0], kl=[0.1, 0.2]), ScalingConfig())
