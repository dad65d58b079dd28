"""`postgrad playbook …`: the verbs of the room."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
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
_CONFIG = "postgrad.playbook.config:LearnConfig"


@click.group("playbook", cls=HintingGroup, context_settings=group_settings())
def playbook() -> None:
    """Agents that learn from experience by growing their own context."""


_json = click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
_task = click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME",
    help="Short for data.tasks: a reasoning-gym data set. May be given several times.",
)


def _dotted(name: str) -> Any:
    return playbook.command(
        name,
        cls=DottedCommand,
        config=_CONFIG,
        example="--chat.model NAME",
        context_settings=dotted_settings(),
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
@help_config
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
@help_config
def evaluate(book: Path, words: tuple[str, ...], tasks: tuple[str, ...], json_output: bool) -> int:
    """Answer held-out prompts with PLAYBOOK and without it.

    PLAYBOOK is a run, a log (.jsonl) or a text in the published format. A run brings its own options; a RECIPE or options change
    them.
    """
    recipe, overrides = _recipe_and_overrides(words, evaluate)
    return _command("eval").main(book, recipe, overrides, tasks, json_output=json_output)


_book = click.argument("book", metavar="PLAYBOOK", type=_PATH)
_log = click.argument("log", metavar="LOG", type=_PATH)
_ids = click.argument("ids", nargs=-1, metavar="[ID]...")
_at = click.option(
    "--at", metavar="VERSION", help="Number of a version (-1: one before the last) or a mark, such as best."
)
_all = click.option("--all", "everything", is_flag=True, help="All that are in quarantine.")


@playbook.command("show", short_help="Print a playbook.")
@_book
@_at
@click.option("--section", metavar="NAME", help="Only this one.")
@click.option("--quarantined", is_flag=True, help="Only bullets in quarantine.")
@_json
def show(book: Path, **options: Any) -> int:
    """Print PLAYBOOK: a run, a log (.jsonl) or a text in the published format."""
    return _command("show").main(book, **options)


@playbook.command("diff", short_help="What is different between two versions.")
@click.argument("first", metavar="PLAYBOOK[@VERSION]")
@click.argument("second", metavar="[PLAYBOOK]@VERSION")
@_json
def diff(first: str, second: str, json_output: bool) -> int:
    """What the second has that the first has not, and the reverse: runs/a@best runs/b, or runs/a@3 @7."""
    return _command("show").diff(first, second, json_output=json_output)


@playbook.command("rollback", short_help="Go back to an earlier version.")
@_log
@click.argument("version", metavar="VERSION")
def rollback(log: Path, version: str) -> int:
    """Make LOG's playbook again what it was. Nothing is lost: this is one more delta, and can be rolled back too."""
    return _command("show").rollback(log, version)


@playbook.command("approve", short_help="Let bullets out of quarantine.")
@_log
@_ids
@_all
def approve(log: Path, ids: tuple[str, ...], everything: bool) -> int:
    """Let bullets of LOG out of quarantine, so that they are shown to the Generator."""
    return _command("show").approve(log, ids, everything=everything)


@playbook.command("reject", short_help="Take bullets out.")
@_log
@_ids
@_all
@click.option("--reason", default="", metavar="TEXT", help="Kept in the log.")
def reject(log: Path, ids: tuple[str, ...], everything: bool, reason: str) -> int:
    """Take bullets out of LOG's playbook."""
    return _command("show").reject(log, ids, everything=everything, reason=reason)


@playbook.command("import", short_help="Take in a text in the published format.")
@_log
@click.argument("text", metavar="TEXT", type=_PATH)
@click.option("--quarantine", is_flag=True, help="Not shown to the Generator before they are approved.")
def import_text(log: Path, text: Path, quarantine: bool) -> int:
    """Add the bullets of TEXT to LOG (made if it is not there); copies of what it has are left out."""
    return _command("show").import_text(log, text, quarantine=quarantine)


@playbook.command("merge", short_help="Take in another playbook.")
@_log
@click.argument("other", metavar="PLAYBOOK", type=_PATH)
@click.option("--trust", is_flag=True, help="Show its bullets at once, not after `approve`.")
@click.option(
    "--counters",
    is_flag=True,
    help="Add its counters to those of copies: only if they counted other samples.",
)
def merge(log: Path, other: Path, trust: bool, counters: bool) -> int:
    """Take the bullets of PLAYBOOK (a run, a log or a text) into LOG; copies stay out."""
    return _command("show").merge(log, other, trust=trust, counters=counters)


@playbook.command("export", short_help="Write a playbook as instructions for other agents.")
@_book
@click.option(
    "--as",
    "kind",
    type=click.Choice(["agents", "claude", "skill", "text", "json"]),
    default="agents",
    show_default=True,
    help="AGENTS.md, CLAUDE.md, SKILL.md, the published format, or JSON.",
)
@click.option("--out", type=_PATH, metavar="FILE", help="- prints it. [the kind's name, here]")
@_at
@click.option("--name", metavar="NAME", help="Of a skill. [the playbook's]")
@click.option("--description", default="", metavar="TEXT", help="Of a skill.")
@click.option("--quarantined", is_flag=True, help="Write bullets in quarantine too.")
@click.option("--overwrite", is_flag=True, help="Replace a text or JSON that is there.")
@_json
def export(book: Path, kind: str, out: Path | None, **options: Any) -> int:
    """Write PLAYBOOK as a file for agents, best bullets first, within the limits of its kind.

    In an AGENTS.md or CLAUDE.md that is there, only what stands between two marks is replaced.
    """
    return _command("export").main(book, kind, out, **options)


@playbook.command("serve", short_help="Serve a playbook to agents over MCP.")
@_log
@click.option("--trust", is_flag=True, help="What agents add is shown at once, not after `approve`.")
@click.option(
    "--budget-tokens", type=int, default=8000, show_default=True, help="Of the resource and the prompt."
)
@click.option("--http", type=int, metavar="PORT", help="On 127.0.0.1, instead of standard input and output.")
def serve(log: Path, trust: bool, budget_tokens: int, http: int | None) -> int:
    """Serve LOG over the Model Context Protocol (extra `mcp`): agents search it, add to it and tag its bullets."""
    return _command("serve").main(log, trust=trust, budget_tokens=budget_tokens, http=http)


@playbook.command("timeline", short_help="Draw a log as one page.")
@_log
@click.option("--out", type=_PATH, metavar="FILE", help="[NAME.html beside the log]")
def timeline(log: Path, out: Path | None) -> int:
    """Write LOG as one HTML file: growth, any version, and every delta with where it came from."""
    return _command("timeline").main(log, out)


def _recipe_and_overrides(words: Sequence[str], command: click.Command) -> tuple[Path | None, dict[str, Any]]:
    name, rest = split_words(words)
    flags = [flag for param in command.params for flag in param.opts if flag.startswith("--")]
    return None if name is None else find_recipe(name, "playbook"), check_overrides(rest, flags, _CONFIG)


def _command(name: str) -> Any:
    return importlib.import_module(f"postgrad.commands.playbook_{name}")
