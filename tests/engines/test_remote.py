"""Generators beside the trainer: every request answered once, whoever dies when; new weights in mid-sequence; shared memory."""

from __future__ import annotations

import gc
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.rooms.rl.conftest import build
from tests.rooms.rl.test_scheduler import CountingEngine, FakeJudge, FakeRollout

from postgrad.core.errors import EngineError
from postgrad.core.models.model import Model
from postgrad.core.types import Prompt, Request, Sample
from postgrad.engines import generate
from postgrad.engines.config import EngineConfig
from postgrad.engines.make import build_engine
from postgrad.engines.remote.fleet import Emit, Fleet
from postgrad.engines.remote.process import Processes
from postgrad.engines.remote.shared import SharedWeights, lay_out
from postgrad.engines.remote.worker import serve
from postgrad.rl.config import AlgorithmConfig, ScheduleConfig
from postgrad.rl.scheduler import Scheduler


def requests(count: int, group: int = 4, tokens: int = 20) -> list[Request]:
    return [
        Request(id=i, group_id=i // group, prompt_tokens=np.array([3, 4 + i // group % 9, 5]), max_tokens=tokens)
        for i in range(count)
    ]  # fmt: skip


def collect(engine: Any, count: int, seconds: float = 60) -> list[Sample]:
    samples: list[Sample] = []
    deadline = time.monotonic() + seconds
    while len(samples) < count:
        assert time.monotonic() < deadline, f"{len(samples)} of {count}"
        samples += engine.step()
    return samples


# -- threads in the place of processes -------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a thread as kill -9 ends a process."""


class SlowEngine(CountingEngine):
    """Counts, and takes a moment for each step, so that threads take turns."""

    def __init__(self, moment: Callable[[], float]) -> None:
        super().__init__(slots=4, longest=12)
        self.moment = moment

    def step(self) -> list[Sample]:
        time.sleep(self.moment())
        return super().step()


class Thread:
    """`serve` in a thread; `stop` ends it before its next message or event, as a kill does."""

    def __init__(self, engine: Any, emit: Emit, written: list[int], dies_at_once: bool) -> None:
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.dead = dies_at_once
        self.written = written

        def run() -> None:
            try:
                serve(
                    engine, self, self._checked(emit), lambda message: {"version": torch.tensor(written[0])}
                )
            except Killed:
                emit(("died",))

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def _checked(self, emit: Emit) -> Emit:
        def checked(event: Any) -> None:
            if self.dead:
                raise Killed
            emit(event)

        return checked

    def poll(self) -> bool:
        if self.dead:
            raise Killed
        return not self.messages.empty()

    def recv(self) -> Any:
        while True:
            if self.dead:
                raise Killed
            try:
                return self.messages.get(timeout=0.01)
            except queue.Empty:
                continue

    def send(self, message: Any) -> None:
        self.messages.put(message)

    def kill(self) -> str:
        self.dead = True
        return "killed"

    def ended(self) -> str:
        self.thread.join(5)
        return "killed"


class Threads:
    """A source of them. `write` fails if a thread is reading."""

    def __init__(self, seed: int = 0, stillborn: int = 0, wait_s: float = 0.0005) -> None:
        self.random = random.Random(seed)
        self.started: list[Thread] = []
        self.stillborn = stillborn
        self.written = [0]
        self.wait_s = wait_s

    def start(self, number: int, emit: Emit) -> Thread:
        self.stillborn -= 1
        engine = SlowEngine(lambda: self.random.random() * self.wait_s)
        thread = Thread(engine, emit, self.written, dies_at_once=self.stillborn >= 0)
        self.started.append(thread)
        return thread

    def write(self, weights: Mapping[str, Any]) -> None:
        self.written[0] += 1

    def close(self) -> None:
        pass


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 4), kills=st.integers(0, 4))
def test_every_request_is_answered_once_whoever_dies_when(seed: int, count: int, kills: int) -> None:
    source, chance = Threads(seed), random.Random(seed)
    with Fleet(source, count) as fleet:
        fleet.submit(requests(40))
        samples: list[Sample] = []
        left = kills
        version = 0
        while len(samples) < 40:
            samples += fleet.step()
            if left and chance.random() < 0.3:
                source.started[chance.randrange(len(source.started))].dead = True
                left -= 1
            if chance.random() < 0.2:
                version += 1
                fleet.load_weights({}, version)
        assert sorted(sample.request_id for sample in samples) == list(range(40))
        for _ in range(5):
            assert fleet.arrived() == []
        assert fleet.usage().num_restarts <= kills
        for sample in samples:
            assert (np.diff(sample.policy_version) >= 0).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 4), kill=st.booleans())
def test_a_snapshot_takes_out_what_is_not_finished_and_it_can_go_on(
    seed: int, count: int, kill: bool
) -> None:
    source, chance = Threads(seed), random.Random(seed)
    with Fleet(source, count) as fleet:
        fleet.submit(requests(30))
        samples = [sample for _ in range(chance.randrange(4)) for sample in fleet.step()]
        if kill:
            source.started[chance.randrange(count)].dead = True
        taken = fleet.snapshot()
        samples += fleet.arrived()
        ids = sorted([sample.request_id for sample in samples] + [request.id for request in taken])
        assert ids == list(range(30))
        other = [replace(request, tokens=(), logps=(), versions=(), mask=()) for request in requests(8)]
        fleet.submit(other)  # the same ids, as an evaluation has them
        assert sorted(sample.request_id for sample in collect(fleet, 8)) == list(range(8))
        fleet.submit(taken)
        samples += collect(fleet, len(taken))
        assert sorted(sample.request_id for sample in samples) == list(range(30))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 5),
    batch=st.integers(1, 5),
    count=st.integers(1, 3),
    mode=st.sampled_from(["pipeline", "ppo"]),
)
def test_no_trained_token_is_more_than_k_versions_old_by_the_clock_on_the_wall(
    seed: int, k: int, batch: int, count: int, mode: str
) -> None:
    source, chance = Threads(seed, wait_s=0.0002), random.Random(seed)
    numbers = iter(range(10**6))
    with Fleet(source, count) as fleet:
        scheduler = Scheduler(
            fleet,
            FakeRollout(),  # type: ignore[arg-type]
            FakeJudge(),
            lambda: Prompt(id=str(next(numbers)), text="x", task="t"),
            AlgorithmConfig(prompts_per_batch=batch, samples_per_prompt=2),
            ScheduleConfig(mode=mode, k=k),  # type: ignore[arg-type]
            4 * count,
            fleet,
        )
        seen: list[str] = []
        for version in range(10):
            groups = scheduler.next_batch()
            assert len(groups) == batch
            seen += [group.prompt.id for group in groups]
            for group in groups:
                for sample in group.samples:
                    assert 0 <= version - sample.policy_version.min() <= k
            time.sleep(chance.random() * 0.005)
            if chance.random() < 0.2:
                source.started[chance.randrange(len(source.started))].dead = True
            if version == 5:
                state = scheduler.state_dict()
                scheduler.load_state_dict(state)
            if scheduler.updated():
                fleet.load_weights({}, scheduler.version)
        assert len(seen) == len(set(seen))
        clock = scheduler.read_clock()
        assert 0 <= clock.busy_trainer <= clock.total


def test_generators_that_never_start_are_an_error_and_one_that_starts_late_is_not() -> None:
    with pytest.raises(EngineError, match="ended 3 times before it was ready"):
        Fleet(Threads(stillborn=3), 1)
    with Fleet(Threads(stillborn=2), 1) as fleet:
        fleet.submit(requests(4))
        assert len(collect(fleet, 4)) == 4


# -- shared memory ---------------------------------------------------------------------------------------------------


def test_shared_weights_keep_values_dtypes_and_ties() -> None:
    tied = torch.randn(5, 3)
    weights = {
        "a": tied,
        "b": tied,
        "half": torch.randn(7).bfloat16(),
        "count": torch.tensor(3),
        "none": torch.zeros(0),
        "t": torch.randn(4, 6).t(),
    }
    shared = SharedWeights.like(weights)
    reader = SharedWeights(shared.layout, shared.size, os.dup(shared.fd))
    for name, tensor in weights.items():
        assert reader.tensors[name].dtype == tensor.dtype
        assert torch.equal(reader.tensors[name], tensor)
    assert reader.tensors["a"].data_ptr() == reader.tensors["b"].data_ptr()
    shared.write({**weights, "count": torch.tensor(4)})
    assert reader.tensors["count"] == 4
    assert lay_out({"x": torch.zeros(3), "y": torch.zeros(3)})[1] == 128


# -- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> Model:
    return build()


def make(model: Model, count: int, *, lockstep: bool = False, slots: int = 4) -> Fleet:
    config = EngineConfig(slots=slots)
    builder = partial(build_engine, config=config, max_length=90, fp32_head=True)
    return Fleet(Processes(model, builder, ("cpu",), lockstep=lockstep), count, lockstep=lockstep)


def test_processes_give_the_samples_of_an_engine_here_and_survive_a_kill(model: Model) -> None:
    engine = build_engine(model, EngineConfig(slots=4), max_length=90, fp32_head=True)
    expected = generate(engine, requests(24))
    with make(model, 2) as fleet:
        fleet.submit(requests(24))
        samples = fleet.step()
        victim = fleet._generators[0]
        os.kill(victim.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        samples += collect(fleet, 24 - len(samples))
        found = {sample.request_id: sample for sample in samples}
        for sample in expected:
            assert found[sample.request_id].token_ids.tolist() == sample.token_ids.tolist()
            np.testing.assert_allclose(
                found[sample.request_id].behaviour_logp, sample.behaviour_logp, atol=1e-5
            )
        pids = [generator.pid for generator in fleet._generators]  # type: ignore[attr-defined]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_new_weights_come_in_mid_sequence_and_reach_a_replacement(model: Model) -> None:
    other = build(seed=1)
    long = [replace(request, max_tokens=80, temperature=0.0) for request in requests(2, tokens=80)]
    with make(model, 1) as fleet:
        fleet.submit(long)
        fleet.load_weights(other.module.state_dict(), 1)
        versions = [sample.policy_version.tolist() for sample in collect(fleet, 2)]
        assert all(version[-1] == 1 for version in versions)
        os.kill(fleet._generators[0].pid, signal.SIGKILL)  # type: ignore[attr-defined]
        fleet.submit(long)
        samples = sorted(collect(fleet, 2), key=lambda sample: sample.request_id)
        assert fleet.usage().num_restarts == 1
    engine = build_engine(other, EngineConfig(slots=4), max_length=90, fp32_head=True)
    for sample, expected in zip(samples, generate(engine, long), strict=True):
        assert sample.policy_version.tolist() == [1] * 80
        assert sample.token_ids.tolist() == expected.token_ids.tolist()


def test_what_an_engine_raises_is_told_and_a_fleet_that_nobody_holds_ends(model: Model) -> None:
    fleet = make(model, 1)
    fleet.submit([replace(requests(1)[0], max_tokens=1000)])
    with pytest.raises(EngineError, match="Generator 1 failed: EngineError: Request 0"):
        collect(fleet, 1)
    fleet = make(model, 1)
    pid = fleet._generators[0].pid  # type: ignore[attr-defined]
    del fleet
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
