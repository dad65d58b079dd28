"""`postgrad influence prune`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from postgrad.commands.influence_problem import Source, show_progress, working, write_record
from postgrad.core.config import validate
from postgrad.core.console import print_rows
from postgrad.core.figures import Figure, Headline, Line
from postgrad.core.report import Table, write_report
from postgrad.core.run import Run
from postgrad.influence.config import PruneConfig

KIND = "influence.prune"
RESULT_FILE = "prune.json"
_HEADER = ("left out", "examples", "queries' loss", "lowest to highest", "trainings")
_NOTE = (
    "Mean loss of the queries after training again. Opponents: the examples with the lowest scores, summed over queries; without "
    "them the loss should fall. Proponents: the highest. Lowest to highest: of single trainings, with other orders and other "
    "random choices."
)


def main(
    base: str,
    train: Path | None,
    query: Path | None,
    model: str | None,
    out: Path | None,
    overwrite: bool,
    resume: bool,
    device: str,
    options: Mapping[str, Any],
    argv: list[str],
) -> int:
    """Trains without the worst, the best and random examples; see `postgrad influence prune --help`."""
    config = validate(PruneConfig, options)
    source = Source(base, train, query, model, device, config)
    out = out or Path("runs/influence") / f"{source.name}-prune"

    from postgrad.influence.pruning import choices, prune

    with working(out, KIND, config, source, [config.method], argv, overwrite=overwrite, resume=resume) as (
        run,
        problem,
        scores,
        models,
    ):
        found = scores[config.method]
        rows = prune(found["scores"], models, config, show_progress)
        names = getattr(problem.train, "names", [])
        removed = {
            f"{name} {size}": [names[i][0] if names else i for i in (~keep).nonzero()[:, 0].tolist()]
            for name, size, keep in choices(found["scores"], config)
            if name in ("opponents", "proponents")
        }
        record = {
            "num_train": len(problem.train),
            "problems": found["problems"],
            "choices": [row._asdict() for row in rows],
            "removed": removed,
        }
        write_record(run, RESULT_FILE, record)
    page = rewrite_report(run)
    print_rows(_HEADER, _rows(_read(run)))
    for problem_found in found["problems"]:
        print(f"note: {problem_found}")
    print(f"{_NOTE}\nreport: {page}")
    return 0


def rewrite_report(run: Run) -> Path:
    """report.html: the queries' loss against how many examples were left out."""
    record = _read(run)
    by_name: dict[str, dict[int, list[float]]] = {}
    for one in record["choices"]:
        if one["choice"] != "none":
            by_name.setdefault(one["choice"], {})[one["removed"]] = one["losses"]
    whole = next(one["losses"] for one in record["choices"] if one["choice"] == "none")
    sizes = sorted({one["removed"] for one in record["choices"]})
    columns: dict[str, list[float | None]] = {"removed": [float(size) for size in sizes]}
    for name, found in by_name.items():
        values = [whole if size == 0 else found.get(size) for size in sizes]
        columns[name] = [fmean(some) if some else None for some in values]
        columns[f"{name} low"] = [min(some) if some else None for some in values]
        columns[f"{name} high"] = [max(some) if some else None for some in values]
    figure = Figure(
        "prune",
        "Loss after pruning",
        _NOTE,
        columns,
        "removed",
        tuple(Line(name, name, f"{name} low", f"{name} high", style="points") for name in by_name),
        x_label="training examples left out",
        y_label="mean loss of the queries, nats",
    )
    headline = Headline("examples", str(record["num_train"]), f"loss with all {fmean(whole):.4f}")
    return write_report(
        run,
        headlines=[headline],
        figures=[figure],
        tables=[Table("Choices", _HEADER, _rows(record), _NOTE)],
        notes=record["problems"],
        derived=True,
    )


def _rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            one["choice"],
            str(one["removed"]),
            f"{fmean(one['losses']):.4f}",
            f"{min(one['losses']):.4f} to {max(one['losses']):.4f}",
            str(len(one["losses"])),
        )
        for one in record["choices"]
    ]


def _read(run: Run) -> dict[str, Any]:
    return json.loads((run.path / RESULT_FILE).read_text(encoding="utf-8"))
