"""A chat with a local Hugging Face model, on our torch engine. Calls that wait at the same time are generated together."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postgrad.core.data import decode_completion, encode_prompt
from postgrad.core.errors import ChatError, ConfigError, PostgradError
from postgrad.core.models.model import Model, load
from postgrad.core.types import Message, Prompt, Request, Sample
from postgrad.engines.chat.config import ChatConfig
from postgrad.engines.chat.endpoint import call_seed
from postgrad.engines.chat.prompts import with_schema
from postgrad.engines.chat.types import Call, Reply
from postgrad.engines.torch_engine.engine import TorchEngine

_DEFAULT_MAX_TOKENS = 2048
_LEAST_LENGTH = 256
"""Tokens for which the engine's cache is made at least; it doubles when a longer call comes."""


@dataclass
class _Job:
    """A call on its way through the engine."""

    request: Request
    future: Future[Sample]


class LocalChat:
    """A `Chat` in this process.

    One thread runs the engine; whoever waits is batched. A reply depends on the messages, the seed and the call's key alone
    (up to rounding), not on what else is running or on the order of arrival. A schema is said in the prompt.

    Args:
        config: with `path`.
        model: instead of loading `config.path`.

    Raises:
        ConfigError: no path.
        ModelError: a model that cannot be loaded.
    """

    def __init__(self, config: ChatConfig, model: Model | None = None) -> None:
        if config.path is None:
            raise ConfigError("LocalChat needs path; for a server use EndpointChat.")
        self._config = config
        self._model = load(config.path, device=config.device) if model is None else model
        limits = [limit for limit in (self._model.context_length, config.context_tokens) if limit]
        self._context = min(limits) if limits else None
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._num_calls = 0
        self._engine: TorchEngine | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the replies, for journals."""
        return self._config.settings

    def count_tokens(self, text: str) -> int:
        """Exact."""
        return len(self._model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # pyright: ignore[reportArgumentType]

    async def complete(self, call: Call) -> Reply:
        """The reply to a call. Raises ChatError for a prompt that does not fit, and when the engine fails."""
        begun = time.monotonic()
        tokens = self._encode(call)
        with self._lock:
            self._num_calls += 1
            job = _Job(self._request(call, tokens), Future())
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="postgrad-chat", daemon=True)
                self._thread.start()
                atexit.register(self._stop)  # torch must not be at work while the interpreter goes down
            self._queue.put(job)
        sample = await asyncio.wrap_future(job.future)
        return Reply(
            text=decode_completion(self._model.tokenizer, sample.token_ids),
            prompt_tokens=len(tokens),
            completion_tokens=len(sample.token_ids),
            seconds=time.monotonic() - begun,
            finish_reason="stop" if sample.stop_reason == "stop" else "length",
        )

    async def close(self) -> None:
        """Ends the thread; calls that still wait are ChatErrors. A later call starts it again."""
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._queue.put(None)
                atexit.unregister(self._stop)
        if thread is not None:
            thread.join()

    # -- in the caller's thread ----------------------------------------------------------------------------------

    def _encode(self, call: Call) -> NDArray[np.int64]:
        messages: Sequence[Message] = call.messages
        if call.schema is not None:
            messages = with_schema(messages, call.schema)
        try:
            tokens = encode_prompt(self._model.tokenizer, Prompt(id=call.key, messages=tuple(messages)))
        except PostgradError as error:
            raise ChatError(f"Call {call.key!r}: {error}") from None
        if self._context is not None and len(tokens) >= self._context:
            raise ChatError(
                f"The prompt of {call.key!r} has {len(tokens)} tokens; {self._config.path} takes {self._context}, prompt and "
                "reply together. Send less, or take a model with a longer context."
            )
        return tokens

    def _request(self, call: Call, tokens: NDArray[np.int64]) -> Request:
        config = self._config
        limit = config.max_tokens or _DEFAULT_MAX_TOKENS
        if self._context is not None:
            limit = min(limit, self._context - len(tokens))
        return Request(
            id=call_seed(0, call.key) >> 1,
            group_id=self._num_calls,
            prompt_tokens=tokens,
            max_tokens=limit,
            seed=config.seed or 0,
            temperature=1.0 if config.temperature is None else config.temperature,
            top_p=float(config.options.get("top_p", 1.0)),
            top_k=int(config.options.get("top_k", 0)),
        )

    # -- in the engine's thread ----------------------------------------------------------------------------------

    def _work(self) -> None:
        """Until told to stop: take what has come, decode one token of everything that runs, hand out what is finished."""
        running: dict[int, _Job] = {}
        waiting: list[_Job] = []
        while True:
            if not self._receive(waiting, block=not running and not waiting):
                _fail(
                    [*running.values(), *waiting],
                    ChatError("The chat was closed before the reply was finished."),
                )
                self._engine = None
                return
            try:
                waiting = self._admit(waiting, running)
                for sample in self._engine.step() if self._engine is not None and running else ():
                    _settle(running.pop(sample.group_id).future, sample)
            except Exception as error:  # out of memory, and whatever a model's own code raises
                failure = ChatError(f"{self._config.path} cannot go on: {type(error).__name__}: {error}")
                _fail([*running.values(), *waiting], failure)
                running.clear()
                waiting.clear()
                self._engine = None

    def _receive(self, waiting: list[_Job], *, block: bool) -> bool:
        """Add what has come; False if told to stop."""
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._queue.get(block)
                if job is None:
                    return False
                waiting.append(job)
                block = False
        return True

    def _admit(self, waiting: list[_Job], running: dict[int, _Job]) -> list[_Job]:
        """Hand waiting jobs to the engine, and take cancelled ones out; returns those that need a longer one."""
        waiting = [job for job in waiting if not job.future.cancelled()]
        if self._engine is not None and any(job.future.cancelled() for job in running.values()):
            kept = [
                taken for taken in self._engine.snapshot() if not running[taken.group_id].future.cancelled()
            ]
            for group in set(running) - {taken.group_id for taken in kept}:
                del running[group]
            self._engine.submit(kept)
        if waiting and not running:
            needed = max(_length(job) for job in waiting)
            if self._engine is None or self._engine.max_length < needed:
                self._engine = None  # its cache is let go before the larger one is made
                self._engine = self._make(needed)
        if self._engine is None:
            return waiting
        fitting = [job for job in waiting if _length(job) <= self._engine.max_length]
        if len(fitting) < len(waiting):
            # Those that come after a longer one wait with it, or it would wait for ever.
            fitting = waiting[
                : next(n for n, job in enumerate(waiting) if _length(job) > self._engine.max_length)
            ]
        self._engine.submit([job.request for job in fitting])
        running.update((job.request.group_id, job) for job in fitting)
        return waiting[len(fitting) :]

    def _make(self, needed: int) -> TorchEngine:
        length = _LEAST_LENGTH
        while length < needed:
            length *= 2
        if self._model.context_length:
            length = min(length, self._model.context_length)
        return TorchEngine(self._model, slots=self._config.concurrency, max_length=length)


def _length(job: _Job) -> int:
    return len(job.request.prompt_tokens) + job.request.max_tokens


def _settle(future: Future[Sample], sample: Sample) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
        future.set_result(sample)


def _fail(jobs: Sequence[_Job], error: ChatError) -> None:
    for job in jobs:
        with contextlib.suppress(InvalidStateError):
            job.future.set_exception(error)
