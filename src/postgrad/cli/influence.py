"""`postgrad influence …`: the verbs of the room."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from postgrad.cli.tree import ARGV_KEY, ConfigCommand, HintingGroup, group_settings

_PATH = click.Path(path_type=Path)


@click.group("influence", cls=HintingGroup, context_settings=group_settings())
def influence() -> None:
    """Which training data made the model say this."""


@influence.command(
    "run",
    cls=ConfigCommand,
    config="postgrad.influence.config:InfluenceConfig",
    short_help="Score training examples for queries.",
    help="""Score the training examples of MODEL by what they did to its loss on queries. MODEL stays as it is.

DATA is a .jsonl, .json, .csv or .parquet file of {"text": …}, {"prompt": …, "completion": …} or {"messages": […]} rows, a
directory saved by Dataset.save_to_disk, a text file, or a directory of text files.""",
)
@click.argument("model", metavar="MODEL")
@click.option(
    "--train", type=_PATH, metavar="DATA", required=True, help="What MODEL was trained on, or a part."
)
@click.option("--query", type=_PATH, metavar="DATA", help="What is to be explained.")
@click.option(
    "--prompt", "prompts", multiple=True, metavar="TEXT", help="Explain MODEL's own answer to this."
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=_PATH,
    metavar="DIR",
    help="Average over checkpoints of MODEL's training: one, or a directory of several. MODEL takes their weights.",
)
@click.option("--out", type=_PATH, metavar="DIR", help="Directory of the run [runs/influence/MODEL-METHOD].")
@click.option("--overwrite", is_flag=True, help="Throw away the run that is in --out.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.pass_obj
def run(obj: dict[str, Any], model: str, **options: Any) -> int:
    """See `commands.influence_run`."""
    names = ("train", "query", "prompts", "checkpoints", "out", "overwrite", "device")
    own = [options.pop(name) for name in names]
    return _command("run").main(model, *own, options, obj[ARGV_KEY])


@influence.command("show", short_help="Print the rankings of a run.")
@click.argument("run", metavar="RUN", type=_PATH)
@click.option(
    "--top", "count", type=click.IntRange(1, 50), default=10, show_default=True, help="Of each sign."
)
@click.option("--anyway", is_flag=True, help="Also where diagnostics failed.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
def show(run: Path, count: int, anyway: bool, json_output: bool) -> int:
    """Print diagnostics and each query's proponents and opponents."""
    return _command("show").main(run, count, anyway, json_output)


def _command(verb: str) -> Any:
    return importlib.import_module(f"postgrad.commands.influence_{verb}")
