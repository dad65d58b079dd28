"""A journal pays for no call twice, wherever the run before it was killed."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.engines.chat.fakes import FakeChat
from tests.engines.chat.server import Answer, ChatServer

from postgrad.core.errors import ChatError, ConfigError, RunError
from postgrad.core.runfiles import LineFile
from postgrad.engines.chat import Call, ChatConfig, Journal, Reply, make_chat

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}


def call(key: str, text: str = "Hi", **changes: Any) -> Call:
    return Call(key, changes.pop("role", "curator"), ({"role": "user", "content": text},), **changes)


def echo(asked: Call) -> str:
    return f"{asked.key}: {asked.messages[-1]['content']} é\n\u2028"


def converse(chat: Any, calls: list[Call]) -> list[Reply]:
    async def run() -> list[Reply]:
        try:
            return await asyncio.gather(*map(chat.complete, calls))
        finally:
            await chat.close()

    return asyncio.run(run())


CALLS = [call("0/a"), call("0/b", "Hi"), call("1/a", "Ho", schema=SCHEMA)]


def test_a_recorded_call_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "calls.jsonl"
    first = FakeChat(echo)
    made = converse(Journal(first, path), CALLS)
    assert first.closed
    second = FakeChat(echo)
    reordered = replace(CALLS[2], schema={"properties": SCHEMA["properties"], "type": "object"})
    again = converse(Journal(second, path), [call("2/a"), CALLS[1], CALLS[0], reordered])
    assert [asked.key for asked in second.calls] == ["2/a"]
    assert again[1:] == [replace(made[n], replayed=True) for n in (1, 0, 2)]
    assert [reply.replayed for reply in made] == [False] * 3
    assert len(Journal(second, path)) == 4
    assert "Hi" not in json.dumps(
        [{**json.loads(line), "reply": 0} for line in path.read_text("utf-8").split("\n") if line]
    )


def test_cut_at_every_byte_the_journal_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "calls.jsonl"
    calls = CALLS[::2]
    whole = converse(Journal(FakeChat(echo), path), calls)
    data = path.read_bytes()
    ends = [n + 1 for n, byte in enumerate(data) if byte == 10]
    monkeypatch.setattr(LineFile, "sync", lambda _: None)  # this test is of what is in the file

    async def run() -> None:
        for size in range(len(data) + 1):
            path.write_bytes(data[:size])
            chat = FakeChat(echo)
            journal = Journal(chat, path)
            replies = [await journal.complete(asked) for asked in calls]
            await journal.close()
            assert len(chat.calls) == sum(end > size for end in ends)
            assert [replace(reply, replayed=False) for reply in replies] == whole
            assert path.read_bytes() == data

    asyncio.run(run())


def test_a_reply_is_on_the_disk_before_the_caller_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calls.jsonl"
    synced: list[int] = []
    monkeypatch.setattr(LineFile, "sync", lambda _: synced.append(path.read_bytes().count(b"\n")))

    async def run() -> None:
        journal = Journal(FakeChat(echo), path)
        for n, asked in enumerate(CALLS, start=1):
            await journal.complete(asked)
            assert synced[-1] == n

    asyncio.run(run())


def test_other_words_roles_schemas_and_settings_are_other_calls(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    converse(Journal(FakeChat(echo), path), CALLS)
    others = [call("0/a", "Hi!"), call("0/a", role="reflector"), call("0/a", schema={}), call("9")]
    chat = FakeChat(echo)
    converse(Journal(chat, path), others)
    assert len(chat.calls) == 4
    chat = FakeChat(echo, {"model": "another"})
    converse(Journal(chat, path), CALLS)
    assert len(chat.calls) == 3
    chat = FakeChat(echo)
    converse(Journal(chat, path), [*CALLS, *others])
    assert not chat.calls


def test_a_replay_that_meets_an_unknown_call_says_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    converse(Journal(FakeChat(echo), path, keep_prompts=True), CALLS)
    before = path.read_bytes()
    settings = {"model": "fake"}
    assert [reply.text for reply in converse(Journal(None, path, "replay"), CALLS)] == [
        echo(asked) for asked in CALLS
    ]
    cases = [
        (call("1/b", "Ho"), r"no call has this key; the nearest is '1/a', of 3 in all"),
        (call("0/b", "Hallo"), r"differs in message 1 of 1 from character 1 on \('Hi' then, 'Hallo' now\)\."),
        (call("0/b", role="critic"), r"role \('curator' then, 'critic' now\)"),
        (call("0/b", schema=SCHEMA), r"differs in schema\. Record it anew"),
        (Call("0/b", "curator", ()), r"number of messages \(1 then, 0 now\)"),
    ]
    for asked, words in cases:
        with pytest.raises(ChatError, match=words):
            converse(Journal(None, path, "replay", settings=settings), [asked])
    with pytest.raises(ChatError, match=r"the model's settings \(model, seed\)"):
        converse(Journal(None, path, "replay", settings={"model": "other", "seed": 1}), CALLS)
    chat = FakeChat(echo)
    with pytest.raises(ChatError, match="no call has this key"):
        converse(Journal(chat, path, "replay"), [call("x")])
    assert not chat.calls
    assert path.read_bytes() == before
    path.write_bytes(before[:-5])
    assert len(Journal(None, path, "replay")) == 2
    assert path.read_bytes() == before[:-5]


def test_what_is_redacted_is_redacted_for_everybody(tmp_path: Path) -> None:
    """So a run that resumes sees the same replies as the run before it."""
    path = tmp_path / "calls.jsonl"

    def redact(text: str) -> str:
        return text.replace("hunter2", "[secret]")

    chat = FakeChat(lambda _: "the password is hunter2")
    asked = [call("0", "is it hunter2?")]
    (live,) = converse(Journal(chat, path, redact=redact, keep_prompts=True), asked)
    (replayed,) = converse(Journal(chat, path, redact=redact, keep_prompts=True), asked)
    assert live.text == replayed.text == "the password is [secret]"
    assert len(chat.calls) == 1
    assert "hunter2" not in path.read_text("utf-8")
    assert json.loads(path.read_text("utf-8"))["prompt"] == [{"role": "user", "content": "is it [secret]?"}]


def test_failures_are_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"

    def fail(_: Call) -> str:
        raise ChatError("out")

    with pytest.raises(ChatError, match="out"):
        converse(Journal(FakeChat(fail), path), CALLS[:1])
    chat = FakeChat(echo)
    converse(Journal(chat, path), CALLS[:1])
    assert len(chat.calls) == 1


def test_files_that_are_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    with pytest.raises(ChatError, match=r"No journal at .*calls\.jsonl to replay"):
        Journal(None, path, "replay")
    with pytest.raises(ConfigError, match="without a model"):
        Journal(None, path)
    with pytest.raises(ConfigError, match="Valid: resume, replay"):
        Journal(FakeChat(echo), path, "record")  # type: ignore[arg-type]
    path.write_text("")
    with pytest.raises(ChatError, match="which is empty"):
        converse(Journal(None, path, "replay"), CALLS)
    path.write_text('{"key": "0"}\n')
    with pytest.raises(ChatError, match="line 1 is no reply of a journal"):
        Journal(FakeChat(echo), path)
    path.write_text("nonsense\n")
    with pytest.raises(RunError, match="line 1 is damaged"):
        Journal(FakeChat(echo), path)


def test_a_server_in_a_journal_and_no_key_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    key = "sk-super-secret-0123456789"
    monkeypatch.setenv("MY_KEY", key)
    path = tmp_path / "calls.jsonl"
    with ChatServer(
        lambda request: Answer(f"{request['messages'][0]['content']} {key}", latency_s=0.01)
    ) as server:
        config = ChatConfig(base_url=server.url, model="m", api_key_env="MY_KEY", retries=0)
        made = converse(make_chat(config, path), CALLS)
        assert len(server.requests) == 3
        converse(make_chat(config, path), CALLS)
        assert len(server.requests) == 3
        assert key not in path.read_text("utf-8")
    monkeypatch.delenv("MY_KEY")
    elsewhere = config.model_copy(update={"base_url": "http://127.0.0.1:9/v1", "timeout_s": 1.0})
    cassette = make_chat(elsewhere, path, mode="replay")
    assert cassette.count_tokens("one two") == 2
    assert converse(cassette, CALLS) == [replace(reply, replayed=True) for reply in made]
    warmer = config.model_copy(update={"temperature": 1.0})
    with pytest.raises(ChatError, match=r"settings \(temperature\)"):
        converse(make_chat(warmer, path, mode="replay"), CALLS)
