"""`postgrad scaling compare`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from postgrad.commands.scaling_fit import default_out, derived_run, write_page
from postgrad.core.config import validate
from postgrad.core.console import print_rows
from postgrad.core.errors import DataError
from postgrad.core.figures import Headline
from postgrad.core.report import Table
from postgrad.core.run import Run
from postgrad.core.runfiles import pretty_json, replace_file
from postgrad.scaling.api import compare
from postgrad.scaling.bootstrap import show
from postgrad.scaling.comparison import Comparison
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.figures import law_figure
from postgrad.scaling.fitting import Fit
from postgrad.scaling.records import comparison_record, curve_from_record, fit_record, plain

KIND = "scaling.compare"
_HEADER = ("recipe", "status", "A", "B", "C_mid", "points")


def main(
    logs: Sequence[Path], out: Path | None, options: Mapping[str, Any], *, json_output: bool, argv: list[str]
) -> int:
    """Compares every pair of logs; see `postgrad scaling compare --help`."""
    config = validate(ScalingConfig, options)
    if len(logs) < 2:
        raise DataError("Give two or more logs to compare: postgrad scaling compare LOG LOG.")
    fits, comparisons = compare(*logs, config=config)
    record = {
        "fits": [fit_record(found) for found in fits],
        "comparisons": [comparison_record(comparison) for comparison in comparisons],
    }
    names = "-vs-".join(found.name for found in fits)
    if len(names) > 80:  # file systems end at 255
        names = f"{fits[0].name[:60]}-vs-{len(fits) - 1}-others"
    with derived_run(default_out(out, names, several=False), config, KIND, argv) as run:
        replace_file(run.path / "comparison.json", pretty_json(plain(record)))
    page = report(run, fits, comparisons)
    if json_output:
        print(json.dumps(plain(record), indent=2))
        return 0
    print_rows(_HEADER, _rows(fits))
    for found in fits:
        for words in (*found.curve.notes, *found.cautions):
            print(f"  note on {found.name}: {words}")
    print()
    for comparison in comparisons:
        print(comparison.verdict)
    print(f"\nreport: {page}")
    return 0


def _rows(fits: Sequence[Fit]) -> list[tuple[str, ...]]:
    return [
        (
            found.name,
            found.status,
            found.ceiling.show(),
            found.exponent.show(),
            found.midpoint.show(),
            str(len(found.points)),
        )
        for found in fits
    ]


def report(run: Run, fits: Sequence[Fit], comparisons: Sequence[Comparison]) -> Path:
    """report.html: the verdicts, both laws in one figure, linear and logarithmic."""
    headlines = [
        Headline(_between(pair), pair.outcome, f"ΔA = {pair.ceiling_difference.show(2)}")
        for pair in comparisons[:3]
    ]
    pairs = [
        (
            f"{pair.first} − {pair.second}",
            pair.ceiling_difference.show(),
            pair.exponent_difference.show(),
            "–" if pair.shared_ceiling is None else show(pair.shared_ceiling),
            "–" if pair.laws is None else ", ".join(show(law.exponent) for law in pair.laws),
            "–" if pair.compute_ratio is None else pair.compute_ratio.show(),
        )
        for pair in comparisons
    ]
    tables = [
        Table("Recipes", _HEADER, _rows(fits)),
        Table(
            "Pairs",
            ("pair", "A difference", "B difference", "shared A", "B at shared A", "compute ratio"),
            pairs,
            "Compute ratio: what the second needs over what the first needs to reach the share of the shared A. "
            "Intervals hold for these runs; how much a recipe varies from seed to seed only further runs can tell.",
        ),
    ]
    figures = [law_figure(fits, log_x=True, name="laws_log"), law_figure(fits, log_x=False, name="laws")]
    return write_page(run, headlines, figures, tables, [pair.verdict for pair in comparisons])


def _between(pair: Comparison) -> str:
    """The names of a pair; a winner is `first`."""
    word = "than" if pair.outcome in ("higher ceiling", "same ceiling, faster") else "and"
    return f"{pair.first} {word} {pair.second}"


def rewrite_report(run: Run) -> Path:
    """The report of an existing comparison, from its own points and config."""
    record = json.loads((run.path / "comparison.json").read_text(encoding="utf-8"))
    config = validate(ScalingConfig, run.config_dict())
    fits, comparisons = compare(*(curve_from_record(item["curve"]) for item in record["fits"]), config=config)
    return report(run, fits, comparisons)
