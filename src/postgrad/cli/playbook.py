"""`postgrad playbook …`: the verbs of the room."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from postgrad.cli.options import check_overrides, split_words
from postgrad.cli.tree import ARGV_KEY, DottedCommand, HintingGroup, group_settings
from postgrad.core.recipes import find_recipe

_PATH = click.Path(path_type=Path)
_CONFIG = "postgrad.playbook.config:LearnConfig"


@click.group("playbook", cls=HintingGroup, context_settings=group_settings())
def playbook() -> None:
    """Agents that learn from experience by growing their own context."""


def _show_config(ctx: click.Context, _param: click.Parameter, asked: bool) -> None:
    if asked and isinstance(ctx.command, DottedCommand):
        click.echo(ctx.command.show_config(ctx))
        ctx.exit()


_json = click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
_help_config = click.option(
    "--help-config",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_config,
    help="List all options of a recipe and exit.",
)
_task = click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME",
    help="Short for data.tasks: a reasoning-gym data set. May be given several times.",
)


def _dotted(name: str) -> Any:
    settings = {**group_settings(), "ignore_unknown_options": True, "allow_interspersed_args": True}
    return playbook.command(
        name, cls=DottedCommand, config=_CONFIG, example="--chat.model NAME", context_settings=settings
    )


@_dotted("learn")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[RECIPE] [--SECTION.KEY VALUE]...")
@_task
@click.option(
    "--traces", type=_PATH, metavar="FILE|DIR", help="Learn from what agents did elsewhere instead."
)
@click.option(
    "--from", "source", type=_PATH, metavar="PLAYBOOK", help="Begin with a run's playbook, a log or a text."
)
@click.option("--out", type=_PATH, metavar="DIR", help="Directory of the run [runs/playbook].")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--overwrite", is_flag=True, help="Throw away the run that is in --out.")
@click.option("--dry-run", is_flag=True, help="Say what it will take and cost; write nothing, ask nobody.")
@_help_config
@click.pass_obj
def learn(obj: dict[str, Any], words: tuple[str, ...], **options: Any) -> int:
    """Grow a playbook from tasks, or from traces.

    The language model is behind any server that speaks OpenAI's chat completions (--chat.base_url, --chat.model), or a local
    one (--chat.path); --generator, --reflector and --curator change it for one role. RECIPE is a .toml file.
    """
    recipe, overrides = _recipe_and_overrides(words, learn)
    return _command("learn").main(recipe, overrides, argv=obj[ARGV_KEY], **options)


@_dotted("eval")
@click.argument("book", metavar="PLAYBOOK", type=_PATH)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[RECIPE] [--SECTION.KEY VALUE]...")
@_task
@_json
@_help_config
def evaluate(book: Path, words: tuple[str, ...], tasks: tuple[str, ...], json_output: bool) -> int:
    """Answer held-out prompts with PLAYBOOK and without it.

    PLAYBOOK is a run, a log (.jsonl) or a text in the published format. A run brings its own options; a RECIPE or options change
    them.
    """
    recipe, overrides = _recipe_and_overrides(words, evaluate)
    return _command("eval").main(book, recipe, overrides, tasks, json_output=json_output)


def _recipe_and_overrides(words: Sequence[str], command: click.Command) -> tuple[Path | None, dict[str, Any]]:
    name, rest = split_words(words)
    flags = [flag for param in command.params for flag in param.opts if flag.startswith("--")]
    return None if name is None else find_recipe(name), check_overrides(rest, flags, _CONFIG)


def _command(name: str) -> Any:
    return importlib.import_module(f"postgrad.commands.playbook_{name}")
