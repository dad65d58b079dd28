"""`postgrad report RUN`: write report.html."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

from postgrad.core.errors import MissingExtraError
from postgrad.core.figures import require_matplotlib
from postgrad.core.report import write_report
from postgrad.core.run import Run


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
    page = write_report(Run.open(path))
    try:
        require_matplotlib()
    except MissingExtraError as error:
        print(f"Without figures: {error}", file=sys.stderr)
    print(page)
    if open_browser and not webbrowser.open(page.resolve().as_uri()):
        print("No browser found; open the file yourself.", file=sys.stderr)
    return 0
