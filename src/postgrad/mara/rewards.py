"""MARA as the reward transform that `rl` receives: R → R̃ − β·(log π_θ − log π_ref), before advantages are taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import torch

from postgrad.core.config import validate
from postgrad.core.protocols import TransformContext
from postgrad.core.types import Group, Sample
from postgrad.mara.config import DEFAULT_COEFFICIENTS, MaraConfig
from postgrad.mara.ops import (
    Anchor,
    anchored_total,
    differential_smoothing,
    entropy_bonus,
    mara,
    pass_at_k_advantages,
    percentile_threshold,
    total_reward,
    unlikeliness,
)
from postgrad.mara.reference import Reference


class _Scored(NamedTuple):
    """One group on its way: usable samples, rewards and log-probs [1, G], which are good, ref_logps NaN where not needed."""

    samples: list[Sample]
    rewards: torch.Tensor
    logps: torch.Tensor
    good: torch.Tensor
    tau: torch.Tensor
    needed: list[int]


class _Facts(NamedTuple):
    """Per sample: whether it is good, log π_θ − log π_ref (NaN where not known), total reward, length."""

    good: list[bool]
    kl: list[float]
    total: list[float]
    tokens: list[int]


class Transform:
    """Re-rewards groups; a `core.protocols.RewardTransform`.

    Args:
        config: with beta.
        reference: scores samples under the weights of before.
        pass_reward: τ where the config has none.

    The stored anchors are its only state.
    """

    def __init__(self, config: MaraConfig, reference: Reference, pass_reward: float) -> None:
        self.config, self.reference, self.beta = config, reference, config.beta
        self.tau = pass_reward if config.tau is None else config.tau
        self.method = config.method
        self.anchors: dict[str, tuple[float, float]] = {}

    def __call__(self, groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
        """(groups with the total reward, metrics). Samples without a reward stay as they are."""
        scored = [self._prepare(group) for group in groups]
        needed = [item.samples[index] for item in scored for index in item.needed]
        before = self.reference.num_scored
        found = iter(self.reference(needed))
        changed: list[Group] = []
        rows = _Facts([], [], [], [])
        for group, item in zip(groups, scored, strict=True):
            ref_logps = torch.full_like(item.rewards, math.nan)
            for index in item.needed:
                ref_logps[0, index] = next(found)
            total, facts = self._total(group.prompt.id, item, ref_logps)
            changed.append(_with_rewards(group, item.samples, total))
            for column, values in zip(rows, facts, strict=True):
                column += values
        return changed, self._metrics(rows, len(needed), self.reference.num_scored - before)

    def _prepare(self, group: Group) -> _Scored:
        usable = [sample for sample in group.samples if sample.reward is not None]
        rewards = torch.tensor([[float(sample.reward or 0.0) for sample in usable]])
        logps = torch.tensor([[float(s.behaviour_logp[s.loss_mask].sum(dtype=np.float64)) for s in usable]])
        tau = torch.tensor([self.tau])
        if self.config.percentile is not None and usable:
            tau = percentile_threshold(rewards, self.config.percentile)
        good = rewards >= tau[:, None]
        covered = group.prompt.id in self.anchors
        needed = (
            [index for index in range(len(usable)) if not (covered and bool(good[0, index]))]
            if self.beta
            else []
        )
        return _Scored(usable, rewards, logps, good, tau, needed)

    def _total(self, prompt_id: str, item: _Scored, ref_logps: torch.Tensor) -> tuple[torch.Tensor, _Facts]:
        """Total rewards [1, G] of one group, and what the metrics are made of."""
        stored = self.anchors.get(prompt_id)
        if not item.samples:
            total = item.rewards
        elif self.method != "mara":
            total = self._rival(item)
            if self.beta:
                total = total_reward(total, item.logps, ref_logps, self.beta)
        elif stored is not None:
            anchor = Anchor(*(torch.tensor([value]) for value in stored))
            total = anchored_total(item.rewards, item.logps, ref_logps, anchor, tau=item.tau, beta=self.beta)
        else:
            limit = math.inf if self.config.max_bonus is None else self.config.max_bonus
            augmented = mara(item.rewards, ref_logps, tau=item.tau, beta=self.beta, max_bonus=limit)
            total = total_reward(augmented.rewards, item.logps, ref_logps, self.beta)
            if self.config.anchor == "stored" and bool(item.good.any()):
                self.anchors[prompt_id] = (
                    float(augmented.anchor.rewards[0]),
                    float(augmented.anchor.ref_logps[0]),
                )
        facts = _Facts(
            item.good[0].tolist(),
            (item.logps - ref_logps)[0].tolist(),
            total[0].tolist(),
            [sample.num_tokens for sample in item.samples],
        )
        return total, facts

    def _rival(self, item: _Scored) -> torch.Tensor:
        """The rewards as a rival has them, [1, G], without the KL."""
        strength = self.config.coefficient or DEFAULT_COEFFICIENTS.get(self.method, 0.0)
        match self.method:
            case "entropy_bonus":
                return entropy_bonus(item.rewards, item.logps, strength)
            case "unlikeliness":  # a factor on the reward of what is good: 0 must mean wrong
                return unlikeliness(item.rewards * item.good, item.logps, strength)
            case "differential_smoothing":
                tau = item.tau[:, None]
                return differential_smoothing(item.rewards - tau, item.logps, tau=0.0, correct=strength) + tau
            case (
                "pass_at_k"
            ):  # an advantage already: its group mean is 0, and stays so when advantages are taken
                return pass_at_k_advantages(item.good, min(self.config.k, len(item.samples)))
            case _:
                return item.rewards

    def _metrics(self, rows: _Facts, needed: int, scored: int) -> dict[str, float]:
        kls = [kl for kl in rows.kl if not math.isnan(kl)]
        size = max(1, len(rows.good))
        metrics = {
            "mara/good_fraction": sum(rows.good) / size,
            "mara/reference_needed_fraction": needed / size,
            "mara/reference_scored_fraction": scored / size,
            "mara/num_anchors": float(len(self.anchors)),
            "rollout/reward_total_mean": sum(rows.total) / size,
        }
        if kls:
            metrics["mara/kl_k1_policy_ref"] = sum(kls) / len(kls)
        totals, lengths = (
            [x for x, good in zip(column, rows.good, strict=True) if good]
            for column in (rows.total, rows.tokens)
        )
        if len(totals) > 2 and np.std(totals) > 0 and np.std(lengths) > 0:
            metrics["mara/reward_length_correlation"] = float(np.corrcoef(totals, lengths)[0, 1])
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The stored anchors; JSON-serialisable."""
        return {"anchors": {key: list(value) for key, value in self.anchors.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.anchors = {key: (float(r), float(logp)) for key, (r, logp) in state["anchors"].items()}


def _with_rewards(group: Group, usable: Sequence[Sample], total: torch.Tensor) -> Group:
    rewards = dict(zip(map(id, usable), total[0].tolist(), strict=True))
    samples: list[Sample] = []
    for sample in group.samples:
        changed = copy(sample)
        changed.reward = rewards.get(id(sample), sample.reward)
        samples.append(changed)
    return Group(group.prompt, samples)


def transform(context: TransformContext) -> Transform:
    """MARA for `pg.rl.train(..., transform=pg.mara.transform, mara__beta=0.01)`; the table `[mara]` is its `MaraConfig`.

    Raises:
        ConfigError: a combination that cannot work, with the reason.
    """
    config = validate(MaraConfig, context.options)
    module: Any = context.model.module
    weights = None if hasattr(module, "disable_adapter") or not config.beta else context.initial_weights()
    reference = Reference(
        context.model,
        weights,
        temperature=context.temperature,
        max_tokens=context.max_tokens,
        cache=config.cache,
    )
    return Transform(config, reference, context.pass_reward)
