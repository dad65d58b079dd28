"""`postgrad influence validate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from postgrad.commands.influence_problem import Source, show_progress, working, write_record
from postgrad.core.config import validate
from postgrad.core.console import print_rows
from postgrad.core.errors import ConfigError
from postgrad.core.figures import Figure, Headline, Line
from postgrad.core.report import Table, write_report
from postgrad.core.run import Run
from postgrad.influence.config import ValidateConfig

KIND = "influence.validate"
RESULT_FILE = "validate.json"
_HEADER = ("method", "LDS", "95 % interval", "seconds", "withheld")


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
    """Trains on random parts and asks who predicted it; see `postgrad influence validate --help`."""
    config = validate(ValidateConfig, options)
    source = Source(base, train, query, model, device, config)
    if source.is_function and "bm25" in config.methods:
        raise ConfigError("Method bm25 compares words; a function's examples have none. Give --methods.")
    out = out or Path("runs/influence") / f"{source.name}-validate"

    from postgrad.influence.validate import ceiling, judge, make_subsets, retrain_seeds

    with working(out, KIND, config, source, config.methods, argv, overwrite=overwrite, resume=resume) as (
        run,
        problem,
        scores,
        models,
    ):
        subsets = make_subsets(len(problem.train), config.subsets, config.share, config.seed)
        losses = models.all_losses(subsets, retrain_seeds(config), show_progress)
        methods = {
            method: judge(found["scores"], subsets, losses, config)._asdict()
            | {"seconds": found["seconds"], "problems": found["problems"]}
            for method, found in scores.items()
        }
        size = {"num_train": len(problem.train), "num_queries": len(problem.queries)}
        write_record(run, RESULT_FILE, {**size, "ceiling": ceiling(losses), "methods": methods})
    page = rewrite_report(run)
    record = _read(run)
    print_rows(_HEADER, _rows(record))
    print(_note(record))
    print(f"report: {page}")
    return 0


def rewrite_report(run: Run) -> Path:
    """report.html: LDS of each method with its interval, and against its seconds."""
    record = _read(run)
    methods: dict[str, Any] = record["methods"]
    best = max(methods, key=lambda name: methods[name]["lds"])
    columns: dict[str, list[float | None]] = {"seconds": [one["seconds"] for one in methods.values()]}
    columns |= {
        name: [one["lds"] if other == name else None for other, one in methods.items()] for name in methods
    }
    figure = Figure(
        "lds",
        "LDS against seconds",
        "How well each method's scores predict the queries' losses of models trained on random parts of the data.",
        columns,
        "seconds",
        tuple(Line(name, name, style="scatter") for name in methods),
        x_label="seconds of attribution",
        y_label="LDS",
        log_x=True,
    )
    return write_report(
        run,
        headlines=[Headline("highest LDS", best, f"{methods[best]['lds']:.3f}")],
        figures=[figure],
        tables=[Table("Methods", _HEADER, _rows(record), _note(record))],
        derived=True,
    )


def _rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            f"{one['lds']:.3f}",
            f"{one['low']:.3f} to {one['high']:.3f}",
            f"{one['seconds']:.1f}",
            f"{len(one['problems'])} diagnostics failed" if one["problems"] else "",
        )
        for name, one in record["methods"].items()
    ]


def _note(record: Mapping[str, Any]) -> str:
    ceiling = record["ceiling"]
    reached = (
        "it takes two seeds to know what could be reached"
        if ceiling is None
        else f"half of the trainings predict the other half with {ceiling:.3f}"
    )
    return (
        "LDS: rank correlation, mean over queries, of summed scores with minus the loss after training on a part of the data; "
        f"{reached}. Intervals: bootstrap over parts."
    )


def _read(run: Run) -> dict[str, Any]:
    return json.loads((run.path / RESULT_FILE).read_text(encoding="utf-8"))
