"""The log of a playbook: one delta a line, each with the hash of the line before; appended, fsynced, never rewritten.

A line that was being written when the power went is cut off on the next opening; it was never acknowledged. Anything else that
does not fit (a changed, missing or foreign line) breaks the chain of hashes and is an error with its line number.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pydantic_core

from postgrad.core.environment import utc_now
from postgrad.core.errors import DataError, RunError
from postgrad.core.runfiles import explain_os_error, sync_directory, to_json_line
from postgrad.playbook.book import Delta, Operation, Playbook, Rollback, fold
from postgrad.playbook.plain import from_plain, to_plain

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
        self._descriptor: int | None = None
        try:
            if self.path.exists() and not self.path.is_file():
                raise RunError(f"{self.path} is no file: the log of a playbook is one.")
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise RunError(explain_os_error(error, self.path)) from error
        self._size = data.rfind(b"\n") + 1
        with _uncollected():
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
            DataError: operations that cannot be applied, or a sample that is not JSON; nothing is written.
            RunError: the disk is full, the file cannot be written, or another process writes or has written to it; nothing of
                this delta stays in the file.
        """
        asked = Delta(tuple(operations), source, sample, tuple(refused), self._clock())
        try:
            data = to_json_line(to_line(asked, self._head, first=not self.deltas)).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{self.path}: a delta that is not JSON ({error}).") from None
        # What is kept is what was read back, so that a replay cannot differ from it, nor fail.
        delta = from_line(data)[1]
        # A rollback needs all deltas; everything else only the last state.
        goes_back = any(isinstance(operation, Rollback) for operation in delta.operations)
        book = fold([*self.deltas, delta]) if goes_back else fold([delta], self._playbook)
        try:
            descriptor = self._open()
            try:
                _write(descriptor, data)
            except BaseException:
                self._undo(descriptor)
                raise
        except OSError as error:
            raise RunError(explain_os_error(error, self.path)) from error
        self._size += len(data)
        self._head = digest(data)
        self.deltas.append(delta)
        self._playbook = book
        return delta

    def close(self) -> None:
        """Lets others write."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> PlaybookLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> int:
        """The file, locked, and just as long as it is known to be; a torn last line goes."""
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                _lock(descriptor, self.path)
                if self._changed(descriptor):
                    self._refuse()
                os.ftruncate(descriptor, self._size)
                sync_directory(self.path.parent)
            except BaseException:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
        status = os.fstat(self._descriptor)
        if status.st_size != self._size or not os.path.samestat(status, self.path.stat()):
            self.close()
            self._refuse()
        return self._descriptor

    def _changed(self, descriptor: int) -> bool:
        """Whether there is anything but the lines that were read and a torn one."""
        with os.fdopen(os.dup(descriptor), "rb") as file:
            whole, torn = file.read(self._size), file.read()
        last = whole.rfind(b"\n", 0, -1) + 1
        return (
            len(whole) != self._size or b"\n" in torn or self._head != (digest(whole[last:]) if whole else "")
        )

    def _refuse(self) -> NoReturn:
        raise RunError(f"{self.path} was changed by another process; open it again.")

    def _undo(self, descriptor: int) -> None:
        """Nobody was told of what was just written, so it goes; the lock is given back, and the next append looks again."""
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, self._size)
        self.close()


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """While many objects come that all stay: to look for garbage among them again and again takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    """Where `flock` does not exist (Windows, some network file systems) there is no protection."""
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise RunError(
                    f"{path} is being written by another process. Wait for it, or stop it."
                ) from None


def digest(line: bytes) -> str:
    """Of one line with its newline."""
    return hashlib.sha256(line).hexdigest()[:32]


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


_FIELDS = frozenset({"parent", "format", "at", "source", "sample", "operations", "refused"})


def from_line(line: bytes, *, first: bool = False) -> tuple[str, Delta]:
    """(hash of the line before, delta) of one line; of the first, the format is looked at.

    Raises:
        DataError: no delta.
    """
    try:
        row: Any = pydantic_core.from_json(line, allow_inf_nan=False)
    except ValueError:
        row = _slowly(line)
    if type(row) is not dict or "parent" not in row:
        raise DataError("no delta of a playbook. Is this the log of a playbook?")
    if first and row.get("format") != FORMAT:
        raise DataError(f"format {row.get('format')!r} of a playbook; this version reads {FORMAT}.")
    unknown = row.keys() - _FIELDS
    if unknown:
        raise DataError(f"a delta of a playbook has no {min(unknown)!r}. Is this the log of a playbook?")
    get: Callable[..., Any] = row.get
    parent, at, source = get("parent"), get("at", ""), get("source", "")
    sample, operations, refused = get("sample"), get("operations"), get("refused", [])
    if not (
        type(parent) is type(at) is type(source) is str
        and type(operations) is type(refused) is list
        and (sample is None or type(sample) is dict)
        and all(type(reason) is str for reason in refused)
    ):
        raise DataError("a delta of a playbook with fields of wrong types. Is this the log of a playbook?")
    return parent, Delta(tuple(map(from_plain, operations)), source, sample, tuple(refused), at)


def _slowly(line: bytes) -> Any:
    """Python's own parser, which also takes lone surrogates and deep nesting."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(line.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"no delta of a playbook ({error}). Is this the log of a playbook?") from None


def parse(data: bytes, path: Path) -> tuple[list[Delta], str]:
    """The deltas of a log and the hash of its last line; what comes after the last newline is left out.

    Raises:
        DataError: a line that is no delta, or does not follow from the one before.
    """
    deltas: list[Delta] = []
    head = ""
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            parent, delta = from_line(line, first=number == 1)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        if line.endswith(b"\r"):
            raise DataError(
                f"{path}, line {number} ends with CRLF: the file was converted. Restore its line ends."
            )
        if parent != head:
            raise DataError(
                f"{path}, line {number} does not follow from the line before: the log was edited, or lines are missing."
                + (
                    f"\n  The lines before it are whole: head -n {number - 1} {shlex.quote(str(path))} > repaired.jsonl"
                    if number > 1
                    else ""
                )
            )
        head = digest(line + b"\n")
        deltas.append(delta)
    return deltas, head
