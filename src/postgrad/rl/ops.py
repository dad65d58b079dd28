"""The equations of ScaleRL (arXiv 2510.13786) and of the losses that it compares with, as pure functions.

Symbols of the paper: A_i = `advantage`, ρ_it = `ratio`, ε = `cap`, π_train = exp(`logp`), π_gen = exp(`behaviour_logp`),
|y_i| = tokens of sample i that count for the loss (injected ones do not).

Everything is flat, without padding. Shapes: N samples, T tokens (of all samples together); `group` [N] and `sample` [T]
are the indices that tie them together. A loss function returns one term per token; the loss is Σ_t weight_t · term_t with
the weights of `token_weights`, which are fixed *before* a batch is split, so that splitting cannot change the loss.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Aggregation = Literal["prompt", "sample", "token"]
AdvantageNorm = Literal["batch", "group", "none"]


def _segment_sum(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    return torch.zeros(num_segments, dtype=values.dtype, device=values.device).index_add(0, index, values)


def _num_segments(index: Tensor) -> int:
    return int(index.max()) + 1 if index.numel() else 0


def _segment_mean(values: Tensor, index: Tensor) -> Tensor:
    count = _num_segments(index)
    ones = _segment_sum(torch.ones_like(values), index, count)
    return _segment_sum(values, index, count) / ones.clamp(min=1)


def advantages(
    reward: Float[Tensor, " N"], group: Int[Tensor, " N"], norm: AdvantageNorm = "batch"
) -> Float[Tensor, " N"]:
    """Â_i = (r_i − mean of its group) / std (paper §3.4).

    The denominator, a population standard deviation of the *centred* rewards: `batch` over all samples given,
    `group` over the sample's own group, `none` = 1. A standard deviation of 0 gives advantages of 0.

    >>> advantages(torch.tensor([1.0, -1.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])).tolist()
    [1.4142135381698608, -1.4142135381698608, 0.0, 0.0]
    """
    centred = reward - _segment_mean(reward, group)[group]
    if norm == "none":
        return centred
    square = centred.square()
    variance = square.mean() if norm == "batch" else _segment_mean(square, group)[group]
    return torch.where(variance <= 1e-12, 0.0, centred / variance.clamp(min=1e-12).sqrt())


def has_variance(reward: Float[Tensor, " N"], group: Int[Tensor, " N"]) -> Bool[Tensor, " P"]:
    """Which groups have rewards that differ (0 < pass rate < 1 for binary rewards; right for any others too).

    >>> has_variance(torch.tensor([1.0, -1.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])).tolist()
    [True, False]
    """
    centred = reward - _segment_mean(reward, group)[group]
    return _segment_sum(centred.square(), group, _num_segments(group)) > 1e-12


def token_weights(
    sample: Int[Tensor, " T"], group: Int[Tensor, " N"], aggregation: Aggregation = "prompt"
) -> Float[Tensor, " T"]:
    """The weight of each token in the loss, 1 in sum (paper §3.4).

    prompt: 1/P · 1/Σ_{i in group}|y_i|; sample: 1/P · 1/G · 1/|y_i|; token: 1/Σ_i|y_i|. P counts the groups that have
    tokens, G the samples of the group that have tokens.

    >>> sample, group = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0])
    >>> token_weights(sample, group, "sample").tolist()
    [0.1666666716337204, 0.1666666716337204, 0.1666666716337204, 0.5]
    """
    if aggregation == "token":
        return torch.full(sample.shape, 1.0 / max(1, sample.numel()), device=sample.device)
    per_sample = torch.bincount(sample, minlength=len(group)).float()
    num_groups = _num_segments(group)
    per_group = _segment_sum(per_sample, group, num_groups)
    num_prompts = (per_group > 0).sum()
    if aggregation == "prompt":
        return (1.0 / (num_prompts * per_group[group[sample]])).float()
    samples_of_group = _segment_sum((per_sample > 0).float(), group, num_groups)
    return (1.0 / (num_prompts * samples_of_group[group[sample]] * per_sample[sample])).float()


class LossTerms(NamedTuple):
    """term [T]: per-token loss, differentiable in logp. ratio [T]: ρ. limited [T]: where the cap or clip was in force."""

    term: Tensor
    ratio: Tensor
    limited: Tensor


def cispo(
    logp: Float[Tensor, " T"],
    behaviour_logp: Float[Tensor, " T"],
    advantage: Float[Tensor, " T"],
    cap: float = 5.0,
) -> LossTerms:
    """−sg(min(ρ, ε))·Â·log π_train, ρ = π_train/π_gen (paper eq. of §4; truncated importance sampling REINFORCE).

    ε is the cap itself, not 1+ε; there is no lower clip. `behaviour_logp` is what the generator recorded, under the
    weights that sampled the token. The gradient is −min(ρ, ε)·Â·∇log π_train.

    >>> one = torch.ones(1)
    >>> float(cispo(-one, -one - 3.0, 2.0 * one, cap=5.0).term)  # ρ = e³ > 5, so −5·2·(−1)
    10.0
    """
    ratio = (logp - behaviour_logp).detach().exp()
    return LossTerms(-ratio.clamp(max=cap) * advantage * logp, ratio, ratio > cap)


def clipped(
    logp: Float[Tensor, " T"],
    behaviour_logp: Float[Tensor, " T"],
    advantage: Float[Tensor, " T"],
    low: float = 0.2,
    high: float = 0.2,
) -> LossTerms:
    """−min(ρÂ, clip(ρ, 1−ε⁻, 1+ε⁺)Â): GRPO (0.2, 0.2), DAPO (0.2, 0.26).

    >>> one = torch.ones(1)
    >>> float(clipped(0 * one, -one, one, 0.2, 0.2).term)  # ρ = e is clipped to 1.2
    -1.2000000476837158
    """
    ratio = (logp - behaviour_logp).exp()
    bounded = ratio.clamp(1 - low, 1 + high)
    term = -torch.minimum(ratio * advantage, bounded * advantage)
    return LossTerms(term, ratio.detach(), (bounded * advantage < ratio * advantage).detach())


def gspo(
    logp: Float[Tensor, " T"],
    behaviour_logp: Float[Tensor, " T"],
    advantage: Float[Tensor, " T"],
    sample: Int[Tensor, " T"],
    low: float = 0.2,
    high: float = 0.2,
) -> LossTerms:
    """GRPO's clip on the sequence ratio s_i = exp(1/|y_i| Σ_t (log π_train − log π_gen)) (GSPO, arXiv 2507.18071).

    All tokens of a sample must be given together.
    """
    log_ratio = _segment_mean(logp - behaviour_logp, sample)[sample]
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - low, 1 + high)
    term = -torch.minimum(ratio * advantage, bounded * advantage)
    return LossTerms(term, ratio.detach(), (bounded * advantage < ratio * advantage).detach())


def reinforce(
    logp: Float[Tensor, " T"], behaviour_logp: Float[Tensor, " T"], advantage: Float[Tensor, " T"]
) -> LossTerms:
    """−Â·log π_train, without any correction for stale samples.

    >>> float(reinforce(torch.tensor([-2.0]), torch.tensor([-1.0]), torch.tensor([3.0])).term)
    6.0
    """
    ratio = (logp - behaviour_logp).detach().exp()
    return LossTerms(-advantage * logp, ratio, torch.zeros_like(ratio, dtype=torch.bool))


class Mismatch(NamedTuple):
    """Estimates of KL(π_gen ‖ π_train) per token, in nats: k1 = mean(−log ρ), k3 = mean(ρ − 1 − log ρ) ≥ 0."""

    kl_k1: Tensor
    kl_k3: Tensor


def mismatch_kl(logp: Float[Tensor, " T"], behaviour_logp: Float[Tensor, " T"]) -> Mismatch:
    """How far the trainer's policy is from the one that generated (Schulman's k1 and k3, samples from π_gen).

    >>> kl = mismatch_kl(torch.tensor([0.0]), torch.tensor([-1.0]))
    >>> round(float(kl.kl_k1), 4), round(float(kl.kl_k3), 4)  # −1, e − 1 − 1
    (-1.0, 0.7183)
    """
    log_ratio = (logp - behaviour_logp).detach()
    return Mismatch(-log_ratio.mean(), (log_ratio.exp() - 1 - log_ratio).mean())
