"""Two playbooks become one: what another one holds, as operations to append to the log of mine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from postgrad.playbook.book import (
    MAX_COUNT,
    ROLLED_BACK,
    SECTIONS,
    Add,
    Bullet,
    Operation,
    Playbook,
    Tag,
    Trust,
)
from postgrad.playbook.clean import RefusalError, clean_section, clean_text
from postgrad.playbook.similarity import normalise


class Combined(NamedTuple):
    """What `combine` gives.

    Attributes:
        operations: for one delta.
        refused: bullets that may not come in, and why.
    """

    operations: Sequence[Operation]
    refused: Sequence[str]


def combine(
    mine: Playbook,
    theirs: Playbook,
    *,
    source: str,
    trust: Trust = "quarantined",
    counters: bool = False,
) -> Combined:
    """The operations that bring `theirs` into `mine`. Doing so twice brings nothing new.

    Bullets come in their order, cleaned, with new ids, their own section and counters, and their old id in the source. A copy
    (equal but for case, space and final punctuation) does not come: of a bullet of mine, of one that was merged into another,
    of one that I have retired, or of an earlier one of theirs. My bullets keep their trust and text.

    Args:
        mine, theirs: the playbooks; neither is changed.
        source: of the new bullets, in words, such as a file's name.
        trust: of the new bullets; a bullet that is quarantined there stays so.
        counters: add a copy's counters to those of my bullet. Only right where the two were not counted on the same samples,
            and not idempotent.

    >>> from postgrad.playbook.book import Delta, fold
    >>> mine = fold([Delta((Add("OTHERS", "Be brief."),))])
    >>> theirs = fold([Delta((Add("OTHERS", "be brief"), Add("OTHERS", "Check units.", helpful=2)))])
    >>> combine(mine, theirs, source="team.jsonl").operations[0].source
    'team.jsonl misc-00002'
    """
    here = {normalise(bullet.text): bullet.id for bullet in reversed(list(mine.bullets.values()))}
    gone = {
        normalise(old.bullet.text): mine.resolve(id)
        for id, old in mine.retired.items()
        if old.reason != ROLLED_BACK
    }
    new: dict[str, Add] = {}
    tags: list[Tag] = []
    refused: list[str] = []
    known = tuple({**SECTIONS, **{bullet.section: "" for bullet in mine.bullets.values()}})
    for bullet in theirs.bullets.values():
        try:
            add = _incoming(bullet, f"{source} {bullet.id}", trust, known)
        except RefusalError as refusal:
            refused.append(f"{source} {bullet.id}: {refusal}")
            continue
        form = normalise(add.text)
        if form in here or form in gone:
            id = here.get(form) or gone[form]
            if counters and id and (bullet.helpful or bullet.harmful):
                tags.append(Tag(id, bullet.helpful, bullet.harmful))
        elif form not in new:
            new[form] = add
        elif counters:
            helpful, harmful = new[form].helpful + bullet.helpful, new[form].harmful + bullet.harmful
            new[form] = replace(new[form], helpful=min(helpful, MAX_COUNT), harmful=min(harmful, MAX_COUNT))
    return Combined([*tags, *new.values()], refused)


def _incoming(bullet: Bullet, source: str, trust: Trust, known: tuple[str, ...]) -> Add:
    return Add(
        clean_section(bullet.section, known),
        clean_text(bullet.text),
        None,
        bullet.helpful,
        bullet.harmful,
        trust if bullet.trust == "trusted" else "quarantined",
        source,
    )
