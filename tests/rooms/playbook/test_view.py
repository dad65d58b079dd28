"""What of a playbook stands in a prompt: within the budget, and steady at its beginning."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.playbook.book import (
    Add,
    Delta,
    Merge,
    Operation,
    Playbook,
    Retire,
    Rollback,
    SetTrust,
    Tag,
    Update,
    fold,
)
from postgrad.playbook.ops import calls_bound, shared_prefix, shared_prefix_fraction
from postgrad.playbook.view import EMPTY, View, advance, line, render, select, withdrawal, worth


def characters(text: str) -> int:
    return len(text) // 3


def words(text: str) -> int:
    return len(text.split())


def odd(text: str) -> int:
    """A counter with an overhead for every text, and more for long ones: parts say little about the whole."""
    return 3 + len(text) // 4 + len(text) ** 2 // 5000


def bpe():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    lines = [
        "[calc-00003] (FORMULAS & CALCULATIONS) round the result to two decimals",
        "[misc-00001] withdrawn",
        "be brief",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(lines * 3, trainer)
    return lambda text: len(tokenizer.encode(text).ids)


COUNTERS = {"characters": characters, "words": words, "odd": odd, "bpe": bpe()}


def stream(seed: int, steps: int) -> list[Delta]:
    """Deltas of all kinds, possible by construction."""
    chance = random.Random(seed)
    deltas: list[Delta] = []
    book = Playbook()
    for step in range(steps):
        ids = list(book.bullets)
        operations: list[Operation] = [
            Add(chance.choice(["OTHERS", "FORMULAS & CALCULATIONS"]), " ".join(["word"] * chance.randint(1, 9)) + f" {step}",
                trust=chance.choice(["trusted", "trusted", "quarantined"]))
        ]  # fmt: skip
        if len(ids) > 2:
            a, b, c = chance.sample(ids, 3)
            operations += chance.choice(
                [[Tag(a, 1), Tag(b, 0, 1)], [Update(a, f"new {step}")], [Retire(a)], [Merge((a, b))],
                 [SetTrust(c, "trusted")], [SetTrust(c, "quarantined")], [], [],
                 [Rollback(chance.randint(max(0, step - 5), step))] if step % 7 == 0 else []]
            )  # fmt: skip
        delta = Delta(tuple(operations), "test")
        deltas.append(delta)
        book = fold(deltas)
    return deltas


STREAMS = [
    [fold(deltas[:n]) for n in range(len(deltas) + 1)] for deltas in (stream(seed, 60) for seed in range(4))
]


@pytest.mark.parametrize("name", COUNTERS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [20, 150, 400, 10**6])
def test_properties_over_a_stream(name, seed, budget):
    count, view = COUNTERS[name], View()
    for book in STREAMS[seed]:
        before, view = view, advance(view, book, budget, count)
        trusted = {bullet.id: line(bullet) for bullet in book.trusted}
        assert view.version == book.version
        assert not view.lines or count(view.text) <= budget
        # The prefix stays, unless the lines were written anew.
        if view.num_rewrites == before.num_rewrites:
            assert view.lines[: len(before.lines)] == before.lines
        # What counts is the last line of each id: the bullet's text, or its withdrawal.
        last = {text.split("]")[0][1:]: text for text in view.lines}
        shown = {id: text for id, text in last.items() if text != withdrawal(id)}
        assert shown == view.shown == {id: trusted[id] for id in shown}
        # All trusted bullets are either shown or left out, and left out only if not all fit.
        assert shown.keys() | view.left_out.keys() == trusted.keys()
        assert not shown.keys() & view.left_out.keys()
        if count("\n".join(trusted.values())) <= budget and view.num_rewrites != before.num_rewrites:
            assert shown == trusted
        if budget == 10**6:
            assert shown == trusted
        # Waste is bounded.
        stale = [
            text
            for index, text in enumerate(view.lines)
            if text not in shown.values() or text in view.lines[index + 1 :]
        ]
        assert sum(map(count, stale)) <= 0.1 * count(view.text) or not view.lines
        # A text is a function of what was seen; and quarantined bullets are never among it.
        assert view == advance(before, book, budget, count)
        assert not any(
            line(b) in view.lines[len(before.lines) :] for b in book.bullets.values() if b.trust != "trusted"
        )


@pytest.mark.parametrize("name", COUNTERS)
def test_render_and_select_hold_the_budget_and_the_order(name):
    count = COUNTERS[name]
    for book in (STREAMS[0][20], STREAMS[1][60]):
        bullets = book.trusted
        for budget in (0, 5, 30, 100, 300, 10**6):
            chosen = select(bullets, budget, count)
            assert not chosen or count("\n".join(map(line, chosen))) <= budget
            assert chosen == [bullet for bullet in bullets if bullet in chosen]
            assert render(book, budget, count) == ("\n".join(map(line, chosen)) or EMPTY)
        assert select(bullets, 10**6, count) == bullets
        wanted = bullets[len(bullets) // 2]
        room = count(line(wanted) + "\n")
        assert wanted in select(bullets, room, count, relevance=lambda bullet, id=wanted.id: bullet.id == id)


def test_the_worth_of_bullets_decides():
    adds = [
        Add("OTHERS", "same words here", helpful=helpful, harmful=harmful)
        for helpful, harmful in [(0, 3), (5, 0), (0, 0), (1, 1)]
    ]
    book = fold([Delta(tuple(adds))])
    ranked = sorted(book.trusted, key=worth, reverse=True)
    assert [bullet.id[-1] for bullet in ranked] == ["2", "4", "3", "1"]
    two = 2 * words(line(book.trusted[0]))
    assert [bullet.id[-1] for bullet in select(book.trusted, two, words)] == ["2", "4"]


def test_a_full_view_keeps_most_of_its_prefix_and_shows_new_bullets_first():
    deltas: list[Delta] = []
    view, rewrites, book = View(), [], Playbook()
    budget = 700
    for step in range(400):
        deltas.append(
            Delta((Add("OTHERS", f"advice number {step} of many words", helpful=5 if step < 50 else 0),))
        )
        book = fold(deltas[-1:], book)
        view = advance(view, book, budget, words)
        rewrites.append(view.num_rewrites)
        assert f"misc-{step + 1:05d}" in view.shown  # the newest is always there, to be tried
        # Nothing new, or counters alone: nothing changes.
        again = advance(view, fold([Delta((Tag("misc-00001", 1),))], book), budget, words)
        assert (again.lines, again.num_rewrites) == (view.lines, view.num_rewrites)
    assert rewrites[-1] <= 400 / (0.1 * budget / 8) + 2
    assert words(view.text) <= budget


def test_no_room_for_anything():
    book = fold([Delta((Add("OTHERS", "a long text " * 20),))])
    view = advance(View(), book, 5, words)
    assert (view.text, dict(view.shown)) == (EMPTY, {})
    assert advance(view, book, 5, words).num_rewrites == view.num_rewrites
    # A bullet that needs more than the share that is usually filled is shown still.
    book = fold([Delta((Add("OTHERS", "b"),))], book)
    assert advance(View(), book, 2, words).lines == ("[misc-00002] b",)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(codec=None, exclude_categories=["C"]), max_size=20), max_size=6),
    st.integers(0, 60),
)
def test_text_is_one_line_a_bullet(texts, budget):
    from postgrad.playbook.clean import RefusalError, clean_text

    adds: list[Add] = []
    for text in texts:
        try:
            adds.append(Add("OTHERS", clean_text(text)))
        except RefusalError:
            continue
    view = advance(View(), fold([Delta(tuple(adds))]), budget, characters)
    assert view.text.splitlines() == list(view.lines or (EMPTY,))


def test_advancing_is_cheap():
    calls = 0

    def count(text: str) -> int:
        nonlocal calls
        calls += 1
        return len(text) // 4

    book = fold(
        [Delta(tuple(Add("OTHERS", f"advice number {n} " + "of many words " * 8) for n in range(2000)))]
    )
    view = advance(View(), book, 10**6, count)
    versions = [book]
    for step in range(10):
        versions.append(
            fold(
                [Delta((Add("OTHERS", f"new {step}"), Update(f"misc-{step + 1:05d}", "changed")))],
                versions[-1],
            )
        )
    calls, started = 0, time.process_time()
    for book in versions[1:]:
        view = advance(view, book, 10**6, count)
    assert calls == 20  # the whole, and the line that was replaced
    assert time.process_time() - started < 60  # a guard against hours, not a measure of speed


def test_ops_of_prefixes_and_calls():
    assert shared_prefix_fraction([]) == shared_prefix_fraction(["a"]) == 0.0
    assert shared_prefix_fraction(["ab", "ab", "ac"]) == 3 / 4
    chance = random.Random(0)
    for _ in range(300):
        a, b = ("".join(chance.choices("ab", k=chance.randint(0, 8))) for _ in range(2))
        slow = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert shared_prefix(a, b) == slow
    assert [calls_bound(right, 2) for right in (True, False)] == [3, 6]
