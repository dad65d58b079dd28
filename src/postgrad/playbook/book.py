"""A playbook is what its deltas make of it: `fold(deltas) → Playbook`, a pure function.

A delta is what one sample (or one person) changed: it is in the log wholly or not at all. Nothing is ever taken out of the log; a
rollback is one more delta, and any earlier version is the fold of the first so many deltas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from postgrad.core.errors import DataError

Trust = Literal["trusted", "quarantined"]

SECTIONS: Mapping[str, str] = {
    "STRATEGIES & INSIGHTS": "strat",
    "FORMULAS & CALCULATIONS": "calc",
    "CODE SNIPPETS & TEMPLATES": "code",
    "COMMON MISTAKES TO AVOID": "err",
    "PROBLEM-SOLVING HEURISTICS": "prob",
    "CONTEXT CLUES & INDICATORS": "ctx",
    "OTHERS": "misc",
}
"""The paper's sections and the beginnings of their bullets' ids."""
OTHERS = "OTHERS"
ROLLED_BACK = "rolled back"
"""Why a bullet is retired that was added after the version gone back to."""
MAX_COUNT = 999_999_999
"""Where counters stop, and the highest number of an id that a bullet can bring with it."""


@dataclass(frozen=True, slots=True)
class Bullet:
    """One piece of advice.

    Attributes:
        id: section's slug and a number that no other bullet of the log has had, such as "calc-00003".
        section: its heading.
        text: one line.
        helpful, harmful: how often it was tagged so.
        source: where it comes from, in words: "chain_sum/17", "file playbook.txt", "by hand".
        trust: quarantined bullets are not shown to the Generator.
        added, changed: numbers of the deltas that made it and last changed its text or trust; the first is 1.
    """

    id: str
    section: str
    text: str
    helpful: int = 0
    harmful: int = 0
    source: str = ""
    trust: Trust = "trusted"
    added: int = 0
    changed: int = 0


@dataclass(frozen=True, slots=True)
class Retired:
    """A bullet that is no longer there.

    Attributes:
        bullet: as it was.
        reason: in words.
        into: id of the bullet that it was merged into, or None.
        at: number of the delta that retired it.
    """

    bullet: Bullet
    reason: str
    into: str | None
    at: int


@dataclass(frozen=True, slots=True)
class Add:
    """A new bullet; `id` is that of a bullet read from a file, else a new one is given."""

    section: str
    text: str
    id: str | None = None
    helpful: int = 0
    harmful: int = 0
    trust: Trust = "trusted"
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """A bullet's text is replaced; its counters stay."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Merge:
    """Two or more bullets become one: the oldest's id and section, the sum of counters, the least trust, and `text`.

    `text` None keeps the oldest's.
    """

    ids: tuple[str, ...]
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Retire:
    """A bullet is taken out."""

    id: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Tag:
    """Counts: how often a bullet helped or harmed."""

    id: str
    helpful: int = 0
    harmful: int = 0


@dataclass(frozen=True, slots=True)
class SetTrust:
    """A bullet is let out of quarantine, or put there."""

    id: str
    trust: Trust


@dataclass(frozen=True, slots=True)
class Mark:
    """The playbook after this delta gets a name, such as "best"."""

    name: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Rollback:
    """Bullets are again what they were after delta `version` (0 = empty); numbers of ids go on, and marks stay."""

    version: int


Operation = Add | Update | Merge | Retire | Tag | SetTrust | Mark | Rollback

KINDS: Mapping[str, type[Any]] = {
    "add": Add,
    "update": Update,
    "merge": Merge,
    "retire": Retire,
    "tag": Tag,
    "trust": SetTrust,
    "mark": Mark,
    "rollback": Rollback,
}
"""Operations by the name that they have in a log."""
_NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True, slots=True)
class Delta:
    """One line of the log.

    Attributes:
        operations: applied in order.
        source: who or what it comes from, in words.
        sample: what is remembered of the sample that it was learned from: its number, whether it was right, …
        refused: operations that were asked for and not done, with the reason.
        at: when, UTC.
    """

    operations: tuple[Operation, ...] = ()
    source: str = ""
    sample: Mapping[str, Any] | None = None
    refused: tuple[str, ...] = ()
    at: str = ""


@dataclass(frozen=True)
class Playbook:
    """Bullets by id, in the order in which they were added.

    Attributes:
        bullets: those that are there.
        retired: those that were.
        next_number: of the next id.
        version: how many deltas it is the fold of.
        marks: name → (version, score).
    """

    bullets: Mapping[str, Bullet] = field(default_factory=dict[str, Bullet])
    retired: Mapping[str, Retired] = field(default_factory=dict[str, Retired])
    next_number: int = 1
    version: int = 0
    marks: Mapping[str, tuple[int, float | None]] = field(default_factory=dict[str, tuple[int, float | None]])

    def __len__(self) -> int:
        return len(self.bullets)

    def resolve(self, id: str) -> str | None:
        """The id under which a bullet is there now, after merges; None if it is not."""
        seen = 0
        while id not in self.bullets:
            gone = self.retired.get(id)
            if gone is None or gone.into is None or seen > len(self.retired):
                return None
            id, seen = gone.into, seen + 1
        return id

    @property
    def trusted(self) -> list[Bullet]:
        """Those that are not in quarantine."""
        return [bullet for bullet in self.bullets.values() if bullet.trust == "trusted"]


def fold(deltas: Iterable[Delta], start: Playbook | None = None) -> Playbook:
    """The playbook that a log describes.

    Args:
        deltas: of the log, in order.
        start: the fold of those before, which is the same as folding them all (but a rollback needs them all).

    Raises:
        DataError: an operation that cannot be: an id that is not there or twice, a rollback to the future.

    >>> book = fold([Delta((Add("FORMULAS & CALCULATIONS", "NPV = …"),)), Delta((Tag("calc-00001", helpful=1),))])
    >>> book.bullets["calc-00001"].helpful, book.version
    (1, 2)
    """
    deltas = list(deltas)
    targets = {o.version for delta in deltas for o in delta.operations if type(o) is Rollback}
    state = _State(
        Playbook() if start is None else start, targets
    )  # an empty one is false, and has a history
    for delta in deltas:
        state.apply(delta)
    return state.playbook()


class _State:
    """A playbook in the making; of the versions in `targets` it keeps a copy, to go back to."""

    def __init__(self, book: Playbook, targets: Set[int]) -> None:
        self.bullets, self.retired, self.marks = dict(book.bullets), dict(book.retired), dict(book.marks)
        self.next_number, self.version = book.next_number, book.version
        self.first, self.targets, self.copies = book.version, targets, dict[int, Playbook]()
        self.keep()

    def playbook(self) -> Playbook:
        return Playbook(self.bullets, self.retired, self.next_number, self.version, self.marks)

    def keep(self) -> None:
        if self.version in self.targets:
            self.copies[self.version] = Playbook(dict(self.bullets), dict(self.retired))

    def apply(self, delta: Delta) -> None:
        self.version += 1
        for operation in delta.operations:
            try:
                _APPLY[type(operation)](self, operation, delta)
            except KeyError as error:
                what = _NAMES.get(type(operation), repr(operation))
                raise DataError(
                    f"Delta {self.version}: {what} names {error.args[0]}, which is not there."
                ) from None
        self.keep()

    def add(self, operation: Add, delta: Delta) -> None:
        id = operation.id or new_id(operation.section, self.next_number)
        if operation.id and not is_old_id(id):
            raise DataError(f"Delta {self.version}: {id!r} is no id of a bullet; ids look like calc-00003.")
        if id in self.bullets or id in self.retired:
            raise DataError(f"Delta {self.version}: the id {id} is taken.")
        self.next_number = max(self.next_number, number_of(id) + 1)
        self.bullets[id] = Bullet(
            id,
            operation.section,
            operation.text,
            operation.helpful,
            operation.harmful,
            delta.source if operation.source is None else operation.source,
            operation.trust,
            self.version,
            self.version,
        )

    def update(self, operation: Update, delta: Delta) -> None:
        del delta
        bullet = self.bullets[operation.id]
        self.bullets[operation.id] = replace(bullet, text=operation.text, changed=self.version)

    def merge(self, operation: Merge, delta: Delta) -> None:
        del delta
        if len(set(operation.ids)) < 2 or len(set(operation.ids)) < len(operation.ids):
            raise DataError(
                f"Delta {self.version}: merge takes two or more bullets, not {list(operation.ids)}."
            )
        found = [self.bullets[id] for id in operation.ids]
        oldest = min(found, key=lambda bullet: (bullet.added, number_of(bullet.id)))
        others = [bullet for bullet in found if bullet.id != oldest.id]
        text = oldest.text if operation.text is None else operation.text
        trust: Trust = "quarantined" if any(b.trust == "quarantined" for b in found) else "trusted"
        for other in others:
            del self.bullets[other.id]
            self.retired[other.id] = Retired(other, "merged", oldest.id, self.version)
        self.bullets[oldest.id] = replace(
            oldest,
            text=text,
            helpful=min(sum(bullet.helpful for bullet in found), MAX_COUNT),
            harmful=min(sum(bullet.harmful for bullet in found), MAX_COUNT),
            trust=trust,
            changed=oldest.changed if (text, trust) == (oldest.text, oldest.trust) else self.version,
        )

    def retire(self, operation: Retire, delta: Delta) -> None:
        del delta
        self.retired[operation.id] = Retired(
            self.bullets.pop(operation.id), operation.reason, None, self.version
        )

    def tag(self, operation: Tag, delta: Delta) -> None:
        del delta
        b = self.bullets[operation.id]
        self.bullets[operation.id] = Bullet(
            b.id, b.section, b.text, min(b.helpful + operation.helpful, MAX_COUNT),
            min(b.harmful + operation.harmful, MAX_COUNT), b.source, b.trust, b.added, b.changed,
        )  # fmt: skip

    def set_trust(self, operation: SetTrust, delta: Delta) -> None:
        del delta
        self.bullets[operation.id] = replace(
            self.bullets[operation.id], trust=operation.trust, changed=self.version
        )

    def mark(self, operation: Mark, delta: Delta) -> None:
        del delta
        self.marks[operation.name] = (self.version, operation.score)

    def rollback(self, operation: Rollback, delta: Delta) -> None:
        del delta
        if not self.first <= operation.version < self.version:
            raise DataError(
                f"Delta {self.version} rolls back to version {operation.version}; there are {self.first} to "
                f"{self.version - 1}."
            )
        now, old = self.bullets, self.copies[operation.version]
        ever = {id: gone.bullet for id, gone in self.retired.items()} | now
        self.retired = {
            id: old.retired.get(id) or Retired(bullet, ROLLED_BACK, None, self.version)
            for id, bullet in ever.items()
            if id not in old.bullets
        }
        self.bullets = {
            id: replace(bullet, changed=now[id].changed if _same(bullet, now.get(id)) else self.version)
            for id, bullet in old.bullets.items()
        }


def _same(before: Bullet, now: Bullet | None) -> bool:
    return now is not None and (before.text, before.trust) == (now.text, now.trust)


_APPLY: Mapping[type[Any], Any] = {
    Add: _State.add,
    Update: _State.update,
    Merge: _State.merge,
    Retire: _State.retire,
    Tag: _State.tag,
    SetTrust: _State.set_trust,
    Mark: _State.mark,
    Rollback: _State.rollback,
}

_ID = re.compile(r"[a-z][a-z0-9_]{0,31}-[0-9]{5,12}")


def is_id(text: str) -> bool:
    """Whether this could be the id of a bullet.

    >>> is_id("calc-00003"), is_id("calc-3"), is_id("../x-00001")
    (True, False, False)
    """
    return _ID.fullmatch(text) is not None


def is_old_id(id: str) -> bool:
    """Whether a bullet may bring this id with it: a number above `MAX_COUNT` would leave too few for new ones."""
    return is_id(id) and number_of(id) <= MAX_COUNT


def number_of(id: str) -> int:
    """The number in an id."""
    return int(id.rpartition("-")[2])


def new_id(section: str, number: int) -> str:
    """An id of a section.

    >>> new_id("FORMULAS & CALCULATIONS", 3), new_id("Über uns", 12), new_id("第一", 1)
    ('calc-00003', 'ber-00012', 'misc-00001')
    """
    slug = SECTIONS.get(section)
    if slug is None:
        words = re.findall(r"[a-z][a-z0-9]*", section.lower())
        slug = words[0][:12] if words else "misc"
    return f"{slug}-{number:05d}"


@dataclass(frozen=True)
class Difference:
    """What is other in a later playbook.

    Attributes:
        added, removed: bullets.
        changed: (before, after), of those whose text, trust or counters differ.
    """

    added: Sequence[Bullet]
    removed: Sequence[Bullet]
    changed: Sequence[tuple[Bullet, Bullet]]


def difference(before: Playbook, after: Playbook) -> Difference:
    """From one playbook to another one."""

    def content(bullet: Bullet) -> tuple[Any, ...]:
        return (bullet.section, bullet.text, bullet.trust, bullet.helpful, bullet.harmful)

    return Difference(
        [bullet for id, bullet in after.bullets.items() if id not in before.bullets],
        [bullet for id, bullet in before.bullets.items() if id not in after.bullets],
        [
            (before.bullets[id], bullet)
            for id, bullet in after.bullets.items()
            if id in before.bullets and content(before.bullets[id]) != content(bullet)
        ],
    )


def to_row(bullet: Bullet) -> dict[str, Any]:
    """A bullet as JSON."""
    return asdict(bullet)
