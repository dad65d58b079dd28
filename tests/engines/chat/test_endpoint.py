"""A chat over HTTP against a loopback server that does what servers do, and worse."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.engines.chat.server import Answer, ChatServer, Fault, Script

from postgrad.core.config import resolve
from postgrad.core.errors import ChatError, ConfigError, MissingExtraError, ModelError
from postgrad.core.models.phrases import build_tokenizer
from postgrad.engines.chat import Call, ChatConfig, EndpointChat, Reply, make_chat

pytest.importorskip("openai")

KEY = "sk-super-secret-0123456789"
SCHEMA = {"title": "Sum of two", "type": "object", "properties": {"total": {"type": "integer"}}}


def call(text: str = "Hi", key: str = "0", **changes: Any) -> Call:
    return Call(key, changes.pop("role", "generator"), ({"role": "user", "content": text},), **changes)


def config(server: ChatServer, **changes: Any) -> ChatConfig:
    values: dict[str, Any] = {"retries": 0, "timeout_s": 5.0, **changes}
    return ChatConfig(base_url=server.url, model="m", **values)


def converse(chat: Any, calls: list[Call]) -> list[Reply | BaseException]:
    """All calls at once; replies and errors in their order."""

    async def run() -> list[Reply | BaseException]:
        try:
            return await asyncio.gather(*map(chat.complete, calls), return_exceptions=True)
        finally:
            await chat.close()

    return asyncio.run(run())


def one(chat: Any, asked: Call) -> Reply:
    (reply,) = converse(chat, [asked])
    if isinstance(reply, BaseException):
        raise reply
    return reply


def in_turn(*answers: str | Answer) -> Script:
    """The first answer to the first request and so on; the last one again and again."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_a_reply_with_its_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "not for this server")
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    with ChatServer(lambda _: Answer("Good day", usage=usage)) as server:
        options = {"top_k": 5}
        chat = EndpointChat(config(server, api_key_env="MY_KEY", options=options, temperature=0.5))
        reply = one(chat, call())
        assert (reply.text, reply.finish_reason, reply.replayed) == ("Good day", "stop", False)
        assert (reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens) == (9, 4, 2)
        assert 0 < reply.seconds < 5
        body = server.requests[0]
        assert (body["model"], body["temperature"], body["max_tokens"], body["top_k"]) == ("m", 0.5, 2048, 5)
        assert body["messages"] == [{"role": "user", "content": "Hi"}]
        assert "response_format" not in body
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
        assert server.headers[0]["accept-encoding"] == "identity"


def test_what_is_not_given_is_not_sent_and_what_is_not_said_is_unknown() -> None:
    answer = Answer(None, finish_reason="content_filter", usage=False)
    with ChatServer(lambda _: answer) as server:
        reply = one(EndpointChat(config(server, temperature=None, max_tokens=None, seed=None)), call())
        assert (reply.text, reply.finish_reason) == ("", "other")
        assert (reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens) == (None, None, None)
        assert set(server.requests[0]) == {"model", "messages"}


def test_seeds_depend_on_the_key_alone() -> None:
    with ChatServer(lambda _: "x") as server:
        for order in (["a", "b"], ["b", "a"]):
            converse(EndpointChat(config(server, concurrency=1)), [call(key, key) for key in order])
        converse(EndpointChat(config(server, seed=1)), [call("a", "a")])
        seeds = [(body["messages"][0]["content"], body["seed"]) for body in server.requests]
    assert sorted(seeds[:2]) == sorted(seeds[2:4])
    assert len(dict(seeds[:2])) == len({seed for _, seed in seeds[:2]}) == 2
    assert seeds[4][1] not in {seed for _, seed in seeds[:4]}
    assert all(0 <= seed < 2**31 for _, seed in seeds)


def test_at_most_so_many_at_a_time_and_no_fewer() -> None:
    with ChatServer(lambda _: Answer("x", latency_s=0.05)) as server:
        replies = converse(EndpointChat(config(server, concurrency=5)), [call(key=str(n)) for n in range(25)])
        assert server.peak == 5
    assert all(isinstance(reply, Reply) for reply in replies)


@pytest.mark.parametrize(
    "failure",
    [
        Answer(status=429, headers={"Retry-After": "0.01"}),
        Answer(status=500),
        Answer(status=503, body="<html>busy</html>"),
        Answer("x", fault="drop"),
        Answer("x", fault="truncated"),
        Answer("x", fault="cut_json"),
        Answer(body="<html>Bad gateway</html>"),
        Answer(body="{}"),
        Answer(body='{"choices": []}'),
        Answer(body="[[" * 50_000),
    ],
    ids=["429", "500", "503", "drop", "truncated", "cut", "html", "empty", "no choices", "deep"],
)
def test_what_may_pass_is_tried_again(failure: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    with ChatServer(in_turn(failure, "at last")) as server:
        assert one(EndpointChat(config(server, retries=1)), call()).text == "at last"
        assert len(server.requests) == 2
    with ChatServer(in_turn(failure)) as server:
        with pytest.raises(ChatError, match=r"m at http://127\.0\.0\.1"):
            one(EndpointChat(config(server, retries=1)), call())
        assert len(server.requests) == 2


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of the client without their length."""
    import openai._base_client as base

    from postgrad.engines.chat import endpoint

    monkeypatch.setattr(base, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(endpoint, "_BROKEN_PAUSE_S", 0.01)


@pytest.mark.parametrize("fault", ["drip", "hang", "drip_headers"])
def test_a_server_that_drips_or_hangs_is_given_up_in_time(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    from postgrad.engines.chat import endpoint

    monkeypatch.setattr(endpoint, "_SLACK_S", 0.5)
    with ChatServer(lambda _: Answer("x", fault=fault)) as server:
        begun = time.monotonic()
        limit = "0.8 s, all tries together" if fault == "drip_headers" else r"0\.3 s \(1 try\)"
        with pytest.raises(ChatError, match=rf"gave no reply to '0' (with)?in {limit}"):
            one(EndpointChat(config(server, timeout_s=0.3)), call())
        assert time.monotonic() - begun < 30
        assert len(server.requests) == 1


def test_endless_and_compressed_replies_are_not_read() -> None:
    with (
        ChatServer(in_turn(Answer("x" * 3_000_000))) as server,
        pytest.raises(ChatError, match="longer than"),
    ):
        one(EndpointChat(config(server, max_tokens=100, retries=3)), call())
    bomb = Answer("x", status=500, body=b"x" * 3_000_000)
    with ChatServer(in_turn(bomb)) as server, pytest.raises(ChatError, match="longer than"):
        one(EndpointChat(config(server, max_tokens=100)), call())
    zipped = Answer("x", headers={"Content-Encoding": "gzip"})
    with (
        ChatServer(in_turn(zipped)) as server,
        pytest.raises(ChatError, match=r"compressed encoding \(gzip\)"),
    ):
        one(EndpointChat(config(server)), call())


def test_a_server_that_is_not_there() -> None:
    chat = EndpointChat(ChatConfig(base_url="http://127.0.0.1:9/v1", model="m", retries=0))
    with pytest.raises(ChatError, match=r"m at http://127\.0\.0\.1:9/v1 cannot be reached.*server running"):
        one(chat, call())


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "Check the key in MY_KEY"), (404, "/models"), (429, "lower concurrency"), (418, "refused")],
)
def test_errors_say_what_to_do_and_never_show_the_key(
    status: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    for answer in (
        Answer(f"bad key {KEY}", status=status),
        Answer(status=status, body=KEY * 40),
        Answer(body=KEY * 40),
        Answer(headers={"Content-Encoding": KEY}),
    ):
        with ChatServer(in_turn(answer)) as server, pytest.raises(ChatError) as caught:
            one(EndpointChat(config(server, api_key_env="MY_KEY")), call())
        assert answer.status == 200 or words in str(caught.value)
        assert KEY[:9] not in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_a_key_that_is_echoed_in_a_reply_goes_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with ChatServer(in_turn(f"Your key is {KEY}.")) as server:
        assert one(EndpointChat(config(server, api_key_env="MY_KEY")), call()).text == "Your key is ***."
    monkeypatch.setenv("MY_KEY", "EMPTY")
    with ChatServer(in_turn("The set is EMPTY.")) as server:
        assert one(EndpointChat(config(server, api_key_env="MY_KEY")), call()).text == "The set is EMPTY."


# -- schemas -------------------------------------------------------------------------------------------------------


def accepting(*kinds: str) -> Script:
    def script(request: dict[str, Any]) -> Answer:
        kind = request.get("response_format", {}).get("type", "text")
        if kind in kinds:
            return Answer(f'{{"total": 4}} {kind}')
        return Answer(
            f"response_format.type {kind} is not supported", status=400 if kind == "json_schema" else 422
        )

    return script


def formats(server: ChatServer) -> list[str]:
    return [body.get("response_format", {}).get("type", "text") for body in server.requests]


@pytest.mark.parametrize("best", ["json_schema", "json_object", "text"])
def test_auto_finds_the_format_that_a_server_knows_and_remembers_it(best: str) -> None:
    kinds = ["json_schema", "json_object", "text"]
    place = kinds.index(best)

    async def run(chat: EndpointChat) -> None:
        for n in range(2):
            assert (await chat.complete(call("2 + 2?", str(n), schema=SCHEMA))).text.endswith(best)
        assert (await chat.complete(call())).text
        await chat.close()

    with ChatServer(accepting(best, "text")) as server:
        asyncio.run(run(EndpointChat(config(server))))
        assert formats(server) == [*kinds[: place + 1], best, "text"]
        said = server.requests[place]["messages"][0]["content"]
        assert said.startswith("2 + 2?")
        assert ("follows this JSON schema" in said) == (best != "json_schema")
        assert server.requests[-1]["messages"][0]["content"] == "Hi"
        if best == "json_schema":
            described = server.requests[0]["response_format"]["json_schema"]
            assert described == {"name": "Sum_of_two", "schema": SCHEMA}


def test_a_chosen_format_is_kept_and_its_refusal_told() -> None:
    with ChatServer(accepting("json_object", "text")) as server:
        with pytest.raises(ChatError, match="json_schema is not supported"):
            one(EndpointChat(config(server, structured="json_schema")), call(schema=SCHEMA))
        one(EndpointChat(config(server, structured="text")), call(schema=SCHEMA))
        assert formats(server) == ["json_schema", "text"]
    with ChatServer(in_turn(Answer("no such temperature", status=400))) as server:
        with pytest.raises(ChatError, match="no such temperature"):
            one(EndpointChat(config(server)), call(schema=SCHEMA))
        assert len(server.requests) == 3


# -- contexts ------------------------------------------------------------------------------------------------------

WORDS = ["paginate", "until", "the", "last", "page", "and", "never", "trust", "the", "first", "total"]


def prompt(num_words: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(num_words))


def reporting(count: Callable[[int], int], **usage: Any) -> Script:
    """A server that reports so many prompt tokens for so many words."""

    def script(request: dict[str, Any]) -> Answer:
        words = sum(len(message["content"].split()) for message in request["messages"])
        return Answer("x", usage={"prompt_tokens": count(words), "completion_tokens": 1, **usage})

    return script


def errors(script: Script, lengths: list[int], **changes: Any) -> list[str]:
    with ChatServer(script) as server:
        calls = [call(prompt(length), str(n)) for n, length in enumerate(lengths)]
        replies = converse(EndpointChat(config(server, concurrency=1, **changes)), calls)
    return [str(reply) if isinstance(reply, ChatError) else "" for reply in replies]


def test_a_prompt_that_was_cut_silently_is_found_with_a_tokenizer(tmp_path: Any) -> None:
    build_tokenizer([prompt(50, n) for n in range(40)], 320, 128).save_pretrained(tmp_path)
    exact = EndpointChat(
        ChatConfig(base_url="http://127.0.0.1:9", model="m", tokenizer=str(tmp_path))
    ).count_tokens
    sizes = [exact(prompt(length)) for length in (400, 4000)]

    def script(limit: int) -> Script:
        def answer(request: dict[str, Any]) -> Answer:
            size = exact(request["messages"][0]["content"]) + 12
            return Answer("x", usage={"prompt_tokens": min(size, limit), "completion_tokens": 1})

        return answer

    assert errors(script(10**6), [400, 4000], tokenizer=str(tmp_path)) == ["", ""]
    short, long = errors(script(sizes[1] // 2), [400, 4000], tokenizer=str(tmp_path))
    assert short == ""
    assert f"{sizes[1] // 2} prompt tokens of the {sizes[1]} that were sent" in long
    for word in ("OLLAMA_CONTEXT_LENGTH", "num_ctx", "-c (", "--max-model-len", "check_truncation = false"):
        assert word in long
    assert errors(script(sizes[1] // 2), [4000], tokenizer=str(tmp_path), check_truncation=False) == [""]
    (refused,) = errors(script(1), [4000], tokenizer=str(tmp_path), context_tokens=sizes[1] - 1)
    assert f"has {sizes[1]} tokens; context_tokens is {sizes[1] - 1}" in refused


@pytest.mark.parametrize("per_word", [0.7, 1.0, 1.3, 2.5], ids=lambda ratio: f"{ratio} tokens a word")
def test_without_a_tokenizer_smaller_calls_say_what_to_expect(per_word: float) -> None:
    lengths = [300, 340, 380, 420, 3000, 400]
    whole = reporting(lambda words: round(per_word * words) + 30)
    assert errors(whole, lengths) == [""] * 6
    found = errors(reporting(lambda words: min(round(per_word * words) + 30, round(600 * per_word))), lengths)
    assert [bool(error) for error in found] == [False] * 4 + [True, False]
    assert "prompt tokens of about" in found[4]


def test_without_a_tokenizer_nothing_is_judged_by_the_first_calls() -> None:
    assert errors(reporting(lambda words: words // 4), [3000, 400, 500]) == [""] * 3
    assert errors(reporting(lambda words: 0), [300, 310, 320, 3000]) == [""] * 4
    assert errors(reporting(lambda words: 40), [30, 40, 50, 60, 70]) == [""] * 5


def test_prompts_of_different_length_that_count_the_same_were_cut() -> None:
    found = errors(reporting(lambda words: min(words, 2047)), [3000, 4000, 5000])
    assert [bool(error) for error in found] == [False, False, True]
    assert "2047 prompt tokens for each of 3 prompts" in found[2]


def test_cached_tokens_count_as_read_whether_the_server_adds_them_or_not() -> None:
    lengths = [300, 340, 380, 3000]
    details = {"prompt_tokens_details": {"cached_tokens": 2900}}
    assert errors(reporting(lambda words: words if words < 3000 else 100, **details), lengths) == [""] * 4


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 9000 tokens",
        "the request exceeds the available context size, try increasing it",
        "The decoder prompt (length 9000) is longer than the maximum model length of 4096.",
    ],
)
def test_a_prompt_that_is_refused_as_too_long_is_explained(said: str) -> None:
    with ChatServer(in_turn(Answer(said, status=400))) as server:
        with pytest.raises(ChatError, match=r"about 1 tokens, 2048 more asked for.*--max-model-len"):
            one(EndpointChat(config(server)), call(schema=SCHEMA))
        assert len(server.requests) == 1


# -- life of a chat ------------------------------------------------------------------------------------------------


def test_one_chat_serves_several_event_loops() -> None:
    with ChatServer(lambda _: "x") as server:
        chat = EndpointChat(config(server))
        assert [one(chat, call(key=str(n))).text for n in range(3)] == ["x"] * 3
        with asyncio.Runner() as first, asyncio.Runner() as second:
            for runner in (first, second, first, second):
                assert runner.run(chat.complete(call())).text == "x"
            for runner in (first, second):
                runner.run(chat.close())


def test_waiting_can_be_cancelled() -> None:
    async def run(chat: EndpointChat) -> None:
        tasks = [asyncio.create_task(chat.complete(call(key=str(n)))) for n in range(4)]
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        gone = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in gone)
        server.script = lambda _: "x"
        assert (await chat.complete(call())).text == "x"
        await chat.close()

    with ChatServer(lambda _: Answer(fault="hang")) as server:
        begun = time.monotonic()
        asyncio.run(run(EndpointChat(config(server, concurrency=2, timeout_s=30))))
        assert time.monotonic() - begun < 30


def test_ctrl_c_ends_a_program_that_waits() -> None:
    with ChatServer(lambda _: Answer(fault="hang")) as server:
        code = f"""
            import asyncio, signal
            from postgrad.engines.chat import Call, ChatConfig, EndpointChat
            signal.signal(signal.SIGINT, signal.default_int_handler)
            messages = ({{"role": "user", "content": "Hi"}},)
            async def main():
                chat = EndpointChat(ChatConfig(base_url={server.url!r}, model="m"))
                await asyncio.gather(*(chat.complete(Call(str(n), "r", messages)) for n in range(3)))
            asyncio.run(main())
        """
        program = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while len(server.requests) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=10)
        assert said.strip().endswith("KeyboardInterrupt")


def test_text_that_is_no_unicode_does_not_break_a_call() -> None:
    with ChatServer(in_turn(Answer(body='{"choices": [{"message": {"content": "a\\ud800"}}]}'))) as server:
        assert one(EndpointChat(config(server)), call("b\ud800")).text == "a?"
        assert server.requests[0]["messages"][0]["content"] == "b?"


# -- configs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "received neither"),
        ({"path": "x", "model": "m"}, "received both"),
        ({"model": "m"}, "base_url is missing"),
        ({"base_url": "http://a/v1"}, "model is missing"),
        ({"base_url": "ftp://a", "model": "m"}, "base_url"),
        ({"base_url": "http://u:hunter2@a/v1", "model": "m"}, "must not hold a user name"),
        ({"base_url": "http://", "model": "m"}, "no address"),
        ({"path": "x", "options": {"best_of": 2}}, "options of a local model are top_k, top_p"),
        ({"path": "x", "api_key_env": "sk-proj-123"}, "name of an environment variable"),
        ({"path": "x", "structured": "xml"}, "structured"),
        ({"path": "x", "max_token": 2}, "Did you mean 'max_tokens'"),
    ],
)
def test_configs_that_cannot_work(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(ChatConfig, None, values)


def test_a_config_survives_json_and_every_field_has_help() -> None:
    made = ChatConfig(base_url="http://a/v1", model="m", options={"a": {"b": 1}})
    assert ChatConfig.model_validate(json.loads(made.model_dump_json())) == made
    assert not [name for name, info in ChatConfig.model_fields.items() if not info.description]
    assert "base_url" not in made.settings
    assert "api_key_env" not in made.settings


def test_what_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    values = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="MY_KEY, which is not set"):
        make_chat(ChatConfig(**values, api_key_env="MY_KEY"))
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        make_chat(ChatConfig(**values, tokenizer=str(tmp_path)))
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'postgrad\[llm\]'"):
        make_chat(ChatConfig(**values))


def test_the_face_needs_neither_torch_nor_openai() -> None:
    code = (
        "import sys; from postgrad.engines.chat import *; from postgrad.engines import chat; "
        "import postgrad.engines.chat.endpoint; assert chat.__all__ == sorted(chat.__all__); "
        "print({'torch', 'openai', 'transformers'} & set(sys.modules))"
    )
    code = code.replace(
        "from postgrad.engines.chat import *", "from postgrad.engines.chat import ask, make_chat, Journal"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
