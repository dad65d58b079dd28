"""The equations of MARA (arXiv 2510.20817) and of its rivals, as pure functions.

Symbols of the paper: R = `rewards`, π_ref = exp(`ref_logps`), π_θ = exp(`policy_logps`), τ = `tau`, β = `beta`,
z = the anchor (the good sample that the reference likes best), R̃ = `Augmented.rewards`.

Shapes: P prompts, G samples of each; T tokens, flat. Log-probs of samples are natural and are *sums* over the tokens that
count for the loss, in fp32 (a sum of a thousand bf16 terms is off by whole nats). The policy's log-probs are those it
sampled with; nothing here is differentiated.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Normalisation = Literal["group", "batch", "none"]

# -- MARA ----------------------------------------------------------------------------------------------------------


class Anchor(NamedTuple):
    """What a prompt's good samples are lifted to: R(z) and log π_ref(z), each [P]."""

    rewards: Tensor
    ref_logps: Tensor


class Augmented(NamedTuple):
    """What `mara` gives.

    Attributes:
        rewards: R̃ [P, G].
        bonus: R̃ − R [P, G]; 0 on samples that are not good.
        good: bool [P, G].
        anchor: of each prompt; −∞ where it has no good sample.
    """

    rewards: Tensor
    bonus: Tensor
    good: Tensor
    anchor: Anchor


def find_anchor(
    rewards: Float[Tensor, "P G"], ref_logps: Float[Tensor, "P G"], good: Bool[Tensor, "P G"]
) -> Anchor:
    """z = argmax of log π_ref over the good samples, per prompt; (−∞, −∞) where there is none.

    Equal log-probs are settled by the higher reward, so the result does not depend on the order of samples.

    >>> rewards, good = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]])
    >>> anchor = find_anchor(rewards, torch.tensor([[-1.0, -3.0, -0.5]]), good)
    >>> anchor.rewards.tolist(), anchor.ref_logps.tolist()
    ([1.0], [-1.0])
    """
    lowest = rewards.new_tensor(-math.inf)
    logps = torch.where(good, ref_logps, lowest)
    best = logps.amax(-1)
    at_best = good & (logps == best.unsqueeze(-1))
    return Anchor(torch.where(at_best, rewards, lowest).amax(-1), best)


def mara(
    rewards: Float[Tensor, "P G"],
    ref_logps: Float[Tensor, "P G"],
    *,
    tau: float | Float[Tensor, " P"],
    beta: float,
    anchor: Anchor | None = None,
    max_bonus: float = math.inf,
) -> Augmented:
    """R̃ = R(z) + β·(log π_ref(z) − log π_ref(y)) for good y (R ≥ τ), else R (the paper's augmented reward).

    Then log π_ref + R̃/β is the same for every good y: the optimum of KL-regularised RL is uniform over them. A prompt
    without a good sample is unchanged, and so is everything when β = 0 (without a KL there is no optimum to shape).

    Args:
        rewards: R [P, G].
        ref_logps: log π_ref(y) [P, G].
        tau: one threshold, or one per prompt (`percentile_threshold`).
        beta: must equal the coefficient of the KL; ≥ 0.
        anchor: stored R(z), log π_ref(z) per prompt, used instead of the search; NaN log-probs mean "search here".
        max_bonus: |β·(log π_ref(z) − log π_ref(y))| is cut here; where it cuts, uniformity is given up for stability.

    Raises:
        ValueError: β is negative or not finite.

    The likelier good sample is the anchor and keeps its reward, the one e² times rarer gets 0.5·2 more:

    >>> mara(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[-1.0, -3.0, -0.1]]), tau=1.0, beta=0.5).rewards.tolist()
    [[1.0, 2.0, 0.0]]
    """
    _check_beta(beta)
    good = rewards >= _per_prompt(tau, rewards)
    found = find_anchor(rewards, ref_logps, good)
    if anchor is not None:
        found = _prefer(anchor, found)
    if beta == 0:
        return Augmented(rewards, torch.zeros_like(rewards), good, found)
    lift = (beta * (found.ref_logps.unsqueeze(-1) - ref_logps)).clamp(-max_bonus, max_bonus)
    augmented = torch.where(good, found.rewards.unsqueeze(-1) + lift, rewards)
    return Augmented(augmented, torch.where(good, augmented - rewards, 0.0), good, found)


def _prefer(stored: Anchor, found: Anchor) -> Anchor:
    missing = stored.ref_logps.isnan()
    return Anchor(
        torch.where(missing, found.rewards, stored.rewards),
        torch.where(missing, found.ref_logps, stored.ref_logps),
    )


def _per_prompt(value: float | Tensor, like: Tensor) -> Tensor:
    given = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return given.unsqueeze(-1) if given.ndim else given


def _check_beta(beta: float) -> None:
    if not (0 <= beta < math.inf):
        raise ValueError(f"beta is the coefficient of the KL, ≥ 0 and finite; received {beta}")


def joint_logps(
    ref_logps: Float[Tensor, "P G"], answers: Int[Tensor, "P G"], sequences: Int[Tensor, "P G"]
) -> Float[Tensor, "P G"]:
    """log Σ π_ref over the different sequences of a row that are the same answer: for MARA over answers, not sequences.

    With these in `mara` (and the sequences' own in `total_reward`) the optimum is uniform over answers, and within an
    answer as the reference has it. What the row does not show of an answer is missing from its sum.

    Args:
        ref_logps: of the sequences.
        answers: equal where the answer is the same.
        sequences: equal where the tokens are the same (then the answers are, too).

    Two spellings of one answer, one of them twice, have ¼ + ¼:

    >>> logps = torch.tensor([[0.25, 0.25, 0.25, 0.5]]).log()
    >>> joint_logps(logps, torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0, 1, 1, 2]])).exp().tolist()
    [[0.5, 0.5, 0.5, 0.5]]
    """
    repeated = (sequences.unsqueeze(-1) == sequences.unsqueeze(-2)).tril(-1).any(-1)
    first = ref_logps.masked_fill(repeated, -math.inf)
    same = answers.unsqueeze(-1) == answers.unsqueeze(-2)
    return torch.where(same, first.unsqueeze(-2), -math.inf).logsumexp(-1)


def percentile_threshold(rewards: Float[Tensor, "P G"], q: float) -> Float[Tensor, " P"]:
    """τ of each prompt: the q-th percentile (0-100, linear between ranks) of its rewards; 90 for rewards without a verifier.

    Always above the least reward, for what is no better than the worst is not good: where most rewards tie at the least
    one, those above it are good, and where all are equal none is.

    >>> percentile_threshold(torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]), 75.0).tolist()
    [3.0]
    >>> bool(percentile_threshold(torch.tensor([[0.0, 0.0, 0.0, 1.0]]), 50.0) > 0)
    True
    """
    if not 0 <= q <= 100:
        raise ValueError(f"q is a percentile, 0 to 100; received {q}")
    least = rewards.amin(-1)
    return torch.maximum(
        torch.quantile(rewards, q / 100, dim=-1), least.nextafter(torch.full_like(least, math.inf))
    )


def total_reward(
    augmented: Float[Tensor, "P G"],
    policy_logps: Float[Tensor, "P G"],
    ref_logps: Float[Tensor, "P G"],
    beta: float,
) -> Float[Tensor, "P G"]:
    """R̃ − β·(log π_θ(y) − log π_ref(y)): reverse KL as k1 inside the reward, whose expected gradient is the KL's own.

    >>> total_reward(torch.tensor([[2.0]]), torch.tensor([[-1.0]]), torch.tensor([[-3.0]]), 0.5).tolist()
    [[1.0]]
    """
    return augmented - beta * (policy_logps - ref_logps)


def anchored_total(
    rewards: Float[Tensor, "P G"],
    policy_logps: Float[Tensor, "P G"],
    ref_logps: Float[Tensor, "P G"],
    anchor: Anchor,
    *,
    tau: float | Float[Tensor, " P"],
    beta: float,
) -> Float[Tensor, "P G"]:
    """`total_reward(mara(...))` without the reference's log-probs of good samples, which cancel; they may be NaN.

    R(z) + β·log π_ref(z) − β·log π_θ(y) for good y: an entropy bonus restricted to good samples. The others pay the KL.

    >>> anchor = Anchor(torch.tensor([1.0]), torch.tensor([-1.0]))
    >>> unknown = torch.tensor([[math.nan]])
    >>> anchored_total(torch.tensor([[1.0]]), torch.tensor([[-3.0]]), unknown, anchor, tau=1.0, beta=0.5).tolist()
    [[2.0]]
    """
    _check_beta(beta)
    if beta == 0:
        return rewards
    lifted = (anchor.rewards + beta * anchor.ref_logps).unsqueeze(-1) - beta * policy_logps
    return torch.where(
        rewards >= _per_prompt(tau, rewards), lifted, total_reward(rewards, policy_logps, ref_logps, beta)
    )


def centre_and_scale(
    total: Float[Tensor, "P G"],
    norm: Normalisation = "group",
    weights: Float[Tensor, "P G"] | None = None,
    min_deviation: float | Float[Tensor, " P"] = 0.0,
) -> Float[Tensor, "P G"]:
    """Advantages (total − its group's mean) / standard deviation of the centred totals.

    The KL must be in `total` already: mean and deviation then act on reward and KL alike, so their balance, β, stays.
    With the KL in the loss, dividing the reward by its deviation changes β from group to group, and centring by a mean
    that includes the sample itself shrinks the reward, but not the KL, by (G − 1)/G.

    Args:
        total: [P, G].
        norm: the population deviation is over the prompt's own `group`, over the whole `batch`, or 1 (`none`).
        weights: importance weights [P, G] ≥ 0 of the mean and the deviation; the denominators are their sums.
        min_deviation: the least denominator: where totals are nearly equal, what is left of their differences is noise.

    A deviation below 1e-6 of the largest |total| (or of 1) is rounding error and gives advantages of 0.

    >>> centre_and_scale(torch.tensor([[3.0, 1.0], [5.0, 5.0]])).tolist()
    [[1.0, -1.0], [0.0, 0.0]]
    """
    weights = torch.ones_like(total) if weights is None else weights
    share = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
    centred = total - (share * total).sum(-1, keepdim=True)
    if norm == "none":
        return centred
    if norm == "group":
        variance = (share * centred.square()).sum(-1, keepdim=True)
        size = total.abs().amax(-1, keepdim=True)
    else:
        variance = (weights * centred.square()).sum() / weights.sum().clamp(min=1e-30)
        size = total.abs().amax()
    deviation = variance.sqrt()
    floor = 1e-6 * size.clamp(min=1.0)
    least = _per_prompt(min_deviation, total).clamp(min=1e-30)
    return torch.where(deviation <= floor, 0.0, centred / torch.maximum(deviation, least))


# -- rivals: rewards -------------------------------------------------------------------------------------------------


def entropy_bonus(
    rewards: Float[Tensor, "P G"], policy_logps: Float[Tensor, "P G"], coefficient: float
) -> Float[Tensor, "P G"]:
    """R − α·log π_θ(y), on good and bad samples alike: the sampled gradient of R + α·entropy. MARA keeps it to the good ones.

    >>> entropy_bonus(torch.tensor([[1.0, 0.0]]), torch.tensor([[-2.0, -4.0]]), 0.5).tolist()
    [[2.0, 2.0]]
    """
    return rewards - coefficient * policy_logps


def unlikeliness(
    rewards: Float[Tensor, "P G"], policy_logps: Float[Tensor, "P G"], coefficient: float = 0.25
) -> Float[Tensor, "P G"]:
    """R·(1 − β_rank·(G − rank)/G), rank 0 = the sample the policy likes best (He et al., arXiv 2506.02355, β_rank = 0.25).

    Wrong samples, R = 0, stay at 0. Equal log-probs share their mean rank (the paper does not say).

    >>> unlikeliness(torch.tensor([[1.0, 1.0]]), torch.tensor([[-5.0, -1.0]]), 0.5).tolist()
    [[0.75, 0.5]]
    """
    mine, others = policy_logps.unsqueeze(-1), policy_logps.unsqueeze(-2)
    rank = (others > mine).sum(-1) + 0.5 * ((others == mine).sum(-1) - 1)
    size = policy_logps.shape[-1]
    return rewards * (1 - coefficient * (size - rank) / size)


def differential_smoothing(
    rewards: Float[Tensor, "P G"],
    policy_logps: Float[Tensor, "P G"],
    *,
    tau: float,
    correct: float,
    incorrect: float = 0.0,
) -> Float[Tensor, "P G"]:
    """R − γ⁺·log π_θ(y) on correct samples (R ≥ τ), R + γ⁻·log π_θ(y) on the others (Gai et al., arXiv 2511.19942).

    An entropy bonus where the answer is right, an entropy penalty where it is wrong. The paper's idea is certain, its
    exact formula (whether π is the sampling or the base policy, and any scale of γ) is *not checked against its text*.

    >>> rewards, logps = torch.tensor([[1.0, 0.0]]), torch.tensor([[-2.0, -4.0]])
    >>> differential_smoothing(rewards, logps, tau=1.0, correct=0.5, incorrect=0.25).tolist()
    [[2.0, -1.0]]
    """
    return torch.where(rewards >= tau, rewards - correct * policy_logps, rewards + incorrect * policy_logps)


class Filtered(NamedTuple):
    """Rewards [N] after the diversity filter, and how often each answer has been counted so far [K]."""

    rewards: Tensor
    counts: Tensor


def diversity_filter(
    rewards: Float[Tensor, " N"],
    answers: Int[Tensor, " N"],
    counts: Int[Tensor, " K"],
    *,
    bucket_size: int,
    minimum: float = -math.inf,
    penalty: float = 0.0,
) -> Filtered:
    """The first `bucket_size` samples of an answer keep their reward, later ones get 0 (REINVENT's filter, Blaschke et al. 2020).

    Args:
        rewards: [N], in order of arrival.
        answers: the bucket of each sample, 0 ≤ answer < K (REINVENT: the molecule, or its scaffold).
        counts: [K], how full the buckets are.
        bucket_size: of every bucket.
        minimum: samples with less reward neither fill a bucket nor are filtered.
        penalty: the reward of those filtered, where it is not 0.

    >>> filtered = diversity_filter(torch.ones(3), torch.tensor([0, 0, 1]), torch.tensor([1, 0]), bucket_size=2)
    >>> filtered.rewards.tolist(), filtered.counts.tolist()
    ([1.0, 0.0, 1.0], [3, 1])
    """
    counted = rewards >= minimum
    same = (answers.unsqueeze(-1) == answers) & counted
    before = same.tril(-1).sum(-1) + counts[answers]
    kept = torch.where(counted & (before >= bucket_size), penalty, rewards)
    return Filtered(kept, counts.index_add(0, answers, counted.to(counts.dtype)))


# -- rivals: advantages ------------------------------------------------------------------------------------------------


def pass_at_k_advantages(passed: Bool[Tensor, "P G"], k: int) -> Float[Tensor, "P G"]:
    """Mean advantage of a sample over all subsets of size k that hold it, in closed form (Chen et al., arXiv 2508.10751).

    A subset's reward is 1 if any of its samples passed; R̄ = 1 − C(N⁻, k)/C(G, k), σ = √(R̄(1 − R̄)). Then A⁺ = (1 − R̄)/σ and
    A⁻ = (1 − R̄ − C(N⁻ − 1, k − 1)/C(G − 1, k − 1))/σ. σ = 0 gives advantages of 0. k = 1 is GRPO.

    Raises:
        ValueError: not 1 ≤ k ≤ G.

    Three samples, one right, k = 2: two of three pairs pass, R̄ = 2/3; A⁺ = (1/3)/√(2/9), A⁻ = (1/3 − 1/2)/√(2/9).

    >>> [round(a, 4) for a in pass_at_k_advantages(torch.tensor([[True, False, False]]), 2)[0].tolist()]
    [0.7071, -0.3536, -0.3536]
    """
    size = passed.shape[-1]
    if not 1 <= k <= size:
        raise ValueError(f"k is the size of a subset of the group, 1 to {size}; received {k}")
    fail = [math.comb(wrong, k) / math.comb(size, k) for wrong in range(size + 1)]
    fail_with_me = [
        math.comb(wrong - 1, k - 1) / math.comb(size - 1, k - 1) if wrong else 0.0
        for wrong in range(size + 1)
    ]
    wrong = (~passed).sum(-1, keepdim=True)
    failure, mine = (torch.tensor(table, device=passed.device)[wrong] for table in (fail, fail_with_me))
    deviation = (failure * (1 - failure)).sqrt()
    advantage = torch.where(passed, failure, failure - mine) / deviation.clamp(min=1e-30)
    return torch.where(deviation == 0, 0.0, advantage)


def flow_rl(
    rewards: Float[Tensor, "P G"],
    policy_logps: Float[Tensor, "P G"],
    ref_logps: Float[Tensor, "P G"],
    lengths: Int[Tensor, "P G"],
    beta: float = 15.0,
) -> Float[Tensor, "P G"]:
    """β·r̂ − (log π_θ − log π_ref)/|y|, the total whose centred values are FlowRL's residuals (Zhu et al., arXiv 2509.15207).

    FlowRL lowers (log Z + log π_θ/|y| − β·r̂ − log π_ref/|y|)², r̂ = r scaled within its group. Its log Z is a learned
    function of the prompt; here it is the one that makes the group's squares least, so that the residual is minus
    the centred total, and the square's gradient is that of REINFORCE with each sample's mean over tokens
    (`algorithm.aggregation = "sample"`). This β multiplies the reward: it is 1/β of everything else here.

    >>> one = torch.ones(1, 2)
    >>> flow_rl(torch.tensor([[1.0, 0.0]]), -4 * one, -2 * one, 2 * one, beta=0.5).tolist()  # ±0.5 − (−2)/2
    [[1.5, 0.5]]
    """
    return beta * centre_and_scale(rewards) - (policy_logps - ref_logps) / lengths


def replay_weights(
    policy_logps: Float[Tensor, "P G"],
    known: Bool[Tensor, "P G"],
    num_known: Int[Tensor, " P"],
    num_replayed: int,
) -> Float[Tensor, "P G"]:
    """π_θ(y)/q(y) of each member of a group, of which the last `num_replayed` were drawn from known answers.

    q = ((G − n)·π_θ + n·u)/G is the group's mixture, u uniform over the answers that were known when it was drawn. Weighing
    by the mixture, whichever source a sample came from (the balance heuristic: Veach & Guibas 1995), bounds the weights by
    G/(G − n), and their mean tends to 1.

    Args:
        policy_logps: log π_θ(y).
        known: whether y was known, so that replay might have drawn it.
        num_known: answers known of each prompt; > 0.
        num_replayed: n < G.

    Half of a pair is replayed from one known answer of probability 1/3, the other half is new: ⅓/(⅙ + ½), and 1/½:

    >>> logps = torch.tensor([[0.2, 1 / 3]]).log()
    >>> replay_weights(logps, torch.tensor([[False, True]]), torch.tensor([1]), 1).tolist()
    [[2.0, 0.5]]
    """
    size = policy_logps.shape[-1]
    policy = policy_logps.exp()
    from_replay = known / num_known.unsqueeze(-1) * num_replayed
    ratio = from_replay / policy.clamp(min=1e-30)
    return size / (size - num_replayed + ratio)
