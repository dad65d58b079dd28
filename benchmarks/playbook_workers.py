"""How much time workers save, when the result must not depend on them.

The simulated student (_student.py; no language model) answers each call after a latency. 64 samples are learned from online, at
the same window with 1 worker and with several: the playbooks are compared and must be equal byte for byte. `calls at a time` is
what the calls' latencies add up to, over the time that was needed: as many as there are workers at most, less what a sample at
the head of the window makes others wait, as samples take 3 to 2 R + 2 calls (`uneven` latencies, 0.5 to 1.5 of the mean, add to
it). With the latency of 1 s it takes half an hour, nearly all of it asleep.

    python benchmarks/playbook_workers.py [--quick] [--latency 1.0] [--samples 64]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from _common import finish, machine, print_table
from _student import Rules, Student, as_work, judge, roles
from postgrad.engines.chat import Call, Reply
from postgrad.playbook.api import learn
from postgrad.playbook.config import LearnConfig
from postgrad.playbook.log import PlaybookLog
from postgrad.playbook.text import format_text

WORKERS = 8
BAR = 6.0


@dataclass
class Slow(Student):
    """A student whose calls take their time; `waited_s` is their sum."""

    uneven: bool = False
    waited_s: float = 0.0

    async def complete(self, call: Call) -> Reply:
        factor = random.Random(f"latency {call.key}").uniform(0.5, 1.5) if self.uneven else 1.0
        await asyncio.sleep(factor * self.latency_s)
        self.waited_s += factor * self.latency_s
        latency, self.latency_s = self.latency_s, 0.0
        try:
            return await super().complete(call)
        finally:
            self.latency_s = latency


class Timed(NamedTuple):
    """One run."""

    seconds: float
    calls: int
    waited_s: float
    text: str


def run(window: int, workers: int, samples: int, latency_s: float, uneven: bool) -> Timed:
    """Learns once."""
    rules = Rules.make(40, 0)
    student = Slow(rules, reveal=0.8, mislead=0.05, latency_s=latency_s, uneven=uneven)
    config = LearnConfig(mode="online", window=window, workers=workers, reflection_rounds=3)
    with tempfile.TemporaryDirectory() as folder, PlaybookLog(Path(folder) / "playbook.jsonl") as log:
        begun = time.perf_counter()
        book = learn(log, config, roles=roles(student), score=judge, work=as_work(rules.prompts(samples, 1)))
        seconds = time.perf_counter() - begun
        text = format_text(book.bullets.values()) + repr([delta.operations for delta in log.deltas])
    return Timed(seconds, sum(student.calls.values()), student.waited_s, text)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a latency of 0.05 s")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds of a call")
    parser.add_argument("--samples", type=int, default=64)
    args = parser.parse_args()
    latency = 0.05 if args.quick else args.latency
    rows: list[list[object]] = []
    found: dict[str, float] = {}
    for uneven in (False, True):
        for window in (8, 12, 16):
            many = run(window, WORKERS, args.samples, latency, uneven)
            one = run(window, 1, args.samples, latency, uneven)
            if many.text != one.text:
                raise SystemExit(f"window {window}: the playbook depends on the number of workers")
            found[f"{'uneven' if uneven else 'even'} latency, window {window}"] = one.seconds / many.seconds
            rows.append([
                f"{'uneven' if uneven else 'even'}, window {window}", many.calls, one.seconds, many.seconds,
                many.waited_s / WORKERS, one.seconds / many.seconds, many.waited_s / many.seconds,
            ])  # fmt: skip
    title = f"{args.samples} samples, {latency:g} s a call; 1 and {WORKERS} workers, the same playbook"
    header = [
        "",
        "calls",
        "s, 1 worker",
        f"s, {WORKERS} workers",
        "s, ideal",
        "times faster",
        "calls at a time",
    ]
    print_table(title, header, rows)
    default = LearnConfig().window
    ratio = found.get(f"even latency, window {default}", min(found.values()))
    row = next(row for row, value in zip(rows, found.values(), strict=True) if value == ratio)
    print(f"\nbar: {BAR:g} times faster with {WORKERS} workers at the default window of {default}")
    values = list(found.values())
    finish("playbook_workers", row[3], row[2], "s", ratio, [min(values), max(values)], bar=BAR,  # type: ignore[arg-type]
           window=default, by_case=found, machine=machine(1))  # fmt: skip


if __name__ == "__main__":
    main()
