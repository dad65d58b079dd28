"""What a log can tell: a fit always exists, a ceiling does not.

identified   A has an interval with two ends, narrower than half of the rise seen so far
open         the curve rises, but where it ends cannot be read off yet: A has a lower bound only
flat         no rise beyond the noise
falling      the reward goes down
collapsed    it rose, then fell: the law holds up to the peak at best
misfit       it rises, but not along a sigmoid: the residuals wander as a whole
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from postgrad.scaling.bootstrap import show
from postgrad.scaling.noise import Noise, estimate_noise
from postgrad.scaling.ops import Array

if TYPE_CHECKING:
    from postgrad.scaling.fitting import Fit

Status = Literal["identified", "open", "flat", "falling", "collapsed", "misfit"]

CERTAIN_Z = 3.0
"""Standard errors between the first and the last third from which a log is rising or falling."""
COLLAPSE_Z = 5.0
"""Standard errors from the peak down to the end; higher, because the peak is the highest of many windows."""
WIDEST = 0.5
"""Of A's interval, as a share of the rise seen so far."""
WANDERING = 0.95
"""Autocorrelation of the residuals from which they are no noise."""
EVIDENCE = 2.0
"""AICc by which the sigmoid must beat a line in log C, which has no ceiling."""


class Trend(NamedTuple):
    """What the points say without any law.

    Attributes:
        z: last third minus first third, in standard errors.
        fall_z: highest window minus the last one, in standard errors; 0 where the last is the highest.
        peak: (compute, reward) of the highest window.
        last: reward of the last window.
    """

    z: float
    fall_z: float
    peak: tuple[float, float]
    last: float


def trend(compute: Array, reward: Array, around_law: Noise) -> Trend:
    """Rising, falling, or neither; noise measured around the law or a cubic in the order of the points, whichever is closer.

    Args:
        compute: [n], increasing, n ≥ 6.
        reward: [n].
        around_law: noise of the fit.
    """
    n = len(reward)
    time = np.linspace(-1, 1, n)
    cubic = np.stack([time**0, time, time**2, time**3], 1)
    smooth = cubic @ np.linalg.lstsq(cubic, reward, rcond=None)[0]
    noise = min(estimate_noise(reward - smooth, cubic), around_law, key=lambda found: found.sigma)
    inflation = n / noise.num_effective

    def z(difference: float, size: int) -> float:
        error = noise.sigma * np.sqrt(2 / size * min(inflation, size))
        return difference / max(float(error), 1e-300)

    third = n // 3
    rise = float(reward[-third:].mean() - reward[:third].mean())
    window = max(3, n // 8)
    means = np.convolve(reward, np.ones(window) / window, "valid")
    top = int(np.argmax(means))
    middle = top + window // 2
    overlap = top > len(means) - 1 - window
    fall = 0.0 if overlap else z(float(means[top] - means[-1]), window)
    return Trend(z(rise, third), fall, (float(compute[middle]), float(means[top])), float(means[-1]))


def judge(found: Fit) -> tuple[Status, str, tuple[str, ...]]:
    """(status, verdict, cautions) of a fit."""
    points, unit = found.points, found.curve.axis.unit
    seen = trend(points.compute, points.reward, found.noise)
    cautions = _cautions(found)
    key = points.reward_key
    if np.ptp(points.reward) == 0:
        return "flat", f"{key} is {show(float(points.reward[0]))} at every point: nothing to fit.", ()
    if seen.z < -CERTAIN_Z and seen.peak[0] <= points.compute[len(points) // 3]:
        words = (
            f"{key} falls, from {show(seen.peak[1])} to {show(seen.last)}: the law is for a reward that rises. If lower is "
            "better, give its negative; if training has collapsed, no forecast is possible."
        )
        return "falling", words, ()
    if seen.fall_z > COLLAPSE_Z:
        words = (
            f"{key} rose to {show(seen.peak[1])} at {show(seen.peak[0])} {unit} and has fallen to {show(seen.last)} since: no "
            f"sigmoid does that. --exclude-above {seen.peak[0]:.6g} fits what came before."
        )
        return "collapsed", words, cautions
    if seen.z < CERTAIN_Z:
        words = f"No rise beyond the noise in {len(points)} points (σ = {show(found.noise.sigma, 2)}): nothing to forecast yet."
        return "flat", words, cautions
    if found.noise.rho >= WANDERING:
        words = (
            f"{key} rises, but not along a sigmoid: the residuals wander (autocorrelation {found.noise.rho:.2f}). Look at the "
            "figure; a change of regime may need --exclude-below."
        )
        return "misfit", words, cautions
    return _ceiling(found, cautions)


def _ceiling(found: Fit, cautions: tuple[str, ...]) -> tuple[Status, str, tuple[str, ...]]:
    points, unit = found.points, found.curve.axis.unit
    ceiling = found.ceiling
    rise = float(found.law(points.compute[-1]) - found.law(points.compute[0]))
    line = next(rival for rival in found.rivals if rival.name == "log-linear")
    sigmoid = next(rival for rival in found.rivals if rival.name == "sigmoid")
    straight = sigmoid.aicc > line.aicc - EVIDENCE
    low = show(points.reward.max() if ceiling.low is None else ceiling.low)
    percent = f"{50 + 50 * found.config.confidence:.4g} %"
    if straight or ceiling.high is None or ceiling.low is None or ceiling.high - ceiling.low > WIDEST * rise:
        why = (
            "a straight line in log compute describes the log as well"
            if straight
            else f"its interval is {ceiling.show()}"
            if ceiling.high is not None
            else "the log would allow a ceiling out of reach"
        )
        words = f"Rising, but the ceiling cannot be read off yet: {why}. It is at least {low} ({percent})."
        return "open", words, cautions
    half = (ceiling.high - ceiling.low) / 2
    reach = found.compute_to_share(found.config.share)
    share = f"{100 * found.config.share:g} %"
    last = float(points.compute[-1])
    when = (
        f"was reached at {show(reach.value)}"
        if reach.value <= last
        else f"will be reached at {show(reach.value)}"
    )
    size = f"Ceiling A = {show(ceiling.value)}"
    size += " (given)" if found.config.ceiling is not None else f" ± {show(half, 2)}"
    words = f"{size}; {share} of it {when} {unit}."
    return "identified", words, cautions


def _cautions(found: Fit) -> tuple[str, ...]:
    words: list[str] = []
    points = found.points
    dropped = int((~found.fitted & (found.curve.compute < points.compute[0])).sum())
    if dropped and found.config.exclude_below == "auto":
        words.append(
            f"the first {dropped} points (below {show(float(points.compute[0]))} {points.axis.unit}) do not follow the law "
            "and are left out; --exclude-below 0 keeps them"
        )
    if found.noise.rho > 0.3:
        words.append(
            f"neighbouring residuals are alike (autocorrelation {found.noise.rho:.2f}): {len(points)} points are worth "
            f"{found.noise.num_effective:.0f}"
        )
    sigmoid = next(rival for rival in found.rivals if rival.name == "sigmoid")
    best = found.rivals[0]
    if best.name != "sigmoid" and best.aicc < sigmoid.aicc - 6 and best.ceiling is not None:
        words.append(f"the {best.name} describes the log better (its ceiling: {show(best.ceiling)})")
    size = np.abs(found.residuals)
    far = size > 6 * 1.4826 * float(np.median(size)) + 1e-300
    if far.any() and not found.config.robust:
        words.append(f"{int(far.sum())} point(s) lie far off the curve; --robust bounds their pull")
    theta = np.log([found.law.exponent])
    if theta[0] >= found.theta_bounds[0, 1] - 1e-6 or theta[0] <= found.theta_bounds[0, 0] + 1e-6:
        words.append(f"B stopped at the end of the searched range ({show(found.law.exponent)})")
    return tuple(words)
