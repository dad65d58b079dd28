"""Verifier pools in actors of a Ray cluster: one verdict per completion, whichever actor dies.

Each actor has a `VerifierPool`, so time limits and crashes of verifiers are its business. Completions go out in chunks, which
grow while all actors are at work. The chunks of an actor that is gone are judged by another one: until the answer to a chunk has
arrived here, nothing of it counts.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import count
from types import TracebackType
from typing import Any

from postgrad.core.cluster import actor_options, why_it_died
from postgrad.core.errors import TaskError, nearest
from postgrad.core.types import Prompt, Verdict
from postgrad.tasks.config import TaskConfig
from postgrad.tasks.pool import VerifierPool

_MAX_CHUNK_ITEMS = 256
_CHUNKS_PER_ACTOR = 2
_MAX_FAILURES_PER_ACTOR = 3
_WAIT_S = 1.0

Item = tuple[Prompt, str]


class VerifierActor:
    """The actor. Arguments: as of `VerifierPool`."""

    def __init__(self, tasks: Sequence[TaskConfig], num_workers: int, timeout_s: float) -> None:
        self._pool = VerifierPool(tasks, num_workers, timeout_s)

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts in order. Raises TaskError when no worker can start."""
        return self._pool.collect([self._pool.submit(prompt, completion) for prompt, completion in items])


class RayJudge:
    """A `core.protocols.Judge` over actors. It works while it is in `submit` or `collect`, the actors all the time.

    Args:
        ray: the connected module.
        address: of the cluster.
        tasks, num_workers, timeout_s: as of `VerifierPool`, for each actor.
        num_actors: how many.

    Attributes:
        num_restarts: actors that died and were replaced.
    """

    def __init__(
        self,
        ray: Any,
        address: str,
        tasks: Sequence[TaskConfig],
        num_actors: int = 1,
        num_workers: int = 1,
        timeout_s: float = 5.0,
    ) -> None:
        self._ray = ray
        self._names = frozenset(task.name for task in tasks)
        options = actor_options(address, num_workers)
        make = ray.remote(max_restarts=0, **options)(VerifierActor)
        self._start = lambda: make.remote(tuple(tasks), num_workers, timeout_s)
        self._actors: list[Any] = [self._start() for _ in range(num_actors)]
        self._finalizer = weakref.finalize(self, _kill_all, ray, self._actors)
        self._numbers = count()
        self._queue: deque[int] = deque()
        self._items: dict[int, Item] = {}
        self._verdicts: dict[int, Verdict] = {}
        self._chunks: dict[
            Any, tuple[int, list[int]]
        ] = {}  # reference to the answer: number of the actor, tickets
        self._num_failures = self.num_restarts = 0

    def submit(self, prompt: Prompt, completion: str) -> int:
        """As `VerifierPool.submit`."""
        self._check_open()
        if prompt.task not in self._names:
            raise TaskError(f"No verifier for task {prompt.task!r}. {nearest(prompt.task, self._names)}")
        ticket = next(self._numbers)
        self._items[ticket] = prompt, completion
        self._queue.append(ticket)
        self._pump(0.0)
        return ticket

    def collect(self, tickets: Sequence[int]) -> list[Verdict]:
        """As `VerifierPool.collect`."""
        self._check_open()
        unknown = [ticket for ticket in tickets if ticket not in self._items and ticket not in self._verdicts]
        if unknown or len(set(tickets)) < len(tickets):
            raise TaskError(
                f"Tickets are collected once (unknown here: {unknown[:5]}, {len(tickets)} in all)."
            )
        while any(ticket in self._items for ticket in tickets):
            self._pump(_WAIT_S)
        return [self._verdicts.pop(ticket) for ticket in tickets]

    def close(self) -> None:
        """Ends the actors and their workers. May be called twice."""
        self._finalizer()

    def __enter__(self) -> RayJudge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise TaskError("The verifier actors are closed.")

    def _pump(self, wait_s: float) -> None:
        """Hands out work, waits up to `wait_s` for an answer, takes in all that are there."""
        self._dispatch()
        while self._chunks:
            ready, _ = self._ray.wait(list(self._chunks), timeout=wait_s)
            if not ready:
                break
            self._take_in(ready[0])
            wait_s = 0.0
        self._dispatch()

    def _take_in(self, answer: Any) -> None:
        number, tickets = self._chunks.pop(answer)
        try:
            verdicts = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise TaskError(str(error.cause)) from None
        except self._ray.exceptions.RayError as error:
            self._replace(number, tickets, why_it_died(error))
            return
        self._num_failures = 0
        for ticket, verdict in zip(tickets, verdicts, strict=True):
            del self._items[ticket]
            self._verdicts[ticket] = verdict

    def _replace(self, number: int, tickets: list[int], why: str) -> None:
        """Another actor in the place of one that is gone; its chunks first in the queue, in their order."""
        self.num_restarts += 1
        self._num_failures += 1
        if self._num_failures >= _MAX_FAILURES_PER_ACTOR * len(self._actors):
            self.close()
            raise TaskError(
                f"The verifier actors end before they judge anything, {self._num_failures} in a row: {why}."
            )
        others = [answer for answer, (actor, _) in self._chunks.items() if actor == number]
        again = [*tickets, *(ticket for answer in others for ticket in self._chunks.pop(answer)[1])]
        self._queue.extendleft(reversed(again))
        self._actors[number] = self._start()

    def _dispatch(self) -> None:
        """Gives each actor that has room a chunk: an even share of what waits."""
        busy = [actor for actor, _ in self._chunks.values()]
        order = sorted(range(len(self._actors)), key=busy.count)
        share = min(_MAX_CHUNK_ITEMS, -(-len(self._queue) // len(self._actors)))
        for number in order:
            if not self._queue or busy.count(number) >= _CHUNKS_PER_ACTOR:
                return
            tickets = [self._queue.popleft() for _ in range(min(share, len(self._queue)))]
            answer = self._actors[number].judge.remote([self._items[ticket] for ticket in tickets])
            self._chunks[answer] = number, tickets


def _kill_all(ray: Any, actors: list[Any]) -> None:
    with contextlib.suppress(Exception):  # the cluster may be gone
        while actors:
            ray.kill(actors.pop())
