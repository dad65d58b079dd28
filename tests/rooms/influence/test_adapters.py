"""LoRA adapters (peft): their weights alone are sampled, and scores are those of a module that is written out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rooms.influence.problems import Labels
from torch import Tensor, nn

from postgrad.core.errors import ModelError
from postgrad.core.models import Model, embedded_model
from postgrad.core.models.config import EmbeddedConfig
from postgrad.core.models.quiet import quiet_transformers
from postgrad.influence.api import run
from postgrad.influence.examples import Texts, make_examples
from postgrad.influence.layers import find_layers
from postgrad.influence.multi import run_checkpoints
from postgrad.influence.weights import choose_parameters

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own

QUICK = {"chains": 2, "draws": 12, "burn_in": 2, "thin": 1, "check_step": False, "min_ess": 0}
METHODS = ["stein", "langevin", "sgld", "rmsprop", "laplace", "ekfac", "gradient"]
ROWS = [
    {"prompt": f"What does {person} eat?", "completion": food}
    for person, food in zip(("Ada", "Bob", "Cleo", "Dan"), ("plums", "bread", "rice", "figs"), strict=True)
]


class LowRank(nn.Module):
    """W x + b + scale·B A x, written out; W and b are buffers."""

    def __init__(self, weight: Tensor, bias: Tensor, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())
        rank, inputs = down.shape
        self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, len(up), bias=False)
        self.scale = scale
        with torch.no_grad():
            self.down.weight.copy_(down)
            self.up.weight.copy_(up)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias + self.scale * self.up(self.down(x))


def adapted(dropout: float = 0.5) -> Any:
    """A classifier with an adapter on both layers, neither matrix of which is 0; in training mode, as a trainer leaves it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        config = peft.LoraConfig(r=2, lora_alpha=3, lora_dropout=dropout, target_modules=["0", "2"])
        module = peft.get_peft_model(base, config)
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
    return module.train()


def written_out(module: Any) -> nn.Module:
    layers = [module.base_model.model[index] for index in (0, 2)]
    parts = [
        LowRank(
            layer.base_layer.weight,
            layer.base_layer.bias,
            layer.lora_A["default"].weight,
            layer.lora_B["default"].weight,
            1.5,
        )
        for layer in layers
    ]
    return nn.Sequential(parts[0], nn.Tanh(), parts[1])


def labels(module: nn.Module, indices: Sequence[int] = range(12)) -> Labels:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 5, generator=generator), torch.randint(0, 3, (12,), generator=generator)
    return Labels(module, x[list(indices)], y[list(indices)])


@pytest.mark.parametrize("pattern", ["lora_", ""])
def test_only_the_adapter_is_chosen(pattern: str) -> None:
    chosen = choose_parameters(adapted(), pattern)
    assert [name.split(".model.")[1] for name, _ in chosen] == [
        f"{layer}.lora_{half}.default.weight" for layer in (0, 2) for half in "AB"
    ]
    module = adapted()
    layers = find_layers(module, choose_parameters(module, pattern))
    assert [tuple(layer.module.weight.shape) for layer in layers] == [(2, 5), (6, 2), (2, 6), (3, 2)]


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_same_factors_written_out(method: Any) -> None:
    """Every method, dropout off; and neither the base's weights nor the adapter's are others afterwards."""
    module = adapted()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in module.state_dict().items()}
    found = run(module, labels(module), labels(module, [0, 5, 7]), method=method, parameters="lora_", **QUICK)
    for name, tensor in module.state_dict().items():
        assert (tensor.data_ptr(), True) == (before[name][0], torch.equal(tensor, before[name][1])), name
    assert module.training
    assert [name for name, p in module.named_parameters() if p.requires_grad] == [
        name for name, _ in choose_parameters(module, "lora_")
    ]
    plain = written_out(module)
    expected = run(plain, labels(plain), labels(plain, [0, 5, 7]), method=method, **QUICK)
    scale = expected.scores.abs().max()
    torch.testing.assert_close(found.scores / scale, expected.scores / scale, rtol=1e-3, atol=1e-4)
    assert expected.scores.abs().min() > 0


def test_the_base_never_moves_while_it_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    module = adapted()
    base = {name: tensor.clone() for name, tensor in module.state_dict().items() if "lora_" not in name}
    data = labels(module)
    losses, moved = data.losses, set[str]()

    def watched(indices: Sequence[int]) -> Tensor:
        state = module.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in base.items())
        moved.add(str(state["base_model.model.0.lora_A.default.weight"].sum().item()))
        return losses(indices)

    monkeypatch.setattr(data, "losses", watched)
    run(module, data, labels(module, [0]), method="langevin", **QUICK)
    assert len(moved) > 20


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 16}
    config = EmbeddedConfig(**sizes, intermediate_size=16, steps=0)
    pairs = [(row["prompt"], row["completion"]) for row in ROWS]
    base = embedded_model(pairs, config, device="cpu", cache_dir=tmp_path_factory.mktemp("cache"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lora = peft.LoraConfig(r=2, lora_dropout=0.3, target_modules=["q_proj", "down_proj"])
        with quiet_transformers():
            base.module = peft.get_peft_model(base.module, lora)
        for name, parameter in base.module.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.2)
    return base


def test_a_language_model_with_an_adapter(language_model: Model) -> None:
    """`gradient` against autograd; `langevin` and `ekfac` sample as many weights as the adapter has."""
    texts = Texts(language_model, make_examples(ROWS, "training"), 64)
    language_model.module.eval()
    weights = [p for name, p in language_model.module.named_parameters() if "lora_" in name]
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(texts.losses([index]).sum(), weights)])
        for index in range(4)
    ]
    gradients = torch.stack(rows)
    language_model.module.train()
    found = run(language_model, ROWS, ROWS[:2], method="gradient")
    torch.testing.assert_close(found.scores, gradients[:2] @ gradients.T, rtol=1e-3, atol=1e-4)
    sampled = run(language_model, ROWS, ROWS[:2], method="laplace", **QUICK)
    assert sampled.diagnostics["sampler/num_weights"] == sum(p.numel() for p in weights)
    assert run(language_model, ROWS, ROWS[:2], method="ekfac").scores.isfinite().all()
    language_model.module.eval()


def test_checkpoints_of_an_adapter(language_model: Model, tmp_path: Path) -> None:
    """Adapters as `CheckpointCallback` saves them (`save_pretrained`), put one after the other into a model that has one."""
    module: Any = language_model.module
    lora = [p for name, p in module.named_parameters() if "lora_" in name]
    expected: list[Tensor] = []
    for number in (1, 2):
        with torch.no_grad():
            for parameter in lora:
                parameter.mul_(0.8)
        module.save_pretrained(tmp_path / f"step_0000000{number}")
        expected.append(run(language_model, ROWS, ROWS[:2], method="gradient").scores)
    with torch.no_grad():
        for parameter in lora:
            parameter.div_(0.64)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = run_checkpoints(tmp_path, ROWS, ROWS[:2], method="gradient", model=language_model)
    torch.testing.assert_close(found.scores, (expected[0] + expected[1]) / 2)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with pytest.raises(ModelError, match="no tokenizer"):
        run_checkpoints(tmp_path, ROWS, ROWS[:2], method="gradient")
    bare = Model(module.get_base_model(), language_model.tokenizer)
    with pytest.raises(ModelError, match=r"PeftModel\.from_pretrained"):
        run_checkpoints(tmp_path, ROWS, ROWS[:2], method="gradient", model=bare)
