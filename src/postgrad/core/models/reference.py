"""Log-probs under the reference, the policy before training, without a second model.

Its weights lie in host memory and take the place of the policy's for one forward pass; a LoRA policy needs not even these, its
adapter is switched off.

Passes go over rows of at most `max_tokens` (`core.models.packing`: each prompt once, no padding), and through a large
vocabulary in chunks, so that all logits are never there at once.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from postgrad.core.models.model import Model
from postgrad.core.models.packing import row_scores, rows
from postgrad.core.types import Sample


def completion_logps(
    model: Model, samples: Sequence[Sample], temperature: float, max_tokens: int
) -> list[Tensor]:
    """log π of the tokens of each sample that count for its loss, float32 on the CPU, under the model as it is.

    Samples of a group should follow one another: they share the computation of their prompt.
    """
    lengths = [int(sample.loss_mask.sum()) for sample in samples]
    logps = torch.empty(sum(lengths))
    for row in rows(samples, max_tokens):
        logps[row.place] = row_scores(model, row, temperature).float().cpu()
    return list(torch.split(logps, lengths))


class ReferencePolicy:
    """Scores samples under the weights of before training.

    Args:
        model: the policy; its weights are those of the policy again after every call.
        weights: the reference's parameters by name (`named_parameters`); None = the policy is a peft model, whose adapter is
            switched off.
        temperature: of the log-probs; the same that samples are drawn with.
        max_tokens: in one forward pass.
    """

    def __init__(
        self,
        model: Model,
        weights: Mapping[str, Tensor] | None,
        *,
        temperature: float = 1.0,
        max_tokens: int = 8192,
    ) -> None:
        self.model, self.weights = model, weights
        self.temperature, self.max_tokens = temperature, max_tokens

    def token_logps(self, samples: Sequence[Sample]) -> list[Tensor]:
        """log π_ref of the tokens of each sample that count for its loss; see `completion_logps`."""
        if not samples:
            return []
        with self._in_place():
            return completion_logps(self.model, samples, self.temperature, self.max_tokens)

    @contextmanager
    def _in_place(self) -> Generator[None]:
        """The reference's weights where the policy's are."""
        module: Any = self.model.module
        if self.weights is None:
            with module.disable_adapter():
                yield
            return
        policy = {name: parameter.data for name, parameter in module.named_parameters()}
        try:
            for name, parameter in module.named_parameters():
                parameter.data = self.weights[name].to(parameter.device, parameter.dtype, non_blocking=True)
            yield
        finally:
            for name, parameter in module.named_parameters():
                parameter.data = policy[name]
