"""The held-out split by content, and the weighted prompt stream."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.core.errors import ConfigError, DataError
from postgrad.core.types import Prompt
from postgrad.tasks import DataConfig, PromptStream, by_task, is_held_out, split
from postgrad.tasks.split import prompt_id

TEXTS = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=60)


def prompt(text: str, task: str = "t") -> Prompt:
    return Prompt(id=prompt_id(task, Prompt(id="", text=text)), text=text, task=task)


def chat(*turns: tuple[str, str]) -> Prompt:
    return Prompt(id="c", messages=tuple({"role": role, "content": text} for role, text in turns))


def sides(texts: list[str], fraction: float) -> tuple[set[str], set[str]] | None:
    try:
        train, held_out, _ = split([prompt(text) for text in texts], fraction)
    except DataError:
        return None
    return {p.content.strip() for p in train}, {p.content.strip() for p in held_out}


def test_known_sides_never_change() -> None:
    # pinned: a change of the hash would train on prompts that earlier runs held out
    held_out = [number for number in range(40) if is_held_out(prompt(f"What is {number} + 1?"), 0.1)]
    assert held_out == [13, 33]
    assert prompt_id("sums", prompt("2 + 2?")) == "sums-485a0cd90586969e"


@given(TEXTS, st.floats(0.05, 0.95), st.randoms(use_true_random=False))
def test_sides_are_disjoint_complete_and_independent_of_order(
    texts: list[str], fraction: float, shuffler: random.Random
) -> None:
    before = sides(texts, fraction)
    if before is None:
        return
    train, held_out = before
    assert not train & held_out
    assert train | held_out == {text.strip() for text in texts}
    shuffled = list(texts)
    shuffler.shuffle(shuffled)
    assert sides(shuffled, fraction) == before


@given(st.text(), st.floats(0.01, 0.98))
def test_a_larger_fraction_only_adds(text: str, fraction: float) -> None:
    if is_held_out(prompt(text), fraction):
        assert is_held_out(prompt(text), fraction + 0.01)


@given(
    st.lists(st.text(alphabet="ab+?", min_size=1), min_size=1, max_size=5),
    st.sampled_from([" ", "\n", "\t  "]),
)
def test_white_space_does_not_change_the_side(words: list[str], blank: str) -> None:
    assert is_held_out(prompt(" ".join(words)), 0.5) == is_held_out(prompt(blank.join([*words, ""])), 0.5)


@given(st.text(min_size=1))
def test_a_lone_user_turn_is_its_text(text: str) -> None:
    assert is_held_out(chat(("user", text)), 0.5) == is_held_out(prompt(text), 0.5)


def test_roles_and_order_of_a_chat_matter() -> None:
    chats = [
        chat(("system", "a"), ("user", "b")),
        chat(("user", "a"), ("user", "b")),
        chat(("user", "b"), ("user", "a")),
    ]
    assert len({prompt_id("t", one) for one in chats}) == 3


def test_the_share_is_the_fraction() -> None:
    held_out = sum(is_held_out(prompt(f"question {number}"), 0.1) for number in range(4000))
    assert 320 < held_out < 480  # 400 ± 4 standard deviations of 19


def test_duplicates_are_counted_and_the_first_is_kept() -> None:
    prompts = [prompt(f"q{number}") for number in range(30)]
    train, held_out, num_duplicates = split(
        [*prompts, prompt("q3 "), prompt("q3", task="u"), prompt("q4")], 0.3
    )
    assert num_duplicates == 3
    assert sorted([*train, *held_out], key=prompts.index) == prompts


def test_drawings_that_differ_in_blanks_are_both_kept() -> None:
    prompts = [prompt("#  #"), prompt("# #"), *(prompt(f"q{number}") for number in range(30))]
    assert split(prompts, 0.3).num_duplicates == 0


@pytest.mark.parametrize("count", [1, 30])
def test_a_fraction_of_zero_holds_nothing_out_and_both_sides_are_the_prompts(count: int) -> None:
    prompts = [prompt(f"q{number}") for number in range(count)]
    train, held_out, num_duplicates = split([*prompts, prompts[0]], 0.0)
    assert train == held_out == prompts
    assert train is not held_out
    assert num_duplicates == 1
    assert DataConfig(holdout_fraction=0).holdout_fraction == 0
    assert not any(is_held_out(one, 0.0) for one in prompts)


@pytest.mark.parametrize(("fraction", "advice"), [(1e-9, "raise"), (1 - 1e-9, "lower")])
def test_an_empty_side_is_refused_with_advice(fraction: float, advice: str) -> None:
    with pytest.raises(DataError, match=rf"3 prompts, 2 of them different.*{advice} --data.holdout_fraction"):
        split([prompt("a"), prompt("b"), prompt("b")], fraction)


def stream(sizes: dict[str, int], weights: dict[str, float] | None = None, seed: int = 0) -> PromptStream:
    prompts = {
        task: [prompt(f"{task}{number}", task) for number in range(size)] for task, size in sizes.items()
    }
    return PromptStream(prompts, weights or dict.fromkeys(sizes, 1.0), seed)


def draw(source: PromptStream, number: int) -> list[Prompt]:
    drawn = [source.next() for _ in range(number)]
    assert all(drawn)
    return [one for one in drawn if one is not None]


def test_by_task_groups_in_order() -> None:
    prompts = [prompt("x", "b"), prompt("y", "a"), prompt("z", "b")]
    assert by_task(prompts) == {"b": [prompts[0], prompts[2]], "a": [prompts[1]]}


def test_weights_two_to_one_by_hand() -> None:
    # credits (2/3, 1/3) → a; (1/3, 2/3) → b; (1, 0) → a; and again
    drawn = draw(stream({"a": 5, "b": 5}, {"a": 2, "b": 1}), 6)
    assert "".join(one.task for one in drawn) == "abaaba"


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5), st.integers(1, 120))
def test_shares_hold_at_every_length(weights: list[float], number: int) -> None:
    tasks = [f"t{index}" for index in range(len(weights))]
    source = stream(dict.fromkeys(tasks, 3), dict(zip(tasks, weights, strict=True)))
    counts = Counter(one.task for one in draw(source, number))
    for task, weight in zip(tasks, weights, strict=True):
        assert abs(counts[task] - number * weight / sum(weights)) <= max(1, len(tasks) - 1) + 1e-6


def test_each_epoch_is_another_permutation() -> None:
    drawn = [one.id for one in draw(stream({"a": 30}), 90)]
    epochs = [drawn[:30], drawn[30:60], drawn[60:]]
    assert all(len(set(epoch)) == 30 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert drawn != [one.id for one in draw(stream({"a": 30}, seed=1), 90)]


@settings(max_examples=40)
@given(st.integers(0, 70), st.lists(st.integers(0, 11), max_size=8, unique=True))
def test_resume_is_exact_through_json(steps: int, removed: list[int]) -> None:
    sizes, weights = {"a": 7, "b": 5}, {"a": 0.3, "b": 0.7}
    source = stream(sizes, weights)
    ids = [prompt(f"{task}{number}", task).id for task, size in sizes.items() for number in range(size)]
    draw(source, steps)
    for number in removed:
        source.remove(ids[number])
    resumed = stream(sizes, weights)
    resumed.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert resumed.num_active == source.num_active == 12 - len(removed)
    assert draw(resumed, 50) == draw(source, 50)
    assert resumed.state_dict() == source.state_dict()


def test_removed_prompts_never_come_back_and_the_share_passes_on() -> None:
    source = stream({"a": 2, "b": 3})
    for one in (prompt("a0", "a"), prompt("a1", "a"), prompt("b1", "b")):
        source.remove(one.id)
        source.remove(one.id)
    assert source.num_active == 2
    assert Counter(one.text for one in draw(source, 20)) == {"b0": 10, "b2": 10}


def test_an_empty_stream_says_none() -> None:
    source = stream({"a": 1})
    source.remove(draw(source, 1)[0].id)
    assert source.next() is None
    assert source.num_active == 0


def test_a_checkpoint_of_other_prompts_is_refused() -> None:
    state = stream({"a": 3}).state_dict()
    for other in (stream({"a": 4}), stream({"a": 3}, seed=1), stream({"b": 3})):
        with pytest.raises(DataError, match="not those of the checkpoint"):
            other.load_state_dict(state)


def test_unusable_streams_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'a' needs a weight above 0 \(received None\)"):
        stream({"a": 1}, {"b": 1.0})
    with pytest.raises(DataError, match="'a' has no training prompts"):
        stream({"a": 0})
    with pytest.raises(DataError, match="occurs twice"):
        PromptStream({"a": [prompt("x", "a"), prompt("x", "a")]}, {"a": 1.0}, 0)
    with pytest.raises(DataError, match="No prompt 'a-x' in the stream"):
        stream({"a": 1}).remove("a-x")
