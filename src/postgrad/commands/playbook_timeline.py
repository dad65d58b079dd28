"""`postgrad playbook timeline`."""

from __future__ import annotations

from pathlib import Path

from postgrad.core.errors import ConfigError
from postgrad.playbook.source import open_log
from postgrad.playbook.timeline import write_timeline


def main(path: Path, out: Path | None = None) -> int:
    """Writes a log as one HTML file; see `postgrad playbook timeline --help`.

    Args:
        path: run's directory or log.
        out: the file; default: NAME.html beside the log.
    """
    log = open_log(path)
    target = out or log.path.with_suffix(".html")
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"The page is called ….html; received --out {target}.")
    name = path.resolve().name if path.is_dir() else log.path.stem
    print(write_timeline(log.deltas, target, name=name, head=log.head))
    return 0
