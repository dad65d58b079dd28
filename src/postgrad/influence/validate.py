"""Does influence predict what training again without some examples would do? LDS by retraining, cached, with intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from postgrad.core.errors import TrainingError
from postgrad.influence import ops
from postgrad.influence.config import RetrainConfig, ValidateConfig
from postgrad.influence.problem import Problem

Record = Callable[[dict[str, Any]], None]


class Retrained:
    """Queries' losses of retrained models, each made once.

    Args:
        problem: what is trained.
        known: rows that `record` was given before.
        record: told every new row: its key, the seed, how many examples were kept, the queries' losses.
    """

    def __init__(
        self, problem: Problem, known: Sequence[Mapping[str, Any]] = (), record: Record = lambda _: None
    ) -> None:
        self._problem, self._record = problem, record
        self._known = {row["key"]: row["losses"] for row in known}
        self.trained = 0

    def losses(self, keep: Tensor, seed: int) -> Tensor:
        """[Q] after training on the examples that are True in `keep` [N].

        Raises:
            TrainingError: a query's loss is not finite.
        """
        indices = keep.nonzero()[:, 0].tolist()
        key = hashlib.sha256(f"{seed} {indices}".encode()).hexdigest()[:16]
        if key not in self._known:
            found = self._problem.retrain(indices, seed)
            if not bool(torch.isfinite(found).all()):
                raise TrainingError(
                    "A query's loss is not finite after training again. Lower the learning rate."
                )
            self.trained += 1
            self._known[key] = found.tolist()
            self._record({"key": key, "seed": seed, "kept": len(indices), "losses": self._known[key]})
        return torch.tensor(self._known[key])

    def all_losses(
        self, subsets: Tensor, seeds: Sequence[int], progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """[M, len(seeds), Q] of all subsets [M, N]. `progress` is told (models, of how many)."""
        found: list[Tensor] = []
        for keep in subsets:
            for seed in seeds:
                found.append(self.losses(keep, seed))
                if progress is not None:
                    progress(len(found), len(subsets) * len(seeds))
        return torch.stack(found).view(len(subsets), len(seeds), -1)


def retrain_seeds(config: RetrainConfig) -> range:
    """Of the trainings again; none is that of the model itself."""
    return range(config.seed + 1, config.seed + 1 + config.retrain_seeds)


def make_subsets(num_train: int, count: int, share: float, seed: int) -> Tensor:
    """Random parts of the training examples, all of one size, bool [M, N]."""
    generator = torch.Generator().manual_seed(seed)
    size = min(max(1, round(share * num_train)), num_train - 1)
    keep = torch.zeros(count, num_train, dtype=torch.bool)
    for row in keep:
        row[torch.randperm(num_train, generator=generator)[:size]] = True
    return keep


class Judged(NamedTuple):
    """LDS, mean over queries, with the 95 % interval of a bootstrap over subsets."""

    lds: float
    low: float
    high: float


def judge(scores: Tensor, subsets: Tensor, losses: Tensor, config: ValidateConfig) -> Judged:
    """How well scores [Q, N] predict losses [M, S, Q] after training on subsets [M, N]."""
    outputs = -losses.mean(1).T
    predicted = scores.double() @ subsets.T.double()
    generator = torch.Generator().manual_seed(config.seed)
    found = float(ops.spearman(predicted, outputs).mean())
    resampled = ops.bootstrap_spearman(predicted, outputs, config.resamples, generator)
    low, high = torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=resampled.dtype)).tolist()
    return Judged(found, low, high)


def ceiling(losses: Tensor) -> float | None:
    """Mean over queries of the rank correlation between one half of the seeds and the other, of losses [M, S, Q]: what a perfect
    predictor of one half would reach on the other. None with one seed."""
    half = losses.shape[1] // 2
    if half == 0:
        return None
    first, second = losses[:, :half].mean(1).T, losses[:, half : 2 * half].mean(1).T
    return float(ops.spearman(first, second).mean())
