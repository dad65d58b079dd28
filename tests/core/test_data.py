"""Prompts to tokens and back, with and without a chat template."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from postgrad.core.data import decode_completion, encode_prompt, plain_text
from postgrad.core.errors import DataError
from postgrad.core.models.phrases import build_tokenizer
from postgrad.core.types import Prompt

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE


def fresh(template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer(["hello there\n", "12"], 264, 64)
    tokenizer.chat_template = template
    return tokenizer


PLAIN = fresh()


def text_of(tokenizer: PreTrainedTokenizerFast, prompt: Prompt, instruction: str = "") -> str:
    ids = encode_prompt(tokenizer, prompt, instruction)
    assert ids.dtype == np.int64
    return tokenizer.decode(ids)


def test_plain_text() -> None:
    prompt = Prompt(id="1", text="1 + 2 =")
    assert text_of(PLAIN, prompt) == "1 + 2 =\n"
    assert text_of(PLAIN, prompt, "Add.") == "Add.\n1 + 2 =\n"


def test_messages_without_template_are_joined() -> None:
    prompt = Prompt(
        id="1", messages=({"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 2"})
    )
    assert text_of(PLAIN, prompt) == "Add.\n1 + 2\n"
    assert plain_text(prompt, "Now:") == "Now:\nAdd.\n1 + 2\n"


def test_chat_template() -> None:
    tokenizer = fresh(TEMPLATE)
    assert text_of(tokenizer, Prompt(id="1", text="hi")) == "<user>hi\n<assistant>"
    assert (
        text_of(tokenizer, Prompt(id="1", text="hi"), "Be brief.")
        == "<system>Be brief.\n<user>hi\n<assistant>"
    )
    turns = Prompt(id="1", messages=({"role": "system", "content": "A"}, {"role": "user", "content": "B"}))
    assert text_of(tokenizer, turns, "I") == "<system>I\n\nA\n<user>B\n<assistant>"


def test_template_without_system_turn() -> None:
    tokenizer = fresh(NO_SYSTEM)
    assert text_of(tokenizer, Prompt(id="1", text="hi"), "Be brief.") == "<user>Be brief.\n\nhi\n<assistant>"
    with pytest.raises(DataError, match=r"refuses prompt 'p7' with roles \['system'\]"):
        encode_prompt(tokenizer, Prompt(id="p7", messages=({"role": "system", "content": "A"},)))


def test_bos_only_if_the_tokenizer_adds_it_and_never_eos() -> None:
    tokenizer = fresh()
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    assert tokenizer.bos_token_id not in encode_prompt(tokenizer, Prompt(id="1", text="a"))
    bos, end = ("<|bos|>", tokenizer.bos_token_id), ("<|end|>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|end|>", special_tokens=[bos, end]
    )
    ids = encode_prompt(tokenizer, Prompt(id="1", text="a"))
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == "a\n"


def test_nothing_to_encode_is_refused() -> None:
    tokenizer = fresh("{{ '' }}")
    with pytest.raises(DataError, match="Prompt 'empty' has no tokens"):
        encode_prompt(tokenizer, Prompt(id="empty", text=""))


def test_long_prompt_gives_no_warning(capfd: pytest.CaptureFixture[str]) -> None:
    assert len(encode_prompt(PLAIN, Prompt(id="1", text="1" * 5000))) == 5001
    assert capfd.readouterr().err == ""


def test_decode_keeps_markers_and_hides_special_tokens() -> None:
    tokenizer = fresh()
    tokenizer.add_tokens([AddedToken("<answer>", special=True), AddedToken("<|turn|>", special=True)])
    text = "<think>1</think><answer>2<|turn|><|end|><|pad|>"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == 8
    assert decode_completion(tokenizer, ids) == "<think>1</think><answer>2"


def test_decode_notices_tokens_that_are_added_later() -> None:
    tokenizer = fresh()
    assert decode_completion(tokenizer, tokenizer("a<|x|>")["input_ids"]) == "a<|x|>"
    tokenizer.add_tokens([AddedToken("<|x|>", special=True)])
    assert decode_completion(tokenizer, tokenizer("a<|x|>")["input_ids"]) == "a"


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    if any(marker in text for marker in ("<|", "think>")):
        return
    assert decode_completion(PLAIN, encode_prompt(PLAIN, Prompt(id="1", text=text))) == text + "\n"
