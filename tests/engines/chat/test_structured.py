"""Objects in text, and asking again."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Literal

import pydantic
import pytest
from tests.engines.chat.fakes import FakeChat

from postgrad.engines.chat import Answer, Call, Reply, ask
from postgrad.engines.chat.structured import objects, read


class Tag(pydantic.BaseModel):
    id: str
    tag: Literal["helpful", "harmful"] = "helpful"


class Reflection(pydantic.BaseModel):
    reasoning: str
    tags: list[Tag] = []


class Lenient(pydantic.BaseModel):
    note: str = ""
    more: dict[str, Any] = {}


WHOLE = '{"reasoning": "a {b} \\"c\\"", "tags": [{"id": "x-1", "tag": "harmful"}]}'


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        f"  {WHOLE}\n",
        f"```json\n{WHOLE}\n```",
        f"Here {{it}} is:\n\n```\n{WHOLE}\n```\nI hope {{this}} helps!",
        f'<think>{{"reasoning": "draft", "tags": []}}</think>\n{WHOLE}',
        f'A draft: {{"reasoning": "draft"}}. Now the answer: {WHOLE}}}',
        f'{WHOLE} {{"unrelated": 1}}',
        f'{{"$schema": "x", "title": "Reflection"}}\n{WHOLE}',
        "{'reasoning': 'a {b} \"c\"', 'tags': [{'id': 'x-1', 'tag': 'harmful',},],}",
        WHOLE.replace("}]}", "},\n ],\n}"),
    ],
)
def test_the_object_is_found_in_what_surrounds_it(text: str) -> None:
    assert read(text, Reflection) == (Reflection.model_validate_json(WHOLE), "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": True, "b": None, "c": "True, None"}', {"a": True, "b": None, "c": "True, None"}),
        ('{"a": "one\ntwo"}', {"a": "one\ntwo"}),
        (r'{"a": "\(x\) \d \n", "b": 1,}', {"a": "\\(x\\) \\d \n", "b": 1}),
        ("{'a': 'it\\'s \"so\"'}", {"a": 'it\'s "so"'}),
        ("{}", {}),
    ],
)
def test_quirks_of_models(text: str, value: dict[str, Any]) -> None:
    assert list(objects(text)) == [value]


def test_nothing_is_taken_from_inside_an_object_that_is_cut_off_or_broken() -> None:
    assert list(objects('{"reasoning": "x", "inner": {"reasoning": "draft"}, "tags": [')) == []
    assert list(objects('{"x": {"reasoning": "draft"} oops 1 2}, then {"reasoning": "y"}')) == [
        {"reasoning": "y"}
    ]
    assert read("<think>{'reasoning': 'still thinking'}", Reflection)[0] is None
    assert read('{"other": 1}', Lenient) == (None, "its JSON object has none of the fields more, note")


@pytest.mark.parametrize(
    "text",
    [
        "{" * 200_000,
        '{"a":' * 100_000,
        '{"a":[' * 100_000,
        "{'" * 200_000,
        '{"' * 200_001,
        '{"a": 1 ' * 100_000,
        "{}" * 200_000,
    ],
)
def test_hostile_text_is_read_in_bounded_time(text: str) -> None:
    begun = time.monotonic()
    assert read(text, Reflection)[0] is None
    assert time.monotonic() - begun < 5


def asked(chat: FakeChat, repairs: int = 2) -> Answer[Reflection]:
    call = Call("7/reflect", "reflector", ({"role": "user", "content": "Why?"},))
    return asyncio.run(ask(chat, call, Reflection, repairs))


def in_turn(*replies: str | Reply) -> FakeChat:
    left = list(replies)
    return FakeChat(lambda _: left.pop(0))


def test_a_valid_reply_costs_one_call() -> None:
    chat = in_turn(WHOLE)
    answer = asked(chat)
    assert answer.value == Reflection.model_validate_json(WHOLE)
    assert (len(answer.replies), answer.problems) == (1, ())
    assert chat.calls[0].schema == Reflection.model_json_schema()


def test_a_reply_that_cannot_be_used_is_asked_for_again_with_the_error() -> None:
    chat = in_turn('{"tags": [{"id": 3}]}', "Sorry.", WHOLE)
    answer = asked(chat)
    assert answer.value is not None
    assert len(answer.replies) == 3
    assert [call.key for call in chat.calls] == ["7/reflect", "7/reflect/repair1", "7/reflect/repair2"]
    assert {call.role for call in chat.calls} == {"reflector"}
    assert chat.calls[1].schema == chat.calls[0].schema
    roles = [message["role"] for message in chat.calls[1].messages]
    assert roles == ["user", "assistant", "user"]
    assert chat.calls[1].messages[1]["content"] == '{"tags": [{"id": 3}]}'
    said = chat.calls[1].messages[2]["content"]
    assert "reasoning: Field required" in said
    assert "tags.0.id: Input should be a valid string (received 3)" in said
    assert "no complete JSON object" in answer.problems[1]
    assert len(chat.calls[2].messages) == 3  # the last failure alone, or prompts would grow


def test_repairs_are_bounded_and_what_was_wrong_is_kept() -> None:
    chat = FakeChat(lambda _: "no")
    answer = asked(chat, repairs=2)
    assert (answer.value, len(answer.replies), len(answer.problems)) == (None, 3, 3)
    assert len(asked(FakeChat(lambda _: "no"), repairs=0).replies) == 1


def test_a_reply_that_was_cut_off_is_said_to_be() -> None:
    chat = in_turn(Reply('{"reasoning": "so lo', finish_reason="length"), WHOLE)
    assert asked(chat).value is not None
    assert "cut off at the limit of its length. Answer more briefly" in chat.calls[1].messages[2]["content"]


@pytest.mark.parametrize("empty", ["", " \n", "<think>hm</think>"])
def test_an_empty_reply_makes_no_empty_turn(empty: str) -> None:
    chat = in_turn(empty, WHOLE)
    assert asked(chat).value is not None
    (turn,) = chat.calls[1].messages
    assert turn["content"].startswith(
        "Why?\n\n(An earlier reply could not be used: it holds no complete JSON object"
    )


def test_fields_may_have_other_names_in_the_reply() -> None:
    class Renamed(pydantic.BaseModel):
        answer: int = pydantic.Field(0, validation_alias=pydantic.AliasChoices("result", "final"))

    class Aliased(pydantic.BaseModel):
        answer: int = pydantic.Field(0, alias="result")

    assert read('{"final": 4}', Renamed)[0] == Renamed.model_validate({"final": 4})
    assert read('{"result": 4}', Aliased)[0] == Aliased.model_validate({"result": 4})
    assert read('{"final": 4}', Aliased)[0] is None
