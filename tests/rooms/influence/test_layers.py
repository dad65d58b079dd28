"""Convolutions, norms and adapters under EK-FAC, against autograd, one example at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.rooms.influence.problems import Labels
from torch import Tensor, nn

from postgrad.core.errors import ConfigError
from postgrad.influence.api import run
from postgrad.influence.ekfac import LayerBasis, example_gradients, fit
from postgrad.influence.layers import ConvLayer, NormLayer, find_layers
from postgrad.influence.weights import borrowed, choose_parameters

QUICK = {"chains": 2, "draws": 8, "burn_in": 2, "thin": 1, "check_step": False}


class ShiftedRMSNorm(nn.Module):
    """As in Gemma: y = x̂·(1 + w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


def images(module: nn.Module, count: int = 6) -> Labels:
    """Images [B, 2, 6, 5] in three classes."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 2, 6, 5, generator=generator)
    return Labels(module, x, torch.randint(0, 3, (count,), generator=generator))


def convolution(**options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        conv = nn.Conv2d(2, 4, **{"kernel_size": 3, **options})
        size = conv(torch.zeros(1, 2, 6, 5)).numel()
        return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(size, 3)).eval()


def sequence() -> nn.Module:
    """[B, 2, 6, 5] as sequences of twelve positions, through three norms."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        norms = (nn.LayerNorm(5), nn.RMSNorm(5), ShiftedRMSNorm(5))
        for norm in norms[:2]:
            nn.init.normal_(norm.weight)
        return nn.Sequential(*norms, nn.Linear(5, 4), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).eval()


def slow_gradients(examples: Labels, parameters: list[nn.Parameter]) -> list[list[Tensor]]:
    """One backward pass for each example."""
    return [
        list(torch.autograd.grad(examples.losses([index]).sum(), parameters))
        for index in range(len(examples))
    ]


def check_gradients(module: nn.Module, pattern: str) -> LayerBasis:
    """Each example's gradient, rotated to the fitted axes and back, is autograd's; every squared one averages to Λ."""
    data = images(module)
    chosen = choose_parameters(module, pattern)
    with borrowed(module, chosen) as parameters:
        expected = slow_gradients(data, parameters)
        basis = LayerBasis(find_layers(module, chosen), parameters)
        fit(basis, parameters, data, 4, torch.Generator().manual_seed(0))
        for batch, gradients in example_gradients(basis, parameters, data, 4):
            for row, flat in zip(batch, basis.flatten(gradients), strict=True):
                for found, wanted in zip(basis.from_flat(flat), expected[row], strict=True):
                    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(basis.to_flat(expected[row]), flat, rtol=1e-4, atol=1e-5)
        drawn = torch.Generator().manual_seed(0)
        for batch in data.batches(4):  # the targets of fit's first pass
            data.sampled_losses(batch, drawn)
        rows: list[Tensor] = []
        for batch in data.batches(4):
            losses = data.sampled_losses(batch, drawn)
            rows += [
                basis.to_flat(torch.autograd.grad(loss, parameters, retain_graph=True)).square()
                for loss in losses
            ]
        torch.testing.assert_close(basis.curvature(), torch.stack(rows).mean(0), rtol=1e-3, atol=1e-6)
    return basis


@pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel"
)  # as many on both sides it cannot be
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"stride": (2, 1), "padding": (0, 2), "dilation": (2, 1), "bias": False},
        {"kernel_size": (2, 3), "padding": "same"},
        {"padding": "valid", "bias": False},
        {"padding": (1, 2), "padding_mode": "reflect"},
    ],
)
def test_gradients_of_a_convolution_are_exact(options: dict[str, Any]) -> None:
    basis = check_gradients(convolution(**options), "")
    assert isinstance(basis.layers[0], ConvLayer)
    assert len(basis.layers) == 2


def test_gradients_of_norms_are_exact() -> None:
    basis = check_gradients(sequence(), "")
    assert len(basis.layers) == 2  # norms only by name
    basis = check_gradients(sequence(), r"^[012]\.")
    assert [type(layer) for layer in basis.layers] == [NormLayer] * 3
    assert basis.layers[0].input_axes is None  # a diagonal
    check_gradients(sequence(), ".")


def test_a_scale_by_hand() -> None:
    """x = (3, −1, 1, −3) has x̂ = x/√5: the gradient of Σ c·(x̂·w + b) in w is c·x̂, in b it is c."""
    norm = nn.LayerNorm(4, eps=0.0)
    layer = NormLayer(norm, 0, 1)
    read = layer.read(torch.tensor([[3.0, -1.0, 1.0, -3.0]]))
    found = layer.gradient(read, layer.written(torch.tensor([[1.0, 2.0, 0.0, 1.0]])))
    root = 5**0.5
    expected = torch.tensor([[[3 / root, 1.0], [-2 / root, 2.0], [0.0, 0.0], [-3 / root, 1.0]]])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", ["stein", "langevin", "laplace", "ekfac", "gradient"])
@pytest.mark.parametrize("make", [convolution, sequence])
def test_every_method_takes_them(make: Any, method: Any) -> None:
    module = make()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result = run(module, images(module), images(module), method=method, parameters=".", **QUICK)
    assert result.scores.isfinite().all()
    if method in ("ekfac", "gradient"):  # inner products of gradients
        torch.testing.assert_close(result.scores, result.scores.T, rtol=1e-3, atol=1e-6)
        assert torch.linalg.eigvalsh(result.scores.double()).min() > -1e-4 * result.scores.max()
        assert (result.scores.diagonal() > 0).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_what_is_not_known_is_said() -> None:
    module = convolution(groups=2)
    with pytest.raises(ConfigError, match=r"in one group.*such as 0\.weight.*sgld"):
        run(module, images(module), images(module), method="ekfac", parameters=".")
    assert [name for name, _ in choose_parameters(module, "")] == ["3.weight", "3.bias"]
    run(module, images(module), images(module), method="sgld", parameters=".", **QUICK)
    scale = nn.Sequential(nn.Flatten(), nn.LayerNorm((60,)), nn.Linear(60, 3))
    with pytest.raises(ConfigError, match=r"such as 1\.bias"):  # a bias without its weight
        run(scale, images(scale), images(scale), method="ekfac", parameters=r"1\.bias")


def test_batch_norm_does_not_learn_from_what_it_is_asked() -> None:
    """A module in training mode: its running statistics stay, and no loss depends on the batch that it is in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        module = nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
        )
        module(torch.randn(16, 2, 6, 5))
    module.train()
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    scores = [
        run(
            module, images(module), images(module, 3), method="ekfac", batch_size=size, seed=0, beta=1.0
        ).scores
        for size in (6, 6)
    ]
    assert torch.equal(scores[0], scores[1])
    dots = [
        run(module, images(module), images(module, 3), method="gradient", batch_size=size).scores
        for size in (1, 6)
    ]
    torch.testing.assert_close(dots[0], dots[1], rtol=1e-4, atol=1e-5)
    run(module, images(module), images(module, 3), method="laplace", **QUICK)
    assert module.training
    assert module[1].training
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, kept[name]), name
