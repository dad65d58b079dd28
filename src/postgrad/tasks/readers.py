"""Rows of JSONL, JSON, CSV and Parquet files, of `datasets` sources and of functions, each with its place."""

from __future__ import annotations

import csv
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from postgrad.core.errors import ConfigError, DataError, PostgradError, nearest
from postgrad.tasks.extras import require
from postgrad.tasks.function import load_callable

Row = tuple[str, dict[str, Any]]
"""Where the row stands (`file.jsonl:12`, `name row 3`) and its columns."""

HUB_OPTIONS = ("name", "revision", "data_dir", "data_files")
"""Options that are passed on to `datasets.load_dataset`."""

_MAX_CSV_FIELD_CHARACTERS = 2**27
_FUNCTION = re.compile(r"[^:]+:[A-Za-z_]\w*")


def read_rows(
    source: str, split: str, limit: int, options: Mapping[str, Any], seed: int = 0
) -> Iterator[Row]:
    """At most `limit` rows of `source`.

    Args:
        source: a file ending in .jsonl, .ndjson, .json, .csv or .parquet; a directory saved by
            `Dataset.save_to_disk`, or one that `datasets.load_dataset` reads; a hub data set name; or a function as
            `module:function` or `file.py:function`, called as function(size=limit, seed=seed, **options).
        split: of a `datasets` source.
        limit: most rows that are read.
        options: `HUB_OPTIONS` of a `datasets` source, or those of the function.
        seed: of a function.

    Raises:
        DataError: nothing there, or not what its ending says; names file and line. Or a function that fails.
        ConfigError: an option that the source does not have.
        TaskError: a function that cannot be imported.
        MissingExtraError: Parquet or `datasets` without the extra `data`.
    """
    path = Path(source).expanduser()
    if _FUNCTION.fullmatch(source) and not path.exists():
        function = load_callable(source, "Source", "--data.tasks.path my_prompts:rows")
        return islice(_function(source, function, {"size": limit, "seed": seed}, options), limit)
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    reader = None if path.is_dir() else readers.get(path.suffix.lower())
    if reader is None:
        if path.is_file():
            raise DataError(f"{path}: unknown ending {path.suffix!r}. Readable: {', '.join(readers)}.")
        return islice(_datasets(source, path, split, options), limit)
    if options:
        raise ConfigError(
            f"A file has no options (received {dict(options)!r}); they are for data sets by name."
        )
    if not path.is_file():
        raise DataError(f"No file {path} (looked in {Path.cwd()}).")
    return islice(_os_errors_named(reader(path), path), limit)


def _os_errors_named(rows: Iterator[Row], path: Path) -> Iterator[Row]:
    try:
        yield from rows
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error}") from None


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            text = _decode(line, place)
            if text.strip():
                yield place, _json_object(text, place)


def _decode(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text (byte {error.start + 1}: {error.reason}).") from None


def _json_object(text: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: not valid JSON ({error.msg}, column {error.colno}). Each line holds one object, such "
            'as {"prompt": "2 + 2?", "answer": "4"}.'
        ) from None
    return _checked_object(row, place)


def _checked_object(row: object, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected an object with named columns, found a {type(row).__name__}.")
    return row


def _json(path: Path) -> Iterator[Row]:
    """A list of objects; or, as some data sets on the hub are named, one object per line."""
    text = _decode(path.read_bytes(), str(path))
    if not text.lstrip().startswith("["):
        yield from _jsonl(path)
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}, column {error.colno})."
        ) from None
    for number, row in enumerate(rows, start=1):
        place = f"{path} row {number}"
        yield place, _checked_object(row, place)


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CSV_FIELD_CHARACTERS))
    with path.open("rb") as file:
        lines = (_decode(line, f"{path}:{number}") for number, line in enumerate(file, start=1))
        table = csv.DictReader(lines, strict=True)
        try:
            for row in table:
                place = f"{path}:{table.line_num}"
                if None in row or None in row.values():
                    width = len(table.fieldnames or ())
                    raise DataError(f"{place}: this row does not have the {width} columns of the header.")
                yield place, dict(row)
        except csv.Error as error:
            raise DataError(f"{path}:{table.reader.line_num}: not valid CSV ({error}).") from None


def _parquet(path: Path) -> Iterator[Row]:
    purpose = f"Reading {path.name}"
    parquet = require("pyarrow.parquet", package="pyarrow", extra="data", purpose=purpose)
    arrow_error = require("pyarrow", package="pyarrow", extra="data", purpose=purpose).ArrowException
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except arrow_error as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}).") from None


def _function(
    source: str, function: Callable[..., Any], given: Mapping[str, int], options: Mapping[str, Any]
) -> Iterator[Row]:
    clash = sorted(given.keys() & options.keys())
    if clash:
        raise ConfigError(f"{source}: {clash[0]} is an option of the task itself; leave it out of options.")
    try:
        inspect.signature(function).bind(**given, **options)
    except (TypeError, ValueError) as error:
        call = ", ".join(f"{key}={value!r}" for key, value in {**given, **options}.items())
        raise ConfigError(f"Source {source!r} is called as function({call}): {error}.") from None
    number = 0
    try:
        found: object = function(**given, **options)
        if not isinstance(found, Iterable):
            raise DataError(
                f"{source} gave a {type(found).__name__}; a source gives rows such as "
                '{"prompt": "2 + 2?", "answer": "4"}.'
            )
        for number, row in enumerate(found, start=1):
            if not isinstance(row, Mapping):
                raise DataError(
                    f"{source} row {number}: expected columns by name, found a {type(row).__name__}."
                )
            yield f"{source} row {number}", dict(row)
    except PostgradError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise DataError(f"{source} failed after row {number}: {type(error).__name__}: {error}") from error


def _datasets(source: str, path: Path, split: str, options: Mapping[str, Any]) -> Iterator[Row]:
    for option in options:
        if option not in HUB_OPTIONS:
            raise ConfigError(f"A data set by name has no option {option!r}. {nearest(option, HUB_OPTIONS)}")
    library = require(
        "datasets", package="datasets", extra="data", purpose=f"Reading the data set {source!r}"
    )
    saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    try:
        dataset = (
            library.load_from_disk(str(path))
            if saved
            else library.load_dataset(source, split=split, **options)
        )
    except Exception as error:  # offline, no such data set or split, a broken file: unrelated classes
        advice = (
            "Check the directory and the split."
            if path.is_dir()
            else "It is not a local file or directory, so it was looked up on the hub: check the name, the "
            "split, and whether this machine is online; or download it and give its path."
        )
        raise DataError(
            f"Cannot load {source!r} (split {split!r}): {type(error).__name__}: {error}\n  {advice}"
        ) from None
    if isinstance(dataset, library.DatasetDict):
        if split not in dataset:
            raise DataError(f"{source} has no split {split!r}. {nearest(split, dataset)}")
        dataset = dataset[split]
    return ((f"{source} row {number}", dict(row)) for number, row in enumerate(dataset, start=1))
