"""A JSON schema said in words, for servers and models that know no response formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from postgrad.core.types import Message


def with_schema(messages: Sequence[Message], schema: Mapping[str, Any]) -> list[Message]:
    """The messages with the schema at the end of the last turn, where it does not spoil the server's prefix cache.

    >>> with_schema([{"role": "user", "content": "2 + 2?"}], {"type": "object"})[0]["content"]
    '2 + 2?\\n\\nAnswer with one JSON object that follows this JSON schema, and nothing else:\\n{"type": "object"}'
    """
    said = (
        "Answer with one JSON object that follows this JSON schema, and nothing else:\n"
        f"{json.dumps(schema, ensure_ascii=False)}"
    )
    if not messages or messages[-1]["role"] != "user":
        return [*messages, {"role": "user", "content": said}]
    return [*messages[:-1], {"role": "user", "content": f"{messages[-1]['content']}\n\n{said}"}]


def response_format(schema: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
    """The field `response_format` of a request; None for kind `text`."""
    if kind == "json_schema":
        title = "".join(
            c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in str(schema.get("title", ""))
        )
        described: dict[str, Any] = {"name": title[:64] or "reply", "schema": dict(schema)}
        if is_strict(schema):
            described["strict"] = True
        return {"type": "json_schema", "json_schema": described}
    return {"type": "json_object"} if kind == "json_object" else None


def is_strict(schema: Any) -> bool:
    """Every object forbids further properties and requires all of its own: only then may a server be asked for `strict`.

    >>> is_strict({"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False})
    True
    >>> is_strict({"type": "object", "properties": {"a": {"default": 1}}})
    False
    """
    if isinstance(schema, Mapping):
        if schema.get("type") == "object" or "properties" in schema:
            properties = schema.get("properties", {})
            if schema.get("additionalProperties") is not False or set(properties) != set(
                schema.get("required", ())
            ):
                return False
            rest = {key: part for key, part in schema.items() if key != "properties"}
            return all(map(is_strict, properties.values())) and all(map(is_strict, rest.values()))
        return "default" not in schema and all(map(is_strict, schema.values()))
    return all(map(is_strict, schema)) if isinstance(schema, (list, tuple)) else True
