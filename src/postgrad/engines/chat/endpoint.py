"""A chat with a model behind any server that speaks OpenAI's chat completions. Start at `EndpointChat.complete`."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import os
import re
import time
import weakref
from dataclasses import replace
from typing import Any

from postgrad.core.errors import ChatError, ConfigError, MissingExtraError
from postgrad.core.types import Message
from postgrad.engines.chat import wire
from postgrad.engines.chat.config import ChatConfig
from postgrad.engines.chat.context import HOW_TO_RAISE, ContextWatch
from postgrad.engines.chat.prompts import response_format, with_schema
from postgrad.engines.chat.tokens import count_messages, make_counter
from postgrad.engines.chat.types import Call, Reply

_LEVELS = ("json_schema", "json_object", "text")
_PAUSE_S = 60.0
"""Most seconds between two tries, for the limit of all tries together."""
_SLACK_S = 5.0
_BROKEN_PAUSE_S = 0.5
_BASE_BYTES = 2**20
_BYTES_PER_TOKEN = 256
_UNLIMITED_TOKENS = 2**17
_MIN_SECRET_CHARACTERS = 8
"""A shorter key is a placeholder such as EMPTY, which may well stand in an ordinary reply."""
_TOO_LONG = re.compile(
    r"context[ _]?(length|size|window)|exceed_context|maximum context|max_model_len|maximum model length"
    r"|prompt is too long|too many (input|prompt) tokens|input is too long|reduce the length",
    re.I,
)


class EndpointChat:
    """A `Chat` over HTTP.

    Tries again what may pass (429, 408, 409, 5xx, lost connections, timeouts, broken replies) with growing pauses. Every
    other failure, and the last one of these, is a ChatError that never shows the key. What the server sends is read within
    bounds of size and time. A prompt that the server cut silently is an error too (see `context`).

    Connections belong to an event loop: `close` them in the loop that used them. Another loop opens new ones.

    Args:
        config: with `base_url` and `model`.

    Raises:
        MissingExtraError: the package openai is not installed (extra `llm`).
        ConfigError: no server in the config, or the environment variable with the key is not set.
        ModelError: a tokenizer that cannot be read.
    """

    def __init__(self, config: ChatConfig) -> None:
        if config.base_url is None or config.model is None:
            raise ConfigError("EndpointChat needs base_url and model; for a local model use LocalChat.")
        self._openai = _import_openai()
        self._config = config
        self._key = api_key(config)
        self._count = make_counter(config.tokenizer)
        self._watch = ContextWatch(exact=self._count.exact)
        self._level = _LEVELS.index("json_schema" if config.structured == "auto" else config.structured)
        self._limit_s = (config.retries + 1) * config.timeout_s + config.retries * _PAUSE_S + _SLACK_S
        self._open_in: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[Any, asyncio.Semaphore]]
        self._open_in = weakref.WeakKeyDictionary()

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the replies, for journals."""
        return self._config.settings

    def count_tokens(self, text: str) -> int:
        """Exact with `tokenizer`, else an estimate that errs upwards."""
        return self._count(text)

    async def complete(self, call: Call) -> Reply:
        """The reply to a call. Raises ChatError after all tries."""
        own = count_messages(self._count, call.messages)
        self._check_room(call, own)
        client, gate = self._open()
        async with gate:
            begun = time.monotonic()
            try:
                async with asyncio.timeout(self._limit_s):
                    text = await self._ask(client, call, own)
            except TimeoutError:
                raise self._error(
                    f"gave no reply to {call.key!r} within {self._limit_s:g} s, all tries together"
                ) from None
        reply = wire.parse(text, time.monotonic() - begun)
        self._check_context(call, own, reply)
        return replace(reply, text=self._hide(reply.text, _MIN_SECRET_CHARACTERS))

    async def close(self) -> None:
        """Close the connections of the running loop; a later call opens new ones."""
        client, _ = self._open_in.pop(asyncio.get_running_loop(), (None, None))
        if client is not None:
            await client.close()

    # -- asking --------------------------------------------------------------------------------------------------

    def _open(self) -> tuple[Any, asyncio.Semaphore]:
        """The client of the running loop, and its limit of requests at a time."""
        loop = asyncio.get_running_loop()
        if loop not in self._open_in:
            config = self._config
            tokens = config.max_tokens or _UNLIMITED_TOKENS
            hook = wire.bounded(_BASE_BYTES + _BYTES_PER_TOKEN * tokens, config.timeout_s)
            client = self._openai.AsyncOpenAI(
                base_url=config.base_url,
                api_key=self._key,
                organization="",
                project="",
                timeout=config.timeout_s,
                max_retries=config.retries,
                default_headers={"Accept-Encoding": "identity"},
                http_client=self._openai.DefaultAsyncHttpxClient(
                    timeout=config.timeout_s, event_hooks={"response": [hook]}
                ),
            )
            self._open_in[loop] = client, asyncio.Semaphore(config.concurrency)
        return self._open_in[loop]

    async def _ask(self, client: Any, call: Call, own: int) -> str:
        """The text of a usable answer; broken ones use up tries like the client's own failures."""
        left = self._config.retries
        level = self._level
        raw: Any = None
        while True:
            try:
                raw = await client.with_options(max_retries=left).chat.completions.with_raw_response.create(
                    **self._request(call, _LEVELS[level])
                )
                wire.parse(self._hide(raw.text), 0.0)
            except wire.BrokenReplyError as error:
                left -= 1 + int(getattr(raw, "retries_taken", 0) or 0)
                if left < 0:
                    raise self._error(f"cannot be used: {error}") from None
                await asyncio.sleep(_BROKEN_PAUSE_S)
            except ChatError:
                raise
            except self._openai.APIStatusError as error:
                if not self._may_be_format(call, level, error):
                    raise self._explain(call, own, error) from None
                level += 1
            except (
                Exception
            ) as error:  # lost connections, timeouts, and whatever a broken server provokes in the client
                raise self._explain(call, own, error) from None
            else:
                if call.schema is not None:
                    self._level = max(self._level, level)
                return raw.text

    def _request(self, call: Call, level: str) -> dict[str, Any]:
        config = self._config
        messages: list[Message] = [
            {"role": message["role"], "content": wire.encodable(message["content"])}
            for message in call.messages
        ]
        fields: dict[str, Any] = {"model": config.model}
        if call.schema is not None:
            if level != "json_schema":
                messages = with_schema(messages, call.schema)
            if (format := response_format(call.schema, level)) is not None:
                fields["response_format"] = format
        fields["messages"] = messages
        for name in ("temperature", "max_tokens"):
            if (value := getattr(config, name)) is not None:
                fields[name] = value
        if config.seed is not None:
            fields["seed"] = call_seed(config.seed, call.key) >> 33
        return {**fields, "extra_body": config.options or None}

    def _may_be_format(self, call: Call, level: int, error: Any) -> bool:
        """A refusal that a less demanding response format may avoid. (If that one is refused too, its error is told.)"""
        return (
            self._config.structured == "auto"
            and call.schema is not None
            and level + 1 < len(_LEVELS)
            and error.status_code in (400, 422)
            and not _TOO_LONG.search(str(error))
        )

    # -- what is wrong -------------------------------------------------------------------------------------------

    def _check_room(self, call: Call, own: int) -> None:
        """Raises ChatError for a prompt that cannot fit. (An estimate has to be twice the limit to be certain.)"""
        limit = self._config.context_tokens
        if limit is not None and own > (limit if self._count.exact else 2 * limit):
            about = "" if self._count.exact else "about "
            raise ChatError(
                f"The prompt of {call.key!r} has {about}{own} tokens; context_tokens is {limit}. Send less, or raise "
                "context_tokens if the server has more."
            )

    def _check_context(self, call: Call, own: int, reply: Reply) -> None:
        if not self._config.check_truncation:
            return
        problem = self._watch.judge(call.role, own, reply.prompt_tokens, reply.cached_tokens)
        if problem is not None:
            raise ChatError(
                f"{self._where()} cut the prompt of {call.key!r} silently: {problem}. {HOW_TO_RAISE} "
                "(If its counts are wrong instead: check_truncation = false.)"
            )

    def _where(self) -> str:
        return f"{self._config.model} at {self._config.base_url}"

    def _error(self, problem: str) -> ChatError:
        return ChatError(self._hide(f"{self._where()} {problem}"))

    def _explain(self, call: Call, own: int, error: Exception) -> ChatError:
        """A failure of the client as a ChatError that says what to do."""
        status = getattr(error, "status_code", None)
        said = wire.shown(self._hide(str(error)))
        if isinstance(error, self._openai.APITimeoutError):
            tries = "1 try" if self._config.retries == 0 else f"{self._config.retries + 1} tries"
            return self._error(
                f"gave no reply to {call.key!r} in {self._config.timeout_s:g} s ({tries}). Raise timeout_s, or lower "
                "concurrency or max_tokens."
            )
        if isinstance(error, self._openai.APIConnectionError):
            cause = f" ({wire.shown(self._hide(str(error.__cause__)))})" if error.__cause__ else ""
            return self._error(
                f"cannot be reached, or hung up{cause}. Is the server running, and base_url right?"
            )
        if status in (400, 413, 422) and _TOO_LONG.search(said):
            about = "" if self._count.exact else "about "
            return self._error(
                f"refuses the prompt of {call.key!r} ({about}{own} tokens, {self._config.max_tokens} more asked for) as too "
                f"long: {said}. {HOW_TO_RAISE}"
            )
        hint = _HINTS.get(status or 0, "")
        if status in (401, 403):
            where = self._config.api_key_env
            hint = (
                f" Check the key in {where}."
                if where
                else " It wants a key: name its variable in api_key_env."
            )
        return self._error(f"refused {call.key!r}: {said}.{hint}")

    def _hide(self, text: str, min_characters: int = 1) -> str:
        """The text without the key."""
        secret = self._config.api_key_env is not None and len(self._key) >= min_characters
        return text.replace(self._key, "***") if secret else text


_HINTS = {
    404: " Is `model` one that the server has (see its /models), and does base_url end as it should (often in /v1)?",
    429: " It was asked too often, or the account is empty: lower concurrency, raise retries, or wait.",
}


def _import_openai() -> Any:
    try:
        return importlib.import_module("openai")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "openai":
            raise MissingExtraError("openai", "llm", "A chat with a server") from None
        raise


def api_key(config: ChatConfig) -> str:
    """The key of a server; a placeholder for one that wants none. Raises ConfigError when its variable is not set."""
    if config.api_key_env is None:
        return "none"
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"The key of {config.base_url} is expected in the environment variable {config.api_key_env}, which is not set. "
            f"Set it (export {config.api_key_env}=…), or leave api_key_env out for a server that wants no key."
        )
    return key


def call_seed(seed: int, key: str) -> int:
    """64 bits that depend on the seed and the call's key alone, so that replies do not depend on the order of calls.

    >>> call_seed(0, "0/1/reflect") == call_seed(0, "0/1/reflect") != call_seed(0, "0/2/reflect")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode("utf-8", "replace")).digest()[:8], "big")
