"""Prompts from a Python function, several answers of one prompt, and nothing held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from postgrad.core.errors import ConfigError, DataError, PostgradError, TaskError
from postgrad.rl.api import read_data
from postgrad.rl.config import make_config
from postgrad.tasks import FileTask, TaskConfig

SOURCE = """
def rows(size, seed, word="w"):
    for number in range(size + 10):
        yield {"prompt": f"{word}{number}?", "answer": str(number + seed)}

def one(size, seed):
    return [{"prompt": "Say:", "answer": letter} for letter in "abcdefgh"[:size]]

def broken(size, seed):
    yield {"prompt": "a", "answer": "b"}
    raise KeyError("no such thing")

def lists(size, seed):
    return [["a", "b"]]

def nothing(size, seed):
    return None

def empty(size, seed):
    return []

NUMBER = 3
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "sources_for_tests.py"
    path.write_text(SOURCE)
    return str(path)


def task(path: str, **fields: Any) -> FileTask:
    return FileTask(TaskConfig(name="mine", path=path, **fields))


def test_size_seed_and_options_reach_the_function(source: str) -> None:
    found = task(f"{source}:rows", size=3, seed=7, options={"word": "v"}).prompts()
    assert [(prompt.text, prompt.answer) for prompt in found] == [("v0?", "7"), ("v1?", "8"), ("v2?", "9")]


def test_a_module_is_found_on_the_path(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(source).parent))
    assert len(task("sources_for_tests:rows", size=4).prompts()) == 4


def test_a_file_whose_name_looks_like_a_function_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a:b").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="unknown ending"):
        task("a:b").prompts()


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("rowz", {}, TaskError, r"Source .*no attribute 'rowz'. Did you mean 'rows'\?"),
        ("NUMBER", {}, TaskError, "Source .*NUMBER is a int, not a function"),
        ("rows", {"wrd": 1}, ConfigError, r"called as function\(size=5, seed=0, wrd=1\): .*'wrd'"),
        ("rows", {"size": 1}, ConfigError, "size is an option of the task itself"),
        ("broken", {}, DataError, "failed after row 1: KeyError: 'no such thing'"),
        ("lists", {}, DataError, "row 1: expected columns by name, found a list"),
        ("nothing", {}, DataError, "gave a NoneType; a source gives rows"),
        ("empty", {}, DataError, "is empty"),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    source: str, name: str, options: dict[str, Any], error: type[PostgradError], message: str
) -> None:
    with pytest.raises(error, match=message):
        task(f"{source}:{name}", size=5, options=options).prompts()


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(TaskError, match=r"Source 'no_such_module_here:f': no module named"):
        task("no_such_module_here:f").prompts()


def test_rows_that_ask_the_same_are_several_demonstrations(source: str) -> None:
    mine = task(f"{source}:one", size=3)
    assert [list(mine.demonstrations(prompt)) for prompt in mine.prompts()] == [["a", "b", "c"]] * 3


def demonstrations(source: str, count: int, holdout: float = 0.0, **embedded: Any) -> list[tuple[str, str]]:
    tasks = [{"name": name, "path": f"{source}:{name}", "size": 5} for name in ("one", "rows")]
    config = make_config(
        {
            "data": {"tasks": tasks, "holdout_fraction": holdout},
            "model": {"embedded": {"demonstrations": count, **embedded}},
        }
    )
    return read_data(config).demonstrations


def test_first_answers_come_before_second_ones(source: str) -> None:
    """One prompt with five answers and five with one: 6 first answers, then the four further ones."""
    everything = demonstrations(source, 100)
    assert sorted(everything) == sorted(
        [*(("Say:", letter) for letter in "abcde"), *((f"w{n}?", str(n)) for n in range(5))]
    )
    assert len(demonstrations(source, 6)) == 6
    assert [pair for pair in demonstrations(source, 6) if pair[0] == "Say:"] == [("Say:", "a")]
    assert [a for text, a in demonstrations(source, 8) if text == "Say:"] == ["a", "b", "c"]


def test_wrong_demonstrations_carry_an_answer_of_the_same_task(source: str) -> None:
    found = demonstrations(source, 100, wrong_fraction=0.9)
    assert {answer for text, answer in found if text == "Say:"} <= set("abcde")
    assert {answer for text, answer in found if text != "Say:"} <= set("01234")
    assert found != demonstrations(source, 100)


def test_only_training_prompts_are_demonstrated(source: str) -> None:
    config = make_config(
        {
            "data": {
                "tasks": [{"name": "rows", "path": f"{source}:rows", "size": 40}],
                "holdout_fraction": 0.5,
            }
        }
    )
    data = read_data(config)
    assert {text for text, _ in data.demonstrations} == {prompt.text for prompt in data.split.train}
