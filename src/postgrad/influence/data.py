"""Examples from files: a JSONL of rows, a text file, or a directory of text files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from postgrad.core.errors import DataError

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")


def read_examples(path: Path | str) -> list[dict[str, Any]]:
    """Rows for `run`, with an id each: that of the row, else `FILE:LINE`; a text file is one example with its name as id.

    Raises:
        DataError: nothing there, or a row that is no JSON object; names file and line.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES)
        if not files:
            raise DataError(f"{path} holds no text files ({', '.join(TEXT_SUFFIXES)}).")
        return [{"id": str(file.relative_to(path)), "text": _read(file)} for file in files]
    if not path.is_file():
        raise DataError(f"No file or directory {path} (looked in {Path.cwd()}).")
    if path.suffix in TEXT_SUFFIXES:
        return [{"id": path.name, "text": _read(path)}]
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f'{path}, line {number} is no object such as {{"text": "…"}}.')
        rows.append({"id": f"{path.name}:{number}", **row})
    if not rows:
        raise DataError(f"{path} is empty: there is nothing to attribute.")
    return rows


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path} as text: {error}") from None
