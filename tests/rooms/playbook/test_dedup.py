"""The index: a loop over all pairs as reference, any order of changes, copies, and what is never merged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.core.errors import ConfigError
from postgrad.playbook import dedup
from postgrad.playbook.dedup import Index, Proposal
from postgrad.playbook.embed import HashedNgrams, Vectors
from postgrad.playbook.similarity import conflict, normalise

PAIRS = [
    json.loads(line)
    for line in (Path(__file__).parents[3] / "benchmarks/data/bullet_pairs.jsonl")
    .read_text("utf-8")
    .splitlines()
]
TEXTS = list(dict.fromkeys(pair[side] for pair in PAIRS for side in ("a", "b")))


class Counting(HashedNgrams):
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(256)
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.asked += texts
        return super().embed(texts)


class Plane:
    """Vectors in a plane, at as many degrees as the text says."""

    name, dim, threshold = "plane", 2, 0.5

    def embed(self, texts: Sequence[str]) -> Vectors:
        angles = np.deg2rad([float(text.split()[0]) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def filled(texts: Sequence[str], keys: Sequence[str] | None = None) -> Index:
    index = Index()
    index.add_all(list(zip(keys or [f"k{i}" for i in range(len(texts))], texts, strict=True)))
    return index


def brute_force(texts: Sequence[str], threshold: float) -> list[tuple[str, str, float]]:
    rows = HashedNgrams().embed(texts).astype(float)
    return [
        (f"k{i}", f"k{j}", float(rows[i] @ rows[j]))
        for i in range(len(texts))
        for j in range(i + 1, len(texts))
        if float(rows[i] @ rows[j]) >= threshold
    ]


# -- pairs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("block", [7, 1024])
def test_pairs_are_those_of_a_double_loop(
    threshold: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup, "_BLOCK", block)
    texts = TEXTS[::2]
    found, expected = filled(texts).pairs(threshold), brute_force(texts, threshold)
    assert len(expected) >= 3
    assert [pair[:2] for pair in found] == [pair[:2] for pair in expected]
    assert [pair[2] for pair in found] == pytest.approx([pair[2] for pair in expected], abs=1e-6)


def test_angles_by_hand() -> None:
    index = Index(Plane())
    index.add_all({"a": "0", "b": "50", "c": "70", "d": "180"}.items())
    assert [pair[:2] for pair in index.pairs()] == [
        ("a", "b"),
        ("b", "c"),
    ]  # cos 50°, cos 20°; 70° is below one half
    assert index.pairs(0.3)[1] == ("a", "c", pytest.approx(np.cos(np.deg2rad(70)), abs=1e-6))
    assert index.near("55") == [
        ("b", pytest.approx(np.cos(np.deg2rad(5)), abs=1e-6)),
        ("c", pytest.approx(np.cos(np.deg2rad(15)), abs=1e-6)),
        ("a", pytest.approx(np.cos(np.deg2rad(55)), abs=1e-6)),
    ]
    assert [key for key, _ in index.near("61", k=1)] == ["c"]
    assert index.near("270") == []


def test_ties_go_to_the_earlier_one() -> None:
    index = Index(Plane())
    index.add_all({"z": "10 x", "a": "10 y", "m": "10 w"}.items())
    assert [key for key, _ in index.near("10", k=2)] == ["z", "a"]
    index.remove("z")  # the last row moves into its place
    index.add("z", "10 x")
    assert [key for key, _ in index.near("10", k=3)] == ["a", "m", "z"]
    assert [pair[:2] for pair in index.pairs()] == [("a", "m"), ("a", "z"), ("m", "z")]


@settings(max_examples=20)
@given(st.permutations(range(12)))
def test_the_order_of_adding_changes_only_who_is_first(order: list[int]) -> None:
    texts = [TEXTS[i] for i in range(0, 60, 5)]
    keys = [f"k{i}" for i in order]
    shuffled = filled([texts[i] for i in order], keys)
    straight = filled(texts)

    def unordered(found: list[Proposal]) -> set[tuple[frozenset[str | None], str]]:
        return {(frozenset((p.first, p.second)), p.kind) for p in found}

    assert unordered(shuffled.proposals(0.2)) == unordered(straight.proposals(0.2))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("aar"), st.integers(0, 40)), max_size=40))
def test_any_changes_leave_what_a_fresh_index_has(changes: list[tuple[str, int]]) -> None:
    """Texts added and removed in any order, against an index of those that are left."""
    embedder = Counting()
    index, left = Index(embedder, threshold=0.3), {}
    for change, number in changes:
        key = f"k{number}"
        if change == "a" and key not in index:
            index.add(key, TEXTS[number])
            left[key] = TEXTS[number]
        elif change == "r" and key in index:
            index.remove(key)
            del left[key]
    num_added = len(embedder.asked)
    fresh = Index(Counting(), threshold=0.3)
    fresh.add_all(left.items())
    assert [p[:2] for p in index.pairs()] == [p[:2] for p in fresh.pairs()]
    assert [(p.first, p.second, p.kind) for p in index.proposals()] == [
        (p.first, p.second, p.kind) for p in fresh.proposals()
    ]
    assert len(index) == len(left)
    assert len(embedder.asked) == num_added  # nothing is embedded twice
    for text in TEXTS[:41]:
        assert index.exact(text) == fresh.exact(text)


def test_each_text_is_embedded_once_and_room_doubles() -> None:
    embedder = Counting()
    index = Index(embedder)
    for i, text in enumerate(TEXTS[:300]):
        index.add(str(i), text)
    assert embedder.asked == TEXTS[:300]
    assert index._rows.shape == (512, 256)
    assert [p[:2] for p in index.pairs(0.6)] == [p[:2] for p in _at_once(TEXTS[:300]).pairs(0.6)]


def _at_once(texts: Sequence[str]) -> Index:
    index = Index(Counting())
    index.add_all((str(i), text) for i, text in enumerate(texts))
    return index


# -- near ----------------------------------------------------------------------------------------------------------


def test_near_is_the_best_of_a_loop() -> None:
    index = filled(TEXTS)
    rows = HashedNgrams().embed(TEXTS).astype(float)
    for text in TEXTS[::25]:
        cosines = rows @ HashedNgrams().embed([text])[0].astype(float)
        expected = [f"k{i}" for i in np.argsort(-cosines, kind="stable") if cosines[i] >= 0.3][:5]
        found = index.near(text, 0.3, 5)
        assert [value for _, value in found] == pytest.approx(
            sorted(cosines, reverse=True)[: len(found)], abs=1e-6
        )
        assert {key for key, _ in found} == set(expected)


def test_an_empty_index_has_nothing() -> None:
    index = Index()
    assert (index.near("a"), index.pairs(), index.proposals(), index.propose("a"), index.exact("a")) == (
        [],
        [],
        [],
        [],
        None,
    )
    index.add_all([])
    index.add("x", "")
    assert index.near("") == []  # no feature, no cosine
    assert index.exact(" . ") == "x"
    index.remove("x")
    assert len(index) == 0
    assert index.pairs() == []


# -- copies and proposals ------------------------------------------------------------------------------------------


def test_copies_go_to_the_earliest_and_take_no_further_part() -> None:
    index = filled(
        [
            "Round at the end.",
            "Sort by date.",
            "round at  the end",
            "Round at the end!",
            "Round it at the end.",
        ]
    )
    assert index.exact("ROUND at the end") == "k0"
    assert [(p.first, p.second, p.kind) for p in index.proposals()] == [
        ("k0", "k2", "copy"),
        ("k0", "k3", "copy"),
        ("k0", "k4", "candidate"),
    ]
    index.remove("k0")
    assert index.exact("Round at the end") == "k2"
    assert index.proposals()[0] == Proposal("k2", "k3", 1.0, "copy")


def test_a_new_text_is_proposed_before_it_is_added() -> None:
    index = filled(["Retry three times.", "Label the axes of a chart."])
    assert index.propose("RETRY three times") == [Proposal("k0", None, 1.0, "copy")]
    (blocked,) = index.propose("Retry five times.")
    assert (blocked.first, blocked.second, blocked.kind, blocked.reason) == (
        "k0",
        None,
        "blocked",
        "numbers: 3 against 5",
    )
    (candidate,) = index.propose("Please retry three times.")
    assert (candidate.kind, candidate.reason) == ("candidate", None)
    assert len(index) == 2


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([t for t in TEXTS if normalise(t) == normalise(t.upper()) == normalise(t.lower())]),
    st.sampled_from(["upper", "lower", "capitalize", "title"]),
    st.sampled_from(["", " ", "  \n"]),
)
def test_case_and_space_never_hide_a_copy(text: str, case: str, gap: str) -> None:
    variant = gap + getattr(text, case)().replace(" ", gap or " ") + gap
    expected = TEXTS.index(next(t for t in TEXTS if normalise(t) == normalise(text)))
    assert ALL.exact(variant) == f"k{expected}"
    assert ALL.propose(variant)[0].kind == "copy"


ALL = filled(TEXTS)


@pytest.mark.parametrize("threshold", [0.01, 0.9])
def test_of_the_labelled_pairs_copies_alone_are_dropped(threshold: float) -> None:
    """Every copy and no opposite, no rewording and no other pair, whatever the threshold."""
    for pair in PAIRS:
        index = Index(HashedNgrams(256), threshold)
        index.add("a", pair["a"])
        kinds = {p.kind for p in index.propose(pair["b"])}
        index.add("b", pair["b"])
        assert {p.kind for p in index.proposals()} == kinds
        assert ("copy" in kinds) == (pair["label"] == "copy"), pair
        if pair["label"] == "opposite" and "candidate" in kinds:
            assert (
                conflict(pair["a"], pair["b"]) is None
            )  # only what the rules do not know reaches the Curator


# -- refusals ------------------------------------------------------------------------------------------------------


def test_what_is_refused() -> None:
    index = filled(["one text"])
    with pytest.raises(ValueError, match="'k0' is there already"):
        index.add("k0", "another")
    with pytest.raises(ValueError, match="can be added once"):
        index.add_all([("x", "1"), ("x", "2")])
    assert len(index) == 1
    with pytest.raises(KeyError):
        index.remove("nothing")
    for threshold in (0, -0.5, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="above 0 and at most 1"):
            Index(threshold=threshold)
        with pytest.raises(ConfigError, match="above 0 and at most 1"):
            index.pairs(threshold or -1.0)
