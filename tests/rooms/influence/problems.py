"""Small problems with known answers: a linear regression, and a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Regression:
    """Losses ½(y − w·x)² of a linear layer without bias. Sampled targets lie exactly one deviation off, so that the Fisher
    information of any sample is the Hessian x xᵀ."""

    def __init__(self, module: nn.Linear, x: Tensor, y: Tensor) -> None:
        self.module, self.x, self.y = module, x, y
        self.weights = torch.ones(len(x))

    def __len__(self) -> int:
        return len(self.x)

    def losses(self, indices: Sequence[int]) -> Tensor:
        return 0.5 * (self.y[indices] - self.module(self.x[indices])[:, 0]).square()

    def sampled_losses(self, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        said = self.module(self.x[indices])[:, 0]
        signs = torch.randint(0, 2, said.shape, generator=generator) * 2.0 - 1
        return 0.5 * (said.detach() + signs - said).square()

    def batches(self, size: int) -> list[list[int]]:
        return [list(range(len(self)))[start : start + size] for start in range(0, len(self), size)]


class Labels(Regression):
    """Cross-entropy of a classifier."""

    def __init__(self, module: nn.Module, x: Tensor, y: Tensor) -> None:
        self.module, self.x, self.y = module, x, y
        self.weights = torch.ones(len(x))

    def losses(self, indices: Sequence[int]) -> Tensor:
        return F.cross_entropy(self.module(self.x[indices]), self.y[indices], reduction="none")

    def sampled_losses(self, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        logits = self.module(self.x[indices])
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        return F.cross_entropy(logits, drawn, reduction="none")


def regression(
    num_train: int = 12, num_queries: int = 3, width: int = 4
) -> tuple[nn.Linear, Regression, Regression]:
    """A layer at the least-squares solution, with training and query points of uneven scale."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([2.0, 1.0, 0.5, 0.1])[:width]
    x = torch.randn(num_train + num_queries, width, generator=generator) * scale
    y = x.sum(1) + torch.randn(num_train + num_queries, generator=generator)
    module = nn.Linear(width, 1, bias=False)
    train = Regression(module, x[:num_train], y[:num_train])
    with torch.no_grad():
        module.weight.copy_(torch.linalg.lstsq(train.x, train.y[:, None]).solution.T)
    return module, train, Regression(module, x[num_train:], y[num_train:])
