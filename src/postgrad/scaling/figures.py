"""Figures of fits: the law over linear and over log compute, its residuals, several recipes, backtests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from postgrad.core.figures import LINE_ROLES, Figure, Line
from postgrad.scaling.backtesting import Backtest
from postgrad.scaling.bootstrap import show
from postgrad.scaling.fitting import Fit
from postgrad.scaling.ops import Array

_SAMPLES = 160
_BEYOND = 4.0
"""Figures go on to this many times the last compute."""


def fit_figures(found: Fit) -> list[Figure]:
    """The law over log and over linear compute, and the residuals."""
    return [law_figure([found], log_x=True), law_figure([found], log_x=False), residual_figure(found)]


def law_figure(fits: Sequence[Fit], *, log_x: bool, name: str = "") -> Figure:
    """Points, law, and its continuation (dashed, with a band) of one or several fits.

    With one fit its window is shaded, and the points outside are hollow. A law without an identified or open ceiling
    is not continued.
    """
    axis, single = fits[0].curve.axis, len(fits) == 1
    table = _Table(axis.unit)
    lines: list[Line] = []
    for index, found in enumerate(fits):
        role = LINE_ROLES[index % len(LINE_ROLES)]
        key = "" if single else f"{found.name} "
        points, curve = found.points, found.curve
        table.add(points.compute, {f"{key}reward": points.reward})
        lines.append(Line(f"{key}reward", "" if single else found.name, style="scatter", role=role))
        if (~found.fitted).any():
            label = "not fitted" if single else ""
            table.add(curve.compute[~found.fitted], {f"{key}not fitted": curve.reward[~found.fitted]})
            lines.append(Line(f"{key}not fitted", label, style="hollow", role=role))
        inside = _samples(points.compute[0], points.compute[-1])
        table.add(inside, {f"{key}law": found.law(inside)})
        lines.append(Line(f"{key}law", _law_label(found) if single else "", role=role))
        if _goes_on(found):
            beyond = _samples(points.compute[-1], _end(fits))
            low, high = found.band(beyond)
            columns = {"forecast": found.law(beyond), "forecast_low": low, "forecast_high": high}
            table.add(beyond, {f"{key}{column}": values for column, values in columns.items()})
            band = (f"{key}forecast_low", f"{key}forecast_high")
            lines.append(
                Line(f"{key}forecast", "forecast" if single else "", *band, style="dashed", role=role)
            )
    window = (float(fits[0].points.compute[0]), float(fits[0].points.compute[-1]))
    return Figure(
        name or ("law_log" if log_x else "law"),
        "Reward over compute, logarithmic" if log_x else "Reward over compute",
        _caption(fits, single),
        table.columns(positive=log_x),
        axis.unit,
        tuple(lines),
        x_label=axis.unit,
        y_label=fits[0].curve.reward_key,
        percent=fits[0].curve.limits == (0.0, 1.0),
        log_x=log_x,
        shaded=window if single else None,
    )


def residual_figure(found: Fit) -> Figure:
    """Reward minus law, with ± two standard deviations of the noise."""
    points = found.points
    table = _Table(points.axis.unit)
    table.add(points.compute, {"residual": found.residuals})
    ends = np.array([points.compute[0], points.compute[-1]])
    two = np.full(2, 2 * found.noise.sigma)
    table.add(ends, {"plus": two, "minus": -two, "zero": 0 * two})
    lines = (
        Line("residual", style="scatter", role="a"),
        Line("zero", role="ink"),
        Line("plus", style="dashed", role="ink"),
        Line("minus", style="dashed", role="ink"),
    )
    caption = (
        f"Reward minus law. Dashed: two standard deviations, σ = {show(found.noise.sigma, 2)}; neighbours correlate by "
        f"{found.noise.rho:.2f}. A pattern here means that the law does not describe the log."
    )
    return Figure(
        "residuals", "Residuals", caption, table.columns(), points.axis.unit, lines, x_label=points.axis.unit
    )


def backtest_figure(curve_fit: Fit, tests: Sequence[Backtest]) -> Figure:
    """All points, and what the beginnings would have forecast for the rest."""
    curve = curve_fit.curve
    table = _Table(curve.axis.unit)
    table.add(curve.compute, {"reward": curve.reward})
    lines = [Line("reward", style="scatter", role="ink")]
    for role, test in zip(LINE_ROLES, [t for t in tests if t.fit is not None], strict=False):
        if test.fit is None:
            continue
        key = f"from {100 * test.share:g} %"
        beyond = _samples(float(test.fit.points.compute[-1]), float(curve.compute[-1]))
        low, high = test.fit.band(beyond)
        table.add(beyond, {key: test.fit.law(beyond), f"{key} low": low, f"{key} high": high})
        lines.append(Line(key, key, f"{key} low", f"{key} high", style="dashed", role=role))
    caption = "Points: the whole log. Dashed: the forecast from its beginning, with the interval of the law."
    return Figure(
        "backtest",
        "Forecasts from the beginning",
        caption,
        table.columns(),
        curve.axis.unit,
        tuple(lines),
        x_label=curve.axis.unit,
        y_label=curve.reward_key,
        percent=curve.limits == (0.0, 1.0),
    )


class _Table:
    """Columns over different computes, as the rows of one table: None where a column has no value."""

    def __init__(self, x: str) -> None:
        self.x, self.rows = x, list[dict[str, float]]()

    def add(self, compute: Array, columns: dict[str, Array]) -> None:
        """Rows of some columns."""
        for index, x in enumerate(compute):
            self.rows.append(
                {self.x: float(x)} | {key: float(values[index]) for key, values in columns.items()}
            )

    def columns(self, *, positive: bool = False) -> dict[str, list[float | None]]:
        """All of it; `positive` leaves out compute 0, which has no logarithm."""
        rows = [row for row in self.rows if row[self.x] > 0 or not positive]
        keys = dict.fromkeys(key for row in self.rows for key in row)
        return {key: [row.get(key) for row in rows] for key in keys}


def _samples(first: float, last: float) -> Array:
    """Half of them evenly, half of them evenly on a logarithmic axis, so that both figures are smooth."""
    half = _SAMPLES // 2
    even = np.linspace(first, last, half)
    positive = max(first, 1e-3 * last)
    return np.unique(np.concatenate([even, np.geomspace(positive, last, half).clip(first, last)]))


def _end(fits: Sequence[Fit]) -> float:
    return _BEYOND * max(float(found.curve.compute[-1]) for found in fits)


def _goes_on(found: Fit) -> bool:
    """Whether a law says something about more compute."""
    return found.status in ("identified", "open")


def _law_label(found: Fit) -> str:
    return f"law, A = {show(found.law.ceiling)}" if found.status == "identified" else "law"


def _caption(fits: Sequence[Fit], single: bool) -> str:
    if not single:
        return "Points: the logs. Lines: the laws, dashed with the band of their interval where they go beyond the log."
    found = fits[0]
    hollow = " Hollow: points that it was not." if (~found.fitted).any() else ""
    dashed = (
        f" Dashed: its forecast, with {100 * found.config.confidence:g} % interval."
        if _goes_on(found)
        else ""
    )
    return f"Shaded: where the law was fitted.{hollow}{dashed}"
