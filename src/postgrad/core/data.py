"""Prompt → tokens and tokens → text, with or without a chat template. Imports no torch."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch, transformers, tokenizers and huggingface_hub are only partly typed)

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from postgrad.core.errors import DataError
from postgrad.core.types import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKER = re.compile(
    r"[<\[]/?(think|thinking|thought|reasoning|reflection|scratchpad|answer|solution)[>\]]", re.I
)
"""Special tokens that carry meaning for a reader and for verifiers."""

_hidden_ids: weakref.WeakKeyDictionary[Any, tuple[int, frozenset[int]]] = weakref.WeakKeyDictionary()


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, instruction: str = ""
) -> NDArray[np.int64]:
    """The tokens that a completion of `prompt` follows.

    With a chat template: the messages (text becomes one user turn, `instruction` the system turn, or the
    beginning of the first turn where the template knows no system) and the header of the assistant's turn.
    Without one: instruction, text and a newline, with the bos token only if the tokenizer adds it by itself.

    Returns:
        int64 [P], P ≥ 1.

    Raises:
        DataError: the template refuses the messages, or nothing is left to encode.
    """
    if getattr(tokenizer, "chat_template", None):
        ids = _encode_chat(tokenizer, prompt, instruction)
    else:
        ids = list(tokenizer(plain_text(prompt, instruction), verbose=False)["input_ids"])  # pyright: ignore[reportArgumentType]
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:  # some tokenizers close every text
            ids.pop()
    if not ids:
        raise DataError(f"Prompt {prompt.id!r} has no tokens. Remove it, or give it a text.")
    return np.asarray(ids, dtype=np.int64)


def plain_text(prompt: Prompt, instruction: str = "") -> str:
    """What a model without a chat template reads: instruction, contents and a closing newline, one per line.

    >>> plain_text(Prompt(id="1", text="1 + 1 ="), "Add.")
    'Add.\\n1 + 1 =\\n'
    """
    contents = [message["content"] for message in prompt.messages] if prompt.messages else [prompt.text or ""]
    return "\n".join([*([instruction] if instruction else []), *contents]) + "\n"


def decode_completion(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | NDArray[np.int64]) -> str:
    """The text of completion tokens, without special tokens but with markers such as `<think>`."""
    hidden = _hidden(tokenizer)
    kept = [int(token) for token in ids if int(token) not in hidden]
    return cast("str", tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _encode_chat(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, instruction: str) -> list[int]:
    turns: list[Message] = (
        list(prompt.messages) if prompt.messages else [{"role": "user", "content": prompt.text or ""}]
    )
    attempts = [turns]
    if instruction:
        merged: Message = {"role": turns[0]["role"], "content": f"{instruction}\n\n{turns[0]['content']}"}
        attempts = [[merged, *turns[1:]]]
        if turns[0]["role"] != "system":
            attempts.insert(0, [{"role": "system", "content": instruction}, *turns])
    failure: Exception | None = None
    for messages in attempts:
        try:
            ids = tokenizer.apply_chat_template(
                cast("Any", messages), tokenize=True, add_generation_prompt=True, return_dict=False
            )
        except Exception as error:  # jinja2.TemplateError and whatever a template's own code raises
            failure = error
            continue
        return list(cast("list[int]", ids))
    raise DataError(
        f"The chat template of the tokenizer refuses prompt {prompt.id!r} with roles "
        f"{[turn['role'] for turn in turns]}: {failure}. Give turns that it knows, such as one user message."
    )


def _hidden(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the special tokens that a reader does not want to see; cached for as long as none is added."""
    cached = _hidden_ids.get(tokenizer)
    if cached is None or cached[0] != len(tokenizer):
        added = cast("dict[int, Any]", tokenizer.added_tokens_decoder)
        named = {
            cast("int | None", t)
            for t in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        }
        special = {i for i, token in added.items() if token.special and not _MARKER.fullmatch(token.content)}
        cached = (len(tokenizer), frozenset(i for i in named | special if i is not None))
        _hidden_ids[tokenizer] = cached
    return cached[1]
