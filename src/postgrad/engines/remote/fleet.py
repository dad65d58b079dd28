"""An engine made of generators that run by themselves; requests of one that dies go to another.

Requests are handed out by group, to the generator that has the fewest. A sample counts once: a request is open until its first
sample arrives, whoever sends it, and what a dead generator had begun is begun anew.

New weights are written where all generators read them (`Source.write`), so a write waits until all have read the one before.
"""

from __future__ import annotations

import itertools
import queue
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor

from postgrad.core.errors import EngineError
from postgrad.core.protocols import Usage
from postgrad.core.types import Request, Sample
from postgrad.engines.remote.worker import Message, Work

Emit = Callable[[Message], None]
_WAIT_S = 0.5
_MAX_FAILED_STARTS = 3
_NOTHING = Work(0.0, 0.0)


class Generator(Protocol):
    """A generator somewhere else."""

    def send(self, message: Message) -> None: ...

    def kill(self) -> str:
        """Ends it now; how it ended."""
        ...

    def ended(self) -> str:
        """How one ended that said so."""
        ...


class Source(Protocol):
    """Starts generators and carries weights to them (`process.Processes`, `ray.RayActors`)."""

    def start(self, number: int, emit: Emit) -> Generator:
        """Generator `number`; its events go to `emit`, from any thread."""
        ...

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Puts weights where generators that are told `("weights", version)` read them. None is reading."""
        ...

    def close(self) -> None: ...


@dataclass
class _Member:
    """A generator as the fleet knows it.

    Attributes:
        generator: its present incarnation, `life`.
        ready: it has built its engine; nothing is sent before.
        unread: how often it was told of weights and did not answer yet.
        open: requests that it has and that have no sample.
        awaited: it was asked and did not answer yet.
        work: as it last said; `seen` is the part that was reported.
        failed_starts: in a row.
    """

    generator: Generator
    life: int
    ready: bool = False
    unread: int = 0
    open: dict[int, Request] = field(default_factory=dict[int, Request])
    awaited: bool = False
    work: Work = _NOTHING
    seen: Work = _NOTHING
    failed_starts: int = 0


class Fleet:
    """`core.protocols.ConcurrentEngine` over generators.

    Args:
        source: starts them.
        count: how many.
        note: told when one is replaced.
        lockstep: they take one decode step at each `step`, in none of the time between: slow, and exactly what one engine in
            this process would do. For checking.

    Raises:
        EngineError: a generator cannot start, or its engine raised.
    """

    def __init__(
        self,
        source: Source,
        count: int,
        note: Callable[[str], None] = lambda text: None,
        *,
        lockstep: bool = False,
    ) -> None:
        if count < 1:
            raise EngineError(f"A fleet needs at least one generator (received {count}).")
        self.source, self.note, self.lockstep = source, note, lockstep
        self.version = 0
        self.num_restarts = 0
        self.num_reissued = 0
        self._events: queue.SimpleQueue[tuple[int, int, Message]] = queue.SimpleQueue()
        self._lives = itertools.count()
        self._finished: list[Sample] = []
        self._partial: list[Request] = []
        self._has_weights = self._holds = False
        self._generators: list[Generator] = []
        self._finalizer = weakref.finalize(self, _close, source, self._generators)
        self._members = [self._start(number) for number in range(count)]
        enough = all if lockstep else any
        while not enough(member.ready for member in self._members):
            self._take(_WAIT_S)

    # -- the protocol --------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> None:
        """Hands out requests, those of a group to one generator."""
        for _, group in itertools.groupby(requests, key=lambda request: request.group_id):
            self._hand_out(list(group))

    def step(self) -> list[Sample]:
        """Samples that have arrived; waits for the first of them, not for ever: the list may be empty."""
        if self.lockstep:
            self._ask("step")
        else:
            self._take(0.0)
            if not self._finished and any(member.open for member in self._members):
                self._take(_WAIT_S)
        return self.arrived()

    def arrived(self) -> list[Sample]:
        """Samples that have arrived, without waiting."""
        self._take(0.0)
        samples, self._finished = self._finished, []
        return samples

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """New weights for all, as soon as all have read the ones before; they take them between two decode steps."""
        while any(member.ready and member.unread for member in self._members):
            self._take(_WAIT_S)
        self.source.write(weights)
        self.version, self._has_weights = version, True
        for member in self._members:
            if member.ready:
                self._tell_weights(member)
        if self.lockstep:
            while any(member.unread for member in self._members):
                self._take(_WAIT_S)

    def snapshot(self) -> list[Request]:
        """Takes all requests out. Samples that finished meanwhile are given by the next `arrived` or `step`."""
        self._holds = True  # what one that dies now leaves open is taken out too, not handed on
        self._ask("snapshot")
        self._holds = False
        taken = [*self._partial, *(request for member in self._members for request in member.open.values())]
        self._partial = []
        for member in self._members:
            member.open.clear()
        return taken

    def usage(self) -> Usage:
        """Of all generators."""
        busy_s = total_s = 0.0
        for member in self._members:
            busy_s += member.work.busy_s - member.seen.busy_s
            total_s += member.work.total_s - member.seen.total_s
            member.seen = member.work
        return Usage(busy_s, total_s, self.num_restarts, self.num_reissued)

    def close(self) -> None:
        """Ends the generators. What they were generating is lost. May be called twice."""
        self._finalizer()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- generators ----------------------------------------------------------------------------------------------

    def _start(self, number: int) -> _Member:
        life = next(self._lives)
        # The queue alone is in the closure: a fleet that nobody holds can be collected, and ends its generators.
        events = self._events
        generator = self.source.start(number, lambda event: events.put((number, life, event)))
        self._generators.append(generator)
        return _Member(generator, life)

    def _hand_out(self, requests: Sequence[Request]) -> None:
        ready = [member for member in self._members if member.ready] or self._members
        member = min(ready, key=lambda member: len(member.open))
        member.open.update((request.id, request) for request in requests)
        if member.ready and not self._holds:
            member.generator.send(("submit", list(requests)))

    def _tell_weights(self, member: _Member) -> None:
        member.unread += 1
        member.generator.send(("weights", self.version))

    def _ask(self, what: str) -> None:
        """Sends a message to all that have requests, and waits for the answers of those that live."""
        asked = [member for member in self._members if member.ready and member.open]
        for member in asked:
            member.awaited = True
            member.generator.send((what,))
        while any(member.awaited for member in asked):
            self._take(_WAIT_S)

    def _take(self, wait_s: float) -> None:
        """Waits for an event, then handles all that there are."""
        try:
            event = self._events.get(timeout=wait_s) if wait_s else self._events.get_nowait()
            while True:
                number, life, message = event
                if self._members[number].life == life:  # else: of one that was replaced
                    self._handle(number, message)
                event = self._events.get_nowait()
        except queue.Empty:
            return

    def _handle(self, number: int, message: Message) -> None:
        member = self._members[number]
        match message[0]:
            case "ready":
                member.ready, member.failed_starts = True, 0
                if self._has_weights:
                    self._tell_weights(member)
                if member.open and not self._holds:
                    member.generator.send(("submit", list(member.open.values())))
            case "loaded":
                member.unread -= 1
            case "samples":
                member.work = message[2]
                for sample in message[1]:
                    if member.open.pop(sample.request_id, None) is not None:
                        self._finished.append(sample)
                if self.lockstep:
                    member.awaited = False
            case "snapshot":
                self._partial += message[1]
                for request in message[1]:
                    member.open.pop(request.id)
                member.awaited = False
            case "failed":
                raise EngineError(f"Generator {number + 1} failed: {message[1]}")
            case _:
                self._replace(number)

    def _replace(self, number: int) -> None:
        """Another generator in the place of one that died; its requests go to whoever is there."""
        dead = self._members[number]
        dead.awaited = False
        how = dead.generator.ended()
        self._generators.remove(dead.generator)
        failed = 0 if dead.ready else dead.failed_starts + 1
        if failed >= _MAX_FAILED_STARTS:
            raise EngineError(
                f"Generator {number + 1} ended {failed} times before it was ready ({how}). See above for what it wrote."
            )
        self.num_restarts += 1
        self.num_reissued += len(dead.open)
        self.note(
            f"generator {number + 1} ended ({how}); another one starts, {len(dead.open)} of its requests begin anew"
        )
        member = self._members[number] = self._start(number)
        member.failed_starts = failed
        self.submit(sorted(dead.open.values(), key=lambda request: request.id))


def _close(source: Any, generators: list[Generator]) -> None:
    for generator in generators:
        generator.kill()
    generators.clear()
    source.close()
