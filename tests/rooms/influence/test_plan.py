"""What is planned without weights, against what a run does and holds."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.live_bytes import LiveBytes
from tests.rooms.influence.problems import regression
from torch.utils.flop_counter import FlopCounterMode

from postgrad.cli import main
from postgrad.core.errors import ConfigError
from postgrad.core.models import Model, embedded_model, load_shape, save
from postgrad.core.models.config import EmbeddedConfig
from postgrad.influence import baselines, plan, sampler
from postgrad.influence import result as results
from postgrad.influence.api import run
from postgrad.influence.config import InfluenceConfig
from postgrad.influence.examples import Texts, make_examples
from postgrad.influence.plan import Plan, Sizes, read_sizes
from postgrad.influence.result import diagnose, from_draws
from postgrad.influence.sampler import Draws, Posterior
from postgrad.influence.stein import SteinChain

ROWS = [{"prompt": f"What is {n}?", "completion": f"{n} and {'ever ' * (n % 4)}more"} for n in range(11)]
QUICK: dict[str, Any] = {
    "method": "langevin",
    "chains": 2,
    "draws": 6,
    "burn_in": 3,
    "thin": 2,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    sizes = EmbeddedConfig(
        hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=48, steps=0
    )
    pairs = [(row["prompt"], row["completion"]) for row in ROWS]
    return embedded_model(pairs, sizes, device="cpu", cache_dir=tmp_path_factory.mktemp("plan"))


def planned(model: Model, options: dict[str, Any]) -> tuple[Sizes, Plan, InfluenceConfig]:
    config = InfluenceConfig(**options)
    sides = [Texts(model, make_examples(rows, "some"), config.max_tokens) for rows in (ROWS, ROWS[:3])]
    sizes = read_sizes(model.module, sides[0], sides[1], config)
    return sizes, plan.plan(sizes, config), config


METHODS: list[dict[str, Any]] = [
    QUICK,
    QUICK | {"check_step": False, "burn_in": 0, "thin": 1},
    QUICK | {"method": "sgld"},
    QUICK | {"method": "rmsprop", "gradient_examples": 5},
    QUICK | {"method": "laplace"},
    QUICK | {"method": "ekfac", "token_examples": 99},  # of all: which way they are ranked is not planned
    QUICK | {"method": "gradient", "token_examples": 99},
    QUICK | {"method": "stein", "token_examples": 99},
    QUICK
    | {"method": "stein", "token_examples": 99, "damping": 0.01},  # which saves the pass that measures it
]


@pytest.mark.parametrize("options", METHODS)
def test_passes_are_those_of_a_run(
    model: Model, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "CURVATURE_EXAMPLES", 6)
    monkeypatch.setattr(plan, "CURVATURE_EXAMPLES", 6)
    sizes, found, _ = planned(model, options)
    if options.get("method") in ("ekfac", "gradient"):  # the queries in two parts
        monkeypatch.setattr(baselines, "GRADIENT_FLOATS", 2 * sizes.num_sampled)
        monkeypatch.setattr(plan, "GRADIENT_FLOATS", 2 * sizes.num_sampled)
        sizes, found, _ = planned(model, options)
    counts: Counter[str] = Counter()
    predict, some_gradient = Texts._predict, Posterior._some_gradient
    inside = False

    def count(self: Texts, indices: Any) -> Any:
        kind = "curvature" if inside else "gradient" if torch.is_grad_enabled() else "forward"
        counts[kind] += len(indices)
        return predict(self, indices)

    def gradient(self: Posterior) -> Any:
        nonlocal inside
        inside = True
        try:
            return some_gradient(self)
        finally:
            inside = False

    monkeypatch.setattr(Texts, "_predict", count)
    monkeypatch.setattr(Posterior, "_some_gradient", gradient)
    run(model, ROWS, ROWS[:3], **options)
    assert (counts["forward"], counts["gradient"], counts["curvature"]) == (
        found.forward_examples,
        found.gradient_examples,
        found.curvature_examples,
    )


@pytest.mark.parametrize("method", ["langevin", "laplace", "ekfac", "gradient", "stein"])
def test_operations_are_about_those_of_a_run(model: Model, method: str) -> None:
    options = {"method": method, "chains": 1, "draws": 4, "burn_in": 2, "thin": 1, "check_step": False}
    sizes, found, _ = planned(model, options)
    with FlopCounterMode(display=False) as counter:
        run(model, ROWS, ROWS[:3], **options)
    eigenvectors = sum(
        9.0 * (rows**3 + columns**3) for rows, columns in sizes.layers
    )  # it does not count these
    expected = found.flops - eigenvectors * (method != "gradient")
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.15)


@pytest.mark.parametrize(
    "options",
    [
        QUICK,
        QUICK | {"method": "sgld"},
        QUICK | {"method": "laplace"},
        QUICK | {"method": "laplace", "parameters": r"layers\."},  # with norms
    ],
)
def test_bytes_are_those_of_the_tensors(model: Model, options: dict[str, Any], tmp_path: Path) -> None:
    sizes, found, config = planned(model, options)
    result = run(model, ROWS, ROWS[:3], state=tmp_path, **options)
    on_disk = plan.plan(sizes, config, on_disk=True)
    assert on_disk.disk_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.losses"))
    assert result.diagnostics["sampler/num_weights"] == sizes.num_sampled
    assert result.draws is not None
    assert result.tokens is not None
    assert found.draws_bytes == sum(part.nbytes for part in result.draws)
    assert on_disk.draws_bytes == sum(part.nbytes for part in result.draws[1:])
    kept = load_file(tmp_path / "origin.safetensors")
    del kept["measured"]
    assert found.factors_bytes == sum(part.nbytes for part in kept.values())
    chain = load_file(tmp_path / "chain-0.safetensors")
    assert found.chain_bytes == sum(chain[name].nbytes for name in ("displacement", "noise")) * 3 // 2
    waiting = [chain[f"tokens.waiting.{number}"].shape[1] for number in range(4)]
    pairs = waiting[0] * waiting[1] + waiting[2] * waiting[3]
    assert found.token_bytes == 8 * pairs * (config.chains + 3)
    parameters = sum(parameter.nbytes for parameter in model.module.parameters())
    centres = 1 if options.get("method") == "laplace" else 2
    assert found.weights_bytes == parameters + 4 * sizes.num_sampled * (1 + centres)


def test_the_peak_of_scoring_is_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (results, plan):
        monkeypatch.setattr(module, "BLOCK_BYTES", 2**20)
    config = InfluenceConfig(method="langevin", chains=2, draws=50, check_step=False)
    draws = Draws(torch.randn(2, 50, 60_000), torch.randn(2, 50, 2), torch.ones(2, 50))
    with LiveBytes() as live:
        diagnose(draws, from_draws(draws, torch.ones(60_000)), 0.0, 1.0)
    peak = live.peak + sum(part.nbytes for part in draws)
    assert peak == pytest.approx(plan.scoring_bytes(60_000, 2, config), rel=0.2)


@pytest.mark.parametrize("chains", [2, 6])
def test_the_peak_of_scoring_is_as_planned_with_stein(chains: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains that find scores of 200 × 50,000 without computing them."""
    module, train, _ = regression(12, 3)
    found = {"scores": torch.randn(200, 50_000), "own": torch.zeros(50_000)}

    def scores(self: SteinChain, queries: Any, progress: Any, *, with_total: bool) -> dict[str, torch.Tensor]:
        del self, queries, progress, with_total
        return {name: part.clone() for name, part in found.items()}

    monkeypatch.setattr(SteinChain, "scores", scores)
    config = InfluenceConfig(method="stein", chains=chains, tokens=False)
    with LiveBytes() as live:
        run(module, train, train, config)
    assert live.peak == pytest.approx(plan.scoring_bytes(50_000, 200, config), rel=0.2)


def test_what_cannot_fit_is_refused_before_anything_is_computed(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, found, config = planned(model, QUICK)
    found_on_disk = plan.plan(sizes, config, on_disk=True)
    monkeypatch.setattr(Texts, "_predict", lambda self, indices: pytest.fail("a forward pass"))
    monkeypatch.setattr(plan, "free_bytes", lambda device: found.scoring_bytes + found.token_bytes - 1)
    with pytest.raises(
        ConfigError, match=r"6 draws of 2 chains over 11 .*Leave token scores out \(--no-tokens"
    ):
        run(model, ROWS, ROWS[:3], **QUICK)
    monkeypatch.setattr(plan, "free_bytes", lambda device: found.scoring_bytes - 1)
    options: dict[str, Any] = QUICK | {"tokens": False}
    with pytest.raises(ConfigError, match=r"Give a directory where training losses are kept \(state=DIR"):
        run(model, ROWS, ROWS[:3], **options)
    monkeypatch.setattr(plan, "free_disk_bytes", lambda folder: found_on_disk.disk_bytes - 1)
    with pytest.raises(ConfigError, match=r"11 training examples take .* of disk"):
        run(model, ROWS, ROWS[:3], state=tmp_path / "state", **options)
    assert not (tmp_path / "state").exists()
    monkeypatch.setattr(plan, "free_bytes", lambda device: 0)
    with pytest.raises(ConfigError, match="Lower draws or chains"):
        run(model, ROWS, ROWS[:3], **options)


def test_on_the_command_line_without_weights(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    save(model, folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    out = tmp_path / "out"
    words = [
        "influence",
        "run",
        str(folder),
        "--train",
        str(train),
        "--prompt",
        "What is 3?",
        "--out",
        str(out),
    ]
    words += ["--device", "cpu", "--dry-run", "--method", "langevin", "--chains", "2", "--draws", "6"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sizes"]["num_train"] == 11
    assert found["draws_bytes"] == 4 * 12 * (1 + 1)
    assert found["disk_bytes"] == 2 * 4 * 12 * 11
    assert found["sizes"]["num_parameters"] == sum(p.numel() for p in load_shape(folder).parameters())
    assert any("without --dry-run this stops" in note for note in found["notes"])
    assert main([*words, "--no-tokens", "--no-check-step", "--draws", "20000000000"]) == 0
    said = capsys.readouterr().out
    assert "more than the" in said
    assert "of disk that are free at" in said
    assert "token " not in said.split("memory", 1)[1].split("note")[0]
    assert not out.exists()
    assert main([*words, "--parameters", "no such"]) == 2
    assert "in the name of no weight" in capsys.readouterr().err
    words.remove("--dry-run")
    assert main([*words, "--json"]) == 2
    assert "--json belongs to --dry-run" in capsys.readouterr().err
    shutil.rmtree(folder)
