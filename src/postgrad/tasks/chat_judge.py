"""A language model as judge, behind any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Sequence
from itertools import count
from types import TracebackType
from typing import Any

from postgrad.core.data import plain_text
from postgrad.core.types import Prompt, Verdict
from postgrad.tasks.config import JudgeConfig
from postgrad.tasks.extras import require
from postgrad.tasks.judge import after_thinking, api_key, check_tickets
from postgrad.tasks.worker import describe

_PAUSE_S = 60.0
"""Most seconds between two tries: the client follows a server's Retry-After up to a minute."""
_SLACK_S = 1.0
_PROBE_S = 30.0
"""While the server is out, one request every so many seconds finds out whether it is back."""
_MIN_FAILURES = 8
_MAX_REMEMBERED = 100_000
_SHOWN_CHARACTERS = 200


class ChatJudge:
    """Asks a language model for a number; a `core.protocols.Judge` that works in threads while nobody waits.

    What does not work out is a verdict without a score: no number in the reply, one out of range, an answer of the server
    that is an error after all tries (`error`, with the reply or the error in the detail), no reply in time (`timeout`).
    After several failed requests in a row the server counts as out: what is waiting fails at once, and one request
    every half minute finds out whether it is back. So an outage ends in bounded time.

    The same question is asked once: its score is remembered. Failures are not.

    Args:
        config: the server, the question and the limits.

    Raises:
        MissingExtraError: the package openai is not installed (extra `llm`).
        ConfigError: the environment variable with the key is not set.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self._openai = require("openai", package="openai", extra="llm", purpose="A judge behind a server")
        self._config = config
        self._client = self._openai.OpenAI(
            base_url=config.base_url,
            api_key=api_key(config),
            organization="",
            project="",
            timeout=config.timeout_s,
            max_retries=config.retries,
        )
        self._limit_s = (config.retries + 1) * config.timeout_s + config.retries * _PAUSE_S + _SLACK_S
        self._number = re.compile(config.pattern)
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._asked: dict[str, _Question] = {}
        self._tickets: dict[int, _Question] = {}
        self._numbers = count()
        self._num_failures = 0
        self._last_failure = ""
        self._next_probe = 0.0
        self._num_threads = 0

    def submit(self, prompt: Prompt, completion: str) -> int:
        """Start judging; returns a ticket."""
        text = fill(self._config.template, prompt, after_thinking(completion))
        question = self._asked.get(text)
        if question is None or (question.verdict is not None and question.verdict.score is None):
            question = _Question(text)
            self._remember(question)
            self._queue.put(question)
            if self._num_threads < self._config.concurrency:
                self._start_thread()
        ticket = next(self._numbers)
        self._tickets[ticket] = question
        return ticket

    def collect(self, tickets: Sequence[int]) -> list[Verdict]:
        """Wait for these tickets; their verdicts in the same order. Raises TaskError for a ticket that is not there."""
        check_tickets(tickets, dict(self._tickets))
        return [self._wait(self._tickets.pop(ticket)) for ticket in tickets]

    def close(self) -> None:
        """Let go of the threads and the connections; verdicts that were not collected are lost."""
        while not self._queue.empty():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        for _ in range(self._num_threads):
            self._queue.put(None)
        self._client.close()

    def __enter__(self) -> ChatJudge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _remember(self, question: _Question) -> None:
        while len(self._asked) >= _MAX_REMEMBERED:
            del self._asked[next(iter(self._asked))]
        self._asked[question.text] = question

    def _start_thread(self) -> None:
        self._num_threads += 1
        threading.Thread(target=self._work, name="postgrad-judge", daemon=True).start()

    def _wait(self, question: _Question) -> Verdict:
        """The verdict; a request that outlives all its limits (a server that drips) is given up, and its thread replaced."""
        while not question.done.wait(min(0.5, self._limit_s)):
            begun = question.begun
            if begun is not None and time.monotonic() - begun > self._limit_s:
                with self._lock:
                    if question.verdict is None:
                        question.settle(Verdict(None, "timeout", f"no reply within {self._limit_s:g} s"))
                        self._failed("no reply in time")
                        self._start_thread()
        assert question.verdict is not None
        return question.verdict

    def _work(self) -> None:
        """What a thread does: one question after another, until it is told to stop or its question was given up."""
        while (question := self._queue.get()) is not None:
            question.begun = time.monotonic()
            refusal = self._refusal()
            verdict = self._ask(question.text) if refusal is None else refusal
            with self._lock:
                if question.verdict is not None:
                    self._num_threads -= 1
                    return
                question.settle(verdict)

    def _refusal(self) -> Verdict | None:
        """Why the server is not asked; None if it is."""
        with self._lock:
            if self._num_failures < max(_MIN_FAILURES, self._config.concurrency):
                return None
            if time.monotonic() >= self._next_probe:
                self._next_probe = time.monotonic() + _PROBE_S
                return None
            return Verdict(
                None,
                "error",
                f"not asked: the judge at {self._config.base_url} failed {self._num_failures} times in a row, the last time "
                f"with {self._last_failure}",
            )

    def _failed(self, why: str) -> None:
        """Count a failure; the caller holds the lock."""
        self._num_failures += 1
        self._last_failure = why
        self._next_probe = time.monotonic() + _PROBE_S

    def _ask(self, text: str) -> Verdict:
        config = self._config
        try:
            reply = self._client.chat.completions.create(
                model=config.model,
                messages=[{"role": "user", "content": text}],
                temperature=config.temperature,
                max_tokens=config.max_tokens,
                extra_body=config.options or None,
            )
            content = reply.choices[0].message.content or ""
            cut = reply.choices[0].finish_reason == "length"
        except Exception as error:  # refused, 4xx, 5xx, no JSON, no choices: all of the server's making
            late = isinstance(error, self._openai.APITimeoutError)
            why = f"{config.base_url}: {describe(error)}"[:1000]
            with self._lock:
                self._failed(why)
            return Verdict(None, "timeout" if late else "error", why)
        with self._lock:
            self._num_failures = 0
        return self._verdict(content, cut=cut)

    def _verdict(self, reply: str, *, cut: bool) -> Verdict:
        """The number in a reply."""
        shown = f"{reply.strip()[-_SHOWN_CHARACTERS:]!r}"
        found = list(self._number.finditer(after_thinking(reply)))
        if not found:
            ending = f" (cut off after {self._config.max_tokens} tokens, see judge.max_tokens)" if cut else ""
            return Verdict(None, "error", f"the judge's reply holds no number{ending}: {shown}")
        group = found[-1].group(1 if self._number.groups else 0)
        try:
            score = float(group)
        except (TypeError, ValueError):
            return Verdict(
                None, "error", f"judge.pattern found {group!r}, which is no number, in the reply {shown}"
            )
        if not self._config.minimum <= score <= self._config.maximum:
            low, high = self._config.minimum, self._config.maximum
            return Verdict(None, "error", f"the judge's {score:g} is not within {low:g} to {high:g}: {shown}")
        return Verdict(score)


class _Question:
    """One request and what became of it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.begun: float | None = None
        self.verdict: Verdict | None = None
        self.done = threading.Event()

    def settle(self, verdict: Verdict) -> None:
        """Set the verdict, once."""
        self.verdict = verdict
        self.done.set()


def fill(template: str, prompt: Prompt, completion: str) -> str:
    """The template with its placeholders filled in, once: what is filled in is not read again.

    A chat of several turns is written as `role: content` lines; a prompt without an answer has an empty one.

    >>> fill("{prompt} -> {completion} {x}", Prompt(id="1", text="Say {answer}"), "hi")
    'Say {answer} -> hi {x}'
    """
    single = prompt.messages is None or len(prompt.messages) == 1
    asked = plain_text(prompt).removesuffix("\n") if single else prompt.content
    values: dict[str, Any] = {"prompt": asked, "completion": completion, "answer": prompt.answer or ""}
    return re.sub(r"\{(prompt|completion|answer)\}", lambda match: values[match.group(1)], template)
