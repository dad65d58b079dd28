"""W&B's offline files (`run-ID.wandb`), without network and account.

The package `wandb` (extra `logs`) knows what the records mean. The file around them is LevelDB's log format, which is read
here because the package has dropped its own reader: a header of 7 bytes (":W&B", 0xBEE1, version), then blocks of 32 KiB of
chunks with a checksum, a length and a type.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from postgrad.core.errors import DataError, MissingExtraError
from postgrad.scaling.curve import Log
from postgrad.scaling.readers.columns import to_columns

_HEADER = b":W&B" + struct.pack("<H", 0xBEE1)
_BLOCK = 32768
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def recognises(path: Path) -> bool:
    """By name."""
    return path.suffix == ".wandb"


def find(directory: Path) -> list[Path]:
    """The file of an `offline-run-*` or `run-*` directory, or of the one run below a `wandb` directory.

    Raises:
        DataError: several runs.
    """
    found = sorted(directory.glob("run-*.wandb"))
    if not found:
        found = sorted({p.resolve() for p in directory.glob("**/run-*.wandb") if "latest-run" not in p.parts})
    if len(found) > 1:
        names = ", ".join(path.parent.name for path in found[:6])
        raise DataError(f"{directory} holds {len(found)} W&B runs: {names}. Name one of them.")
    return found


def read(paths: Sequence[Path], name: str) -> Log:
    """The history, one row per step, with `_step`, `_runtime` (seconds) and `_timestamp`.

    Raises:
        DataError: no history in it, or no file of W&B.
        MissingExtraError: without the package.
    """
    try:
        record_type: Any = import_module("wandb.proto.wandb_internal_pb2").Record
        damage: Any = import_module("google.protobuf.message").DecodeError
    except ImportError:
        raise MissingExtraError("wandb", "logs", "Reading W&B's offline files") from None
    path = paths[0]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error}") from None
    if data[:6] != _HEADER:
        raise DataError(
            f"{path} is not a file of W&B: it does not begin with its header. Copy it again, or export a CSV."
        )
    rows: list[dict[str, Any]] = []
    try:
        for chunk in records(data):
            record = record_type.FromString(chunk)
            if record.HasField("history"):
                items = record.history.item
                rows.append(
                    {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
                )
    except (damage, ValueError):
        pass  # a damaged end, as of a killed run, is no reason to lose the rest
    if not rows:
        raise DataError(f"{path} has no history: nothing was logged.")
    return Log(name, "W&B", to_columns(rows))


def records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log behind a header of 7 bytes, up to the first damaged one.

    >>> body = bytes([_WHOLE]) + b"hello"
    >>> chunk = struct.pack("<IHB", zlib.crc32(body), 5, _WHOLE) + b"hello"
    >>> list(records(b"7 bytes" + chunk + chunk[:-1]))
    [b'hello']
    """
    position, parts = 7, list[bytes]()
    while position + 7 <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < 7:  # too short for a chunk's header: padding
            position += left
            continue
        checksum, size, kind = struct.unpack_from("<IHB", data, position)
        part = data[position + 7 : position + 7 + size]
        if not _WHOLE <= kind <= _LAST or len(part) < size or zlib.crc32(bytes([kind]) + part) != checksum:
            return
        position += 7 + size
        parts = [part] if kind in (_WHOLE, _FIRST) else [*parts, part]
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)
