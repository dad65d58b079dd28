"""What influence is for: leave out the examples that hurt or help most, train again, and see; and which labels are wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from postgrad.influence.config import PruneConfig
from postgrad.influence.validate import Retrained, retrain_seeds


class Pruned(NamedTuple):
    """The queries' mean loss after training without `removed` examples, in all trainings of a choice.

    Attributes:
        choice: `opponents` (the lowest total scores left out), `proponents` (the highest), `random`, or `none`.
        removed: how many examples were left out.
        losses: mean over queries, one for each training.
    """

    choice: str
    removed: int
    losses: list[float]


def choices(scores: Tensor, config: PruneConfig) -> list[tuple[str, int, Tensor]]:
    """(name, how many, keep [N]) of everything that is trained; scores [Q, N], summed over queries."""
    total = scores.double().sum(0)
    count = len(total)
    found = [("none", 0, torch.ones(count, dtype=torch.bool))]
    order = total.argsort(stable=True)
    generator = torch.Generator().manual_seed(config.seed)
    for share in config.remove:
        size = min(max(1, round(share * count)), count - 1)
        at_random = [torch.randperm(count, generator=generator)[:size] for _ in range(config.draws_at_random)]
        for name, removed in (
            ("opponents", order[:size]),
            ("proponents", order[-size:]),
            *(("random", some) for some in at_random),
        ):
            keep = torch.ones(count, dtype=torch.bool)
            keep[removed] = False
            found.append((name, size, keep))
    return found


def prune(
    scores: Tensor,
    retrained: Retrained,
    config: PruneConfig,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pruned]:
    """Trains without the lowest, the highest and random examples, for every share; scores [Q, N].

    Args:
        scores: proponents are positive.
        retrained: trains, or knows.
        config: shares, seeds, how many random choices.
        progress: told (models, of how many).
    """
    found: dict[tuple[str, int], list[float]] = {}
    todo = [(choice, seed) for choice in choices(scores, config) for seed in retrain_seeds(config)]
    for number, ((name, size, keep), seed) in enumerate(todo, 1):
        found.setdefault((name, size), []).append(float(retrained.losses(keep, seed).mean()))
        if progress is not None:
            progress(number, len(todo))
    return [Pruned(name, size, losses) for (name, size), losses in found.items()]
