"""Playbooks as text, in the published format of ACE (2510.04618):

## FORMULAS & CALCULATIONS
[calc-00003] helpful=8 harmful=0 :: NPV = …
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from postgrad.playbook.book import OTHERS, SECTIONS, Add, Bullet, is_old_id
from postgrad.playbook.clean import RefusalError, clean_section, clean_text

_BULLET = re.compile(
    r"(?:[-*]\s+)?\[([^\]\s]+)\]\s*helpful\s*=\s*([0-9]{1,9})\s*harmful\s*=\s*([0-9]{1,9})\s*::\s?(.*)"
)
_HEADING = re.compile(r"(?:#(?=\s)|#{2,6})(.*)")
_SHORT_ID = re.compile(r"([A-Za-z][A-Za-z0-9_]{0,31})-([0-9]{1,9})")


def format_bullet(bullet: Bullet) -> str:
    """One line.

    >>> format_bullet(Bullet("calc-00003", "FORMULAS & CALCULATIONS", "NPV = …", 8))
    '[calc-00003] helpful=8 harmful=0 :: NPV = …'
    """
    return f"[{bullet.id}] helpful={bullet.helpful} harmful={bullet.harmful} :: {bullet.text}"


def format_text(bullets: Iterable[Bullet]) -> str:
    """A whole playbook: the paper's sections in their order, then others in order of appearance; empty ones are left out."""
    by_section: dict[str, list[Bullet]] = {}
    for bullet in bullets:
        by_section.setdefault(bullet.section, []).append(bullet)
    order = [name for name in SECTIONS if name in by_section]
    order += [name for name in by_section if name not in SECTIONS]
    return "\n".join("\n".join([f"## {name}", *map(format_bullet, by_section[name]), ""]) for name in order)


@dataclass(frozen=True)
class Parsed:
    """What a text holds.

    Attributes:
        adds: a bullet each, with ids and counters.
        problems: lines that could not be taken, and why: "line 7: …".
    """

    adds: Sequence[Add]
    problems: Sequence[str]


def parse_text(text: str) -> Parsed:
    """Reads the published format. A line that is neither heading nor bullet is told, never taken for a part of something.

    An id is brought into form (`Calc-3` → `calc-00003`); one that is taken, or cannot be one, is replaced by a new one; both are
    told. Bullets without a heading before them are in OTHERS.

    >>> parse_text("## OTHERS\\n[misc-00001] helpful=1 harmful=0 :: Be brief.\\n").adds[0].text
    'Be brief.'
    """
    adds: list[Add] = []
    problems: list[str] = []
    section = OTHERS
    seen: set[str] = set()
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        line = line.strip()
        if not line:
            continue
        try:
            if heading := _HEADING.fullmatch(line):
                section = OTHERS
                section = clean_section(heading[1], tuple(SECTIONS))
            elif found := _BULLET.fullmatch(line):
                content = clean_text(found[4])
                id, problem = _read_id(found[1], seen)
                if problem:
                    problems.append(f"line {number}: {problem}")
                adds.append(Add(section, content, id, int(found[2]), int(found[3])))
            else:
                problems.append(f"line {number}: neither a heading nor a bullet: {line[:60]!r}")
        except RefusalError as refusal:
            problems.append(f"line {number}: {refusal}")
    # Those with ids first: a new id must not take one that comes later.
    return Parsed([*(a for a in adds if a.id), *(a for a in adds if not a.id)], problems)


def _read_id(written: str, seen: set[str]) -> tuple[str | None, str]:
    """(id or None, what was wrong with it); an id is seen once."""
    short = _SHORT_ID.fullmatch(written)
    id = f"{short[1].lower()}-{int(short[2]):05d}" if short else written
    if id in seen:
        return None, f"the id {written[:40]} is taken; it gets a new one"
    if not is_old_id(id):
        return None, f"the id {written[:40]} is no id; it gets a new one"
    seen.add(id)
    return id, "" if id == written else f"the id {written} is read as {id}"
