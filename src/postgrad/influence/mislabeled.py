"""Which training examples are wrong? Three signals, each higher where an example is more suspicious."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from postgrad.core.errors import ConfigError
from postgrad.influence import ops
from postgrad.influence.result import Result


def signals(result: Result, *, with_queries: bool) -> dict[str, Tensor]:
    """Suspicion of every training example [N], by name.

    `opponents`: minus the mean score on the queries (what raises the loss of examples that are known to be right);
    `self`: an example's score on itself (how much of what the model says about it comes from it alone: nothing else supports it);
    `loss`: its loss, which knows nothing once the model has learned it by heart.

    Args:
        result: of training examples and queries that are right.
        with_queries: whether there were such queries.

    Raises:
        ConfigError: there are no scores of examples on themselves.
    """
    if result.self_scores is None or result.losses is None:
        raise ConfigError(
            "There are no scores of examples on themselves: give self_scores=True, and another method than bm25."
        )
    found = {"opponents": -result.scores.mean(0)} if with_queries else {}
    return {**found, "self": result.self_scores, "loss": result.losses}


def areas(found: dict[str, Tensor], wrong: Sequence[bool]) -> dict[str, float]:
    """Area under the ROC curve of each signal, where it is known which examples are wrong. ½ = chance.

    Raises:
        ConfigError: all are wrong, or none.
    """
    known = torch.tensor(list(wrong))
    if not 0 < int(known.sum()) < len(known):
        raise ConfigError(
            f"{int(known.sum())} of {len(known)} examples are marked as wrong: an area needs both."
        )
    return {name: float(ops.area_under_curve(values, known)) for name, values in found.items()}
