"""Where a playbook is read from: a run's directory, a log, or a text in the published format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from postgrad.core.errors import DataError
from postgrad.playbook.book import Delta, Playbook, fold
from postgrad.playbook.log import NAME, PlaybookLog
from postgrad.playbook.text import parse_text

MAX_TEXT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Opened:
    """A playbook and where it is from.

    Attributes:
        path: of the file itself.
        name: in words: of the run, or of the file without its ending.
        playbook: at the version asked for.
        log: None where it was read from a text, which has but one version.
        problems: lines of a text that could not be taken, and why.
    """

    path: Path
    name: str
    playbook: Playbook
    log: PlaybookLog | None = None
    problems: Sequence[str] = ()


def open_playbook(path: Path | str, at: int | str | None = None) -> Opened:
    """A playbook, wherever it is; nothing is written.

    Args:
        path: a run's directory, a log (.jsonl), or a text in the published format.
        at: number of a version or a mark of a log; None = as it is now.

    Raises:
        DataError: nothing there, no playbook, or no such version; it says what would be one.
        RunError: the log cannot be read.
    """
    place = Path(path).expanduser()
    file = log_path(place)
    if file.suffix.lower() == ".jsonl" or _begins(file, b'{"parent"'):
        log = PlaybookLog(file)
        name = place.resolve().name if place.is_dir() else file.stem
        return Opened(file, name, log.playbook if at is None else log.at(at), log)
    if at is not None:
        raise DataError(f"{file} is a text and has one version; only a log ({NAME}) has earlier ones.")
    try:
        if file.stat().st_size > MAX_TEXT_BYTES:
            raise DataError(f"{file} has more than {MAX_TEXT_BYTES:,} bytes: no playbook.")
        parsed = parse_text(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no UTF-8 text: byte {error.start + 1}.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from None
    if not parsed.adds:
        shown = "".join(f"\n  {problem}" for problem in parsed.problems[:3])
        raise DataError(
            f"{file} holds no bullet. A playbook is a log ({NAME}), a run's directory with one, or a text with lines such as\n"
            f"  [calc-00003] helpful=8 harmful=0 :: NPV = …{shown}"
        )
    book = fold([Delta(tuple(parsed.adds), f"file {file.name}")])
    return Opened(file, file.stem, book, None, parsed.problems)


def log_path(path: Path | str) -> Path:
    """The file of a path: of a directory, its log.

    Raises:
        DataError: there is none.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        if not (place / NAME).is_file():
            raise DataError(f"{place} holds no {NAME}: it is no run of `postgrad playbook learn`.")
        return place / NAME
    if not place.exists():
        raise DataError(f"No playbook at {place}: there is no such file or directory.")
    if not place.is_file():
        raise DataError(f"{place} is no file.")
    return place


def open_log(path: Path | str) -> PlaybookLog:
    """The log of a path, for writing to it.

    Raises:
        DataError: there is none, or it is a text, which has no versions.
        RunError: it cannot be read.
    """
    found = open_playbook(path)
    if found.log is None:
        raise DataError(
            f"{found.path} is a text, not a log. Make it one: postgrad playbook import NEW.jsonl {found.path}"
        )
    return found.log


def _begins(file: Path, start: bytes) -> bool:
    try:
        with file.open("rb") as handle:
            return handle.read(len(start)) == start
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from None
