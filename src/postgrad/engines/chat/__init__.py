"""Chats: language models that answer, behind a server or in this process, behind one Protocol.

    config = ChatConfig(base_url="http://127.0.0.1:11434/v1", model="qwen3:8b")
    chat = make_chat(config, journal="calls.jsonl")  # a killed run pays for no call twice
    answer = await ask(chat, Call("0/17/reflect", "reflector", messages), Reflection)  # a pydantic model, or None
    await chat.close()

`EndpointChat` speaks OpenAI's chat completions (Ollama, llama.cpp, vLLM, hosted; extra `llm`), `LocalChat` runs a Hugging
Face model on our torch engine, `Journal` records either and answers from the record, `ask` has a reply that follows a
schema, `Metered` keeps the accounts. Start at `types.py`. Importing this package imports neither torch nor openai.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from postgrad.engines.chat.account import Account, Ledger, Metered, Prices
    from postgrad.engines.chat.config import ChatConfig
    from postgrad.engines.chat.endpoint import EndpointChat
    from postgrad.engines.chat.journal import Journal
    from postgrad.engines.chat.local import LocalChat
    from postgrad.engines.chat.make import make_chat
    from postgrad.engines.chat.structured import Answer, ask
    from postgrad.engines.chat.tokens import estimate_tokens
    from postgrad.engines.chat.types import Call, Chat, Reply

__all__ = [
    "Account",
    "Answer",
    "Call",
    "Chat",
    "ChatConfig",
    "EndpointChat",
    "Journal",
    "Ledger",
    "LocalChat",
    "Metered",
    "Prices",
    "Reply",
    "ask",
    "estimate_tokens",
    "make_chat",
]

_MODULES = {
    "Account": "account",
    "Answer": "structured",
    "Call": "types",
    "Chat": "types",
    "ChatConfig": "config",
    "EndpointChat": "endpoint",
    "Journal": "journal",
    "Ledger": "account",
    "LocalChat": "local",
    "Metered": "account",
    "Prices": "account",
    "Reply": "types",
    "ask": "structured",
    "estimate_tokens": "tokens",
    "make_chat": "make",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"postgrad.engines.chat.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'postgrad.engines.chat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
