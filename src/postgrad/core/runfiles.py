"""Durable file work for a run directory: a lock, appends that leave no half line, atomic replacement.

Everything here raises `OSError`; `core.run` turns it into a `RunError` with the next step in it
(`explain_os_error`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from postgrad.core.errors import RunError

_held_locks: set[int] = set()


def _forget_locks_in_child() -> None:
    """A forked worker must not keep its parent's lock alive after the parent was killed."""
    for descriptor in list(_held_locks):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held_locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks_in_child)


class DirectoryLock:
    """Exclusive use of a directory through `flock` on its `.lock` file; the system releases it upon any
    death.

    Where `flock` does not exist (Windows, some network file systems) there is no protection.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / ".lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises RunError with the holder's pid if another process has it, OSError
        otherwise."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        # A reader that asks `is_locked` holds the lock for an instant, hence the few attempts.
        for attempt in range(5):
            if _flock(descriptor, exclusive=True):
                break
            time.sleep(0.02 * attempt)
        else:
            holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise RunError(
                f"The run directory {self.path.parent} is in use by process {holder}.\n"
                "  Wait for it, stop it, or choose another name with --out."
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        _held_locks.add(descriptor)

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor is not None:
            _held_locks.discard(self._descriptor)
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


def _flock(descriptor: int, *, exclusive: bool) -> bool:
    """Try to lock without waiting. False only if another process holds the lock."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True


def is_locked(directory: Path) -> bool:
    """Whether a live process works in `directory`."""
    try:
        descriptor = os.open(directory / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _flock(descriptor, exclusive=False)
    finally:
        os.close(descriptor)


class LineFile:
    """A JSON-lines file that is appended to, one `write` per call, so that it never keeps half a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Append rows. Upon OSError (a full disk) the file is cut back to what it was."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        data = memoryview("".join(to_json_line(row) for row in rows).encode())
        before = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, before)
            raise

    def sync(self) -> None:
        """Force what was appended to the disk."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def trim_torn_line(self) -> None:
        """Cut off a last line without newline, which a killed or crashed writer may leave."""
        if self.path.exists():
            data = self.path.read_bytes()
            end = data.rfind(b"\n") + 1
            if end != len(data):
                os.truncate(self.path, end)

    def keep_up_to(self, step: int) -> None:
        """Remove the rows with a greater `step`, by atomic replacement; the other lines keep every byte."""
        self.close()
        if not self.path.exists():
            return
        kept = [line for line, row in self._lines() if row.get("step", 0) <= step]
        replace_file(self.path, b"".join(kept))

    def read(self) -> list[dict[str, Any]]:
        """All rows; a torn last line is left out. Raises RunError for a damaged line, naming it."""
        return [row for _, row in self._lines()] if self.path.exists() else []

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise RunError(
                        f"{self.path}, line {number} is damaged: not a JSON object. "
                        "Delete that line to go on."
                    )
                yield line, cast("dict[str, Any]", row)


def to_json_line(row: dict[str, Any]) -> str:
    """One line of strict JSON. Lone surrogates, which UTF-8 cannot hold, are escaped."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(row, ensure_ascii=True, allow_nan=False, separators=(", ", ": "))
    return text + "\n"


def to_plain(value: Any) -> tuple[Any, int]:
    """`value` as strict JSON (NumPy and torch values too) and how many non-finite numbers became None.

    >>> to_plain([1, float("nan"), 2.5])
    ([1, None, 2.5], 1)
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value, 0
    if isinstance(value, float):
        return (float(value), 0) if math.isfinite(value) else (None, 1)
    if isinstance(value, Mapping):
        items = {str(key): to_plain(part) for key, part in cast("Mapping[Any, Any]", value).items()}
        return {key: part for key, (part, _) in items.items()}, sum(count for _, count in items.values())
    if isinstance(value, (list, tuple)):
        parts = [to_plain(part) for part in cast("Sequence[Any]", value)]
        return [part for part, _ in parts], sum(count for _, count in parts)
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    if isinstance(value, Path):
        return str(value), 0
    raise RunError(
        f"Cannot log a {type(value).__name__}: {value!r}. Log numbers, text, lists or tables of them."
    )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises RunError if it is missing or damaged."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path} is missing: the run directory is damaged.") from None
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}.") from None
    if not isinstance(data, dict):
        raise RunError(f"{path} is damaged: it holds a JSON {type(data).__name__}, not an object.")
    return cast("dict[str, Any]", data)


def pretty_json(data: Mapping[str, Any]) -> bytes:
    """`data` as JSON for people."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def replace_file(path: Path, data: bytes) -> None:
    """Write `path` so that a reader, or a crash, sees either the old or the new content."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (a no-op where directories cannot be opened)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Force every file and directory below `root`, and `root`, to the disk."""
    for directory, _, names in os.walk(root, topdown=False):
        for name in names:
            descriptor = os.open(Path(directory) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(directory))


def remove_tree(path: Path) -> None:
    """Remove a file, link or directory; what is already gone is fine."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def tree_size_bytes(path: Path) -> int:
    """Bytes of all files below `path`; files that vanish meanwhile count nothing."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(directory) / name).lstat().st_size
    return total


def explain_os_error(error: OSError, path: Path) -> str:
    """What happened and what to do, in one or two lines."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{reason}: {path}.\n"
            "  Free some space and go on with --resume, or put the run elsewhere with --out."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{reason}: {path} cannot be written.\n  Choose a directory of your own with --out."
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{path} is no directory: a file is in the way. Choose another name with --out."
    if error.errno == errno.ENAMETOOLONG:
        return f"{reason}: {path}. Choose a shorter name with --out."
    return f"{reason}: {path}"
