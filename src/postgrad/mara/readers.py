"""Rows of CSV, TSV and JSON-lines files, with the line each came from; and cells as numbers and verdicts."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from postgrad.core.errors import DataError, nearest

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")

_TRUE = ("true", "yes", "1", "1.0")
_FALSE = ("false", "no", "0", "0.0")


class Row(NamedTuple):
    """One row: the line where it ends, and its cells by column (text from a CSV, any JSON value from a JSONL)."""

    line: int
    cells: dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """All rows of a table, at least one. A last line of a JSONL that is cut off is left out: a run may still be writing.

    Raises:
        DataError: no such file, another format, or a line that cannot be read; names file and line.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} is no table that can be read here. Valid: {', '.join(SUFFIXES)}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text. Save it as UTF-8.") from None
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error}") from None
    if not text.strip():
        raise DataError(f"{path} is empty.")
    rows = _csv(text, path) if path.suffix.lower() in (".csv", ".tsv") else _lines(text, path)
    if not rows:
        raise DataError(f"{path} holds no complete row.")
    return rows


def _csv(text: str, path: Path) -> list[Row]:
    first = text.lstrip("\r\n").splitlines()[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",\t;", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[Row] = []
    header: list[str] = []
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if not header:
                header = _header(row, path)
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(row)} cells, but the header has {len(header)}. An answer "
                    f"that holds the delimiter {delimiter!r} needs quotes."
                )
            rows.append(Row(reader.line_num, dict(zip(header, row, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from None
    return rows


def _header(row: list[str], path: Path) -> list[str]:
    header = [cell.strip() for cell in row]
    twice = sorted({cell for cell in header if cell and header.count(cell) > 1})
    if twice:
        raise DataError(f"{path}: several columns are called {twice[0]!r}. Rename all but one.")
    return header


def _lines(text: str, path: Path) -> list[Row]:
    rows: list[Row] = []
    lines = [(index, line) for index, line in enumerate(text.split("\n"), 1) if line.strip()]
    for index, line in lines:
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            if index == lines[-1][0] and not text.endswith("\n"):
                break
            raise DataError(
                f"{path}, line {index}: not valid JSON ({error.msg}). Correct or remove that line."
            ) from None
        if not isinstance(data, dict):
            raise DataError(f"{path}, line {index}: expected an object, not {type(data).__name__}.")
        rows.append(Row(index, data))
    return rows


def require_columns(rows: list[Row], wanted: tuple[str, ...], path: Path) -> None:
    """Raises DataError unless every row has these columns."""
    for row in rows:
        for column in wanted:
            if column not in row.cells:
                raise DataError(
                    f"{path}, line {row.line}: no column {column!r}. {nearest(column, row.cells)} "
                    f"Needed: {', '.join(wanted)}."
                )


def number(value: Any, path: Path, line: int, column: str) -> float | None:
    """A cell as a number (infinities and NaN too); None where it is empty or null.

    Raises:
        DataError: it is text or something else.

    >>> number(" 0.5 ", Path("t.csv"), 2, "reward"), number("", Path("t.csv"), 2, "reward")
    (0.5, None)
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        if isinstance(value, (bool, int, float, str)):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise DataError(f"{path}, line {line}: {column} must be a number, not {value!r}.")


def verdict(value: Any, path: Path, line: int, column: str) -> bool | None:
    """A cell as true or false; None where it is empty or null.

    Raises:
        DataError: it is neither.

    >>> verdict("Yes", Path("t.csv"), 2, "correct"), verdict(0, Path("t.csv"), 2, "correct")
    (True, False)
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    word = str(value).strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise DataError(f"{path}, line {line}: {column} must be true or false, not {value!r}.")


def finite(value: float | None) -> float | None:
    """The number, or None where it is NaN or infinite."""
    return None if value is None or not math.isfinite(value) else value
