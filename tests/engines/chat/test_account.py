"""Accounts by hand."""

from __future__ import annotations

import asyncio

import pytest
from tests.engines.chat.fakes import FakeChat

from postgrad.core.errors import ChatError
from postgrad.engines.chat import Account, Call, ChatConfig, Ledger, Metered, Prices, Reply

PRICES = Prices(prompt=2.0, cached=0.5, completion=10.0)


def test_costs_by_hand() -> None:
    ledger = Ledger(PRICES)
    ledger.add("curator", Reply("", 1_000_000, 400_000, 100_000, 2.0))  # 0.6·2 + 0.4·0.5 + 0.1·10
    ledger.add("curator", Reply("", 500_000, None, 0, 1.0))
    ledger.fail("curator", 4.0)
    ledger.add("curator", Reply("", 1_000_000, 0, 1_000_000, 9.0, replayed=True))
    account = ledger.accounts["curator"]
    assert account.cost_usd == pytest.approx(2.4 + 1.0)
    expected = {
        "calls": 2,
        "failures": 1,
        "replayed": 1,
        "prompt_tokens": 1_500_000,
        "cached_tokens": 400_000,
    }
    expected |= {"completion_tokens": 100_000, "unreported": 0, "seconds": 7.0, "cost_usd": account.cost_usd}
    assert ledger.as_dict() == {"curator": expected}


def test_unknown_prices_and_counts_make_the_cost_unknown() -> None:
    assert Prices(2.0, None, 10.0).cost(Reply("", 10**6, 10**6, 0)) == 2.0  # cached as the prompt's
    assert Prices(2.0).cost(Reply("", 1, 0, 1)) is None
    ledger = Ledger({"generator": PRICES})
    ledger.add("generator", Reply("", 10, None, 10))
    ledger.add("generator", Reply("", None, None, None))
    ledger.add("critic", Reply("", 10, None, 10))
    assert ledger.accounts["generator"].unreported == 1
    assert ledger.accounts["generator"].cost_usd is ledger.accounts["critic"].cost_usd is None
    assert ledger.total().cost_usd is None
    assert ledger.total().calls == 3
    assert Ledger().total() == Account()
    assert Account().cost_usd == 0
    assert Prices.of(ChatConfig(path="x", price_cached=1.0)) == (None, 1.0, None)


def test_a_ledger_goes_on_from_what_was_saved() -> None:
    ledger, later = Ledger(PRICES), Ledger(PRICES)
    ledger.add("a", Reply("", 1, 0, 1))
    later.load(ledger.as_dict())
    ledger.add("a", Reply("", 2, 0, 1))
    later.add("a", Reply("", 2, 0, 1))
    assert later.as_dict() == ledger.as_dict()


def test_a_metered_chat_enters_replies_and_failures() -> None:
    def answer(call: Call) -> str:
        if call.key == "bad":
            raise ChatError("out")
        return "x"

    fake = FakeChat(answer)
    chat = Metered(fake, Ledger(PRICES))

    async def run() -> None:
        await chat.complete(Call("1", "a", ()))
        with pytest.raises(ChatError):
            await chat.complete(Call("bad", "b", ()))
        await chat.close()

    asyncio.run(run())
    assert (chat.ledger.accounts["a"].calls, chat.ledger.accounts["b"].failures) == (1, 1)
    assert chat.count_tokens("abc") == 3
    assert fake.closed
