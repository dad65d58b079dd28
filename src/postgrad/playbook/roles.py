"""The three roles of ACE (2510.04618, section 3): what each reads, and what it has to return.

Prompts are laid out for prefix caches: what never changes first, then the playbook, which grows at its end (`view.py`), and in a
turn of its own what differs from call to call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from postgrad.core.types import Message
from postgrad.playbook.book import SECTIONS
from postgrad.playbook.clean import redact

MAX_TRACE_CHARACTERS = 24_000
"""Of a trace that a Reflector reads; of a longer one the beginning and the end."""


Id = Annotated[str, AfterValidator(lambda id: id.strip(" []"))]
"""Of a bullet, as it stands in a prompt or without the brackets."""


class _Returned(BaseModel):
    """Numbers are taken where text is asked for: {"final_answer": 42}."""

    model_config = ConfigDict(coerce_numbers_to_str=True)


class GeneratorReply(_Returned):
    """What a Generator returns."""

    reasoning: str = Field(default="", description="step by step, with the playbook's advice applied")
    bullet_ids: list[Id] = Field(
        default_factory=list, description="ids of the playbook's lines that were used"
    )
    final_answer: str = Field(description="the answer alone, as short as the task allows")


class BulletTag(_Returned):
    """A Reflector's judgement of a bullet."""

    id: Id
    tag: Literal["helpful", "harmful", "neutral"]


class Reflection(_Returned):
    """What a Reflector returns."""

    reasoning: str = ""
    error_identification: str = Field(default="", description="what exactly went wrong, if anything")
    root_cause_analysis: str = Field(default="", description="why it went wrong")
    correct_approach: str = Field(default="", description="what should be done instead")
    key_insight: str = Field(default="", description="what to remember for other tasks of this kind")
    bullet_tags: list[BulletTag] = Field(default_factory=list)


class RequestedOperation(_Returned):
    """A change that a Curator asks for."""

    type: Literal["ADD", "UPDATE", "MERGE", "RETIRE"]
    section: str = Field(default="", description="of ADD")
    content: str = Field(default="", description="the text, of ADD, UPDATE and MERGE")
    id: Id = Field(default="", description="of UPDATE and RETIRE")
    ids: list[Id] = Field(default_factory=list, description="of MERGE: two or more")
    reason: str = Field(default="", description="of RETIRE")


class Curation(_Returned):
    """What a Curator returns."""

    reasoning: str = ""
    operations: list[RequestedOperation] = Field(default_factory=list)


Instructions = Mapping[str, str]
"""By role: "generator", "reflector", "curator"."""


def instructions(role: str) -> str:
    """What a role is told by default, from `prompts/ROLE.md`."""
    text = files("postgrad.playbook").joinpath("prompts", f"{role}.md").read_text(encoding="utf-8")
    sections = "; ".join(f"{name} (ids begin with {slug})" for name, slug in SECTIONS.items())
    return text.replace("{sections}", sections).strip()


def generator_messages(
    told: str,
    playbook: str,
    question: str,
    *,
    retrieved: str = "",
    reflection: str = "",
    earlier_answer: str = "",
) -> tuple[Message, ...]:
    """What a Generator reads: instructions and playbook, then the task, then what was found about an earlier answer to it."""
    parts = [f"Further lines of the playbook that may matter here:\n{retrieved}"] if retrieved else []
    parts.append(f"Task:\n{question}")
    if reflection:
        parts.append(
            f"An earlier answer was wrong: {earlier_answer}\nWhat was found about it:\n{reflection}\nTry again."
        )
    return (
        {"role": "system", "content": f"{told}\n\nPlaybook:\n{playbook}"},
        {"role": "user", "content": "\n\n".join(parts)},
    )


def reflector_messages(
    told: str,
    question: str,
    trace: str,
    prediction: str,
    used: Mapping[str, str],
    *,
    truth: str | None,
    feedback: str,
    correct: bool | None,
    earlier: str = "",
) -> tuple[Message, ...]:
    """What a Reflector reads.

    Args:
        told: the role's instructions.
        question: the task.
        trace: all that the Generator wrote.
        prediction: its answer.
        used: id → line of the bullets that it used.
        truth: the right answer, or None where it is not to be used.
        feedback: what the environment said.
        correct: whether the answer was right; None = nobody knows.
        earlier: the reflection before this one on the same task.
    """
    verdict = {True: "right", False: "wrong", None: "not judged"}[correct]
    parts = [
        f"Task:\n{_data(question)}",
        f"Work:\n{_data(shorten(trace))}",
        f"Answer ({verdict}):\n{_data(prediction)}",
    ]
    if truth is not None:
        parts.append(f"Right answer:\n{_data(truth)}")
    if feedback:
        parts.append(f"Feedback:\n{_data(shorten(feedback, 4000))}")
    parts.append("Lines of the playbook that were used:\n" + ("\n".join(used.values()) or "(none)"))
    if earlier:
        parts.append(f"The reflection before this one did not help enough:\n{_data(earlier)}")
    return ({"role": "system", "content": told}, {"role": "user", "content": "\n\n".join(parts)})


def curator_messages(
    told: str,
    playbook: str,
    question: str,
    reflection: str,
    *,
    tokens: int,
    budget_tokens: int,
    retrieved: Sequence[str] = (),
    similar: Sequence[tuple[str, str]] = (),
    quarantined: Sequence[str] = (),
    context: str = "",
) -> tuple[Message, ...]:
    """What a Curator reads: instructions and playbook, then the reflection, pairs that may say the same, and the budget."""
    parts = [f"Task:\n{_data(shorten(question, 4000))}"]
    if context:
        parts.append(f"About these tasks:\n{context}")
    parts.append(f"Reflection:\n{_data(reflection)}")
    if retrieved:
        parts.append("Further lines of the playbook, which fit this task:\n" + "\n".join(retrieved))
    if quarantined:
        parts.append(
            "Proposed earlier and not yet in the playbook (do not add again):\n" + "\n".join(quarantined)
        )
    if similar:
        pairs = "\n".join(f"- {first} and {second}" for first, second in similar)
        parts.append(f"These lines look alike; MERGE those that say the same, leave the others:\n{pairs}")
    parts.append(f"The playbook has {tokens} of at most {budget_tokens} tokens.")
    return (
        {"role": "system", "content": f"{told}\n\nPlaybook:\n{playbook}"},
        {"role": "user", "content": "\n\n".join(parts)},
    )


def _data(text: str) -> str:
    """Between marks that the text cannot hold."""
    inner = re.sub(r"</?\s*data\s*>", "(data)", text, flags=re.IGNORECASE)
    return f"<data>\n{inner}\n</data>"


def shorten(text: str, limit: int = MAX_TRACE_CHARACTERS) -> str:
    """The beginning and the end of a long text.

    >>> shorten("abcdefgh", 4)
    'ab\\n[… 4 characters left out …]\\ngh'
    """
    if len(text) <= limit:
        return text
    head = limit // 2
    return f"{text[:head]}\n[… {len(text) - limit:,} characters left out …]\n{text[-(limit - head) :]}"


def reflection_text(reflection: Reflection) -> str:
    """A reflection for the next reader: the fields that say something."""
    found = reflection.model_dump(exclude={"bullet_tags", "reasoning"})
    return redact(json.dumps({key: value for key, value in found.items() if value}, ensure_ascii=False))


_CITED = re.compile(r"\[([a-z][a-z0-9_]{0,31}-\d{5,12})\]")


def cited_ids(text: str, known: Iterable[str]) -> list[str]:
    """Ids in brackets that a text cites, of those that are known, each once.

    >>> cited_ids("By [calc-00003] and [calc-00003], not [calc-99999].", {"calc-00003": 0})
    ['calc-00003']
    """
    there = set(known)
    return [id for id in dict.fromkeys(_CITED.findall(text)) if id in there]
