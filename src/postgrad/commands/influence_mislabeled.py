"""`postgrad influence mislabeled`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from postgrad.core.config import validate
from postgrad.core.console import print_rows
from postgrad.core.errors import ConfigError, DataError
from postgrad.core.report import Table, write_report
from postgrad.core.run import Run
from postgrad.core.runfiles import LineFile, pretty_json, replace_file, to_plain
from postgrad.influence.config import InfluenceConfig
from postgrad.influence.data import Example, read_examples

KIND = "influence.mislabeled"
RESULT_FILE = "mislabeled.json"
ROWS_FILE = "mislabeled.jsonl"
_SHOWN = 50


def main(
    model: str,
    train: Path | None,
    query: Path | None,
    known: str | None,
    count: int,
    out: Path | None,
    overwrite: bool,
    device: str,
    options: Mapping[str, Any],
    argv: list[str],
) -> int:
    """Ranks training examples by how suspicious they are; see `postgrad influence mislabeled --help`."""
    config = validate(InfluenceConfig, {**options, "self_scores": True})
    is_function = ":" in model and not Path(model).exists()
    if is_function != (train is None):
        raise ConfigError(
            f"{model} brings its own data: leave --train out."
            if is_function
            else "Say what MODEL was trained on: --train DATA."
        )
    rows = [] if train is None else read_examples(train, config)
    queries = [] if query is None else read_examples(query, config)
    wrong = None if known is None or train is None else _known(train, known, config)
    name = model.rpartition(":")[2] if is_function else Path(model).resolve().name
    out = out or Path("runs/influence") / f"{name}-mislabeled"

    from postgrad.influence.api import run as attribute
    from postgrad.influence.mislabeled import areas, signals

    with Run.create(
        out, config, command=argv, kind=KIND, seed=config.seed, overwrite=overwrite, device=device, quiet=True
    ) as run:
        if is_function:
            from postgrad.influence.problem import load_problem

            problem = load_problem(model)
            result = attribute(problem.module, problem.train, problem.queries, config)
            wrong, with_queries = getattr(problem, "wrong", None), True
        else:
            from postgrad.core.models import load

            loaded = load(model, device=device)
            result = attribute(loaded, rows, queries or rows[:1], config)
            with_queries = bool(queries)
        found = signals(result, with_queries=with_queries)
        by = next(iter(found))
        names = result.train or [(str(number), "") for number in range(len(found["loss"]))]
        order = found[by].argsort(descending=True, stable=True).tolist()
        table = [
            {
                "id": names[i][0],
                **{signal: float(values[i]) for signal, values in found.items()},
                "text": names[i][1],
            }
            for i in order
        ]
        (run.path / ROWS_FILE).unlink(missing_ok=True)
        file = LineFile(run.path / ROWS_FILE)
        file.append([to_plain(row)[0] for row in table])
        file.close()
        if wrong is not None and not is_function:
            wrong = _merged(rows, wrong, [name for name, _ in names])
        record = {
            "by": by,
            "num_train": len(table),
            "areas": None if wrong is None else areas(found, [bool(one) for one in wrong]),
            "problems": result.problems,
            "notes": result.notes,
        }
        replace_file(run.path / RESULT_FILE, pretty_json(to_plain(record)[0]))
    page = rewrite_report(run)
    _show(record, table, count)
    print(f"all of them: {out / ROWS_FILE}\nreport: {page}")
    return 0


def rewrite_report(run: Run) -> Path:
    """report.html: the most suspicious examples, and the areas where it is known which are wrong."""
    record = json.loads((run.path / RESULT_FILE).read_text(encoding="utf-8"))
    rows = LineFile(run.path / ROWS_FILE).read()[:_SHOWN]
    signals = [name for name in ("opponents", "self", "loss") if name in rows[0]]
    tables = [
        Table(
            "Most suspicious",
            ("", *signals, "training example"),
            [
                (str(number), *(f"{row[name]:.3g}" for name in signals), f"{row['id']}: {row['text'][:300]}")
                for number, row in enumerate(rows, 1)
            ],
            _meaning(record["by"]),
        )
    ]
    if record["areas"]:
        areas = [(name, f"{area:.3f}") for name, area in record["areas"].items()]
        tables.insert(0, Table("Area under the ROC curve", ("signal", "area"), areas, "Chance is 0.5."))
    return write_report(run, tables=tables, notes=[*record["notes"], *record["problems"]], derived=True)


def _show(record: Mapping[str, Any], table: list[dict[str, Any]], count: int) -> None:
    signals = [name for name in ("opponents", "self", "loss") if name in table[0]]
    print_rows(
        ("", *signals, "training example"),
        [
            (
                str(number),
                *(f"{row[name]:.3g}" for name in signals),
                f"{row['id']}: {' '.join(row['text'].split())[:60]}",
            )
            for number, row in enumerate(table[:count], 1)
        ],
    )
    print(_meaning(record["by"]))
    for name, area in (record["areas"] or {}).items():
        print(f"area under the ROC curve by {name}: {area:.3f}")
    for note in [*record["notes"], *record["problems"]]:
        print(f"note: {note}")


def _meaning(by: str) -> str:
    told = {
        "opponents": "minus the mean score on the queries, which are right: what raises their loss",
        "self": "an example's score on itself: how much of what the model says about it comes from it alone",
    }
    return f"Ranked by {by}: {told[by]}."


def _known(path: Path, field: str, config: InfluenceConfig) -> list[bool]:
    """The column that says which rows are wrong."""
    from postgrad.tasks.readers import read_rows

    found: list[bool] = []
    for place, row in read_rows(str(path), config.split, sys.maxsize, {}):
        value = row.get(field)
        if not isinstance(value, bool):
            raise DataError(
                f"{place} has no true or false in {field!r} (received {value!r}; columns: {', '.join(row)})."
            )
        found.append(value)
    return found


def _merged(rows: Sequence[Example], wrong: Sequence[bool], names: Sequence[str]) -> list[bool]:
    """Of the examples that are left after equal ones were merged, by their ids."""
    by_id = {row.id: one for row, one in zip(rows, wrong, strict=True)}
    return [by_id[name] for name in names]
