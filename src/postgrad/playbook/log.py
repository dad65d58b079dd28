"""The log of a playbook: one delta a line, each with the hash of the line before; appended, fsynced, never rewritten.

A line that was being written when the power went is cut off on the next opening; it was never acknowledged. Anything else that
does not fit (a changed, missing or foreign line) breaks the chain of hashes and is an error with its line number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from postgrad.core.environment import utc_now
from postgrad.core.errors import DataError, RunError
from postgrad.core.runfiles import LineFile, explain_os_error, sync_directory, to_json_line
from postgrad.playbook.book import Delta, Operation, Playbook, fold, from_plain, to_plain

FORMAT = 1
NAME = "playbook.jsonl"
"""Of the log in a run's directory."""


class PlaybookLog:
    """A playbook on disk. One writer at a time.

    Args:
        path: the file; it is made with the first delta.
        clock: gives the time of a delta as text.

    Raises:
        DataError: the file is no log of a playbook, or is damaged.
        RunError: it cannot be read, or another process writes to it.
    """

    def __init__(self, path: Path | str, *, clock: Callable[[], str] = utc_now) -> None:
        self.path = Path(path)
        self._clock = clock
        self._file = LineFile(self.path)
        self._lock: int | None = None
        self.deltas: list[Delta] = []
        self._head = ""
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise RunError(explain_os_error(error, self.path)) from error
        self._torn = len(data) - (data.rfind(b"\n") + 1)
        self.deltas, self._head = parse(data, self.path)
        self._playbook = fold(self.deltas)

    @property
    def playbook(self) -> Playbook:
        """After all deltas."""
        return self._playbook

    @property
    def head(self) -> str:
        """Hash of the last line; empty for an empty log."""
        return self._head

    def at(self, version: int | str) -> Playbook:
        """As it was after so many deltas, or at a mark.

        Raises:
            DataError: there is no such version.
        """
        return fold(self.deltas[: self.version_of(version)])

    def version_of(self, version: int | str) -> int:
        """The number of deltas that a version's name stands for: "12", "-1" (one before the last), "best".

        Raises:
            DataError: there is no such version.
        """
        count = len(self.deltas)
        if isinstance(version, str):
            if version in self._playbook.marks:
                return self._playbook.marks[version][0]
            try:
                version = int(version)
            except ValueError:
                marks = ", ".join(self._playbook.marks) or "none"
                raise DataError(
                    f"{self.path} has no version {version!r}: a number from 0 to {count}, -1 for the one before the last, "
                    f"or a mark ({marks})."
                ) from None
        found = count + version if version < 0 else version
        if not 0 <= found <= count:
            raise DataError(f"{self.path} has versions 0 to {count}, not {version}.")
        return found

    def append(
        self,
        operations: Iterable[Operation],
        *,
        source: str = "",
        sample: dict[str, Any] | None = None,
        refused: Sequence[str] = (),
    ) -> Delta:
        """One more delta. When this returns, it is on the disk.

        Raises:
            DataError: operations that cannot be applied; nothing is written.
            RunError: the disk is full, the file cannot be written, or another process has changed it; nothing is written.
        """
        delta = Delta(tuple(operations), source, sample, tuple(refused), self._clock())
        # A rollback needs all deltas; everything else only the last state.
        if any(type(operation).__name__ == "Rollback" for operation in delta.operations):
            book = fold([*self.deltas, delta])
        else:
            book = fold([delta], self._playbook)
        row = to_line(delta, self._head, first=not self.deltas)
        line = to_json_line(row)
        try:
            self._acquire()
            self._file.append([row])
            self._file.sync()
            if not self.deltas:
                sync_directory(self.path.parent)
        except OSError as error:
            raise RunError(explain_os_error(error, self.path)) from error
        self._head = digest(line.encode())
        self.deltas.append(delta)
        self._playbook = book
        return delta

    def close(self) -> None:
        """Lets others write."""
        self._file.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> PlaybookLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _acquire(self) -> None:
        """The right to write; a torn line goes, and nobody else may have written since."""
        if self._lock is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _flock(descriptor, self.path)
            size = os.fstat(descriptor).st_size
            data = os.pread(descriptor, size, 0)
            end = data.rfind(b"\n") + 1
            if _last_digest(data[:end]) != self._head:
                raise RunError(f"{self.path} was changed by another process; open it again.")
            if end != size:
                os.ftruncate(descriptor, end)
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = descriptor


def _flock(descriptor: int, path: Path) -> None:
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{path} is being written by another process. Wait for it, or stop it.") from None


def digest(line: bytes) -> str:
    """Of one line with its newline."""
    return hashlib.sha256(line).hexdigest()[:32]


def _last_digest(data: bytes) -> str:
    lines = (
        data.splitlines(keepends=True) if data.count(b"\n") < 2 else [data[data.rfind(b"\n", 0, -1) + 1 :]]
    )
    return digest(lines[-1]) if lines else ""


def to_line(delta: Delta, parent: str, *, first: bool) -> dict[str, Any]:
    """A delta as a row of the log."""
    row: dict[str, Any] = {"parent": parent}
    if first:
        row["format"] = FORMAT
    row.update(at=delta.at, source=delta.source)
    if delta.sample is not None:
        row["sample"] = dict(delta.sample)
    row["operations"] = [to_plain(operation) for operation in delta.operations]
    if delta.refused:
        row["refused"] = list(delta.refused)
    return row


def parse(data: bytes, path: Path) -> tuple[list[Delta], str]:
    """The deltas of a log and the hash of its last line; what comes after the last newline is left out.

    Raises:
        DataError: a line that is no delta, or does not follow from the one before.
    """
    deltas: list[Delta] = []
    head = ""
    loads = json.loads
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            row = loads(line)
            parent = row["parent"]
            operations = tuple(from_plain(operation) for operation in row["operations"])
            delta = Delta(
                operations,
                row.get("source", ""),
                row.get("sample"),
                tuple(row.get("refused", ())),
                row.get("at", ""),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: no delta of a playbook ({type(error).__name__}). Is this the log of a playbook?"
            ) from None
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        if number == 1 and row.get("format") != FORMAT:
            raise DataError(
                f"{path}: format {row.get('format')!r} of a playbook; this version reads {FORMAT}."
            )
        if parent != head:
            raise DataError(
                f"{path}, line {number} does not follow from the line before: the log was edited, or lines are missing.\n"
                f"  The lines before it are whole: head -n {number - 1} {path} > repaired.jsonl"
            )
        head = digest(line + b"\n")
        deltas.append(delta)
    return deltas, head
