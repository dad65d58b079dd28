"""MARA as the reward transform that `rl` receives: R → R̃ − β·(log π_θ − log π_ref), before advantages are taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from postgrad.core.config import validate
from postgrad.core.protocols import TransformContext
from postgrad.core.types import Group, Sample
from postgrad.mara.config import DEFAULT_COEFFICIENTS, MaraConfig
from postgrad.mara.ops import (
    Anchor,
    anchored_total,
    differential_smoothing,
    diversity_filter,
    entropy_bonus,
    flow_rl,
    joint_logps,
    mara,
    pass_at_k_advantages,
    percentile_threshold,
    total_reward,
    unlikeliness,
)
from postgrad.mara.reference import Reference
from postgrad.mara.replay import Replay, sum_logp

AnswerKey = Callable[[Sample], Hashable]


@dataclass
class _Block:
    """Groups with equally many usable samples, P of them, on their way through the transform.

    Attributes:
        prompts: their ids.
        samples: P lists of G.
        rewards, logps: R and log π_θ, float64 [P, G].
        tau: [P].
        good, needed: bool [P, G]; R ≥ τ; whether the reference must score it.
        ref_logps: float64 [P, G], NaN where not needed.
        total: [P, G], at the end.
    """

    prompts: list[str]
    samples: list[list[Sample]]
    rewards: Tensor
    logps: Tensor
    tau: Tensor
    good: Tensor
    needed: Tensor
    ref_logps: Tensor
    total: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens that count for the loss, [P, G]."""
        return torch.tensor([[int(s.loss_mask.sum()) for s in row] for row in self.samples])

    def keys(self, key: AnswerKey) -> Tensor:
        """int64 [P, G]; equal within a row where the answers are."""
        rows: list[list[int]] = []
        for samples in self.samples:
            numbers: dict[Hashable, int] = {}
            rows.append([numbers.setdefault(key(sample), len(numbers)) for sample in samples])
        return torch.tensor(rows)


class Transform:
    """Re-rewards groups; a `core.protocols.RewardTransform`.

    Args:
        config: with beta.
        reference: scores samples under the weights of before.
        replay: adds good answers seen before.
        pass_reward: τ where the config has none.
        fail_reward: what the diversity filter leaves of a reward.

    Its state: stored anchors, answers for replay, and how often the filter has seen each answer.
    """

    def __init__(
        self,
        config: MaraConfig,
        reference: Reference,
        replay: Replay,
        pass_reward: float,
        fail_reward: float,
    ) -> None:
        self.config, self.reference, self.replay, self.beta = config, reference, replay, config.beta
        self.tau = pass_reward if config.tau is None else config.tau
        self.fail_reward = fail_reward
        self.key = answer_key(config.answers)
        self.anchors: dict[str, tuple[float, float]] = {}
        self.counts: dict[str, dict[str, int]] = {}
        self._filtered = 0

    @property
    def min_deviation(self) -> float:
        """In units of reward."""
        return self.config.min_deviation * self.beta

    def __call__(self, groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
        """(groups with the total reward, metrics). Samples without a reward stay as they are."""
        joined = self.replay.join(groups)
        blocks = self._blocks(joined)
        needed = [
            sample
            for block in blocks
            for row, marks in zip(block.samples, block.needed.tolist(), strict=True)
            for sample, mark in zip(row, marks, strict=True)
            if mark
        ]
        before = self.reference.num_scored
        scores = torch.tensor(self.reference(needed), dtype=torch.float64)
        parts = scores.split([int(block.needed.sum()) for block in blocks])
        rewards: dict[int, float] = {}
        for block, part in zip(blocks, parts, strict=True):
            block.ref_logps[block.needed] = part
            block.total = self._total(block)
            for row, values in zip(block.samples, block.total.tolist(), strict=True):
                rewards.update(zip(map(id, row), values, strict=True))
        metrics = self._metrics(blocks, len(needed), self.reference.num_scored - before)
        self._remember(blocks)
        metrics["mara/num_replay_answers"] = float(len(self.replay))
        return [_with_rewards(group, rewards) for group in joined], metrics

    def _blocks(self, groups: Sequence[Group]) -> list[_Block]:
        by_size: dict[int, list[Group]] = {}
        for group in groups:
            count = sum(sample.reward is not None for sample in group.samples)
            if count:
                by_size.setdefault(count, []).append(group)
        return [self._block(alike) for alike in by_size.values()]

    def _block(self, groups: Sequence[Group]) -> _Block:
        samples = [[s for s in group.samples if s.reward is not None] for group in groups]
        prompts = [group.prompt.id for group in groups]
        rewards = torch.tensor([[s.reward for s in row] for row in samples], dtype=torch.float64)
        logps = torch.tensor([[sum_logp(s) for s in row] for row in samples], dtype=torch.float64)
        tau = torch.full((len(groups),), self.tau, dtype=torch.float64)
        if self.config.percentile is not None:
            tau = percentile_threshold(rewards, self.config.percentile)
        good = rewards >= tau.unsqueeze(-1)
        covered = torch.tensor([prompt in self.anchors for prompt in prompts])
        scored = self.beta > 0 or self.config.method == "flow_rl"
        needed = ~(good & covered.unsqueeze(-1)) if scored else torch.zeros_like(good)
        ref_logps = torch.full_like(rewards, math.nan)
        return _Block(prompts, samples, rewards, logps, tau, good, needed, ref_logps, rewards)

    # -- totals --------------------------------------------------------------------------------------------------

    def _total(self, block: _Block) -> Tensor:
        if self.config.method == "mara":
            return self._mara(block)
        rewards = self._rival(block)
        return total_reward(rewards, block.logps, block.ref_logps, self.beta) if self.beta else rewards

    def _mara(self, block: _Block) -> Tensor:
        unknown = (math.nan, math.nan)
        stored = torch.tensor([self.anchors.get(p, unknown) for p in block.prompts], dtype=torch.float64)
        anchor = Anchor(stored[:, 0], stored[:, 1])
        ref_logps = block.ref_logps
        if self.config.answers != "tokens":
            tokens = block.keys(answer_key("tokens"))
            ref_logps = joint_logps(ref_logps, block.keys(self.key), tokens)
        augmented = mara(
            block.rewards,
            ref_logps,
            tau=block.tau,
            beta=self.beta,
            anchor=anchor,
            max_bonus=self.config.max_bonus or math.inf,
        )
        total = total_reward(augmented.rewards, block.logps, block.ref_logps, self.beta)
        spared = ~block.needed
        if bool(spared.any()):
            known = Anchor(anchor.rewards.nan_to_num(), anchor.ref_logps.nan_to_num())
            without = anchored_total(
                block.rewards, block.logps, block.ref_logps, known, tau=block.tau, beta=self.beta
            )
            total = torch.where(spared, without, total)
        if self.config.anchor == "stored":
            for prompt, found, reward, logp in zip(
                block.prompts, block.good.any(-1).tolist(), *map(Tensor.tolist, augmented.anchor), strict=True
            ):
                if found:
                    self.anchors.setdefault(prompt, (reward, logp))
        return total

    def _rival(self, block: _Block) -> Tensor:
        """The rewards as a rival has them, [P, G], without a KL of its own."""
        strength = self.config.coefficient or DEFAULT_COEFFICIENTS.get(self.config.method, 0.0)
        rewards, logps = block.rewards, block.logps
        match self.config.method:
            case "entropy_bonus":
                return entropy_bonus(rewards, logps, strength)
            case "unlikeliness":  # a factor on the reward of what is good: 0 must mean wrong
                return unlikeliness(rewards * block.good, logps, strength)
            case "differential_smoothing":
                tau = block.tau.unsqueeze(-1)
                return differential_smoothing(rewards - tau, logps, tau=0.0, correct=strength) + tau
            case "pass_at_k":  # an advantage: its group mean is 0, and stays so when advantages are taken
                return pass_at_k_advantages(block.good, min(self.config.k, rewards.shape[-1])).double()
            case "flow_rl":
                return flow_rl(rewards, logps, block.ref_logps, block.lengths.clamp(min=1), strength)
            case "diversity_filter":
                return torch.stack([self._filter(block, row) for row in range(len(block.prompts))])
            case _:
                return rewards

    def _filter(self, block: _Block, row: int) -> Tensor:
        """The rewards of one group after the diversity filter, whose buckets belong to the prompt."""
        seen = self.counts.setdefault(block.prompts[row], {})
        names = [str(self.key(sample)) for sample in block.samples[row]]
        index = {name: i for i, name in enumerate(dict.fromkeys(names))}
        filtered = diversity_filter(
            block.rewards[row],
            torch.tensor([index[name] for name in names]),
            torch.tensor([seen.get(name, 0) for name in index]),
            bucket_size=self.config.bucket,
            minimum=float(block.tau[row]),
            penalty=self.fail_reward,
        )
        seen.update({name: n for name, n in zip(index, filtered.counts.tolist(), strict=True) if n})
        self._filtered += int((filtered.rewards != block.rewards[row]).sum())
        return filtered.rewards

    # -- afterwards ----------------------------------------------------------------------------------------------

    def _remember(self, blocks: Sequence[_Block]) -> None:
        for block in blocks:
            for prompt, row, marks in zip(block.prompts, block.samples, block.good.tolist(), strict=True):
                for sample, good in zip(row, marks, strict=True):
                    if good and sample.request_id >= 0:
                        self.replay.remember(prompt, sample)

    def _metrics(self, blocks: Sequence[_Block], needed: int, scored: int) -> dict[str, float]:
        def joined(values: Sequence[Tensor]) -> np.ndarray:
            return torch.cat([v.flatten() for v in values]).numpy() if values else np.zeros(0)

        own = joined([torch.tensor([[s.request_id >= 0 for s in row] for row in b.samples]) for b in blocks])
        own = own.astype(bool)
        good, total = joined([b.good for b in blocks]), joined([b.total for b in blocks])
        kl = joined([b.logps - b.ref_logps for b in blocks])
        size = max(1, len(own))
        metrics = {
            "mara/good_fraction": float(good[own].mean()) if own.any() else 0.0,
            "mara/reference_needed_fraction": needed / size,
            "mara/reference_scored_fraction": scored / size,
            "mara/num_anchors": float(len(self.anchors)),
            "rollout/reward_total_mean": float(total[own].mean()) if own.any() else 0.0,
        }
        if self.replay.count:
            metrics["mara/replayed_fraction"] = float((~own).sum()) / size
        if self.config.method == "diversity_filter":
            metrics["mara/filtered_fraction"], self._filtered = self._filtered / size, 0
        known = own & ~np.isnan(kl)
        if known.any():
            metrics["mara/kl_k1_policy_ref"] = float(kl[known].mean())
        counted = good & own
        totals, lengths = total[counted], joined([b.lengths for b in blocks])[counted]
        if len(totals) > 2 and np.std(totals) > 0 and np.std(lengths) > 0:
            metrics["mara/reward_length_correlation"] = float(np.corrcoef(totals, lengths)[0, 1])
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Anchors, replay and buckets; JSON-serialisable."""
        return {
            "anchors": {key: list(value) for key, value in self.anchors.items()},
            "replay": self.replay.state_dict(),
            "counts": {prompt: dict(seen) for prompt, seen in self.counts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.anchors = {key: (float(r), float(logp)) for key, (r, logp) in state["anchors"].items()}
        self.replay.load_state_dict(state["replay"])
        self.counts = {prompt: dict(seen) for prompt, seen in state["counts"].items()}


def answer_key(kind: str) -> AnswerKey:
    """What makes two completions the same answer (`MaraConfig.answers`)."""
    if kind == "tokens":
        return lambda sample: sample.token_ids.tobytes()
    if kind == "text":
        return lambda sample: " ".join(sample.text.split())
    from postgrad.mara.molecules import canonical

    return lambda sample: canonical(sample.text.strip()) or sample.text.strip()


def _with_rewards(group: Group, rewards: Mapping[int, float]) -> Group:
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
    scored = config.beta > 0 or config.method == "flow_rl"
    weights = None if hasattr(module, "disable_adapter") or not scored else context.initial_weights()
    options = {"temperature": context.temperature, "max_tokens": context.max_tokens}
    reference = Reference(context.model, weights, cache=config.cache, **options)
    memory = (config.replay, config.replay_size, config.replay_power)
    replay = Replay(context.model, *memory, seed=context.seed, **options)
    return Transform(config, reference, replay, context.pass_reward, context.fail_reward)
