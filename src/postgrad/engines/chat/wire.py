"""A server's answer: read within bounds of size and time, then taken apart without trusting any of it."""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

from postgrad.core.errors import ChatError
from postgrad.engines.chat.types import FinishReason, Reply

_SHOWN_CHARACTERS = 300
_COMPRESSIONS = ("gzip", "deflate", "br", "zstd")


class BrokenReplyError(Exception):
    """An answer with status 200 that is no chat completion; the text says why."""


def bounded(max_bytes: int, timeout_s: float) -> Callable[[Any], Awaitable[None]]:
    """A response hook for the client's connections: no body is longer than `max_bytes`, or takes more than `timeout_s`.

    (The client's own time limit is for each read, so that a server which drips would hold it for ever; its size has none.)
    Too late is a read timeout of the HTTP library, which the client tries again; too long is a ChatError.
    """

    async def hook(response: Any) -> None:
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            named = encoding if encoding in _COMPRESSIONS else "an unknown one"
            raise ChatError(
                f"The server answers in a compressed encoding ({named}) although none was asked for: a compressed reply "
                "may be of any size. Switch the compression off (in the proxy, where there is one)."
            )
        library = type(response).__module__.partition(".")[0]
        response.stream = _stream_type(library)(response, max_bytes, time.monotonic() + timeout_s)

    return hook


@functools.cache
def _stream_type(library: str) -> Any:
    """The bounded body, as the stream class of the HTTP library that the client was built with (httpx or httpx2)."""
    http = importlib.import_module(library)

    class Bounded(http.AsyncByteStream):  # pyright: ignore[reportUntypedBaseClass]
        def __init__(self, response: Any, max_bytes: int, deadline: float) -> None:
            self._stream, self._request = response.stream, response.request
            self._max_bytes, self._deadline = max_bytes, deadline

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size, chunks = 0, aiter(self._stream)
            while True:
                try:
                    async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                        chunk = await anext(chunks, None)
                except TimeoutError:
                    raise http.ReadTimeout("the reply did not end in time", request=self._request) from None
                if chunk is None:
                    return
                size += len(chunk)
                if size > self._max_bytes:
                    raise ChatError(
                        f"The server's reply is longer than {self._max_bytes} bytes, far more than `max_tokens` allows for. "
                        "Is this a server for chat completions?"
                    )
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    return Bounded


def parse(text: str, seconds: float) -> Reply:
    """The reply in the JSON of a chat completion.

    Raises:
        BrokenReplyError: it is none.

    >>> parse('{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}', 0.5)
    Reply(text='', prompt_tokens=None, cached_tokens=None, completion_tokens=None, seconds=0.5, finish_reason='length', \
replayed=False)
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise BrokenReplyError(f"its answer is not JSON: {shown(text)}") from None
    choice = _first(_get(body, "choices"))
    message = _get(choice, "message")
    if not isinstance(message, dict):
        raise BrokenReplyError(f"its answer holds no message: {shown(text)}")
    usage = _get(body, "usage")
    return Reply(
        text=_content(_get(message, "content")),
        prompt_tokens=_count(_get(usage, "prompt_tokens")),
        cached_tokens=_count(_get(_get(usage, "prompt_tokens_details"), "cached_tokens")),
        completion_tokens=_count(_get(usage, "completion_tokens")),
        seconds=seconds,
        finish_reason=_finish(_get(choice, "finish_reason")),
    )


def shown(text: str) -> str:
    """The beginning of a text, on one line, for a message.

    >>> shown("<html>\\n  <b>502</b>")
    "'<html> <b>502</b>'"
    """
    line = " ".join(text[: 8 * _SHOWN_CHARACTERS].split())
    return repr(line if len(line) <= _SHOWN_CHARACTERS else line[:_SHOWN_CHARACTERS] + "…")


def _get(value: Any, name: str) -> Any:
    return cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else None


def _count(value: Any) -> int | None:
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    return value if usable else None


def _finish(value: Any) -> FinishReason:
    if value == "stop":
        return "stop"
    return "length" if value == "length" else "other"


def _content(value: Any) -> str:
    """Text, or the text parts of a list of parts."""
    if isinstance(value, list):
        value = "".join(part for item in value if isinstance(part := _get(item, "text"), str))
    return encodable(value) if isinstance(value, str) else ""


def encodable(text: str) -> str:
    """The text with question marks for lone surrogates, which UTF-8 cannot hold.

    >>> encodable("a\\ud800")
    'a?'
    """
    return text.encode("utf-8", "replace").decode()
