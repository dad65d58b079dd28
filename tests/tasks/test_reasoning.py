"""reasoning-gym data sets: generation that repeats, scores that survive another process, exact credit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from postgrad.core.errors import ConfigError, TaskError
from postgrad.core.types import Prompt
from postgrad.tasks import DataConfig, FileTask, ReasoningTask, TaskConfig, VerifierPool, load_tasks, names
from postgrad.tasks.load import make_verifier
from postgrad.tasks.reasoning import HASH_ORDERED, generate

REWARDS = Path(__file__).with_name("rewards_for_tests.py")


def task(name: str, size: int = 4, **fields: Any) -> ReasoningTask:
    return ReasoningTask(TaskConfig(name=name, size=size, **fields))


def test_names_are_the_data_sets() -> None:
    assert {"chain_sum", "gcd", "sudoku"} <= set(names())
    assert "composite" not in names()
    assert names() == sorted(names())


def test_chain_sum_by_hand() -> None:
    mine = task("chain_sum", options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    for prompt in mine.prompts():
        question = prompt.text or ""
        left, sign, right = question.removesuffix(" =").split(": ")[1].split()
        assert prompt.answer == str(int(left) + int(right) if sign == "+" else int(left) - int(right))
        assert mine.verifier()(prompt, f"<answer>{prompt.answer}</answer>") == 1.0
        assert mine.verifier()(prompt, f"<answer>{prompt.answer}0.5</answer>") == 0.0
        assert prompt.task == "chain_sum"
    assert len({prompt.id for prompt in mine.prompts()}) == 4


def test_options_and_seed_change_the_prompts_and_nothing_else_does() -> None:
    texts = [[p.text for p in task("gcd", seed=seed).prompts()] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert [p.text for p in task("gcd", size=2).prompts()] == texts[0][:2]
    assert [p.text for p in task("gcd", options={"min_numbers": 5, "max_numbers": 5}).prompts()] != texts[0]


def test_a_substring_earns_nothing_unless_partial_credit_is_asked_for() -> None:
    prompt = task("letter_counting").prompts()[0]
    config = TaskConfig(name="letter_counting", size=4)
    gold = prompt.answer or ""
    assert make_verifier(config)(prompt, gold) == 1.0
    assert make_verifier(config)(prompt, f"1{gold}") == 0.0
    partial = make_verifier(config.model_copy(update={"partial_credit": True}))
    assert partial(prompt, f"1{gold}") == pytest.approx(len(gold) / (len(gold) + 1))


@pytest.mark.parametrize("name", ["rearc", "graph_color", "count_primes", "knights_knaves", "chain_sum"])
def test_a_prompt_is_scored_alike_after_json(name: str) -> None:
    # rearc tells tuples from lists, graph_color has integer keys: they are generated again
    mine = task(name, size=2)
    for prompt in mine.prompts():
        sent = replace(prompt, metadata=json.loads(json.dumps(dict(prompt.metadata))))
        verifier = make_verifier(TaskConfig(name=name, size=2))
        answers = [prompt.answer or "{}", "0", "wrong"]
        assert [verifier(sent, answer) for answer in answers] == [
            mine.verifier()(prompt, answer) for answer in answers
        ]
        if prompt.answer is not None:
            assert verifier(sent, prompt.answer) == 1.0
        else:
            assert name == "graph_color"
            coloring = _possible_answer(prompt)
            assert verifier(sent, coloring) == 1.0


def _possible_answer(prompt: Prompt) -> str:
    from postgrad.tasks.reasoning import generate_entry, make_dataset

    entry = generate_entry(make_dataset(TaskConfig(name="graph_color", size=2)), prompt.metadata["index"])
    return json.dumps(entry["metadata"]["possible_answer"])


def test_a_prompt_of_another_config_is_not_scored_by_the_wrong_entry() -> None:
    prompt = task("count_primes", size=3, seed=1).prompts()[0]
    with pytest.raises(TaskError, match="generated with another config"):
        make_verifier(TaskConfig(name="count_primes", size=3, seed=2))(prompt, prompt.answer or "")


def test_an_answer_of_the_wrong_form_is_wrong_not_an_error() -> None:
    # prime_factorization's scorer raises ValueError on anything that is not numbers
    mine = task("prime_factorization", size=1)
    (prompt,) = mine.prompts()
    assert mine.verifier()(prompt, "I do not know") == 0.0
    assert mine.verifier()(prompt, prompt.answer or "") == 1.0
    broken = replace(prompt, answer="nonsense")
    with pytest.raises(ValueError, match="invalid literal"):
        mine.verifier()(broken, "I do not know")


def test_global_random_generators_are_left_alone() -> None:
    random.seed(5)
    np.random.seed(5)
    expected = (random.Random(5).random(), np.random.RandomState(5).rand())
    first = [
        row[0]
        for name in ("list_functions", "pool_matrix")
        for row in generate(TaskConfig(name=name, size=5))
    ]
    assert (random.random(), np.random.rand()) == expected
    again = [
        row[0]
        for name in ("list_functions", "pool_matrix")
        for row in generate(TaskConfig(name=name, size=5))
    ]
    assert first == again


PRINT_PROMPTS = """
import json, sys
from postgrad.tasks.config import TaskConfig
from postgrad.tasks.reasoning import ReasoningTask, generate
config = TaskConfig(name="isomorphic_strings", size=6)
unguarded = [question for question, _, _ in generate(config)]
guarded = [prompt.text for prompt in ReasoningTask(config).prompts()]
print(json.dumps([unguarded, guarded]))
"""


def test_prompts_do_not_depend_on_pythons_hash_seed() -> None:
    assert "isomorphic_strings" in HASH_ORDERED
    ours = [prompt.text for prompt in task("isomorphic_strings", size=6).prompts()]
    done = subprocess.run(
        [sys.executable, "-c", PRINT_PROMPTS],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    unguarded, guarded = json.loads(done.stdout)
    assert guarded == ours
    assert unguarded != ours  # otherwise the guard is no longer needed


def test_every_cheap_data_set_accepts_its_own_demonstration() -> None:
    slow = {
        "knight_swap",
        "arc_agi",
        "codeio",
        "figlet_font",
        "group_anagrams",
        "rush_hour",
        "sokoban",
        "zebra_puzzles",
        "intermediate_integration",
        "sudoku",
        *HASH_ORDERED,
    }
    without = []
    for name in sorted(set(names()) - slow):
        mine = task(name, size=1, seed=3)
        (prompt,) = mine.prompts()
        json.dumps(dict(prompt.metadata))
        demonstrations = mine.demonstrations(prompt)
        if not demonstrations:
            without.append(name)
        for demonstration in demonstrations:
            assert mine.verifier()(prompt, f"<think>hm</think><answer>{demonstration}</answer>") == 1.0, name
    assert without == ["boxnet", "graph_color", "propositional_logic", "rubiks_cube"]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"name": "chain_sun"}, TaskError, r"data set 'chain_sun'. Did you mean 'chain_sum'\?"),
        ({"name": "composite"}, TaskError, "No reasoning-gym data set 'composite'"),
        ({"name": "gcd", "options": {"min_number": 1}}, ConfigError, "no option 'min_number'. Did you"),
        ({"name": "gcd", "options": {"seed": 1}}, ConfigError, "set seed, not options.seed"),
        ({"name": "chain_sum", "options": {"min_terms": 5, "max_terms": 2}}, ConfigError, ">= min_terms"),
        ({"name": "chain_sum", "options": {"min_terms": "two"}}, ConfigError, "chain_sum refuses the"),
        ({"name": "gcd", "reward": "no_such_module_x:f"}, TaskError, "no module named"),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_anything_is_generated(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ReasoningTask(TaskConfig(**fields))


def test_load_tasks(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "1 + 1?", "answer": "2"}\n')
    configs = (
        TaskConfig(name="gcd", size=3),
        TaskConfig(name="mine", path=str(file)),
        TaskConfig(name="chain_sum", size=2, reward=f"{REWARDS}:obey"),
    )
    tasks = load_tasks(DataConfig(tasks=configs))
    assert [type(one) for one in tasks] == [ReasoningTask, FileTask, ReasoningTask]
    assert [one.name for one in tasks] == ["gcd", "mine", "chain_sum"]
    assert all(prompt.task == one.name for one in tasks for prompt in one.prompts())
    completions = ["<answer>{}</answer>", r"\boxed{{{}}}", "answer {}"]
    with VerifierPool(configs, timeout_s=20) as pool:
        right = [
            pool.submit(t.prompts()[0], c.format(t.prompts()[0].answer))
            for t, c in zip(tasks, completions, strict=True)
        ]
        wrong = [
            pool.submit(t.prompts()[0], c.format("-77")) for t, c in zip(tasks, completions, strict=True)
        ]
        assert [verdict.score for verdict in pool.collect(right)] == [1.0, 1.0, 1.0]
        assert [verdict.score for verdict in pool.collect(wrong)] == [0.0, 0.0, 0.0]


def test_load_tasks_refuses_none_and_twins() -> None:
    with pytest.raises(ConfigError, match="No task"):
        load_tasks(DataConfig())
    with pytest.raises(ConfigError, match="Two tasks are called 'gcd'"):
        load_tasks(DataConfig(tasks=(TaskConfig(name="gcd"), TaskConfig(name="gcd", seed=1))))


def test_the_public_face() -> None:
    code = (
        "import sys, postgrad.tasks as t\n"
        "heavy = {'torch', 'reasoning_gym', 'math_verify', 'datasets', 'pyarrow', 'sympy'}\n"
        "assert t.__all__ == sorted(t.__all__)\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "for name in t.__all__: assert getattr(t, name) is not None\n"
        "assert callable(t.split) and set(t.__all__) <= set(dir(t))\n"
        "import postgrad.tasks.worker\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
