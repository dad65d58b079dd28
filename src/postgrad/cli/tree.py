"""Two kinds of click command: a group that suggests the nearest verb, and a command with dotted options."""

from __future__ import annotations

import click

from postgrad.cli.options import dotted_options
from postgrad.core.errors import nearest
from postgrad.core.recipes import shipped_recipes


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
    because that needs the config classes, whose import takes longer than a help text may."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write all options."""
        super().format_options(ctx, formatter)
        with formatter.section("Recipe options"):
            formatter.write_text(
                "--SECTION.KEY VALUE, such as --optimizer.lr 1e-4. --help-config lists them all."
            )
        names = sorted(shipped_recipes())
        if names:
            with formatter.section("Shipped recipes"):
                formatter.write_text(", ".join(names))

    def show_config(self, ctx: click.Context) -> str:
        """Every dotted option with its type, help and default, by section."""
        formatter = ctx.make_formatter()
        for section, rows in dotted_options().items():
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
