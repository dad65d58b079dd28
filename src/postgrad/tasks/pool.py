"""Verdicts for many completions in bounded time, whatever a verifier does: hang, crash, raise, return NaN.

Verifiers run in worker processes. The pool has no thread: it works while it is in `submit` or `collect`, and
the workers go on with what they have been given in between.
"""

from __future__ import annotations

import os
import pickle
import selectors
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import count
from types import TracebackType
from typing import Any

from postgrad.core.errors import ConfigError, TaskError, nearest
from postgrad.core.types import Prompt, Verdict
from postgrad.tasks.config import TaskConfig
from postgrad.tasks.process import ENDED_BY_ALARM, START_S, WorkerProcess

_MAX_CHUNK_ITEMS = 128
_MAX_CHUNK_BYTES = 2**18
_MAX_FAILURES_PER_WORKER = 3
_GRACE_S = 1.0
_ALARM_SLACK_S = 1.0
_MAX_WAIT_S = 1.0


class VerifierPool:
    """Judges completions in worker processes; a `core.protocols.Judge`. POSIX only.

    Each item may take `timeout_s` seconds of wall time in its verifier. What does not work out is a verdict
    without a score, never a 0, an exception or a hang:

    - it took longer: status `timeout`; the worker is killed and replaced (a verdict that arrives late counts
      as a timeout too, so the status does not depend on when the parent looked);
    - its worker died on it (`os._exit`, segmentation fault, out of memory): `error`, with how it ended;
    - the verifier raised, returned no number, or could not be loaded: `error`, with the text;
    - it returned NaN or an infinity: `non_finite`.

    Items are judged in no fixed order, and verdicts do not depend on the number of workers. An item whose worker
    got SIGKILL, from outside or for want of memory, is judged once more before that is its verdict. Workers end
    with the pool, and with the parent process, however that ends.

    Args:
        tasks: the tasks whose prompts will be judged; each worker builds their verifiers once.
        num_workers: worker processes, started at once and ready when their imports are done.
        timeout_s: seconds per item.

    Raises:
        ConfigError: no workers, no time, or two tasks of one name.
    """

    def __init__(self, tasks: Sequence[TaskConfig], num_workers: int = 1, timeout_s: float = 5.0) -> None:
        if num_workers < 1 or not timeout_s > 0:
            raise ConfigError(
                f"Needs workers and time (received num_workers={num_workers}, timeout_s={timeout_s})."
            )
        self._tasks = tuple(tasks)
        self._names = frozenset(task.name for task in tasks)
        if len(self._names) < len(self._tasks):
            raise ConfigError(f"Two tasks have the same name (received {[task.name for task in tasks]}).")
        self._num_workers = num_workers
        self._timeout_s = timeout_s
        self._numbers = count()
        self._queue: deque[int] = deque()
        self._items: dict[int, bytes] = {}
        self._verdicts: dict[int, Verdict] = {}
        self._num_failures = 0
        self._again: set[int] = set()
        self._selector = selectors.DefaultSelector()
        self._workers: list[WorkerProcess] = []
        self._finalizer = weakref.finalize(self, _kill_all, self._workers, os.getpid())
        for _ in range(num_workers):
            self._start_worker()

    def submit(self, prompt: Prompt, completion: str) -> int:
        """Start judging; returns a ticket for `collect`.

        Raises:
            TaskError: the pool is closed, has no task `prompt.task`, or its workers cannot start.
        """
        self._check_open()
        if prompt.task not in self._names:
            raise TaskError(f"No verifier for task {prompt.task!r}. {nearest(prompt.task, self._names)}")
        fields = (prompt.id, prompt.text, prompt.messages, prompt.answer, prompt.task, dict(prompt.metadata))
        ticket = next(self._numbers)
        self._items[ticket] = pickle.dumps((fields, completion), protocol=pickle.HIGHEST_PROTOCOL)
        self._queue.append(ticket)
        self._pump(0.0)
        return ticket

    def collect(self, tickets: Sequence[int]) -> list[Verdict]:
        """Wait for these tickets; their verdicts in the same order. A ticket can be collected once.

        Raises:
            TaskError: the pool is closed, a ticket is unknown or already collected, or no worker can start.
        """
        self._check_open()
        unknown = [ticket for ticket in tickets if ticket not in self._items and ticket not in self._verdicts]
        if unknown or len(set(tickets)) < len(tickets):
            raise TaskError(
                f"Tickets are collected once (unknown here: {unknown[:5]}, {len(tickets)} in all)."
            )
        for ticket in tickets:
            while ticket in self._items:
                self._pump(_MAX_WAIT_S)
        return [self._verdicts.pop(ticket) for ticket in tickets]

    def worker_pids(self) -> list[int]:
        """Process ids of the present workers."""
        return [worker.pid for worker in self._workers]

    def close(self) -> None:
        """Kill the workers. Verdicts that were not collected are lost. May be called twice."""
        self._finalizer()
        self._selector.close()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise TaskError("The verifier pool is closed.")

    def _pump(self, wait_s: float) -> None:
        """Hand out work, wait up to `wait_s` for messages, take them in, replace workers at fault."""
        self._dispatch()
        if wait_s > 0:
            wait_s = min([wait_s, *(worker.seconds_left(self._timeout_s) for worker in self._workers)])
        events = self._selector.select(max(wait_s, 0.0))
        while events:
            for key, _ in events:
                self._read(key.data)
            events = self._selector.select(0)
        for worker in list(self._workers):
            if worker.seconds_left(self._timeout_s) < 0:
                self._replace(worker, overdue=True)
        self._dispatch()

    def _read(self, worker: WorkerProcess) -> None:
        """Take in one message of `worker`."""
        message = worker.receive()
        if message is None:
            self._replace(worker, overdue=False)
            return
        kind, *values = message
        if kind == "ready":
            worker.ready = True
        elif kind == "begun":
            worker.begin()
            self._num_failures = 0
        else:
            self._settle(worker, *values)

    def _settle(self, worker: WorkerProcess, seconds: float, *outcome: Any) -> None:
        """Keep the verdict on the worker's current item."""
        worker.begin()
        late = Verdict(None, "timeout", f"the verdict took {seconds:.3g} s, more than {self._timeout_s:g} s")
        self._finish(worker.tickets.popleft(), late if seconds > self._timeout_s else Verdict(*outcome))

    def _finish(self, ticket: int, verdict: Verdict) -> None:
        del self._items[ticket]
        self._again.discard(ticket)
        self._verdicts[ticket] = verdict

    def _dispatch(self) -> None:
        """Give each idle worker a chunk: an even share, limited in items and bytes."""
        share = max(1, min(_MAX_CHUNK_ITEMS, len(self._queue) // self._num_workers))
        for worker in self._workers:
            if not self._queue:
                return
            if worker.idle:
                tickets = self._take(share)
                worker.send(tickets, [self._items[ticket] for ticket in tickets])

    def _take(self, num_items: int) -> list[int]:
        tickets: list[int] = []
        num_bytes = 0
        while self._queue and len(tickets) < num_items and num_bytes < _MAX_CHUNK_BYTES:
            tickets.append(self._queue.popleft())
            num_bytes += len(self._items[tickets[-1]])
        return tickets

    def _start_worker(self) -> None:
        worker = WorkerProcess(self._tasks, item_s=self._timeout_s + _ALARM_SLACK_S)
        self._workers.append(worker)
        self._selector.register(worker.connection, selectors.EVENT_READ, worker)

    def _replace(self, worker: WorkerProcess, *, overdue: bool) -> None:
        """Kill a worker that died or is overdue, settle its current item, and start another.

        A chunk that the worker never began is handed out again whole, without blame.
        """
        self._selector.unregister(worker.connection)
        self._workers.remove(worker)
        ended = worker.kill(grace_s=0.0 if overdue else _GRACE_S)
        if worker.tickets and worker.begun:
            ticket = worker.tickets[0]
            if not overdue and ended == "signal SIGKILL" and ticket not in self._again:
                self._again.add(ticket)
                self._queue.extendleft(reversed(worker.tickets))
                self._start_worker()
                return
            if overdue or ended == ENDED_BY_ALARM:
                verdict = Verdict(None, "timeout", f"no verdict within {self._timeout_s:g} s")
            else:
                verdict = Verdict(None, "error", f"the verifier's process died ({ended})")
            self._finish(worker.tickets.popleft(), verdict)
        elif worker.tickets or not worker.ready:
            self._count_failure(ended, overdue=overdue)
        self._queue.extendleft(reversed(worker.tickets))
        self._start_worker()

    def _count_failure(self, ended: str, *, overdue: bool) -> None:
        """Give up when workers fail again and again before they judge anything."""
        self._num_failures += 1
        if self._num_failures >= _MAX_FAILURES_PER_WORKER * self._num_workers:
            why = f"they were not ready within {START_S:g} s" if overdue else f"the last ended with {ended}"
            self.close()
            raise TaskError(
                f"The verifier workers cannot start: {why}, {self._num_failures} times in a row. Their error "
                "output is above; a reward module that ends the process when it is imported has this effect."
            )


def _kill_all(workers: list[WorkerProcess], owner_pid: int) -> None:
    """Kill the workers, in the process that started them only (a fork has this list, too)."""
    if os.getpid() == owner_pid:
        while workers:
            workers.pop().kill()
