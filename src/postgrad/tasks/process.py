"""One worker process seen from the parent: start, send, read, kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing import Pipe
from typing import Any

from postgrad.tasks.config import TaskConfig

START_S = 120.0
"""Most seconds for starting a worker: importing reasoning-gym from a cold network disk takes long."""

ENDED_BY_ALARM = "signal SIGALRM"
"""How a worker ends that judged one item for too long while the parent was busy, or gone."""

_BOOT = """
import json, sys
settings = json.loads(sys.argv[1])
sys.path[:] = settings["path"]
from postgrad.tasks.worker import main
main(settings)
"""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerProcess:
    """A started worker.

    It is a fresh Python of its own session: it does not import the user's main script (as `multiprocessing`
    would, torch included), does not get the terminal's Ctrl-C, and can be killed with all it started. Its
    string hash is fixed, so that verdicts do not depend on which worker gave them.

    Attributes:
        connection: the parent's end of the pipe.
        tickets: items sent and not yet answered, in order.
        ready: the verifiers are built.
        begun: it has received the chunk, and works on `tickets[0]`.
        since: `time.monotonic()` of its start, of its chunk, or when it was seen to go on to `tickets[0]`.
    """

    def __init__(self, tasks: Sequence[TaskConfig], item_s: float) -> None:
        self.connection, theirs = Pipe()
        settings = {
            "path": sys.path,
            "fd": theirs.fileno(),
            "tasks": [task.model_dump(mode="json") for task in tasks],
            "start_s": START_S,
            "item_s": item_s,
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _BOOT, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONHASHSEED": "0", **dict.fromkeys(_ONE_THREAD, "1")},
                start_new_session=True,
            )
        self.tickets: deque[int] = deque()
        self.ready = False
        self.begun = False
        self.since = time.monotonic()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def idle(self) -> bool:
        return self.ready and not self.tickets

    def send(self, tickets: Sequence[int], items: list[bytes]) -> None:
        """Hand over a chunk; only to an idle worker, which is reading, so this does not block for long.

        A worker that died meanwhile is noticed when its pipe is read.
        """
        self.tickets.extend(tickets)
        self.begun = False
        self.since = time.monotonic()
        with contextlib.suppress(OSError):
            self.connection.send(items)

    def begin(self) -> None:
        """Note that it works on `tickets[0]` from now on."""
        self.begun = True
        self.since = time.monotonic()

    def receive(self) -> tuple[Any, ...] | None:
        """One message (see `worker.main`), or None when the worker is gone."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def seconds_left(self, timeout_s: float) -> float:
        """Until this worker is overdue; infinite while it is idle."""
        if self.idle:
            return float("inf")
        return self.since + (timeout_s if self.begun else START_S) - time.monotonic()

    def kill(self, grace_s: float = 0.0) -> str:
        """End the process and all it started, after `grace_s` seconds in which it may end itself.

        Returns:
            How it ended, for the log: `exit code 3`, `signal SIGSEGV`.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            if grace_s > 0:
                self._process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self.connection.close()
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
