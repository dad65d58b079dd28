"""A generator in a process of this machine."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing import Pipe
from typing import Any

from torch import Tensor

from postgrad.core.models.model import Model
from postgrad.engines.remote.fleet import Emit
from postgrad.engines.remote.shared import SharedWeights, anonymous_file
from postgrad.engines.remote.worker import Build, Message

_BOOT = """
import json, sys
settings = json.loads(sys.argv[1])
sys.path[:] = settings["path"]
from postgrad.engines.remote.worker import main
main(settings)
"""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Processes:
    """Starts generators of one model; their weights lie in memory that all of them see.

    Args:
        model: copied as it is now, to the CPU; later changes come in by `write`.
        build: makes an engine of it in the new process; a function of a module, or a `functools.partial` of one.
        devices: of the generators, in turn.
        threads: of each.
        lockstep: see `fleet.Fleet`.
    """

    def __init__(
        self,
        model: Model,
        build: Build,
        devices: tuple[str, ...],
        threads: int = 1,
        *,
        lockstep: bool = False,
    ) -> None:
        self.devices, self.threads, self.lockstep = devices, threads, lockstep
        self.weights = SharedWeights.like(model.module.state_dict())
        self._spec = anonymous_file()
        with os.fdopen(os.dup(self._spec), "wb") as file:
            pickle.dump((portable(model), build), file, protocol=5)

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """New weights, where all generators read them. None may be reading."""
        self.weights.write(weights)

    def start(self, number: int, emit: Emit) -> ProcessGenerator:
        """Generator `number`; `emit` is called from a thread of its own."""
        settings = {
            "device": self.devices[number % len(self.devices)],
            "threads": self.threads,
            "lockstep": self.lockstep,
        }
        return ProcessGenerator(settings, self._spec, self.weights, emit)

    def close(self) -> None:
        """Gives back the memory of the specification; the weights' goes with the last process that uses it."""
        with contextlib.suppress(OSError):
            os.close(self._spec)


class ProcessGenerator:
    """A started process: a fresh Python in a session of its own, which does not import the user's main script."""

    def __init__(self, settings: Mapping[str, Any], spec: int, weights: SharedWeights, emit: Emit) -> None:
        self._connection, theirs = Pipe()
        fds = {"fd": theirs.fileno(), "spec_fd": spec, "weights_fd": weights.fd}
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-W",
                    "ignore",
                    "-c",
                    _BOOT,
                    json.dumps({"path": sys.path, **settings, **fds}),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=list(fds.values()),
                env={**os.environ, **dict.fromkeys(_THREADS, str(settings["threads"]))},
                start_new_session=True,
            )
        self._connection.send((weights.layout, weights.size))
        threading.Thread(target=self._listen, args=(emit,), daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """The process reads between any two decode steps; that it died shows as an event."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def kill(self) -> str:
        """Ends the process; returns how it ended: `exit code 1`, `signal SIGKILL`."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def ended(self) -> str:
        """How a process that is gone, or about to go, ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        return self.kill()

    def _listen(self, emit: Emit) -> None:
        try:
            while True:
                emit(self._connection.recv())
        except (EOFError, OSError):
            emit(("died",))


def portable(model: Model) -> Model:
    """On the CPU, so that it can be pickled for elsewhere."""
    module = model.module
    if model.device.type != "cpu":
        module = copy.deepcopy(module).cpu()
    return Model(module, model.tokenizer, model.source, model.revision)
