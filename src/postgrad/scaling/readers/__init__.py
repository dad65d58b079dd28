"""Logs of every framework, as columns.

`read(path)` recognises a file or directory by what is in it:

| what | recognised by | needs |
|---|---|---|
| a run of postgrad | `run.json` and `metrics.jsonl` | |
| a fit of `postgrad scaling` | `fit.json` | |
| Hugging Face Trainer, TRL | `trainer_state.json`, also in a directory or its newest checkpoint | |
| TensorBoard | `events.out.tfevents.*`, also in a directory | extra `logs` |
| W&B, offline | `run-*.wandb`, also in an `offline-run-*` directory | extra `logs` |
| tables | `.csv`, `.tsv`, `.jsonl`, `.json` (rows, or columns) | |

verl, prime-rl, open-instruct and others write one of the last three.
"""

from __future__ import annotations

from pathlib import Path

from postgrad.core.errors import DataError
from postgrad.scaling.curve import Log
from postgrad.scaling.readers import runs, tables, tensorboard, trainer_state, wandb

__all__ = ["read"]


def read(path: Path | str) -> Log:
    """The log at `path`; see the module for what it may be.

    Raises:
        DataError: nothing there, or nothing that can be read; names the file (and line) and what is expected.
        RunError: a damaged run.
        MissingExtraError: TensorBoard or W&B files without the extra `logs`.
    """
    path = Path(path)
    if path.is_dir():
        for finder in _FINDERS:
            found = finder.find(path)
            if found:
                return finder.read(found, _name(path.resolve()))
        raise DataError(
            f"{path} is no run and holds no log: neither run.json, trainer_state.json, *.tfevents.* nor *.wandb.{_inside(path)}"
        )
    if not path.exists():
        raise DataError(
            f"No log at {path}. Give a run directory, a trainer_state.json, a TensorBoard or W&B file, or a .csv or .jsonl."
        )
    generic = path.stem in ("trainer_state", "metrics", "fit") or tensorboard.recognises(path)
    name = _name(path.resolve().parent) if generic else path.stem
    if path.name == "fit.json":
        return runs.read_fit(path, name)
    if path.name == "metrics.jsonl" and (path.parent / "run.json").exists():
        return runs.read([path.parent], name)
    for reader in (trainer_state, wandb, tensorboard):
        if reader.recognises(path):
            return reader.read([path], name)
    if path.suffix.lower() in tables.SUFFIXES:
        return tables.read([path], name)
    raise DataError(
        f"{path} is not a log that is known here. Known: run directories, trainer_state.json, *.tfevents.*, *.wandb, "
        f"{', '.join(tables.SUFFIXES)}."
    )


_FINDERS = (runs, trainer_state, wandb, tensorboard)


def _name(directory: Path) -> str:
    """Of the run in a directory; a checkpoint is called after the run it belongs to."""
    return directory.parent.name if directory.name.startswith("checkpoint-") else directory.name


def _inside(directory: Path) -> str:
    """What a directory that is no log holds that is one, as a hint."""
    inside = sorted(directory.iterdir())
    files = [path.name for path in inside if path.suffix.lower() in tables.SUFFIXES]
    folders = [
        path.name for path in inside if path.is_dir() and (runs.find(path) or trainer_state.find(path))
    ]
    hints = [("tables", files), ("runs", folders)]
    return "".join(
        f" It holds {what}; name one of them: {', '.join(names[:5])}." for what, names in hints if names
    )
