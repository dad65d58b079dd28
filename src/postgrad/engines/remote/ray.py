"""A generator in an actor of a Ray cluster, on this machine or another.

Weights go through Ray's object store: the trainer puts one flat copy there, and the actors of a node read it where it lies.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import pickle
import queue
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from postgrad.core.cluster import actor_options, import_ray, why_it_died
from postgrad.core.models.model import Model
from postgrad.engines.remote.fleet import Emit
from postgrad.engines.remote.process import portable
from postgrad.engines.remote.shared import Layout, copy_into, lay_out, views
from postgrad.engines.remote.worker import Build, Message, serve

_POLL_S = 5.0
_CALLS_AT_ONCE = 3


class RayActors:
    """Starts generators of one model as actors.

    Args:
        ray: the connected module.
        address: of the cluster.
        model: copied as it is now, to the CPU; later changes come in by `write`.
        build: makes an engine of it in the actor; a function of a module, or a `functools.partial` of one.
        threads: of each.
        gpus: of each; with 0 they generate on the CPU.
        lockstep: see `fleet.Fleet`.
    """

    def __init__(
        self,
        ray: Any,
        address: str,
        model: Model,
        build: Build,
        threads: int = 1,
        gpus: float = 0.0,
        *,
        lockstep: bool = False,
    ) -> None:
        self.ray, self.lockstep = ray, lockstep
        self._settings = {"threads": threads, "lockstep": lockstep, "device": "cuda" if gpus else "cpu"}
        options = actor_options(address, threads, gpus)
        self._actor = ray.remote(max_concurrency=_CALLS_AT_ONCE, max_restarts=0, **options)(GeneratorActor)
        self._specification = ray.put(pickle.dumps((portable(model), build), protocol=5))
        self._layout, self._size = lay_out(model.module.state_dict())
        self.weights: Any = None
        """Reference to the weights written last."""

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """New weights into the object store; the ones before go when no actor reads them any more."""
        flat = torch.empty(self._size, dtype=torch.uint8)
        copy_into(views(self._layout, flat), self._layout, weights)
        self.weights = self.ray.put(flat.numpy())

    def start(self, number: int, emit: Emit) -> RayGenerator:
        """A new actor; `emit` is called from a thread of its own."""
        actor = self._actor.remote([self._specification], self._layout, self._settings)
        return RayGenerator(self, actor, emit)

    def close(self) -> None:
        """Lets go of what lies in the object store."""
        self.weights = self._specification = None


class RayGenerator:
    """A started actor, seen from the trainer."""

    def __init__(self, source: RayActors, actor: Any, emit: Emit) -> None:
        self._source, self._actor = source, actor
        self._numbers = itertools.count()
        self._how = "its actor was killed"
        threading.Thread(target=self._listen, args=(emit,), daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id, on its node."""
        return self._source.ray.get(self._actor.pid.remote())

    def send(self, message: Message) -> None:
        """The actor reads between any two decode steps; that it died shows as an event."""
        # The reference travels in a list: Ray would hold back the call until a bare one had arrived, and not the next call.
        references = [self._source.weights] if message[0] == "weights" else []
        self._actor.send.remote(next(self._numbers), pickle.dumps(message), references)

    def kill(self) -> str:
        """Ends the actor; returns how it ended."""
        with contextlib.suppress(Exception):  # the cluster may be gone, too
            self._source.ray.kill(self._actor)
        return self._how

    def ended(self) -> str:
        """How an actor that is gone ended."""
        self.kill()
        return self._how

    def _listen(self, emit: Emit) -> None:
        try:
            while True:
                for event in pickle.loads(self._source.ray.get(self._actor.events.remote(_POLL_S))):
                    emit(event)
        except BaseException as error:  # the actor, its node or the cluster; SystemExit where Ray shuts down
            self._how = why_it_died(error)
            emit(("died",))


class GeneratorActor:
    """The actor: serves in a thread of its own, while calls put messages in and take events out.

    Args:
        specification: list of one reference: pickled (Model, function that builds the engine from it).
        layout: of the weights.
        settings: `device`, `threads`, `lockstep`.
    """

    def __init__(self, specification: list[Any], layout: Layout, settings: Mapping[str, Any]) -> None:
        self._inbox = OrderedInbox()
        self._events: queue.SimpleQueue[Message] = queue.SimpleQueue()
        arguments = (specification[0], layout, settings)
        threading.Thread(target=self._run, args=arguments, daemon=True).start()

    def pid(self) -> int:
        """Process id."""
        return os.getpid()

    def send(self, number: int, message: bytes, references: list[Any]) -> None:
        """Takes in message `number`. Calls run in threads, so they may come out of order."""
        self._inbox.put(number, (*pickle.loads(message), *references))

    def events(self, timeout_s: float) -> bytes:
        """All events since the last call, pickled; waits up to `timeout_s` for the first."""
        events: list[Message] = []
        with contextlib.suppress(queue.Empty):
            events.append(self._events.get(timeout=timeout_s))
            while True:
                events.append(self._events.get_nowait())
        return pickle.dumps(events)

    def _run(self, specification: Any, layout: Layout, settings: Mapping[str, Any]) -> None:
        ray = import_ray()

        def read(message: Message) -> Mapping[str, Tensor]:
            array: np.ndarray = ray.get(message[2])
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                return views(layout, torch.from_numpy(array))

        try:
            torch.set_num_threads(settings["threads"])
            model, build = pickle.loads(ray.get(specification))  # written by the trainer
            model.module.to(settings["device"])
            engine = build(model)
            del model, build
            serve(engine, self._inbox, self._events.put, read, lockstep=settings["lockstep"])
        except BaseException as error:
            self._events.put(("failed", f"{type(error).__name__}: {error}"))


class OrderedInbox:
    """Numbered messages, received in the order of their numbers.

    >>> inbox = OrderedInbox()
    >>> inbox.put(1, ("b",)); inbox.poll()
    False
    >>> inbox.put(0, ("a",)); inbox.recv(), inbox.recv()
    (('a',), ('b',))
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Message]] = []
        self._next = 0
        self._changed = threading.Condition()

    def put(self, number: int, message: Message) -> None:
        """From any thread."""
        with self._changed:
            heapq.heappush(self._waiting, (number, message))
            self._changed.notify()

    def poll(self) -> bool:
        """Whether the next message is there."""
        return bool(self._waiting) and self._waiting[0][0] == self._next

    def recv(self) -> Message:
        """The next message; waits for it."""
        with self._changed:
            self._changed.wait_for(self.poll)
            self._next += 1
            return heapq.heappop(self._waiting)[1]
