"""What the tests of the loop share: a run that remembers, a student with moods, one call to learn."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._student import Rules, Student, as_work, judge, roles

from postgrad.core.errors import ChatError
from postgrad.engines.chat import Call, Reply
from postgrad.playbook.api import learn
from postgrad.playbook.book import Playbook, to_plain
from postgrad.playbook.config import LearnConfig
from postgrad.playbook.log import PlaybookLog

RULES = Rules.make(16, 0)


class Recorder:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.samples: list[tuple[int, dict[str, Any]]] = []

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.rows.append((step, dict(metrics)))

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.samples += [(step, dict(row)) for row in rows]

    def metrics(self) -> list[tuple[int, dict[str, Any]]]:
        return [(step, row) for step, row in self.rows]

    def last(self, key: str) -> Any:
        return next(row[key] for _, row in reversed(self.rows) if key in row)


@dataclass
class Moody(Student):
    """A student whose replies come after random times, and may be spoiled."""

    jitter_s: float = 0.0
    jitter_seed: int = 0
    spoil: Callable[[Call, int], str | Exception | None] = lambda call, number: None
    """(call, how many calls there were before) → another reply, an exception, or None."""
    total: int = 0
    log: list[Call] = field(default_factory=list)
    active: int = 0
    peak: int = 0

    async def complete(self, call: Call) -> Reply:
        self.log.append(call)
        number, self.total = self.total, self.total + 1
        self.active += 1
        self.peak = max(self.peak, self.active)
        try:
            if self.jitter_s:
                rng = random.Random(f"{self.jitter_seed} {call.key} {call.role}")
                await asyncio.sleep(rng.random() ** 3 * self.jitter_s)
            spoiled = self.spoil(call, number)
            if isinstance(spoiled, Exception):
                raise spoiled
            if spoiled is not None:
                return Reply(spoiled, 10, 0, 10)
            return await super().complete(call)
        finally:
            self.active -= 1


def no_reply(call: Call) -> ChatError:
    return ChatError(f"no reply to {call.key}")


def config(**options: Any) -> LearnConfig:
    return LearnConfig(**{"mode": "online", "reflection_rounds": 2, "window": 1, "workers": 1, **options})


def play(
    folder: Path, student: Student, settings: LearnConfig, work: Any, **options: Any
) -> tuple[Playbook, PlaybookLog, Recorder]:
    """Learns, or goes on learning, in a folder."""
    recorder = options.pop("run", None) or Recorder()
    with PlaybookLog(folder / "playbook.jsonl") as log:
        options.setdefault("score", judge)
        book = learn(log, settings, run=recorder, roles=roles(student), work=work, **options)
    return book, log, recorder


def work_of(count: int, held_out: int = 0, rules: Rules = RULES) -> Any:
    return as_work(rules.prompts(count, 1), rules.prompts(held_out, 2))


def operations(log: PlaybookLog) -> list[str]:
    """Of every delta, as bytes of the log."""
    return [json.dumps([list(map(to_plain, d.operations)), list(d.refused)]) for d in log.deltas]
