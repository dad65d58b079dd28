"""What training again says: LDS, pruning, wrong labels; on problems whose answer is known, and by the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rooms.influence.problems import Labels, Regression, regression
from torch import Tensor, nn

from postgrad.cli import main
from postgrad.core.errors import ConfigError, TrainingError
from postgrad.core.models import embedded_model, save
from postgrad.core.models.config import EmbeddedConfig
from postgrad.influence import ops
from postgrad.influence.api import run
from postgrad.influence.config import PruneConfig, RetrainConfig, ValidateConfig
from postgrad.influence.examples import make_examples
from postgrad.influence.mislabeled import areas, signals
from postgrad.influence.problem import TextProblem, load_problem, losses, require_retrain
from postgrad.influence.pruning import choices, prune
from postgrad.influence.validate import Retrained, ceiling, judge, make_subsets


class LeastSquares:
    """A regression whose training is its exact solution."""

    def __init__(self, num_train: int = 40) -> None:
        self.module, self.train, self.queries = regression(num_train=num_train, num_queries=6)
        self.trained: list[tuple[int, ...]] = []

    def retrain(self, keep: Sequence[int], seed: int) -> Tensor:
        self.trained.append((seed, *keep))
        keep = list(keep)
        solution = torch.linalg.lstsq(self.train.x[keep], self.train.y[keep, None]).solution
        return 0.5 * (self.queries.y - (self.queries.x @ solution)[:, 0]).square()


OPTIONS: dict[str, Any] = {"parameters": "weight", "batch_size": 16}


# -- LDS -------------------------------------------------------------------------------------------------------------


def test_damped_influence_predicts_least_squares_and_the_reverse_is_told_apart() -> None:
    problem = LeastSquares()
    scores = run(
        problem.module, problem.train, problem.queries, method="ekfac", damping=1e-3, **OPTIONS
    ).scores
    config = ValidateConfig(subsets=40, share=0.8)
    subsets = make_subsets(40, 40, 0.8, seed=0)
    found = Retrained(problem).all_losses(subsets, [1])
    judged = judge(scores, subsets, found, config)
    assert judged.lds > 0.9
    assert judged.low <= judged.lds <= 1
    assert judge(-scores, subsets, found, config).lds == pytest.approx(-judged.lds)
    generator = torch.Generator().manual_seed(0)
    chance = judge(torch.randn(scores.shape, generator=generator), subsets, found, config)
    assert abs(chance.lds) < 0.25


def test_leaving_one_out_is_what_influence_says() -> None:
    """Exact leave-one-out of a convex model against the scores: ℓ(without i) − ℓ ≈ score_i·β, to first order."""
    problem = LeastSquares()
    result = run(
        problem.module, problem.train, problem.queries, method="ekfac", damping=1e-6, beta=1.0, **OPTIONS
    )
    before = losses(problem.queries, 16)
    keep = torch.ones(40, 40, dtype=torch.bool).fill_diagonal_(False)
    after = Retrained(problem).all_losses(keep, [1])[:, 0].T
    assert float(ops.spearman(result.scores, after - before[:, None]).min()) > 0.95
    slope = float((result.scores * (after - before[:, None])).sum() / result.scores.square().sum())
    assert slope == pytest.approx(1.0, abs=0.35)  # leverage makes the true change larger than first order


def test_the_ceiling_is_one_half_of_the_seeds_against_the_other() -> None:
    one = torch.tensor([[[1.0], [10.0]], [[2.0], [30.0]], [[3.0], [20.0]]])  # M = 3, S = 2, Q = 1
    assert ceiling(one) == pytest.approx(0.5)  # ranks 1 2 3 against 1 3 2: 1 − 6·2/(3·8)
    assert ceiling(one[:, :1]) is None


def test_the_interval_is_wider_with_fewer_subsets() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(3, 200, generator=generator)
    outputs = predicted + torch.randn(3, 200, generator=generator)
    many = ops.bootstrap_spearman(predicted, outputs, 200, torch.Generator().manual_seed(1))
    few = ops.bootstrap_spearman(predicted[:, :20], outputs[:, :20], 200, torch.Generator().manual_seed(1))
    assert 2 < few.std() / many.std() < 5  # about √10
    assert many.mean() == pytest.approx(float(ops.spearman(predicted, outputs).mean()), abs=0.02)


def test_subsets_have_one_size_and_differ() -> None:
    keep = make_subsets(10, 20, 0.3, seed=4)
    assert keep.sum(1).tolist() == [3] * 20
    assert torch.equal(keep, make_subsets(10, 20, 0.3, seed=4))
    assert len({tuple(row.tolist()) for row in keep}) > 10
    assert make_subsets(2, 1, 0.99, seed=0).sum() == 1


def test_a_model_is_trained_once_and_kept() -> None:
    problem, rows = LeastSquares(), []
    models = Retrained(problem, record=rows.append)
    keep = make_subsets(40, 3, 0.5, seed=0)
    first = models.all_losses(keep, [1, 2])
    assert len(problem.trained) == len(rows) == 6
    again = Retrained(problem, [json.loads(json.dumps(row)) for row in rows[:4]])
    torch.testing.assert_close(again.all_losses(keep, [1, 2]), first)
    assert again.trained == 2


def test_a_loss_that_is_not_finite_is_refused() -> None:
    problem = LeastSquares()
    problem.queries.y[0] = torch.nan
    with pytest.raises(TrainingError, match="not finite"):
        Retrained(problem).losses(torch.ones(40, dtype=torch.bool), 1)


# -- pruning and wrong labels ----------------------------------------------------------------------------------------


def test_without_opponents_the_loss_falls_below_random_choices() -> None:
    problem = LeastSquares()
    problem.train.y[:4] += 20.0  # outliers
    solution = torch.linalg.lstsq(problem.train.x, problem.train.y[:, None]).solution
    with torch.no_grad():
        problem.module.weight.copy_(solution.T)
    config = PruneConfig(remove=(0.1,), retrain_seeds=1, draws_at_random=4)
    scores = run(
        problem.module, problem.train, problem.queries, method="ekfac", damping=1e-3, **OPTIONS
    ).scores
    rows = {row.choice: row for row in prune(scores, Retrained(problem), config)}
    assert rows["opponents"].removed == rows["random"].removed == 4
    assert len(rows["random"].losses) == 4
    assert rows["opponents"].losses[0] < min(rows["random"].losses) < rows["proponents"].losses[0]
    removed = next(keep for name, _, keep in choices(scores, config) if name == "opponents")
    assert (~removed).nonzero()[:, 0].tolist() == scores.sum(0).argsort()[:4].sort().values.tolist()


def flipped() -> tuple[nn.Module, Labels, Labels, Tensor]:
    """A logistic regression with an eighth of its labels wrong, and clean queries."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 4, generator=generator)
    y = (x.sum(1) > 0).long()
    wrong = torch.arange(160) < 15
    noisy = torch.where(wrong, 1 - y, y)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 2))
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x[:120]), noisy[:120])
        loss = loss + 0.01 * sum(p.square().sum() for p in module.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    return module, Labels(module, x[:120], noisy[:120]), Labels(module, x[120:], y[120:]), wrong[:120]


@pytest.mark.parametrize("method", ["ekfac", "laplace"])
def test_wrong_labels_are_found_by_every_signal(method: str) -> None:
    module, train, queries, wrong = flipped()
    result = run(
        module,
        train,
        queries,
        method=method,
        damping=0.02,
        parameters=".",
        draws=400,
        batch_size=64,
        self_scores=True,
    )
    found = areas(signals(result, with_queries=True), wrong.tolist())
    assert found["opponents"] > 0.65  # chance is ½ ± 0.08
    assert found["self"] > 0.9
    assert found["loss"] > 0.9
    for name, values in signals(result, with_queries=True).items():
        assert areas({name: -values}, wrong.tolist())[name] == pytest.approx(1 - found[name])
    assert set(signals(result, with_queries=False)) == {"self", "loss"}


def test_the_score_of_an_example_on_itself_is_the_matrix_diagonal() -> None:
    module, train, _ = regression()
    for method in ("ekfac", "gradient", "laplace"):
        result = run(module, train, train, method=method, draws=50, self_scores=True, **OPTIONS)
        assert result.self_scores is not None
        torch.testing.assert_close(result.self_scores, result.scores.diagonal(), rtol=1e-3, atol=1e-6)


def test_areas_need_right_and_wrong_examples() -> None:
    with pytest.raises(ConfigError, match="0 of 2"):
        areas({"loss": torch.zeros(2)}, [False, False])


# -- language models -------------------------------------------------------------------------------------------------

PAIRS = [(f"say {word}", word) for word in ("plums", "bread", "rice", "figs", "corn", "kale", "soup", "nuts")]
ROWS = [{"prompt": prompt, "completion": word, "id": word} for prompt, word in PAIRS]
FAST: dict[str, Any] = {"retrain_epochs": 10, "retrain_lr": 5e-3, "retrain_batch_size": 4, "retrain_seeds": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("retrain")
    sizes = EmbeddedConfig(
        hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=32, steps=0
    )
    save(embedded_model(PAIRS, sizes, device="cpu", cache_dir=root / "cache"), root / "base")
    return root / "base"


def test_a_text_problem_is_trained_from_its_base_each_time(base: Path) -> None:
    config = RetrainConfig(**FAST)
    examples = make_examples(ROWS, "training")
    problem = TextProblem(base, examples, examples, config, device="cpu")
    attributed = losses(problem.queries, 8)
    first = problem.retrain([0, 1, 2, 3], 5)
    assert first[:4].max() < first[4:].min()  # what it saw, and what it did not
    torch.testing.assert_close(problem.retrain([0, 1, 2, 3], 5), first, rtol=0, atol=0)
    assert not torch.equal(problem.retrain([0, 1, 2, 3], 6), first)
    torch.testing.assert_close(losses(problem.queries, 8), attributed, rtol=0, atol=0)
    given = TextProblem(base, examples, examples, config, model=base, device="cpu")
    assert losses(given.queries, 8).mean() > attributed.mean()  # not trained
    with pytest.raises(ConfigError, match="left to train on"):
        problem.retrain([], 1)
    broken = TextProblem(base, examples, examples, config.model_copy(update={"retrain_lr": 1e30}), model=base)
    with pytest.raises(TrainingError, match="Lower retrain_lr"):
        broken.retrain([0, 1, 2, 3], 5)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_validate_by_the_command_line_goes_on_where_it_was(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "train.jsonl", ROWS)
    out = tmp_path / "run"
    words = ["influence", "validate", str(base), "--train", data, "--query", data, "--out", str(out)]
    words += ["--device", "cpu", "--subsets", "4", "--retrain-epochs", "2", "--retrain-lr", "0.005"]
    words += ["--methods", "ekfac,gradient,bm25"]
    assert main(words) == 0
    whole = (out / "validate.json").read_text(encoding="utf-8")
    record = json.loads(whole)
    assert set(record["methods"]) == {"ekfac", "gradient", "bm25"}
    assert all(one["low"] <= one["high"] for one in record["methods"].values())
    assert "LDS against seconds" in (out / "report.html").read_text(encoding="utf-8")
    lines = (out / "retrained.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 8
    (out / "retrained.jsonl").write_text("".join(lines[:3]) + lines[3][:20], encoding="utf-8")
    (out / "validate.json").unlink()
    assert main([*words, "--resume"]) == 0
    assert (out / "validate.json").read_text(encoding="utf-8") == whole
    assert len((out / "retrained.jsonl").read_text(encoding="utf-8").splitlines()) == 8
    capsys.readouterr()
    assert main([*words, "--resume", "--share", "0.4"]) == 2
    assert "other options" in capsys.readouterr().err
    write(tmp_path / "train.jsonl", ROWS[:-1])
    assert main([*words, "--resume"]) == 2
    assert "other input" in capsys.readouterr().err


def test_prune_and_mislabeled_by_the_command_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "train.jsonl", [{**row, "bad": row["id"] == "figs"} for row in ROWS])
    own = ["--train", data, "--query", data, "--device", "cpu", "--method", "ekfac"]
    out = tmp_path / "prune"
    words = ["influence", "prune", str(base), *own, "--out", str(out), "--remove", "0.25"]
    words += ["--retrain-epochs", "2", "--retrain-lr", "0.005", "--draws-at-random", "2"]
    assert main(words) == 0
    record = json.loads((out / "prune.json").read_text(encoding="utf-8"))
    assert [(one["choice"], one["removed"]) for one in record["choices"]] == [
        ("none", 0),
        ("opponents", 2),
        ("proponents", 2),
        ("random", 2),
    ]
    assert [len(one["losses"]) for one in record["choices"]] == [2, 2, 2, 4]
    assert len(record["removed"]["opponents 2"]) == 2
    assert main(["report", str(out)]) == 0
    found = tmp_path / "wrong"
    words = ["influence", "mislabeled", str(base), *own, "--known", "bad", "--out", str(found)]
    assert main(words) == 0
    assert "area under the ROC curve by self" in capsys.readouterr().out
    rows = [
        json.loads(line) for line in (found / "mislabeled.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == 8
    assert [row["opponents"] for row in rows] == sorted((row["opponents"] for row in rows), reverse=True)
    assert main(["report", str(found)]) == 0


# -- problems from a function ----------------------------------------------------------------------------------------

FILE = """
from tests.rooms.influence.test_retrain import LeastSquares
def make():
    return LeastSquares()
def nothing():
    return 3
"""


def test_a_problem_from_a_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FILE, encoding="utf-8")
    assert isinstance(load_problem(f"{path}:make"), LeastSquares)
    out = tmp_path / "run"
    words = ["influence", "validate", f"{path}:make", "--methods", "ekfac,gradient", "--parameters", "weight"]
    assert main([*words, "--damping", "0.001", "--share", "0.8", "--out", str(out)]) == 0
    record = json.loads((out / "validate.json").read_text(encoding="utf-8"))
    assert record["methods"]["ekfac"]["lds"] > 0.9 > record["methods"]["gradient"]["lds"]
    capsys.readouterr()
    for wrong, message in (
        ([f"{path}:nothing", "--methods", "ekfac"], "without module, train, queries"),
        ([f"{path}:make"], "bm25 compares words"),
        ([f"{path}:make", "--methods", "ekfac", "--train", str(path)], "brings its own data"),
        (["nowhere"], "--train DATA --query DATA"),
    ):
        assert main(["influence", "validate", *wrong, "--out", str(tmp_path / "other")]) == 2
        assert message in capsys.readouterr().err
    data = write(tmp_path / "rows.jsonl", ROWS)
    words = [str(tmp_path / "nowhere"), "--train", data, "--query", data]
    assert main(["influence", "validate", *words, "--out", str(tmp_path / "other")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()  # the mended command finds it free


def test_a_problem_without_retraining_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no retrain"):
        require_retrain(Regression(nn.Linear(1, 1), torch.zeros(1, 1), torch.zeros(1)))
