"""A run on generators and trainers that are only counted: the real scheduler over an engine made of costs, on a virtual clock.

What is simulated is who waits for whom. Lengths are drawn from a distribution; a decode step takes what `Costs.decode_s` says
for so many running sequences; samples are not generated, judged or trained on. Work is the number of sequences that finish, not
of tokens, so thousands of generators take seconds.

Shapes: N generators.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from postgrad.core.protocols import Usage
from postgrad.core.types import Group, Prompt, Request, Sample, Verdict
from postgrad.rl.config import RLConfig
from postgrad.rl.scheduler import Scheduler

_SLICES = 50
"""The clock's resolution: so many parts of the time that a batch takes."""
_NO_TOKENS = np.zeros(1, dtype=np.int64)


class Costs(NamedTuple):
    """What things take, in seconds.

    Attributes:
        decode_s: of one decode step of one generator with so many running sequences.
        prefill_s: of one prompt, once for its group.
        update_s: of one update on a batch with so many completion tokens.
        transfer_s: until a generator has new weights; it does nothing else meanwhile.
    """

    decode_s: Callable[[int], float]
    prefill_s: float
    update_s: Callable[[int], float]
    transfer_s: float


class Simulated(NamedTuple):
    """Means after the pipeline has filled.

    Attributes:
        samples_per_s, tokens_per_s: generated and trained on.
        update_s: from one update to the next.
        idle_generator, idle_trainer: share of the time without anything to do; a generator that runs one sequence is not idle.
        occupancy: share of the slots that run.
        lag: versions between the middle of a sample and the update on it.
    """

    samples_per_s: float
    tokens_per_s: float
    update_s: float
    idle_generator: float
    idle_trainer: float
    occupancy: float
    lag: float


class _Generator:
    """One of them: its clock, the decode steps it has taken, and when each running sequence ends, in steps."""

    def __init__(self, costs: Costs, slots: int) -> None:
        self.costs, self.slots = costs, slots
        self.now = self.steps = self.busy_s = self.slot_s = 0.0
        self.queue: deque[tuple[Request, int]] = deque()
        self.running: list[tuple[float, int, Request, int]] = []
        self.prompts: set[int] = set()
        self._order = itertools.count()

    @property
    def load(self) -> int:
        """Sequences that run or wait."""
        return len(self.queue) + len(self.running)

    def next_s(self) -> float:
        """When the next sequence ends, if none is admitted before."""
        if not self.running:
            return self.now if self.queue else math.inf
        return self.now + (self.running[0][0] - self.steps) * self.costs.decode_s(len(self.running))

    def run(self, until: float, version: int) -> list[tuple[Request, int]]:
        """Advances to a time; (request, version at its start) of what finished."""
        finished: list[tuple[Request, int]] = []
        self._admit(version)
        while self.now < until:
            if not self.running:
                self.now = until
                break
            count = len(self.running)
            step_s = self.costs.decode_s(count)
            steps = min(self.running[0][0] - self.steps, max(0.0, (until - self.now) / step_s))
            self._work(steps * step_s, count)
            self.steps += steps
            while self.running and self.running[0][0] <= self.steps + 1e-6:
                _, _, request, began = heapq.heappop(self.running)
                finished.append((request, began))
            self._admit(version)
        return finished

    def _admit(self, version: int) -> None:
        while self.queue and len(self.running) < self.slots:
            request, length = self.queue.popleft()
            if request.group_id not in self.prompts:
                self.prompts.add(request.group_id)
                self._work(self.costs.prefill_s, len(self.running))
            heapq.heappush(self.running, (self.steps + length, next(self._order), request, version))

    def _work(self, seconds: float, count: int) -> None:
        self.now += seconds
        self.busy_s += seconds
        self.slot_s += seconds * count


class SimulatedEngine:
    """`core.protocols.ConcurrentEngine` whose time is `now`; `slice_s` is how far a `step` goes at most."""

    def __init__(
        self, costs: Costs, num_generators: int, slots: int, lengths: Sequence[int], seed: int
    ) -> None:
        self.costs, self.lengths = costs, np.asarray(lengths)
        self.generators = [_Generator(costs, slots) for _ in range(num_generators)]
        self.now, self.version = 0.0, 0
        self.slice_s = costs.decode_s(slots)
        self._loads = np.zeros(num_generators, dtype=np.int64)
        self._due = [math.inf] * num_generators
        self._events: list[tuple[float, int]] = []  # (when, generator); those count that are due
        self._rng = np.random.default_rng(seed)
        self._arrived: list[Sample] = []

    def submit(self, requests: Sequence[Request]) -> None:
        """Groups go to the generator that has the fewest."""
        drawn = self._rng.choice(self.lengths, len(requests))
        for _, group in itertools.groupby(
            zip(requests, drawn, strict=True), key=lambda pair: pair[0].group_id
        ):
            number = int(self._loads.argmin())
            self._run(number)
            self.generators[number].queue.extend((request, int(length)) for request, length in group)
            self._run(number)

    def advance(self, seconds: float) -> None:
        """Time passes. Generators of which no sequence ends are left as they are."""
        self.now += seconds
        while self._events and self._events[0][0] <= self.now:
            when, number = heapq.heappop(self._events)
            if when == self._due[number]:
                self._run(number)

    def _run(self, number: int) -> None:
        generator = self.generators[number]
        for request, began in generator.run(self.now, self.version):
            self._arrived.append(_sample(request, began, self.version))
        self._loads[number] = generator.load
        when = generator.next_s()
        if when != self._due[number]:
            self._due[number] = when
            if when < math.inf:
                heapq.heappush(self._events, (when, number))

    def step(self) -> list[Sample]:
        self.advance(self.slice_s)
        return self.arrived()

    def arrived(self) -> list[Sample]:
        samples, self._arrived = self._arrived, []
        return samples

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        for number, generator in enumerate(self.generators):
            self._run(number)
            generator.now += self.costs.transfer_s
            generator.busy_s += self.costs.transfer_s
        self.version = version

    def snapshot(self) -> list[Request]:
        raise NotImplementedError("what is only counted cannot be put aside")

    def usage(self) -> Usage:
        return Usage(0.0, 0.0, 0, 0)

    def spent(self) -> tuple[float, float]:
        """(busy seconds, slot-seconds) of all generators so far."""
        for number in range(len(self.generators)):
            self._run(number)
        return sum(one.busy_s for one in self.generators), sum(one.slot_s for one in self.generators)


def _sample(request: Request, began: int, ended: int) -> Sample:
    versions = np.array([began, ended])
    logp = np.zeros(2, dtype=np.float32)
    return Sample(request.id, request.group_id, _NO_TOKENS, versions, versions >= 0, logp, versions, "stop")


class _Requests:
    """Stands for `Rollout`: requests without tokens, verdicts without a verifier."""

    def requests(self, prompt: Prompt, group_id: int, count: int) -> list[Request]:
        return [Request(group_id * count + index, group_id, _NO_TOKENS, 1) for index in range(count)]

    def decode(self, sample: Sample) -> str:
        return ""

    def judge(self, group: Group, judge: Any, tickets: Sequence[int]) -> None:
        pass


class _NoJudge:
    def submit(self, prompt: Prompt, completion: str) -> int:
        return 0

    def collect(self, tickets: Sequence[int]) -> list[Verdict]:
        return []


def simulate(
    config: RLConfig,
    costs: Costs,
    lengths: Sequence[int],
    num_generators: int,
    *,
    updates: int = 40,
    seed: int = 0,
) -> Simulated:
    """Runs `updates` updates of the config's schedule and batch; the first k + 1, at most half, are not counted.

    Args:
        config: of the run; its filters and evaluations are not simulated.
        costs: of this model on this hardware.
        lengths: completion lengths in tokens, drawn from with replacement.
        num_generators: N, each with `config.engine.slots` slots.
        updates: at least 2.
        seed: of the lengths that are drawn.
    """
    algorithm, slots = config.algorithm, config.engine.slots
    engine = SimulatedEngine(costs, num_generators, slots, lengths, seed)
    batch = algorithm.prompts_per_batch * algorithm.samples_per_prompt
    mean = float(np.mean(lengths))
    generation_s = batch * mean / (num_generators * slots) * costs.decode_s(slots)
    engine.slice_s = max(generation_s, costs.update_s(round(batch * mean))) / _SLICES
    plain = algorithm.model_copy(update={"zero_variance": "keep"})
    prompt = Prompt(id="0", text="")
    requests: Any = _Requests()
    scheduler = Scheduler(
        engine, requests, _NoJudge(), lambda: prompt, plain, config.schedule, slots * num_generators, engine
    )
    skipped = min(config.schedule.k + 1, updates // 2)
    began = engine.now
    before = engine.spent()
    waited, lags = 0.0, list[float]()
    for update in range(updates):
        if update == skipped:
            began, before, waited, lags = engine.now, engine.spent(), 0.0, []
        asked = engine.now
        groups = scheduler.next_batch()
        waited += engine.now - asked
        lags += [
            scheduler.version - float(s.policy_version.mean()) for group in groups for s in group.samples
        ]
        engine.advance(costs.update_s(round(batch * mean)))
        if scheduler.updated():
            engine.load_weights({}, scheduler.version)
    seconds = engine.now - began
    busy_s, slot_s = (now - then for now, then in zip(engine.spent(), before, strict=True))
    counted = updates - skipped
    return Simulated(
        samples_per_s=batch * counted / seconds,
        tokens_per_s=batch * counted * mean / seconds,
        update_s=seconds / counted,
        idle_generator=max(0.0, 1 - busy_s / (seconds * num_generators)),
        idle_trainer=waited / seconds,
        occupancy=slot_s / (seconds * num_generators * slots),
        lag=float(np.mean(lags)),
    )
