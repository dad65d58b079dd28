"""`postgrad memory compare`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from postgrad.commands.memory_learn import Inputs, read_inputs
from postgrad.commands.resume import record_inputs, resume_run
from postgrad.core.config import validate
from postgrad.core.console import print_rows
from postgrad.core.errors import DataError
from postgrad.core.figures import Figure, Headline, Line
from postgrad.core.report import Table, write_report
from postgrad.core.run import Run
from postgrad.core.runfiles import LineFile
from postgrad.memory.config import CompareConfig

KIND = "memory.compare"
TRIALS_FILE = "trials.jsonl"
_LEVELS = (0.25, 0.5, 0.75)
_HEADER = ("method", "learning rate", "learned", "kept", "seconds", "FLOP")


def main(
    model: Path,
    facts: Path,
    keep: Path,
    ask: Path | None,
    background: Path | None,
    out: Path | None,
    overwrite: bool,
    resume: bool,
    device: str,
    options: Mapping[str, Any],
    argv: list[str],
) -> int:
    """Teaches the same stream by every method; see `postgrad memory compare --help`."""
    config = validate(CompareConfig, options)
    inputs = read_inputs(facts, keep, ask, background, config.methods)
    inputs.print_notes()
    if not inputs.ask and all(fact.question is None for fact in inputs.facts):
        raise DataError(f"{facts} has no questions, so nothing says what was learned: give --ask QUESTIONS.")

    from postgrad.memory.compare import LEARNING_RATES, compare

    out = out or Path("runs/memory") / f"{model.resolve().name}-compare"
    run = (
        resume_run(out, KIND, config, argv, inputs)
        if resume
        else _created(out, config, inputs, argv, overwrite)
    )
    known = _trials(run)
    total = sum(len(LEARNING_RATES[method]) for method in config.methods)
    with run, contextlib.closing(LineFile(run.path / TRIALS_FILE)) as file:
        file.trim_torn_line()  # its trial is made again
        for number, found in enumerate(
            compare(
                model,
                inputs.facts,
                config,
                inputs.probes(),
                background=inputs.background,
                device=device,
                known=known,
                note=run.note,
            ),
            len(known) + 1,
        ):
            file.append([asdict(found)])
            file.sync()
            print(
                f"{number}/{total}  {found.method}, lr {found.learning_rate:g}: learned {found.learned:.3f}, "
                f"kept {found.kept:.3f}, {found.seconds:.1f} s",
                flush=True,
            )
    page = rewrite_report(run)
    print_rows(("method", "area", *(f"kept at learned ≥ {level}" for level in _LEVELS)), _summary(run))
    print(f"report: {page}")
    return 0


def _created(out: Path, config: CompareConfig, inputs: Inputs, argv: list[str], overwrite: bool) -> Run:
    run = Run.create(out, config, command=argv, kind=KIND, seed=config.seed, overwrite=overwrite)
    (run.path / TRIALS_FILE).unlink(missing_ok=True)
    record_inputs(run, inputs)
    return run


def _trials(run: Run) -> list[Any]:
    from postgrad.memory.compare import Trial

    return [Trial(**row) for row in LineFile(run.path / TRIALS_FILE).read()]


def _by_method(run: Run) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for one in _trials(run):
        found.setdefault(one.method, []).append(one)
    return found


def _summary(run: Run) -> list[tuple[str, ...]]:
    from postgrad.memory.compare import area, kept_at

    rows: list[tuple[str, ...]] = []
    for method, trials in _by_method(run).items():
        points = [one.point for one in trials]
        kept = [kept_at(points, level) for level in _LEVELS]
        rows.append((method, f"{area(points):.3f}", *("–" if k is None else f"{k:.3f}" for k in kept)))
    return rows


def rewrite_report(run: Run) -> Path:
    """report.html: learned against kept, both against seconds, every trial in a table."""
    methods = _by_method(run)
    summary = _summary(run)
    best = max(summary, key=lambda row: float(row[1]), default=None)
    headlines = [Headline("largest area", best[0], f"{best[1]} of 1")] if best else []
    tables = [
        Table(
            "Methods",
            ("method", "area", *(f"kept at learned ≥ {level}" for level in _LEVELS)),
            summary,
            "Area: the part of the unit square below and left of a trial; 1 is everything learned and everything kept. The best "
            "trials of each method are chosen by the very questions that are counted here.",
        ),
        Table(
            "Trials",
            _HEADER,
            [
                (
                    t.method,
                    f"{t.learning_rate:g}",
                    f"{t.learned:.3f}",
                    f"{t.kept:.3f}",
                    f"{t.seconds:.1f}",
                    f"{t.flops:.3g}",
                )
                for trials in methods.values()
                for t in trials
            ],
        ),
    ]
    return write_report(run, headlines=headlines, figures=_figures(methods), tables=tables, derived=True)


def _figures(methods: Mapping[str, Sequence[Any]]) -> list[Figure]:
    from postgrad.memory.compare import front

    columns: dict[str, list[float | None]] = {"learned": [], "seconds": []}
    names = [name for method in methods for name in (method, f"{method} front", f"{method} mean")]
    columns |= {name: [] for name in names}
    for method, trials in methods.items():
        best = set(front(one.point for one in trials))
        for one in sorted(trials, key=lambda one: one.learned):
            row = dict.fromkeys(names) | {
                method: one.kept,
                f"{method} front": one.kept if one.point in best else None,
                f"{method} mean": (one.learned + one.kept) / 2,
            }
            columns["learned"].append(one.learned)
            columns["seconds"].append(one.seconds)
            for name in names:
                columns[name].append(row[name])
    roles = dict(zip(methods, "abcdef", strict=False))
    trade = Figure(
        "learned-and-kept",
        "Kept against learned",
        "Questions answered exactly at the end of the stream, of the facts taught and of those known before. A point for each "
        "learning rate; lines join those of a method that no other of its trials beats in both.",
        columns,
        "learned",
        tuple(
            line
            for method, role in roles.items()
            for line in (
                Line(f"{method} front", role=role),
                Line(method, method, style="scatter", role=role),
            )
        ),
        x_label="learned",
        y_label="kept",
        percent=True,
    )
    cost = Figure(
        "compute",
        "What it costs",
        "Mean of learned and kept against the seconds that learning took on this machine, evaluation not counted.",
        columns,
        "seconds",
        tuple(Line(f"{method} mean", method, style="scatter", role=role) for method, role in roles.items()),
        x_label="seconds",
        y_label="mean of learned and kept",
        percent=True,
        log_x=True,
    )
    return [trade, cost]
