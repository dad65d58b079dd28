"""`postgrad mara …`: the verbs of the room, each with the options of its config."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from postgrad.cli.tree import ARGV_KEY, ConfigCommand, HintingGroup, group_settings


@click.group("mara", cls=HintingGroup, context_settings=group_settings())
def mara() -> None:
    """Finding all good answers: what RL will keep, and how diverse answers are."""


_json = click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")


def _verb(name: str, config: str, summary: str, text: str) -> Any:
    """A subcommand whose further options are those of a config; the summary stands in the list of verbs."""
    path = f"postgrad.mara.config:{config}"
    return mara.command(name, cls=ConfigCommand, config=path, short_help=summary, help=text)


def _out(what: str) -> Any:
    return click.option(
        "--out", type=click.Path(path_type=Path), metavar="DIR", help=f"Directory for {what}."
    )


@_verb(
    "explain",
    "ExplainConfig",
    "What RL will make of a table of answers.",
    """What KL-regularised RL will make of a table of answers, without any training.

TABLE is a .csv, .tsv or .jsonl with the columns answer, ref (its probability or log-probability under the
reference) and reward. Without one the two-mode example is explained.""",
)
@click.argument("table", required=False, metavar="[TABLE]", type=click.Path(path_type=Path))
@_out("explain.json, figures and report [runs/mara/NAME]")
@_json
@click.pass_obj
def explain(
    obj: dict[str, Any], table: Path | None, out: Path | None, json_output: bool, **options: Any
) -> int:
    """See `commands.mara_explain`."""
    return _command("explain").main(table, out, options, json_output=json_output, argv=obj[ARGV_KEY])


@_verb(
    "measure",
    "MeasureConfig",
    "How diverse the answers of runs or files are.",
    """How diverse answers are: different answers, entropy, EAD, self-BLEU, pass@k, coverage, yield, molecules.

FILE is a run of postgrad (its samples.jsonl; the phases are compared) or a .jsonl, .csv or .tsv with the columns
completion or answer and, as far as known, prompt_id or prompt, correct, score or reward, step. Several files are
put side by side.""",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option(
    "--good",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='All good answers, for coverage: a .jsonl of {"prompt": …, "answers": [...]} rows.',
)
@_out("measure.json, figures and report [runs/mara/NAME-diversity]")
@_json
@click.pass_obj
def measure(
    obj: dict[str, Any],
    files: tuple[Path, ...],
    good: Path | None,
    out: Path | None,
    json_output: bool,
    **options: Any,
) -> int:
    """See `commands.mara_measure`."""
    return _command("measure").main(files, good, out, options, json_output=json_output, argv=obj[ARGV_KEY])


def _command(verb: str) -> Any:
    return importlib.import_module(f"postgrad.commands.mara_{verb}")
