"""TensorBoard event files, read by the package `tensorboard` (extra `logs`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from postgrad.core.errors import DataError, MissingExtraError
from postgrad.scaling.curve import Log
from postgrad.scaling.readers.columns import to_columns


def recognises(path: Path) -> bool:
    """By name."""
    return ".tfevents." in path.name


def find(directory: Path) -> list[Path]:
    """All event files of one run, in the order they were written: those of `directory`, or of the one directory below that
    has some (`add_scalars` and `add_hparams` write further ones below a run's own; they are left out).

    Raises:
        DataError: several runs.
    """
    folders = {path.parent for path in directory.glob("**/*.tfevents.*")}
    runs = sorted(folder for folder in folders if not folders & set(folder.parents))
    if len(runs) > 1:
        names = ", ".join(str(folder.relative_to(directory)) for folder in runs[:6])
        raise DataError(f"{directory} holds TensorBoard logs of {len(runs)} runs: {names}. Name one of them.")
    return sorted(runs[0].glob("*.tfevents.*")) if runs else []


def read(paths: Sequence[Path], name: str) -> Log:
    """Scalars, one row per step and file; `wall_s` is the time since the first event.

    Raises:
        DataError: no scalar in them.
        MissingExtraError: without the package.
    """
    try:
        with _quiet():
            loader: Any = import_module(
                "tensorboard.backend.event_processing.event_file_loader"
            ).EventFileLoader
            make_ndarray: Any = import_module("tensorboard.util.tensor_util").make_ndarray
    except ImportError:
        raise MissingExtraError("tensorboard", "logs", "Reading TensorBoard logs") from None
    rows: list[dict[str, Any]] = []
    start: float | None = None
    for path in paths:
        row: dict[str, Any] = {}
        for event in _events(loader, path):
            values = {
                value.tag: float(make_ndarray(value.tensor).reshape(-1)[0])
                for value in event.summary.value
                if value.HasField("tensor") and _is_scalar(value)
            }
            if not values:
                continue
            start = event.wall_time if start is None else start
            if row.get("step") != event.step:
                row = {"step": event.step, "wall_s": event.wall_time - start}
                rows.append(row)
            # a tag called "step" would hide the step itself
            row.update((f"{key}/value" if key in ("step", "wall_s") else key, x) for key, x in values.items())
    if not rows:
        raise DataError(
            f"No scalars in {', '.join(str(path) for path in paths[:3])}: nothing was logged, or it is damaged."
        )
    return Log(name, "TensorBoard", to_columns(rows))


def _events(loader: Any, path: Path) -> Iterator[Any]:
    """Events up to the end, or up to where the file is damaged."""
    with _quiet():
        try:
            yield from loader(str(path)).Load()
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error}") from None
        except Exception as error:  # tensorboard's stub of TensorFlow has error classes of its own
            if type(error).__name__ not in ("DataLossError", "DecodeError"):
                raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Without tensorboard's remarks on files that end early, as those of running and killed jobs do."""
    logger = logging.getLogger("tensorboard")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _is_scalar(value: Any) -> bool:
    numeric = value.tensor.dtype in (1, 2, 3, 9)  # float, double, int32, int64
    return numeric and all(dimension.size == 1 for dimension in value.tensor.tensor_shape.dim)
