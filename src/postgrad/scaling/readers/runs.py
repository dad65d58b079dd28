"""Runs of postgrad, and fits of this room."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from postgrad.core.errors import DataError
from postgrad.core.run import Run
from postgrad.scaling.curve import Log
from postgrad.scaling.readers.columns import to_columns


def find(directory: Path) -> list[Path]:
    """The directory, if it is a run, or the fit in it."""
    if (directory / "fit.json").is_file():
        return [directory / "fit.json"]
    return [directory] if (directory / "run.json").is_file() else []


def read(paths: Sequence[Path], name: str) -> Log:
    """The metrics of a run. Raises RunError, DataError."""
    if paths[0].name == "fit.json":
        return read_fit(paths[0], name)
    rows = Run.open(paths[0]).metrics()
    if not rows:
        raise DataError(f"{paths[0]} has no metrics yet. Wait for its first step.")
    return Log(name, "postgrad run", to_columns(rows))


def read_fit(path: Path, name: str) -> Log:
    """The points that a fit was made from, under the names they had. Raises DataError."""
    try:
        curve = json.loads(path.read_text(encoding="utf-8"))["curve"]
        key = curve["x"]
        if curve["unit"] in _CONVERTED and key != curve["unit"]:
            key = _CONVERTED[curve["unit"]]  # the log had seconds, the points are in hours
        columns = {key: list(curve["compute"]), curve["y"]: list(curve["reward"])}
        if curve["elapsed_s"] is not None and "elapsed_s" not in columns:
            columns["elapsed_s"] = list(curve["elapsed_s"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a fit of `postgrad scaling fit` ({type(error).__name__}: {error})."
        ) from None
    return Log(name, "fit.json", columns)


_CONVERTED = {"hours": "hours", "GPU-hours": "gpu_hours"}
