"""The equations of ScaleRL (arXiv 2510.13786) and of the losses that it compares with, as pure functions.

Symbols of the paper: A_i = `advantage`, ρ_it = `ratio`, ε = `cap`, π_train = exp(`logp`), π_gen = exp(`behaviour_logp`),
|y_i| = tokens of sample i that count for the loss (injected ones do not).

Everything is flat, without padding. Shapes: N samples, T tokens (of all samples together); `group` [N] and `sample` [T]
are the indices that tie them together. A loss function returns one term per token; the loss is Σ_t weight_t · term_t with
the weights of `token_weights`, which are fixed *before* a batch is split, so that splitting cannot change the loss.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Aggregation = Literal["prompt", "sample", "token"]
AdvantageNorm = Literal["batch", "group", "none"]
Baseline = Literal["group", "none"]


def _segment_sum(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    return torch.zeros(num_segments, dtype=values.dtype, device=values.device).index_add(0, index, values)


def _num_segments(index: Tensor) -> int:
    return int(index.max()) + 1 if index.numel() else 0


def _segment_mean(values: Tensor, index: Tensor, weight: Tensor | None = None) -> Tensor:
    count = _num_segments(index)
    weight = torch.ones_like(values) if weight is None else weight
    return _segment_sum(weight * values, index, count) / _segment_sum(weight, index, count).clamp(min=1e-30)


def advantages(
    reward: Float[Tensor, " N"],
    group: Int[Tensor, " N"],
    norm: AdvantageNorm = "batch",
    *,
    baseline: Baseline = "group",
    weight: Float[Tensor, " N"] | None = None,
    min_deviation: float = 0.0,
) -> Float[Tensor, " N"]:
    """Â_i = (r_i − mean of its group) / std (paper §3.4).

    The denominator, a population standard deviation of the *centred* rewards: `batch` over all samples given,
    `group` over the sample's own group, `none` = 1. A standard deviation of 0 gives advantages of 0.

    Args:
        reward: r.
        group: index of each sample's group.
        norm: the denominator.
        baseline: `none` subtracts nothing; the deviation is then about 0.
        weight: importance weights ≥ 0 of means and deviations, whose denominators are their sums.
        min_deviation: the least denominator, so that noise is not blown up where rewards are nearly equal.

    >>> advantages(torch.tensor([1.0, -1.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])).tolist()
    [1.4142135381698608, -1.4142135381698608, 0.0, 0.0]
    """
    weight = torch.ones_like(reward) if weight is None else weight
    centred = reward - _segment_mean(reward, group, weight)[group] if baseline == "group" else reward
    if norm == "none":
        return centred
    square = centred.square()
    if norm == "batch":
        variance = (weight * square).sum() / weight.sum().clamp(min=1e-30)
    else:
        variance = _segment_mean(square, group, weight)[group]
    deviation = variance.clamp(min=1e-12).sqrt().clamp(min=min_deviation)
    return torch.where(variance <= 1e-12, 0.0, centred / deviation)


def overlong_penalty(
    num_tokens: Int[Tensor, " N"], max_tokens: int, penalty_tokens: int
) -> Float[Tensor, " N"]:
    """clip((Lmax − |y|)/Lcache − 1, −1, 0): what the reward of a long correct sample loses (DAPO, arXiv 2503.14476).

    0 up to Lmax − Lcache tokens, then linearly down to −1 at Lmax.

    Args:
        num_tokens: |y|, all tokens of the completion.
        max_tokens: Lmax.
        penalty_tokens: Lcache.

    >>> overlong_penalty(torch.tensor([50, 80, 85, 100]), 100, 20).tolist()
    [0.0, 0.0, -0.25, -1.0]
    """
    return ((max_tokens - num_tokens) / penalty_tokens - 1).clamp(-1, 0)


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


# -- regularisation towards a reference ---------------------------------------------------------------------------------

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(
    logp: Float[Tensor, " T"], ref_logp: Float[Tensor, " T"], estimator: KLEstimator
) -> Float[Tensor, " T"]:
    """Schulman's estimators of KL(π ‖ π_ref) per token, for tokens drawn from π: with d = log π − log π_ref

    k1 = d (unbiased), k2 = d²/2 (biased, ≥ 0), k3 = exp(−d) − 1 + d (unbiased, ≥ 0).

    Differentiated as a loss on-policy, k2 gives the gradient of KL(π ‖ π_ref), k3 that of KL(π_ref ‖ π) and k1 nothing in
    expectation (Liu et al., arXiv 2510.01555).

    >>> half, quarter = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    >>> [round(float(kl_estimate(half, quarter, k)), 4) for k in ("k1", "k2", "k3")]  # d = log 2
    [0.6931, 0.2402, 0.1931]
    """
    distance = logp - ref_logp
    match estimator:
        case "k1":
            return distance
        case "k2":
            return distance.square() / 2
        case "k3":
            return (-distance).exp() - 1 + distance


def kl_penalty(
    logp: Float[Tensor, " T"],
    ref_logp: Float[Tensor, " T"],
    sample: Int[Tensor, " T"],
    num_samples: int,
    estimator: KLEstimator,
) -> Float[Tensor, " N"]:
    """Σ_t of `kl_estimate` per sample: what, times a coefficient, is taken from its reward.

    >>> kl_penalty(torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-3.0, -2.0, -2.0]), torch.tensor([0, 0, 1]), 2, "k1").tolist()
    [3.0, 0.0]
    """
    return _segment_sum(kl_estimate(logp, ref_logp, estimator), sample, num_samples)


# -- which tokens lower the entropy: KL-Cov and Clip-Cov (Cui et al., arXiv 2505.22617) -------------------------------


def covariances(logps: Float[Tensor, " T"], advantages: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """(log π_t − mean)·(A_t − mean) per token, means over all T (Cui et al., arXiv 2505.22617): what lowers the entropy.

    >>> covariances(torch.tensor([-1.0, -3.0]), torch.tensor([2.0, 0.0])).tolist()
    [1.0, 1.0]
    """
    return (logps - logps.mean()) * (advantages - advantages.mean())


def kl_cov(
    logps: Float[Tensor, " T"], advantages: Float[Tensor, " T"], fraction: float = 2e-3
) -> Bool[Tensor, " T"]:
    """KL-Cov: the tokens of largest covariance, which pay a KL to the behaviour policy (Cui et al., arXiv 2505.22617).

    max(1, ⌊fraction·T⌋) of them, none when T = 0; the first among equals. The paper's fraction: 2e-3 for 7B, 2e-4 for 32B.

    >>> kl_cov(torch.tensor([-0.1, -2.0, -2.0, -2.0]), torch.tensor([1.0, 0.0, 0.0, 0.0]), 0.25).tolist()
    [True, False, False, False]
    """
    chosen = torch.zeros_like(logps, dtype=torch.bool)
    if not len(logps):
        return chosen
    order = covariances(logps, advantages).argsort(descending=True, stable=True)
    chosen[order[: max(1, int(fraction * len(logps)))]] = True
    return chosen


def clip_cov(
    logps: Float[Tensor, " T"],
    advantages: Float[Tensor, " T"],
    generator: torch.Generator,
    fraction: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
) -> Bool[Tensor, " T"]:
    """Clip-Cov: random tokens with low ≤ covariance ≤ high, whose gradient is dropped (arXiv 2505.22617; 2e-4, 1, 5).

    At most max(1, ⌊fraction·T⌋) of them; fewer when fewer lie in the window.

    >>> logps, advantages = torch.tensor([0.0, -4.0, -2.0, -2.0]), torch.tensor([2.0, 0.0, 0.0, 0.0])
    >>> clip_cov(logps, advantages, torch.Generator(), fraction=0.25, low=2.5).tolist()  # 3, 1, 0, 0
    [True, False, False, False]
    """
    covariance = covariances(logps, advantages)
    allowed = (covariance >= low) & (covariance <= high)
    draw = torch.rand(len(logps), generator=generator, device=logps.device).masked_fill(~allowed, 2.0)
    chosen = torch.zeros_like(allowed)
    chosen[draw.argsort()[: max(1, int(fraction * len(logps)))]] = True
    return chosen & allowed


# -- how fast ----------------------------------------------------------------------------------------------------------

LRSchedule = Literal["constant", "linear", "cosine"]


def learning_rate(
    update: int, peak: float, warmup: int, steps: int, schedule: LRSchedule, final_fraction: float = 0.0
) -> float:
    """The learning rate of update 0, 1, …: peak·(update + 1)/warmup while that is less than the peak, then the schedule.

    With f = final_fraction and s = (update − warmup)/(steps − warmup), within 0 to 1: constant 1; linear 1 − (1 − f)·s;
    cosine f + (1 − f)·(1 + cos πs)/2, times the peak.

    >>> [learning_rate(update, 1.0, 2, 6, "linear", 0.2) for update in (0, 1, 2, 4, 6)]
    [0.5, 1.0, 1.0, 0.6, 0.19999999999999996]
    >>> round(learning_rate(4, 1.0, 2, 6, "cosine"), 6)
    0.5
    """
    if update < warmup:
        return peak * (update + 1) / warmup
    share = min(1.0, (update - warmup) / max(1, steps - warmup))
    match schedule:
        case "constant":
            return peak
        case "linear":
            return peak * (1 - (1 - final_fraction) * share)
        case "cosine":
            return peak * (final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * share)) / 2)


# -- how far apart generator and trainer are ---------------------------------------------------------------------------


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
