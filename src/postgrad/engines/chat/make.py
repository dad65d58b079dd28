"""From a config to a chat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from postgrad.engines.chat.config import ChatConfig
from postgrad.engines.chat.journal import Journal, Mode
from postgrad.engines.chat.types import Chat


def make_chat(
    config: ChatConfig,
    journal: str | Path | None = None,
    *,
    mode: Mode = "resume",
    redact: Callable[[str], str] | None = None,
    keep_prompts: bool = False,
) -> Chat:
    """The chat of a config: a server's or a local model's, with a journal around it if a path is given.

    In mode `replay` neither is made: the journal answers alone, so that no key, package or model is needed.

    Raises:
        ConfigError, MissingExtraError, ModelError: as `EndpointChat` and `LocalChat`.
        ChatError, RunError: a journal that is not there or damaged.
    """
    if journal is not None and mode == "replay":
        tokenizer = config.tokenizer
        if config.path is not None:
            from postgrad.core.models.paths import locate

            tokenizer = str(locate(config.path, None, trust_remote_code=False)[0])
        return Journal(None, journal, mode="replay", settings=config.settings, tokenizer=tokenizer)
    chat = _make(config)
    if journal is None:
        return chat
    return Journal(
        chat, journal, mode=mode, settings=config.settings, redact=redact, keep_prompts=keep_prompts
    )


def _make(config: ChatConfig) -> Chat:
    if config.path is None:
        from postgrad.engines.chat.endpoint import EndpointChat

        return EndpointChat(config)
    from postgrad.engines.chat.local import LocalChat

    return LocalChat(config)
