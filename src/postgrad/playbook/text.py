"""Playbooks as text, in the published format of ACE (2510.04618):

## FORMULAS & CALCULATIONS
[calc-00003] helpful=8 harmful=0 :: NPV = …
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from postgrad.playbook.book import OTHERS, SECTIONS, Add, Bullet, is_id
from postgrad.playbook.clean import RefusalError, clean_section, clean_text

_BULLET = re.compile(
    r"\s*(?:[-*]\s+)?\[([^\]\s]+)\]\s*helpful\s*=\s*(\d{1,9})\s*harmful\s*=\s*(\d{1,9})\s*::\s?(.*)"
)
_HEADING = re.compile(r"\s*#{1,6}\s*(\S.*?)\s*#*\s*")


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

    A bullet whose id is taken or cannot be one gets a new id (and is told).

    >>> parse_text("## OTHERS\\n[misc-00001] helpful=1 harmful=0 :: Be brief.\\n").adds[0].text
    'Be brief.'
    """
    adds: list[Add] = []
    problems: list[str] = []
    section = OTHERS
    seen: set[str] = set()
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        if not line.strip():
            continue
        heading = _HEADING.fullmatch(line)
        found = _BULLET.fullmatch(line)
        try:
            if heading:
                section = clean_section(heading[1], tuple(SECTIONS))
            elif found:
                id: str | None = found[1]
                if not is_id(found[1]) or found[1] in seen:
                    problems.append(
                        f"line {number}: the id {found[1]} is {'taken' if found[1] in seen else 'no id'}; it gets a new one"
                    )
                    id = None
                content = clean_text(found[4])
                seen.add(found[1])
                adds.append(Add(section, content, id, int(found[2]), int(found[3])))
            else:
                problems.append(f"line {number}: neither a heading nor a bullet: {line.strip()[:60]!r}")
        except RefusalError as refusal:
            problems.append(f"line {number}: {refusal}")
    # Those with ids first: a new id must not take one that comes later.
    return Parsed([*(a for a in adds if a.id), *(a for a in adds if not a.id)], problems)
