"""What a run shows while it runs: one line per step, and on a terminal a progress bar with the time left."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

HeadlineSpec = tuple[str, str, str]
"""(metric key, label on the console, format spec)."""


class StepConsole:
    """Writes to stderr; with `quiet`, nothing. The bar needs a terminal and `total_steps`."""

    def __init__(
        self, headline: Sequence[HeadlineSpec] = (), total_steps: int | None = None, *, quiet: bool = False
    ) -> None:
        self._headline = tuple(headline)
        self._total = total_steps
        self._quiet = quiet
        self._console: Console | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def step(self, step: int, row: Mapping[str, Any]) -> None:
        """Show one row of metrics."""
        if self._quiet:
            return
        self._start(step)
        self.note(format_step(step, row, self._headline, self._total))
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step)

    def note(self, text: str) -> None:
        """Show one line of text."""
        if self._quiet:
            return
        self._start(0)
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _start(self, step: int) -> None:
        if self._console is not None:
            return
        from rich.console import Console

        self._console = Console(file=sys.stderr)
        if self._total is None or not self._console.is_terminal:
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            "left",
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task("steps", total=self._total, completed=step)
        self._progress.start()


def format_step(
    step: int, row: Mapping[str, Any], headline: Sequence[HeadlineSpec], total_steps: int | None = None
) -> str:
    """One readable line; metrics that are missing in `row` are left out.

    >>> format_step(3, {"rollout/pass_rate": 0.4167}, [("rollout/pass_rate", "pass", ".1%")], 120)
    'step   3/120  pass 41.7%'
    """
    specs = list(headline)
    if not specs or not any(key in row for key, _, _ in specs):
        numbers = [key for key, value in row.items() if key != "step" and isinstance(value, (int, float))]
        specs = [(key, key, ".4g") for key in numbers[:4]]
    parts = [f"step {step:>{len(str(total_steps or step))}}" + (f"/{total_steps}" if total_steps else "")]
    for key, label, spec in specs:
        if key in row:
            value = row[key]
            shown = (
                format(value, spec)
                if isinstance(value, (int, float))
                else ("non-finite" if value is None else value)
            )
            parts.append(f"{label} {shown}")
    if row.get("nonfinite/count"):
        parts.append(f"({row['nonfinite/count']} non-finite)")
    return "  ".join(parts)


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table on stdout, columns aligned, the header underlined.

    >>> print_rows(("", "value"), [("A", "0.61"), ("B", "2")])
    <BLANKLINE>
       value
    -  -----
    A  0.61
    B  2
    """
    cells = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    print()
    print("\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]]))
