"""`postgrad scaling …`: the verbs of the room, each with the options of its config."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from postgrad.cli.tree import ARGV_KEY, ConfigCommand, HintingGroup, group_settings

_CONFIG = "postgrad.scaling.config:ScalingConfig"


@click.group("scaling", cls=HintingGroup, context_settings=group_settings())
def scaling() -> None:
    """The sigmoid law: where a run will end, from its first half."""


def _verb(name: str, summary: str, text: str) -> Any:
    """A subcommand whose further options are those of ScalingConfig; the summary stands in the list of verbs."""
    help_text = f"{text}\n\n{_LOG_HELP}"
    return scaling.command(name, cls=ConfigCommand, config=_CONFIG, short_help=summary, help=help_text)


_LOG_HELP = """LOG is a run of postgrad, a trainer_state.json (Hugging Face, TRL), a TensorBoard or offline W&B file,
a .csv or .jsonl; or a directory that holds one."""
_logs = click.argument("logs", nargs=-1, required=True, metavar="LOG...", type=click.Path(path_type=Path))
_log = click.argument("log", metavar="LOG", type=click.Path(path_type=Path))
_json = click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")


def _out(what: str) -> Any:
    return click.option(
        "--out", type=click.Path(path_type=Path), metavar="DIR", help=f"Directory for {what}."
    )


@_verb(
    "fit", "Fit the law to a log.", "Fit the law: A, B, C_mid and R0 with intervals, rivals, figures, report."
)
@_logs
@_out("fit.json, figures and report [runs/scaling/NAME]")
@_json
@click.pass_obj
def fit(
    obj: dict[str, Any], logs: tuple[Path, ...], out: Path | None, json_output: bool, **options: Any
) -> int:
    """See `commands.scaling_fit`."""
    return _command("fit").main(logs, out, options, json_output=json_output, argv=obj[ARGV_KEY])


@_verb(
    "predict",
    "Reward at more compute, compute for a reward.",
    "Reward at some compute, compute and cost to reach a share of the ceiling.",
)
@_log
@click.option(
    "--at",
    multiple=True,
    type=float,
    metavar="C",
    help="Compute; may be given several times [2 and 4 times now].",
)
@click.option(
    "--reach", multiple=True, type=float, metavar="R", help="Reward to reach; may be given several times."
)
@_json
def predict(
    log: Path, at: tuple[float, ...], reach: tuple[float, ...], json_output: bool, **options: Any
) -> int:
    """See `commands.scaling_predict`."""
    return _command("predict").main(log, at, reach, options, json_output=json_output)


@_verb(
    "compare",
    "Who ends higher, and who is faster.",
    "Two or more recipes: who ends higher, who is faster, or how many points it takes to tell.",
)
@_logs
@_out("comparison.json, figures and report [runs/scaling/A-vs-B]")
@_json
@click.pass_obj
def compare(
    obj: dict[str, Any], logs: tuple[Path, ...], out: Path | None, json_output: bool, **options: Any
) -> int:
    """See `commands.scaling_compare`."""
    return _command("compare").main(logs, out, options, json_output=json_output, argv=obj[ARGV_KEY])


@_verb(
    "backtest",
    "Score forecasts from the beginnings of a log.",
    "Fit the beginning of a finished run and score the forecast on the rest.",
)
@_log
@click.option(
    "--shares",
    default="0.1,0.25,0.5",
    show_default=True,
    metavar="LIST",
    help="Beginnings, as shares of the compute.",
)
@_out("backtest.json, figures and report [runs/scaling/NAME-backtest]")
@_json
@click.pass_obj
def backtest(
    obj: dict[str, Any], log: Path, shares: str, out: Path | None, json_output: bool, **options: Any
) -> int:
    """See `commands.scaling_backtest`."""
    return _command("backtest").main(log, shares, out, options, json_output=json_output, argv=obj[ARGV_KEY])


@_verb("plan", "Where to stop, when to look again.", "Where to stop, and when to look again.")
@_log
@_json
def plan(log: Path, json_output: bool, **options: Any) -> int:
    """See `commands.scaling_plan`."""
    return _command("plan").main(log, options, json_output=json_output)


def _command(verb: str) -> Any:
    return importlib.import_module(f"postgrad.commands.scaling_{verb}")
