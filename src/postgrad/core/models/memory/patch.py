"""A learned fact as a file: which rows of which table, what they were, what they are.

A model's patches lie in `memory/patches/` of its directory, numbered; loading the model applies them in order. A patch is there
or it is not: it is written beside, forced to disk and renamed. Applying one checks that the rows are what it was made from.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch, transformers and safetensors are only partly typed)

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from postgrad.core.errors import ModelError
from postgrad.core.models.memory.layer import MemoryLayer
from postgrad.core.models.memory.shard import cut_columns, gather_columns, own_columns

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PATCH_FORMAT = 1
_SAMPLE = 64


class Change(NamedTuple):
    """Of one table: rows int64 [R], sorted and different; their values before and after [R, D]."""

    rows: Tensor
    old: Tensor
    new: Tensor


@dataclass(frozen=True)
class Patch:
    """What was learned in one edit.

    Attributes:
        changes: by the name of the table in the model.
        model: `fingerprint` of the model that it was made for.
        facts: whatever the maker wants to remember of it; JSON-serialisable.
    """

    changes: Mapping[str, Change]
    model: str
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def id(self) -> str:
        """Twelve hex digits of the content."""
        digest = hashlib.sha256(f"{PATCH_FORMAT} {self.model}".encode())
        for name in sorted(self.changes):
            digest.update(name.encode())
            for tensor in self.changes[name]:
                digest.update(_bytes(tensor))
        return digest.hexdigest()[:12]

    @property
    def num_rows(self) -> int:
        """Rows changed, over all tables."""
        return sum(len(change.rows) for change in self.changes.values())


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def tables(module: torch.nn.Module) -> dict[str, Tensor]:
    """The value tables of a model by their names, shared ones once; a DTensor each if they are sharded over ranks."""
    return {
        f"{name}.values.weight": layer.values.weight
        for name, layer in module.named_modules()
        if isinstance(layer, MemoryLayer) and hasattr(layer, "values")
    }


def fingerprint(module: PreTrainedModel) -> str:
    """Sixteen hex digits that name a model whatever has been taught to its tables: shapes and the first entries of all other
    parameters, in bfloat16, so that the precision it is loaded in does not matter.
    """
    digest = hashlib.sha256()
    own = tables(module)
    for name, parameter in module.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if name not in own:
            digest.update(_bytes(parameter.detach().flatten()[:_SAMPLE].to(torch.bfloat16)))
    return digest.hexdigest()[:16]


def apply_patch(module: PreTrainedModel, patch: Patch, *, undo: bool = False) -> None:
    """Writes the rows after (`undo`: before) into the tables, in place; all or none. Of sharded tables on all ranks.

    Raises:
        ModelError: it belongs to another model, or its rows are not what it starts from.
    """
    if patch.model != (ours := fingerprint(module)):
        raise ModelError(
            f"Patch {patch.id} was made for model {patch.model}, this one is {ours}. A patch fits the model that learned it, "
            "and copies of that."
        )
    own = tables(module)
    for name, change in patch.changes.items():
        start = change.new if undo else change.old
        rows = change.rows.to(own[name].device)
        now = gather_columns(own[name], own_columns(own[name].detach())[rows])
        coarse = min(now.dtype, start.dtype, key=lambda kind: kind.itemsize)
        same = (now.to(coarse) == start.to(now.device, coarse)).all(-1)
        if not bool(same.all()):
            raise ModelError(
                f"Patch {patch.id} does not fit: {int((~same).sum())} of its {len(rows)} rows in {name} have been changed by "
                f"others. {'Roll those back first.' if undo else 'Apply it where it was made, or roll back what came between.'}"
            )
    with torch.no_grad():
        for name, change in patch.changes.items():
            values = own_columns(own[name].detach())
            goal = cut_columns(own[name], change.old if undo else change.new)
            values[change.rows.to(values.device)] = goal.to(values.device, values.dtype)


def write_patch(patch: Patch, path: Path) -> None:
    """Writes it so that `path` is there whole or not at all, whatever happens meanwhile. Raises OSError (no space, …)."""
    from safetensors.torch import save

    tensors = {
        f"{name}/{part}": tensor.detach().cpu().contiguous()
        for name, change in patch.changes.items()
        for part, tensor in change._asdict().items()
    }
    metadata = {
        "format": str(PATCH_FORMAT),
        "model": patch.model,
        "id": patch.id,
        "facts": json.dumps(patch.facts),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_patch(path: Path) -> Patch:
    """Raises ModelError if it is no patch, or damaged."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            metadata = cast("dict[str, str]", file.metadata() or {})
            tensors = {key: cast("Tensor", file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
        names = dict.fromkeys(key.rpartition("/")[0] for key in tensors)
        changes = {name: Change(*(tensors[f"{name}/{part}"] for part in Change._fields)) for name in names}
        patch = Patch(changes, metadata["model"], json.loads(metadata["facts"]))
    except Exception as error:  # OSError, SafetensorError, KeyError, JSON errors
        raise ModelError(f"{path} is no patch ({type(error).__name__}: {error}).") from None
    if metadata.get("id") != patch.id:
        raise ModelError(f"{path} is damaged: its content is not that of patch {metadata.get('id')}.")
    return patch


def patch_folder(path: Path) -> Path:
    """Where a model directory keeps its patches."""
    return path / "memory" / "patches"


def patch_files(path: Path) -> list[Path]:
    """The patches of a model directory, in the order in which they are applied."""
    return sorted(patch_folder(path).glob("[0-9]*.safetensors"))
