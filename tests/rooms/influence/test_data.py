"""What examples may come from: tables, saved data sets, `datasets` objects, chats; and what is said of those that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from postgrad.cli import main
from postgrad.core.errors import ConfigError, DataError, MissingExtraError
from postgrad.core.models import Model, embedded_model, save
from postgrad.core.models.config import EmbeddedConfig
from postgrad.influence.api import run
from postgrad.influence.config import InfluenceConfig
from postgrad.influence.data import Example, parse_given, parse_row, read_examples
from postgrad.influence.examples import Texts, make_examples

datasets = pytest.importorskip("datasets")

ROWS = [
    {"prompt": "What does Ada eat?", "completion": "plums"},
    {"prompt": "What does Bob eat?", "completion": "bread"},
    {"prompt": "What does Cleo eat?", "completion": "rice"},
]
PAIRS = [(row["prompt"], row["completion"]) for row in ROWS]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


CHAT = [turn("system", "Be brief."), turn("user", "Who?"), turn("assistant", "Ada."), turn("user", "Eats?")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 16}
    config = EmbeddedConfig(**sizes, intermediate_size=16, steps=0)
    return embedded_model(PAIRS, config, device="cpu", cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def chat_model(model: Model) -> Any:
    model.tokenizer.chat_template = TEMPLATE
    yield model
    model.tokenizer.chat_template = None


def pairs(examples: list[Example]) -> list[tuple[str | None, str]]:
    return [(one.prompt, one.completion) for one in examples]


# -- tables ----------------------------------------------------------------------------------------------------------


def write(folder: Path, kind: str) -> Path:
    """The rows as such a source."""
    table = datasets.Dataset.from_list(ROWS)
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "csv":
        path.write_text("prompt,completion\n" + "".join(f"{a},{b}\n" for a, b in PAIRS))
    elif kind == "parquet":
        table.to_parquet(str(path))
    elif kind == "saved":
        table.save_to_disk(str(path))
    elif kind == "saved splits":
        datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(path))
    else:
        path.mkdir()
        (path / "README.md").write_text("About the data.")
        table.to_parquet(str(path / "train.parquet"))
    return path


@pytest.mark.parametrize(
    "kind", ["jsonl", "json", "csv", "parquet", "saved", "saved splits", "directory of tables"]
)
def test_tables_of_every_kind_give_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write(tmp_path, kind)
    found = read_examples(path)
    assert pairs(found) == PAIRS
    assert found[1].id == {"jsonl": "rows.jsonl:3", "csv": "rows.csv:3"}.get(kind, f"{path.name} row 2")
    if kind == "saved splits":
        assert pairs(read_examples(path, InfluenceConfig(split="test"))) == PAIRS[:1]
        with pytest.raises(DataError, match="has no split 'tset'. Did you mean 'test'"):
            read_examples(path, InfluenceConfig(split="tset"))


def test_texts_are_still_texts(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("bee")
    (tmp_path / "a.txt").write_text("ay")
    (tmp_path / "notes.json").write_text("{}")
    assert [(one.id, one.text) for one in read_examples(tmp_path)] == [("a.txt", "ay"), ("sub/b.md", "bee")]
    assert read_examples(tmp_path / "a.txt")[0].text == "ay"


def test_data_sets_are_taken_as_they_are(model: Model) -> None:
    table = datasets.Dataset.from_list(ROWS)
    expected = run(model, ROWS, ROWS[:1], method="gradient")
    splits = datasets.DatasetDict({"train": table, "test": table.select([0])})
    mapped = table.rename_columns({"prompt": "question", "completion": "answer"})
    for train, options in (
        (table, {}),
        (splits, {}),
        (table.to_iterable_dataset(), {}),
        (iter(ROWS), {}),
        (mapped, {"prompt_column": "question", "answer_column": "answer"}),
    ):
        queries = ROWS[:1] if not options else mapped.select([0])
        result = run(model, train, queries, method="gradient", **options)
        torch.testing.assert_close(result.scores, expected.scores)
    assert run(model, table, table, method="bm25").train[2] == (
        "training[2]",
        "What does Cleo eat?\nrice",
    )
    with pytest.raises(ConfigError, match="no split 'dev'. Valid: test, train"):
        run(model, splits, ROWS, split="dev")
    with pytest.raises(DataError, match=r"training example 1: the text is empty.*columns: question, answer"):
        run(model, mapped, ROWS)


def test_a_path_is_read(model: Model, tmp_path: Path) -> None:
    path = write(tmp_path, "csv")
    assert run(model, path, path, method="bm25").train[0][0] == "rows.csv:2"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": ""}\n', r"a\.jsonl:2: the text is empty or missing"),
        ("a.jsonl", '{"text": "x"}\nnot so\n', r"a\.jsonl:2: not valid JSON"),
        ("a.csv", "prompt,completion\na,b\nc,\n", r"a\.csv:3: the completion is empty"),
        ("a.json", '[{"prompt": "a"}]', r"a\.json row 1: the completion is empty.*columns: prompt"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}\n', r"a\.jsonl:1: a message needs a role"),
        ("a.parquet", "no", r"not a readable Parquet file"),
        ("a.xlsx", "no", r"unknown ending"),
        ("a.jsonl", "\n", "there is nothing to attribute"),
        ("a.txt", " ", r"a\.txt: the text is empty"),
    ],
)
def test_bad_rows_have_a_place(name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        read_examples(tmp_path / name)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'postgrad\[data\]'"):
        read_examples(path)


def test_what_is_no_data_is_said() -> None:
    for given in (3, "text", b"text"):
        with pytest.raises(ConfigError, match="query examples are a list of texts"):
            parse_given(given, "query", InfluenceConfig())


def test_columns_on_the_command_line(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(model, tmp_path / "model")
    table = datasets.Dataset.from_list(ROWS).rename_columns({"prompt": "question", "completion": "answer"})
    datasets.DatasetDict({"dev": table}).save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(str(tmp_path / "rows.parquet"))
    words = ["influence", "run", str(tmp_path / "model"), "--train", str(tmp_path / "saved")]
    words += ["--query", str(tmp_path / "rows.parquet"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    words += ["--method", "gradient", "--split", "dev", "--prompt-column", "question"]
    assert main(words) == 2
    assert "saved row 1: the completion is empty or missing" in capsys.readouterr().err
    assert main([*words, "--answer-column", "answer"]) == 0
    scores = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text().splitlines()]
    assert [row["query"] for row in scores[::3]] == [f"rows.parquet row {n}" for n in (1, 2, 3)]
    expected = run(model, ROWS, ROWS, method="gradient").scores.flatten().tolist()
    assert [row["score"] for row in scores] == pytest.approx(expected, rel=1e-3)


# -- chats -----------------------------------------------------------------------------------------------------------


def test_a_chat_is_the_assistants_last_turn_after_those_before() -> None:
    one = parse_row({"messages": [*CHAT, turn("assistant", "Plums."), turn("user", "Thanks.")]}, "row 1")
    assert one.messages == tuple(CHAT)
    assert (one.prompt, one.completion) == (None, "Plums.")
    assert one.text.endswith("user: Eats?\nassistant: Plums.")
    assert parse_row({"prompt": CHAT, "completion": [turn("assistant", "Plums.")]}, "row 1") == one
    both = parse_row({"prompt": "Who?", "messages": [*CHAT, turn("assistant", "Plums.")]}, "row 1")
    assert both == one  # a chat is more than its first prompt
    assert parse_row({"text": None, "messages": None, **ROWS[0]}, "row 1").prompt == ROWS[0]["prompt"]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([turn("user", "a")], "no turn of the assistant that answers"),
        ([turn("assistant", "a")], "no turn of the assistant that answers"),
        ([], "roles: none"),
        ("text", "no list of messages"),
        ([turn("user", None), turn("assistant", "b")], "needs a role and a text content"),
        ([turn("user", "a"), turn("assistant", "")], "the messages is empty"),
    ],
)
def test_bad_chats_are_answered(messages: Any, words: str) -> None:
    with pytest.raises(DataError, match=f"row 7: .*{words}"):
        parse_row({"messages": messages}, "row 7")


def test_the_loss_of_a_chat_is_that_of_the_last_answer_and_its_stop(chat_model: Model) -> None:
    """Against the template's own text, token by token."""
    chat = [*CHAT, turn("assistant", "Plums.")]
    found = Texts(chat_model, make_examples([{"messages": chat}], "training"), 512)
    tokenizer = chat_model.tokenizer
    written = "<system>Be brief.\n<user>Who?\n<assistant>Ada.{0}\n<user>Eats?\n<assistant>Plums.{0}"
    ids = tokenizer(written.format(tokenizer.eos_token))["input_ids"]
    assert found.tokens[0] == ids
    answer = len(tokenizer("Plums.")["input_ids"]) + 1
    with torch.no_grad():
        logits = chat_model.module(input_ids=torch.tensor([ids])).logits[0, :-1]
        expected = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")[-answer:].sum()
        torch.testing.assert_close(found.losses([0])[0], expected)
    pair = Texts(chat_model, make_examples([ROWS[0]], "training"), 512)
    one = [turn("user", ROWS[0]["prompt"]), turn("assistant", ROWS[0]["completion"])]
    assert Texts(chat_model, make_examples([{"messages": one}], "training"), 512).tokens == pair.tokens


def test_a_template_without_stop_or_with_another_history_gets_one(chat_model: Model) -> None:
    tokenizer = chat_model.tokenizer
    tokenizer.chat_template = TEMPLATE.replace("{{ eos_token }}", "")
    (tokens,) = Texts(chat_model, make_examples([ROWS[0]], "training"), 512).tokens
    assert tokenizer.decode(tokens) == f"<user>What does Ada eat?\n<assistant>plums\n{tokenizer.eos_token}"
    tokenizer.chat_template = "{{ messages | length }}" + TEMPLATE  # not what the prompt alone began with
    (tokens,) = Texts(chat_model, make_examples([ROWS[0]], "training"), 512).tokens
    assert tokenizer.decode(tokens) == f"1<user>What does Ada eat?\n<assistant>plums{tokenizer.eos_token}"


def test_equal_chats_are_merged() -> None:
    chat = {"messages": [*CHAT, turn("assistant", "Plums.")]}
    other = {"messages": [*CHAT[1:], turn("assistant", "Plums.")]}
    found = make_examples([chat, other, chat], "training")
    assert [one.copies for one in found] == [2, 1]
    assert found[0].id != found[1].id
