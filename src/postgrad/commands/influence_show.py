"""`postgrad influence show`, and the report of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from postgrad.commands.influence_heatmap import heatmaps
from postgrad.core.console import print_rows
from postgrad.core.errors import RunError, SamplingError
from postgrad.core.figures import Figure, Headline, Line, format_number
from postgrad.core.glossary import explain
from postgrad.core.report import Table, write_report
from postgrad.core.report_words import Heatmap
from postgrad.core.run import Run

RESULT_FILE = "result.json"
_HEADER = ("", "score", "± error", "correlation", "training example")
_SIGN = "Positive scores are proponents: more of the example lowers the query's loss. Negative ones are opponents."


def main(path: Path, count: int, anyway: bool, json_output: bool) -> int:
    """Prints the rankings of a run; see `postgrad influence show --help`."""
    record = _read(Run.open(path))
    if json_output:
        print(json.dumps(record, indent=2, ensure_ascii=False))
        return 0
    show_record(record, count, anyway=anyway)
    if record["problems"] and not anyway:
        raise SamplingError(f"{record['withheld']}\n  --anyway shows them all the same.")
    return 0


def show_record(record: Mapping[str, Any], count: int, *, anyway: bool = False) -> None:
    """Diagnostics, then each query's proponents and opponents, unless they are withheld."""
    print_rows(
        ("", "value", "meaning"),
        [(key, format_number(value), explain(key)) for key, value in record["diagnostics"].items()],
    )
    if record.get("checkpoints"):
        print_rows(*_checkpoints(record))
    print(_learning_coefficient(record))
    for note in record["notes"]:
        print(f"note: {note}")
    if record["problems"] and not anyway:
        return
    for query in record["queries"]:
        print(f"\n{query['id']}: {_short(query['text'], 100)}")
        print_rows(_HEADER, _ranking(query, count, 60))
    print(f"\n{_SIGN}")


def rewrite_report(run: Run) -> Path:
    """report.html: diagnostics, the losses of the chains, and each query's proponents and opponents or why there are none."""
    record = _read(run)
    diagnostics = record["diagnostics"]
    headlines = [
        Headline("queries × examples", f"{len(record['queries'])} × {format_number(record['num_train'])}"),
        *(
            Headline(label, format_number(diagnostics[key]))
            for key, label in (("diagnostics/r_hat", "R̂"), ("diagnostics/ess", "effective draws"))
            if diagnostics.get(key) is not None
        ),
    ]
    if (llc := record.get("llc")) is not None:
        ends = f"95 % {format_number(llc['low'])} to {format_number(llc['high'])}"
        headlines.append(Headline("learning coefficient", format_number(llc["value"]), ends))
    tables = [
        Table(
            "Diagnostics",
            ("", "value", "meaning"),
            [(key, format_number(value), explain(key)) for key, value in diagnostics.items()],
        )
    ]
    if record.get("checkpoints"):
        tables.append(Table("Checkpoints", *_checkpoints(record)))
    maps: list[Heatmap] = []
    if not record["problems"]:
        maps, shaded = heatmaps(record["queries"], _facts)
        tables += [
            Table(f"{query['id']}: {_short(query['text'], 300)}", _HEADER, _ranking(query, 15, 300), _SIGN)
            for query in record["queries"][shaded:]
        ]
    notes = [_learning_coefficient(record), *record["notes"]]
    notes += [record["withheld"]] if record["problems"] else []
    return write_report(
        run,
        headlines=headlines,
        figures=_traces(run),
        tables=tables,
        heatmaps=maps,
        notes=notes,
        derived=True,
    )


def _learning_coefficient(record: Mapping[str, Any]) -> str:
    """With its interval, or why there is none."""
    llc = record.get("llc")
    if llc is None:
        return "No local learning coefficient: it takes chains (methods langevin, sgld, rmsprop)."
    value, low, high = (format_number(llc[name]) for name in ("value", "low", "high"))
    return (
        f"Local learning coefficient, nβ(E[L] − L(w*)): {value}, 95 % interval {low} to {high} by the effective number of draws. "
        "It is that of the sampled weights as λ holds them, and knows nothing of places where no chain has been."
    )


def _checkpoints(record: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: the share of each checkpoint and those of its diagnostics that have a limit."""
    names = ("r_hat", "ess", "drift", "stability", "agreement")
    shown = [name for name in names if f"diagnostics/{name}" in record["diagnostics"]]
    rows = [
        (
            one["checkpoint"],
            f"{one['share']:.3g}",
            *(format_number(one["diagnostics"].get(f"diagnostics/{name}")) for name in shown),
        )
        for one in record["checkpoints"]
    ]
    return ("checkpoint", "share", *shown), rows


def _traces(run: Run) -> list[Figure]:
    rows = [row for row in run.metrics() if "chain/loss" in row]
    if not rows:
        return []
    by_chain: dict[str, list[float]] = {}
    for row in rows:
        at = f"checkpoint {int(row['checkpoint/number'])}, " if "checkpoint/number" in row else ""
        by_chain.setdefault(f"{at}chain {int(row['chain/number'])}", []).append(row["chain/loss"])
    by_chain = dict(list(by_chain.items())[:6])
    length = max(map(len, by_chain.values()))
    columns: dict[str, list[float | None]] = {"draw": [float(draw) for draw in range(length)]}
    columns |= {name: [*losses, *[None] * (length - len(losses))] for name, losses in by_chain.items()}
    lines = tuple(Line(name, name) for name in by_chain)
    caption = "Mean training loss at each draw. "
    if run.config_dict().get("method") in ("stein", "laplace"):
        caption += (
            "Draws do not follow from each other (stein: pairs do not), so that no trend is to be read here."
        )
    else:
        caption += "Chains that rise or fall together are still on their way."
    return [Figure("chains", "Chains", caption, columns, "draw", lines, x_label="draw", y_label="loss")]


def _ranking(query: Mapping[str, Any], count: int, limit: int) -> list[tuple[str, ...]]:
    last = list(reversed(query["opponents"][:count]))
    sides: Sequence[tuple[str, Any]] = [
        *(("+", one) for one in query["proponents"][:count]),
        *(("−", one) for one in last),
    ]
    return [
        (
            sign,
            f"{one['score']:.3g}",
            "–" if one["error"] is None else f"{one['error']:.2g}",
            "–" if one["correlation"] is None else f"{one['correlation']:.2f}",
            f"{one['id']}: {_short(one['text'], limit)}",
        )
        for sign, one in sides
    ]


def _facts(one: Mapping[str, Any]) -> str:
    """A ranked example's numbers in a line."""
    error = "" if one["error"] is None else f"\u00a0±\u00a0{one['error']:.2g}"
    shown = "" if one["correlation"] is None else f", correlation\u00a0{one['correlation']:.2f}"
    return f"{one['score']:+.3g}{error}{shown}".replace("-", "−")


def _short(text: str, limit: int) -> str:
    """On one line, cut.

    >>> _short("a\\nb", 10), _short("abcdef", 4)
    ('a b', 'abc…')
    """
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _read(run: Run) -> dict[str, Any]:
    path = run.path / RESULT_FILE
    if not path.is_file():
        raise RunError(
            f"{run.path} has no {RESULT_FILE}: it is no finished run of influence (kind {run.info.get('kind')}, {run.status}). "
            "Start it again: postgrad influence run MODEL --train DATA --query DATA --out DIR --overwrite"
        )
    return json.loads(path.read_text(encoding="utf-8"))
