"""Texts of a report whose words are shaded by a number: blue above zero, red and dotted below. The page escapes all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_PIECES = 240
MAX_CONTEXT = 240
_LEVELS = 5


class Word(NamedTuple):
    """A piece of a shaded text.

    Attributes:
        text: as it is.
        shade: CSS class: `p1` to `p5` above zero, `n1` to `n5` below, empty where the number is next to nothing.
        hint: the number, shown on hover.
    """

    text: str
    shade: str
    hint: str


@dataclass(frozen=True)
class Words:
    """A shaded text with a line about it.

    Attributes:
        name: of the text.
        facts: about it, after the name.
        share: −1 to 1, drawn as a bar; 0 = none.
        context: what stands before it, unshaded.
        words: its pieces.
    """

    name: str
    facts: str
    share: float
    context: str
    words: Sequence[Word]


@dataclass(frozen=True)
class Heatmap:
    """A section of a report: one text, and those that are compared with it.

    Attributes:
        title: above it.
        scale: what red and what blue mean.
        head: the text in question.
        groups: title and texts.
        note: a sentence below it.
    """

    title: str
    scale: tuple[str, str]
    head: Words
    groups: Sequence[tuple[str, Sequence[Words]]]
    note: str = ""


def shade(value: float, largest: float) -> str:
    """The class of a number, in five steps up to the largest one; less than a tenth of a step up is no shade.

    >>> shade(1.0, 1.0), shade(-0.5, 1.0), shade(0.01, 1.0), shade(0.03, 1.0), shade(0.0, 0.0)
    ('p5', 'n3', '', 'p1', '')
    """
    if largest <= 0:
        return ""
    share = abs(value) / largest
    level = min(_LEVELS, int(share * _LEVELS + 0.9))
    return f"{'p' if value > 0 else 'n'}{level}" if level else ""


def shaded(name: str, facts: str, share: float, context: str, pieces: Sequence[tuple[str, float]]) -> Words:
    """A text shaded on its own scale: its strongest piece is darkest. Of a long one the part around that piece is shown.

    >>> one = shaded("a", "", 0.5, "so ", [("it", 0.2), (" was", -0.4)])
    >>> [word.shade for word in one.words], one.words[2].hint
    (['p3', '', 'n5'], '−0.4')
    """
    largest = max((abs(score) for _, score in pieces), default=0.0)
    first = 0
    if len(pieces) > MAX_PIECES:
        strongest = max(range(len(pieces)), key=lambda place: abs(pieces[place][1]))
        first = min(max(0, strongest - MAX_PIECES // 2), len(pieces) - MAX_PIECES)
    shown: list[Word] = []
    for text, score in pieces[first : first + MAX_PIECES]:
        word = text.lstrip(" ") or text
        if len(word) < len(text):  # words that touch would be one patch of colour
            shown.append(Word(text[: -len(word)], "", ""))
        shown.append(Word(word, shade(score, largest), f"{score:.3g}".replace("-", "−")))
    if first:
        context = "… "
    elif len(context) > MAX_CONTEXT:
        context = f"…{context[-MAX_CONTEXT:]}"
    if first + MAX_PIECES < len(pieces):
        shown.append(Word(" …", "", ""))
    return Words(name, facts, share, context, shown)
