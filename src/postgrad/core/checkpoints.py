"""Checkpoints of a run: directories `step_00000100/` that are complete or absent, whatever kills the
writer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from postgrad.core.errors import RunError
from postgrad.core.runfiles import explain_os_error, remove_tree, sync_directory, sync_tree

_NAME = re.compile(r"step_(\d{8,})")


class Checkpoints:
    """The directory `checkpoints/`. Names that start with a dot are work in progress."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def all(self) -> list[tuple[int, Path]]:
        """(step, directory) of every complete checkpoint, oldest first."""
        found = [(entry, _NAME.fullmatch(entry.name)) for entry in self.root.glob("step_*") if entry.is_dir()]
        return sorted((int(match[1]), entry) for entry, match in found if match)

    def latest(self) -> tuple[int, Path] | None:
        """(step, directory) of the newest one, or None."""
        found = self.all()
        return found[-1] if found else None

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Have `write` fill a hidden directory, force it to the disk, rename it into place.

        Raises:
            RunError: anything failed; the hidden directory is gone and the other checkpoints are untouched.
        """
        final = self.root / f"step_{step:08d}"
        temporary = self.root / f".tmp-{final.name}"
        try:
            self.root.mkdir(exist_ok=True)
            remove_tree(temporary)
            temporary.mkdir()
            write(temporary)
            sync_tree(temporary)
            self._put_in_place(temporary, final)
        except BaseException as error:
            remove_tree(temporary)
            if not isinstance(error, Exception):
                raise
            self._refuse(step, error)
        return final

    def prune(self, keep: int) -> list[Path]:
        """Remove the oldest beyond the newest `keep` (at least 1); returns those that could not be
        removed."""
        failed: list[Path] = []
        for _, path in self.all()[: -max(1, keep)]:
            try:
                self.discard(path)
            except OSError:
                failed.append(path)
        return failed

    def discard(self, checkpoint: Path) -> None:
        """Rename, then remove: a kill in between must not leave something that looks complete. Raises
        OSError."""
        doomed = checkpoint.with_name(f".tmp-{checkpoint.name}")
        remove_tree(doomed)
        checkpoint.rename(doomed)
        remove_tree(doomed)

    def discard_after(self, step: int) -> None:
        """Remove those of later steps. Raises OSError."""
        for checkpoint_step, path in self.all():
            if checkpoint_step > step:
                self.discard(path)

    def clean(self) -> None:
        """Remove what a killed writer left; put back a checkpoint that was about to be replaced. Raises
        OSError."""
        self.root.mkdir(exist_ok=True)
        for old in self.root.glob(".old-*"):
            final = self.root / old.name.removeprefix(".old-")
            if final.exists():
                remove_tree(old)
            else:
                old.rename(final)
        for stale in self.root.glob(".tmp-*"):
            remove_tree(stale)

    def _put_in_place(self, temporary: Path, final: Path) -> None:
        old = final.with_name(f".old-{final.name}")
        if final.exists():
            final.rename(old)
        try:
            temporary.rename(final)
        except OSError:
            if old.exists():
                old.rename(final)
            raise
        sync_directory(final.parent)
        remove_tree(old)

    def _refuse(self, step: int, error: Exception) -> NoReturn:
        latest = self.latest()
        state = (
            f"The checkpoint of step {latest[0]} is intact." if latest else "No earlier checkpoint exists."
        )
        told = isinstance(error, OSError)
        reason = explain_os_error(error, self.root.parent) if told else f"{type(error).__name__}: {error}"
        raise RunError(f"Could not write the checkpoint of step {step}. {state}\n  {reason}") from error
