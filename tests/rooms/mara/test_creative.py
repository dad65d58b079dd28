"""Creative QA: meanings by hand and against Hugging Face, and the recipe from end to end with small local models."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tasks.small_models import encoder, reward_model, tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification

from postgrad.cli import main
from postgrad.core.errors import ConfigError, MissingExtraError, ModelError
from postgrad.core.models import EmbeddedConfig, embedded_model, save
from postgrad.core.run import Run
from postgrad.mara import diversity
from postgrad.mara.answers import read_sides
from postgrad.mara.config import MeasureConfig
from postgrad.mara.encoders import PairClassifier, TextEncoder
from postgrad.mara.measure import measure
from postgrad.mara.semantics import Models, Pair, partition_all, short_answers_same

LONG = " and so on and on and on"
"""Makes an answer too long to be compared by its words."""


# -- meanings ------------------------------------------------------------------------------------------------------


class First:
    """Says that answers with the same first letter are the same, and counts."""

    def __init__(self) -> None:
        self.asked: list[Pair] = []
        self.calls = 0

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        self.calls += 1
        self.asked += pairs
        return [float(a[0] == b[0]) for a, b in pairs]


@given(
    st.lists(
        st.lists(st.sampled_from([letter + LONG + end for letter in "abcd" for end in "xy"]), max_size=7)
    )
)
@settings(max_examples=60, deadline=None)
def test_classes_are_those_of_the_plain_loop(groups: list[list[str]]) -> None:
    same = First()
    expected = [diversity.partition(texts, lambda a, b: a[0] == b[0]) for texts in groups]
    assert partition_all(groups, same, 0.5) == expected
    assert same.calls <= max(map(len, groups), default=0)
    keys = [frozenset(pair) for pair in same.asked]
    assert len(keys) == len(set(keys))
    assert all(len(key) == 2 for key in keys)


def test_only_founders_are_compared_and_in_their_order() -> None:
    same = First()
    texts = [letter + LONG + end for letter, end in ["a1", "b1", "a2", "b2", "b1"]]
    assert partition_all([texts], same, 0.5) == [[0, 1, 0, 1, 1]]
    assert same.asked == [
        *((texts[0], other) for other in (texts[1], texts[2], texts[3])),  # the last repeats the second
        (texts[1], texts[3]),
    ]


def test_the_rule_for_short_answers() -> None:
    assert short_answers_same("the red fox", "a red fox") is True  # 2 of 3
    assert short_answers_same("the red fox jumps", "a blue fox") is False  # 1 of 4
    assert short_answers_same("one two three four five", "one two three four five six") is None


def test_a_chance_at_the_threshold_is_not_above_it() -> None:
    texts = ["a" + LONG, "b" + LONG]
    assert partition_all([texts], lambda pairs: [0.102], 0.102) == [[0, 1]]
    assert partition_all([texts], lambda pairs: [0.103], 0.102) == [[0, 0]]


def answers(folder: Path, rows: list[tuple[str, str, float | None]]) -> Path:
    path = folder / "answers.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": p, "completion": c, "score": v}) + "\n" for p, c, v in rows)
    )
    return path


def test_distinct_utility_and_semantic_diversity_by_hand(tmp_path: Path) -> None:
    """p: classes 0 0 1, utilities 1 (below all thresholds) and 10 (above all). q: one class. r: one answer says nothing."""
    a1, a2, b = "a" + LONG, "a!" + LONG, "b" + LONG
    rows = [("p", a1, -9.0), ("p", a2, 0.0), ("p", b, 0.0), ("q", b, -6.0), ("q", b, -1.0), ("r", b, 1.0)]
    path = answers(tmp_path, rows)
    asked: list[list[str]] = []

    def embed(texts: list[str]) -> list[list[float]]:
        asked.append(texts)
        return [[2.0, 0.0] if text[0] == "a" else [0.0, 3.0] for text in texts]

    def values(models: Models, **options: Any) -> dict[str, float | None]:
        config = MeasureConfig(**options)
        record = measure(read_sides([path], config), config, models)
        notes.extend(record["notes"])
        cells = record["sides"][0]["metrics"]
        return {key: cells[key]["value"] for key in ("semantic_diversity", "distinct", "utility")}

    notes: list[str] = []
    found = values(Models(embed, First()))
    assert asked == [[a1, a2, b]]  # each distinct text once
    assert found["semantic_diversity"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["distinct"] == pytest.approx((2 + 1) / 2)
    p = (1 + 0.64 * 10) / (1 + 0.8 + 0.64)
    q = 3 / 1.8  # −6 lies on the second threshold: two thresholds are below it … of −7.7 and −6.3; 1 + 2
    assert found["utility"] == pytest.approx((p + q) / 2)
    assert any("Skywork-Reward-Gemma-2-27B-v0.2" in note for note in notes)
    notes.clear()
    as_it_is = values(Models(None, First()), utility_thresholds="none")
    assert as_it_is["semantic_diversity"] is None
    assert as_it_is["utility"] == pytest.approx((-9.0 / 2.44 + 0 - 6 / 1.8) / 2)
    assert not any("Skywork" in note for note in notes)
    assert set(values(Models()).values()) == {None}
    answers(tmp_path, [(p, c, None) for p, c, _ in rows])
    assert values(Models(None, First()))["utility"] is None
    assert notes[-1] == "The answers have no score or reward, so there is no utility."


def test_thresholds_are_checked() -> None:
    assert MeasureConfig(utility_thresholds="1,2").utility_thresholds == (1, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must increase"):
        MeasureConfig(utility_thresholds=(2, 1))


# -- encoders ------------------------------------------------------------------------------------------------------


TEXTS = ["rain", "rain falls on the roof", "", "snow " * 30]


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_embeddings_are_those_of_one_text_at_a_time(tmp_path: Path, mode: str) -> None:
    folder = encoder(tmp_path)
    if mode == "cls":
        modules = [
            {"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
            {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"},
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        flags = {
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
            "word_embedding_dimension": 32,
        }
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    texts = [text for text in TEXTS if text or mode == "mean"]
    embed = TextEncoder(str(folder), batch_size=3)
    rows = np.asarray(embed(texts))
    module = AutoModel.from_pretrained(folder).eval()
    for text, row in zip(texts, rows, strict=True):
        if not text:
            continue
        with torch.no_grad():
            states = module(
                input_ids=torch.tensor([tokenizer()(text[:128])["input_ids"][:128]])
            ).last_hidden_state[0]
        expected = states.mean(0) if mode == "mean" else states[0]
        np.testing.assert_allclose(row, expected / expected.norm(), atol=1e-5)
        assert np.linalg.norm(row) == pytest.approx(1)
    assert embed.num_cut == 1
    np.testing.assert_allclose(np.asarray(TextEncoder(str(folder))(texts[::-1]))[::-1], rows, atol=1e-5)


def test_sentence_models_with_more_layers_are_left_to_their_package(tmp_path: Path) -> None:
    folder = encoder(tmp_path)
    kinds = ["Transformer", "Pooling", "Dense"]
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": "" if i == 0 else str(i)}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match=r"pip install 'postgrad\[embed\]'"):
            TextEncoder(str(folder))


@pytest.mark.parametrize("num_labels", [1, 2])
def test_chances_are_those_of_one_pair_at_a_time(tmp_path: Path, num_labels: int) -> None:
    folder = reward_model(tmp_path, "bert", num_labels=num_labels, max_position_embeddings=64)
    pairs = [("rain", "snow"), ("a " * 40, "b " * 50), ("snow", "rain"), ("", "x")]
    classifier = PairClassifier(str(folder), max_tokens=20, batch_size=3)
    found = classifier(pairs)
    module = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for (first, second), chance in zip(pairs, found, strict=True):
        inputs = tokenizer()(first[:20], second[:20], return_tensors="pt")  # one token is one byte
        inputs = {key: value for key, value in inputs.items() if key in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            logits = module(**inputs).logits[0]
        assert chance == pytest.approx(
            (logits.sigmoid() if num_labels == 1 else logits.softmax(-1))[-1].item(), abs=1e-5
        )
    assert len({round(chance, 6) for chance in found}) >= 3


def test_what_cannot_compare_is_refused(tmp_path: Path) -> None:
    folder = reward_model(tmp_path / "pairs", "bert", num_labels=2, max_position_embeddings=64)
    with pytest.raises(ConfigError, match=r"labels 0 \(LABEL_0\), 1 \(LABEL_1\), not 2"):
        PairClassifier(str(folder), label=2, max_tokens=20)
    with pytest.raises(ConfigError, match="reads 64 tokens, too few for two answers of 128"):
        PairClassifier(str(folder))
    with pytest.raises(ModelError, match="no model directory"):
        PairClassifier("./nothing")
    plain = encoder(tmp_path / "encoder")
    with pytest.raises(ModelError, match="would be random"):
        PairClassifier(str(plain))
    with pytest.raises(ModelError, match="no model directory"):
        TextEncoder("./nothing")


# -- end to end ----------------------------------------------------------------------------------------------------


SIZES = {
    "algorithm.prompts_per_batch": 4,
    "length.max_prompt_tokens": 40,
    "length.max_completion_tokens": 20,
    "engine.slots": 64,
}
SMALL = [word for key, value in SIZES.items() for word in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small policy that says one of a few things."""
    folder = tmp_path_factory.mktemp("policy")
    said = ["soft rain", "hard rain", "snow falls", "wind and rain", "sun"]
    pairs = [(f"Poem {i}", said[i * i % 5]) for i in range(40)]
    options = {"hidden_size": 32, "num_layers": 2, "intermediate_size": 48, "head_dim": 8, "vocab_size": 300}
    config = EmbeddedConfig(**options, max_position=96, steps=60)
    save(embedded_model(pairs, config, cache_dir=folder / "cache", device="cpu"), folder / "policy")
    return folder / "policy"


def test_the_recipe_from_prompts_to_measures(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"conversation": [{"role": "user", "content": f"Poem {i}"}, {"role": "assistant", "content": "x"}]}
        for i in range(40)
    ]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward_model(tmp_path / "rm", chat=True)
    encoder(tmp_path / "encoder")
    reward_model(tmp_path / "pairs", "bert", num_labels=2)
    task = (
        '[{name = "creative", path = "chats.jsonl", prompt_column = "conversation", first_turn = true, '
        'reward_model = {path = "rm", batch_size = 8}}]'
    )
    words = ["rl", "train", "creative_qa", "--model.path", str(policy), "--data.tasks", task, "--steps", "3"]
    words += ["--data.instruction", "", "--data.holdout_fraction", "0.2", "--out", "run"]
    words += [*SMALL, "--algorithm.success_threshold", "0", "--optimizer.lr", "1e-3"]
    words += ["--eval.every", "0", "--eval.prompts", "5"]
    assert main([*words, "--dry-run"]) == 0
    assert "memory, at least" in capsys.readouterr().out
    assert main(words) == 0
    assert "held-out pass rate: " in (printed := capsys.readouterr().out)
    assert ", reward " in printed
    run = Run.open("run")
    metrics = run.metrics()
    assert [row["step"] for row in metrics] == [0, 1, 2, 3]
    for row in metrics[1:]:
        assert row["rollout/verify_failed_fraction"] == 0
        assert 2 / 16 <= row["mara/good_fraction"] < 0.4  # the best two of 16, and those that say the same
        assert math.isfinite(row["rollout/reward_mean"])
    assert metrics[0]["eval/verify_failed_fraction"] == 0
    logged = [row for row in run.samples() if row["phase"] == "before"]
    assert len(logged) == 5 * 10
    assert metrics[0]["eval/reward_mean"] == pytest.approx(
        np.mean([row["reward"] for row in logged]), abs=1e-4
    )
    assert metrics[0]["eval/creative/reward_mean"] == metrics[0]["eval/reward_mean"]

    assert main(["rl", "eval", "run"]) == 0
    assert f"reward {metrics[-1]['eval/reward_mean']:.3f}" in capsys.readouterr().out

    compare = [
        "--embedder",
        "encoder",
        "--partition",
        "pairs",
        "--partition-threshold",
        "0.5",
        "--partition-tokens",
        "60",
    ]
    assert (
        main(["mara", "measure", "run", "--phases", "before,after", *compare, "--out", "out", "--json"]) == 0
    )
    record = json.loads(capsys.readouterr().out)
    assert [side["name"] for side in record["sides"]] == ["before", "after"]
    for side in record["sides"]:
        cells = {
            key: side["metrics"][key]["value"] for key in ("semantic_diversity", "distinct", "utility", "ead")
        }
        assert 0 < cells["semantic_diversity"] < 2
        assert 1 <= cells["distinct"] <= 10
        assert 0 < cells["utility"] <= 10
    page = (Path("out") / "report.html").read_text()
    assert "semantic diversity" in page
    assert "distinct (classes per prompt)" in page


def test_a_run_goes_on_after_a_kill_as_if_undisturbed(tmp_path: Path, policy: Path) -> None:
    """A reward model scores group by group, so resuming changes no verdict."""
    import postgrad as pg
    from postgrad.core.config import read_toml
    from postgrad.core.recipes import find_recipe
    from postgrad.rl.config import make_config

    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Poem {i}"}) + "\n" for i in range(40)))
    changes: dict[str, Any] = {
        "model.path": str(policy),
        "data.tasks": [{"name": "c", "path": str(path), "reward_model": str(reward_model(tmp_path / "rm"))}],
        "data.holdout_fraction": 0.2,
        "data.instruction": "",
        **SIZES,
        "algorithm.samples_per_prompt": 4,
        "mara.percentile": 60,
        "engine.slots": 16,
        "eval.every": 1,
        "eval.prompts": 3,
        "run.checkpoint_every": 2,
        "schedule.mode": "pipeline",
        "schedule.k": 3,
        "schedule.update_cost_steps": 3,
        "optimizer.lr": 1e-3,
        "steps": 5,
    }
    config = make_config(read_toml(find_recipe("creative_qa")), overrides=changes)

    class StopError(Exception):
        """In the middle of update 4."""

    def killed(rows: Sequence[Any]) -> Any:
        if rows[-1]["step"] == 3:
            raise StopError
        return {}, ""

    steady = pg.rl.train(config=config, out=tmp_path / "steady", quiet=True, transform=pg.mara.transform)
    with pytest.raises(StopError):
        pg.rl.train(
            config=config, out=tmp_path / "cut", quiet=True, transform=pg.mara.transform, forecaster=killed
        )
    cut = pg.rl.train(out=tmp_path / "cut", resume=True, quiet=True, transform=pg.mara.transform)

    def stable(run: Run) -> list[dict[str, Any]]:
        return [
            {k: v for k, v in row.items() if not k.startswith(("time/", "speed/"))} for row in run.metrics()
        ]

    assert stable(cut) == stable(steady)
    assert len(cut.metrics()) == 6


def test_a_total_outage_stops_the_run(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Poem {i}"}) + "\n" for i in range(40)))
    task = f'[{{name = "c", path = "{path}", judge = {{base_url = "http://127.0.0.1:9/v1", model = "m", retries = 0}}}}]'
    words = ["rl", "train", "creative_qa", "--model.path", str(policy), "--data.tasks", task, "--steps", "3"]
    words += ["--data.holdout_fraction", "0.2", "--out", str(tmp_path / "run"), "--data.instruction", ""]
    words += [*SMALL, "--eval.prompts", "3"]
    assert main(words) == 2
    first = Run.open(tmp_path / "run").metrics()[0]
    assert first["eval/verify_failed_fraction"] == 1
    assert "eval/reward_mean" not in first
    printed = capsys.readouterr().err
    assert "None of the 64 samples of update 1 could be verified" in printed
    assert "127.0.0.1:9" in printed
