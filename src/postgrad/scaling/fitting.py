"""`fit_curve`: one curve to one law, with intervals, rivals and a verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from postgrad.core.errors import DataError
from postgrad.scaling.bootstrap import Draws, Estimate, draw, interval
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.curve import Curve
from postgrad.scaling.grid import CEILINGS, MIDPOINTS, grid_fit
from postgrad.scaling.noise import Noise, covariance, estimate_noise
from postgrad.scaling.ops import SIGMOID, Array, compute_to_reach, law_jacobian, sigmoid_law, tail
from postgrad.scaling.rivals import Rival, compare_shapes
from postgrad.scaling.robust import solve_robustly
from postgrad.scaling.solver import Limits, Solution, solve
from postgrad.scaling.verdict import Status, judge
from postgrad.scaling.window import early_points

EXPONENTS = (0.2, 12.0)
"""B that are searched. The paper's lie between 1.6 and 2.5."""
MIDPOINT_REACH = 20.0
"""C_mid is searched from the first C over this to the last C times this."""


class Law(NamedTuple):
    """The four numbers: A, B, C_mid, R0."""

    ceiling: float
    exponent: float
    midpoint: float
    initial: float

    def __call__(self, compute: ArrayLike) -> Array:
        """R(C)."""
        return sigmoid_law(compute, *self)


class Prediction(NamedTuple):
    """Reward at some compute.

    Attributes:
        compute: C.
        reward: the law there, with the interval of the law.
        evaluation: the same value, with the interval in which one new evaluation falls.
    """

    compute: float
    reward: Estimate
    evaluation: Estimate


@dataclass(frozen=True)
class Fit:
    """A law fitted to a curve.

    Attributes:
        curve: all points.
        fitted: which of them the law was fitted to, [n].
        law: the estimates.
        noise: around the law.
        sum_squares: of the residuals.
        rivals: other families on the same points, best first.
        status: whether the ceiling can be read off; see `verdict`.
        verdict: the same in words.
        cautions: what else a reader should know.
        config: the options.
        theta_bounds, reward_limits: what was searched.
    """

    curve: Curve
    fitted: np.ndarray
    law: Law
    noise: Noise
    sum_squares: float
    rivals: tuple[Rival, ...]
    status: Status
    verdict: str
    cautions: tuple[str, ...]
    config: ScalingConfig
    theta_bounds: Array
    reward_limits: Limits

    @property
    def name(self) -> str:
        """Of the curve."""
        return self.curve.name

    @property
    def points(self) -> Curve:
        """The points that the law was fitted to."""
        return self.curve.select(self.fitted)

    @property
    def residuals(self) -> Array:
        """Reward minus law, at the fitted points."""
        points = self.points
        return points.reward - self.law(points.compute)

    @cached_property
    def draws(self) -> Draws:
        """The bootstrap; the same for the same seed."""
        return bootstrap(self)

    def interval(self, value: float, draws: Array, **open_ends: Any) -> Estimate:
        """The interval of any number that has bootstrap draws; see `bootstrap.interval`."""
        return interval(value, draws, self.config.confidence, **open_ends)

    @cached_property
    def ceiling(self) -> Estimate:
        """A, the asymptote."""
        if self.config.ceiling is not None:
            return Estimate(self.law.ceiling, self.law.ceiling, self.law.ceiling)
        return self.interval(self.law.ceiling, self.draws.ceiling, open_high=self.draws.open)

    @cached_property
    def exponent(self) -> Estimate:
        """B, the efficiency."""
        return self.interval(self.law.exponent, self.draws.exponent)

    @cached_property
    def midpoint(self) -> Estimate:
        """C_mid."""
        return self.interval(self.law.midpoint, self.draws.midpoint, open_high=self.draws.open)

    @cached_property
    def initial(self) -> Estimate:
        """R0."""
        if self.reward_limits.initial is not None:
            return Estimate(self.law.initial, self.law.initial, self.law.initial)
        return self.interval(self.law.initial, self.draws.initial)

    @property
    def tail(self) -> float:
        """D of A − D/C^B."""
        return tail(*self.law)

    def predict(self, compute: float) -> Prediction:
        """The reward at some compute, with intervals."""
        value = float(self.law(compute))
        law = self.draws.law(np.array([compute]))[:, 0]
        return Prediction(
            float(compute), self.interval(value, law), self.interval(value, law + self.draws.noise)
        )

    def band(self, compute: ArrayLike) -> tuple[Array, Array]:
        """(low, high) of the law at many computes, for figures: plain percentiles."""
        alpha = (1 - self.config.confidence) / 2
        low, high = np.quantile(self.draws.law(np.asarray(compute, float)), [alpha, 1 - alpha], axis=0)
        return low, high

    def compute_to_share(self, share: float) -> Estimate:
        """Compute at which the law reaches a share of its ceiling, share·A (0 < share < 1)."""
        value = float(compute_to_reach(share * self.law.ceiling, *self.law))
        return self.interval(value, self.draws.reach(share * self.draws.ceiling), open_high=self.draws.open)

    def compute_to_reward(self, reward: float) -> Estimate:
        """Compute at which the law reaches a reward; ∞ above the ceiling."""
        value = float(compute_to_reach(reward, *self.law))
        return self.interval(value, self.draws.reach(np.asarray(reward)), open_high=self.draws.open)

    def seconds_per_compute(self) -> float | None:
        """Wall seconds per unit of compute, over the second half of the log; None without clock."""
        clock, compute = self.curve.elapsed_s, self.curve.compute
        half = len(compute) // 2
        if clock is None or compute[-1] <= compute[half] or clock[-1] <= clock[half]:
            return None
        return float((clock[-1] - clock[half]) / (compute[-1] - compute[half]))


def fit_curve(curve: Curve, config: ScalingConfig | None = None) -> Fit:
    """Fits the law to a curve.

    Args:
        curve: from `curve.Curve.from_points` or `readers`.
        config: options.

    Returns:
        The fit, whatever its status: a flat, falling or too short curve has a verdict that says so and no interval
        that claims more than the log can tell.

    Raises:
        DataError: fewer than `min_points` points, or all at one compute.
        MissingExtraError: `method = "grid"` without SciPy.
    """
    config = config or ScalingConfig()
    keep = np.ones(len(curve), bool)
    if config.exclude_above is not None:
        keep &= curve.compute <= config.exclude_above
    if config.exclude_below != "auto":
        keep &= curve.compute >= config.exclude_below
    _check(curve, keep, config)
    limits = reward_limits(curve, config)
    bounds = theta_bounds(curve.compute[keep])
    if config.exclude_below == "auto" and config.method == "projection":
        index = np.flatnonzero(keep)
        most = min(int(config.max_excluded * len(index)), len(index) - config.min_points)
        with np.errstate(divide="ignore"):
            u = np.log(curve.compute[keep])
        keep[index[: early_points(u, curve.reward[keep], bounds, limits, most)]] = False
        bounds = theta_bounds(curve.compute[keep])
    law, sum_squares = solve_law(curve.select(keep), config, bounds, limits)
    return assemble(curve, keep, law, sum_squares, config, bounds, limits)


def assemble(
    curve: Curve,
    keep: np.ndarray,
    law: Law,
    sum_squares: float,
    config: ScalingConfig,
    bounds: Array,
    limits: Limits,
) -> Fit:
    """A Fit around a law that is already known: its noise, rivals and verdict."""
    points = curve.select(keep)
    noise = estimate_noise(points.reward - law(points.compute), jacobian(law, points.compute, limits))
    positive = points.compute > 0
    rivals = compare_shapes(np.log(points.compute[positive]), points.reward[positive], bounds, limits)
    draft = Fit(
        curve, keep, law, noise, sum_squares, tuple(rivals), "identified", "", (), config, bounds, limits
    )
    status, verdict, cautions = judge(draft)
    found = replace(draft, status=status, verdict=verdict, cautions=cautions)
    found.__dict__["draws"] = draft.draws  # the bootstrap behind the verdict; the same again, so not twice
    return found


def solve_law(points: Curve, config: ScalingConfig, bounds: Array, limits: Limits) -> tuple[Law, float]:
    """(law, sum of squares) by the configured method."""
    if config.method == "grid":
        found = grid_fit(
            points.compute,
            points.reward,
            points.reward[0] if limits.initial is None else float(np.asarray(limits.initial)),
            ceilings=_grid_ceilings(points, limits),
            midpoints=_grid_midpoints(points),
        )
        return Law(found.ceiling, found.exponent, found.midpoint, found.initial), found.sum_squares
    with np.errstate(divide="ignore"):
        u = np.log(points.compute)
    solver = solve_robustly if config.robust else solve
    best: Solution = solver(SIGMOID, u, points.reward, bounds, limits)
    exponent, midpoint = np.exp(best.theta[0])
    law = Law(float(best.ceiling[0]), float(exponent), float(midpoint), float(best.initial[0]))
    return law, float(np.sum((points.reward - law(points.compute)) ** 2))


def bootstrap(found: Fit) -> Draws:
    """The draws behind the intervals of a fit (for the grid's fit too: its law, least squares for the draws)."""
    points, law, config = found.points, found.law, found.config
    with np.errstate(divide="ignore"):
        u = np.log(points.compute)
    theta = np.log([law.exponent, law.midpoint])

    def refit(rewards: Array) -> Solution:
        return solve_robustly(
            SIGMOID, u, rewards, found.theta_bounds, found.reward_limits, starts=theta, grid=0
        )

    return draw(
        points.compute,
        law(points.compute),
        found.residuals,
        found.noise,
        np.clip(theta, found.theta_bounds[:, 0], found.theta_bounds[:, 1]),
        found.theta_bounds,
        found.reward_limits,
        config.bootstrap,
        np.random.default_rng(config.seed),
        refit if config.robust else None,
    )


def jacobian(law: Law, compute: Array, limits: Limits) -> Array:
    """∂R/∂(free parameters) at C, [n, 2 to 4]; columns in the order R0, A, log B, log C_mid."""
    full = law_jacobian(compute, law.ceiling, law.exponent, law.midpoint, law.initial)
    free = [limits.initial is None, limits.ceiling is None, True, True]
    return full[:, free]


def standard_error_of_ceiling(found: Fit, compute: Array) -> float:
    """To first order, that of A, if the log had evaluations at these computes."""
    free = jacobian(found.law, compute, found.reward_limits)
    column = int(found.reward_limits.initial is None)
    return float(np.sqrt(covariance(free, found.noise)[column, column]))


def theta_bounds(compute: Array) -> Array:
    """Of (log B, log C_mid), [2, 2]."""
    positive = compute[compute > 0]
    reach = np.log(MIDPOINT_REACH)
    return np.array([np.log(EXPONENTS), [np.log(positive.min()) - reach, np.log(positive.max()) + reach]])


def reward_limits(curve: Curve, config: ScalingConfig) -> Limits:
    """Of R0 and A."""
    initial: float | None = None
    if config.initial == "first" or (config.initial == "fit" and config.method == "grid"):
        initial = float(curve.reward[0])
    elif config.initial != "fit":
        initial = config.initial
    return Limits(curve.limits[0], curve.limits[1], config.ceiling, initial)


def _check(curve: Curve, keep: np.ndarray, config: ScalingConfig) -> None:
    n, distinct = int(keep.sum()), int((curve.compute[keep] > 0).sum())
    if n < config.min_points or distinct < config.min_points - 1:
        left = f" ({n} of them in the window)" if n < len(curve) else ""
        notes = f" What was done to the log: {'; '.join(curve.notes)}." if curve.notes else ""
        raise DataError(
            f"{curve.name}: {len(curve)} points of {curve.reward_key} over {curve.axis.key}{left} are too few: a law of four "
            f"parameters and a noise level need at least {config.min_points}. Evaluate more often, or wait.{notes}"
        )


def _grid_midpoints(points: Curve) -> Array:
    """The paper's, where compute is in GPU-hours as there; else as many over the log's own range."""
    if points.axis.unit == "GPU-hours":
        return MIDPOINTS
    first = points.compute[points.compute > 0][0]
    return np.linspace(first, points.compute[-1], len(MIDPOINTS))


def _grid_ceilings(points: Curve, limits: Limits) -> Array:
    """The paper's, where the rewards lie below its end; else as many from the highest reward to the limit."""
    if limits.ceiling is not None:
        return np.atleast_1d(np.asarray(limits.ceiling, float))
    low, high = float(points.reward.min()), float(points.reward.max())
    if low >= 0 and high < CEILINGS[-1] - 0.05 and high > CEILINGS[0]:
        return CEILINGS
    return np.linspace(high - 0.1 * (high - low), min(limits.high, high + (high - low)), len(CEILINGS))
