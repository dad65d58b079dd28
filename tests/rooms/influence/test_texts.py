"""Influence in a small language model: masks, merging, the planted example, bad input, the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from postgrad.cli import main
from postgrad.core.errors import ConfigError, DataError, RunError, SamplingError, TrainingError
from postgrad.core.figures import format_number
from postgrad.core.models import Model, embedded_model, load, save
from postgrad.core.models.config import EmbeddedConfig
from postgrad.core.run import Run
from postgrad.influence import ops
from postgrad.influence.api import answer, run
from postgrad.influence.baselines import bm25
from postgrad.influence.data import read_examples
from postgrad.influence.examples import Texts, make_examples

PEOPLE = ("Ada", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal")
FOODS = ("plums", "bread", "rice", "figs", "corn", "kale", "soup", "nuts")
ROWS = [
    {"prompt": f"What does {person} eat?", "completion": food, "id": person}
    for person, food in zip(PEOPLE, FOODS, strict=True)
]
LAPLACE = {"method": "laplace", "draws": 100}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was taught the rows."""
    root = tmp_path_factory.mktemp("influence")
    sizes = EmbeddedConfig(
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        intermediate_size=32,
        steps=100,
        batch_size=8,
    )
    pairs = [(row["prompt"], row["completion"]) for row in ROWS]
    save(embedded_model(pairs, sizes, device="cpu", cache_dir=root / "cache"), root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder, device="cpu")


def texts(model: Model, rows: list[Any] = ROWS, max_tokens: int = 64) -> Texts:
    return Texts(model, make_examples(rows, "training"), max_tokens)


# -- losses ----------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_completion_alone_in_any_batch(model: Model) -> None:
    rows = [*ROWS[:3], {"text": "Ada eats plums and figs and rice and bread."}]
    found = texts(model, rows)
    together = found.losses(range(4))
    torch.testing.assert_close(together, torch.cat([found.losses([index]) for index in range(4)]))
    torch.testing.assert_close(found.losses([3, 1, 0]), together[[3, 1, 0]])
    for index in range(4):  # against the model's own loss, one text at a time, unpadded
        ids = torch.tensor([found.tokens[index]])
        labels = ids.clone()
        if index < 3:
            completion = model.tokenizer(rows[index]["completion"])["input_ids"]
            labels[:, : ids.shape[1] - len(completion) - 1] = -100
        mean = model.module(input_ids=ids, labels=labels).loss
        torch.testing.assert_close(together[index], mean * (labels[:, 1:] != -100).sum())


def test_tokens_add_up_to_texts_in_losses_and_in_scores(model: Model) -> None:
    found = texts(model)
    values, counts = found.token_losses(range(8))
    torch.testing.assert_close(
        torch.stack([part.sum() for part in values.split(counts.tolist())]), found.losses(range(8))
    )
    by_token, by_text = [], []
    generator = torch.Generator().manual_seed(0)
    weight = model.module.get_output_embeddings().weight
    kept = weight.detach().clone()
    with torch.no_grad():
        for _ in range(12):
            weight.copy_(kept + 0.1 * torch.randn(weight.shape, generator=generator))
            by_token.append(found.token_losses(range(8))[0].double())
            by_text.append(found.losses(range(8)).double())
        weight.copy_(kept)
    tokens, sequences = torch.stack(by_token)[None], torch.stack(by_text)[None]
    token_scores = ops.chain_covariances(tokens, sequences)[0]
    torch.testing.assert_close(
        ops.sum_tokens(token_scores, counts),
        ops.chain_covariances(sequences, sequences)[0],
        rtol=1e-5,
        atol=1e-5,
    )


def test_sampled_targets_follow_the_model(model: Model) -> None:
    """The mean loss of sampled targets is the model's entropy."""
    found = texts(model, ROWS[:1])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        drawn = torch.stack([found.sampled_losses([0], generator)[0] for _ in range(400)])
        logits, _, _ = found._predict([0])
    entropy = -(logits.softmax(-1) * F.log_softmax(logits, -1)).sum()
    assert abs(drawn.mean() - entropy) < 4.5 * drawn.std() / 20


# -- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [LAPLACE, {"method": "ekfac"}, {"method": "gradient"}])
def test_the_example_that_taught_the_answer_is_found(model: Model, options: dict[str, Any]) -> None:
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    queries = [{"prompt": row["prompt"], "completion": row["completion"]} for row in ROWS[:4]]
    result = run(model, ROWS, queries, **options)
    assert result.scores.argmax(1).tolist() == [0, 1, 2, 3]
    best = result.proponents(2, 1, anyway=True)[0]
    assert (best.id, best.text) == ("Cleo", "What does Cleo eat?\nrice")
    assert best.score == result.scores[2, 2] > 0
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_batches_and_order_do_not_matter(model: Model) -> None:
    shuffled = [*ROWS[5:], *ROWS[:5]]
    one = run(model, ROWS, ROWS[:2], method="gradient", batch_size=8).scores
    two = run(model, shuffled, ROWS[:2], method="gradient", batch_size=3).scores
    torch.testing.assert_close(two, one.roll(3, 1), rtol=1e-4, atol=1e-5)


def test_equal_examples_are_merged_and_count_twice(model: Model) -> None:
    twice = [*ROWS, {"prompt": ROWS[0]["prompt"], "completion": ROWS[0]["completion"], "id": "again"}]
    examples = make_examples(twice, "training")
    assert [one.copies for one in examples] == [2] + [1] * 7
    result = run(model, twice, ROWS[:1], method="ekfac")
    assert result.scores.shape == (1, 8)
    assert "1 training examples were the same" in result.notes[0]
    assert texts(model, twice).weights.tolist() == [2] + [1] * 7


def test_bm25_against_a_loop() -> None:
    train, queries = [[1, 1, 2], [2, 3], [4]], [[1, 2], [9]]
    found = bm25(train, queries)
    idf_one, idf_two = (torch.tensor(x).log().item() for x in (1 + 2.5 / 1.5, 1 + 1.5 / 2.5))
    norm = 1.2 * (0.25 + 0.75 * 3 / 2)
    assert found[0, 0].item() == pytest.approx(idf_one * 2 * 2.2 / (2 + norm) + idf_two * 2.2 / (1 + norm))
    assert found[0, 2] == 0
    assert found[1].abs().max() == 0


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "There are no training examples"),
        ([{"prompt": "Who?", "completion": " "}], "example 1: the completion is empty"),
        (["fine", ""], "example 2: the text is empty"),
        ([{"prompt": "Who?"}], "columns: prompt"),
        ([3], "is no text and no row"),
        ([{"prompt": 3, "completion": "x"}], "the prompt is no text"),
        (
            [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}],
            "Two different training examples have the id 'a'",
        ),
    ],
)
def test_bad_examples_are_answered(model: Model, rows: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        run(model, rows, ROWS[:1])


def test_what_cannot_be_attributed_is_said(model: Model) -> None:
    with pytest.raises(DataError, match="no token left to predict"):
        texts(model, [{"prompt": "a b c d e f g h i j", "completion": "x"}], max_tokens=4)
    with pytest.raises(ConfigError, match="a module needs Examples"):
        run(model.module, ROWS, ROWS)
    with pytest.raises(ConfigError, match="a list of texts"):
        run(model, "What does Ada eat?", ROWS)
    with pytest.raises(ConfigError, match="Did you mean 'damping'"):
        run(model, ROWS, ROWS, dampin=1.0)


def test_a_loss_that_is_not_finite_is_named(folder: Path) -> None:
    broken = load(folder, device="cpu")
    with torch.no_grad():
        broken.module.get_input_embeddings().weight[texts(broken).tokens[3]] = torch.nan
    with pytest.raises(
        TrainingError, match=r"The loss of training example 1 \(Ada\) is nan at the model's own"
    ):
        run(broken, ROWS, ROWS[:1])


# -- command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_run_and_show(
    folder: Path, train_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["influence", "run", str(folder), "--train", str(train_file), "--out", str(out)]
    words += ["--prompt", ROWS[1]["prompt"], "--method", "laplace", "--draws", "60", "--device", "cpu"]
    words += ["--min-agreement", "0"]  # most of the eight have no influence, and noise no order
    assert main(words) == 0
    said = answer(load(folder, device="cpu"), ROWS[1]["prompt"], 64)
    assert said.completion in capsys.readouterr().out
    done = Run.open(out)
    assert (done.status, done.info["kind"]) == ("finished", "influence.run")
    scores = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == 8
    assert {"query", "train", "score", "standard_error", "correlation"} == set(scores[0])
    page = (out / "report.html").read_text()
    assert "<b>Bob</b>" in page
    assert '<span class="context">What does Bob eat?' in page
    query = json.loads((out / "result.json").read_text())["queries"][0]
    for side in ("proponents", "opponents"):
        for one in query[side]:
            total = sum(score for _, score in one["tokens"]["pieces"])
            assert total == pytest.approx(one["score"], rel=1e-2, abs=1e-6)
            text = "".join(text for text, _ in one["tokens"]["pieces"])
            assert text.startswith(one["text"].split("\n")[1])
    by_query = sum(score for _, score in query["tokens"]["pieces"])
    assert by_query == pytest.approx(sum(row["score"] for row in scores), rel=1e-2, abs=1e-6)
    assert main(["influence", "show", str(out), "--top", "2"]) == 0
    said = capsys.readouterr().out
    assert "Positive scores are proponents" in said
    llc = json.loads((out / "result.json").read_text())["llc"]
    if llc is None:
        assert "No local learning coefficient: it takes chains" in said
    else:
        assert f"95 % interval {format_number(llc['low'])} to {format_number(llc['high'])}" in said
        assert "learning coefficient" in page
    assert main(["report", str(out)]) == 0
    assert main(words) == 2  # a used directory
    assert main([*words, "--overwrite", "--seed", "1", "--no-tokens"]) == 0
    assert "Bob: What does Bob eat?" in (out / "report.html").read_text()  # a table in place of shaded words


def test_rankings_are_withheld_on_the_command_line(
    folder: Path, train_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["influence", "run", str(folder), "--train", str(train_file), "--query", str(train_file)]
    words += [
        "--out",
        str(out),
        "--method",
        "langevin",
        "--draws",
        "4",
        "--burn-in",
        "0",
        "--thin",
        "1",
        "--device",
        "cpu",
    ]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "Rankings are withheld" in captured.err
    assert "raise draws" in captured.err
    assert "correlation" not in captured.out.split("meaning")[0]
    assert "Positive scores" not in captured.out
    assert "Rankings are withheld" in (out / "report.html").read_text()
    assert Run.open(out).status == "finished"
    assert main(["influence", "show", str(out)]) == 2
    assert main(["influence", "show", str(out), "--anyway"]) == 0
    assert "Positive scores" in capsys.readouterr().out


def test_wrong_words(
    folder: Path, train_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["influence", "run", str(folder), "--train", str(train_file)]) == 2
    assert "--query FILE, or --prompt TEXT" in capsys.readouterr().err
    with pytest.raises(DataError, match="No file or directory"):
        read_examples(tmp_path / "nowhere")
    out = tmp_path / "run"
    words = ["influence", "run", str(folder), "--train", str(train_file), "--query", str(train_file)]
    for wrong, said in (
        (["--parameters", "attention of"], "in the name of no weight"),
        (["--method", "sgld", "--draws", "100000000000"], "of disk"),
        (
            ["--checkpoint", str(folder), "--method", "langevin", "--max-draws", "900"],
            "max_draws is for one model",
        ),
    ):
        assert main([*words, "--out", str(out), "--device", "cpu", *wrong]) == 2
        assert said in capsys.readouterr().err
        assert not out.exists()  # found before the run was begun
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "x"}\n[1]\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl:2: expected an object"):
        read_examples(bad)
    with pytest.raises(RunError):
        Run.open(tmp_path)
    assert SamplingError.__doc__
