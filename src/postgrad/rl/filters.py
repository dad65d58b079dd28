"""Which samples and groups carry a gradient: one rule for the learner, which drops, and the scheduler, which refills."""

from __future__ import annotations

import torch

from postgrad.core.types import Group, Sample
from postgrad.rl import ops
from postgrad.rl.config import AlgorithmConfig


def usable(group: Group, config: AlgorithmConfig) -> list[Sample]:
    """The samples that can be trained on: with a reward and a token of their own, truncated ones only where they are kept."""
    return [
        sample
        for sample in group.samples
        if sample.reward is not None
        and bool(sample.loss_mask.any())
        and not (config.truncated == "exclude" and sample.stop_reason == "length")
    ]


def informative(group: Group, config: AlgorithmConfig) -> bool:
    """Whether the rewards of its usable samples differ, so that the group mean leaves advantages other than 0."""
    rewards = torch.tensor([sample.reward or 0.0 for sample in usable(group, config)])
    return len(rewards) > 1 and bool(ops.has_variance(rewards, torch.zeros(len(rewards), dtype=torch.long)))
