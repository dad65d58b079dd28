"""Who waits for whom: pipeline-k and ppo-k (paper §3.1).

In one process, generator and trainer share a virtual clock that counts decode steps, exactly and reproducibly: one decode step
takes 1, one update takes `update_cost_steps`. In `pipeline` mode the generator goes on with old weights while an update "runs",
then takes the new weights in mid-sequence and keeps its stale cache. In `ppo` mode the two alternate: k batches, then k updates.
With an engine that generates by itself (`ConcurrentEngine`) all of this is so by the clock on the wall.

Staleness is paced by admission, not by discarding: a group starts only while fewer than (k + version + 1)·B groups were
ever started (AReaL, arXiv 2505.24298), and a batch takes the oldest complete groups first and waits where the others could
no longer be taken in time. So no token that is trained on is ever more than k versions old.

With `zero_variance = "resample"` (DAPO's dynamic sampling) a group of a batch without variance is dropped and one more may start:
it no longer counts among the started, so the bound above holds for the others as it did, and what is dropped is never older
than k versions either.

B = prompts_per_batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from postgrad.core.protocols import ConcurrentEngine, Engine, Judge
from postgrad.core.types import Group, Prompt, Request, Sample
from postgrad.rl.config import AlgorithmConfig, ScheduleConfig
from postgrad.rl.filters import informative
from postgrad.rl.rollout import Rollout
from postgrad.rl.state import (
    prompt_from_json,
    prompt_to_json,
    request_from_json,
    request_to_json,
    sample_from_json,
    sample_to_json,
)


@dataclass
class Clock:
    """Time since the last reading: in decode steps, or in seconds by the clock on the wall."""

    busy_generator: float = 0.0
    busy_trainer: float = 0.0
    total: float = 0.0


@dataclass
class _Running:
    """A group that has been started: its finished samples, and the version at which it was started."""

    prompt: Prompt
    version: int
    samples: dict[int, Sample] = field(default_factory=dict[int, Sample])
    tickets: dict[int, int] = field(default_factory=dict[int, int])
    judged: Group | None = None

    def complete(self, count: int) -> bool:
        return len(self.samples) == count


class Scheduler:
    """Feeds the engine and hands out batches.

    Args:
        engine: any engine of the house.
        rollout: makes requests, decodes and judges.
        judge: the verifier pool; completions are judged while generation goes on.
        next_prompt: the prompt stream; None when no prompt is left.
        slots: sequences that the engine runs at once; at most one group more is queued, one batch more where it generates by
            itself, for as long as an update takes.
        concurrent: the engine, where it generates by itself.
    """

    def __init__(
        self,
        engine: Engine,
        rollout: Rollout,
        judge: Judge,
        next_prompt: Callable[[], Prompt | None],
        algorithm: AlgorithmConfig,
        schedule: ScheduleConfig,
        slots: int,
        concurrent: ConcurrentEngine | None = None,
    ) -> None:
        self.engine, self.rollout, self.judge, self.concurrent = engine, rollout, judge, concurrent
        self.next_prompt, self.slots = next_prompt, slots
        self.batch, self.count = algorithm.prompts_per_batch, algorithm.samples_per_prompt
        self.mode, self.k, self.update_cost = schedule.mode, schedule.k, schedule.update_cost_steps
        self.version = 0
        self.clock = Clock()
        self._waited_s, self._read_at = 0.0, time.perf_counter()
        self._lookahead = self.batch * self.count if concurrent else 0
        self.exhausted = False
        self.algorithm = algorithm
        self.dropped: list[Group] = []  # groups without variance, dropped for the batch handed out last
        self._replaced = self._unreplaced = 0
        self._started = 0
        self._groups: dict[int, _Running] = {}  # by group id, oldest first
        self._unfinished = 0

    # -- what the trainer calls ----------------------------------------------------------------------------------

    def next_batch(self) -> list[Group]:
        """The B oldest groups; generates until they are complete. Fewer, or none, when the prompts run out.

        With `resample` groups that carry a gradient: those that do not are in `dropped` afterwards. Also fewer, or none, where
        `resample_limit` batches of them were replaced.
        """
        self.dropped = []
        began = time.perf_counter()
        while (not self._batch_ready() and self._generate(1, trainer_busy=False)) or self._drop_flat():
            pass
        self._waited_s += time.perf_counter() - began
        batch = [self._take(gid) for gid in self._oldest_complete()]
        self._replaced, self._unreplaced = self._replaced + self._unreplaced, 0
        if self.dropped and len(batch) < self.batch:
            # All that there was: count as if it had been full, or there would be less room for the next ones.
            self._replaced = self._started - (self.version + 1) * self.batch
        return batch

    def updated(self) -> bool:
        """An update has been computed; returns whether the engine takes the new weights now.

        In pipeline mode the generator first goes on with the old ones for the virtual duration of the update. In ppo
        mode the trainer works alone, and the weights change hands after every k-th update.
        """
        if self.concurrent is not None:
            for sample in self.concurrent.arrived():
                self._receive(sample)
            self._admit()  # before the version rises: the engine does not have the new weights yet
        elif self.mode == "ppo":
            self._spend(self.update_cost, generator=False, trainer=True)
        else:
            self._generate(self.update_cost, trainer_busy=True)
        self.version += 1
        return self.mode == "pipeline" or self.version % self.k == 0

    def read_clock(self) -> Clock:
        """Time since the last call: virtual, or by the wall, where generators are busy as their mean."""
        clock, self.clock = self.clock, Clock()
        if self.concurrent is not None:
            usage, now = self.concurrent.usage(), time.perf_counter()
            total = now - self._read_at
            busy = total * usage.busy_s / usage.total_s if usage.total_s else 0.0
            clock = Clock(busy, total - self._waited_s, total)
            self._waited_s, self._read_at = 0.0, now
        return clock

    def pause(self) -> list[Request]:
        """Takes everything that is being generated out of the engine, which is idle then; `engine.submit` continues it."""
        requests = self.engine.snapshot()
        if self.concurrent is not None:
            for sample in self.concurrent.arrived():
                self._receive(sample)
        return requests

    # -- generation ----------------------------------------------------------------------------------------------

    def _capacity(self) -> int:
        """How many more groups may be started now."""
        started = self._started - self._replaced
        if self.mode == "ppo":  # only whole phases: k batches with the weights of the phase's beginning
            return (self.version // self.k + 1) * self.k * self.batch - started
        return (self.k + self.version + 1) * self.batch - started

    def _admit(self) -> None:
        while self._unfinished < self.slots + self._lookahead and self._capacity() > 0 and not self.exhausted:
            prompt = self.next_prompt()
            if prompt is None:
                self.exhausted = True
                return
            group_id = self._started
            requests = self.rollout.requests(prompt, group_id, self.count)
            self._groups[group_id] = _Running(prompt, self.version)
            self.engine.submit(requests)
            self._started += 1
            self._unfinished += self.count

    def _generate(self, steps: int, *, trainer_busy: bool) -> bool:
        """Runs `steps` decode steps; False when there was nothing to generate."""
        for done in range(steps):
            self._admit()
            if self._unfinished == 0:
                self._spend(steps - done, generator=False, trainer=trainer_busy)
                return False
            for sample in self.engine.step():
                self._receive(sample)
            self._spend(1, generator=True, trainer=trainer_busy)
        return True

    def _receive(self, sample: Sample) -> None:
        running = self._groups[sample.group_id]
        sample.text = self.rollout.decode(sample)
        running.samples[sample.request_id] = sample
        running.tickets[sample.request_id] = self.judge.submit(running.prompt, sample.text)
        self._unfinished -= 1

    def _batch_ready(self) -> bool:
        if self.mode == "ppo":  # the whole phase is generated before its first update
            return bool(self._groups) and self._unfinished == 0 and (self._capacity() == 0 or self.exhausted)
        chosen = set(self._oldest_complete())
        if len(chosen) < self.batch:
            return False
        # A group started at version s must be in a batch by version s + k. Taking younger groups first is fine as long as
        # those that stay can all be taken in time: at most `ahead` batches of them are due within `ahead` more updates.
        due = [
            running.version + self.k - self.version
            for gid, running in self._groups.items()
            if gid not in chosen
        ]
        return all(sum(d <= ahead for d in due) <= ahead * self.batch for ahead in range(self.k + 1))

    def _complete(self) -> list[int]:
        return [gid for gid, running in self._groups.items() if running.complete(self.count)]

    def _oldest_complete(self) -> list[int]:
        return self._complete()[: self.batch]

    def _drop_flat(self) -> bool:
        """Judges the groups that would be taken (in ppo: of the phase), drops those without variance; whether there were any."""
        if self.algorithm.zero_variance != "resample":
            return False
        candidates = self._complete() if self.mode == "ppo" else self._oldest_complete()
        flat = [gid for gid in candidates if not informative(self._judged(gid), self.algorithm)]
        limit = self.algorithm.resample_limit * self.batch * (self.k if self.mode == "ppo" else 1)
        for group_id in flat:
            if len(self.dropped) < limit:
                self._replaced += 1
            else:
                self._unreplaced += 1
            self.dropped.append(self._take(group_id))
        return bool(flat)

    def _judged(self, group_id: int) -> Group:
        """A complete group with its rewards; waits for its verdicts."""
        running = self._groups[group_id]
        if running.judged is None:
            order = sorted(running.samples)
            running.judged = Group(running.prompt, [running.samples[request_id] for request_id in order])
            self.rollout.judge(running.judged, self.judge, [running.tickets[r] for r in order])
        return running.judged

    def _take(self, group_id: int) -> Group:
        group = self._judged(group_id)
        del self._groups[group_id]
        return group

    def _spend(self, steps: float, *, generator: bool, trainer: bool) -> None:
        self.clock.total += steps
        self.clock.busy_generator += steps * generator
        self.clock.busy_trainer += steps * trainer

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that is under way, as JSON. Takes the requests out of the engine: call `load_state_dict` next.

        A run that goes on after a checkpoint does the same as one that resumes from it, so both are equal from there on.
        """
        return {
            "version": self.version,
            "started": self._started,
            "replaced": self._replaced,
            "exhausted": self.exhausted,
            "requests": [request_to_json(request) for request in self.pause()],
            "groups": [
                {
                    "id": group_id,
                    "prompt": prompt_to_json(running.prompt),
                    "version": running.version,
                    "samples": [sample_to_json(sample) for sample in running.samples.values()],
                }
                for group_id, running in self._groups.items()
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state`; finished samples whose verdict was pending are judged again."""
        self.version, self._started = state["version"], state["started"]
        self.exhausted, self._replaced = state["exhausted"], state.get("replaced", 0)
        requests = [request_from_json(item) for item in state["requests"]]
        self._groups, self._unfinished = {}, len(requests)
        for item in state["groups"]:
            running = _Running(prompt_from_json(item["prompt"]), item["version"])
            for data in item["samples"]:
                sample = sample_from_json(data)
                running.samples[sample.request_id] = sample
                running.tickets[sample.request_id] = self.judge.submit(running.prompt, sample.text)
            self._groups[item["id"]] = running
        self.engine.submit(requests)
