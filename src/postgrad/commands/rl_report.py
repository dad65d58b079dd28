"""The report of an rl run: its metrics, and below them the forecast of where it will end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from postgrad.core.errors import PostgradError
from postgrad.core.report import default_figures, merge_rows, write_report
from postgrad.core.run import Run
from postgrad.scaling.api import fit
from postgrad.scaling.figures import law_figure


def rewrite_report(run: Run) -> Path:
    """Writes report.html; without enough evaluations for a law it is the plain report."""
    figures = default_figures(*merge_rows(run.metrics()))
    try:
        found = fit(run, y="eval/pass_rate")
    except PostgradError:  # too few evaluations, or none: there is nothing to add
        return write_report(run, figures=figures)
    figure = law_figure([found], log_x=True, name="forecast")
    title, caption = "Forecast: held-out pass rate over compute", f"{found.verdict} {figure.caption}"
    figure = replace(figure, title=title, caption=caption)
    return write_report(run, figures=[*figures, figure])
