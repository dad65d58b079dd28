"""Log-probs of whole completions under the reference, remembered by their tokens; sums are fp64."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import Tensor

from postgrad.core.models.model import Model
from postgrad.core.models.reference import ReferencePolicy
from postgrad.core.types import Sample


class Reference(ReferencePolicy):
    """Scores samples.

    Args:
        model, weights, temperature, max_tokens: as `ReferencePolicy`.
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
        super().__init__(model, weights, temperature=temperature, max_tokens=max_tokens)
        self.cache = cache
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self.num_scored = 0
        """Completions that needed a forward pass so far."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """log π_ref(y | x) of each sample: the sum over the tokens that count for its loss.

        Samples of a group should follow one another: they share the computation of their prompt.
        """
        keys = [_key(sample) for sample in samples]
        fresh = {key: sample for key, sample in zip(keys, samples, strict=True) if key not in self._known}
        logps = self.token_logps(list(fresh.values()))
        scores = {key: float(part.double().sum()) for key, part in zip(fresh, logps, strict=True)}
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


def _key(sample: Sample) -> bytes:
    parts = (sample.prompt_tokens, sample.token_ids, sample.loss_mask)
    return b"|".join(part.tobytes() for part in parts)
