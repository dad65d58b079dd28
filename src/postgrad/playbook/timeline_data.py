"""What a page about a log of a playbook shows: a step for each delta, the state of bullets after it, and curves over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postgrad.engines.chat.tokens import estimate_tokens
from postgrad.playbook.book import (
    Add,
    Bullet,
    Delta,
    Mark,
    Merge,
    Playbook,
    Retire,
    Rollback,
    SetTrust,
    Tag,
    Update,
    fold,
)
from postgrad.playbook.view import line

WINDOW = 20
"""Samples over which accuracy is averaged."""
_FEWEST = 5
"""Samples below which no accuracy is told."""


@dataclass(frozen=True)
class Point:
    """After a delta.

    Attributes:
        bullets, waiting: how many are there, and how many of them in quarantine.
        tokens: of those that are shown to the Generator.
        accuracy: share of right first answers among the last `WINDOW` samples; None where few were judged.
        correct: of this delta's sample; None where it has none.
    """

    bullets: int
    waiting: int
    tokens: int
    accuracy: float | None
    correct: float | None


@dataclass(frozen=True)
class History:
    """A log, ready to be drawn.

    Attributes:
        steps: JSON of each delta: when, source, sample, what was done and refused, and `state`: [id, bullet or null] of the
            bullets that are other after it.
        points: before the first delta and after each.
        marks: (name, version, score).
        rollbacks: (delta, version that it goes back to).
        playbook: at the end.
    """

    steps: Sequence[Mapping[str, Any]]
    points: Sequence[Point]
    marks: Sequence[tuple[str, int, float | None]]
    rollbacks: Sequence[tuple[int, int]]
    playbook: Playbook


def history(deltas: Sequence[Delta], count: Callable[[str], int] = estimate_tokens) -> History:
    """All steps of a log.

    Args:
        deltas: of the log.
        count: tokens of a text.
    """
    book, steps, points = Playbook(), list[Mapping[str, Any]](), [Point(0, 0, 0, None, None)]
    marks: list[tuple[str, int, float | None]] = []
    rollbacks: list[tuple[int, int]] = []
    tokens: dict[str, int] = {}
    judged: list[float] = []
    total = waiting = 0

    def tokens_of(bullet: Bullet) -> int:
        if bullet.trust != "trusted":
            return 0
        text = line(bullet) + "\n"
        if text not in tokens:
            tokens[text] = count(text)
        return tokens[text]

    for number, delta in enumerate(deltas, start=1):
        back = [one.version for one in delta.operations if isinstance(one, Rollback)]
        before, book = book, fold(deltas[:number]) if back else fold([delta], book)
        changed = _changed(before, book)
        for old, new in changed:
            total += (tokens_of(new) if new else 0) - (tokens_of(old) if old else 0)
            waiting += _waits(new) - _waits(old)
        steps.append(_step(number, delta, before, book, changed))
        marks += [(one.name, number, one.score) for one in delta.operations if isinstance(one, Mark)]
        rollbacks += [(number, version) for version in back]
        correct = was_correct(delta.sample)
        if correct is not None:
            judged.append(correct)
        window = judged[-WINDOW:]
        accuracy = sum(window) / len(window) if len(window) >= _FEWEST else None
        points.append(Point(len(book), waiting, total, accuracy, correct))
    return History(steps, points, marks, rollbacks, book)


def was_correct(sample: Mapping[str, Any] | None) -> float | None:
    """Whether a sample's first answer was right, or its score; one that got no reply counts as wrong, one not judged not at all.

    >>> was_correct({"correct": True}), was_correct({"score": 0.5}), was_correct({"number": 3}), was_correct(None)
    (1.0, 0.5, None, None)
    >>> was_correct({"correct": False, "judged": False}), was_correct({"correct": False, "judged": False, "failed": True})
    (None, 0.0)
    """
    found = sample or {}
    if found.get("failed") is True:
        return 0.0
    if found.get("judged") is False:
        return None
    for name in ("correct", "score"):
        value = found.get(name)
        if isinstance(value, (bool, int, float)):
            return min(max(float(value), 0.0), 1.0)
    return None


def _waits(bullet: Bullet | None) -> int:
    return int(bullet is not None and bullet.trust == "quarantined")


def _changed(before: Playbook, after: Playbook) -> list[tuple[Bullet | None, Bullet | None]]:
    """(old, new) of the bullets that are not the same objects; in the order of the later playbook, then those that are gone."""
    old, new = before.bullets, after.bullets
    found: list[tuple[Bullet | None, Bullet | None]] = [
        (old.get(id), bullet)
        for id, bullet in new.items()
        if old.get(id) is not bullet and old.get(id) != bullet
    ]
    return found + [(bullet, None) for id, bullet in old.items() if id not in new]


def _step(
    number: int,
    delta: Delta,
    before: Playbook,
    after: Playbook,
    changed: Sequence[tuple[Bullet | None, Bullet | None]],
) -> dict[str, Any]:
    row: dict[str, Any] = {"n": number, "at": delta.at, "source": delta.source, "size": len(after)}
    if delta.sample is not None:
        row["sample"] = sample_words(delta.sample)
        row["correct"] = was_correct(delta.sample)
    row["done"] = _done(delta, before, after, changed)
    if delta.refused:
        row["refused"] = list(delta.refused)
    row["state"] = [[new.id, _row(new)] for _, new in changed if new is not None]
    row["state"] += [[old.id, None] for old, new in changed if old is not None and new is None]
    return row


def _row(bullet: Bullet) -> list[Any]:
    """[section, text, helpful, harmful, source, quarantined, added, changed]: short, as a log has many."""
    return [
        bullet.section,
        bullet.text,
        bullet.helpful,
        bullet.harmful,
        bullet.source,
        int(bullet.trust == "quarantined"),
        bullet.added,
        bullet.changed,
    ]


def _done(
    delta: Delta,
    before: Playbook,
    after: Playbook,
    changed: Sequence[tuple[Bullet | None, Bullet | None]],
) -> list[dict[str, Any]]:
    """The operations of a delta in the words of the page; tags of one bullet together."""
    found: list[dict[str, Any]] = []
    fresh = [new for old, new in changed if old is None and new is not None]
    # A bullet that the same delta adds and takes away again is in neither playbook.
    named = {new.text: new for new in fresh}
    tags: dict[str, list[int]] = {}
    for one in delta.operations:
        if isinstance(one, Add):
            bullet = named.get(one.text)
            found.append(
                {"do": "added", "id": bullet.id if bullet else one.id or "", "section": one.section, "text": one.text,
                 "waits": one.trust == "quarantined"}
            )  # fmt: skip
        elif isinstance(one, Update):
            found.append({"do": "changed", "id": one.id, "was": _text(before, one.id), "text": one.text})
        elif isinstance(one, Merge):
            found.append(
                {"do": "merged", "id": _kept(one, after), "ids": list(one.ids),
                 "was": [_text(before, id) for id in one.ids], "text": one.text or _text(before, _kept(one, after))}
            )  # fmt: skip
        elif isinstance(one, Retire):
            found.append({"do": "retired", "id": one.id, "was": _text(before, one.id), "why": one.reason})
        elif isinstance(one, Tag):
            counts = tags.setdefault(one.id, [0, 0])
            counts[0] += one.helpful
            counts[1] += one.harmful
        elif isinstance(one, SetTrust):
            found.append({"do": one.trust, "id": one.id, "text": _text(before, one.id)})
        elif isinstance(one, Mark):
            found.append({"do": "mark", "name": one.name, "score": one.score})
        else:
            added = sum(old is None for old, _ in changed)
            removed = sum(new is None for _, new in changed)
            found.append(
                {
                    "do": "rollback",
                    "to": one.version,
                    "counts": [added, removed, len(changed) - added - removed],
                }
            )
    if tags:
        found.append({"do": "tagged", "tags": [[id, *counts] for id, counts in tags.items()]})
    return found


def _kept(merge: Merge, after: Playbook) -> str:
    return next((id for id in merge.ids if id in after.bullets), merge.ids[0])


def _text(book: Playbook, id: str) -> str:
    bullet = book.bullets.get(id)
    return bullet.text if bullet else ""


_UNTOLD = ("index", "number", "prompt", "correct", "score", "from_version", "context_tokens")


def sample_words(sample: Mapping[str, Any]) -> str:
    """What is remembered of a sample besides its number and whether it was right, on a line; of a validation, what it found.

    >>> sample_words({"number": 3, "correct": False, "correct_after": True, "attempts": 2, "problems": 0})
    'attempts\xa02, then\xa0right'
    >>> sample_words({"validation": {"after": 40, "accuracy": 0.75}})
    'held-out\xa0accuracy\xa075.0\xa0%'
    """
    found = sample.get("validation")
    if isinstance(found, Mapping) and isinstance(found.get("accuracy"), (int, float)):
        return f"held-out\xa0accuracy\xa0{100 * found['accuracy']:.1f}\xa0%"
    parts: list[str] = []
    for name, value in sample.items():
        if (
            name in _UNTOLD
            or not value
            or isinstance(value, bool)
            or not isinstance(value, (int, float, str))
        ):
            continue
        words = f"{value:.4g}" if isinstance(value, float) else str(value)
        if len(words) <= 60:
            parts.append(f"{name.replace('_', ' ')}\xa0{words}")
    if sample.get("failed") is True:
        parts.append("no\xa0reply")
    if sample.get("correct_after") is True and sample.get("correct") is False:
        parts.append("then\xa0right")
    return ", ".join(parts[:6])
