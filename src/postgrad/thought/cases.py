"""Cases: what each agent of a team sees, and what is asked. Read from JSONL, or made of a task's prompts. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from postgrad.core.errors import DataError, nearest
from postgrad.core.protocols import Judge
from postgrad.core.types import Prompt
from postgrad.tasks.split import is_held_out, prompt_id

_KEYS = ("id", "prompt", "views", "questions", "whole", "answer")

Grader = Callable[[Sequence["Case"], Sequence[str]], list[bool]]
"""Which answers are right. One that cannot be read is wrong, never left out."""


@dataclass(frozen=True)
class Case:
    """One thing to think about together.

    Attributes:
        id: unique within a data set.
        views: what each agent sees, and what its state is taken at [A].
        questions: what each agent answers in the end [A]; the views where nothing else is asked.
        answer: the right one.
        whole: a prompt with all that is known, for `reference = "oracle"`; None where nobody knows it.
        task: name of the task whose verifier judges, or empty.
    """

    id: str
    views: tuple[Prompt, ...]
    questions: tuple[Prompt, ...]
    answer: str | None = None
    whole: Prompt | None = None
    task: str = ""

    @classmethod
    def of_texts(
        cls,
        id: str,
        views: Sequence[str],
        answer: str | None,
        questions: Sequence[str] | None = None,
        whole: str | None = None,
    ) -> Case:
        """From plain texts, one for each agent."""
        seen = tuple(Prompt(id=f"{id}/{agent}", text=text) for agent, text in enumerate(views))
        asked = tuple(Prompt(id=f"{id}/{agent}?", text=text) for agent, text in enumerate(questions or ()))
        return cls(
            id, seen, asked or seen, answer, None if whole is None else Prompt(id=f"{id}/whole", text=whole)
        )


def of_prompts(prompts: Sequence[Prompt], num_agents: int) -> list[Case]:
    """Cases in which all agents are asked the same, and each could know all."""
    return [
        Case(prompt.id, (prompt,) * num_agents, (prompt,) * num_agents, prompt.answer, prompt, prompt.task)
        for prompt in prompts
    ]


def read_cases(path: Path | str, names: Sequence[str]) -> list[Case]:
    """Cases of a JSONL file: `{"prompt": …}` or `{"views": […] | {name: …}}`, with `answer`, `questions`, `whole`, `id`.

    Args:
        names: of the agents.

    Raises:
        DataError: with file and line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}.") from None
    cases = [
        _case(line, f"{path}, line {number}", names) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not cases:
        raise DataError(f"{path} is empty: it holds no case.")
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise DataError(f"{path}: the id {case.id!r} is there twice. Ids must be unique.")
        seen.add(case.id)
    return cases


def _case(line: str, place: str, names: Sequence[str]) -> Case:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: no JSON ({error}).") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: a case is an object, not a {type(row).__name__}.")
    content = cast("dict[str, Any]", row)
    for key in content:
        if key not in _KEYS:
            raise DataError(f"{place}: unknown key {key!r}. {nearest(key, _KEYS)}")
    if ("prompt" in content) == ("views" in content):
        raise DataError(f"{place}: give prompt, which all agents see, or views, what each of them sees.")
    shared = "prompt" in content
    views = (
        [_text(content["prompt"], f"{place}: prompt")] * len(names)
        if shared
        else _each(content, "views", place, names)
    )
    questions = _each(content, "questions", place, names) if "questions" in content else None
    whole = content.get("whole", content.get("prompt"))
    answer = content.get("answer")
    return Case.of_texts(
        str(content.get("id") or prompt_id("case", Prompt(id="", text=line))),
        views,
        None if answer is None else str(answer),
        questions,
        None if whole is None else _text(whole, f"{place}: whole"),
    )


def _each(row: Mapping[str, Any], key: str, place: str, names: Sequence[str]) -> list[str]:
    """The texts of a key that has one for each agent."""
    value = row[key]
    if isinstance(value, dict):
        by_name = cast("dict[str, object]", value)
        if set(by_name) != set(names):
            raise DataError(f"{place}: {key} is of {sorted(by_name)}; the agents are {', '.join(names)}.")
        value = [by_name[name] for name in names]
    if not isinstance(value, list) or len(cast("list[object]", value)) != len(names):
        raise DataError(f"{place}: {key} must hold a text for each of {len(names)} agents.")
    return [_text(text, f"{place}: {key}") for text in cast("list[object]", value)]


def _text(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place} must be text; received {value!r}.")
    return value


def split_cases(cases: Sequence[Case], holdout_fraction: float) -> tuple[list[Case], list[Case]]:
    """(to learn from, to measure on): by a hash of what is seen, the same in every run."""
    held: list[Case] = []
    kept: list[Case] = []
    for case in cases:
        seen = Prompt(id="", text="\n".join(view.content for view in case.views))
        (held if is_held_out(seen, holdout_fraction) else kept).append(case)
    return kept, held


def grade_exact(cases: Sequence[Case], answers: Sequence[str]) -> list[bool]:
    """The same text but for spaces."""
    return [
        case.answer is not None and said.split() == case.answer.split()
        for case, said in zip(cases, answers, strict=True)
    ]


def grade_by(judge: Judge) -> Grader:
    """By the verifier of each case's task; right at a score of 1."""

    def grade(cases: Sequence[Case], answers: Sequence[str]) -> list[bool]:
        tickets = [judge.submit(case.views[0], said) for case, said in zip(cases, answers, strict=True)]
        return [verdict.score is not None and verdict.score >= 1 for verdict in judge.collect(tickets)]

    return grade
