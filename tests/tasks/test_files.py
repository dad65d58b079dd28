"""Prompts from files: every format, and every way in which a file is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from postgrad.core.errors import ConfigError, DataError
from postgrad.tasks import FileTask, TaskConfig

REWARDS = Path(__file__).with_name("rewards_for_tests.py")
ROWS = [
    {"prompt": "1 + 1?", "answer": "2"},
    {"prompt": "2 + 1?", "answer": "3"},
    {"prompt": "Capital?", "answer": "Ü"},
]


def task(path: Path | str, **fields: Any) -> FileTask:
    return FileTask(TaskConfig(name="mine", path=str(path), **fields))


def pairs(path: Path | str, **fields: Any) -> list[tuple[str | None, str | None]]:
    return [(prompt.text, prompt.answer) for prompt in task(path, **fields).prompts()]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_rows(path: Path) -> Path:
    if path.suffix in (".jsonl", ".ndjson"):
        return write(path, "\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    if path.suffix == ".json":
        return write(path, json.dumps(ROWS, indent=1))
    if path.suffix == ".csv":
        return write(
            path, "\ufeffprompt,answer\n" + "\n".join(f'"{r["prompt"]}",{r["answer"]}' for r in ROWS)
        )
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), path)
        return path
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.parquet", "directory"])
def test_every_format_reads_the_same(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / name)
    assert pairs(path) == [("1 + 1?", "2"), ("2 + 1?", "3"), ("Capital?", "Ü")]
    assert pairs(path, size=2) == [("1 + 1?", "2"), ("2 + 1?", "3")]
    ids = [prompt.id for prompt in task(path).prompts()]
    assert ids == [prompt.id for prompt in task(write_rows(tmp_path / "b.jsonl")).prompts()]
    assert len(set(ids)) == 3


def test_a_dataset_dict_has_splits(tmp_path: Path) -> None:
    import datasets

    both = {"train": datasets.Dataset.from_list(ROWS[:1]), "test": datasets.Dataset.from_list(ROWS[1:])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "d")
    assert len(pairs(tmp_path / "d", split="test")) == 2
    with pytest.raises(DataError, match=r"no split 'tets'. Did you mean 'test'\?"):
        pairs(tmp_path / "d", split="tets")


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    assert pairs(
        write(tmp_path / "a.json", '{"prompt": "a", "answer": 1}\n{"prompt": "b", "answer": 2.5}\n')
    ) == [
        ("a", "1"),
        ("b", "2.5"),
    ]


def test_chats_are_kept_as_messages(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    path = write(tmp_path / "a.jsonl", json.dumps({"messages": turns, "answer": "2"}))
    (prompt,) = task(path, prompt_column="messages").prompts()
    assert prompt.text is None
    assert prompt.messages == tuple(turns)
    assert prompt.content == "system: Be brief.\nuser: 1 + 1?"


def test_gsm8k_answers_are_the_part_after_the_marks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"prompt": "q", "answer": "4 * 18 = 72\n#### 72"}))
    mine = task(path)
    assert mine.demonstrations(mine.prompts()[0]) == ["72"]
    assert mine.verifier()(mine.prompts()[0], "<answer>72.0</answer>") == 1.0
    (kept,) = task(path, reward=f"{REWARDS}:obey").prompts()
    assert kept.answer == "4 * 18 = 72\n#### 72"


def test_with_a_reward_the_answer_is_optional_and_other_columns_are_metadata(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        '{"prompt": "q", "tests": ["x", 1], "weight": 0.5}\n{"prompt": "r", "answer": null}',
    )
    first, second = task(path, reward=f"{REWARDS}:obey").prompts()
    assert first.metadata == {"tests": ["x", 1], "weight": 0.5}
    assert (first.answer, second.answer) == (None, None)
    assert task(path, reward=f"{REWARDS}:obey").verifier()(first, "meta weight") == 0.5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "a.jsonl is empty"),
        ("a.jsonl", "\n \n", "a.jsonl is empty"),
        ("a.json", "[]", "a.json is empty"),
        ("a.csv", "prompt,answer\n", "a.csv is empty"),
        ("a.jsonl", '{"prompt": "a", "answer": "b"}\n\n{"prompt": "a', r"a.jsonl:3: not valid JSON \(Unt"),
        ("a.jsonl", '{"prompt": "a", "answer": "b"}\n[1]\n', "a.jsonl:2: expected an object .* found a list"),
        ("a.json", '[{"prompt": "a", "answer": "b"},\n{"prompt" "x"}]', "a.json:2: not valid JSON"),
        ("a.json", '[{"prompt": "a", "answer": "b"}, 3]', "a.json row 2: expected an object .* found a int"),
        ("a.json", '{\n"prompt": "a"}', "a.json:1: not valid JSON"),
        ("a.jsonl", '{"promt": "a", "answer": "b"}',
         r"a.jsonl:1: no prompt column 'prompt'; the columns are 'promt', "
         r"'answer'. Did you mean 'promt'\? Name the right one with prompt_column"),
        ("a.jsonl", '{"prompt": "a", "solution": "b"}', "a.jsonl:1: no answer column 'answer'; the"),
        ("a.jsonl", '{"prompt": "a", "answer": "b"}\n{"prompt": "a", "answer": null}',
         "a.jsonl:2: the answer .* is empty"),
        ("a.jsonl", '{"prompt": "a", "answer": " "}', "a.jsonl:1: the answer .* is empty"),
        ("a.jsonl", '{"prompt": "  ", "answer": "b"}', "a.jsonl:1: the prompt is empty"),
        ("a.jsonl", '{"prompt": 3, "answer": "b"}', "a.jsonl:1: the prompt is a int; expected text"),
        ("a.jsonl", '{"prompt": [], "answer": "b"}', "a.jsonl:1: the prompt is a list"),
        ("a.jsonl", '{"prompt": [{"role": "user"}], "answer": "b"}', "a.jsonl:1: a chat message needs"),
        ("a.jsonl", '{"prompt": [{"role": "assistant", "content": "x"}], "answer": "b"}',
         "a.jsonl:1: the chat ends with the assistant"),
        ("a.csv", "prompt,answer\na,b\nc\n", "a.csv:3: this row does not have the 2 columns"),
        ("a.csv", "prompt,answer\na,b,c\n", "a.csv:2: this row does not have the 2 columns"),
        ("a.csv", 'prompt,answer\n"a" x,b\n', "a.csv:2: not valid CSV"),
        ("a.parquet", "no parquet", "a.parquet: not a readable Parquet file"),
        ("a.txt", "hello", "a.txt: unknown ending '.txt'. Readable: .jsonl"),
    ],
)  # fmt: skip
def test_broken_files_are_named_with_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(DataError, match=message):
        task(path).prompts()


def test_bytes_that_are_no_text_are_named_with_the_line(tmp_path: Path) -> None:
    for name, head in (("a.jsonl", b'{"prompt": "a", "answer": "b"}\n'), ("a.csv", b"prompt,answer\n")):
        path = tmp_path / name
        path.write_bytes(head + b"\xff\xfe,b\n")
        with pytest.raises(DataError, match=rf"{name}:2: not UTF-8"):
            task(path).prompts()


def test_missing_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No file .*gone\.jsonl"):
        task(tmp_path / "gone.jsonl").prompts()
    with pytest.raises(DataError, match="looked up on the hub"):
        task("nobody/no-such-data-set").prompts()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Check the directory and the split"):
        task(tmp_path / "empty").prompts()


def test_options_are_for_data_sets_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="A file has no options"):
        task(write_rows(tmp_path / "a.jsonl"), options={"name": "main"}).prompts()
    with pytest.raises(ConfigError, match=r"no option 'nam'. Did you mean 'name'\?"):
        task("owner/set", options={"nam": "main"}).prompts()
    with pytest.raises(ConfigError, match="has no path"):
        FileTask(TaskConfig(name="mine"))
