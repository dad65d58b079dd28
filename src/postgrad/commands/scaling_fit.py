"""`postgrad scaling fit`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from postgrad.core.config import validate
from postgrad.core.console import print_rows
from postgrad.core.errors import RunError
from postgrad.core.figures import Figure, Headline, to_png
from postgrad.core.report import Picture, Table, write_report
from postgrad.core.run import Run
from postgrad.core.runfiles import pretty_json, replace_file
from postgrad.scaling.api import fit_together, load_curve
from postgrad.scaling.bootstrap import show
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.figures import fit_figures
from postgrad.scaling.fitting import Fit, fit_curve
from postgrad.scaling.records import (
    RIVAL_HEADER,
    curve_from_record,
    fit_record,
    fit_table,
    plain,
    rival_table,
    span,
)

KIND = "scaling.fit"


def main(
    logs: Sequence[Path], out: Path | None, options: Mapping[str, Any], *, json_output: bool, argv: list[str]
) -> int:
    """Fits each log, prints the result and writes it; see `postgrad scaling fit --help`."""
    config = validate(ScalingConfig, options)
    fits = fit_together([load_curve(log, config) for log in logs], config)
    folders = _folders(out, [found.name for found in fits])
    for folder in folders:
        check_kind(folder, KIND)
    for found, folder in zip(fits, folders, strict=True):
        with derived_run(folder, found.config, KIND, argv) as run:
            write_fit(run, found)
        page = report(run, found)
        if not json_output:
            print_fit(found)
            print(f"\nreport: {page}")
    if json_output:
        records = [fit_record(found) for found in fits]
        print(json.dumps(plain(records[0] if len(records) == 1 else records), indent=2))
    return 0


def print_fit(found: Fit) -> None:
    """Verdict, what was done to the log, parameters, rivals."""
    print(f"\n{found.name}: {found.curve.reward_key} over {found.curve.axis.key} ({found.curve.axis.unit})")
    print(found.verdict)
    for words in (*found.curve.notes, *found.cautions):
        print(f"  note: {words}")
    if found.status in ("identified", "open", "misfit"):
        print_rows(("", f"estimate, {100 * found.config.confidence:g} % interval"), fit_table(found))
        print_rows(RIVAL_HEADER, rival_table(found))


def write_fit(run: Run, found: Fit) -> None:
    """fit.json, and the numbers as metrics."""
    replace_file(run.path / "fit.json", pretty_json(plain(fit_record(found))))
    metrics: dict[str, Any] = {}
    for name in ("ceiling", "exponent", "midpoint", "initial"):
        estimate = getattr(found, name)
        metrics |= {f"scaling/{name}": estimate.value}
        metrics |= {f"scaling/{name}_{end}": getattr(estimate, end) for end in ("low", "high")}
    run.log(0, metrics)


def report(run: Run, found: Fit) -> Path:
    """report.html with figures, also as PNG."""
    percent = f"{100 * found.config.confidence:g} %"
    headlines = [Headline("status", found.status)]
    if found.status == "identified":
        reach = found.compute_to_share(found.config.share)
        values = {
            "ceiling A": found.ceiling,
            "exponent B": found.exponent,
            f"{found.curve.axis.unit} to {100 * found.config.share:g} % of A": reach,
        }
        headlines = [
            Headline(label, show(value.value), span(value, percent)) for label, value in values.items()
        ]
    elif found.status == "open":
        low = found.points.reward.max() if found.ceiling.low is None else found.ceiling.low
        headlines.append(Headline("ceiling A", f"≥ {show(float(low))}", "its upper end is open"))
    tables = [
        Table("Parameters", ("", f"estimate, {percent} interval"), fit_table(found)),
        Table(
            "Other curves on the same points",
            RIVAL_HEADER,
            rival_table(found),
            "ΔAICc: how much worse than the best; above 2 counts, above 6 is strong. Weight: share of the evidence.",
        ),
    ]
    return write_page(
        run, headlines, fit_figures(found), tables, (found.verdict, *found.curve.notes, *found.cautions)
    )


def write_page(
    run: Run,
    headlines: Sequence[Headline],
    figures: Sequence[Figure],
    tables: Sequence[Table],
    notes: Sequence[str],
    pictures: Sequence[Picture] = (),
) -> Path:
    """The report, and each figure also as a PNG for slides."""
    page = write_report(
        run, headlines=headlines, figures=figures, tables=tables, pictures=pictures, notes=notes, derived=True
    )
    if list((run.path / "figures").glob("*.svg")):  # matplotlib is there
        for figure in figures:
            replace_file(run.path / "figures" / f"{figure.name}.png", to_png(figure, 920, 420))
    return page


def rewrite_report(run: Run) -> Path:
    """The report of an existing fit, from its own points and config."""
    record = json.loads((run.path / "fit.json").read_text(encoding="utf-8"))
    found = fit_curve(curve_from_record(record["curve"]), validate(ScalingConfig, run.config_dict()))
    return report(run, found)


def _folders(out: Path | None, names: Sequence[str]) -> list[Path]:
    """One for each log; logs of the same name are numbered.

    >>> [str(folder) for folder in _folders(Path("out"), ["log", "log", "a b"])]
    ['out/log-1', 'out/log-2', 'out/a-b']
    """
    numbered = [f"{name}-{i}" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]
    return [default_out(out, name, several=len(names) > 1) for name in numbered]


def default_out(out: Path | None, name: str, *, several: bool) -> Path:
    """Where a result goes: `--out`, or a folder of the log's name."""
    folder = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "log"
    if out is None:
        return Path("runs/scaling") / folder
    return out / folder if several else out


def derived_run(out: Path, config: ScalingConfig, kind: str, argv: Sequence[str]) -> Run:
    """A run directory for something that is computed in a moment from a log: an earlier one of the same kind is replaced.

    Raises:
        RunError: the directory holds something else.
    """
    overwrite = check_kind(out, kind)
    return Run.create(
        out, config, command=argv, kind=kind, seed=config.seed, overwrite=overwrite, device="cpu", quiet=True
    )


def check_kind(out: Path, kind: str) -> bool:
    """Whether the directory holds an earlier result of that kind. Raises RunError if it holds another run."""
    if not (out / "run.json").is_file():
        return False
    found = Run.open(out).info.get("kind")
    if found != kind:
        raise RunError(f"{out} holds a run of another kind ({found}). Choose another --out.")
    return True
