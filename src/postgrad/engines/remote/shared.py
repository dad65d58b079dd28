"""Weights in memory that several processes see: the trainer writes, generators copy out."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_ALIGNMENT = 64


class Slot(NamedTuple):
    """Where a tensor lies: offset in bytes, dtype, shape."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


Layout = Mapping[str, Slot]


def anonymous_file() -> int:
    """A file descriptor of a file without a name, in memory where the system has a place for that; it goes with its last user."""
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


def lay_out(weights: Mapping[str, Tensor]) -> tuple[dict[str, Slot], int]:
    """A place for each tensor and the bytes in all; tensors that share their memory (tied weights) share their place.

    >>> tied = torch.zeros(3)
    >>> layout, size = lay_out({"a": tied, "b": tied, "c": torch.zeros(2, dtype=torch.int64)})
    >>> [layout[name].offset for name in "abc"], size
    ([0, 0, 64], 128)
    """
    places: dict[tuple[int, tuple[int, ...], torch.dtype], int] = {}
    layout: dict[str, Slot] = {}
    size = 0
    for name, tensor in weights.items():
        shape = tuple(tensor.shape)
        key = (tensor.data_ptr(), shape, tensor.dtype)
        if key not in places or tensor.numel() == 0:
            places[key] = size
            size += max(1, -(-tensor.numel() * tensor.element_size() // _ALIGNMENT)) * _ALIGNMENT
        layout[name] = Slot(places[key], tensor.dtype, shape)
    return layout, size


class SharedWeights:
    """Named tensors over one anonymous file.

    Nothing here keeps a reader from reading half of a write; `fleet.Fleet` writes only when no generator reads.

    Args:
        layout: from `lay_out`.
        size: bytes.
        fd: of the file; it is closed with this object.
    """

    def __init__(self, layout: Layout, size: int, fd: int) -> None:
        self.layout, self.size, self.fd = layout, size, fd
        self._memory = mmap.mmap(fd, size)
        self.tensors = views(layout, torch.frombuffer(self._memory, dtype=torch.uint8))

    @classmethod
    def like(cls, weights: Mapping[str, Tensor]) -> SharedWeights:
        """New memory with these weights in it. Raises OSError where there is not enough of it."""
        layout, size = lay_out(weights)
        fd = anonymous_file()
        os.posix_fallocate(fd, 0, size)
        shared = cls(layout, size, fd)
        shared.write(weights)
        return shared

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Copies in all tensors, each once."""
        copy_into(self.tensors, self.layout, weights)


def views(layout: Layout, flat: Tensor) -> dict[str, Tensor]:
    """The tensors that lie in `flat` (bytes)."""
    return {name: _view(flat, slot) for name, slot in layout.items()}


@torch.no_grad()
def copy_into(tensors: Mapping[str, Tensor], layout: Layout, weights: Mapping[str, Tensor]) -> None:
    """Copies all weights into `tensors`, those that share a place once."""
    written: set[int] = set()
    for name, slot in layout.items():
        if slot.offset not in written:
            tensors[name].copy_(weights[name])
            written.add(slot.offset)


def _view(flat: Tensor, slot: Slot) -> Tensor:
    count = 1
    for length in slot.shape:
        count *= length
    width = torch.empty((), dtype=slot.dtype).element_size()
    return flat[slot.offset : slot.offset + count * width].view(slot.dtype).view(slot.shape)
