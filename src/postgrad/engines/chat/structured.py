"""A reply that follows a schema: found in the text, validated, and asked for again with the error, a bounded number of times."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

import pydantic

from postgrad.core.types import Message
from postgrad.engines.chat.types import Call, Chat, Reply

T = TypeVar("T", bound=pydantic.BaseModel)

_MAX_CHARACTERS = 1_000_000
"""Of a reply, its end is searched."""
_MAX_OBJECTS = 200
_MAX_ECHO_CHARACTERS = 20_000
"""Of a reply that could not be used, shown to the model again."""
_SHOWN_CHARACTERS = 100
_NUM_ERRORS = 5

_DECODER = json.JSONDecoder(strict=False)  # line breaks inside strings are taken as meant
_OPENING = re.compile(r"\{(?=\s*[\"'}])")
_NO_TEXT: dict[str, str] = {"True": "true", "False": "false", "None": "null"}
_TOKEN = re.compile(
    r"""(?P<double>"(?:[^"\\]|\\.)*")|(?P<single>'(?:[^'\\]|\\.)*')|(?P<word>\b(?:True|False|None)\b)"""
    r"""|(?P<comma>,(?=\s*[}\]]))|(?P<open>[{\[])|(?P<close>[}\]])""",
    re.S,
)
_BAD_ESCAPE = re.compile(r"\\(?:([\"\\/bfnrt]|u[0-9a-fA-F]{4})|(.))", re.S)


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What came of asking.

    Attributes:
        value: None when no reply could be used.
        replies: all that were had, the last one gave the value.
        problems: what was wrong with each of the others.
    """

    value: T | None
    replies: tuple[Reply, ...]
    problems: tuple[str, ...] = ()


async def ask(chat: Chat, call: Call, schema: type[T], repairs: int = 2) -> Answer[T]:
    """Ask for a reply that is valid as `schema`.

    A reply that is not is answered with what is wrong with it, in a call with the key `KEY/repair1`, `KEY/repair2`, …
    Of several valid objects in a reply the last counts, as a draft comes before the answer.

    Args:
        call: its `schema` is taken from `schema` if it has none.
        repairs: most further calls.

    Raises:
        ChatError: as `Chat.complete`, of any of the calls.
    """
    if call.schema is None:
        call = replace(call, schema=schema.model_json_schema())
    replies: list[Reply] = []
    problems: list[str] = []
    current = call
    for turn in range(repairs + 1):
        reply = await chat.complete(current)
        replies.append(reply)
        value, problem = read(reply.text, schema)
        if value is not None:
            return Answer(value, tuple(replies), tuple(problems))
        if reply.finish_reason == "length":
            problem = f"it was cut off at the limit of its length. Answer more briefly ({problem})"
        problems.append(problem)
        again = _asked_again(call.messages, reply, problem)
        current = replace(call, key=f"{call.key}/repair{turn + 1}", messages=again)
    return Answer(None, tuple(replies), tuple(problems))


def read(text: str, schema: type[T]) -> tuple[T | None, str]:
    """The last object in a text that is valid as `schema`, or None and what is wrong.

    >>> class Sum(pydantic.BaseModel):
    ...     total: int
    >>> read("<think>{}</think>Here it is:\\n```json\\n{'total': 4,}\\n```\\nDone.", Sum)
    (Sum(total=4), '')
    >>> read('{"total": "many"}', Sum)[1]
    'total: Input should be a valid integer, unable to parse string as an integer (received "many")'
    """
    names = _names(schema)
    found: T | None = None
    problem = ""
    for data in objects(text):
        if names and not names.intersection(data):
            problem = problem or f"its JSON object has none of the fields {', '.join(sorted(names))}"
            continue
        try:
            found = schema.model_validate(data)
        except pydantic.ValidationError as error:
            problem = _explain(error)
        except RecursionError:
            problem = "its JSON is nested too deeply"
    return (found, "") if found is not None else (None, problem or "it holds no complete JSON object")


def _names(schema: type[pydantic.BaseModel]) -> set[str]:
    """The keys that an object of this schema may have; empty where that is not certain."""
    names = set(schema.model_fields)
    for field in schema.model_fields.values():
        if field.validation_alias is not None:
            if not isinstance(field.validation_alias, str):
                return set()
            names.add(field.validation_alias)
    return names


def visible(text: str) -> str:
    """What follows the model's thinking; nothing if that does not end.

    >>> visible("<think>hm</think>4"), visible("<think>hm"), visible("4")
    ('4', '', '4')
    """
    _, end, after = text.rpartition("</think>")
    return "" if not end and text.lstrip().startswith("<think>") else after


def objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects in the visible part of a text (after any `</think>`), in their order.

    Read with some leniency: trailing commas, single quotes, True/False/None, line breaks and stray backslashes in strings.
    Nothing is looked for inside an object that does not end.

    >>> list(objects('see {x}: {"a": {"b": [1, 2,],}} and {"path": "C:\\\\dir"} {"cut": {"c": 1}'))
    [{'a': {'b': [1, 2]}}, {'path': 'C:\\\\dir'}]
    """
    text = visible(text)[-_MAX_CHARACTERS:]
    place = 0
    for _ in range(_MAX_OBJECTS):
        opening = _OPENING.search(text, place)
        if opening is None:
            return
        start = opening.start()
        try:
            data, place = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            plain, place = _normalised(text, start)
            if plain is None:
                return
            try:
                data = _DECODER.decode(plain)
            except (ValueError, RecursionError):
                continue
        yield cast("dict[str, Any]", data)


def _normalised(text: str, start: int) -> tuple[str | None, int]:
    """The object that begins at `start` as JSON, and where it ends; None if it does not end."""
    parts: list[str] = []
    depth, place = 0, start
    for token in _TOKEN.finditer(text, start):
        parts.append(text[place : token.start()])
        place = token.end()
        word = token.group()
        match token.lastgroup:
            case "double":
                word = _escaped(word)
            case "single":
                word = _escaped('"' + word[1:-1].replace("\\'", "'").replace('"', '\\"') + '"')
            case "word":
                word = _NO_TEXT[word]
            case "comma":
                word = ""
            case "open":
                depth += 1
            case _:
                depth -= 1
        parts.append(word)
        if depth == 0:
            return "".join(parts), place
    return None, len(text)


def _escaped(string: str) -> str:
    return _BAD_ESCAPE.sub(lambda found: found.group() if found.group(1) else f"\\\\{found.group(2)}", string)


def _explain(error: pydantic.ValidationError) -> str:
    """Where and what, for the first few errors."""
    said: list[str] = []
    for item in error.errors(include_url=False, include_context=False)[:_NUM_ERRORS]:
        place = ".".join(map(str, item["loc"])) or "the object"
        received = ""
        if item["type"] != "missing":
            shown = json.dumps(item["input"], ensure_ascii=False, default=repr)
            received = (
                f" (received {shown[:_SHOWN_CHARACTERS]}{'…' if len(shown) > _SHOWN_CHARACTERS else ''})"
            )
        said.append(f"{place}: {item['msg']}{received}")
    more = error.error_count() - len(said)
    return "; ".join(said) + (f"; and {more} more" if more > 0 else "")


def _asked_again(messages: tuple[Message, ...], reply: Reply, problem: str) -> tuple[Message, ...]:
    """The conversation with the reply and what is wrong with it.

    A reply without visible text is left out, as servers refuse empty turns; two turns of the user in a row, which some chat
    templates refuse, become one.
    """
    said = "answer the question with one JSON object that follows the schema, and nothing else."
    text = visible(reply.text).strip()
    if text:
        shown = text if len(text) <= _MAX_ECHO_CHARACTERS else text[:_MAX_ECHO_CHARACTERS] + " …"
        return (
            *messages,
            {"role": "assistant", "content": shown},
            {"role": "user", "content": f"Your reply cannot be used: {problem}. Please {said}"},
        )
    said = f"(An earlier reply could not be used: {problem}. Please {said})"
    if messages and messages[-1]["role"] == "user":
        return (*messages[:-1], {"role": "user", "content": f"{messages[-1]['content']}\n\n{said}"})
    return (*messages, {"role": "user", "content": said})
