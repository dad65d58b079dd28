"""`postgrad thought run`: what agents answer by thoughts, beside what they answer alone."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from postgrad.commands.thought_work import Opened, loaded_team, open_run
from postgrad.core.errors import ConfigError
from postgrad.thought.cases import Case, read_cases


def main(
    run: Path,
    prompt: str | None,
    views: tuple[str, ...],
    question: str | None,
    cases: Path | None,
    json_output: bool,
) -> int:
    """Asks a team; see `postgrad thought run --help`."""
    opened = open_run(run)
    asked = _cases(opened, prompt, views, question, cases)
    with loaded_team(opened) as team:
        told, alone = team.generate(asked), team.answer(asked)
    names = opened.config.names
    record = [
        {
            "id": case.id,
            "answer": case.answer,
            "agents": [
                {
                    "name": name,
                    "view": case.views[number].content,
                    "question": case.questions[number].content,
                    "thoughts": told[number][place].text,
                    "alone": alone[number][place].text,
                }
                for number, name in enumerate(names)
            ],
        }
        for place, case in enumerate(asked)
    ]
    if json_output:
        print(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        _show(record)
    return 0


def _cases(
    opened: Opened, prompt: str | None, views: tuple[str, ...], question: str | None, cases: Path | None
) -> list[Case]:
    names = opened.config.names
    given = [
        word
        for word, is_given in (
            ("--prompt", prompt is not None),
            ("--view", bool(views)),
            ("--cases", cases is not None),
        )
        if is_given
    ]
    if len(given) != 1:
        received = f"{' and '.join(given)} exclude each other" if given else "Nothing is asked"
        raise ConfigError(
            f"{received}. Give --prompt TEXT for all agents, a --view TEXT for each of them ({', '.join(names)}), or "
            "--cases FILE."
        )
    if question is not None and not views:
        raise ConfigError(
            "--question is what agents answer in the end who have seen a --view each; without views it has no place."
        )
    if cases is not None:
        return read_cases(cases, names)
    texts = (prompt or "",) * len(names) if prompt is not None else views
    if len(texts) != len(names):
        raise ConfigError(
            f"{len(texts)} --view for {len(names)} agents. Give one for each, in this order: {', '.join(names)}."
        )
    if not all(text.strip() for text in texts):
        raise ConfigError("A prompt is empty. Give each agent something to read.")
    return [Case.of_texts("prompt", texts, None, [question] * len(names) if question else None)]


def _show(record: list[dict[str, Any]]) -> None:
    for case in record:
        if len(record) > 1 or case["answer"] is not None:
            answer = "" if case["answer"] is None else f" (right: {case['answer']})"
            print(f"\n{case['id']}{answer}")
        for agent in case["agents"]:
            print(f"\n{agent['name']}: {_short(agent['view'])}")
            print(_block("by thoughts", agent["thoughts"]))
            print(_block("alone", agent["alone"]))


def _short(text: str, limit: int = 90) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _block(label: str, text: str) -> str:
    """A label, and the text beside it.

    >>> print(_block("alone", "a\\nb"))
      alone        a
                   b
    """
    return f"  {label:<13}" + textwrap.indent(text.strip() or "(nothing)", " " * 15).lstrip()
