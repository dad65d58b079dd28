"""Which bullets say the same: exact copies, pairs that look alike, and pairs that look alike but must stay apart.

Start at `Index`. Each text is embedded once, when it is added. Copies are found by `similarity.normalise`; vectors only propose
pairs, and of these `similarity.conflict` refuses some. So `Proposal.kind` says what may be done without asking: a `copy` can be
dropped, a `blocked` pair must be left alone (`reason` says why), a `candidate` is for the Curator to look at. Nothing is ever
merged by cosine.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from postgrad.core.errors import ConfigError
from postgrad.playbook.embed import Embedder, HashedNgrams, Vectors
from postgrad.playbook.similarity import conflict, normalise

Kind = Literal["copy", "blocked", "candidate"]
_BLOCK = 1024
"""Rows whose cosines with all later rows are held at once: 40 MB at 10,000."""
_FIRST_ROWS = 256


class Proposal(NamedTuple):
    """Two texts that look alike.

    Attributes:
        first: key of the one that was added earlier.
        second: key of the later one; None for a text that is not in the index.
        cosine: of their vectors; 1.0 for copies.
        kind: `copy`: equal but for case, space and final punctuation, drop `second`; `blocked`: never to be merged;
            `candidate`: for the Curator.
        reason: why it is blocked, else None.
    """

    first: str
    second: str | None
    cosine: float
    kind: Kind
    reason: str | None = None


def judge(a: str, b: str) -> tuple[Kind, str | None]:
    """(kind, reason) of two texts that a vector, or nothing but their wording, found alike.

    >>> judge("Round to 2 decimals", "round to 2  decimals."), judge("Round to 2 decimals", "Round to 3 decimals")
    (('copy', None), ('blocked', 'numbers: 2 against 3'))
    >>> judge("Round to 2 decimals", "Give the result with 2 decimals")
    ('candidate', None)
    """
    if normalise(a) == normalise(b):
        return "copy", None
    reason = conflict(a, b)
    return ("candidate", None) if reason is None else ("blocked", reason)


class Index:
    """Texts by key, with their vectors.

    The order is that of adding; ties go to the earlier one. What is found depends on the texts, not on the order of adding, but
    for which of two is `first`.

    Args:
        embedder: default `HashedNgrams()`.
        threshold: cosine from which a pair is proposed; default the embedder's.

    Raises:
        ConfigError: a threshold outside (0, 1].

    >>> index = Index()
    >>> index.add_all([("a", "Always paginate until it is empty."), ("b", "Never paginate until it is empty.")])
    >>> [(found.first, found.second, found.kind, found.reason) for found in index.proposals()]
    [('a', 'b', 'blocked', 'negation: 0 against 1')]
    >>> index.exact("always paginate until it is  empty")
    'a'
    """

    def __init__(self, embedder: Embedder | None = None, threshold: float | None = None) -> None:
        self.embedder: Embedder = HashedNgrams() if embedder is None else embedder
        self.threshold = _checked(self.embedder.threshold if threshold is None else threshold)
        self._rows: Vectors = np.zeros((0, 0), np.float32)
        self._keys: list[str] = []
        self._place: dict[str, int] = {}
        self._texts: dict[str, str] = {}
        self._order: dict[str, int] = {}
        self._copies: dict[str, dict[str, None]] = {}
        self._added = 0

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return key in self._place

    # -- changes

    def add(self, key: str, text: str) -> None:
        """Take in a text, embedded now and never again. Raises ValueError for a key that is there."""
        self.add_all([(key, text)])

    def add_all(self, texts: Iterable[tuple[str, str]]) -> None:
        """Take in many (key, text) by one call of the embedder. Raises ValueError, and adds none, for a key that is there."""
        items = list(texts)
        known = [key for key, _ in items if key in self._place]
        if known or len({key for key, _ in items}) < len(items):
            shown = known or sorted(key for key, _ in items)
            raise ValueError(f"a key can be added once; {shown[0]!r} is there already: remove it first")
        if not items:
            return
        vectors = self.embedder.embed([text for _, text in items])
        if vectors.shape[0] != len(items) or vectors.ndim != 2:
            raise ValueError(f"the embedder must give [{len(items)}, D]; received {list(vectors.shape)}")
        self._reserve(len(self) + len(items), vectors.shape[1])
        self._rows[len(self) : len(self) + len(items)] = vectors
        for key, text in items:
            self._place[key] = len(self._keys)
            self._keys.append(key)
            self._texts[key] = text
            self._order[key] = self._added
            self._copies.setdefault(normalise(text), {})[key] = None
            self._added += 1

    def remove(self, key: str) -> None:
        """Forget a text; the last row takes its place. Raises KeyError."""
        place, last = self._place.pop(key), self._keys.pop()
        if last != key:
            self._rows[place] = self._rows[len(self._keys)]
            self._keys[place] = last
            self._place[last] = place
        form = normalise(self._texts.pop(key))
        del self._copies[form][key], self._order[key]
        if not self._copies[form]:
            del self._copies[form]

    def _reserve(self, num: int, dim: int) -> None:
        """Room for `num` rows; doubling, so that N single insertions copy fewer than 2N rows."""
        held = self._rows.shape[0]
        if held and dim != self._rows.shape[1]:
            raise ValueError(f"the embedder gave rows of {dim} after rows of {self._rows.shape[1]}")
        if num > held:
            rows = np.empty((max(num, 2 * held, _FIRST_ROWS), dim), np.float32)
            if len(self):
                rows[: len(self)] = self._rows[: len(self)]
            self._rows = rows

    # -- questions

    def exact(self, text: str) -> str | None:
        """The key of the earliest copy of `text`, or None."""
        return next(iter(self._copies.get(normalise(text), ())), None)

    def near(self, text: str, threshold: float | None = None, k: int = 10) -> list[tuple[str, float]]:
        """At most k (key, cosine) with a cosine of at least `threshold` (default: the index's), highest first."""
        floor = self.threshold if threshold is None else _checked(threshold)
        if not len(self) or k < 1:
            return []
        cosines = self._rows[: len(self)] @ self.embedder.embed([text])[0]
        found = np.flatnonzero(cosines >= floor)
        if len(found) > k:
            best = np.partition(cosines[found], -k)[-k]
            found = found[cosines[found] >= best]
        ranked = sorted((-float(cosines[i]), self._order[self._keys[i]], self._keys[i]) for i in found)
        return [(key, min(-cosine, 1.0)) for cosine, _, key in ranked[:k]]

    def pairs(self, threshold: float | None = None) -> list[tuple[str, str, float]]:
        """All (earlier key, later key, cosine) with a cosine of at least `threshold`, in the order of adding.

        Cosines are products of float32 rows: the last digits, and so a pair within about 1e-6 of the threshold, can differ from
        another way of multiplying. Everything is listed, n²/2 pairs for n copies of one text: see `proposals`.
        """
        floor = self.threshold if threshold is None else _checked(threshold)
        return self._pairs(floor, self._in_order(self._keys))

    def proposals(self, threshold: float | None = None) -> list[Proposal]:
        """What to do about the whole collection, in the order of adding: copies, then pairs among the texts that remain.

        A later copy is proposed with the earliest only, and takes no part in further pairs.
        """
        floor = self.threshold if threshold is None else _checked(threshold)
        groups = sorted(
            (self._in_order(group) for group in self._copies.values()), key=lambda g: self._order[g[0]]
        )
        copies = [Proposal(keys[0], key, 1.0, "copy") for keys in groups for key in keys[1:]]
        found = [
            Proposal(first, second, cosine, *_kind(conflict(self._texts[first], self._texts[second])))
            for first, second, cosine in self._pairs(floor, [keys[0] for keys in groups])
        ]
        return copies + found

    def propose(self, text: str, threshold: float | None = None, k: int = 10) -> list[Proposal]:
        """What to do about a text not in the index: the copy alone if there is one, else k pairs at most, nearest first."""
        copy = self.exact(text)
        if copy is not None:
            return [Proposal(copy, None, 1.0, "copy")]
        return [
            Proposal(key, None, cosine, *_kind(conflict(self._texts[key], text)))
            for key, cosine in self.near(text, threshold, k)
        ]

    def _in_order(self, keys: Iterable[str]) -> list[str]:
        return sorted(keys, key=self._order.__getitem__)

    def _pairs(self, floor: float, keys: list[str]) -> list[tuple[str, str, float]]:
        """Pairs among `keys`, which are in order: blocks of rows times all later rows."""
        places = np.fromiter((self._place[key] for key in keys), np.int64, len(keys))
        plain = len(keys) == len(self) and bool((np.diff(places) == 1).all())
        rows = self._rows[: len(self)] if plain else self._rows[places] if len(keys) else self._rows[:0]
        found: list[tuple[str, str, float]] = []
        for start in range(0, len(keys), _BLOCK):
            stop = min(start + _BLOCK, len(keys))
            cosines: NDArray[np.float32] = rows[start:stop] @ rows[start:].T
            for i, j in zip(*_at_least(cosines, floor), strict=True):
                if j > i:
                    found.append((keys[start + i], keys[start + j], min(float(cosines[i, j]), 1.0)))
        return found


def _at_least(cosines: NDArray[np.float32], floor: float) -> tuple[list[int], list[int]]:
    flat = np.flatnonzero(cosines.ravel() >= np.float32(floor))
    i, j = np.divmod(flat, cosines.shape[1])
    return i.tolist(), j.tolist()


def _kind(reason: str | None) -> tuple[Kind, str | None]:
    return ("candidate", None) if reason is None else ("blocked", reason)


def _checked(threshold: float) -> float:
    if not 0 < threshold <= 1:
        raise ConfigError(f"A threshold of cosines is above 0 and at most 1; received {threshold:g}.")
    return threshold
