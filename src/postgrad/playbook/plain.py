"""Operations of a playbook as rows of JSON, and what each of their fields may hold.

A log is read by whoever finds it, so nothing in it is believed: a row gives an operation that `fold` understands, or a DataError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from math import isfinite
from typing import Any

from postgrad.core.errors import DataError
from postgrad.playbook.book import (
    KINDS,
    MAX_COUNT,
    Add,
    Mark,
    Merge,
    Operation,
    Retire,
    Rollback,
    SetTrust,
    Tag,
    Update,
    is_id,
    is_old_id,
)

_NAMES = {kind: name for name, kind in KINDS.items()}
_DEFAULTS = {kind: {item.name: item.default for item in fields(kind)} for kind in KINDS.values()}


def to_plain(operation: Operation) -> dict[str, Any]:
    """An operation as JSON; what is as by default is left out."""
    kind = type(operation)
    defaults = _DEFAULTS[kind]
    found: dict[str, Any] = {"op": _NAMES[kind]}
    for name, default in defaults.items():
        value = getattr(operation, name)
        if value != default:
            found[name] = value
    return found


def from_plain(row: Mapping[str, Any]) -> Operation:
    """The reverse of `to_plain`.

    Raises:
        DataError: no such operation, other fields than it has, or a value that cannot be.

    >>> from_plain(to_plain(Merge(("calc-00001", "calc-00002"))))
    Merge(ids=('calc-00001', 'calc-00002'), text=None)
    """
    try:
        values = dict(row)
        kind = KINDS[values.pop("op")]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"No operation of a playbook: {_short(row)}. Known: {', '.join(KINDS)}.") from None
    if kind is Merge and type(values.get("ids")) is list:
        values["ids"] = tuple(values["ids"])
    checks = _CHECKS[kind]
    try:
        for name, value in values.items():
            if not checks[name](value):
                raise DataError(f"{_short(row)}: {name} is not {_WANTED[checks[name]]}.")
        return kind(**values)
    except KeyError as error:
        raise DataError(f"{_short(row)}: no field {error}; there are {', '.join(checks)}.") from None
    except TypeError as error:
        raise DataError(f"{_short(row)}: {error}.") from None


def _short(value: object) -> str:
    """For messages: a hostile row may be long, or hold numbers too long to print."""
    try:
        return repr(value)[:200]
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"


_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _is_line(value: object) -> bool:
    # `isprintable` alone would depend on Python's version of Unicode, and so on who reads the log.
    if type(value) is not str or not (value.isprintable() or _BREAKS.search(value) is None):
        return False
    return value != "" and not value.isspace()


def _is_line_or_none(value: object) -> bool:
    return value is None or _is_line(value)


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_text_or_none(value: object) -> bool:
    return value is None or type(value) is str


def _is_id(value: object) -> bool:
    return type(value) is str and is_id(value)


def _is_new_id(value: object) -> bool:
    return value is None or (type(value) is str and is_old_id(value))


def _is_ids(value: object) -> bool:
    return type(value) is tuple and all(map(_is_id, value)) and len(set(value)) == len(value) > 1


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _is_trust(value: object) -> bool:
    return type(value) is str and value in ("trusted", "quarantined")


def _is_name(value: object) -> bool:
    return type(value) is str and re.fullmatch(r"[A-Za-z][\w.-]{0,63}", value, re.ASCII) is not None


def _is_score(value: object) -> bool:
    return (
        value is None
        or (type(value) is float and isfinite(value))
        or (type(value) is int and abs(value) <= MAX_COUNT)
    )


_WANTED: Mapping[Callable[[object], bool], str] = {
    _is_line: "one line of text",
    _is_line_or_none: "one line of text, or null",
    _is_text: "text",
    _is_text_or_none: "text, or null",
    _is_id: "the id of a bullet; ids look like calc-00003",
    _is_new_id: "an id that a bullet can have; ids look like calc-00003",
    _is_ids: "a list of two or more different ids",
    _is_count: f"a whole number from 0 to {MAX_COUNT}",
    _is_trust: "'trusted' or 'quarantined'",
    _is_name: "a name that begins with a letter and has letters, digits, '.', '_' and '-', at most 64",
    _is_score: "a finite number, or null",
}
_CHECKS: Mapping[type[Any], Mapping[str, Callable[[object], bool]]] = {
    Add: {
        "section": _is_line,
        "text": _is_line,
        "id": _is_new_id,
        "helpful": _is_count,
        "harmful": _is_count,
        "trust": _is_trust,
        "source": _is_text_or_none,
    },
    Update: {"id": _is_id, "text": _is_line},
    Merge: {"ids": _is_ids, "text": _is_line_or_none},
    Retire: {"id": _is_id, "reason": _is_text},
    Tag: {"id": _is_id, "helpful": _is_count, "harmful": _is_count},
    SetTrust: {"id": _is_id, "trust": _is_trust},
    Mark: {"name": _is_name, "score": _is_score},
    Rollback: {"version": _is_count},
}
