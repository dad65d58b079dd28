"""From what a Reflector and a Curator ask for to what is done: the deterministic merge of ACE (2510.04618, section 3.1).

A language model proposes; what it may not do is decided here: forge, overwrite unseen, copy, take out what has helped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from postgrad.playbook.book import SECTIONS, Add, Bullet, Merge, Operation, Playbook, Retire, Tag, Update
from postgrad.playbook.clean import RefusalError, clean_section, clean_text
from postgrad.playbook.config import LearnConfig
from postgrad.playbook.dedup import Index
from postgrad.playbook.roles import RequestedOperation
from postgrad.playbook.similarity import conflict, normalise
from postgrad.playbook.view import line, worth

_ROOM = 0.9
"""Share of the budget that is left in use when bullets are retired to make room, so that this is rare."""
MAX_PROPOSALS = 2
"""A pair that looks alike is shown to so many Curators; then it stays as it is."""
PAIRS_PER_SAMPLE = 5


class Decision(NamedTuple):
    """What a sample changes, and what was asked for and not done."""

    operations: list[Operation]
    refused: list[str]


def decide(
    book: Playbook,
    index: Index,
    tags: Mapping[str, str],
    requested: Sequence[RequestedOperation],
    config: LearnConfig,
) -> Decision:
    """Operations that can be applied to `book`, from tags (id → helpful, harmful, neutral) and requests of a Curator.

    Ids of bullets that were merged meanwhile stand for what they were merged into.
    """
    found = _Deciding(book, index, config)
    for id, tag in tags.items():
        found.tag(id, tag)
    for request in requested:
        try:
            found.change(request)
        except RefusalError as refusal:
            found.refused.append(f"{request.type}: {refusal}")
    return Decision(found.operations, found.refused)


class _Deciding:
    """One decision in the making."""

    def __init__(self, book: Playbook, index: Index, config: LearnConfig) -> None:
        self.book, self.index, self.config = book, index, config
        self.operations: list[Operation] = []
        self.refused: list[str] = []
        self.num_adds = 0
        self.new: set[str] = set()
        self.gone: set[str] = set()
        self.tagged: dict[str, str] = {}

    def tag(self, id: str, tag: str) -> None:
        there = self.book.resolve(id)
        if there is None:
            self.refused.append(f"tag: no bullet {id[:40]!r}")
        elif tag in ("helpful", "harmful") and there not in self.tagged:
            self.tagged[there] = tag
            self.operations.append(Tag(there, **{tag: 1}))

    def change(self, request: RequestedOperation) -> None:
        if request.type == "ADD":
            self._add(request)
            return
        if self.config.quarantine != "off":
            raise RefusalError("only additions while there is a quarantine")
        if request.type == "UPDATE":
            bullet = self._bullet(request.id)
            text = self._text(request.content)
            if normalise(text) == normalise(bullet.text):
                raise RefusalError(f"{bullet.id} says this already")
            self._refuse_copy(text)
            self.new.add(normalise(text))
            self.operations.append(Update(bullet.id, text))
        elif request.type == "MERGE":
            self._merge(request)
        else:
            bullet = self._bullet(request.id)
            helped = bullet.helpful + (self.tagged.get(bullet.id) == "helpful")
            harmed = bullet.harmful + (self.tagged.get(bullet.id) == "harmful")
            if helped > harmed:
                raise RefusalError(f"{bullet.id} has helped more often ({helped}) than harmed ({harmed})")
            self.gone.add(bullet.id)
            self.operations.append(Retire(bullet.id, clean_text(request.reason or "no reason given")[:200]))

    def _add(self, request: RequestedOperation) -> None:
        if self.num_adds >= self.config.max_adds:
            raise RefusalError(f"more than {self.config.max_adds} bullets from one sample")
        section = clean_section(request.section or "OTHERS", tuple(SECTIONS))
        text = self._text(request.content)
        if self.config.refine != "off":
            self._refuse_copy(text)
        self.num_adds += 1
        self.new.add(normalise(text))
        trust = "trusted" if self.config.quarantine == "off" else "quarantined"
        self.operations.append(Add(section, text, trust=trust))

    def _merge(self, request: RequestedOperation) -> None:
        bullets = [self._bullet(id) for id in request.ids]
        bullets = list({bullet.id: bullet for bullet in bullets}.values())
        if len(bullets) < 2:
            raise RefusalError("fewer than two bullets to merge")
        for position, first in enumerate(bullets):
            for second in bullets[position + 1 :]:
                reason = conflict(first.text, second.text)
                if reason:
                    raise RefusalError(f"{first.id} and {second.id} do not say the same ({reason})")
        text = self._text(request.content) if request.content else None
        self.gone.update(bullet.id for bullet in bullets)
        self.operations.append(Merge(tuple(bullet.id for bullet in bullets), text))

    def _bullet(self, id: str) -> Bullet:
        there = self.book.resolve(id)
        if there is None or there in self.gone:
            raise RefusalError(f"no bullet {id[:40]!r}")
        return self.book.bullets[there]

    def _text(self, content: str) -> str:
        return clean_text(content, self.config.max_characters)

    def _refuse_copy(self, text: str) -> None:
        copy = self.index.exact(text)
        if copy is not None and copy not in self.gone:
            raise RefusalError(f"a copy of {copy}")
        if normalise(text) in self.new:
            raise RefusalError("the same twice")


def make_room(book: Playbook, budget_tokens: int, count: Callable[[str], int]) -> list[Operation]:
    """Retirements of the least worthy bullets, once the lines of all exceed the budget; nothing before."""
    tokens = {bullet.id: count(line(bullet) + "\n") for bullet in book.bullets.values()}
    total = sum(tokens.values())
    if total <= budget_tokens:
        return []
    found: list[Operation] = []
    for bullet in sorted(book.bullets.values(), key=worth):
        if total <= _ROOM * budget_tokens:
            break
        total -= tokens[bullet.id]
        found.append(Retire(bullet.id, "budget"))
    return found


class Refiner:
    """Which bullets look alike, kept up with the playbook: each text is embedded once.

    Args:
        index: empty.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._texts: dict[str, str] = {}
        self._pairs: dict[tuple[str, str], float] = {}
        self._shown: dict[tuple[str, str], int] = {}

    def keep_up(self, book: Playbook) -> None:
        """Takes in what has changed since the last call."""
        texts = {bullet.id: bullet.text for bullet in book.bullets.values()}
        stale = {id for id, text in self._texts.items() if texts.get(id) != text}
        for id in stale:
            self.index.remove(id)
        if stale:
            self._pairs = {pair: cosine for pair, cosine in self._pairs.items() if not stale & set(pair)}
        for id, text in texts.items():
            if self._texts.get(id) == text:
                continue
            for found in self.index.propose(text, k=len(self.index)):
                if found.kind == "candidate":
                    self._pairs[found.first, id] = round(found.cosine, 4)
            self.index.add(id, text)
        self._texts = texts

    def take_pairs(self) -> list[tuple[str, str]]:
        """The pairs that look most alike and were not shown often enough yet; they count as shown once more."""
        ranked = sorted(self._pairs, key=lambda pair: (-self._pairs[pair], pair))
        chosen = [pair for pair in ranked if self._shown.get(pair, 0) < MAX_PROPOSALS][:PAIRS_PER_SAMPLE]
        for pair in chosen:
            self._shown[pair] = self._shown.get(pair, 0) + 1
        return chosen
