"""What a generator does: between any two decode steps it takes in messages; what is finished goes out at once.

Messages: `("submit", requests)`, `("weights", version)`, `("snapshot",)`, and in lockstep `("step",)`. Events:
`("ready",)`, `("samples", samples, work)`, `("loaded", version)`, `("snapshot", requests)`, `("failed", text)`. Both arrive in
the order in which they were sent, so requests that follow new weights are not generated with older ones.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from postgrad.core.models.model import Model
from postgrad.core.protocols import Engine
from postgrad.engines.remote.shared import SharedWeights

Message = tuple[Any, ...]
Build = Callable[[Model], Engine]


class Work(NamedTuple):
    """Seconds since a generator was ready: in decode steps and new weights, and in all."""

    busy_s: float
    total_s: float


class Inbox(Protocol):
    """Where a generator's messages arrive. Raises EOFError when nobody is left who could send one."""

    def poll(self) -> bool: ...

    def recv(self) -> Message: ...


def serve(
    engine: Engine,
    inbox: Inbox,
    emit: Callable[[Message], None],
    weights: Callable[[Message], Mapping[str, Tensor]],
    *,
    lockstep: bool = False,
) -> None:
    """Generates until the inbox raises EOFError.

    Args:
        engine: idle.
        inbox: of messages.
        emit: sends an event.
        weights: the tensors that a message `("weights", version, …)` announces.
        lockstep: one decode step for each message `("step",)`, and an event for each.
    """
    outstanding = 0
    busy_s, began = 0.0, time.perf_counter()
    emit(("ready",))
    while True:
        asked = False
        while inbox.poll() or outstanding == 0 or (lockstep and not asked):
            message = inbox.recv()
            before = time.perf_counter()
            match message[0]:
                case "submit":
                    engine.submit(message[1])
                    outstanding += len(message[1])
                case "weights":
                    engine.load_weights(weights(message), message[1])
                    busy_s += time.perf_counter() - before
                    emit(("loaded", message[1]))
                case "snapshot":
                    emit(("snapshot", engine.snapshot()))
                    outstanding = 0
                case "step":
                    asked = True
                    break
                case other:
                    raise ValueError(f"unknown message {other!r}")
        before = time.perf_counter()
        samples = engine.step()
        now = time.perf_counter()
        busy_s += now - before
        outstanding -= len(samples)
        if samples or lockstep:
            emit(("samples", samples, Work(busy_s, now - began)))


def main(settings: Mapping[str, Any]) -> None:
    """The process: builds its engine, serves until the pipe closes, however the parent ended. Never returns.

    Args:
        settings: `fd`, the pipe; `spec_fd`, a file with the pickled (Model, function that builds the engine from it);
            `weights_fd`, the shared weights, whose layout comes first through the pipe; `device`; `threads`; `lockstep`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    with contextlib.suppress(OSError):
        os.dup2(2, 1)
    channel = Connection(settings["fd"])
    try:
        layout, size = channel.recv()
        shared = SharedWeights(layout, size, settings["weights_fd"])
        try:
            torch.set_num_threads(settings["threads"])
            with mmap.mmap(settings["spec_fd"], 0, access=mmap.ACCESS_READ) as specification:
                model, build = pickle.loads(
                    specification
                )  # written by the parent, into a file without a name
            model.module.to(settings["device"])
            engine = build(model)
            del model, build
            serve(engine, channel, channel.send, lambda _: shared.tensors, lockstep=settings["lockstep"])
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except BaseException as error:
            channel.send(("failed", f"{type(error).__name__}: {error}"))
    except (EOFError, OSError):
        pass
    os._exit(0)
