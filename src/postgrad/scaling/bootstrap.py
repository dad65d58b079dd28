"""Intervals by bootstrap: new curves from the fitted law plus noise like the log's, each fitted again.

The noise of each curve has a size and a memory of its own, drawn from what the log says about them (`noise`); the ends are plain
percentiles. Measured coverage: docs/rooms/scaling.md. (Bias-corrected percentiles were no better, the basic and the studentised
bootstrap worse.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from postgrad.scaling.noise import Noise, simulate
from postgrad.scaling.ops import SIGMOID, Array, compute_to_reach, sigmoid_law
from postgrad.scaling.solver import Limits, Solution, solve


class Estimate(NamedTuple):
    """A number with its interval; an end that the log cannot tell is None.

    Attributes:
        value: the estimate.
        low, high: ends of the interval.
    """

    value: float
    low: float | None
    high: float | None

    def show(self, digits: int = 3) -> str:
        """For reading.

        >>> Estimate(0.61, 0.59, 0.63).show(), Estimate(2542.0, 2300.0, None).show()
        ('0.61 [0.59, 0.63]', '2,540 [2,300, open]')
        """
        low, high = ("open" if end is None else show(end, digits) for end in (self.low, self.high))
        return f"{show(self.value, digits)} [{low}, {high}]"


def show(value: float, digits: int = 3) -> str:
    """A number with so many significant digits.

    >>> show(2542.4), show(0.61234), show(3.2e17), show(float("inf"))
    ('2,540', '0.612', '3.2e+17', '∞')
    """
    if np.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value and (abs(value) >= 1e7 or abs(value) < 1e-4):
        return f"{value:.{digits}g}"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:.{digits}g}"


class Draws(NamedTuple):
    """Parameters of the bootstrap curves, [S] each.

    Attributes:
        initial, ceiling, exponent, midpoint: R0, A, B, C_mid.
        open: draws whose ceiling ran away: A or C_mid stopped at the highest value that is searched.
        noise: of one new evaluation, [S].
    """

    initial: Array
    ceiling: Array
    exponent: Array
    midpoint: Array
    open: np.ndarray
    noise: Array

    def law(self, compute: Array) -> Array:
        """R(C) of each draw, [S, len(compute)]."""
        columns = (self.ceiling, self.exponent, self.midpoint, self.initial)
        return sigmoid_law(np.atleast_1d(compute)[None, :], *(column[:, None] for column in columns))

    def reach(self, reward: Array) -> Array:
        """C at which each draw reaches `reward` ([S] or a number), [S]."""
        return compute_to_reach(reward, self.ceiling, self.exponent, self.midpoint, self.initial)


def draw(
    compute: Array,
    fitted: Array,
    residuals: Array,
    noise: Noise,
    theta: Array,
    bounds: Array,
    limits: Limits,
    draws: int,
    generator: np.random.Generator,
    refit: Callable[[Array], Solution] | None = None,
) -> Draws:
    """The bootstrap.

    Args:
        compute: C, [n].
        fitted: the law at C, [n].
        residuals: [n].
        noise: from `estimate_noise`.
        theta: (log B, log C_mid) of the fit, where each refit starts (beside a coarse grid).
        bounds, limits: as for the fit.
        draws: S.
        generator: of the noise.
        refit: fits [S, n] rewards; default: least squares by `solver.solve`.

    Returns:
        One set of parameters per draw.
    """
    with np.errstate(divide="ignore"):
        u = np.log(compute)
    rewards = fitted + simulate(noise, residuals, draws, generator)
    if refit is None:
        found = solve(
            SIGMOID, u, rewards, bounds, limits, starts=theta, grid=12, num_starts=1, tolerance=1e-8
        )
    else:
        found = refit(rewards)
    runaway = found.at_high[:, 1]
    if np.isfinite(limits.high) and limits.ceiling is None:
        runaway = runaway | (found.ceiling >= limits.high - 1e-9)
    return Draws(
        found.initial,
        found.ceiling,
        np.exp(found.theta[:, 0]),
        np.exp(found.theta[:, 1]),
        runaway,
        simulate(noise, residuals, draws, generator)[:, -1],
    )


def interval(
    value: float,
    draws: Array,
    confidence: float,
    *,
    open_low: np.ndarray | None = None,
    open_high: np.ndarray | None = None,
) -> Estimate:
    """Percentile interval.

    Args:
        value: the estimate.
        draws: of its bootstrap distribution, [S]; ±∞ allowed.
        confidence: such as 0.95.
        open_low, open_high: draws that only say "at most this" or "at least this"; an end that falls among them is open.

    Returns:
        The estimate with its interval; it always holds the estimate.
    """
    alpha = (1 - confidence) / 2
    low = -np.inf if open_low is not None and open_low.mean() >= alpha else _quantile(draws, alpha)
    high = np.inf if open_high is not None and open_high.mean() >= alpha else _quantile(draws, 1 - alpha)
    low, high = min(low, value), max(high, value)
    return Estimate(value, low if np.isfinite(low) else None, high if np.isfinite(high) else None)


def _quantile(draws: Array, level: float) -> float:
    """An order statistic, so that infinite draws do no harm."""
    return float(np.quantile(draws, level, method="nearest"))
