"""How many tokens a text has: counted where the tokenizer is known, else estimated so that the estimate errs upwards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from postgrad.core.errors import ModelError
from postgrad.core.types import Message

_PIECE = re.compile(
    r"([A-Z]?[a-z]+|[A-Z]+)|([0-9])|([\x80-\u024f])|([\u0250-\u07ff]+)|([\u0800-\uffff]+)|([\U00010000-\U0010ffff]+)"
    r"|\n+|[ \t\r]{2,}|([!-/:-@\[-`{-~])\7*"
)


class TokenCounter(Protocol):
    """Counts tokens."""

    @property
    def exact(self) -> bool:
        """False for an estimate."""
        ...

    def __call__(self, text: str) -> int:
        """Tokens of a text, without special ones at its ends."""
        ...


class Estimate:
    """`estimate_tokens`, as a counter."""

    exact = False

    def __call__(self, text: str) -> int:
        return estimate_tokens(text)


class FileCounter:
    """Counts with a tokenizer.json.

    Args:
        path: the file, or a directory that holds it.

    Raises:
        ModelError: there is none, or it cannot be read.
    """

    exact = True

    def __init__(self, path: str | Path) -> None:
        from tokenizers import Tokenizer

        place = Path(path).expanduser()
        file = place / "tokenizer.json" if place.is_dir() else place
        if not file.is_file():
            raise ModelError(
                f"No tokenizer at {file}. Give a tokenizer.json or a directory with one (of the model that the server "
                "runs), or leave `tokenizer` out: tokens are then estimated."
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(f"The tokenizer {file} cannot be read: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def make_counter(tokenizer: str | None) -> TokenCounter:
    """An exact counter for a tokenizer's path, an estimate for None. Raises ModelError."""
    return Estimate() if tokenizer is None else FileCounter(tokenizer)


def estimate_tokens(text: str) -> int:
    """Tokens of a text by its characters, rather too many than too few.

    A word is a token up to six letters, then one per four; so are a digit, a sign, an ideogram and two letters of other
    alphabets; an accented letter is two. Runs of white space or of one sign go by the eight; a single space costs nothing.
    Against the tokenizers of Qwen3, Llama 3 and GPT-4o: English prose, code and JSON have 0.63 to 0.78 of this many tokens,
    German, French, Chinese, Japanese, Russian and Arabic 0.34 to 0.92, lists of numbers 0.49 to 1.05; Polish, Finnish and
    base64, for which it is too low, up to 1.4.

    >>> estimate_tokens("The answer is 42.")
    6
    >>> estimate_tokens("")
    0
    """
    total = 0
    for found in _PIECE.finditer(text):
        size = found.end() - found.start()
        match found.lastindex:
            case 1:
                total += 1 if size <= 6 else -(-size // 4)
            case 2:
                total += 1
            case 3:
                total += 2
            case 4:
                total += -(-size // 2)
            case 5:
                total += size
            case 6:
                total += 3 * size
            case _:
                total += 1 + (size - 1) // 8
    return total


def count_messages(counter: TokenCounter, messages: Sequence[Message]) -> int:
    """Tokens of the contents alone; the chat template adds a few per turn."""
    return sum(counter(message["content"]) for message in messages)
