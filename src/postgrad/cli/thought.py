"""`postgrad thought …`: the verbs of the room."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from postgrad.cli.options import check_overrides, split_words
from postgrad.cli.tree import (
    ARGV_KEY,
    DottedCommand,
    HintingGroup,
    dotted_settings,
    group_settings,
    help_config,
)
from postgrad.core.recipes import find_recipe

_PATH = click.Path(path_type=Path)
_CONFIG = "postgrad.thought.config:TeamConfig"


@click.group("thought", cls=HintingGroup, context_settings=group_settings())
def thought() -> None:
    """Agents that exchange latent thoughts."""


_json = click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
_run = click.argument("run", metavar="RUN", type=_PATH)


def _cases(what: str) -> Any:
    return click.option("--cases", type=_PATH, metavar="FILE", help=what)


@thought.command(
    "fit",
    cls=DottedCommand,
    config=_CONFIG,
    example="--adapter.num-vectors 4",
    context_settings=dotted_settings(),
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[TEAM.toml] [--SECTION.KEY VALUE]...")
@click.option("--out", type=_PATH, metavar="DIR", help="Directory of the run [runs/thought].")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--overwrite", is_flag=True, help="Throw away the run that is in --out.")
@click.option("--dry-run", is_flag=True, help="Check cases and models, say what it takes; write nothing.")
@click.option("--paper", is_flag=True, help="All of the paper's choices, except for options that are given.")
@help_config
@click.pass_obj
def fit(obj: dict[str, Any], words: tuple[str, ...], **options: Any) -> int:
    """Let agents learn to tell each other what they think.

    TEAM.toml names agents (at least two [[agents]] with a model) and cases to learn from. Afterwards held-out cases are answered
    by thoughts and by all controls.
    """
    name, rest = split_words(words)
    flags = [flag for param in fit.params for flag in param.opts if flag.startswith("--")]
    overrides = check_overrides(rest, flags, _CONFIG)
    recipe = None if name is None else find_recipe(name, "thought")
    return _command("fit").main(recipe, overrides, argv=obj[ARGV_KEY], **options)


@thought.command("eval", short_help="Answer cases by thoughts and by all controls.")
@_run
@_cases("JSONL. [the run's held-out cases]")
@click.option("--ways", metavar="A,B", help="Such as thoughts,alone,shuffled. [all]")
@click.option("--bits", type=click.IntRange(1, 31), metavar="N", help="Of each thought that is told.")
@_json
def evaluate(run: Path, **options: Any) -> int:
    """Answer cases with the team of RUN by thoughts, and in the other ways that thoughts must beat."""
    return _command("eval").main(run, **options)


@thought.command("run", short_help="Ask a team.")
@_run
@click.option("--prompt", metavar="TEXT", help="What all agents are asked.")
@click.option("--view", "views", multiple=True, metavar="TEXT", help="What one agent sees; once for each.")
@click.option("--question", metavar="TEXT", help="What agents with views answer. [their view]")
@_cases("JSONL, in place of --prompt and --view.")
@_json
def run_team(run: Path, **options: Any) -> int:
    """Let the agents of RUN answer, by thoughts and alone."""
    return _command("run").main(run, **options)


@thought.command("inspect", short_help="Who holds which thoughts, as one page.")
@_run
@_cases("JSONL. [the run's held-out cases]")
@click.option(
    "--ablate", multiple=True, type=int, metavar="J", help="Thoughts to take away, one at a time. [eight]"
)
@click.option(
    "--most", type=click.IntRange(1), default=256, show_default=True, metavar="N", help="Most cases."
)
@click.option("--out", type=_PATH, metavar="DIR", help="[RUN/inspect]")
@_json
def inspect(run: Path, **options: Any) -> int:
    """Write who holds which thoughts, how sure that is, what thoughts are about and what happens without them."""
    return _command("inspect").main(run, **options)


def _command(name: str) -> Any:
    return importlib.import_module(f"postgrad.commands.thought_{name}")
