"""Replay of good answers: those that a prompt had before join its next groups, so that rare ones do not starve.

The gradient of an answer is proportional to its own probability: one that is hardly ever sampled is lost before it can be
lifted. A few of each group's samples are therefore drawn evenly from the good answers seen so far, and the samples of the
group are weighted by powers of `ops.replay_weights`. Power 1 makes the group count as one drawn from the policy: less
variance, but the rare answer's expected gradient is as small as before. Power 0 weighs all alike. The fixed point is
the same for every power, because at MARA's optimum the total is equal for all answers, however drawn.
Departure from the paper, which has no such thing; measured in `benchmarks/mara_tabular.py` and `mara_many_answers.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from postgrad.core.models.model import Model
from postgrad.core.models.reference import completion_logps
from postgrad.core.types import Group, Sample
from postgrad.mara.ops import replay_weights


@dataclass
class _Memory:
    """Good answers of one prompt, those seen last at the end, by their tokens; and how often something was drawn."""

    answers: dict[tuple[int, ...], dict[str, Any]] = field(
        default_factory=dict[tuple[int, ...], dict[str, Any]]
    )
    draws: int = 0


class Replay:
    """Remembers good answers by prompt and adds some to each group.

    Args:
        model: the policy, whose weights are those of the coming update.
        count: samples added to each group of a prompt with good answers; 0 = does nothing.
        size: answers remembered per prompt.
        power: of the importance weights, 0 to 1.
        temperature, max_tokens: of the log-probs, as for the reference.
        seed: of the draws, with the prompt's id and the number of earlier draws.
    """

    def __init__(
        self,
        model: Model,
        count: int,
        size: int,
        power: float,
        *,
        temperature: float,
        max_tokens: int,
        seed: int,
    ) -> None:
        self.model, self.count, self.size, self.power = model, count, size, power
        self.temperature, self.max_tokens, self.seed = temperature, max_tokens, seed
        self._memory: dict[str, _Memory] = {}

    def __len__(self) -> int:
        return sum(len(memory.answers) for memory in self._memory.values())

    def join(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with known good answers behind their own samples, all weighted; unchanged where nothing is known.

        Added samples have the reward that they had, and the log-probs of the policy as it is.
        """
        drawn = [self._draw(group) for group in groups]
        added = [sample for samples in drawn for sample in samples]
        if not added:
            return list(groups)
        logps = completion_logps(self.model, added, self.temperature, self.max_tokens)
        for sample, values in zip(added, logps, strict=True):
            sample.behaviour_logp[sample.loss_mask] = values.numpy()
        return [
            self._weighted(group, samples) if samples else group
            for group, samples in zip(groups, drawn, strict=True)
        ]

    def remember(self, prompt_id: str, sample: Sample) -> None:
        """Keeps a good answer; one that was cut off is none."""
        if not self.count or sample.stop_reason != "stop":
            return
        memory = self._memory.setdefault(prompt_id, _Memory())
        key = tuple(sample.token_ids.tolist())
        memory.answers.pop(key, None)
        memory.answers[key] = {
            "loss_mask": sample.loss_mask.tolist(),
            "text": sample.text,
            "reward": float(sample.reward or 0.0),
        }
        while len(memory.answers) > self.size:
            memory.answers.pop(next(iter(memory.answers)))

    def _draw(self, group: Group) -> list[Sample]:
        memory = self._memory.get(group.prompt.id)
        if memory is None or not self.count:
            return []
        name = zlib.crc32(group.prompt.id.encode("utf-8", "surrogatepass"))
        random = np.random.default_rng([self.seed, name, memory.draws])
        memory.draws += 1
        order = [int(i) for i in random.permutation(len(memory.answers))]
        keys = list(memory.answers)
        chosen = [keys[order[i % len(order)]] for i in range(self.count)]
        return [self._sample(group, key, memory.answers[key], i) for i, key in enumerate(chosen)]

    def _sample(self, group: Group, tokens: Sequence[int], facts: Mapping[str, Any], index: int) -> Sample:
        first = group.samples[0]
        version = max(int(sample.policy_version.max()) for sample in group.samples if sample.num_tokens)
        return Sample(
            request_id=-1 - index,
            group_id=first.group_id,
            prompt_tokens=first.prompt_tokens,
            token_ids=np.asarray(tokens, np.int64),
            loss_mask=np.asarray(facts["loss_mask"], bool),
            behaviour_logp=np.zeros(len(tokens), np.float32),
            policy_version=np.full(len(tokens), version),
            stop_reason="stop",
            text=facts["text"],
            reward=facts["reward"],
        )

    def _weighted(self, group: Group, added: Sequence[Sample]) -> Group:
        answers = self._memory[group.prompt.id].answers
        own = [copy(sample) for sample in group.samples if sample.reward is not None]
        rest = [sample for sample in group.samples if sample.reward is None]
        samples = [*own, *added]
        logps = torch.tensor([[sum_logp(sample) for sample in samples]], dtype=torch.float64)
        known = torch.tensor([[tuple(sample.token_ids.tolist()) in answers for sample in samples]])
        weights = replay_weights(logps, known, torch.tensor([len(answers)]), len(added)) ** self.power
        for sample, weight in zip(samples, weights[0].tolist(), strict=True):
            sample.weight = weight
        return Group(group.prompt, [*own, *rest, *added])

    def state_dict(self) -> dict[str, Any]:
        """All answers; JSON-serialisable."""
        return {
            prompt_id: {
                "draws": memory.draws,
                "answers": [[list(tokens), facts] for tokens, facts in memory.answers.items()],
            }
            for prompt_id, memory in self._memory.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._memory = {
            prompt_id: _Memory({tuple(tokens): facts for tokens, facts in data["answers"]}, data["draws"])
            for prompt_id, data in state.items()
        }


def sum_logp(sample: Sample) -> float:
    """log π(y) with which the sample was drawn: the sum over the tokens that count, in float64."""
    return float(sample.behaviour_logp[sample.loss_mask].sum(dtype=np.float64))
