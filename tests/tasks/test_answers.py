"""Extraction of answers, math-verify, and rewards loaded by name."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postgrad.core.errors import MissingExtraError, TaskError
from postgrad.core.types import Prompt
from postgrad.tasks import MathVerifier, extract_answer
from postgrad.tasks.extras import require
from postgrad.tasks.function import load_function

REWARDS = Path(__file__).with_name("rewards_for_tests.py")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("42", "42"),
        ("<answer>\n1 2\n3 4\n</answer> bye", "1 2\n3 4"),
        ("a <answer>1</answer> b <answer>2</answer>", "2"),
        ("<answer>1</answer></think>", ""),
        ("<think><answer>1</answer></think> 2 ", "2"),
        ("x</think><answer>1</answer></think><answer>3</answer>", "3"),
        ("<answer>unclosed 7", "<answer>unclosed 7"),
        ("no opening 7</answer>", "no opening 7</answer>"),
        ("<answer>first</answer> then <answer>unclosed", "first"),
        (r"so \boxed{\frac{1}{2}}", r"so \boxed{\frac{1}{2}}"),
        ("", ""),
    ],
)
def test_extract_answer_by_hand(completion: str, answer: str) -> None:
    assert extract_answer(completion) == answer


@given(st.text(), st.text(alphabet="ab 1\n/"), st.text(alphabet="xyz /"))
def test_a_tagged_answer_is_found_whatever_stands_around_it(before: str, answer: str, after: str) -> None:
    assert extract_answer(f"{before}<answer>{answer}</answer>{after}") == answer.strip()


@pytest.fixture(scope="module")
def verifier() -> MathVerifier:
    return MathVerifier()


@pytest.mark.parametrize(
    ("gold", "completion", "score"),
    [
        ("42", "<answer>42</answer>", 1.0),
        ("42", "The answer is $42$.", 1.0),
        ("42", r"First 7, then \boxed{42}", 1.0),
        ("42", "43", 0.0),
        ("42", "", 0.0),
        ("0.5", "<answer>1/2</answer>", 1.0),
        (r"\frac{1}{2}", "<answer>0.5</answer>", 1.0),
        (r"$\frac{1}{2}$", r"\boxed{\frac{2}{4}}", 1.0),
        ("2", r"<answer>2\pi</answer>", 0.0),
        (r"2\pi", r"<answer>2</answer>", 0.0),
        (r"2\pi", r"<answer>\pi \cdot 2</answer>", 1.0),
        (r"\sqrt{8}", r"$2\sqrt{2}$", 1.0),
        ("x^2 + 2x + 1", "<answer>(x+1)^2</answer>", 1.0),
        ("3, 4", "<answer>4, 3</answer>", 1.0),
        ("1,000", "<answer>1000</answer>", 1.0),
        ("Paris", "<answer>paris.</answer>", 1.0),
        ("Paris", "<answer>Pairs</answer>", 0.0),
        ("New  York", "<answer>new york</answer>", 1.0),
        ("Section 3", "<answer>3</answer>", 0.0),
        ("C", "<answer>C</answer>", 1.0),
        ("C", "<answer>D</answer>", 0.0),
    ],
)
def test_math_verifier_by_hand(verifier: MathVerifier, gold: str, completion: str, score: float) -> None:
    assert verifier(Prompt(id="p", text="?", answer=gold), completion) == score


def test_math_verifier_off_the_main_thread(verifier: MathVerifier) -> None:
    # math-verify's own time limit uses signal.alarm, which raises (or silently gives False) here
    found: list[float] = []
    prompt = Prompt(id="p", text="?", answer="7/3")
    thread = threading.Thread(target=lambda: found.append(verifier(prompt, r"$\frac{14}{6}$")))
    thread.start()
    thread.join()
    assert found == [1.0]


def test_math_verifier_needs_an_answer(verifier: MathVerifier) -> None:
    with pytest.raises(ValueError, match="prompt p has no answer"):
        verifier(Prompt(id="p", text="?"), "1")


def test_load_function_from_a_file_and_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load_function(f"{REWARDS}:obey")(Prompt(id="p", text=""), "score 0.5") == 0.5
    (tmp_path / "helper_of_reward.py").write_text("VALUE = 0.75\n")
    (tmp_path / "reward_in_cwd.py").write_text(
        "from helper_of_reward import VALUE\ndef f(prompt, completion, scale=1): return VALUE * scale\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert load_function("reward_in_cwd:f")(Prompt(id="p", text=""), "") == 0.75
    assert load_function("reward_in_cwd.py:f")(Prompt(id="p", text=""), "") == 0.75


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", r"module:function .*received 'nothing'"),
        (":f", "module:function"),
        ("m:", "module:function"),
        ("no_such_module_here:f", "no module named 'no_such_module_here'"),
        ("json.no_such:f", "no module named 'json.no_such'"),
        ("missing/file.py:f", "no file missing/file.py"),
        (f"{REWARDS}:obay", r"no attribute 'obay'. Did you mean 'obey'\?"),
        (f"{REWARDS}:NUMBER", "NUMBER is a int, not a function"),
        (f"{REWARDS}:one_argument", r"reward\(prompt, completion\) -> float, but takes \(prompt\)"),
    ],
)
def test_load_function_says_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_function(spec)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_dependency\n", "ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("def f(:\n", "SyntaxError"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_reward_file_that_fails_is_named_with_its_error(tmp_path: Path, source: str, message: str) -> None:
    file = tmp_path / "bad_reward.py"
    file.write_text(source)
    with pytest.raises(TaskError, match=f"failed to import: {message}"):
        load_function(f"{file}:f")
    assert not [name for name in sys.modules if "bad_reward" in name]


def test_a_missing_extra_names_the_command() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'postgrad\[envs\]'"):
        require("no_such_package.part", package="no-such-package", extra="envs", purpose="A test")
