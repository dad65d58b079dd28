"""An agent behind a server that takes no embeddings: it is told by text, and a local model reads what it said."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from torch import Tensor

from postgrad.core.data import plain_text
from postgrad.core.errors import ModelError
from postgrad.core.types import Message, Prompt
from postgrad.engines.chat.config import ChatConfig
from postgrad.engines.chat.make import make_chat
from postgrad.engines.chat.types import Call, Chat
from postgrad.thought.agents import ModelAgent, Turn


class ServedAgent:
    """The text fallback. Its states are those of `reader` at the end of what it was asked and said; virtual tokens it has none.

    Args:
        config: of the server.
        reader: any local model.
        chat: instead of the config's.
    """

    embed_width = 0
    embed_norm = 0.0

    def __init__(self, config: ChatConfig, reader: ModelAgent, chat: Chat | None = None) -> None:
        self._config, self._chat, self._reader = config, chat or make_chat(config), reader
        self.name, self.state_width, self.fingerprint = reader.name, reader.state_width, reader.fingerprint
        self._num_calls = 0

    def states(
        self,
        prompts: Sequence[Prompt],
        turns: Sequence[Turn] | None = None,
        prefix_embeds: Tensor | None = None,
    ) -> Tensor:
        """As `Agent.states`, of the reader."""
        return self._reader.states(prompts, turns, prefix_embeds)

    def generate(
        self,
        prompts: Sequence[Prompt],
        prefix_embeds: Tensor | None = None,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Turn]:
        """As `Agent.generate`; length, temperature and seed are those of the server's config.

        Raises:
            ModelError: virtual tokens were given.
            ChatError: no reply.
        """
        if prefix_embeds is not None:
            raise ModelError(f"{self.name} is behind a server and takes no virtual tokens; tell it by text.")
        self._num_calls += 1
        batch = self._num_calls

        async def ask() -> list[str]:
            calls = [
                Call(key=f"{self.name}/{batch}/{number}", role=self.name, messages=_messages(prompt))
                for number, prompt in enumerate(prompts)
            ]
            return [reply.text for reply in await asyncio.gather(*map(self._chat.complete, calls))]

        return [Turn(text) for text in asyncio.run(ask())]


def _messages(prompt: Prompt) -> tuple[Message, ...]:
    return prompt.messages or ({"role": "user", "content": plain_text(prompt).rstrip("\n")},)
