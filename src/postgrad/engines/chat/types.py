"""What a chat with a language model is, whoever serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from postgrad.core.types import Message

FinishReason = Literal["stop", "length", "other"]


@dataclass(frozen=True)
class Call:
    """One question to a model.

    Attributes:
        key: what the call is for, unique within a run (such as "0/17/reflect/2"), so that a journal can tell two calls with
            the same messages apart.
        role: whose account it goes to.
        messages: the conversation so far.
        schema: JSON schema that the reply has to follow, or None for free text.
    """

    key: str
    role: str
    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: never None; empty where the server sent nothing.
        prompt_tokens, cached_tokens, completion_tokens: as the server counts them; None where it does not say.
        seconds: from asking to the last byte, retries included.
        finish_reason: `length` is a reply that was cut off.
        replayed: came from a journal and cost nothing now.
    """

    text: str
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0
    finish_reason: FinishReason = "stop"
    replayed: bool = False


class Chat(Protocol):
    """A model that answers."""

    async def complete(self, call: Call) -> Reply:
        """The reply to one call; many may be waiting at the same time.

        Raises:
            ChatError: no reply could be had, after all tries; the message says what to do.
        """
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text: exact where the tokenizer is known, else an estimate that errs upwards."""
        ...

    async def close(self) -> None:
        """Lets go of connections and threads."""
        ...
