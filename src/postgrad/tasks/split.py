"""The held-out split: decided by what a prompt says, so that it is the same in every run.

The side of a prompt depends on its text and on the fraction alone: not on its position, its file, its task or
a seed. A prompt that was held out once is held out wherever it turns up again, and a larger fraction only
adds to the held-out side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from postgrad.core.errors import DataError
from postgrad.core.types import Prompt


class Split(NamedTuple):
    """Two sides, each in the order of the input; disjoint unless the fraction was 0.

    Attributes:
        train: prompts to train on.
        held_out: prompts kept for evaluation; those of `train` where nothing is held out.
        num_duplicates: prompts left out because an earlier one says the same.
    """

    train: list[Prompt]
    held_out: list[Prompt]
    num_duplicates: int


def prompt_key(prompt: Prompt) -> str:
    """What a prompt says. A chat of one user turn says the same as its bare text.

    >>> prompt_key(Prompt(id="a", messages=({"role": "user", "content": "2 + 2?"},)))
    '2 + 2?'
    """
    if prompt.messages is not None and len(prompt.messages) == 1 and prompt.messages[0]["role"] == "user":
        return prompt.messages[0]["content"].strip()
    return prompt.content.strip()


def prompt_id(task: str, prompt: Prompt) -> str:
    """An id from the task's name and a hash of the content; the same in every run.

    >>> prompt_id("sums", Prompt(id="", text="2 + 2?"))
    'sums-485a0cd90586969e'
    """
    digest = hashlib.blake2b(prompt_key(prompt).encode("utf-8", "surrogatepass"), digest_size=8)
    return f"{task}-{digest.hexdigest()}"


def is_held_out(prompt: Prompt, fraction: float) -> bool:
    """Whether `prompt` belongs to the held-out side.

    The first 64 bits of BLAKE2b of the content (runs of white space count as one blank), read as a number in
    [0, 1), lie below `fraction`.

    Args:
        prompt: hashed without any instruction put before it: split first, add instructions afterwards.
        fraction: expected share of held-out prompts, in [0, 1).
    """
    text = " ".join(prompt_key(prompt).split())
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"postgrad-holdout")
    return int.from_bytes(digest.digest(), "big") < fraction * 2**64


def split(prompts: Sequence[Prompt], fraction: float) -> Split:
    """Split `prompts` by `is_held_out`, leaving out all but the first of those that say exactly the same.

    Prompts that differ only in white space are both kept (a drawing made of characters may mean something
    else), but always land on the same side.

    With a fraction of 0 nothing is held out: all prompts are on both sides, and an evaluation tells what was learned, not what
    it is worth on new prompts. It is for sampling without a question (molecules), where one prompt is all there is.

    Raises:
        DataError: one side is empty.
    """
    sides: tuple[list[Prompt], list[Prompt]] = ([], [])
    seen: set[str] = set()
    for prompt in prompts:
        key = prompt_key(prompt)
        if key not in seen:
            seen.add(key)
            sides[is_held_out(prompt, fraction)].append(prompt)
    train, held_out = sides if fraction else (sides[0], list(sides[0]))
    if not train or not held_out:
        empty = "to train on" if not train else "held out for evaluation"
        raise DataError(
            f"No prompt is left {empty}: {len(prompts)} prompts, {len(seen)} of them different, were split "
            f"by content with holdout_fraction = {fraction}. Give more prompts (a few hundred at least), or "
            f"{'lower' if not train else 'raise'} --data.holdout_fraction."
        )
    return Split(train, held_out, len(prompts) - len(seen))
