"""`trainer_state.json` of Hugging Face's Trainer, which TRL's trainers write too."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from postgrad.core.errors import DataError
from postgrad.scaling.curve import Log
from postgrad.scaling.readers.columns import to_columns


def recognises(path: Path) -> bool:
    """Whether the file has that name, or its content."""
    if path.suffix.lower() != ".json":
        return False
    if path.name == "trainer_state.json":
        return True
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return '"log_history"' in file.read(20_000_000)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error}") from None


def find(directory: Path) -> list[Path]:
    """The file in a directory, else in its newest checkpoint."""
    if (directory / "trainer_state.json").is_file():
        return [directory / "trainer_state.json"]
    found = [
        (int(match[1]), path)
        for path in directory.glob("checkpoint-*/trainer_state.json")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.parent.name))
    ]
    return [max(found)[1]] if found else []


def read(paths: Sequence[Path], name: str) -> Log:
    """Its log history. Raises DataError."""
    path = paths[0]
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {path}: {error}") from None
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise DataError(f"{path} has no log_history: it was not written by Hugging Face's Trainer.")
    if not history:
        raise DataError(
            f"{path} has an empty log_history: nothing was logged yet. Set logging_steps and eval_steps."
        )
    return Log(name, "trainer_state.json", to_columns(history))
