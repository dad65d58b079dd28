"""The virtual clock, staleness bounds and exact continuation, on an engine that only counts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.core.types import Group, Prompt, Request, Sample, Verdict
from postgrad.rl.config import AlgorithmConfig, ScheduleConfig
from postgrad.rl.scheduler import Scheduler


class CountingEngine:
    """Each request takes a length drawn from its id; tokens carry the version of their step."""

    def __init__(self, slots: int, longest: int) -> None:
        self.slots, self.longest = slots, longest
        self.queue: list[Request] = []
        self.running: list[Request] = []
        self.version = 0

    def length(self, request: Request) -> int:
        return min(int(np.random.default_rng(request.id).geometric(0.2)), self.longest)

    def submit(self, requests: Sequence[Request]) -> None:
        self.queue += requests

    def step(self) -> list[Sample]:
        while self.queue and len(self.running) < self.slots:
            self.running.append(self.queue.pop(0))
        grown = [
            replace(r, tokens=(*r.tokens, 5), versions=(*r.versions, self.version)) for r in self.running
        ]
        done = [r for r in grown if len(r.tokens) >= self.length(r)]
        self.running = [r for r in grown if len(r.tokens) < self.length(r)]
        return [
            Sample(
                request_id=r.id,
                group_id=r.group_id,
                prompt_tokens=r.prompt_tokens,
                token_ids=np.array(r.tokens),
                loss_mask=np.ones(len(r.tokens), dtype=bool),
                behaviour_logp=np.zeros(len(r.tokens), dtype=np.float32),
                policy_version=np.array(r.versions),
                stop_reason="stop",
            )
            for r in done
        ]

    def load_weights(self, weights: Mapping[str, Any], version: int) -> None:
        self.version = version

    def snapshot(self) -> list[Request]:
        taken, self.running, self.queue = self.running + self.queue, [], []
        return taken


class FakeRollout:
    def requests(self, prompt: Prompt, group_id: int, count: int) -> list[Request]:
        tokens = np.array([1, 2])
        return [
            Request(id=group_id * count + i, group_id=group_id, prompt_tokens=tokens, max_tokens=99)
            for i in range(count)
        ]

    def decode(self, sample: Sample) -> str:
        return "text"

    def judge(self, group: Group, judge: Any, tickets: Sequence[int]) -> None:
        for sample, verdict in zip(group.samples, judge.collect(tickets), strict=True):
            sample.verdict, sample.reward = verdict, verdict.score


class FakeJudge:
    """All scores differ, but those of every `flat_every`-th prompt are 0."""

    def __init__(self, flat_every: int = 1) -> None:
        self.flat_every = flat_every
        self.scores = [0.0]

    def submit(self, prompt: Prompt, completion: str) -> int:
        self.scores.append(float(int(prompt.id) % self.flat_every > 0) * len(self.scores))
        return len(self.scores) - 1

    def collect(self, tickets: Sequence[int]) -> list[Verdict]:
        return [Verdict(self.scores[ticket]) for ticket in tickets]


class MostlyFlatJudge(FakeJudge):
    """Only every `flat_every`-th prompt has samples that differ."""

    def submit(self, prompt: Prompt, completion: str) -> int:
        self.scores.append(float(int(prompt.id) % self.flat_every == 0) * len(self.scores))
        return len(self.scores) - 1


def make(
    mode: str,
    k: int,
    batch: int = 4,
    slots: int = 6,
    longest: int = 60,
    cost: int = 7,
    prompts: int = 10**6,
    judge: FakeJudge | None = None,
    limit: int = 10,
) -> Scheduler:
    numbers = iter(range(prompts))

    def next_prompt() -> Prompt | None:
        number = next(numbers, None)
        return None if number is None else Prompt(id=str(number), text="x", task="t")

    return Scheduler(
        CountingEngine(slots, longest),
        FakeRollout(),  # type: ignore[arg-type]
        judge or FakeJudge(),
        next_prompt,
        AlgorithmConfig(
            prompts_per_batch=batch,
            samples_per_prompt=2,
            zero_variance="resample" if judge else "drop",
            resample_limit=limit,
        ),
        ScheduleConfig(mode=mode, k=k, update_cost_steps=cost),  # type: ignore[arg-type]
        slots,
    )


def run(scheduler: Scheduler, updates: int) -> list[list[Group]]:
    batches = []
    for _ in range(updates):
        batches.append(scheduler.next_batch())
        if scheduler.updated():
            scheduler.engine.load_weights({}, scheduler.version)
    return batches


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 6),
    batch=st.integers(1, 6),
    slots=st.integers(1, 30),
    longest=st.integers(1, 120),
    cost=st.integers(0, 50),
)
def test_no_trained_token_is_more_than_k_versions_old(
    k: int, batch: int, slots: int, longest: int, cost: int
) -> None:
    scheduler = make("pipeline", k, batch, slots, longest, cost)
    for version in range(12):
        groups = scheduler.next_batch()
        assert len(groups) == batch
        for group in groups:
            for sample in group.samples:
                assert version - sample.policy_version.min() >= 0
                assert version - sample.policy_version.min() <= k
        assert scheduler.updated()
        scheduler.engine.load_weights({}, scheduler.version)


@settings(max_examples=40, deadline=None)
@given(
    k=st.integers(1, 6),
    batch=st.integers(1, 6),
    slots=st.integers(1, 30),
    longest=st.integers(1, 120),
    cost=st.integers(0, 50),
    every=st.integers(1, 9),
    mostly=st.booleans(),
    limit=st.integers(0, 10),
    mode=st.sampled_from(["pipeline", "ppo"]),
)
def test_resampling_fills_batches_and_keeps_the_bound(
    k: int,
    batch: int,
    slots: int,
    longest: int,
    cost: int,
    every: int,
    mostly: bool,
    limit: int,
    mode: str,
) -> None:
    """Whatever is dropped: nothing flat is handed out, nothing is too old, and only the limit leaves a batch short."""
    judge = (MostlyFlatJudge if mostly else FakeJudge)(every)
    scheduler = make(mode, k, batch, slots, longest, cost, judge=judge, limit=limit)
    seen: list[str] = []
    for version in range(8):
        groups = scheduler.next_batch()
        dropped = scheduler.dropped
        assert len(groups) == batch or len(dropped) > limit * batch
        assert len(groups) <= batch
        assert all(len(set(group.rewards)) == 2 for group in groups)
        assert all(len(set(group.rewards)) == 1 for group in dropped)
        for group in [*groups, *dropped]:
            seen.append(group.prompt.id)
            for sample in group.samples:
                assert 0 <= version - sample.policy_version.min() <= k
        if scheduler.updated():
            scheduler.engine.load_weights({}, scheduler.version)
    assert len(set(seen)) == len(seen)
    assert scheduler._started - len(seen) <= (k + 1) * batch  # no more under way than without resampling


def test_batches_of_dynamic_sampling_by_hand() -> None:
    """Every third prompt is flat (0, 3, 6, …) and no update makes anything stale: 6 groups are generated for 4."""
    scheduler = make("ppo", 1, judge=FakeJudge(3))
    assert [g.prompt.id for g in scheduler.next_batch()] == ["1", "2", "4", "5"]
    assert [g.prompt.id for g in scheduler.dropped] == ["0", "3"]
    scheduler.updated()
    assert [g.prompt.id for g in scheduler.next_batch()] == ["7", "8", "10", "11"]
    assert [g.prompt.id for g in scheduler.dropped] == ["6", "9"]


@pytest.mark.parametrize("mode", ["pipeline", "ppo"])
def test_resampling_ends_where_nothing_differs_or_the_prompts_run_out(mode: str) -> None:
    all_flat = make(mode, 2, judge=FakeJudge(1), limit=3)
    for _ in range(3):
        assert all_flat.next_batch() == []
        assert 3 * 4 < len(all_flat.dropped) <= (2 * 3 + 3) * 4
        all_flat.updated()
    ending = make(mode, 2, prompts=10, judge=FakeJudge(3))  # 1 2 4 5 7 8 differ
    batches = run(ending, 4)
    assert [len(groups) for groups in batches] == [4, 2, 0, 0]


def test_pipeline_takes_new_weights_in_mid_sequence_and_gets_stale() -> None:
    batches = run(make("pipeline", 8, slots=10, cost=3), 30)
    mixed = [
        s for groups in batches for g in groups for s in g.samples if len(set(s.policy_version.tolist())) > 1
    ]
    lag = [v - s.policy_version.min() for v, groups in enumerate(batches) for g in groups for s in g.samples]
    assert mixed
    assert max(lag) >= 2


def test_k1_with_free_updates_is_nearly_on_policy() -> None:
    batches = run(make("pipeline", 1, slots=8, cost=0), 20)
    lag = [v - s.policy_version.min() for v, groups in enumerate(batches) for g in groups for s in g.samples]
    assert max(lag) <= 1


def test_ppo_generates_whole_phases_with_one_version() -> None:
    k = 3
    for version, groups in enumerate(run(make("ppo", k), 12)):
        for group in groups:
            for sample in group.samples:
                assert set(sample.policy_version.tolist()) == {version // k * k}


def test_every_prompt_is_used_once_and_in_batches_of_b() -> None:
    for mode in ("pipeline", "ppo"):
        groups = [g for batch in run(make(mode, 2), 15) for g in batch]
        ids = [int(g.prompt.id) for g in groups]
        assert len(ids) == len(set(ids)) == 60
        assert all(len(g.samples) == 2 for g in groups)


def test_virtual_clock() -> None:
    """ppo: each side waits while the other works. pipeline: the generator never waits while it may start groups."""
    ppo = make("ppo", 2, cost=10)
    run(ppo, 8)
    clock = ppo.read_clock()
    assert clock.busy_trainer == 80
    assert clock.busy_generator + clock.busy_trainer == clock.total
    pipeline = make("pipeline", 8, cost=10)
    run(pipeline, 8)
    clock = pipeline.read_clock()
    assert clock.busy_trainer == 80
    assert clock.busy_generator == clock.total
    fast_generator = make("pipeline", 1, slots=64, cost=500)  # admission stops it
    run(fast_generator, 8)
    clock = fast_generator.read_clock()
    assert clock.busy_generator < 0.5 * clock.total
    assert fast_generator.read_clock().total == 0


def test_prompts_run_out() -> None:
    scheduler = make("pipeline", 2, prompts=10)
    batches = run(scheduler, 4)
    assert [len(groups) for groups in batches] == [4, 4, 2, 0]


@pytest.mark.parametrize("mode", ["pipeline", "ppo"])
@pytest.mark.parametrize("flat_every", [0, 2])
def test_state_goes_on_exactly(mode: str, flat_every: int) -> None:
    """At every step: state out and in again, or out into JSON and into a new scheduler; same batches from there on."""
    for stop in range(1, 7):
        straight, other = (
            make(mode, 3, slots=20, judge=FakeJudge(flat_every) if flat_every else None) for _ in range(2)
        )
        run(straight, stop)
        run(other, stop)
        state = json.loads(json.dumps(straight.state_dict()))
        straight.load_state_dict(state)
        fresh = make(mode, 3, slots=20, judge=FakeJudge(flat_every) if flat_every else None)
        for _ in range(state["started"]):
            fresh.next_prompt()
        fresh.engine.load_weights({}, other.engine.version)  # type: ignore[attr-defined]
        fresh.load_state_dict(json.loads(json.dumps(other.state_dict())))
        for a, b in zip(run(straight, 5), run(fresh, 5), strict=True):
            assert [g.prompt.id for g in a] == [g.prompt.id for g in b]
            for x, y in zip(a, b, strict=True):
                for s, t in zip(x.samples, y.samples, strict=True):
                    assert s.policy_version.tolist() == t.policy_version.tolist()
