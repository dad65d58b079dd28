"""Log-probs of whole completions under the reference, without a second model.

The reference is the policy before training. Its weights lie in host memory and take the place of the policy's for one forward
pass; a LoRA policy needs not even these, its adapter is switched off. What was scored once is remembered by its tokens.

Passes go over rows of at most `max_tokens` (`core.models.packing`: each prompt once, no padding), and through a large
vocabulary in chunks, so that all logits are never there at once; log-probs are fp32, their sums fp64.
"""

from __future__ import annotations

from collections import OrderedDict
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
    return list(logps.split(lengths))


class Reference:
    """Scores samples.

    Args:
        model: the policy; its weights are those of the policy again after every call.
        weights: the reference's parameters by name (`named_parameters`); None = the policy is a peft model, whose adapter is
            switched off.
        temperature: of the log-probs; the same that samples are drawn with.
        max_tokens: in one forward pass.
        cache: completions remembered; the least recently used are forgotten first.
    """

    def __init__(
        self,
        model: Model,
        weights: Mapping[str, Tensor] | None,
        *,
        temperature: float = 1.0,
        max_tokens: int = 8192,
        cache: int = 200_000,
    ) -> None:
        self.model, self.weights = model, weights
        self.temperature, self.max_tokens, self.cache = temperature, max_tokens, cache
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self.num_scored = 0
        """Completions that needed a forward pass so far."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """log π_ref(y | x) of each sample: the sum over the tokens that count for its loss.

        Samples of a group should follow one another: they share the computation of their prompt.
        """
        keys = [_key(sample) for sample in samples]
        fresh = {key: sample for key, sample in zip(keys, samples, strict=True) if key not in self._known}
        scores = dict(zip(fresh, self._score(list(fresh.values())), strict=True))
        self.num_scored += len(fresh)
        for key in keys:
            if key in self._known:
                scores[key] = self._known[key]
        for key in dict.fromkeys(keys):
            self._known[key] = scores[key]
            self._known.move_to_end(key)
        while len(self._known) > self.cache:
            self._known.popitem(last=False)
        return [scores[key] for key in keys]

    def _score(self, samples: Sequence[Sample]) -> list[float]:
        if not samples:
            return []
        with self._in_place():
            found = completion_logps(self.model, samples, self.temperature, self.max_tokens)
        return [float(part.double().sum()) for part in found]

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


def _key(sample: Sample) -> bytes:
    parts = (sample.prompt_tokens, sample.token_ids, sample.loss_mask)
    return b"|".join(part.tobytes() for part in parts)
