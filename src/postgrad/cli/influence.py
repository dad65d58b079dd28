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
@click.option("--resume", is_flag=True, help="Go on with the run in --out, whatever stopped it.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check the input and say what it will take, without the weights; write nothing.",
)
@click.option("--json", "json_output", is_flag=True, help="With --dry-run: print one JSON object.")
@click.pass_obj
def run(obj: dict[str, Any], model: str, **options: Any) -> int:
    """See `commands.influence_run`."""
    plan = {name: options.pop(name) for name in ("dry_run", "json_output")}
    names = ("train", "query", "prompts", "checkpoints", "out", "overwrite", "resume", "device")
    own = [options.pop(name) for name in names]
    return _command("run").main(model, *own, options, obj[ARGV_KEY], **plan)


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


_base = click.argument("base", metavar="BASE")
_data = [
    click.option("--train", type=_PATH, metavar="DATA", help="All that it is trained on."),
    click.option("--query", type=_PATH, metavar="DATA", help="What is asked of it."),
    click.option(
        "--model", metavar="DIR", help="BASE after training, if there is one; else it is trained here."
    ),
    click.option("--out", type=_PATH, metavar="DIR", help="Directory of the run."),
    click.option("--overwrite", is_flag=True, help="Throw away the run that is in --out."),
    click.option("--resume", is_flag=True, help="Go on with the run in --out; no model is trained twice."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
]
_PROBLEM = """BASE is the model that training starts from, with --train and --query; or module:function (or
file.py:function), which returns an object with module, train, queries and retrain(keep, seed): see
postgrad.influence.problem.Problem."""


def _retraining(name: str, config: str, summary: str, text: str) -> Any:
    def decorate(function: Any) -> Any:
        for option in reversed(_data):
            function = option(function)
        command = influence.command(
            name, cls=ConfigCommand, config=config, short_help=summary, help=f"{text}\n\n{_PROBLEM}"
        )
        return command(_base(click.pass_obj(function)))

    return decorate


@_retraining(
    "validate",
    "postgrad.influence.config:ValidateConfig",
    "Judge methods by training again.",
    "Train BASE again on random parts of its data, and see which method's scores predicted the queries' losses (LDS).",
)
def validate(obj: dict[str, Any], base: str, **options: Any) -> int:
    """See `commands.influence_validate`."""
    return _retrain("validate", obj, base, options)


@_retraining(
    "prune",
    "postgrad.influence.config:PruneConfig",
    "Leave examples out, and train again.",
    "Train BASE again without the examples that hurt the queries most, without those that help most, and without random ones.",
)
def prune(obj: dict[str, Any], base: str, **options: Any) -> int:
    """See `commands.influence_prune`."""
    return _retrain("prune", obj, base, options)


def _retrain(verb: str, obj: dict[str, Any], base: str, options: dict[str, Any]) -> int:
    names = ("train", "query", "model", "out", "overwrite", "resume", "device")
    own = [options.pop(name) for name in names]
    return _command(verb).main(base, *own, options, obj[ARGV_KEY])


@influence.command(
    "mislabeled",
    cls=ConfigCommand,
    config="postgrad.influence.config:InfluenceConfig",
    short_help="Find training examples that are wrong.",
    help="""Rank the training examples of MODEL by how suspicious they are: what raises the loss of --query (examples that are
right), else what only an example itself supports. MODEL may be module:function, which returns an object with module, train
and queries.""",
)
@click.argument("model", metavar="MODEL")
@click.option("--train", type=_PATH, metavar="DATA", help="What MODEL was trained on.")
@click.option("--query", type=_PATH, metavar="DATA", help="Examples that are right, not among --train.")
@click.option(
    "--known",
    metavar="FIELD",
    help="Column that says (true) which rows are wrong: prints how well they are found.",
)
@click.option(
    "--top", "count", type=click.IntRange(1), default=20, show_default=True, help="How many are printed."
)
@click.option(
    "--out", type=_PATH, metavar="DIR", help="Directory of the run [runs/influence/MODEL-mislabeled]."
)
@click.option("--overwrite", is_flag=True, help="Throw away the run that is in --out.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.pass_obj
def mislabeled(obj: dict[str, Any], model: str, **options: Any) -> int:
    """See `commands.influence_mislabeled`."""
    names = ("train", "query", "known", "count", "out", "overwrite", "device")
    own = [options.pop(name) for name in names]
    return _command("mislabeled").main(model, *own, options, obj[ARGV_KEY])


def _command(verb: str) -> Any:
    return importlib.import_module(f"postgrad.commands.influence_{verb}")
