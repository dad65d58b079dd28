"""`postgrad mara explain`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from postgrad.commands.scaling_fit import check_kind, write_page
from postgrad.core.config import Config, validate
from postgrad.core.console import print_rows
from postgrad.core.figures import Headline, format_number
from postgrad.core.report import Table
from postgrad.core.run import Run
from postgrad.core.runfiles import pretty_json, replace_file, to_plain
from postgrad.mara.config import ExplainConfig
from postgrad.mara.explain import (
    METHODS,
    NAMES,
    Explanation,
    Optimum,
    crossover_words,
    explain,
    explanation_record,
    quote,
    read_table,
    share,
    table_from_record,
    two_modes,
)
from postgrad.mara.figures import explain_figures, shown_answers

KIND = "mara.explain"
_PRINTED = 20
_HEADER = ("", "β", "P(good)", "P(rarest | good)", "P(likeliest | good)", "entropy, nats")


def main(
    table: Path | None, out: Path | None, options: Mapping[str, Any], *, json_output: bool, argv: list[str]
) -> int:
    """Explains a table, prints and writes it; see `postgrad mara explain --help`."""
    config = validate(ExplainConfig, options)
    found = explain(two_modes() if table is None else read_table(table, config), config)
    folder = default_out(out, found.table.name)
    with derived_run(folder, config, KIND, argv, seed=config.seed) as run:
        replace_file(run.path / "explain.json", pretty_json(_record(found)))
        for step, beta in enumerate(config.beta):
            run.log(step, _metrics(found, beta))
    page = report(run, found)
    if json_output:
        print(json.dumps(_record(found), indent=2, ensure_ascii=False))
        return 0
    print_explanation(found, example=table is None)
    print(f"\nreport: {page}")
    return 0


def print_explanation(found: Explanation, *, example: bool = False) -> None:
    """Sentence, crossover, one row per objective, one per answer."""
    if example:
        print("No table given: the two-mode example. Yours has the columns answer, ref and reward.\n")
    print(found.sentence)
    print(crossover_words(found))
    for words in found.notes:
        print(f"  note: {words}")
    print_rows(_HEADER, optimum_rows(found))
    rows = answer_rows(found, 32)
    print_rows(answer_header(found), rows[:_PRINTED])
    if len(found.table.answers) > _PRINTED:
        print(f"… {len(found.table.answers) - _PRINTED} more answers: see the report, and --json for all.")


def optimum_rows(found: Explanation) -> list[tuple[str, ...]]:
    """One per objective and β, the reference first."""
    return [_optimum_row(optimum) for optimum in (found.reference, *found.optima)]


def _optimum_row(optimum: Optimum) -> tuple[str, ...]:
    return (
        NAMES[optimum.method],
        "" if optimum.beta is None else f"{optimum.beta:g}",
        share(optimum.good_mass),
        share(optimum.rare_given_good),
        share(optimum.frequent_given_good),
        f"{optimum.entropy:.3f}",
    )


def answer_header(found: Explanation) -> tuple[str, ...]:
    """Columns of `answer_rows`."""
    short = {**NAMES, "reverse": "RL", "forward": "forward"}
    optima = (f"{short[optimum.method]} {optimum.beta:g}" for optimum in found.optima)
    return ("answer", "reward", "reference", *optima)


def answer_rows(found: Explanation, limit: int = 80) -> list[tuple[str, ...]]:
    """Probability of each answer, by support; good ones are marked."""
    table = found.table
    return [
        (
            quote(table.answers[i], limit) + (" ✓" if found.good[i] else ""),
            format_number(float(table.rewards[i])),
            share(float(table.ref[i])),
            *(share(float(optimum.policy[i])) for optimum in found.optima),
        )
        for i in shown_answers(found)
    ]


def report(run: Run, found: Explanation) -> Path:
    """report.html with figures, also as PNG."""
    beta = min(found.config.beta)
    even = f"of {int(found.good.sum())} good answers"
    headlines: list[Headline] = []
    for method in METHODS:
        value = share(found.find(method, beta).rare_given_good)
        headlines.append(Headline(f"P(rarest | good), {NAMES[method]}", value, f"{even}, β = {beta:g}"))
    crossover = found.crossover.beta
    headlines.append(
        Headline(
            "crossover β*", "none" if crossover is None else f"{crossover:.4g}", "best against likeliest"
        )
    )
    left = len(found.table.answers) - len(shown_answers(found))
    tables = [
        Table(
            "Where training ends",
            _HEADER,
            optimum_rows(found),
            "Optimum of each objective: ordinary RL is E[R] − β·KL(π‖π_ref), forward KL is E[R] − β·KL(π_ref‖π), MARA is "
            "ordinary RL with the good answers' rewards augmented. Rarest and likeliest are by the reference.",
        ),
        Table(
            "Every answer" if not left else f"{len(found.table.answers) - left} of the answers",
            answer_header(found),
            answer_rows(found),
            f"✓ marks good answers: reward of at least {found.config.tau:g}. RL, forward and MARA as above; the number is β.",
        ),
    ]
    notes = (found.sentence, crossover_words(found), *found.notes)
    return write_page(run, headlines, explain_figures(found), tables, notes)


def rewrite_report(run: Run) -> Path:
    """The report of an existing explanation, from its own table and config."""
    record = json.loads((run.path / "explain.json").read_text(encoding="utf-8"))
    return report(run, explain(table_from_record(record), validate(ExplainConfig, run.config_dict())))


def default_out(out: Path | None, name: str) -> Path:
    """Where a result of the room goes: `--out`, or a folder of that name.

    >>> str(default_out(None, "my table")), str(default_out(Path("x"), "t"))
    ('runs/mara/my-table', 'x')
    """
    return out or Path("runs/mara") / (re.sub(r"[^\w.-]+", "-", name).strip("-.") or "answers")


def derived_run(out: Path, config: Config, kind: str, argv: Sequence[str], *, seed: int) -> Run:
    """A run directory for something computed in a moment: an earlier one of the same kind is replaced.

    Raises:
        RunError: the directory holds something else.
    """
    overwrite = check_kind(out, kind)
    return Run.create(
        out, config, command=argv, kind=kind, seed=seed, overwrite=overwrite, device="cpu", quiet=True
    )


def _record(found: Explanation) -> dict[str, Any]:
    return to_plain(explanation_record(found))[0]


def _metrics(found: Explanation, beta: float) -> dict[str, float]:
    metrics = {"optimum/beta": beta}
    for optimum in found.optima:
        if optimum.beta == beta:
            metrics |= {
                f"optimum/{optimum.method}/{name}": getattr(optimum, name)
                for name in ("good_mass", "rare_given_good", "entropy")
            }
    return metrics
