"""A chat without a model, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from postgrad.engines.chat.types import Call, Reply


class FakeChat:
    """Answers by a function of the call; remembers what it was asked."""

    def __init__(
        self, answer: Callable[[Call], str | Reply], settings: dict[str, object] | None = None
    ) -> None:
        self._answer = answer
        self.settings = settings or {"model": "fake"}
        self.calls: list[Call] = []
        self.closed = False

    async def complete(self, call: Call) -> Reply:
        self.calls.append(call)
        await asyncio.sleep(0)
        made = self._answer(call)
        return Reply(made, 10, 4, 2, 0.5) if isinstance(made, str) else made

    def count_tokens(self, text: str) -> int:
        return len(text)

    async def close(self) -> None:
        self.closed = True
