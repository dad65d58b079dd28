"""Two recipes: who ends higher, and who is faster.

Ceilings differ if the interval of A₁ − A₂ leaves out 0 and the difference exceeds `margin`; they are the same if the whole
interval lies within ±margin. Only then is speed compared, at a shared A as in the paper: B and C_mid are fitted again under it.
The paper takes the average of the two A; here it is the A that fits both logs best, each weighted by its noise.
Intervals hold for these two runs; how much a recipe varies from seed to seed only further runs can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from postgrad.scaling.bootstrap import Estimate, interval, show
from postgrad.scaling.fitting import Fit, Law, reward_limits, standard_error_of_ceiling
from postgrad.scaling.noise import simulate
from postgrad.scaling.ops import SIGMOID, Array, compute_to_reach
from postgrad.scaling.solver import Limits, Solution, solve

Outcome = Literal["higher ceiling", "same ceiling, faster", "same ceiling, same speed", "cannot tell yet"]

MOST_NEW_POINTS = 1000


class Comparison(NamedTuple):
    """Of two fits.

    Attributes:
        first, second: names; where the outcome has a winner, it is `first`.
        outcome: in the words of the house.
        verdict: a sentence with the numbers.
        ceiling_difference: A₁ − A₂.
        exponent_difference: B₁ − B₂, each at its own A.
        shared_ceiling: the A that fits both best, or None where the ceilings differ.
        laws: both laws at the shared A, or None.
        compute_ratio: compute of the second over that of the first to `share` of the shared A; > 1 = first is faster.
        more_points: evaluations that each log still needs to tell; None where it is told or never will be.
    """

    first: str
    second: str
    outcome: Outcome
    verdict: str
    ceiling_difference: Estimate
    exponent_difference: Estimate
    shared_ceiling: float | None = None
    laws: tuple[Law, Law] | None = None
    compute_ratio: Estimate | None = None
    more_points: int | None = None


def compare_fits(first: Fit, second: Fit) -> Comparison:
    """Compares two fits of the same reward over the same kind of compute; options are those of the first."""
    config = first.config
    difference = _difference(first, second)
    slopes = interval(
        first.law.exponent - second.law.exponent,
        first.draws.exponent - second.draws.exponent,
        config.confidence,
    )
    names = (first.name, second.name)
    broken = [fit for fit in (first, second) if fit.status not in ("identified", "open")]
    if broken:
        words = "; ".join(f"{fit.name}: {fit.verdict}" for fit in broken)
        return Comparison(*names, "cannot tell yet", f"Cannot tell yet. {words}", difference, slopes)
    low, high = difference.low, difference.high
    if high is not None and high < 0 and difference.value < -config.margin:
        return compare_fits(second, first)
    if low is not None and low > 0 and difference.value > config.margin:
        words = f"{names[0]} has the higher ceiling: A is {difference.show()} above that of {names[1]}."
        return Comparison(*names, "higher ceiling", words, difference, slopes)
    if low is not None and high is not None and max(abs(low), abs(high)) <= config.margin:
        return _same_ceiling(first, second, difference, slopes)
    more = more_points(first, second)
    wait = (
        f"each log needs about {more} more points at its present pace"
        if more is not None
        else f"even {MOST_NEW_POINTS} more points would not tell; run both several times, or widen --margin"
    )
    words = (
        f"Cannot tell yet: the ceilings of {names[0]} and {names[1]} differ by {difference.show()}, neither clearly apart nor "
        f"within ±{config.margin:g}; {wait}."
    )
    return Comparison(*names, "cannot tell yet", words, difference, slopes, more_points=more)


def _difference(first: Fit, second: Fit) -> Estimate:
    return interval(
        first.law.ceiling - second.law.ceiling,
        first.draws.ceiling - second.draws.ceiling,
        first.config.confidence,
        open_high=first.draws.open,
        open_low=second.draws.open,
    )


def _same_ceiling(first: Fit, second: Fit, difference: Estimate, slopes: Estimate) -> Comparison:
    config = first.config
    given = first.config.ceiling
    ceiling = (
        given if given is not None and given == second.config.ceiling else shared_ceiling([first, second])
    )
    laws = at_ceiling(first, ceiling), at_ceiling(second, ceiling)
    target = config.share * ceiling
    spent = [float(compute_to_reach(target, *law)) for law in laws]
    ratio = interval(spent[1] / spent[0], _ratio_draws(first, second), config.confidence)
    if ratio.value < 1:
        flipped = Estimate(-difference.value, _negative(difference.high), _negative(difference.low))
        back = Estimate(-slopes.value, _negative(slopes.high), _negative(slopes.low))
        return _same_ceiling(second, first, flipped, back)
    start = f"Same ceiling (A = {show(ceiling)}, within ±{config.margin:g})"
    share = f"{100 * config.share:g} %"
    if ratio.low is not None and ratio.low > 1:
        words = f"{start}; {first.name} is faster: {second.name} needs {ratio.show()} times its compute to {share} of it."
        outcome: Outcome = "same ceiling, faster"
    else:
        words = (
            f"{start}, and no difference in speed: {second.name} needs {ratio.show()} times the compute of {first.name} "
            f"to {share} of it."
        )
        outcome = "same ceiling, same speed"
    return Comparison(first.name, second.name, outcome, words, difference, slopes, ceiling, laws, ratio)


def _negative(end: float | None) -> float | None:
    return None if end is None else -end


def shared_ceiling(fits: Sequence[Fit]) -> float:
    """The A under which all curves fit best: minimises Σ SSE_i(A)/σ_i², each curve with B, C_mid, R0 of its own."""
    ceilings = [fit.law.ceiling for fit in fits]
    spread = max(np.ptp(ceilings), 1e-3 * abs(ceilings[0]) + 1e-12)
    low, high = min(ceilings) - 0.1 * spread, max(ceilings) + 0.1 * spread
    for _ in range(4):
        grid = np.linspace(low, high, 25)
        cost = sum(_profile(fit, grid).sum_squares / max(fit.noise.sigma, 1e-300) ** 2 for fit in fits)
        best = int(np.argmin(cost))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return float(0.5 * (low + high))


def at_ceiling(fit: Fit, ceiling: float) -> Law:
    """The law of a fit when A is given."""
    found = _profile(fit, np.array([ceiling]))
    exponent, midpoint = np.exp(found.theta[0])
    return Law(ceiling, float(exponent), float(midpoint), float(found.initial[0]))


def _profile(fit: Fit, ceilings: Array, rewards: Array | None = None) -> Solution:
    points = fit.points
    with np.errstate(divide="ignore"):
        u = np.log(points.compute)
    free = reward_limits(fit.curve, fit.config)
    limits = Limits(free.low, max(free.high, float(ceilings.max())), ceilings, free.initial)
    rows = np.broadcast_to(points.reward, (len(ceilings), len(points))) if rewards is None else rewards
    theta = np.log([fit.law.exponent, fit.law.midpoint])
    grid = 16 if rewards is None else 0
    return solve(
        SIGMOID, u, rows, fit.theta_bounds, limits, starts=theta, grid=grid, num_starts=1, tolerance=1e-9
    )


def _ratio_draws(first: Fit, second: Fit) -> Array:
    """Compute ratios of bootstrap pairs; each pair shares the precision-weighted mean of its two free ceilings."""
    variances = [max(float(np.var(fit.draws.ceiling)), 1e-300) for fit in (first, second)]
    weight = variances[1] / (variances[0] + variances[1])
    ceilings = weight * first.draws.ceiling + (1 - weight) * second.draws.ceiling
    spent: list[Array] = []
    for fit in (first, second):
        points = fit.points
        generator = np.random.default_rng(fit.config.seed)
        rewards = fit.law(points.compute) + simulate(
            fit.noise, fit.residuals, fit.config.bootstrap, generator
        )
        found = _profile(fit, ceilings, rewards)
        target = fit.config.share * ceilings
        exponent, midpoint = np.exp(found.theta).T
        spent.append(compute_to_reach(target, ceilings, exponent, midpoint, found.initial))
    return spent[1] / spent[0]


def more_points(first: Fit, second: Fit) -> int | None:
    """Evaluations that both logs need, at their present pace, until the interval of A₁ − A₂ can decide; None if it never will.

    To first order, at the present estimates: the half-width must shrink to the difference (to tell them apart), or to what is
    left of the margin (to call them the same).
    """
    config = first.config
    gap = abs(first.law.ceiling - second.law.ceiling)
    goal = gap if gap > config.margin else config.margin - gap

    def half_width(extra: int) -> float:
        errors = [standard_error_of_ceiling(fit, continued(fit, extra)) for fit in (first, second)]
        return config.quantile * float(np.linalg.norm(errors))

    return fewest_points(half_width, goal)


def fewest_points(half_width: Callable[[int], float], goal: float) -> int | None:
    """How many more evaluations bring a falling half-width to a goal; None if `MOST_NEW_POINTS` do not.

    >>> fewest_points(lambda extra: 1 / (1 + extra), 0.1), fewest_points(lambda extra: 1.0, 0.1)
    (9, None)
    """
    if half_width(MOST_NEW_POINTS) > goal:
        return None
    low, high = -1, MOST_NEW_POINTS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if half_width(middle) <= goal else (middle, high)
    return high


def continued(fit: Fit, extra: int) -> Array:
    """The fitted computes and `extra` more, at the median spacing of the log's second half."""
    compute = fit.points.compute
    spacing = float(np.median(np.diff(compute[len(compute) // 2 :])))
    return np.concatenate([compute, compute[-1] + spacing * np.arange(1, extra + 1)])
