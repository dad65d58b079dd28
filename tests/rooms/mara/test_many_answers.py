"""The many-answers benchmark: its good sets against brute force, its reward by hand, its measures by slow references."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import random
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from postgrad.core.types import Group, Prompt, Sample
from postgrad.tasks.function import load_function

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The benchmark, imported as it is when it runs: from its own folder."""
    pytest.importorskip("scipy")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("mara_many_answers")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def task(bench: ModuleType) -> ModuleType:
    return sys.modules["peers.many_answers_task"]


def ask(text: str) -> Prompt:
    return Prompt(id=text, text=text)


def sample(text: str) -> Sample:
    empty = np.zeros(1, np.int64)
    return Sample(0, 0, empty, empty, np.ones(1, bool), np.zeros(1, np.float32), empty, "stop", text=text)


# -- the task -------------------------------------------------------------------------------------------------------------


def test_good_sets_are_what_brute_force_finds(task):
    """Every text digit, sign, digit through Python's own arithmetic."""
    reached: dict[int, set[str]] = {}
    for characters in itertools.product("0123456789", "+-", "0123456789"):
        text = "".join(characters)
        reached.setdefault(eval(text), set()).add(text)
    for target in task.TARGETS:
        assert set(task.good_set(target)) == reached[target]
        assert len(task.good_set(target)) == len(reached[target])


def test_reward_rewards_the_good_set_and_nothing_else(task):
    """Over all texts of up to four characters, so unary signs, padded digits and missing operands are among them."""
    target = 7
    prompt = ask(task.prompt_text("B", target))
    alphabet = "0279+- ="
    for length in range(5):
        for characters in itertools.product(alphabet, repeat=length):
            text = "".join(characters)
            assert task.reward(prompt, text) == float(text.strip() in task.good_set(target)), text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3+4", 1.0),
        ("9-2\n", 1.0),
        ("4-3", 0.0),
        ("3+5", 0.0),
        ("3 + 4", 0.0),
        ("03+4", 0.0),
        ("3+4=7", 0.0),
        ("3+4\n3+4", 0.0),
        ("7", 0.0),
        ("", 0.0),
        ("3+４", 0.0),  # a full-width digit: int() would take it
        ("٣+4", 0.0),  # an Arabic one
    ],
)
def test_reward_by_hand(task, text, expected):
    assert task.reward(ask("Card C: make 7 from two digits:"), text) == expected


def test_target_is_read_from_the_prompt_not_from_the_tag_or_a_part_of_the_number(task):
    assert [task.target_of(task.prompt_text("A", target)) for target in task.TARGETS] == list(task.TARGETS)
    assert task.reward(ask("Card A: make 13 from two digits:"), "1+2") == 0.0
    assert task.reward(ask("Card A: make 13 from two digits:"), "9+4") == 1.0
    with pytest.raises(ValueError, match="not a prompt of this task"):
        task.target_of("make 7")


def test_the_file_loads_as_a_reward(bench):
    function = load_function(f"{bench.REWARD_FILE}:reward")
    assert function(ask("Card L: make 0 from two digits:"), "5-5") == 1.0
    assert function(ask("Card L: make 0 from two digits:"), "5-4") == 0.0


def test_prompts_are_all_different_and_every_target_is_trained_and_some_held_out(bench, tmp_path):
    options = bench.argparse.Namespace(steps=1, lr=1e-3, every=1)
    bench.write_prompts(tmp_path)
    config = bench.make(bench.make_task(tmp_path), 0, options, bench.ARMS["MARA"])
    sides = bench.read_data(config).split
    assert sides.num_duplicates == 0
    assert len(sides.train) + len(sides.held_out) == 14 * 12
    count = Counter(bench.target_of(prompt.content) for prompt in sides.train)
    assert set(count) == set(range(14))
    assert len({bench.target_of(prompt.content) for prompt in sides.held_out}) >= 10
    assert not {p.content for p in sides.train} & {p.content for p in sides.held_out}


def test_demonstrations_follow_the_prior(task):
    """20,000 draws for one target against the stated shares, by Pearson's χ² over seven classes."""
    shares = task.Prior(favourite=0.6, wrong=0.25)
    text = task.prompt_text("A", 13)
    pairs = task.demonstrations([text], 20_000, shares, random.Random(3))
    assert {prompt for prompt, _ in pairs} == {text}
    count = Counter(answer if answer in task.good_set(13) else "wrong" for _, answer in pairs)
    assert math.isclose(sum(task.prior(13, shares).values()), 0.75)
    expected = {**dict.fromkeys(task.good_set(13), 0.03), "7+6": 0.6, "wrong": 0.25}
    statistic = sum((count[key] - 20_000 * p) ** 2 / (20_000 * p) for key, p in expected.items())
    assert statistic < 37.3  # χ² with 6 degrees of freedom passes this once in 660,000
    assert all(task.evaluate_expression(answer) is not None for _, answer in pairs)


def test_a_prior_without_room_for_the_rare_is_refused(task):
    with pytest.raises(ValueError, match="must leave something"):
        task.Prior(favourite=0.8, wrong=0.2)


# -- what is measured -----------------------------------------------------------------------------------------------------


def test_measure_by_hand(bench):
    """Two prompts with six and eight good answers, eight samples each."""
    first = Group(
        ask("Card A: make 13 from two digits:"), [sample(t) for t in ["7+6", "7+6 ", "4+9", "1+1"] * 2]
    )
    second = Group(ask("Card A: make 11 from two digits:"), [sample(t) for t in ["5+6"] * 7 + ["x"]])
    point = bench.measure(20, [first, second], [[0.25, 0.25] + [0.0] * 4, [0.5] + [0.0] * 7])
    assert point.step == 20
    assert point.pass_rate == pytest.approx((6 / 8 + 7 / 8) / 2)
    assert point.coverage == pytest.approx((2 / 6 + 1 / 8) / 2)
    assert point.unique == pytest.approx(1.5)
    assert point.pass_at_8 == 1.0
    assert point.good_mass == pytest.approx(0.5)
    assert point.kl_uniform == pytest.approx((math.log(6 / 2) + math.log(8)) / 2)


def test_answer_probabilities_are_those_of_a_plain_forward_pass_and_of_sampling(bench, task, tmp_path):
    """Teacher forcing in packed rows against one unpacked sequence at a time, and against frequencies of the engine."""
    options = bench.argparse.Namespace(steps=1, lr=1e-3, every=1)
    bench.write_prompts(tmp_path)
    config = bench.make(bench.make_task(tmp_path), 0, options, {"model": {"embedded": {"steps": 30}}})
    texts = [task.prompt_text(tag, target) for tag in "AB" for target in (5, 13)]
    pairs = task.demonstrations(texts, 100, task.Prior(0.5, 0.2), random.Random(0))
    model = bench.embedded_model(pairs, config.model.embedded, device="cpu", cache_dir=tmp_path)
    held_out = [ask(text) for text in texts[:2]]
    rollout = bench.Rollout(model, config.length, config.algorithm, 0)
    found = bench.answer_probabilities(model, rollout, held_out)
    for prompt, values in zip(held_out, found, strict=True):
        start = rollout.encode(prompt).tolist()
        good = task.good_set(task.target_of(prompt.content))
        assert len(values) == len(good)
        for answer, value in zip(good, values, strict=True):
            ids = [*model.tokenizer.encode(answer, add_special_tokens=False), model.tokenizer.eos_token_id]
            with torch.no_grad():
                logps = model.module(torch.tensor([start + ids])).logits[0].log_softmax(-1)
            slow = sum(float(logps[len(start) - 1 + i, token]) for i, token in enumerate(ids))
            assert value == pytest.approx(math.exp(slow), rel=1e-4)
    with bench.VerifierPool(config.data.tasks, 1, 5.0) as judge:
        chosen = [Prompt(p.id, p.text, task="many_answers") for p in held_out]
        engine = bench.make_engine(model, config, 40)
        groups = bench.evaluate(engine, rollout, judge, chosen, 1000, 1.0).groups
    for group, values in zip(groups, found, strict=True):
        mass = sum(values)
        rate = np.mean([s.verdict.score for s in group.samples])
        assert abs(rate - mass) < 5 * math.sqrt(mass * (1 - mass) / 1000)


def test_arms_are_compared_at_the_level_that_all_reach(bench):
    def course(*pairs):
        return [bench.Point(10 * i, p, c, 0.0, 0.0, 0.0, 0.0) for i, (p, c) in enumerate(pairs)]

    fast = course((0.99, 0.1), (0.8, 0.5), (0.95, 0.3), (0.9, 0.2))
    slow = course((0.5, 0.4), (0.7, 0.6), (0.85, 0.7), (0.9, 0.8))
    assert bench.equal_level([fast, slow]) == 0.9  # the start does not count, nor must the end be the highest
    assert bench.at_level(fast, 0.9).step == 20
    assert bench.at_level(slow, 0.9).coverage == 0.8
    assert bench.at_level(slow, 0.91) is None


def test_updates_to_uniform_are_those_of_the_last_stay(bench):
    def course(*kls):
        return [bench.Point(10 * i, 0.0, 0.0, 0.0, 0.0, 0.0, kl) for i, kl in enumerate(kls)]

    assert bench.settled(course(1.0, 0.4, 0.6, 0.5, 0.2)) == 30.0
    assert bench.settled(course(1.0, 0.4, 0.6)) is None
    assert bench.settled(course(0.4, 0.3)) == 0.0


def test_arms_differ_in_what_their_change_says_alone(bench, tmp_path):
    options = bench.argparse.Namespace(steps=1, lr=1e-3, every=1)
    task = bench.make_task(tmp_path)
    plain = bench.make(task, 3, options, {}).model_dump()
    assert plain["algorithm"]["history_threshold"] is None
    assert bench.ARMS.keys() == {*bench.GRID, bench.PEER}
    ours, peer = bench.ARMS[bench.OURS], bench.ARMS[bench.PEER]
    assert peer == {**ours, "mara": {**ours["mara"], "method": "none", "replay": 0}}
    for changes in bench.GRID.values():
        for change in changes:
            config = bench.make(task, 3, options, change).model_dump()
            assert config.pop("mara") == change.get("mara", {})
            assert config == bench.deep_merge(
                {key: value for key, value in plain.items() if key != "mara"},
                {"algorithm": change.get("algorithm", {})},
            )


def test_a_finished_job_is_not_run_again(bench, tmp_path, monkeypatch, capsys):
    options = bench.argparse.Namespace(steps=1, lr=1e-3, every=1)
    job = bench.Job("KL", bench.ARMS["KL"], 0, options, tmp_path)
    other = bench.Job("KL", bench.ARMS["KL"], 1, options, tmp_path)
    assert job.result != other.result
    point = bench.asdict(bench.Point(1, 0.5, 0.25, 1.0, 1.0, 1.0, 0.0))
    job.result.parent.mkdir()
    job.result.write_text(json.dumps({"course": [point], "step_s": 0.1}))
    monkeypatch.setattr(bench, "warm_start", None)  # would be called
    assert bench.work(job)["course"] == [bench.Point(**point)]
    bench.write_prompts(tmp_path)
    with pytest.raises(TypeError, match="not callable"):
        bench.work(other)
