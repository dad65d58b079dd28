"""`postgrad memory …`: the verbs of the room."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from postgrad.cli.tree import ARGV_KEY, ConfigCommand, HintingGroup, group_settings

_PATH = click.Path(path_type=Path)


@click.group("memory", cls=HintingGroup, context_settings=group_settings())
def memory() -> None:
    """Learning new facts without forgetting, as patches that roll back."""


_json = click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
_dry_run = click.option(
    "--dry-run",
    is_flag=True,
    help="Check the input and say what it will take, without the weights; write nothing.",
)
_ranks = click.option("--ranks", type=int, metavar="W", help="With --dry-run: values sharded over W ranks.")
_plan_json = click.option(
    "--json", "json_output", is_flag=True, help="With --dry-run: print one JSON object."
)
_model = click.argument("model", metavar="MODEL", type=_PATH)
_ask = click.option(
    "--ask",
    type=_PATH,
    metavar="QUESTIONS",
    help="Further questions about what is taught, such as documents' ones.",
)
_overwrite = click.option("--overwrite", is_flag=True, help="Throw away the run that is in --out.")
_resume = click.option("--resume", is_flag=True, help="Go on with the run in --out.")
_names = click.argument("names", nargs=-1, metavar="[PATCH]...")

_PLAN = ("dry_run", "ranks", "json_output")


def _background(required: bool, what: str) -> Any:
    return click.option("--background", type=_PATH, metavar="TEXTS", required=required, help=what)


def _verb(name: str, config: str, summary: str, text: str) -> Any:
    return memory.command(name, cls=ConfigCommand, config=config, short_help=summary, help=text)


@memory.command("attach", short_help="Give a model memory layers.")
@click.argument("model", metavar="MODEL")
@click.option("--out", type=_PATH, metavar="DIR", required=True, help="Directory of the model with memory.")
@click.option("--layers", required=True, metavar="N[,N]...", help="Which blocks get one, counted from 0.")
@click.option(
    "--mode", type=click.Choice(["additive", "replace"]), help="Beside the MLP, or in its place. [additive]"
)
@click.option("--num-slots", type=int, help="Rows of the value table. [1048576]")
@click.option("--num-heads", type=int, help="Look-ups per token. [4]")
@click.option("--top-k", type=int, help="Slots that one look-up reads. [32]")
@click.option("--key-dim", type=int, help="Width of a key. [256]")
@click.option("--value-dim", type=int, help="Width of a value; 0 = that of the model. [0]")
@click.option(
    "--index",
    type=click.Choice(["product", "flat", "pq"]),
    help="How the best keys are found; pq is approximate. [product]",
)
@click.option("--shared-values", is_flag=True, default=None, help="One table for all layers.")
@click.option("--scale", type=float, help="Of an additive layer's output at first. [0.01]")
@_background(False, "Texts to train the memory on (with --steps), and to compare the loss on.")
@click.option("--steps", type=int, help="Updates of training; 0 = none. [0]")
@click.option("--batch-size", type=int, help="Texts in one update. [32]")
@click.option("--lr", type=float, help="Of all weights but the values. [0.0001]")
@click.option("--value-lr", type=float, help="Of the values. [0.001]")
@click.option("--train", type=click.Choice(["memory", "all"]), help="Which weights change. [memory]")
@click.option("--seed", type=int, help="Of the initial weights and of the order of texts. [0]")
@_device
@_dry_run
@_ranks
@_plan_json
def attach(
    model: str,
    out: Path,
    layers: str,
    background: Path | None,
    device: str,
    **options: Any,
) -> int:
    """A copy of MODEL with memory layers, to be taught facts. Without --steps it says what MODEL says.

    With --dry-run a directory with a config.json is enough."""
    plan = {name: options.pop(name) for name in _PLAN}
    given = {key: value for key, value in options.items() if value is not None}
    return _command("attach").main(model, out, background, layers, device, given, **plan)


@_verb(
    "profile",
    "postgrad.memory.config:ProfileConfig",
    "Note which slots ordinary text uses.",
    """Note which slots ordinary text uses, so that learning leaves them alone; kept in MODEL.

TEXTS is a .jsonl with a column text, a text file, or a directory of text files.""",
)
@_model
@_background(True, "Ordinary text.")
@_device
def profile(model: Path, background: Path, device: str, **options: Any) -> int:
    """See `commands.memory_profile`."""
    return _command("profile").main(model, background, device, options)


@_verb(
    "learn",
    "postgrad.memory.config:LearnConfig",
    "Teach facts or documents.",
    """Teach MODEL facts or documents, one patch per edit. A stream that was stopped goes on where it was.

FACTS is a .jsonl of {"text": …, "paraphrases": […], "question": …, "answer": …} rows (text is enough), a text file, or a
directory of text files.""",
)
@_model
@click.argument("facts", metavar="FACTS", type=_PATH)
@click.option(
    "--keep", type=_PATH, metavar="FACTS", help="Facts known before, whose questions are asked again."
)
@_ask
@_background(False, "Texts whose loss is watched; replay and ewc learn from them.")
@click.option("--out", type=_PATH, metavar="DIR", help="Directory of the run [runs/memory/MODEL-METHOD].")
@_overwrite
@_resume
@_device
@_dry_run
@_ranks
@_plan_json
@click.pass_obj
def learn(obj: dict[str, Any], model: Path, facts: Path, **options: Any) -> int:
    """See `commands.memory_learn`."""
    names = ("keep", "ask", "background", "out", "overwrite", "resume", "device")
    own = [options.pop(name) for name in names]
    plan = {name: options.pop(name) for name in _PLAN}
    return _command("learn").main(model, facts, *own, options, obj[ARGV_KEY], **plan)


@_verb(
    "compare",
    "postgrad.memory.config:CompareConfig",
    "Teach the same by every method.",
    """Teach the same stream by sparse memory finetuning and by what one would do otherwise, each over five learning rates: what
was learned against what was kept, and at what cost. MODEL stays as it is.""",
)
@_model
@click.argument("facts", metavar="FACTS", type=_PATH)
@click.option(
    "--keep",
    type=_PATH,
    metavar="FACTS",
    required=True,
    help="Facts known before, whose questions are asked.",
)
@_ask
@_background(False, "Texts that replay and ewc learn from.")
@click.option("--out", type=_PATH, metavar="DIR", help="Directory of the run [runs/memory/MODEL-compare].")
@_overwrite
@_resume
@_device
@click.pass_obj
def compare(obj: dict[str, Any], model: Path, facts: Path, **options: Any) -> int:
    """See `commands.memory_compare`."""
    names = ("keep", "ask", "background", "out", "overwrite", "resume", "device")
    own = [options.pop(name) for name in names]
    return _command("compare").main(model, facts, *own, options, obj[ARGV_KEY])


@memory.command("eval", short_help="Ask a model questions.")
@click.argument("model", metavar="MODEL")
@click.argument("facts", metavar="FACTS", type=_PATH)
@click.option("--show", "limit", type=int, default=5, show_default=True, help="Answers to print.")
@_device
@_json
def evaluate(model: str, facts: Path, limit: int, device: str, json_output: bool) -> int:
    """Ask MODEL the questions of FACTS: share answered exactly, and F1 of words."""
    return _command("eval").main(model, facts, device, json_output=json_output, limit=limit)


@memory.command("list", short_help="What a model has learned.")
@_model
@_json
def show(model: Path, json_output: bool) -> int:
    """The patches that are in force in MODEL, oldest first."""
    return _command("patches").show(model, json_output=json_output)


@memory.command("diff", short_help="What a patch changed.")
@_model
@click.argument("first", metavar="PATCH")
@click.argument("second", required=False, metavar="[OTHER]")
def diff(model: Path, first: str, second: str | None) -> int:
    """Which slots a patch moved and how far; with OTHER, how many rows both change. A patch is named by number or id."""
    return _command("patches").diff(model, first, second)


@memory.command("explain", short_help="Which tokens read what a patch changed.")
@_model
@click.argument("patch", metavar="PATCH")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@_device
@_json
def explain(model: Path, patch: str, texts: tuple[str, ...], device: str, json_output: bool) -> int:
    """How much of what each token of TEXT reads are rows that PATCH changed; without TEXT, of what was learned."""
    return _command("patches").explain(model, patch, texts, device, json_output=json_output)


@memory.command("rollback", short_help="Take back what was learned.")
@_model
@_names
@click.option("--to", metavar="PATCH", help="Everything learned after this patch.")
@click.option("--all", "everything", is_flag=True, help="Everything.")
def rollback(model: Path, names: tuple[str, ...], to: str | None, everything: bool) -> int:
    """Take patches back, exactly. They are kept in MODEL/memory/rolled_back."""
    return _command("patches").rollback(model, names, to, everything)


@memory.command("export", short_help="Copy patches out of a model.")
@_model
@_names
@click.option("--out", type=_PATH, metavar="DIR", required=True, help="Directory for the copies.")
def export(model: Path, names: tuple[str, ...], out: Path) -> int:
    """Copy patches (all without names) into a directory, to be applied to a copy of the model elsewhere."""
    return _command("patches").export(model, names, out)


@memory.command("apply", short_help="Put patches from elsewhere in force.")
@_model
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=_PATH)
@_device
def apply(model: Path, files: tuple[Path, ...], device: str) -> int:
    """Put exported patches (files, or directories of them) in force, all or none of them."""
    return _command("patches").apply(model, files, device)


def _command(verb: str) -> Any:
    return importlib.import_module(f"postgrad.commands.memory_{verb}")
