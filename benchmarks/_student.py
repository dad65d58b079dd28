"""A simulated student, for tests of the machinery of `postgrad.playbook`: no language model, and no evidence of what one gains.

There are hidden rules: each of K made-up words has a number. A task asks for the sum of some words' numbers. The student,
playing the Generator, knows a word's number only if a line of its prompt tells it ("zeb counts 7"); of several lines about a
word the last one counts, and a withdrawn line none. It cites the lines that it used.

The Reflector sees the words' true numbers. Of each word that was missing or wrong it tells the right number with probability
`reveal`, a wrong one with probability `mislead`, and else nothing; a word that was right it tells again with probability
`repeat`. Used lines are tagged as they are. The Curator words each insight in one of several ways. It updates lines that
contradict, adds what it is told even if the playbook says it in other words, and merges what is shown to it as alike and says
the same.

All draws depend on (seed, key of the task, role) alone, so that they are the same in whatever order calls come. The prompts that
it reads are those of the room: it finds playbook, task and reflection by the room's layout.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from postgrad.core.types import Prompt
from postgrad.engines.chat import Call, Reply

WORDINGS = (
    "{word} counts {value}",
    "When a task names {word}, remember: {word} counts {value}",
    "The number behind {word} was confirmed: {word} counts {value}, whatever else is asked",
    "Do not guess here: {word} counts {value}",
    "From experience, {word} counts {value} in every sum",
)
_RULE = re.compile(r"\b([a-z]+) counts (\d+)\b")
_LINE = re.compile(r"^\[([a-z0-9_]+-\d+)\] (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Rules:
    """The hidden world.

    Attributes:
        values: word → number.
    """

    values: dict[str, int]

    @classmethod
    def make(cls, count: int, seed: int) -> Rules:
        """`count` words."""
        rng = random.Random(f"rules {seed}")
        words: dict[str, int] = {}
        while len(words) < count:
            word = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3))
            words.setdefault(word, rng.randrange(10, 100))
        return cls(words)

    def prompts(self, count: int, seed: int, words_each: int = 2) -> list[Prompt]:
        """Tasks; the words are drawn anew for each."""
        rng = random.Random(f"prompts {seed}")
        found: list[Prompt] = []
        for number in range(count):
            chosen = rng.sample(sorted(self.values), words_each)
            answer = sum(self.values[word] for word in chosen)
            text = f"Task {seed}-{number}. Add up: {' + '.join(chosen)}"
            found.append(Prompt(id=f"{seed}-{number}", text=text, answer=str(answer), task="rules"))
        return found


@dataclass
class Student:
    """A `Chat` that plays all three roles.

    Attributes:
        rules: the hidden world.
        reveal, mislead, repeat: of the Reflector.
        values: of wrong numbers.
        latency_s: of each reply.
        seed: of all draws.
        calls: how many there were, by role.
        prompts: the messages of each call as one text, by role, if `keep`.
    """

    rules: Rules
    reveal: float = 0.9
    mislead: float = 0.0
    repeat: float = 0.2
    values: range = range(10, 100)
    latency_s: float = 0.0
    seed: int = 0
    keep: bool = False
    calls: dict[str, int] = field(default_factory=dict)
    prompts: dict[str, list[str]] = field(default_factory=dict)

    async def complete(self, call: Call) -> Reply:
        """The reply of the role that is called."""
        self.calls[call.role] = self.calls.get(call.role, 0) + 1
        text = "\n".join(message["content"] for message in call.messages)
        if self.keep:
            self.prompts.setdefault(call.role, []).append(text)
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        rng = random.Random(f"{self.seed} {call.key}")
        reply = json.dumps(getattr(self, call.role)(text, rng), ensure_ascii=False)
        return Reply(reply, len(text) // 4, 0, len(reply) // 4)

    def count_tokens(self, text: str) -> int:
        """Four characters each."""
        return -(-len(text) // 4)

    async def close(self) -> None:
        """Nothing to let go of."""

    # -- roles ---------------------------------------------------------------------------------------------

    def generator(self, text: str, rng: random.Random) -> dict[str, Any]:
        """Adds up what it is told."""
        del rng
        playbook, _, task = text.rpartition("\nTask:\n")
        known = read_lines(playbook)
        question, _, told = task.partition("What was found about it:")
        hints = {word: int(value) for word, value in _RULE.findall(told)}
        total, used = 0, []
        for word in words_of(question):
            if word in hints:
                total += hints[word]
            elif word in known:
                total += known[word][1]
                used.append(known[word][0])
        return {
            "reasoning": " ".join(f"[{id}]" for id in used),
            "bullet_ids": used,
            "final_answer": str(total),
        }

    def reflector(self, text: str, rng: random.Random) -> dict[str, Any]:
        """Tells numbers, mostly right ones; tags what was used."""
        task, _, rest = text.partition("\nWork:\n")
        used = read_lines(rest.rpartition("Lines of the playbook that were used:")[2])
        tags, said = [], []
        for word in words_of(task):
            there = used.get(word)
            if there is not None:
                right = there[1] == self.rules.values[word]
                tags.append({"id": there[0], "tag": "helpful" if right else "harmful"})
                if right:
                    if rng.random() < self.repeat:
                        said.append(f"{word} counts {there[1]}")
                    continue
            draw = rng.random()
            if draw < self.reveal:
                said.append(f"{word} counts {self.rules.values[word]}")
            elif draw < self.reveal + self.mislead:
                said.append(f"{word} counts {rng.choice(self.values)}")
        return {"reasoning": "", "key_insight": "; ".join(said), "bullet_tags": tags}

    def curator(self, text: str, rng: random.Random) -> dict[str, Any]:
        """Small operations."""
        playbook, _, turn = text.partition("\nTask:\n")
        known = read_lines(playbook)
        insights = dict(_RULE.findall(turn.partition("Reflection:")[2].partition("</data>")[0]))
        operations: list[dict[str, Any]] = []
        for word, value in insights.items():
            line = rng.choice(WORDINGS).format(word=word, value=value)
            there = known.get(word)
            if there is not None and there[1] != int(value):
                operations.append({"type": "UPDATE", "id": there[0], "content": line})
            else:
                operations.append({"type": "ADD", "section": "FORMULAS & CALCULATIONS", "content": line})
        for first, second in re.findall(r"^- (\[.*?) and (\[.*)$", turn, re.MULTILINE):
            a, b = read_lines(first), read_lines(second)
            same = [word for word in a if word in b and a[word][1] == b[word][1]]
            if same:
                ids = [a[same[0]][0], b[same[0]][0]]
                operations.append({"type": "MERGE", "ids": ids, "content": ""})
        return {"reasoning": "", "operations": operations}


def words_of(question: str) -> list[str]:
    """The words that are asked for."""
    found = re.search(r"Add up: ([a-z +]+)", question)
    return found[1].split(" + ") if found else []


def read_lines(text: str) -> dict[str, tuple[str, int]]:
    """Word → (id, number), as the lines of a prompt tell it."""
    lines: dict[str, str] = {}
    for id, content in _LINE.findall(text):
        lines.pop(id, None)
        if content != "withdrawn":
            lines[id] = content
    return {word: (id, int(value)) for id, content in lines.items() for word, value in _RULE.findall(content)}


async def judge(prompt: Prompt, answer: str) -> Any:
    """Whether the sum is right."""
    from postgrad.playbook.study import Feedback

    return Feedback(float(answer.strip() == prompt.answer), f"expected {prompt.answer}")


def roles(student: Student) -> Any:
    """The student in all roles."""
    from postgrad.playbook.study import Roles

    return Roles(student, student, student)


def as_work(prompts: Sequence[Prompt], held_out: Sequence[Prompt] = ()) -> Any:
    """Prompts once each, in order."""
    from postgrad.playbook.learning import Work

    samples = [(f"0/{number}", prompt, None) for number, prompt in enumerate(prompts)]
    return Work(samples, len(samples), tuple(held_out))
