"""How much of a prompt a prefix cache keeps from one call of a role to the next, with our layout and with the authors'.

The stream: 200 steps of made-up text, the same playbook states and tasks for both layouts. Questions have about 100 tokens,
reflections about 250, bullets about 45 with id and section (as in the authors' published playbook); each step adds bullets until
the playbook has grown by about 10,000 tokens, from none, 5,000 or 18,000, tags three bullets, and one step in ten updates one. A
token is four characters. Of the first calls of consecutive samples the share of characters is taken that a prompt has in common,
from its beginning, with the prompt of the same role before it (`ops.shared_prefix_fraction`). `new at least` is what no layout
can keep: question, reflection and lines that were not there before.

Ours: the room's own prompts and views. The authors' layout is re-enacted: one message by a template; the Generator's with
instructions, playbook, reflection, question and context; the Curator's with budget, step and statistics, reflection, playbook
and question; the playbook grouped by section, each bullet with its id and counters. The wording is ours, as long as theirs.

    python benchmarks/playbook_prefix.py [--quick] [--steps 200]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from _common import finish, print_table
from postgrad.core.types import Message
from postgrad.playbook.book import SECTIONS, Add, Delta, Operation, Playbook, Tag, Update, fold
from postgrad.playbook.ops import shared_prefix_fraction
from postgrad.playbook.roles import curator_messages, generator_messages, instructions
from postgrad.playbook.text import format_text
from postgrad.playbook.view import View, advance

BUDGET, BULLET = 32_768, 45
LARGE = 18_000, 28_000
"""Tokens; the paper's own context had 18,282 when it collapsed."""
BAR = 0.95
ROLES = ("generator", "curator")
WHO = ("ours", "authors")
_INSTRUCTIONS = 2_000
"""Characters of the authors' instructions before the playbook, about."""


def count(text: str) -> int:
    """Four characters each."""
    return -(-len(text) // 4)


def words(rng: random.Random, tokens: int) -> str:
    """Text of about so many tokens."""
    letters = "etaoinshrdlucm"
    return " ".join(
        "".join(rng.choice(letters) for _ in range(rng.randint(2, 8))) for _ in range(round(tokens * 4 / 6))
    )


def step(book: Playbook, rng: random.Random, per_step: float) -> Delta:
    """What one sample changes."""
    ids = list(book.bullets)
    operations: list[Operation] = [Tag(id, helpful=1) for id in rng.sample(ids, min(3, len(ids)))]
    if ids and rng.random() < 0.1:
        operations.append(Update(rng.choice(ids), words(rng, 36)))
    adds = int(per_step) + (rng.random() < per_step % 1)
    operations += [Add(rng.choice(list(SECTIONS)), words(rng, 36)) for _ in range(adds)]
    return Delta(tuple(operations))


def joined(messages: Sequence[Message]) -> str:
    """As a chat template would, nearly."""
    return "\n".join(message["content"] for message in messages)


def authors(role: str, book: Playbook, question: str, reflection: str, number: int, steps: int) -> str:
    """A prompt in the published layout."""
    told = (instructions(role) + " ") * (1 + _INSTRUCTIONS // len(instructions(role)))
    playbook = format_text(book.bullets.values())
    if role == "generator":
        return (
            f"{told[:_INSTRUCTIONS]}\n\n**Playbook:**\n{playbook}\n\n**Reflection:**\n{reflection}\n\n"
            f"**Question:**\n{question}\n\n**Context:**\n"
        )
    bullets = book.bullets.values()
    stats = {
        "total_bullets": len(book),
        "high_performing": sum(b.helpful > 5 and b.harmful < 2 for b in bullets),
        "problematic": sum(b.harmful >= b.helpful > 0 for b in bullets),
        "unused": sum(b.helpful + b.harmful == 0 for b in bullets),
    }
    return (
        f"{told[:_INSTRUCTIONS]}\n\n- Total token budget: {BUDGET} tokens\n"
        f"- Training progress: Sample {number} out of {steps}\n\n"
        f"**Current Playbook Stats:**\n{json.dumps(stats, indent=2)}\n\n**Recent Reflection:**\n{reflection}\n\n"
        f"**Current Playbook:**\n{playbook}\n\n**Question Context:**\n{question}\n"
    )


@dataclass(frozen=True)
class Stream:
    """What was measured of one stream.

    Attributes:
        shares: (whose layout, role) → share of the prompts.
        new: role → share that no layout can keep.
        tokens: (whose layout, role) → mean length of a prompt.
    """

    shares: dict[tuple[str, str], float]
    new: dict[str, float]
    tokens: dict[tuple[str, str], float]


def measure(steps: int, start: int, most: int) -> Stream:
    """A stream that begins with a playbook of `start` tokens and ends with one of about `most`."""
    rng = random.Random(0)
    told = {role: instructions(role) for role in ROLES}
    sections = list(SECTIONS)
    first = [Add(rng.choice(sections), words(rng, 36)) for _ in range(round(start / BULLET))]
    book = fold([Delta(tuple(first))])
    view, text, reflection = advance(View(), book, BUDGET, count), "", ""
    prompts: dict[tuple[str, str], list[str]] = {(who, role): [] for who in WHO for role in ROLES}
    new = dict.fromkeys(ROLES, 0)
    for number in range(1, steps + 1):
        question, found = words(rng, 100), words(rng, 250)
        view = advance(view, book, BUDGET, count)
        least = len(view.text) - len(text) + len(question) if text else len(question)
        new = {"generator": new["generator"] + least, "curator": new["curator"] + least + len(found)}
        text = view.text
        ours = generator_messages(told["generator"], text, question)
        prompts["ours", "generator"].append(joined(ours))
        prompts["authors", "generator"].append(
            authors("generator", book, question, reflection, number, steps)
        )
        ours = curator_messages(
            told["curator"], text, question, found, tokens=count(text), budget_tokens=BUDGET
        )
        prompts["ours", "curator"].append(joined(ours))
        prompts["authors", "curator"].append(authors("curator", book, question, found, number, steps))
        reflection = found
        book = fold([step(book, rng, (most - start) / BULLET / steps)], book)
    print(
        f"{steps} steps from {start:,} tokens: at the end {len(book)} bullets, {count(view.text):,} tokens, "
        f"{view.num_rewrites} rewrites of the view"
    )
    return Stream(
        {key: shared_prefix_fraction(texts) for key, texts in prompts.items()},
        {role: new[role] / sum(map(len, prompts["ours", role])) for role in ROLES},
        {key: sum(map(count, texts)) / steps for key, texts in prompts.items()},
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    streams = {
        "from nothing": measure(steps, 0, 10_000),
        "from 5,000 tokens": measure(steps, 5_000, 15_000),
        "from the paper's size": measure(steps, *LARGE),
    }
    rows: list[list[object]] = [
        [
            f"{role}, {name}",
            *(stream.shares[who, role] for who in WHO),
            stream.new[role],
            *(stream.tokens[who, role] for who in WHO),
        ]
        for name, stream in streams.items()
        for role in ROLES
    ]
    header = ["", "ours", "authors' layout", "new at least", "tokens, ours", "tokens, authors'"]
    print_table(f"Share of a prompt that is the beginning of the one before it (bar: {BAR})", header, rows)
    first = streams["from nothing"]
    ours, theirs = (first.shares[who, "generator"] for who in WHO)
    finish(
        "playbook_prefix",
        ours,
        theirs,
        "share of a Generator's prompt that is the beginning of the one before it",
        ours / theirs,
        (None, None),
        bar=BAR,
        shares={
            f"{who} {role}, {name}": stream.shares[who, role]
            for name, stream in streams.items()
            for who in WHO
            for role in ROLES
        },
    )


if __name__ == "__main__":
    main()
