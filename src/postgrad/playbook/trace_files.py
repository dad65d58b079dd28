"""Records of JSON and JSON lines with their places, so that what is wrong with one can be named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from postgrad.core.errors import DataError

MAX_FILE_BYTES = 2 * 2**30
MAX_LINE_BYTES = 64 * 2**20
SUFFIXES = (".jsonl", ".ndjson", ".json")

IsMessage = Callable[[Any], bool]
"""Whether a record is but one message of a trace."""


@dataclass(frozen=True)
class Place:
    """Where something was read."""

    file: Path
    line: int
    item: int | None = None

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}" + ("" if self.item is None else f", item {self.item}")

    @property
    def id(self) -> str:
        return f"{self.file.stem}/{self.line if self.item is None else self.item}"


def read_rows(path: Path, is_message: IsMessage) -> Iterator[tuple[Place, Any]]:
    """Records with their places: lines, items of a list, or the whole file; single messages of a file come as one list.

    Raises:
        DataError: no JSON, too large, or not to be read; it names the line.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(
                f"{path} has {path.stat().st_size:,} bytes; the most is {MAX_FILE_BYTES:,}. Split it."
            )
        if path.suffix.lower() == ".json":
            yield from _whole(path, is_message)
            return
        with path.open("rb") as file:
            first = file.readline(MAX_LINE_BYTES + 1)
            try:
                _loads(first.strip() or b"null", Place(path, 1))
            except DataError:
                if first.strip().endswith((b"{", b"[", b",")):  # one text over many lines
                    yield from _whole(path, is_message)
                    return
            file.seek(0)
            yield from _lines(file, path, is_message)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def _lines(file: BinaryIO, path: Path, is_message: IsMessage) -> Iterator[tuple[Place, Any]]:
    messages: list[Any] = []
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        place = Place(path, number)
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{place} has more than {MAX_LINE_BYTES:,} bytes.")
        if not line.strip():
            continue
        row = _loads(line, place, torn=not line.endswith(b"\n"))
        if is_message(row):
            messages.append(row)
            continue
        yield place, row
    if messages:
        yield Place(path, 1), messages


def _whole(path: Path, is_message: IsMessage) -> Iterator[tuple[Place, Any]]:
    data = path.read_bytes()
    if not data.strip():
        return
    place = Place(path, 1)
    try:
        found = _loads(data, place)
    except DataError:
        if b"\n" not in data.strip():
            raise
        try:  # lines in a file that is called .json
            first = data.strip().split(b"\n", 1)[0]
            _loads(first, place)
        except DataError:
            pass
        else:
            with path.open("rb") as file:
                yield from _lines(file, path, is_message)
            return
        raise
    if isinstance(found, Mapping):
        for name in ("traces", "data", "runs", "sessions"):
            if isinstance(found.get(name), list) and not found.keys() & {"messages", "request", "inputs"}:
                found = found[name]
                break
    if not isinstance(found, list) or (found and all(map(is_message, found))):
        yield place, found
        return
    for item, row in enumerate(found, start=1):
        yield Place(path, 1, item), row


def _loads(data: bytes, place: Place, *, torn: bool = False) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is no UTF-8: byte {error.start + 1}.") from None
    except RecursionError:
        raise DataError(f"{place} is nested too deeply.") from None
    except json.JSONDecodeError as error:
        hint = " The file ends in the middle of the line: was it still being written?" if torn else ""
        at = place if error.lineno == 1 else f"{place.file}, line {place.line + error.lineno - 1}"
        raise DataError(f"{at} is no JSON: {error.msg} at character {error.colno}.{hint}") from None
    except ValueError as error:  # numbers of thousands of digits
        raise DataError(f"{place} is no JSON that can be read: {error}.") from None
