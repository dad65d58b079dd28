"""Rows of metrics to columns, and JSON that knows NaN."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def to_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns of equal length, None where a row has no such key; nested tables get dotted keys.

    >>> to_columns([{"step": 1, "eval": {"acc": 0.5}}, {"step": 2, "loss": 3.0}])
    {'step': [1, 2], 'eval.acc': [0.5, None], 'loss': [None, 3.0]}
    """
    flat = [dict(_flatten("", row)) for row in rows]
    keys = dict.fromkeys(key for row in flat for key in row)
    return {key: [row.get(key) for row in flat] for key in keys}


def _flatten(prefix: str, row: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flatten(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def number(value: Any) -> float | None:
    """A cell as a number; None for text, lists, booleans and nothing. The words nan and inf are numbers.

    >>> number("1e-3"), number("NaN"), number(""), number(True), number("abc"), number(7)
    (0.001, nan, None, None, None, 7.0)
    """
    if value is None or isinstance(value, (bool, list, tuple, dict)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
