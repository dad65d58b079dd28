"""The tree of verbs, and what becomes of an error.

Exit codes: 0 done, 1 a bug (traceback), 2 a deliberate error or wrong words, 130 Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from postgrad._version import __version__
from postgrad.cli.influence import influence
from postgrad.cli.mara import mara
from postgrad.cli.memory import memory
from postgrad.cli.options import check_overrides, split_words
from postgrad.cli.playbook import playbook
from postgrad.cli.scaling import scaling
from postgrad.cli.thought import thought
from postgrad.cli.tree import (
    ARGV_KEY,
    DottedCommand,
    HintingGroup,
    dotted_settings,
    group_settings,
    help_config,
)
from postgrad.core.errors import PostgradError, is_out_of_memory
from postgrad.core.recipes import find_recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: words after the program's name; default: those of this process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        result = cli.main(
            words, prog_name="postgrad", standalone_mode=False, obj={ARGV_KEY: ["postgrad", *words]}
        )
        sys.stdout.flush()
    except PostgradError as error:
        if debug:
            traceback.print_exc()
        click.echo(f"Error: {error}", err=True)
        return 2
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        if debug:
            traceback.print_exc()
        click.echo("Interrupted.", err=True)
        return 130
    except (MemoryError, RuntimeError) as error:
        if debug or not is_out_of_memory(error):
            raise
        told = str(error).splitlines()[0] if str(error) else "the system gave no more"
        click.echo(
            f"Error: out of memory ({told}). Ask for less at a time; --help-config lists the sizes.", err=True
        )
        return 2
    except BrokenPipeError:
        # `postgrad cite | head` closes the pipe; nothing is wrong, and nothing more can be written to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return result if isinstance(result, int) else 0


def _command(name: str) -> Any:
    """The module `postgrad.commands.<name>`, imported only when its verb runs."""
    return importlib.import_module(f"postgrad.commands.{name}")


@click.group(cls=HintingGroup, context_settings=group_settings())
@click.version_option(__version__, prog_name="postgrad", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error. May stand anywhere.")
def cli(debug: bool) -> None:
    """Everything a language model learns after pre-training."""
    del debug  # taken out of the words by `main`


cli.add_command(influence)
cli.add_command(mara)
cli.add_command(memory)
cli.add_command(playbook)
cli.add_command(scaling)
cli.add_command(thought)


@cli.group(cls=HintingGroup, context_settings=group_settings())
def rl() -> None:
    """Reinforcement learning with verifiable rewards."""


_preset = click.option(
    "--preset", metavar="NAME", help="A recipe put on top of RECIPE, before your options: magistral, my.toml."
)
_TASK_HELP = "Short for data.tasks: a reasoning-gym data set. May be given several times."


@rl.command("train", cls=DottedCommand, context_settings=dotted_settings())
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[RECIPE] [--SECTION.KEY VALUE]...")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help=_TASK_HELP)
@_preset
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Directory of the run.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out from its last checkpoint.")
@click.option("--overwrite", is_flag=True, help="Throw away the run that is in --out.")
@click.option(
    "--from",
    "from_run",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Take the config of another run, with your changes.",
)
@click.option(
    "--dry-run", is_flag=True, help="Show the resolved config and what would be done; write nothing."
)
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Run on a Ray cluster: local, auto, HOST:PORT or ray://HOST:PORT. Also with --resume.",
)
@help_config
@click.pass_obj
def rl_train(
    obj: dict[str, Any],
    words: tuple[str, ...],
    tasks: tuple[str, ...],
    preset: str | None,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    from_run: Path | None,
    dry_run: bool,
    cluster: str | None,
) -> int:
    """Train a model on tasks that a program can verify.

    RECIPE is a .toml file, the config.json of a run, or the name of a shipped recipe. Every option of the
    recipe can also be given here, as in --optimizer.lr 1e-4.
    """
    _refuse_together(resume=resume, overwrite=overwrite, **{"from": from_run is not None and resume})
    recipe, overrides = _recipe_and_overrides(words, _flags(rl_train))
    _require_value("--out", out)
    _require_value("--from", from_run)
    _require_value("--preset", preset)
    return _command("rl_train").main(
        recipe=recipe,
        overrides=overrides,
        tasks=tasks,
        out=out,
        resume=resume,
        overwrite=overwrite,
        from_run=from_run,
        dry_run=dry_run,
        argv=obj[ARGV_KEY],
        cluster=cluster,
        preset=None if preset is None else find_recipe(preset),
    )


@rl.command("plan", cls=DottedCommand, context_settings=dotted_settings())
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[RECIPE] [--SECTION.KEY VALUE]...")
@_preset
@click.option("--gpus", type=click.IntRange(2), default=8, show_default=True, metavar="N", help="In all.")
@click.option(
    "--hardware", default="h100", show_default=True, metavar="NAME", help="a100, h100, h200 or b200."
)
@click.option(
    "--lengths", metavar="RUN|MEAN[,CV]", help="Completion lengths in tokens.  [a third of the limit, 1]"
)
@click.option("--prompt-tokens", type=click.IntRange(1), metavar="N", help="Of a prompt.  [512 or the limit]")
@click.option("--measure", is_flag=True, help="Measure this machine with the real model instead.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
@help_config
def rl_plan(words: tuple[str, ...], preset: str | None, **options: Any) -> int:
    """Predict memory, speed and waiting, before anything runs.

    Simulates RECIPE's schedule on GPUs that are only counted, for several splits into those that train and those that generate.
    """
    recipe, overrides = _recipe_and_overrides(words, _flags(rl_plan))
    _require_value("--preset", preset)
    return _command("rl_plan").main(
        recipe, overrides, None if preset is None else find_recipe(preset), **options
    )


@rl.command("ablate", cls=DottedCommand, context_settings=dotted_settings())
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[RECIPE] [--SECTION.KEY VALUE]...")
@_preset
@click.option("--task", "tasks", multiple=True, metavar="NAME", help=_TASK_HELP)
@click.option(
    "--mode",
    type=click.Choice(["leave-one-out", "forward"]),
    help="Take choices away one at a time, or add them as long as they help.  [leave-one-out]",
)
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Runs of every arm.  [5]")
@click.option("--axes", metavar="A,B", help="Only these.  [all that change the recipe]")
@click.option(
    "--axes-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML with axes of your own: tables [axes.NAME] of options.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes side by side.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory; runs are DIR/ARM/seed_N.  [runs/ablation]",
)
@click.option(
    "--resume", is_flag=True, help="Go on with the ablation in --out; finished runs are not repeated."
)
@click.option("--overwrite", is_flag=True, help="Throw away the ablation that is in --out.")
@click.option("--dry-run", is_flag=True, help="Show arms, their options and the cost; write nothing.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
@help_config
@click.pass_obj
def rl_ablate(
    obj: dict[str, Any],
    words: tuple[str, ...],
    preset: str | None,
    resume: bool,
    overwrite: bool,
    **options: Any,
) -> int:
    """Find out which choice of a recipe matters.

    Trains RECIPE and variants of it over the same seeds, and tells which differences are beyond noise.
    """
    _refuse_together(resume=resume, overwrite=overwrite)
    recipe, overrides = _recipe_and_overrides(words, _flags(rl_ablate))
    for flag in ("out", "axes", "axes_file"):
        _require_value(f"--{flag.replace('_', '-')}", options[flag])
    _require_value("--preset", preset)
    return _command("rl_ablate").main(
        recipe,
        None if preset is None else find_recipe(preset),
        overrides,
        resume=resume,
        overwrite=overwrite,
        argv=obj[ARGV_KEY],
        **options,
    )


@rl.command("eval", cls=DottedCommand, context_settings=dotted_settings())
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="MODEL [RECIPE] [--SECTION.KEY VALUE]...")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help=_TASK_HELP)
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
@help_config
@click.pass_obj
def rl_eval(obj: dict[str, Any], words: tuple[str, ...], tasks: tuple[str, ...], json_output: bool) -> int:
    """Measure the pass rate of a model on held-out prompts.

    MODEL is a directory or a hub name of a causal language model, or a run.
    """
    if not words or words[0].startswith("--"):
        raise click.UsageError("Say which model: postgrad rl eval MODEL. A directory, a hub name or a run.")
    recipe, overrides = _recipe_and_overrides(words[1:], _flags(rl_eval))
    return _command("rl_eval").main(
        model=words[0],
        recipe=recipe,
        overrides=overrides,
        tasks=tasks,
        json_output=json_output,
        argv=obj[ARGV_KEY],
    )


@cli.command()
@click.argument("root", type=click.Path(path_type=Path), default="runs")
@click.option("--json", "json_output", is_flag=True, help="Print a JSON list.")
def runs(root: Path, json_output: bool) -> int:
    """List the runs below ROOT (default: runs)."""
    return _command("runs").main(root, json_output=json_output)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--open", "open_browser", is_flag=True, help="Open it in the browser.")
def report(run: Path, open_browser: bool) -> int:
    """Write report.html of RUN: one page that needs no network."""
    return _command("report").main(run, open_browser=open_browser)


@cli.command()
def doctor() -> int:
    """Show devices, versions, extras and disk, and what is amiss."""
    return _command("doctor").main()


@cli.command()
def cite() -> int:
    """Print BibTeX of postgrad and of the papers behind it."""
    return _command("cite").main()


def _flags(command: click.Command) -> list[str]:
    return [flag for param in command.params for flag in param.opts if flag.startswith("--")]


def _recipe_and_overrides(words: Sequence[str], flags: Sequence[str]) -> tuple[Path | None, dict[str, Any]]:
    name, rest = split_words(words)
    overrides = check_overrides(rest, flags, "postgrad.rl.config:RLConfig")
    return (None if name is None else find_recipe(name)), overrides


def _refuse_together(**given: bool) -> None:
    names = [f"--{name}" for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise click.UsageError(f"{' and '.join(names)} exclude each other. Give one of them.")


def _require_value(flag: str, value: Path | str | None) -> None:
    if value is not None and str(value).startswith("--"):
        raise click.UsageError(f"{flag} needs a value; the next word is {str(value)!r}.")
