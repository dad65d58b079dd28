"""A local model as a chat: the same replies alone, together and in any order."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tasks.small_models import CHAT_TEMPLATE
from transformers import Qwen3Config, Qwen3ForCausalLM

from postgrad.core.errors import ChatError
from postgrad.core.models import load
from postgrad.core.models.phrases import build_tokenizer
from postgrad.engines.chat import Call, ChatConfig, LocalChat, Reply, make_chat

CONTEXT = 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen3 with random weights, a tokenizer of bytes and a chat template."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["a poem about rain"], 264, CONTEXT)
    tokenizer.chat_template = CHAT_TEMPLATE
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def config(folder: Path, **changes: Any) -> ChatConfig:
    values: dict[str, Any] = {"max_tokens": 24, "concurrency": 3, "device": "cpu", **changes}
    return ChatConfig(path=str(folder), **values)


def call(key: str, text: str = "rain", **changes: Any) -> Call:
    return Call(key, "generator", ({"role": "user", "content": text},), **changes)


def converse(chat: Any, calls: list[Call]) -> list[Reply]:
    async def run() -> list[Reply]:
        try:
            return await asyncio.gather(*map(chat.complete, calls))
        finally:
            await chat.close()

    return asyncio.run(run())


CALLS = [call(f"{n}/generate", "rain " * (n % 4 + 1)) for n in range(8)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_does_not_depend_on_what_else_is_asked(folder: Path, temperature: float) -> None:
    chat = LocalChat(config(folder, temperature=temperature))
    together = [reply.text for reply in converse(chat, CALLS)]
    backwards = [reply.text for reply in converse(chat, CALLS[::-1])][::-1]
    alone = [converse(chat, [asked])[0].text for asked in CALLS]
    assert together == backwards == alone
    assert (len(set(together)) == 8) == (temperature > 0)  # four prompts, eight keys
    other = [
        reply.text for reply in converse(LocalChat(config(folder, temperature=temperature, seed=1)), CALLS)
    ]
    assert (other == together) == (temperature == 0)


def test_greedy_replies_are_those_of_generate_with_exact_counts(folder: Path) -> None:
    model = load(folder, device="cpu")
    (reply,) = converse(LocalChat(config(folder, max_tokens=12)), [call("0", "rain, rain")])
    ids = torch.tensor([model.tokenizer("<user>rain, rain\n<assistant>")["input_ids"]])
    made = model.module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )[0, ids.shape[1] :]
    assert reply.text == model.tokenizer.decode(made, skip_special_tokens=True)
    assert (reply.prompt_tokens, reply.completion_tokens) == (ids.shape[1], len(made))
    assert reply.seconds > 0
    assert make_chat(config(folder)).count_tokens("rain, rain") == len("rain, rain")


def test_replies_end_at_the_stop_token_or_are_cut_off(folder: Path) -> None:
    model = load(folder, device="cpu")
    replies = converse(
        LocalChat(config(folder, temperature=1.0, max_tokens=60), model), [call(str(n)) for n in range(12)]
    )
    ends = {reply.finish_reason for reply in replies}
    assert all((reply.completion_tokens == 60) == (reply.finish_reason == "length") for reply in replies)
    with torch.no_grad():
        model.module.get_output_embeddings().weight.zero_()  # every token as likely as any other
    tired = LocalChat(config(folder, temperature=1.0, max_tokens=140), model)
    replies += converse(tired, [call(f"t{n}", "a") for n in range(12)])
    ends |= {reply.finish_reason for reply in replies}
    assert ends == {"stop", "length"}
    assert all("<|end|>" not in reply.text for reply in replies)


def test_prompts_that_do_not_fit_and_those_that_just_do(folder: Path) -> None:
    chat = LocalChat(config(folder))
    header = len("<user>\n<assistant>")
    with pytest.raises(ChatError, match=rf"'0' has {CONTEXT} tokens; .* takes {CONTEXT}"):
        converse(chat, [call("0", "x" * (CONTEXT - header))])
    (last,) = converse(chat, [call("0", "x" * (CONTEXT - header - 1))])
    assert (last.completion_tokens, last.finish_reason) in [(1, "length"), (1, "stop")]
    with pytest.raises(ChatError, match="takes 64"):
        converse(LocalChat(config(folder, context_tokens=64)), [call("0", "x" * 64)])
    with pytest.raises(ChatError, match=r"roles \['tool'\]"):
        converse(chat, [Call("0", "r", ({"role": "tool", "content": "x"},))])


def test_the_cache_grows_with_the_calls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from postgrad.engines.chat import local

    monkeypatch.setattr(local, "_LEAST_LENGTH", 32)
    lengths: list[int] = []
    engine = local.TorchEngine
    monkeypatch.setattr(
        local, "TorchEngine", lambda *a, **k: lengths.append(k["max_length"]) or engine(*a, **k)
    )
    chat = LocalChat(config(folder, max_tokens=8, temperature=1.0))
    calls = [call("a", "x"), call("b", "x" * 60), call("c", "x"), call("d", "x" * 100), call("e", "y")]

    async def run() -> list[Reply]:
        first = asyncio.create_task(chat.complete(calls[0]))
        await asyncio.sleep(0.05)
        rest = await asyncio.gather(*map(chat.complete, calls[1:]))
        await chat.close()
        return [await first, *rest]

    replies = asyncio.run(run())
    monkeypatch.setattr(local, "_LEAST_LENGTH", 256)
    assert [reply.text for reply in replies] == [reply.text for reply in converse(chat, calls)]
    assert lengths[0] == 32
    assert lengths == sorted(lengths)


def test_cancelled_calls_make_room_and_closing_ends_the_others(folder: Path) -> None:
    chat = LocalChat(config(folder, temperature=1.0, max_tokens=100, concurrency=2))
    (wanted,) = converse(chat, [call("wanted")])

    async def run() -> None:
        doomed = [asyncio.create_task(chat.complete(call(f"{n}", "x"))) for n in range(5)]
        kept = asyncio.create_task(chat.complete(call("wanted")))
        await asyncio.sleep(0.03)
        for task in doomed:
            task.cancel()
        assert (await kept).text == wanted.text
        assert chat._engine is not None
        assert chat._engine.num_decoded_tokens < 450  # of 600
        left = asyncio.create_task(chat.complete(call("left", "x")))
        await asyncio.sleep(0)
        await chat.close()
        (ended,) = await asyncio.gather(left, return_exceptions=True)
        assert isinstance(ended, ChatError | Reply)

    asyncio.run(run())
    assert converse(chat, [call("wanted")])[0].text == wanted.text


def test_an_engine_that_fails_is_an_error_of_every_call_and_made_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from postgrad.engines.torch_engine.engine import TorchEngine

    def fail(_: TorchEngine) -> None:
        raise RuntimeError("out of memory")

    chat = LocalChat(config(folder))

    async def run() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(TorchEngine, "step", fail)
            errors = await asyncio.gather(*map(chat.complete, CALLS), return_exceptions=True)
            assert all(
                isinstance(error, ChatError) and "RuntimeError: out of memory" in str(error)
                for error in errors
            )
        assert (await chat.complete(CALLS[0])).completion_tokens
        await chat.close()

    asyncio.run(run())


def test_a_schema_is_said_in_the_prompt(folder: Path) -> None:
    plain, described = converse(
        LocalChat(config(folder, max_tokens=1)), [call("0", "x"), call("1", "x", schema={})]
    )
    assert described.prompt_tokens is not None
    assert plain.prompt_tokens is not None
    assert described.prompt_tokens - plain.prompt_tokens == len(
        "\n\nAnswer with one JSON object that follows this JSON schema, and nothing else:\n{}"
    )
