"""Deltas against what one would do otherwise, with a simulated student: a test of the machinery, NOT evidence of what language
models gain.

`_student.py` says what the student, its Reflector and its Curator do. Four ways of keeping what was learned, with the same
tasks, the same Reflector and the same draws, over budgets of the context and over how often the Reflector misleads:

    deltas       postgrad.playbook: small operations, copies dropped, lines that look alike shown to the Curator, the least worthy
                 retired
    no de-dup    the same with refine = "off": copies stay, nothing is shown as alike
    append only  each insight is a new line; what does not fit the budget is cut off, the oldest first
    rewrite      the Curator writes the whole context anew after each sample, with the insight. It leaves out each line with
                 probability .005; and, as the paper saw of a language model (18,282 tokens became 122 in one step), once the
                 context is longer than three quarters of the budget it may at any step (probability .05) write a summary of five
                 lines

What the rewriting Curator does is assumed, not measured; its two numbers stand above. Accuracy is on 100 further tasks that ask
for the same rules, with the context at the end; "lowest" is the lowest of ten such measurements after half of the samples.

    python benchmarks/playbook_student.py [--quick] [--seeds 20] [--samples 150]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _common import finish, machine, mean_interval, print_table
from _student import WORDINGS, Rules, Student, as_work, judge, read_lines, roles, words_of
from postgrad.core.types import Prompt
from postgrad.playbook.api import learn
from postgrad.playbook.config import LearnConfig
from postgrad.playbook.log import PlaybookLog
from postgrad.playbook.view import View, advance

WAYS = ("deltas", "no de-dup", "append only", "rewrite")
BUDGETS = (500, 1000, 2000)
MISLEADS = (0.0, 0.1, 0.3)
DROP, COLLAPSE, LONG, SUMMARY = 0.005, 0.05, 0.75, 5
_INSIGHT = re.compile(r"\b([a-z]+) counts (\d+)\b")


def accuracy(context: str, prompts: Sequence[Prompt], rules: Rules) -> float:
    """Share of tasks that a student solves with this context."""
    known = read_lines(context)
    right = 0
    for prompt in prompts:
        words = words_of(prompt.text or "")
        right += all(word in known and known[word][1] == rules.values[word] for word in words)
    return right / len(prompts)


def with_deltas(student: Student, prompts: Sequence[Prompt], budget: int, refine: str) -> list[str]:
    """The context after each sample."""
    config = LearnConfig.model_validate(
        {
            "mode": "online",
            "window": 1,
            "workers": 1,
            "reflection_rounds": 1,
            "budget_tokens": budget,
            "refine": refine,
        }
    )
    with tempfile.TemporaryDirectory() as folder, PlaybookLog(Path(folder) / "log.jsonl") as log:
        learn(log, config, roles=roles(student), score=judge, work=as_work(prompts))
        contexts, view = [], View()
        from postgrad.playbook.book import Playbook, fold

        book = Playbook()
        for delta in log.deltas:
            book = fold([delta], book)
            view = advance(view, book, budget, student.count_tokens)
            contexts.append(view.text)
    return contexts


def otherwise(
    student: Student, prompts: Sequence[Prompt], budget: int, keep: Callable[..., list[str]]
) -> list[str]:
    """The context after each sample, where insights become lines and `keep` says what becomes of all lines."""

    async def go() -> list[str]:
        lines: list[str] = []
        contexts: list[str] = []
        for number, prompt in enumerate(prompts):
            context = "\n".join(lines)
            answer = student.generator(f"{context}\nTask:\n{prompt.text}", random.Random(0))
            used = "\n".join(line for line in lines if any(f"[{id}]" in line for id in answer["bullet_ids"]))
            rng = random.Random(f"{student.seed} 0/{number}/reflect/1")
            text = f"Task:\n{prompt.text}\nWork:\n-\nLines of the playbook that were used:\n{used}"
            insight = student.reflector(text, rng)["key_insight"]
            lines = keep(lines, _INSIGHT.findall(insight), number, budget, student)
            contexts.append("\n".join(lines))
        return contexts

    return asyncio.run(go())


def appended(
    lines: list[str], found: list[tuple[str, str]], number: int, budget: int, student: Student
) -> list[str]:
    """New lines at the end; from the beginning, what does not fit."""
    rng = random.Random(f"{student.seed} words {number}")
    new = [
        f"[calc-{number:03d}{place:02d}] {rng.choice(WORDINGS).format(word=word, value=value)}"
        for place, (word, value) in enumerate(found)
    ]
    lines = [*lines, *new]
    while student.count_tokens("\n".join(lines)) > budget:
        lines.pop(0)
    return lines


def rewritten(
    lines: list[str], found: list[tuple[str, str]], number: int, budget: int, student: Student
) -> list[str]:
    """All lines anew, one for each word; some get lost, and a long context may become a summary."""
    rng = random.Random(f"{student.seed} rewrite {number}")
    kept = [line for line in lines if rng.random() >= DROP]
    if student.count_tokens("\n".join(kept)) > LONG * budget and rng.random() < COLLAPSE:
        kept = rng.sample(kept, min(SUMMARY, len(kept)))
    told = {word for word, _ in found}
    kept = [line for line in kept if not told & set(read_lines(line))]
    return appended(kept, found, number, budget, student)


def run(way: str, rules: Rules, seed: int, samples: int, budget: int, mislead: float) -> dict[str, float]:
    """One course."""
    student = Student(rules, reveal=0.9 - mislead, mislead=mislead, seed=seed)
    prompts, asked = rules.prompts(samples, 1000 + seed), rules.prompts(100, 2000 + seed)
    match way:
        case "deltas":
            contexts = with_deltas(student, prompts, budget, "proactive")
        case "no de-dup":
            contexts = with_deltas(student, prompts, budget, "off")
        case "append only":
            contexts = otherwise(student, prompts, budget, appended)
        case _:
            contexts = otherwise(student, prompts, budget, rewritten)
    later = range(samples // 2, samples, max(samples // 20, 1))
    lengths = [student.count_tokens(context) for context in contexts]
    fall = min(after / before for before, after in itertools.pairwise(lengths) if before)
    return {
        "accuracy": accuracy(contexts[-1], asked, rules),
        "lowest": min(accuracy(contexts[number], asked, rules) for number in later),
        "tokens": float(lengths[-1]),
        "fall": fall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="3 seeds, one budget, one rate")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samples", type=int, default=150)
    parser.add_argument("--rules", type=int, default=60)
    options = parser.parse_args()
    seeds = range(3 if options.quick else options.seeds)
    cells = (
        [(1000, 0.1)] if options.quick else [(budget, mislead) for budget in BUDGETS for mislead in MISLEADS]
    )
    rows: list[list[object]] = []
    found: dict[tuple[int, float, str], list[dict[str, float]]] = {}
    for budget, mislead in cells:
        for way in WAYS:
            each = [
                run(way, Rules.make(options.rules, seed), seed, options.samples, budget, mislead)
                for seed in seeds
            ]
            found[budget, mislead, way] = each
            cell: list[object] = [f"{budget} tokens, misleads {mislead:g}, {way}"]
            for key in ("accuracy", "lowest", "tokens", "fall"):
                mean, half = mean_interval([one[key] for one in each])
                cell += [f"{mean:.3f} ± {half:.3f}" if key != "tokens" else f"{mean:.0f}"]
            rows.append(cell)
            print(cell, flush=True)
    print_table(
        f"A simulated student (machinery, no evidence of language models' gains), {len(seeds)} seeds: means ± 95 %",
        ["", "accuracy", "lowest", "tokens", "greatest fall of length in a step (after / before)"],
        rows,
    )
    budget, mislead = cells[len(cells) // 2]

    def mean(way: str) -> float:
        return sum(one["accuracy"] for one in found[budget, mislead, way]) / len(seeds)

    ratios: list[float] = [
        ours["accuracy"] / max(theirs["accuracy"], 1e-9)
        for ours, theirs in zip(
            found[budget, mislead, "deltas"], found[budget, mislead, "rewrite"], strict=True
        )
    ]
    cells_json: list[dict[str, Any]] = [
        {
            "budget": b,
            "mislead": q,
            "way": way,
            **{key: sum(one[key] for one in each) / len(each) for key in each[0]},
        }
        for (b, q, way), each in found.items()
    ]
    finish(
        "playbook_student",
        mean("deltas"),
        mean("rewrite"),
        f"share of tasks solved by a simulated student at {budget} tokens, misleading {mislead:g}; peer: full rewrite",
        mean("deltas") / max(mean("rewrite"), 1e-9),
        (min(ratios), max(ratios)),
        cells=cells_json,
        machine=machine(1),
    )


if __name__ == "__main__":
    main()
