"""Fits of curves whose truth is known, and of logs from which nothing can be learned."""

from __future__ import annotations

import numpy as np
import pytest

from postgrad.core.errors import ConfigError, DataError
from postgrad.scaling import Curve, Fit, api
from postgrad.scaling.bootstrap import Estimate, interval
from postgrad.scaling.comparison import compare_fits, continued, shared_ceiling
from postgrad.scaling.fitting import Law, standard_error_of_ceiling
from postgrad.scaling.noise import RHOS, Noise, autoregressive, covariance, estimate_noise, simulate
from postgrad.scaling.ops import Array, law_jacobian
from postgrad.scaling.planning import plan_run, points_until, stopping_point

TRUTH = Law(0.61, 1.92, 2542.0, 0.35)
X = np.linspace(1500.0, 16000.0, 44)


def curve(
    truth: Law = TRUTH,
    *,
    sigma: float = 0.004,
    seed: int = 0,
    x: Array = X,
    rho: float = 0.0,
    name: str = "run",
) -> Curve:
    noise = np.random.default_rng(seed).normal(size=len(x))
    for index in range(1, len(x)):
        noise[index] = rho * noise[index - 1] + np.sqrt(1 - rho**2) * noise[index]
    return Curve.from_points(x, truth(x) + sigma * noise, limits=(0.0, 1.0), name=name)


def fit(found: Curve, **options: object) -> Fit:
    return api.fit(found, **{"bootstrap": 400, **options})


# -- known truth ---------------------------------------------------------------------------------------------------


def test_a_curve_of_the_paper_is_identified_and_its_numbers_lie_in_the_intervals() -> None:
    found = fit(curve())
    assert found.status == "identified"
    for name in ("ceiling", "exponent", "midpoint", "initial"):
        estimate = getattr(found, name)
        assert estimate.low < getattr(TRUTH, name) < estimate.high, name
    assert abs(found.law.ceiling - TRUTH.ceiling) < 0.02
    assert found.rivals[0].name in ("sigmoid", "Gompertz", "generalised logistic", "power law")
    assert "Ceiling A = 0.6" in found.verdict


def test_predictions_beyond_the_log() -> None:
    found = fit(curve())
    ahead = found.predict(32_000.0)
    assert ahead.reward.low < TRUTH(32_000.0) < ahead.reward.high
    assert ahead.evaluation.low < ahead.reward.low < ahead.reward.high < ahead.evaluation.high
    reached = found.compute_to_share(0.9)
    assert found.law(reached.value) == pytest.approx(0.9 * found.law.ceiling)
    assert reached.low < 2542 * ((0.549 - 0.35) / 0.061) ** (1 / 1.92) < reached.high
    above = found.compute_to_reward(0.9)
    assert above.value == np.inf
    assert above.low is None


def test_a_fit_does_not_depend_on_order_unit_scale_or_company() -> None:
    base = curve()
    one = fit(base)
    order = np.random.default_rng(1).permutation(len(X))
    shuffled = fit(Curve.from_points(base.compute[order], base.reward[order], limits=(0.0, 1.0)))
    assert shuffled.ceiling == pytest.approx(one.ceiling)
    other = fit(Curve.from_points(base.compute * 3.6e15, 10 * base.reward - 4))
    free = fit(Curve.from_points(base.compute, base.reward))
    assert other.law.midpoint == pytest.approx(3.6e15 * free.law.midpoint, rel=1e-4)
    assert other.law.ceiling == pytest.approx(10 * free.law.ceiling - 4, rel=1e-5)
    assert other.ceiling.low == pytest.approx(10 * free.ceiling.low - 4, rel=1e-3)


def test_the_same_seed_gives_the_same_intervals() -> None:
    assert fit(curve()).ceiling == fit(curve()).ceiling
    assert fit(curve()).ceiling != fit(curve(), seed=1).ceiling


def test_an_early_regime_is_found_and_left_out_and_a_clean_start_is_kept() -> None:
    x = np.linspace(100.0, 16000.0, 60)
    clean = curve(x=x)
    early = x < 1500
    bent = clean.reward.copy()
    bent[early] -= 0.15  # format learning: far below the law
    found = fit(Curve.from_points(x, bent, limits=(0.0, 1.0)))
    assert (~found.fitted).sum() == pytest.approx(early.sum(), abs=1)
    assert abs(found.law.ceiling - TRUTH.ceiling) < 0.01
    assert any("do not follow the law" in words for words in found.cautions)
    assert fit(clean).fitted.sum() >= 58
    given = fit(Curve.from_points(x, bent, limits=(0.0, 1.0)), exclude_below=1500)
    assert given.fitted.tolist() == (~early).tolist()


def test_outliers_hurt_least_squares_and_not_the_robust_fit() -> None:
    base = curve()
    broken = base.reward.copy()
    broken[[20, 33]] -= 0.2
    bad = Curve.from_points(X, broken, limits=(0.0, 1.0))
    plain, robust = fit(bad), fit(bad, robust=True)
    off = [float(np.abs(found.law(X) - TRUTH(X)).max()) for found in (plain, robust)]
    assert off[1] < 0.006 < off[0]
    assert any("--robust" in words for words in plain.cautions)


def test_the_grid_method_is_the_papers() -> None:
    x = np.linspace(1500.0, 16000.0, 12)
    found = fit(curve(x=x), method="grid", initial=0.35, ceiling=0.61, bootstrap=100)
    assert (found.law.ceiling, found.law.initial) == (0.61, 0.35)
    assert found.law.exponent == pytest.approx(1.92, abs=0.2)


def test_compute_zero_is_the_initial_reward() -> None:
    x = np.concatenate([[0.0], X])
    found = fit(curve(x=x), exclude_below=0)
    assert found.law.initial == pytest.approx(0.35, abs=0.01)
    assert len(found.points) == 45


# -- what cannot be known ------------------------------------------------------------------------------------------


def test_before_the_bend_the_ceiling_is_open() -> None:
    x = np.linspace(200.0, 1800.0, 30)
    found = fit(curve(x=x), exclude_below=0)
    assert found.status == "open"
    assert "cannot be read off yet" in found.verdict
    assert found.ceiling.low is None or found.ceiling.low < TRUTH.ceiling


@pytest.mark.parametrize("seed", range(5))
def test_a_line_in_log_compute_has_no_ceiling(seed: int) -> None:
    x = np.geomspace(100, 10_000, 40)
    y = 0.1 + 0.05 * np.log(x / 100) + 0.004 * np.random.default_rng(seed).normal(size=40)
    assert fit(Curve.from_points(x, y)).status == "open"


@pytest.mark.parametrize("seed", range(5))
def test_flat_logs_promise_nothing(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=40)
    found = fit(Curve.from_points(np.arange(1.0, 41), 0.4 + 0.01 * noise, limits=(0.0, 1.0)))
    assert found.status == "flat"
    assert "No rise" in found.verdict


def test_a_constant_is_flat() -> None:
    assert fit(Curve.from_points(np.arange(1.0, 21), np.full(20, 0.4))).status == "flat"


@pytest.mark.parametrize("seed", range(5))
def test_falling_logs_are_called_so(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=40)
    y = 0.6 - 0.2 * np.linspace(0, 1, 40) + 0.01 * noise
    found = fit(Curve.from_points(np.arange(1.0, 41), y))
    assert found.status == "falling"


@pytest.mark.parametrize("seed", range(5))
def test_a_collapse_is_no_ceiling(seed: int) -> None:
    base = curve(seed=seed)
    y = base.reward - 0.3 * np.clip((X - 10_000) / 6_000, 0, None)
    found = fit(Curve.from_points(X, y, limits=(0.0, 1.0)))
    assert found.status == "collapsed"
    assert "--exclude-above" in found.verdict


def test_a_staircase_is_no_sigmoid() -> None:
    x = np.linspace(1, 100, 100)
    y = np.where(x < 30, 0.1, np.where(x < 70, 0.3, 0.7)) + 0.003 * np.random.default_rng(0).normal(size=100)
    found = fit(Curve.from_points(x, y), exclude_below=0)
    assert found.status in ("misfit", "open")


def test_three_points_are_refused_and_counted() -> None:
    with pytest.raises(DataError, match="3 points .* are too few: .* need at least 8"):
        fit(Curve.from_points([1, 2, 3], [0.1, 0.2, 0.3]))
    with pytest.raises(DataError, match=r"\(4 of them in the window\)"):
        fit(curve(), exclude_above=2600)


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="grid is least squares"):
        fit(curve(), method="grid", robust=True)
    with pytest.raises(ConfigError, match="LOW below HIGH"):
        fit(curve(), limits="1,0")


# -- noise and intervals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.4, 0.7])
def test_noise_is_recovered_on_average_although_the_curve_follows_part_of_it(rho: float) -> None:
    jacobian = law_jacobian(X, TRUTH.ceiling, TRUTH.exponent, TRUTH.midpoint, TRUTH.initial)
    basis, _ = np.linalg.qr(jacobian)
    generator = np.random.default_rng(0)
    factor = np.linalg.cholesky(autoregressive(rho, len(X)))
    found = [
        estimate_noise(r - basis @ (basis.T @ r), jacobian)
        for r in (factor @ generator.normal(size=len(X)) for _ in range(400))
    ]
    assert np.mean([noise.sigma**2 for noise in found]) == pytest.approx(1.0, abs=0.12)
    assert np.median([noise.rho for noise in found]) == pytest.approx(rho, abs=0.08)


def known(sigma: float, rho: float) -> Noise:
    """Noise whose σ and ρ are certain."""
    at = int(np.argmin(np.abs(RHOS - rho)))
    return Noise(sigma, RHOS[at], 1.0, np.eye(len(RHOS))[at], np.full(len(RHOS), 1e9 * sigma**2), 10**9)


def test_simulated_noise_has_the_size_and_memory_asked_for() -> None:
    residuals = np.random.default_rng(0).normal(size=60)
    noise = simulate(known(0.02, 0.6), residuals, 4000, np.random.default_rng(1))
    assert noise.std() == pytest.approx(0.02, rel=0.03)
    assert np.mean(noise[:, 1:] * noise[:, :-1]) / noise.var() == pytest.approx(0.6, abs=0.03)


def test_few_points_widen_the_noise_as_students_t_does() -> None:
    """Without memory, σ²·(n − q)/χ²: a single draw in units of the estimate has the tails of Student's t with n − q."""
    residuals = np.random.default_rng(0).choice([-1.0, 1.0], size=12)
    at = int(np.argmin(np.abs(RHOS)))
    white = Noise(1.0, 0.0, 12.0, np.eye(len(RHOS))[at], np.full(len(RHOS), 8.0), 8)
    noise = simulate(white, residuals, 20_000, np.random.default_rng(1))
    assert np.mean(noise**2) == pytest.approx(8 / 6, rel=0.05)  # E[8/χ²₈] = 8/(8 − 2)


def test_covariance_of_a_mean_is_the_textbooks() -> None:
    """The mean of n white points has variance σ²/n; with ρ it is larger by 1 + 2·Σ(1 − k/n)ρᵏ."""
    ones = np.ones((10, 1))
    assert covariance(ones, known(2.0, 0.0))[0, 0] == pytest.approx(0.4)
    rho = known(2.0, 0.5).rho
    expected = 0.4 * (1 + 2 * sum((1 - k / 10) * rho**k for k in range(1, 10)))
    assert covariance(ones, known(2.0, rho))[0, 0] == pytest.approx(expected)


def test_memory_widens_the_intervals() -> None:
    jacobian_free = fit(curve(rho=0.8, seed=3), exclude_below=0)
    white = fit(curve(seed=3), exclude_below=0)
    assert jacobian_free.noise.rho > 0.4
    assert jacobian_free.ceiling.high - jacobian_free.ceiling.low > white.ceiling.high - white.ceiling.low


def test_the_percentile_interval_of_symmetric_draws_is_the_plain_one_and_open_ends_open() -> None:
    draws = np.linspace(-1, 1, 2001)
    found = interval(0.0, draws, 0.9)
    assert (found.low, found.high) == pytest.approx((-0.9, 0.9), abs=2e-3)
    runaway = draws > 0.8
    assert interval(0.0, draws, 0.9, open_high=runaway) == Estimate(0.0, pytest.approx(-0.9, abs=2e-3), None)


# -- what one asks next --------------------------------------------------------------------------------------------


def test_a_higher_ceiling_is_seen_whichever_comes_first() -> None:
    high = fit(curve(TRUTH._replace(ceiling=0.68), name="high", seed=1))
    low = fit(curve(name="low", seed=2))
    for pair in ((high, low), (low, high)):
        found = compare_fits(*pair)
        assert (found.outcome, found.first) == ("higher ceiling", "high")
        assert found.ceiling_difference.low < 0.07 < found.ceiling_difference.high


def test_the_same_ceiling_reached_faster() -> None:
    x = np.linspace(500.0, 40_000.0, 120)
    fast = fit(curve(x=x, name="fast", sigma=0.002, seed=1), exclude_below=0)
    slow = fit(curve(TRUTH._replace(midpoint=5000.0), x=x, name="slow", sigma=0.002, seed=2), exclude_below=0)
    found = compare_fits(slow, fast)
    assert (found.outcome, found.first) == ("same ceiling, faster", "fast")
    assert found.compute_ratio is not None
    assert found.compute_ratio.low < 5000 / 2542 < found.compute_ratio.high
    assert found.shared_ceiling == pytest.approx(0.61, abs=0.01)
    assert found.laws is not None
    assert {law.ceiling for law in found.laws} == {found.shared_ceiling}


def test_twins_are_the_same_or_not_yet_told_apart() -> None:
    x = np.linspace(500.0, 40_000.0, 120)
    twins = [fit(curve(x=x, sigma=0.002, seed=seed, name=f"twin {seed}"), exclude_below=0) for seed in (1, 2)]
    assert compare_fits(*twins).outcome == "same ceiling, same speed"
    short = [fit(curve(x=X[:16], seed=seed, name=f"short {seed}")) for seed in (1, 2)]
    found = compare_fits(*short)
    assert found.outcome == "cannot tell yet"


def test_more_points_are_enough_points() -> None:
    """What is promised is checked by having the points: the interval of the difference is then about as wide as it must be."""
    short = X[:24]
    cases = ((0.61, 5), (0.64, 6))
    pair = [fit(curve(TRUTH._replace(ceiling=a), x=short, seed=s, name=str(a))) for a, s in cases]
    found = compare_fits(*pair)
    assert found.outcome == "cannot tell yet"
    assert found.more_points is not None
    goal = abs(found.ceiling_difference.value)
    x = continued(pair[0], found.more_points)
    widths = []
    for seed in range(10, 20, 2):
        longer = [
            fit(curve(TRUTH._replace(ceiling=a), x=x, seed=seed + i, name=str(a)))
            for i, (a, _) in enumerate(cases)
        ]
        difference = compare_fits(*longer).ceiling_difference
        widths.append((difference.high - difference.low) / 2)  # type: ignore[operator]
    assert goal / 2 < np.median(widths) < 2 * goal


def test_the_shared_ceiling_lies_between_and_nearer_to_the_surer_one() -> None:
    sure, vague = fit(curve(sigma=0.001)), fit(curve(TRUTH._replace(ceiling=0.63), sigma=0.01, seed=4))
    found = shared_ceiling([sure, vague])
    assert min(sure.law.ceiling, vague.law.ceiling) < found < max(sure.law.ceiling, vague.law.ceiling)
    assert abs(found - sure.law.ceiling) < abs(found - vague.law.ceiling)


def test_a_shared_ceiling_can_be_asked_for() -> None:
    """The paper's way to compare B: all recipes under one A, though their own differ by 0.02."""
    logs = [curve(TRUTH._replace(ceiling=a), seed=s, name=f"run {a}") for a, s in ((0.60, 3), (0.62, 4))]
    free, _ = api.compare(*logs, bootstrap=200)
    shared, comparisons = api.compare(*logs, bootstrap=200, share_ceiling=True)
    assert shared[0].law.ceiling == shared[1].law.ceiling
    assert free[0].law.ceiling < shared[0].law.ceiling < free[1].law.ceiling
    assert "(given)" in shared[0].verdict
    assert comparisons[0].ceiling_difference.value == 0
    assert comparisons[0].laws is not None
    assert [law.exponent for law in comparisons[0].laws] == pytest.approx(
        [found.law.exponent for found in sorted(shared, key=lambda f: f.name != comparisons[0].first)],
        rel=1e-3,
    )


def test_logs_in_different_units_are_not_compared() -> None:
    from postgrad.scaling.curve import Axis

    other = Curve.from_points(X, TRUTH(X), axis=Axis("tokens", "tokens"))
    with pytest.raises(DataError, match="cannot be compared"):
        api.compare(curve(), other)
    with pytest.raises(DataError, match="two or more"):
        api.compare(curve())


def test_a_backtest_scores_what_the_beginning_could_know() -> None:
    x = np.linspace(300.0, 14_000.0, 100)
    tests = api.backtest(curve(x=x), bootstrap=400, exclude_below=0)
    assert [test.share for test in tests] == [0.1, 0.25, 0.5]
    half = tests[-1]
    assert half.status == "identified"
    assert half.rmse < half.rmse_last
    assert half.rmse < 2 * 0.004
    assert half.coverage[0.95] > 0.7
    assert half.num_fitted + half.num_scored == 100
    few = api.backtest(curve(x=x[:40]), shares=(0.1,))
    assert few[0].status == "too few points"
    with pytest.raises(DataError, match="between 0 and 1"):
        api.backtest(curve(), shares=(1.5,))


def test_a_plan_stops_where_a_doubling_no_longer_pays() -> None:
    found = fit(curve())
    stop = stopping_point(found, 0.02)
    assert found.law(2 * stop) - found.law(stop) == pytest.approx(0.02, abs=1e-4)
    plan = plan_run(found)
    assert plan.stop_at == stop
    assert plan.shares[0.9].value < plan.shares[0.99].value
    assert "You can stop" in " ".join(plan.advice)
    assert (
        "No rise"
        in plan_run(fit(Curve.from_points(X, 0.4 + 0 * X + 0.001 * np.sin(np.arange(44.0))))).advice[0]
    )


def test_looking_again_is_due_when_the_ceiling_is_known() -> None:
    early = fit(curve(x=X[:20]))
    more = points_until(early, 0.02)
    assert more is not None
    assert more > 0
    assert 1.96 * standard_error_of_ceiling(early, continued(early, more)) <= 0.02
    assert 1.96 * standard_error_of_ceiling(early, continued(early, more - 1)) > 0.02
    assert points_until(fit(curve(sigma=0.0005)), 0.02) == 0


def test_a_point_at_no_compute_that_is_left_out_does_not_break_the_logarithmic_figure() -> None:
    """Seen in a run of ours: the evaluation before training was the only point left out, and log C cannot show it."""
    from postgrad.core.figures import to_csv, to_svg
    from postgrad.scaling.figures import fit_figures

    base = curve()
    x, y = np.concatenate([[0.0], base.compute]), np.concatenate([[0.05], base.reward])
    found = fit(Curve.from_points(x, y, limits=(0.0, 1.0)))
    assert np.flatnonzero(~found.fitted).tolist() == [0]
    for figure in fit_figures(found):
        assert to_svg(figure, 400, 300).startswith("<svg")
        assert to_csv(figure).startswith("compute,")
