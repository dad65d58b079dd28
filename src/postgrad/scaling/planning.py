"""What to do next: where to stop, when to look again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from postgrad.scaling.bootstrap import Estimate, show
from postgrad.scaling.comparison import MOST_NEW_POINTS, continued, fewest_points
from postgrad.scaling.fitting import Fit, standard_error_of_ceiling

SHARES = (0.9, 0.95, 0.99)


class Plan(NamedTuple):
    """Of one run.

    Attributes:
        now: compute of the last point.
        reward_now: the law there.
        gain_of_doubling: what the next doubling of compute brings.
        stop_at: compute from which a further doubling brings less than `margin`; None where the ceiling is unknown.
        shares: share of A → compute.
        look_again_at: compute at which A should be known to ± `margin`; None if it is already, or out of sight.
        more_points: evaluations until then.
        advice: a few sentences.
    """

    now: float
    reward_now: float
    gain_of_doubling: Estimate
    stop_at: float | None
    shares: dict[float, Estimate]
    look_again_at: float | None
    more_points: int | None
    advice: tuple[str, ...]


def plan_run(found: Fit) -> Plan:
    """Where to stop and when to look again, from a fit."""
    config, unit = found.config, found.curve.axis.unit
    now = float(found.curve.compute[-1])
    law = found.law
    gains = found.draws.law(np.array([2 * now])) - found.draws.law(np.array([now]))
    gain = found.interval(float(law(2 * now) - law(now)), gains[:, 0])
    more = points_until(found, config.margin)
    look = None if not more else float(continued(found, more)[-1])
    if found.status not in ("identified", "open"):
        return Plan(now, float(law(now)), gain, None, {}, None, None, (found.verdict,))
    advice = [found.verdict]
    stop = None
    shares: dict[float, Estimate] = {}
    if found.status == "identified":
        shares = {share: found.compute_to_share(share) for share in SHARES}
        stop = stopping_point(found, config.margin)
        if stop <= now:
            advice.append(
                f"You can stop: doubling the compute from here brings {gain.show()}, less than {config.margin:g}."
            )
        else:
            advice.append(
                f"Go on to about {show(stop)} {unit}{_cost(found, stop - now)}; beyond it a doubling brings less than "
                f"{config.margin:g}."
            )
    if look is not None:
        advice.append(
            f"Look again at {show(look)} {unit} ({more} more points): A should be known to ±{config.margin:g} then."
        )
    elif more is None:
        advice.append(
            f"At this pace {MOST_NEW_POINTS} more points would not give A to ±{config.margin:g}: evaluate with more samples, "
            "or run longer between looks."
        )
    return Plan(now, float(law(now)), gain, stop, shares, look, more or None, tuple(advice))


def _cost(found: Fit, compute: float) -> str:
    """What further compute costs and takes, as far as it is known."""
    words: list[str] = []
    seconds = found.seconds_per_compute()
    if seconds is not None:
        words.append(f"{show(compute * seconds / 3600)} more hours at the present pace")
    if found.config.price is not None:
        words.append(f"{found.config.currency}{show(compute * found.config.price)} more")
    return f" ({', '.join(words)})" if words else ""


def stopping_point(found: Fit, gain: float) -> float:
    """The compute from which doubling it brings less than `gain`, beyond the steepest part of the law.

    With s(C), doubling brings (A − R0)·(s(2C) − s(C)), which falls once C is past C_mid/√2.
    """
    law = found.law
    grid = np.geomspace(law.midpoint / np.sqrt(2), law.midpoint * 1e6, 4000)
    gains = law(2 * grid) - law(grid)
    below = np.flatnonzero(gains < gain)
    return float(grid[below[0]]) if len(below) else float(grid[-1])


def points_until(found: Fit, margin: float) -> int | None:
    """Evaluations at the present pace until A is known to ± `margin` (to first order); 0 if it is; None if out of sight."""

    def half_width(extra: int) -> float:
        return found.config.quantile * standard_error_of_ceiling(found, continued(found, extra))

    return fewest_points(half_width, margin)
