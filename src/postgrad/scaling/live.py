"""The forecast while a run is going on: fitted again at every evaluation, from all rows so far.

It keeps no state, so a resumed run shows what an undisturbed one would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from postgrad.core.errors import DataError
from postgrad.scaling.axes import to_curve
from postgrad.scaling.bootstrap import show
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.curve import Log
from postgrad.scaling.fitting import Fit, fit_curve
from postgrad.scaling.readers.columns import to_columns


class Forecaster:
    """Called with the rows of metrics so far; a `core.protocols.Forecaster`.

    Args:
        config: which columns are compute and reward, and how to fit.
        name: of the run.
    """

    def __init__(self, config: ScalingConfig | None = None, name: str = "run") -> None:
        self.config = config or ScalingConfig()
        self.name = name

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], str]:
        """(metrics, one line of text).

        Returns:
            Both empty while there are too few points; a line without metrics while the ceiling is not identified.
        """
        try:
            found = fit_curve(to_curve(Log(self.name, "rows", to_columns(rows)), self.config), self.config)
        except DataError:
            return {}, ""
        return forecast_metrics(found), forecast_line(found)


def forecast_metrics(found: Fit) -> dict[str, float]:
    """`forecast/…`: the ceiling with its interval, B, and the compute to a share of the ceiling; empty if not identified."""
    if found.status != "identified":
        return {}
    ceiling = found.ceiling
    return {
        "forecast/ceiling": ceiling.value,
        "forecast/ceiling_low": ceiling.value if ceiling.low is None else ceiling.low,
        "forecast/ceiling_high": ceiling.value if ceiling.high is None else ceiling.high,
        "forecast/exponent": found.law.exponent,
        "forecast/compute_to_share": found.compute_to_share(found.config.share).value,
    }


def forecast_line(found: Fit) -> str:
    """`forecast A = 0.61 ± 0.02; 90 % reached at 3.2 h`, or why there is none yet; empty while nothing rises."""
    if found.status == "flat":
        return ""
    if found.status != "identified":
        return f"forecast: {found.verdict}"
    ceiling, config = found.ceiling, found.config
    low, high = (ceiling.value if end is None else end for end in (ceiling.low, ceiling.high))
    share = f"{100 * config.share:g} %"
    return f"forecast A = {show(ceiling.value)} ± {show((high - low) / 2, 2)}; {share} {_when(found)}"


def _when(found: Fit) -> str:
    spent = found.compute_to_share(found.config.share).value
    ahead = spent - float(found.curve.compute[-1])
    if ahead <= 0:
        return "reached"
    seconds = found.seconds_per_compute()
    if seconds is None or found.curve.elapsed_s is None:
        return f"reached at {show(spent)} {found.curve.axis.unit}"
    return f"reached at {_duration(float(found.curve.elapsed_s[-1]) + ahead * seconds)}"


def _duration(seconds: float) -> str:
    """
    >>> _duration(11520.0), _duration(90.0)
    ('3.2 h', '1.5 min')
    """
    return f"{show(seconds / 3600, 2)} h" if seconds >= 3600 else f"{show(seconds / 60, 2)} min"
