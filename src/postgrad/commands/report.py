"""`postgrad report RUN`: write report.html."""

from __future__ import annotations

import sys
import webbrowser
from importlib import import_module
from pathlib import Path

from postgrad.core.errors import MissingExtraError
from postgrad.core.figures import require_matplotlib
from postgrad.core.report import write_report
from postgrad.core.run import Run

_WRITERS = {
    "rl.train": "rl_report",
    "rl.ablate": "rl_ablate",
    "scaling.fit": "scaling_fit",
    "scaling.compare": "scaling_compare",
    "scaling.backtest": "scaling_backtest",
    "mara.explain": "mara_explain",
    "mara.measure": "mara_measure",
    "influence.run": "influence_show",
    "influence.validate": "influence_validate",
    "influence.prune": "influence_prune",
    "influence.mislabeled": "influence_mislabeled",
    "memory.learn": "memory_learn",
    "memory.compare": "memory_compare",
    "playbook.learn": "playbook_learn",
    "thought.fit": "thought_fit",
    "thought.inspect": "thought_inspect",
}
"""Kind of run → module of this package whose `rewrite_report` knows more than the metrics say."""


def main(path: Path, *, open_browser: bool = False) -> int:
    """Write the report of the run in `path` and print where it is.

    Args:
        path: directory of the run.
        open_browser: show it.

    Returns:
        0.

    Raises:
        RunError: no run there, a damaged one, or a directory that cannot be written.
    """
    run = Run.open(path)
    writer = _WRITERS.get(str(run.info.get("kind")))
    page = import_module(f"postgrad.commands.{writer}").rewrite_report(run) if writer else write_report(run)
    try:
        require_matplotlib()
    except MissingExtraError as error:
        print(f"Without figures: {error}", file=sys.stderr)
    print(page)
    if open_browser and not webbrowser.open(page.resolve().as_uri()):
        print("No browser found; open the file yourself.", file=sys.stderr)
    return 0
