"""From what a Reflector and a Curator ask for to what is done: the deterministic merge of ACE (2510.04618, section 3.1).

A language model proposes; what it may not do is decided here: forge, overwrite unseen, copy, take out what has helped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from postgrad.playbook.book import (
    OTHERS,
    SECTIONS,
    Add,
    Bullet,
    Merge,
    Operation,
    Playbook,
    Retire,
    Tag,
    Update,
    number_of,
)
from postgrad.playbook.clean import RefusalError, clean_section, clean_text, redact
from postgrad.playbook.config import LearnConfig
from postgrad.playbook.dedup import Index
from postgrad.playbook.roles import RequestedOperation
from postgrad.playbook.similarity import conflict, normalise
from postgrad.playbook.view import CountTokens, line, worth

_ROOM = 0.9
"""Share of the budget that is left in use when bullets are retired to make room, so that this is rare."""
MAX_PROPOSALS = 2
"""A pair that looks alike is shown to so many Curators; then it stays as it is."""
PAIRS_PER_SAMPLE = 5
MAX_REQUESTS = 50
"""Operations of one Curator; what it asks for beyond them is not looked at."""


class Decision(NamedTuple):
    """What a sample changes, and what was asked for and not done."""

    operations: list[Operation]
    refused: list[str]


def decide(
    book: Playbook,
    seen: Playbook,
    index: Index,
    tags: Mapping[str, str],
    requested: Sequence[RequestedOperation],
    config: LearnConfig,
    count: CountTokens,
) -> Decision:
    """Operations that can be applied to `book`, from tags (id → helpful, harmful, neutral) and requests of a Curator.

    Ids of bullets that were merged meanwhile stand for what they were merged into, but a text that the Curator has not seen is
    not overwritten, and no bullet is named by two operations.

    Args:
        book: as it is now.
        seen: as the sample started from it.
        index: of the texts in `book`.
        count: tokens of a text.
    """
    found = _Deciding(book, seen, index, config, count)
    for id, tag in tags.items():
        found.tag(id, tag)
    for request in requested[:MAX_REQUESTS]:
        try:
            found.change(request)
        except RefusalError as refusal:
            found.refused.append(redact(f"{request.type}: {refusal}"))
    if len(requested) > MAX_REQUESTS:
        found.refused.append(f"{len(requested) - MAX_REQUESTS} more operations than {MAX_REQUESTS}")
    return Decision(found.operations, found.refused)


class _Deciding:
    """One decision in the making."""

    def __init__(
        self, book: Playbook, seen: Playbook, index: Index, config: LearnConfig, count: CountTokens
    ) -> None:
        self.book, self.seen, self.index, self.config, self.count = book, seen, index, config, count
        self.operations: list[Operation] = []
        self.refused: list[str] = []
        self.num_adds = 0
        self.texts: set[str] = set()
        """What bullets will say after the operations so far."""
        self.named: set[str] = set()
        """Ids in the operations so far."""
        self.tagged: dict[str, str] = {}

    def tag(self, id: str, tag: str) -> None:
        there = self.book.resolve(id)
        if there is None:
            self.refused.append(redact(f"tag: no bullet {id[:40]!r}"))
        elif tag in ("helpful", "harmful") and there not in self.tagged:
            self.tagged[there] = tag
            self.operations.append(Tag(there, **{tag: 1}))

    def change(self, request: RequestedOperation) -> None:
        if request.type == "ADD":
            self._add(request)
        elif self.config.quarantine != "off":
            raise RefusalError("only additions while there is a quarantine")
        elif request.type == "UPDATE":
            self._update(request)
        elif request.type == "MERGE":
            self._merge(request)
        else:
            self._retire(request)

    def _add(self, request: RequestedOperation) -> None:
        if self.num_adds >= self.config.max_adds:
            raise RefusalError(f"more than {self.config.max_adds} bullets from one sample")
        section = clean_section(request.section or OTHERS, tuple(SECTIONS))
        text = self._text(request.content)
        self._refuse_copy(text)
        self.num_adds += 1
        trust = "trusted" if self.config.quarantine == "off" else "quarantined"
        self._do(Add(section, text, trust=trust), text)

    def _update(self, request: RequestedOperation) -> None:
        bullet = self._bullet(request.id)
        text = self._text(request.content)
        if normalise(text) == normalise(bullet.text):
            raise RefusalError(f"{bullet.id} says this already")
        self._refuse_copy(text)
        self._do(Update(bullet.id, text), text, bullet)

    def _merge(self, request: RequestedOperation) -> None:
        bullets = list({bullet.id: bullet for bullet in map(self._bullet, request.ids)}.values())
        if len(bullets) < 2:
            raise RefusalError("fewer than two bullets to merge")
        text = self._text(request.content) if request.content.strip() else None
        for first, second in itertools.combinations(bullets, 2):
            reason = conflict(first.text, second.text)
            if reason:
                raise RefusalError(f"{first.id} and {second.id} do not say the same ({reason})")
        for bullet in bullets if text is not None else ():
            reason = conflict(bullet.text, text or "")
            if reason:
                raise RefusalError(f"the merged text does not say the same as {bullet.id} ({reason})")
        if text is not None:
            self._refuse_copy(text, {bullet.id for bullet in bullets})
        kept = text or min(bullets, key=lambda bullet: (bullet.added, number_of(bullet.id))).text
        self._do(Merge(tuple(bullet.id for bullet in bullets), text), kept, *bullets)

    def _retire(self, request: RequestedOperation) -> None:
        bullet = self._bullet(request.id)
        if bullet.id != request.id:
            raise RefusalError(f"{request.id} was merged into {bullet.id}")
        helped = bullet.helpful + (self.tagged.get(bullet.id) == "helpful")
        harmed = bullet.harmful + (self.tagged.get(bullet.id) == "harmful")
        if helped > harmed:
            raise RefusalError(f"{bullet.id} has helped more often ({helped}) than harmed ({harmed})")
        self._do(
            Retire(bullet.id, clean_text(request.reason or "no reason given", 10_000)[:200]), None, bullet
        )

    def _do(self, operation: Operation, text: str | None, *bullets: Bullet) -> None:
        self.operations.append(operation)
        self.named.update(bullet.id for bullet in bullets)
        if text is not None:
            self.texts.add(normalise(text))

    def _bullet(self, id: str) -> Bullet:
        there = self.book.resolve(id)
        if there is None:
            raise RefusalError(f"no bullet {id[:40]!r}")
        if there in self.named:
            raise RefusalError(f"{there} is in an operation before it")
        bullet = self.book.bullets[there]
        if bullet.changed > self.seen.version:
            raise RefusalError(f"{there} has changed since it was read")
        return bullet

    def _text(self, content: str) -> str:
        text = clean_text(content, self.config.max_characters)
        tokens, most = self.count(text), self.config.budget_tokens // 2
        if tokens > most:
            raise RefusalError(f"a bullet of {tokens} tokens; the most is half of the budget, {most}")
        return text

    def _refuse_copy(self, text: str, but: Collection[str] = ()) -> None:
        if self.config.refine == "off":
            return
        copy = self.index.exact(text)
        if copy is not None and copy not in self.named and copy not in but:
            raise RefusalError(f"a copy of {copy}")
        if normalise(text) in self.texts:
            raise RefusalError("the same twice")


def make_room(book: Playbook, budget_tokens: int, count: Callable[[str], int]) -> list[Operation]:
    """Retirements, once the lines of all exceed the budget: first of what is in quarantine, then of the least worthy."""
    tokens = {bullet.id: count(line(bullet) + "\n") for bullet in book.bullets.values()}
    total = sum(tokens.values())
    if total <= budget_tokens:
        return []
    found: list[Operation] = []
    for bullet in sorted(book.bullets.values(), key=lambda b: (b.trust == "trusted", worth(b))):
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
