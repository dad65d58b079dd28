"""The digits board of influence's benchmarks: a multilayer perceptron of 8,970 weights on scikit-learn's 8 × 8 digits.

1,000 training examples, 200 queries. Ground truth: the same network trained from scratch on many random halves, all at once as
one stack of networks; a tenth of the labels is wrong on the noisy board.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

NUM_TRAIN, NUM_QUERIES, WIDTH = 1000, 200, 64
EPOCHS, BATCH, LR, WEIGHT_DECAY = 40, 100, 3e-3, 1e-2


class Digits:
    """Images with labels and their cross-entropy under a module: `Examples`."""

    def __init__(self, module: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.module, self.images, self.labels = module, images, labels
        self.weights = torch.ones(len(images))

    def __len__(self) -> int:
        return len(self.images)

    def losses(self, indices: Sequence[int]) -> Tensor:
        """Nats [B]."""
        return F.cross_entropy(self.module(self.images[indices]), self.labels[indices], reduction="none")

    def sampled_losses(self, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        """Of labels that the module draws [B]."""
        logits = self.module(self.images[indices])
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        return F.cross_entropy(logits, drawn, reduction="none")

    def batches(self, size: int) -> list[list[int]]:
        """In order."""
        return [list(range(len(self)))[start : start + size] for start in range(0, len(self), size)]


@dataclass(frozen=True)
class Board:
    """Training examples and queries of one board; `wrong` says which training labels are not the true ones."""

    images: Tensor
    labels: Tensor
    query_images: Tensor
    query_labels: Tensor
    wrong: Tensor

    def examples(self, module: nn.Module) -> tuple[Digits, Digits]:
        """Both roles for a module."""
        return Digits(module, self.images, self.labels), Digits(module, self.query_images, self.query_labels)


def make_board(noise: float = 0.0, seed: int = 0) -> Board:
    """Digits in random order; a share `noise` of the training labels becomes another digit."""
    found = load_digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(found.target), generator=generator)[: NUM_TRAIN + NUM_QUERIES]
    images = torch.tensor(found.data, dtype=torch.float32)[order] / 16
    labels = torch.tensor(found.target)[order]
    wrong = torch.zeros(NUM_TRAIN, dtype=torch.bool)
    wrong[torch.randperm(NUM_TRAIN, generator=generator)[: round(noise * NUM_TRAIN)]] = True
    shift = torch.randint(1, 10, (NUM_TRAIN,), generator=generator)
    train_labels = torch.where(wrong, (labels[:NUM_TRAIN] + shift) % 10, labels[:NUM_TRAIN])
    return Board(images[:NUM_TRAIN], train_labels, images[NUM_TRAIN:], labels[NUM_TRAIN:], wrong)


def halves(count: int, seed: int = 0) -> Tensor:
    """`count` random halves of the training examples [M, N]."""
    generator = torch.Generator().manual_seed(seed + 1)
    keep = torch.zeros(count, NUM_TRAIN, dtype=torch.bool)
    for row in keep:
        row[torch.randperm(NUM_TRAIN, generator=generator)[: NUM_TRAIN // 2]] = True
    return keep


def perceptron() -> nn.Sequential:
    """64-64-64-10, ReLU."""
    return nn.Sequential(
        nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)
    )


class Stack:
    """Many perceptrons of which each is trained on its own examples, as batched products. AdamW, rate falling to 0."""

    def __init__(self, seeds: Sequence[int]) -> None:
        made = []
        for seed in seeds:
            torch.manual_seed(seed)
            made.append([p.detach() for p in perceptron().parameters()])
        self.seeds = list(seeds)
        self.parameters = [torch.stack(column).requires_grad_() for column in zip(*made, strict=True)]

    def logits(self, images: Tensor) -> Tensor:
        """[S, B, 10] of images [S, B, 64]."""
        for layer in range(3):
            weight, bias = self.parameters[2 * layer : 2 * layer + 2]
            images = torch.baddbmm(bias[:, None], images, weight.mT)
            images = images.relu() if layer < 2 else images
        return images

    def train(
        self, board: Board, keep: Tensor, epochs: int = EPOCHS, weight_decay: float = WEIGHT_DECAY
    ) -> None:
        """Each on its examples [S, N]; all have equally many."""
        owned = torch.stack([row.nonzero()[:, 0] for row in keep])
        generators = [torch.Generator().manual_seed(seed + 12345) for seed in self.seeds]
        optimizer = torch.optim.AdamW(self.parameters, lr=LR, weight_decay=weight_decay)
        batch = BATCH
        steps = epochs * (owned.shape[1] // batch)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in range(epochs):
            order = torch.stack(
                [row[torch.randperm(len(row), generator=g)] for row, g in zip(owned, generators, strict=True)]
            )
            for chosen in order.split(batch, 1):
                if chosen.shape[1] < batch:
                    continue
                logits = self.logits(board.images[chosen])
                loss = F.cross_entropy(logits.flatten(0, 1), board.labels[chosen].flatten(), reduction="sum")
                (loss / batch).backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def query_losses(self, board: Board) -> Tensor:
        """[S, Q]."""
        logits = self.logits(board.query_images.expand(len(self.seeds), -1, -1))
        return F.cross_entropy(
            logits.flatten(0, 1), board.query_labels.repeat(len(self.seeds)), reduction="none"
        ).view(len(self.seeds), -1)

    def module(self, index: int) -> nn.Sequential:
        """One of them."""
        found = perceptron()
        for own, stacked in zip(found.parameters(), self.parameters, strict=True):
            own.data = stacked[index].detach().clone()
        return found


def trained(board: Board, seed: int, **options: float) -> nn.Sequential:
    """On all examples; `options` as of `Stack.train`."""
    stack = Stack([seed])
    stack.train(board, torch.ones(1, NUM_TRAIN, dtype=torch.bool), **cast("Any", options))
    return stack.module(0)


def ground_truth(board: Board, keep: Tensor, num_seeds: int, cache: Path | None = None) -> Tensor:
    """Queries' losses after training on each half [M, seeds, Q]."""
    if cache is not None and cache.is_file():
        return torch.load(cache)
    found = []
    for seed in range(num_seeds):
        parts = []
        for some in keep.split(50):
            stack = Stack([1000 * (seed + 1) + i for i in range(len(some))])
            stack.train(board, some)
            parts.append(stack.query_losses(board))
        found.append(torch.cat(parts))
    truth = torch.stack(found, 1)
    if cache is not None:
        torch.save(truth, cache)
    return truth
