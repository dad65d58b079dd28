"""`postgrad runs`: a table of the runs below a directory."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from postgrad.core.errors import RunError
from postgrad.core.run import RunSummary, list_runs

STATUS_STYLES = {
    "finished": "green",
    "running": "cyan",
    "interrupted": "yellow",
    "failed": "red",
    "damaged": "red",
}


def main(root: Path = Path("runs"), *, json_output: bool = False) -> int:
    """Print the table.

    Args:
        root: directory searched, three levels deep; a run itself is fine too.
        json_output: print a JSON list instead.

    Returns:
        0; also when there are no runs.

    Raises:
        RunError: `root` is no directory.
    """
    if not root.exists() and root == Path("runs"):
        raise RunError(
            "There is no directory 'runs' here. Name the directory that holds your runs: postgrad runs DIR."
        )
    summaries = list_runs(root)
    if json_output:
        rows = [{**dataclasses.asdict(summary), "path": str(summary.path)} for summary in summaries]
        print(json.dumps(rows, indent=2))
    elif summaries:
        _print_table(root, summaries)
    else:
        print(f"No runs below {root}.", file=sys.stderr)
    return 0


def _print_table(root: Path, summaries: list[RunSummary]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    now = datetime.now(UTC)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("run", "kind", "status"):
        table.add_column(title, overflow="fold")
    for title in ("step", "held-out pass rate", "age", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    for summary in summaries:
        name = str(summary.path.relative_to(root)) if summary.path != root else str(root)
        table.add_row(
            Text(name),
            Text(summary.kind or "–"),
            Text(summary.status, style=STATUS_STYLES.get(summary.status, "")),
            "–" if summary.last_step is None else str(summary.last_step),
            describe_rate(summary),
            describe_age(summary.started, now),
            describe_size(summary.size_bytes),
        )
    console = Console()
    if not console.is_terminal:
        # In a pipe nothing may be folded: one run, one line.
        console = Console(width=10_000)
    console.print(table)


def describe_rate(summary: RunSummary) -> str:
    """The last held-out pass rate with its interval.

    >>> describe_rate(RunSummary(Path("r"), "rl.train", "finished", 1, 0.71, 0.675, 0.745))
    '71.0 % (67.5–74.5)'
    """
    if summary.pass_rate is None:
        return "–"
    text = f"{100 * summary.pass_rate:.1f} %"
    if summary.pass_rate_low is None or summary.pass_rate_high is None:
        return text
    return f"{text} ({100 * summary.pass_rate_low:.1f}–{100 * summary.pass_rate_high:.1f})"


def describe_age(started: str | None, now: datetime) -> str:
    """Time since a start, in one unit.

    >>> describe_age("2026-01-01T00:00:00Z", datetime(2026, 1, 1, 5, 30, tzinfo=UTC))
    '5 h'
    """
    try:
        seconds = (now - datetime.fromisoformat(started or "")).total_seconds()
    except (ValueError, TypeError):
        return "–"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def describe_size(size_bytes: int) -> str:
    """Bytes for reading, in decimal units.

    >>> describe_size(532), describe_size(1_240_000_000)
    ('532 B', '1.2 GB')
    """
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
