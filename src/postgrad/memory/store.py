"""What a model directory has learned: its patches, in order; adding one, taking one back, moving them between copies.

    DIR/model.safetensors …       the model as it was attached (or trained) first
    DIR/memory/profile.safetensors the background
    DIR/memory/patches/000001.safetensors …
    DIR/memory/rolled_back/       patches that were taken back; they are kept, and count for nothing

Every change is one rename, so whatever happens in between - a full disk, a kill - the directory is in the state before or after.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from postgrad.core.errors import ModelError, nearest
from postgrad.core.models.memory.patch import Patch, patch_files, patch_folder, read_patch, write_patch
from postgrad.core.runfiles import explain_os_error


class Entry(NamedTuple):
    """A patch of a directory: its number, file and content."""

    number: int
    path: Path
    patch: Patch


class PatchStore:
    """The patches of a model directory.

    Args:
        folder: a model directory with memory.

    Raises:
        ModelError: no such directory.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} is no model directory: it has no config.json.")
        self.folder = folder

    @property
    def _rolled_back(self) -> Path:
        return self.folder / "memory" / "rolled_back"

    def entries(self) -> list[Entry]:
        """All patches that are in force, oldest first."""
        return [Entry(int(path.stem), path, read_patch(path)) for path in patch_files(self.folder)]

    def find(self, name: str) -> Entry:
        """By number, id or the beginning of an id. Raises ModelError naming the nearest."""
        entries = self.entries()
        found = [
            entry
            for entry in entries
            if (name.isdigit() and entry.number == int(name)) or entry.patch.id.startswith(name)
        ]
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            ids = ", ".join(entry.patch.id for entry in found)
            raise ModelError(f"{name!r} is the beginning of several patches: {ids}.")
        known = [entry.patch.id for entry in entries]
        raise ModelError(
            f"{self.folder} has no patch {name!r}. "
            + (nearest(name, known) if known else "It has none at all.")
        )

    def append(self, patch: Patch) -> Entry:
        """Puts a patch in force. Raises ModelError when it cannot be written; then nothing has changed."""
        past = [*patch_files(self.folder), *self._rolled_back.glob("[0-9]*.safetensors")]
        number = max((int(path.stem.split("-")[0]) for path in past), default=0) + 1
        path = patch_folder(self.folder) / f"{number:06d}.safetensors"
        try:
            write_patch(patch, path)
        except OSError as error:
            raise ModelError(f"The patch was not written. {explain_os_error(error, path)}") from error
        return Entry(number, path, patch)

    def roll_back(self, entry: Entry) -> None:
        """Takes one patch out of force.

        Raises:
            ModelError: later patches changed some of its rows; they have to go first.
        """
        later = [
            other
            for other in self.entries()
            if other.number > entry.number and overlap(entry.patch, other.patch)
        ]
        if later:
            ids = ", ".join(f"{other.number} ({other.patch.id})" for other in later)
            raise ModelError(
                f"Patch {entry.number} ({entry.patch.id}) shares rows with later ones: {ids}. Roll those back first, or "
                "roll back to it: --to."
            )
        self._rolled_back.mkdir(parents=True, exist_ok=True)
        entry.path.rename(self._rolled_back / f"{entry.path.stem}-{entry.patch.id}.safetensors")

    def export(self, entries: Sequence[Entry], target: Path) -> list[Path]:
        """Copies patches into a directory, to be applied elsewhere in this order."""
        target.mkdir(parents=True, exist_ok=True)
        copies = [target / f"{entry.number:06d}-{entry.patch.id}.safetensors" for entry in entries]
        for entry, copy in zip(entries, copies, strict=True):
            shutil.copyfile(entry.path, copy)
        return copies


def overlap(first: Patch, second: Patch) -> int:
    """Rows that both change."""
    return sum(
        int(torch.isin(change.rows, second.changes[name].rows).sum())
        for name, change in first.changes.items()
        if name in second.changes
    )


def describe(entry: Entry) -> dict[str, Any]:
    """A row of `postgrad memory list`."""
    facts: Mapping[str, Any] = entry.patch.facts
    moved = [
        float((change.new.float() - change.old.float()).norm(dim=-1).mean())
        for change in entry.patch.changes.values()
    ]
    return {
        "number": entry.number,
        "id": entry.patch.id,
        "rows": entry.patch.num_rows,
        "mean_change": sum(moved) / max(1, len(moved)),
        "bytes": entry.path.stat().st_size,
        **{key: facts[key] for key in ("created", "facts", "loss_before", "loss_after") if key in facts},
    }
