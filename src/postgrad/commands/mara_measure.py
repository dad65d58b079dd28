"""`postgrad mara measure`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from postgrad.commands.mara_explain import default_out, derived_run
from postgrad.commands.scaling_fit import write_page
from postgrad.core.config import validate
from postgrad.core.console import print_rows
from postgrad.core.errors import MissingExtraError
from postgrad.core.figures import Headline, format_number
from postgrad.core.report import Picture, Table
from postgrad.core.run import Run
from postgrad.core.runfiles import pretty_json, replace_file, to_plain
from postgrad.mara.answers import read_sides
from postgrad.mara.config import MeasureConfig
from postgrad.mara.figures import measure_figures
from postgrad.mara.measure import OVERALL, PER_PROMPT, measure
from postgrad.mara.semantics import Models

KIND = "mara.measure"
_HEADLINES = ("unique_fraction", "answer_entropy", "pass_at_1", "pass_at_k")
_PERCENT = ("unique_fraction", "pass_at_1", "pass_at_k", "coverage", "valid_fraction")


def main(
    files: Sequence[Path],
    good: Path | None,
    out: Path | None,
    options: Mapping[str, Any],
    *,
    json_output: bool,
    argv: list[str],
) -> int:
    """Measures files side by side, prints and writes the result; see `postgrad mara measure --help`."""
    config = validate(MeasureConfig, options)
    sides = read_sides(files, config, good)
    models, notes = _models(config)
    record = to_plain({"good": None if good is None else str(good), **measure(sides, config, models)})[0]
    record["notes"] += notes()
    folder = default_out(out, _name(files))
    with derived_run(folder, config, KIND, argv, seed=config.seed) as run:
        replace_file(run.path / "measure.json", pretty_json(record))
        run.log(0, _metrics(record))
    page = report(run, record)
    if json_output:
        print(json.dumps(record, indent=2, ensure_ascii=False))
        return 0
    print_rows(metric_header(record), metric_rows(record))
    if rows := difference_rows(record):
        print_rows(difference_header(record), rows)
    if record["notes"]:
        print()
    for words in record["notes"]:
        print(f"  note: {words}")
    print(f"\nreport: {page}")
    return 0


def _models(config: MeasureConfig) -> tuple[Models, Callable[[], list[str]]]:
    """What compares meanings, and what there is to say of it afterwards; nothing is loaded that is not asked for."""
    if config.embedder is None and config.partition is None:
        return Models(), list
    from postgrad.mara.encoders import PairClassifier, TextEncoder

    embed = (
        None if config.embedder is None else TextEncoder(config.embedder, config.device, config.batch_size)
    )
    same = None
    if config.partition is not None:
        same = PairClassifier(
            config.partition,
            config.partition_tokenizer,
            config.partition_label,
            config.partition_tokens,
            config.device,
            config.batch_size,
        )

    def notes() -> list[str]:
        cut = 0 if embed is None else embed.num_cut
        return [f"The embedder read only the beginning of {cut} answers."] if cut else []

    return Models(embed, same), notes


# -- tables --------------------------------------------------------------------------------------------------------


def metric_header(record: Mapping[str, Any]) -> tuple[str, ...]:
    """One column for each side."""
    return ("", *(side["name"] for side in record["sides"]))


def metric_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for each metric that any side has."""
    sides = record["sides"]
    rows: list[tuple[str, ...]] = [
        ("prompts", *(format_number(side["num_prompts"]) for side in sides)),
        ("answers", *(format_number(side["num_answers"]) for side in sides)),
    ]
    for key in (*PER_PROMPT, *OVERALL):
        if key == "pass_at_k" and record["k"] == 1:
            continue
        cells = [side["metrics"][key] for side in sides]
        never = key == "oracle_burden" and any(
            side["metrics"]["yield"]["value"] is not None for side in sides
        )
        if never or any(cell["value"] is not None for cell in cells):
            shown = [
                "never"
                if never and cell["value"] is None and side["metrics"]["yield"]["value"] is not None
                else span(key, cell)
                for cell, side in zip(cells, sides, strict=True)
            ]
            rows.append((label(record, key), *shown))
    return rows


def difference_header(record: Mapping[str, Any]) -> tuple[str, ...]:
    """One column for each side but the first."""
    against = record["sides"][0]["name"]
    return (
        f"change from {against}",
        *(f"{d['side']} ({d['num_prompts']} prompts)" for d in record["differences"]),
    )


def difference_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Changes on the prompts that both sides have."""
    rows: list[tuple[str, ...]] = []
    for key in PER_PROMPT:
        cells = [difference["metrics"].get(key) for difference in record["differences"]]
        if any(cells) and not (key == "pass_at_k" and record["k"] == 1):
            rows.append((label(record, key), *("–" if c is None else span(key, c, sign=True) for c in cells)))
    return rows


def label(record: Mapping[str, Any], key: str) -> str:
    """The name of a metric, with its k or target.

    >>> label({"k": 8}, "pass_at_k"), label({"oracle_target": 100}, "oracle_burden")
    ('pass@8', 'OB100 (answers until 100 good)')
    """
    if key == "pass_at_k":
        return f"pass@{record['k']}"
    if key == "oracle_burden":
        return f"OB{record['oracle_target']} (answers until {record['oracle_target']} good)"
    return {**PER_PROMPT, **OVERALL}[key]


def span(key: str, cell: Mapping[str, Any], *, sign: bool = False) -> str:
    """A value with its interval.

    >>> span("pass_at_1", {"value": 0.5, "low": 0.25, "high": 0.75}), span("ead", {"value": 1.0, "low": None, "high": None})
    ('50.0 % [25.0, 75.0]', '1.000')
    >>> span("pass_at_1", {"value": 0.5, "low": 0.25, "high": 0.75}, sign=True)
    '+50.0 points [+25.0, +75.0]'
    """
    plus = "+" if sign else ""
    scale, digits, unit = (100, 1, " points" if sign else " %") if key in _PERCENT else (1, 3, "")
    if cell["value"] is None:
        return "–"
    if key in ("yield", "oracle_burden", "circles"):
        return format_number(cell["value"])
    text = f"{scale * cell['value']:{plus}.{digits}f}{unit}"
    if cell["low"] is None:
        return text
    return f"{text} [{scale * cell['low']:{plus}.{digits}f}, {scale * cell['high']:{plus}.{digits}f}]"


# -- the page ------------------------------------------------------------------------------------------------------


def report(run: Run, record: Mapping[str, Any]) -> Path:
    """report.html with figures, also as PNG."""
    per = f"{100 * record['confidence']:g} %"
    tables = [
        Table(
            "Diversity",
            metric_header(record),
            metric_rows(record),
            f"Means over prompts, every prompt weighing the same, with their {per} intervals (percentile bootstrap over "
            f"prompts); counts over all answers have none. EAD draws from {record['vocabulary']:,} words.",
        )
    ]
    if rows := difference_rows(record):
        tables.append(
            Table(
                "Change on the same prompts",
                difference_header(record),
                rows,
                f"Prompt by prompt, with {per} intervals: one that leaves 0 out is a change beyond chance of prompts.",
            )
        )
    return write_page(
        run, _headlines(record), measure_figures(record), tables, record["notes"], pictures(record)
    )


def pictures(record: Mapping[str, Any]) -> list[Picture]:
    """A grid of each side's molecules, where it has any and RDKit is there to draw them."""
    from postgrad.mara.pictures import Drawn, grid

    found: list[Picture] = []
    for side in record["sides"]:
        drawn = [Drawn(**molecule) for molecule in side.get("molecules", [])]
        if not drawn:
            continue
        try:
            svg = grid(drawn)
        except MissingExtraError:  # an old measurement, seen elsewhere
            return []
        kind = "different molecules" if side["metrics"]["yield"]["value"] is None else "good ones"
        found.append(
            Picture(
                name=f"molecules-{re.sub(r'[^A-Za-z0-9.-]+', '-', side['name'])}",
                title=f"Molecules of {side['name']}",
                caption=f"{len(drawn)} of the {kind}, chosen to be unlike each other; best first. Numbers are rewards.",
                svg=svg,
                columns={"smiles": [one.smiles for one in drawn], "reward": [one.reward for one in drawn]},
            )
        )
    return found


def _headlines(record: Mapping[str, Any]) -> list[Headline]:
    """A few metrics of the second side against the first, or of the only one."""
    sides = record["sides"]
    shown = sides[:2][-1]
    found: list[Headline] = []
    for key in _HEADLINES:
        first, last = sides[0]["metrics"][key], shown["metrics"][key]
        if last["value"] is None or (key == "pass_at_k" and record["k"] == 1):
            continue
        short = {**last, "low": None, "high": None}
        detail = "" if last["low"] is None else span(key, last).partition(" [")[2].rstrip("]")
        detail = f"{detail.replace(', ', ' to ')}" if detail else ""
        if len(sides) > 1:
            before = span(key, {**first, "low": None, "high": None})
            detail = f"{shown['name']} ({sides[0]['name']}: {before})"
        found.append(Headline(label(record, key), span(key, short), detail))
    counts = [format_number(side["num_answers"]) for side in sides]
    return found or [Headline("answers", " / ".join(counts), " / ".join(side["name"] for side in sides))]


def rewrite_report(run: Run) -> Path:
    """The report of an existing measurement, from its measure.json."""
    return report(run, json.loads((run.path / "measure.json").read_text(encoding="utf-8")))


def _name(files: Sequence[Path]) -> str:
    """Of the folder: the files' names joined.

    >>> _name([Path("a/x.csv"), Path("runs/y")])
    'x-vs-y-diversity'
    """
    names = [file.stem if file.suffix else file.resolve().name for file in files]
    joined = (
        "-vs-".join(names) if sum(map(len, names)) < 80 else f"{names[0][:60]}-vs-{len(names) - 1}-others"
    )
    return f"{joined}-diversity"


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for side in record["sides"]:
        for key, cell in side["metrics"].items():
            for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                if cell[end] is not None:
                    metrics[f"diversity/{side['name'].replace('/', '-')}/{key}{suffix}"] = cell[end]
    return metrics
