"""`postgrad scaling backtest`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from postgrad.commands.scaling_fit import default_out, derived_run, write_page
from postgrad.core.config import validate
from postgrad.core.console import print_rows
from postgrad.core.errors import ConfigError
from postgrad.core.figures import Headline
from postgrad.core.report import Table
from postgrad.core.run import Run
from postgrad.core.runfiles import pretty_json, replace_file
from postgrad.scaling.api import backtest, fit, load_curve
from postgrad.scaling.backtesting import Backtest
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.figures import backtest_figure
from postgrad.scaling.fitting import Fit
from postgrad.scaling.records import (
    BACKTEST_HEADER,
    backtest_record,
    backtest_table,
    curve_from_record,
    fit_record,
    plain,
)

KIND = "scaling.backtest"
_NOTE = (
    "RMSE ahead and bias: forecast minus evaluation, on the points after the beginning. If it stayed: the RMSE of forecasting no "
    "change. In 95 %: share of those evaluations inside the interval that should hold 95 % of them."
)


def main(
    log: Path,
    shares: str,
    out: Path | None,
    options: Mapping[str, Any],
    *,
    json_output: bool,
    argv: list[str],
) -> int:
    """Scores forecasts from the beginnings of a log; see `postgrad scaling backtest --help`."""
    config = validate(ScalingConfig, options)
    try:
        beginnings = [float(word) for word in shares.split(",")]
    except ValueError:
        raise ConfigError(
            f"--shares takes numbers between 0 and 1, such as 0.1,0.25,0.5; not {shares!r}."
        ) from None
    curve = load_curve(log, config)
    whole, tests = fit(curve, config), backtest(curve, config, shares=beginnings)
    record = {"whole": fit_record(whole), "beginnings": [backtest_record(test) for test in tests]}
    with derived_run(default_out(out, f"{whole.name}-backtest", several=False), config, KIND, argv) as run:
        replace_file(run.path / "backtest.json", pretty_json(plain(record)))
    page = report(run, whole, tests)
    if json_output:
        print(json.dumps(plain(record), indent=2))
        return 0
    print(f"{whole.name}, all of it: {whole.verdict}")
    for words in (*whole.curve.notes, *whole.cautions):
        print(f"  note: {words}")
    print_rows(BACKTEST_HEADER, backtest_table(tests))
    for test in tests:
        print(f"{100 * test.share:g} %: {test.verdict}")
    print(f"\nreport: {page}")
    return 0


def report(run: Run, whole: Fit, tests: list[Backtest]) -> Path:
    """report.html: forecasts and what came."""
    headlines = [
        Headline(f"RMSE ahead, from {100 * test.share:g} %", row[4], f"{test.status}; if it stayed: {row[6]}")
        for test, row in zip(tests, backtest_table(tests), strict=True)
    ]
    notes = [
        f"All of it: {whole.verdict}",
        *(f"From {100 * test.share:g} %: {test.verdict}" for test in tests),
    ]
    tables = [Table("Forecasts", BACKTEST_HEADER, backtest_table(tests), _NOTE)]
    return write_page(run, headlines, [backtest_figure(whole, tests)], tables, notes)


def rewrite_report(run: Run) -> Path:
    """The report of an existing backtest, from its own points and config."""
    record = json.loads((run.path / "backtest.json").read_text(encoding="utf-8"))
    config = validate(ScalingConfig, run.config_dict())
    curve = curve_from_record(record["whole"]["curve"])
    shares = [item["share"] for item in record["beginnings"]]
    return report(run, fit(curve, config), backtest(curve, config, shares=shares))
