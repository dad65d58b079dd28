"""What calls cost: per role, in calls, tokens, seconds and dollars."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from postgrad.core.errors import ChatError
from postgrad.engines.chat.config import ChatConfig
from postgrad.engines.chat.types import Call, Chat, Reply

_PER = 1e6


class Prices(NamedTuple):
    """USD per million tokens; None = unknown (cached: as the prompt's)."""

    prompt: float | None = None
    cached: float | None = None
    completion: float | None = None

    @classmethod
    def of(cls, config: ChatConfig) -> Prices:
        """Those of a config."""
        return cls(config.price_prompt, config.price_cached, config.price_completion)

    def cost(self, reply: Reply) -> float | None:
        """USD of one reply; None where a price or a count is unknown. A replayed one costs nothing.

        >>> Prices(prompt=2.0, cached=0.5, completion=10.0).cost(Reply("", 1000, 400, 100))
        0.0024
        """
        if reply.replayed:
            return 0.0
        if self.prompt is None or self.completion is None:
            return None
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            return None
        cached = min(reply.cached_tokens or 0, reply.prompt_tokens)
        price = self.prompt if self.cached is None else self.cached
        fresh = (reply.prompt_tokens - cached) * self.prompt
        return (fresh + cached * price + reply.completion_tokens * self.completion) / _PER


@dataclass(frozen=True)
class Account:
    """A sum over calls; `+` adds two.

    Attributes:
        calls: replies that were had from the model now.
        failures: calls that ended with a ChatError.
        replayed: replies from a journal; none of their tokens, seconds and dollars are in the other sums.
        prompt_tokens, cached_tokens, completion_tokens: sums of what servers reported. Cached ones are part of the prompt's.
        unreported: replies whose server did not say how many tokens they had.
        seconds: waited, failures included; more than the clock's where calls ran side by side.
        cost_usd: None once it is unknown for one of the calls. Failed calls are not in it.
    """

    calls: int = 0
    failures: int = 0
    replayed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    unreported: int = 0
    seconds: float = 0.0
    cost_usd: float | None = 0.0

    def __add__(self, other: Account) -> Account:
        known = self.cost_usd is not None and other.cost_usd is not None
        return Account(
            self.calls + other.calls,
            self.failures + other.failures,
            self.replayed + other.replayed,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.unreported + other.unreported,
            self.seconds + other.seconds,
            (self.cost_usd or 0.0) + (other.cost_usd or 0.0) if known else None,
        )

    @classmethod
    def of(cls, reply: Reply, prices: Prices) -> Account:
        """One reply's."""
        if reply.replayed:
            return cls(replayed=1)
        return cls(
            calls=1,
            prompt_tokens=reply.prompt_tokens or 0,
            cached_tokens=reply.cached_tokens or 0,
            completion_tokens=reply.completion_tokens or 0,
            unreported=int(reply.prompt_tokens is None or reply.completion_tokens is None),
            seconds=reply.seconds,
            cost_usd=prices.cost(reply),
        )

    def as_dict(self, prefix: str = "") -> dict[str, float | int | None]:
        """Name → number, for metrics.

        >>> Account(calls=2).as_dict("curator_")["curator_calls"]
        2
        """
        return {f"{prefix}{name}": value for name, value in vars(self).items()}


class Ledger:
    """Accounts by role.

    Args:
        prices: of all roles, or by role (one that is not in it costs an unknown amount).
    """

    def __init__(self, prices: Prices | Mapping[str, Prices] = Prices()) -> None:  # noqa: B008 (immutable)
        self._prices = prices
        self.accounts: dict[str, Account] = {}

    def add(self, role: str, reply: Reply) -> None:
        """Enter a reply."""
        prices = self._prices if isinstance(self._prices, Prices) else self._prices.get(role, Prices())
        self._enter(role, Account.of(reply, prices))

    def fail(self, role: str, seconds: float = 0.0) -> None:
        """Enter a call that gave no reply."""
        self._enter(role, Account(failures=1, seconds=seconds))

    def total(self) -> Account:
        """All roles together."""
        return sum(self.accounts.values(), Account())

    def as_dict(self) -> dict[str, dict[str, float | int | None]]:
        """Role → name → number, roles in alphabetical order."""
        return {role: self.accounts[role].as_dict() for role in sorted(self.accounts)}

    def load(self, saved: Mapping[str, Mapping[str, float | int | None]]) -> None:
        """Go on from what `as_dict` gave, such as an earlier part of the run; replaces what is here."""
        self.accounts = {role: Account(**account) for role, account in saved.items()}  # pyright: ignore[reportArgumentType]

    def _enter(self, role: str, account: Account) -> None:
        self.accounts[role] = self.accounts.get(role, Account()) + account


class Metered:
    """A `Chat` that enters each call of another into a ledger."""

    def __init__(self, chat: Chat, ledger: Ledger) -> None:
        self._chat = chat
        self.ledger = ledger

    async def complete(self, call: Call) -> Reply:
        """As the other chat's."""
        begun = time.monotonic()
        try:
            reply = await self._chat.complete(call)
        except ChatError:
            self.ledger.fail(call.role, time.monotonic() - begun)
            raise
        self.ledger.add(call.role, reply)
        return reply

    def count_tokens(self, text: str) -> int:
        """As the other chat's."""
        return self._chat.count_tokens(text)

    async def close(self) -> None:
        """Closes the other chat."""
        await self._chat.close()
