"""CSV, TSV, JSONL and JSON tables, also those that W&B's web page exports."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from postgrad.core.errors import DataError
from postgrad.scaling.curve import Log
from postgrad.scaling.readers.columns import number, to_columns

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")

_DECIMAL_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(\.\d{3})+(,\d+)?")

Rows = list[tuple[int, list[str]]]


def read(paths: Sequence[Path], name: str) -> Log:
    """One table. Raises DataError naming the file and the line."""
    path = paths[0]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text. Save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error}") from None
    if not text.strip():
        raise DataError(f"{path} is empty: nothing was logged, or it was not written yet.")
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return Log(name, "CSV", _csv(text, path))
    if suffix == ".json":
        return Log(name, "JSON", _json(text, path))
    return Log(name, "JSONL", to_columns(_lines(text, path)))


def _csv(text: str, path: Path) -> dict[str, list[Any]]:
    first = text.lstrip("\r\n").splitlines()[0]
    delimiter = max(",\t;", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from None
    header = [cell.strip() for cell in rows[0][1]]
    if all(number(cell.replace(",", ".")) is not None for cell in header):
        raise DataError(f"{path} has no header: its first line is {first!r}. Name the columns there.")
    named = [cell for cell in header if cell]  # pandas writes its index without a name
    if len(set(named)) < len(named):
        twice = sorted({cell for cell in named if named.count(cell) > 1})
        raise DataError(f"{path}: several columns are called {twice[0]!r}. Rename all but one.")
    body = _complete(rows[1:], len(header), path, torn=not text.endswith(("\n", "\r")))
    decimal_comma = delimiter != "," and any(
        _DECIMAL_COMMA.fullmatch(c.strip()) for _, row in body for c in row
    )
    columns: dict[str, list[Any]] = {}
    for index, key in enumerate(header):
        if not key or key.endswith(("__MIN", "__MAX")):  # W&B's web export adds these to each metric
            continue
        cells = [row[index].strip() for _, row in body]
        if decimal_comma:
            cells = [_with_point(cell) for cell in cells]
        columns[_short(key, header)] = [None if cell == "" else cell for cell in cells]
    return columns


def _complete(rows: Rows, width: int, path: Path, *, torn: bool) -> Rows:
    """Rows of that width; a shorter last one without an end of line was being written and is left out."""
    if torn and rows and len(rows[-1][1]) < width:
        rows = rows[:-1]
    for line, row in rows:
        if len(row) != width:
            raise DataError(
                f"{path}, line {line}: {len(row)} cells, but the header has {width}. Correct that line."
            )
    if not rows:
        raise DataError(f"{path} has a header and no complete row: nothing was logged yet.")
    return rows


def _with_point(cell: str) -> str:
    """A number of a table with decimal commas.

    >>> [_with_point(cell) for cell in ("0,5", "1.234,5", "12.000", "0.25", "name")]
    ['0.5', '1234.5', '12000', '0.25', 'name']
    """
    if _THOUSANDS.fullmatch(cell) and not cell.lstrip("+-").startswith("0."):
        cell = cell.replace(".", "")
    return cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell


def _short(key: str, header: Sequence[str]) -> str:
    """`run-name - eval/acc` of a W&B export as `eval/acc`, where that is unambiguous."""
    short = key.rsplit(" - ", 1)[-1]
    same = [k for k in header if k.rsplit(" - ", 1)[-1] == short and not k.endswith(("__MIN", "__MAX"))]
    return short if len(same) == 1 else key


def _json(text: str, path: Path) -> dict[str, list[Any]]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: {error}. One object per line is called .jsonl.") from None
    if isinstance(data, list) and data and all(isinstance(row, dict) for row in data):
        return to_columns(data)
    if isinstance(data, dict) and data and all(isinstance(column, list) for column in data.values()):
        if len({len(column) for column in data.values()}) > 1:
            raise DataError(
                f"{path}: its columns have different lengths. Give each the same number of values."
            )
        return data
    raise DataError(f"{path} is no table: expected a list of objects, or an object of columns.")


def _lines(text: str, path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    lines = [(index, line) for index, line in enumerate(text.split("\n"), 1) if line.strip()]
    for index, line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if index == lines[-1][0]:  # a run that is still writing, or was killed
                break
            raise DataError(
                f"{path}, line {index}: not valid JSON ({error.msg}). Correct or remove that line."
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {index}: expected an object of metrics, not {type(row).__name__}.")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} holds no complete row: nothing was logged yet.")
    return rows
