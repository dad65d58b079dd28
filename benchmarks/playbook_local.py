"""The whole loop with real generation: a small language model, trained here, whose answers depend on the playbook in its prompt.

The model (`_reader.py`, a Qwen3 of 0.2 M weights) was trained on playbooks of made-up rules, new ones for each example, so that
its weights hold no rule of a world: it can only read. It is the Generator, through our torch engine, in text mode; it does not
cite. Reflector and Curator are simulated (`_student.py`: right with probability .8, misleading with .1), since a model of this
size writes no JSON; the gain is that of a playbook for a model that reads, not of what a Reflector finds out.

For each world (the same words, other numbers): 150 tasks, each answered before anything is learned from it; then 100 further
tasks with the playbook, without it, and with the playbook of another world.

    python benchmarks/playbook_local.py [--quick] [--worlds 5] [--steps 1500] [--out DIR]
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

import torch

from _common import finish, machine, mean_interval, print_table
from _reader import TOLD, VALUES, judge, reader
from _student import Rules, Student, as_work
from postgrad.engines.chat import ChatConfig, make_chat
from postgrad.playbook.api import evaluate, learn
from postgrad.playbook.book import Playbook
from postgrad.playbook.config import LearnConfig
from postgrad.playbook.log import PlaybookLog
from postgrad.playbook.study import Roles


class Kept:
    """Metrics in memory."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, step: int, metrics: Any) -> None:
        """Keeps a row."""
        self.rows.append({"step": step, **metrics})

    def log_samples(self, step: int, rows: Any) -> None:
        """Nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 worlds, 40 samples")
    parser.add_argument("--worlds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=150)
    parser.add_argument("--words", type=int, default=20, help="that tasks ask for")
    parser.add_argument("--steps", type=int, default=1500, help="of the reader's training")
    parser.add_argument("--out", type=Path, help="keep the reader here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    worlds, samples, asked = (2, 40, 40) if options.quick else (options.worlds, options.samples, 100)
    vocabulary = Rules.make(60, 0)
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = reader(options.out or folder, vocabulary, 0, options.steps)
        told = folder / "told.md"
        told.write_text(TOLD)
        local = ChatConfig(path=str(path), temperature=0.0, max_tokens=6)
        config = LearnConfig(
            mode="online",
            reply="text",
            reflection_rounds=2,
            budget_tokens=512,
            prompts={"generator": str(told)},
        )
        books: list[Playbook] = []
        for world in range(worlds + 1):  # one more, whose playbook is that of another world
            rng = random.Random(f"world {world}")
            words = rng.sample(sorted(vocabulary.values), options.words)
            rules = Rules({word: rng.choice(VALUES) for word in words})
            roles = Student(rules, reveal=0.8, mislead=0.1, values=VALUES, seed=world)
            run = Kept()
            with PlaybookLog(folder / f"world-{world}.jsonl") as log:
                team = Roles(make_chat(local), roles, roles)
                work = as_work(rules.prompts(samples, world, words_each=1))
                books.append(learn(log, config, run=run, roles=team, score=judge, work=work))
            if world == 0:
                continue
            team = Roles(make_chat(local), roles, roles)
            prompts = rules.prompts(asked, 1000 + world, words_each=1)
            with_it, without = evaluate(books[-1], prompts, config, roles=team, score=judge)[:2]
            team = Roles(make_chat(local), roles, roles)
            other, _ = evaluate(books[0], prompts, config, roles=team, score=judge)[:2]
            found.append(
                {
                    "with": with_it.mean,
                    "without": without.mean,
                    "other": other.mean,
                    "online": run.rows[-1]["learn/accuracy"],
                    "last": run.rows[-1]["learn/accuracy_recent"],
                    "bullets": float(len(books[-1])),
                }
            )
            print(f"world {world}:", {key: round(value, 3) for key, value in found[-1].items()}, flush=True)
    names = {
        "with": "further tasks, with the playbook",
        "without": "without it",
        "other": "with the playbook of another world",
        "online": "all first answers while it grew",
        "last": "the last 50 of these",
        "bullets": "bullets",
    }
    rows: list[list[object]] = []
    for key, label in names.items():
        mean, half = mean_interval([one[key] for one in found])
        rows.append([label, f"{mean:.3f} ± {half:.3f}"])
    print_table(
        f"A small model that reads, {worlds} worlds: share of right answers", ["", "mean ± 95 %"], rows
    )
    ours = [one["with"] for one in found]
    finish(
        "playbook_local",
        sum(ours) / len(ours),
        sum(one["without"] for one in found) / len(found),
        "share of right answers with the playbook; peer: without",
        None,
        (min(ours), max(ours)),
        worlds=found,
        machine=machine(1),
    )


if __name__ == "__main__":
    main()
