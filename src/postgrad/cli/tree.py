"""Three kinds of click command: a group that suggests the nearest verb, a command with the dotted options of a recipe,
and one with the options of a flat config."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import click

from postgrad.cli.options import describe_default, describe_type, dotted_options
from postgrad.core.errors import nearest
from postgrad.core.recipes import shipped_recipes

ARGV_KEY = "postgrad.argv"


def group_settings() -> dict[str, Any]:
    """Of every click group."""
    return {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def dotted_settings() -> dict[str, Any]:
    """Of every command with dotted options."""
    return {**group_settings(), "ignore_unknown_options": True, "allow_interspersed_args": True}


class HintingGroup(click.Group):
    """Answers an unknown verb with the nearest one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but with a hint."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            hint = nearest(args[0], self.list_commands(ctx))
            raise click.UsageError(f"No command {args[0]!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)


class DottedCommand(click.Command):
    """Takes the dotted options of a config beside its own. They are listed by --help-config, not by --help,
    because that needs the config classes, whose import takes longer than a help text may.

    Args:
        config: whose options, as "module:Class".
        example: one of them, for the help.
    """

    def __init__(
        self,
        *args: Any,
        config: str = "postgrad.rl.config:RLConfig",
        example: str = "--optimizer.lr 1e-4",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.config, self.example = config, example

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write all options."""
        super().format_options(ctx, formatter)
        with formatter.section("Recipe options"):
            formatter.write_text(
                f"--SECTION.KEY VALUE, such as {self.example}. --help-config lists them all."
            )
        names = sorted(shipped_recipes(self.config.split(".")[1]))
        if names:
            with formatter.section("Shipped recipes"):
                formatter.write_text(", ".join(names))

    def show_config(self, ctx: click.Context) -> str:
        """Every dotted option with its type, help and default, by section."""
        formatter = ctx.make_formatter()
        for section, rows in dotted_options(self.config).items():
            with formatter.section(section):
                formatter.write_dl(rows, col_max=34)
        return formatter.getvalue().strip()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Everything after a bare `--` is refused: there is nothing that it could mean."""
        if "--" in args:
            raise click.UsageError(
                "A bare '--' has no meaning here. Options look like --optimizer.lr 1e-4.", ctx
            )
        return super().parse_args(ctx, args)


def _show_config(ctx: click.Context, _param: click.Parameter, asked: bool) -> None:
    if asked and isinstance(ctx.command, DottedCommand):
        click.echo(ctx.command.show_config(ctx))
        ctx.exit()


help_config = click.option(
    "--help-config",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_config,
    help="List all options of a recipe and exit.",
)


class ConfigCommand(click.Command):
    """Has one option for each field of a flat config, beside its own. Options that are given reach the callback by name,
    as TOML values; the config is imported only when the command is used or its help is asked for.

    Args:
        config: `module:class`.
    """

    def __init__(self, *args: Any, config: str, **kwargs: Any) -> None:
        settings = {**group_settings(), "token_normalize_func": lambda word: word.replace("_", "-")}
        super().__init__(*args, context_settings=settings, **kwargs)
        self._config, self._loaded = config, list[click.Parameter]()

    def _fields(self) -> dict[str, Any]:
        module, _, name = self._config.partition(":")
        return getattr(import_module(module), name).model_fields

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own, then the config's, then --help."""
        if not self._loaded:
            self._loaded = [_config_option(key, info) for key, info in self._fields().items()]
        own = super().get_params(ctx)
        return [*self.params, *self._loaded, *own[len(self.params) :]]

    def invoke(self, ctx: click.Context) -> Any:
        """Leaves out what was not given, so that the config's defaults hold."""
        fields = self._fields()
        given: dict[str, Any] = {}
        for key, value in ctx.params.items():
            if isinstance(value, (str, Path)) and str(value).startswith("--"):
                raise click.UsageError(
                    f"--{key.replace('_', '-')} needs a value; the next word is {str(value)!r}.", ctx
                )
            if key not in fields:
                given[key] = value
            elif value is not None:
                given[key] = _config_value(value, fields[key])
        ctx.params = given
        return super().invoke(ctx)


def _config_value(value: Any, info: Any) -> Any:
    """A word as the value of a field: text as it is, `none` where that is the default, else a TOML value."""
    from postgrad.core.config import parse_value  # pydantic: no help text needs it

    if not isinstance(value, str) or info.annotation is str:
        return value
    return None if value == "none" and info.default is None else parse_value(value)


def _config_option(name: str, info: Any) -> click.Option:
    text = " ".join((info.description or "").split())
    default = info.get_default(call_default_factory=True)
    shown = f"{default:.4g}" if isinstance(default, float) else describe_default(default)
    flag = info.annotation is bool
    word = name.replace("_", "-")
    return click.Option(
        [f"--{word}/--no-{word}" if default is True else f"--{word}", name],
        help=f"{text}  [{shown}]",
        metavar=None if flag else describe_type(info.annotation),
        is_flag=flag,
        default=None,
    )
