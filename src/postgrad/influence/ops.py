"""Influence as covariance: the equations of Bayesian Influence Functions (arXiv 2509.26544), as pure functions.

The weights w are drawn from p(w) ∝ exp(−Σ_i β_i·ℓ_i(w) − γ/2·‖w − w*‖²). The paper's influence of example i on query j is
BIF(i → j) = ∂E[ℓ_j]/∂β_i = −Cov(ℓ_i, ℓ_j). This room reports **scores = +Cov(ℓ_i, ℓ_j) = −BIF**: a positive score is a proponent,
more of which lowers the query's loss. To leading order Cov(ℓ_i, ℓ_j) = ∇ℓ_jᵀ(H + λI)⁻¹∇ℓ_i/(nβ), with H the Hessian of the mean
loss and λ = γ/(nβ): the damped influence function.

Symbols: nβ = `num_tempered`, γ = `localization`, ε = `step_size`, w − w* = `displacement`, ξ = `noise`.

Shapes: C chains, S draws, Q queries, N training examples, K series, T tokens, M subsets, D weights in one flat vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NUM_RANKED = 2**18
"""Most numbers that are ranked at a time, but for a whole row."""

# -- covariance ------------------------------------------------------------------------------------------------------


class Moments(NamedTuple):
    """Running cross moments of two vectors over draws: how many, both means, Σ (left − mean)(right − mean)ᵀ [A, B]."""

    num_draws: int
    left: Tensor
    right: Tensor
    cross: Tensor


def moments(left: Float[Tensor, "S A"], right: Float[Tensor, "S B"]) -> Moments:
    """Moments of a block of draws, centred by the block's own means (S ≥ 1).

    >>> moments(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [6.0]])).cross.item()  # (−1)(−2) + (1)(2)
    4.0
    """
    left_mean, right_mean = left.mean(0), right.mean(0)
    return Moments(len(left), left_mean, right_mean, (left - left_mean).T @ (right - right_mean))


def merge_moments(first: Moments, second: Moments) -> Moments:
    """Moments of both blocks together (Chan et al. 1983; one draw at a time it is Welford's method).

    >>> one, two = (moments(torch.tensor([[x]]), torch.tensor([[2 * x]])) for x in (1.0, 3.0))
    >>> merge_moments(one, two).cross.item()
    4.0
    """
    count = first.num_draws + second.num_draws
    left, right = second.left - first.left, second.right - first.right
    scale = first.num_draws * second.num_draws / count
    cross = torch.addr(first.cross + second.cross, left, right, alpha=scale)
    share = second.num_draws / count
    return Moments(count, first.left + left * share, first.right + right * share, cross)


def covariance(found: Moments) -> Float[Tensor, "A B"]:
    """Unbiased covariance, Σ(…)/(S − 1). With one draw it is 0/0 = NaN."""
    return (
        found.cross / (found.num_draws - 1)
        if found.num_draws > 1
        else torch.full_like(found.cross, torch.nan)
    )


def chain_covariances(query: Float[Tensor, "C S Q"], train: Float[Tensor, "C S N"]) -> Float[Tensor, "C Q N"]:
    """Cov(ℓ_j, ℓ_i) within each chain, denominator S − 1; each chain is centred by its own mean, because a pooled mean turns
    chains that have not mixed into spurious covariance.

    >>> chain_covariances(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[2.0, 0.0], [6.0, 0.0]]])).tolist()
    [[[4.0, 0.0]]]
    """
    query, train = query - query.mean(1, keepdim=True), train - train.mean(1, keepdim=True)
    return query.mT @ train / (query.shape[1] - 1)


def bif(score: Float[Tensor, "*"]) -> Float[Tensor, "*"]:
    """The paper's sign: BIF = ∂E[ℓ_query]/∂β_train = −Cov (arXiv 2509.26544, eq. 5)."""
    return -score


def mean_and_error(per_chain: Float[Tensor, "C *"]) -> tuple[Float[Tensor, "*"], Float[Tensor, "*"]]:
    """Mean over chains and its standard error, deviation(C − 1)/√C. With one chain the error is NaN: it is not known.

    >>> [x.item() for x in mean_and_error(torch.tensor([1.0, 3.0]))]  # √2/√2
    [2.0, 1.0]
    """
    chains = len(per_chain)
    if chains < 2:
        return per_chain.mean(0), torch.full_like(per_chain[0], torch.nan)
    mean = per_chain.mean(0)
    squares = torch.zeros_like(mean)
    for one in per_chain:  # `std(0)` takes ten times as long
        squares += (one - mean).square_()
    return mean, squares.div_((chains - 1) * chains).sqrt_()


def correlation(query: Float[Tensor, "C S Q"], train: Float[Tensor, "C S N"]) -> Float[Tensor, "Q N"]:
    """Pearson correlation of losses within chains, for display (rank by the covariance). 0 where a loss never moves.

    >>> correlation(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[5.0, 7.0], [3.0, 7.0]]])).tolist()
    [[-1.0, 0.0]]
    """
    query, train = query - query.mean(1, keepdim=True), train - train.mean(1, keepdim=True)
    cross = (query.mT @ train).sum(0)
    scale = query.square().sum((0, 1)).sqrt()[:, None] * train.square().sum((0, 1)).sqrt()
    found = cross / scale.clamp(min=torch.finfo(scale.dtype).tiny)
    return torch.where(scale > 0, found.clamp(-1, 1), 0.0)  # rounding can leave the interval


def sum_tokens(token_scores: Float[Tensor, "T N"], num_tokens: Int[Tensor, " Q"]) -> Float[Tensor, "Q N"]:
    """Scores of sequences from those of their tokens. The covariance is linear: a sequence's loss being the sum of its tokens'
    losses, so is its score.

    >>> sum_tokens(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([2, 1])).tolist()
    [[3.0], [4.0]]
    """
    owner = torch.repeat_interleave(torch.arange(len(num_tokens), device=token_scores.device), num_tokens)
    zeros = token_scores.new_zeros(len(num_tokens), token_scores.shape[1])
    return zeros.index_add(0, owner, token_scores)


# -- can the draws be trusted ----------------------------------------------------------------------------------------


def r_hat(draws: Float[Tensor, "C S K"]) -> Float[Tensor, " K"]:
    """Split R̂ (Gelman et al., BDA3): each chain is halved, so that one chain is enough and a drift counts. 1 = mixed.

    A series that never moves has R̂ = 1. An odd draw in the middle is left out; S ≥ 4.

    >>> round(r_hat(torch.tensor([[0.0, 1, 0, 1]]).unsqueeze(-1)).item(), 4)  # B = 0: √(1/2)
    0.7071
    """
    half = draws.shape[1] // 2
    parts = torch.cat([draws[:, :half], draws[:, -half:]])
    within = parts.var(1).mean(0)
    between = parts.mean(1).var(0)
    still = (within == 0) & (between == 0)
    return torch.where(still, 1.0, ((half - 1) / half + between / within).sqrt())


def effective_sample_size(draws: Float[Tensor, "C S K"]) -> Float[Tensor, " K"]:
    """C·S/τ, with τ = 1 + 2·Σρ over Geyer's initial positive sequence; ρ within chains, averaged. At most C·S.

    A series that never moves counts as C·S.
    """
    chains, steps, _ = draws.shape
    auto = _autocovariance(draws)
    rho = auto / auto[0].clamp(min=torch.finfo(auto.dtype).tiny)
    return torch.where(auto[0] > 0, chains * steps / _autocorrelation_time(rho), float(chains * steps))


def _autocovariance(draws: Float[Tensor, "C S K"]) -> Float[Tensor, "S K"]:
    """At each lag within chains, denominator S, mean over chains."""
    steps = draws.shape[1]
    fourier = cast("Any", torch.fft)  # not typed
    centred = draws - draws.mean(1, keepdim=True)
    spectrum = cast("Tensor", fourier.rfft(centred, n=2 * steps, dim=1))
    return (
        cast("Tensor", fourier.irfft(spectrum.abs().square(), n=2 * steps, dim=1))[:, :steps].mean(0) / steps
    )


def _autocorrelation_time(rho: Float[Tensor, "S K"]) -> Float[Tensor, " K"]:
    """τ = 1 + 2·Σρ over Geyer's initial positive sequence, at least 1."""
    even = len(rho) - len(rho) % 2
    pairs = rho[:even].reshape(even // 2, 2, -1).sum(1)
    positive = (pairs > 0).cumprod(0)
    return (2 * (pairs * positive).sum(0) - 1).clamp(min=1)


class Interval(NamedTuple):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def mean_interval(draws: Float[Tensor, "C S"]) -> Interval:
    """Mean of a series over chains, with a 95 % interval: ± t·√(V/ESS), V and ESS of all chains together.

    V = W·(S − 1)/S + B/S has the variance within chains and between their means, and ρ at a lag is 1 − (W − autocovariance)/V
    (BDA3, eq. 11.4 and 11.7), so that chains in different places widen it. t is Student's quantile with ESS − 1 degrees of
    freedom, at least 3. Of one chain all comes from its autocorrelation: that it has not been elsewhere is not seen. S ≥ 4.

    >>> mean_interval(torch.full((2, 4), 3.0))
    Interval(value=3.0, low=3.0, high=3.0)
    """
    chains, steps = draws.shape
    auto = _autocovariance(draws[..., None])[:, 0]
    within = auto[0] * steps / (steps - 1)
    between = draws.mean(1).var() if chains > 1 else within / steps
    variance = auto[0] + between
    if not variance > 0:
        return Interval(*[float(draws.mean())] * 3)
    rho = (between - within / steps + auto) / variance
    rho[0] = 1.0
    independent = chains * steps / float(_autocorrelation_time(rho[:, None]))
    half = student_t(max(3.0, independent - 1)) * (float(variance) / independent) ** 0.5
    value = float(draws.mean())
    return Interval(value, value - half, value + half)


def student_t(freedom: float) -> float:
    """97.5 % quantile of Student's t by its expansion in 1/ν (Abramowitz & Stegun 26.7.5), within 1 % from ν = 3.

    >>> round(student_t(3), 2), round(student_t(10), 3), round(student_t(1e9), 3)  # exact: 3.18, 2.228, 1.96
    (3.16, 2.228, 1.96)
    """
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def drift(draws: Float[Tensor, "C S K"]) -> Float[Tensor, " K"]:
    """Correlation with time within chains (−1 to 1). Far from 0 the chains are still on their way, and what they share on the
    way (all losses fall) looks like influence.

    >>> drift(torch.tensor([[[1.0, 3.0], [2.0, 3.0], [3.0, 3.0]]])).tolist()
    [1.0, 0.0]
    """
    chains, steps, _ = draws.shape
    time = torch.arange(steps, dtype=draws.dtype, device=draws.device).expand(chains, steps)
    return correlation(time[..., None], draws)[0]


def common_mode(draws: Float[Tensor, "C S N"]) -> Float[Tensor, ""]:
    """Share of the examples' variance that their mean explains (0 to 1): 1/N if they are unrelated, 1 if all move as one, which
    says nothing about which example it was.

    >>> round(common_mode(torch.tensor([[[1.0, 2.0], [2.0, 4.0]]])).item(), 4)
    1.0
    """
    explained, total = explained_variance(draws, draws.mean(2))
    return torch.where(total > 0, explained / total, 0.0)


def explained_variance(
    draws: Float[Tensor, "C S N"], mean: Float[Tensor, "C S"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Of the examples' sums of squares within chains, what a series explains, and all; parts of the examples add up.

    >>> [x.item() for x in explained_variance(torch.tensor([[[1.0, 5.0], [3.0, 5.0]]]), torch.tensor([[0.0, 1.0]]))]
    [2.0, 2.0]
    """
    centred = draws - draws.mean(1, keepdim=True)
    mean = mean - mean.mean(1, keepdim=True)
    along = torch.einsum("cs,csn->n", mean, centred).square().sum()
    return along / mean.square().sum(), centred.square().sum()


def local_learning_coefficient(
    mean_loss: Float[Tensor, "*"], loss_at_centre: float, num_tempered: float
) -> Float[Tensor, "*"]:
    """nβ·(E[L] − L(w*)), half the number of directions that the data hold (Lau et al., 2308.12108). Below 0, w* was no minimum.

    >>> local_learning_coefficient(torch.tensor(0.5), 0.25, 100.0).item()
    25.0
    """
    return num_tempered * (mean_loss - loss_at_centre)


def standing_damping(gradient: float, weights: float, share: float, curvature: float) -> float:
    """λ = share·‖∇L‖/‖w‖; with share 1 a pull λw towards 0 is as strong as the gradient. At least a thousandth of the mean
    curvature, as at a minimum there is no gradient.

    >>> standing_damping(0.02, 10.0, 0.25, 0.1), standing_damping(0.0, 10.0, 0.25, 0.1)
    (0.0005, 0.0001)
    """
    return max(share * gradient / weights, 1e-3 * curvature)


def local_beta(num_weights: int, num_examples: float, damping: float, distance: float) -> float:
    """β for which the weights that the data leave free are `distance` from w*, root mean square: D/γ = distance², γ = λ·n·β.

    >>> local_beta(100, 50, 0.5, 2.0)  # 100/(.5·50·2²)
    1.0
    """
    return num_weights / (damping * num_examples * distance**2)


# -- ranks -----------------------------------------------------------------------------------------------------------


def ranks(values: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch N"]:
    """Ranks along the last axis from 0; ties share their mean rank.

    >>> ranks(torch.tensor([5.0, 1.0, 5.0, 7.0])).tolist()
    [1.5, 0.0, 1.5, 3.0]
    """
    ordered, order = values.sort(-1)
    place = torch.arange(values.shape[-1], device=values.device).expand_as(values)
    starts = torch.ones_like(values, dtype=torch.bool)  # where a run of equal values starts
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    first = torch.where(starts, place, 0).cummax(-1).values
    ends = torch.where(starts.roll(-1, -1), place, values.shape[-1])
    last = ends.flip(-1).cummin(-1).values.flip(-1)
    return torch.empty_like(values, dtype=torch.float64).scatter_(-1, order, (first + last).double() / 2)


def spearman(first: Float[Tensor, "*batch N"], second: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch"]:
    """Spearman's rank correlation along the last axis; 0 where one side is constant.

    >>> spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[1.0, 9.0, 10.0], [3.0, 2.0, 1.0]])).tolist()
    [1.0, -1.0]
    """
    rows = max(1, NUM_RANKED // first.shape[-1])
    if first.dim() == 2 and first.shape == second.shape and len(first) > rows:  # ranks take memory
        parts = (slice(start, start + rows) for start in range(0, len(first), rows))
        return torch.cat([spearman(first[part], second[part]) for part in parts])
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    scale = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return torch.where(scale > 0, (a * b).sum(-1) / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)


def rank_stability(per_chain: Float[Tensor, "C Q N"]) -> Float[Tensor, " Q"]:
    """How well the ranking by all chains would agree with that by as many others: with r the Spearman correlation over training
    examples of the scores by one half of the chains and by the other, 2r/(1 + r) (Spearman–Brown; C ≥ 2); r itself below 0.

    >>> rank_stability(torch.tensor([[[1.0, 2.0, 3.0]], [[1.0, 3.0, 2.0]]])).item()  # r = ½
    0.6666666666666666
    """
    half = len(per_chain) // 2
    found = spearman(per_chain[:half].mean(0), per_chain[half:].mean(0))
    return torch.where(found > 0, 2 * found / (1 + found), found)


def linear_datamodeling_score(
    scores: Float[Tensor, "Q N"], subsets: Bool[Tensor, "M N"], outputs: Float[Tensor, "Q M"]
) -> Float[Tensor, " Q"]:
    """LDS of each query: Spearman over M subsets of Σ_{i in subset} score_i and the output of a model trained on it alone.

    Args:
        scores: proponents are positive.
        subsets: which examples each model was trained on.
        outputs: of the query by these models; higher is better, such as **minus** the loss.

    >>> subsets = torch.tensor([[True, False], [False, True], [True, True]])
    >>> linear_datamodeling_score(torch.tensor([[1.0, 2.0]]), subsets, torch.tensor([[-3.0, -2.0, -1.0]])).tolist()
    [1.0]
    """
    return spearman(scores @ subsets.T.to(scores.dtype), outputs)


def bootstrap_spearman(
    predicted: Float[Tensor, "Q M"], outputs: Float[Tensor, "Q M"], resamples: int, generator: torch.Generator
) -> Float[Tensor, " B"]:
    """Mean over queries of Spearman's correlation over M subsets, for B samples of the subsets with replacement.

    >>> generator = torch.Generator().manual_seed(0)
    >>> bootstrap_spearman(torch.arange(9.0)[None], torch.arange(9.0)[None] ** 3, 3, generator).tolist()
    [1.0, 1.0, 1.0]
    """
    count = predicted.shape[1]
    chosen = torch.randint(0, count, (resamples, count), generator=generator)
    return torch.stack([spearman(predicted[:, row], outputs[:, row]).mean() for row in chosen])


def area_under_curve(scores: Float[Tensor, " N"], positive: Bool[Tensor, " N"]) -> Float[Tensor, ""]:
    """Probability that a positive example has a higher score than a negative one; ties count half. ½ = chance.

    >>> area_under_curve(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, False, False])).item()
    1.0
    """
    found, num_positive = ranks(scores), positive.sum()
    below = found[positive].sum() - num_positive * (num_positive - 1) / 2
    return below / (num_positive * (~positive).sum())


# -- curvature -------------------------------------------------------------------------------------------------------


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Float[Tensor, " D"], num_steps: int
) -> Float[Tensor, ""]:
    """Of a symmetric matrix, from below, by Lanczos' method: the largest Ritz value of the Krylov space, the most that so many
    products can tell; power iteration takes about the square of their number. NaN if a product is not finite.

    Args:
        product: the matrix times a unit vector.
        start: any direction, not 0.
        num_steps: products, D at most. Three vectors are held.

    >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]])  # eigenvalues 1 and 3
    >>> round(largest_eigenvalue(lambda vector: matrix @ vector, torch.tensor([1.0, 0.0]), 2).item(), 5)
    3.0
    """
    vector, previous = start / start.square().sum().sqrt(), torch.zeros_like(start)
    diagonal: list[Tensor] = []
    beside: list[Tensor] = [torch.zeros_like(start[0])]
    for _ in range(min(num_steps, len(start))):
        found = product(vector) - beside[-1] * previous
        diagonal.append(vector @ found)
        found = found - diagonal[-1] * vector
        beside.append(found.square().sum().sqrt())
        previous, vector = vector, found / beside[-1].clamp(min=torch.finfo(start.dtype).tiny)
    off = torch.stack(beside)[1:-1]
    ritz = (torch.stack(diagonal).diag() + off.diag(1) + off.diag(-1)).double()
    finite = ritz.isfinite().all()
    values = cast("Tensor", cast("Any", torch.linalg).eigvalsh(torch.where(finite, ritz, 0.0)))  # not typed
    return torch.where(finite, values[-1], torch.nan)


# -- steps of chains -------------------------------------------------------------------------------------------------


def sgld_step(
    displacement: Float[Tensor, " D"],
    gradient: Float[Tensor, " D"],
    noise: Float[Tensor, " D"],
    *,
    step_size: float,
    num_tempered: float,
    localization: float,
) -> Float[Tensor, " D"]:
    """Localised SGLD: −(ε/2)·[nβ·g + γ(w − w*)] + √ε·ξ (paper, algorithm 1); g is the gradient of the *mean* loss.

    >>> one = torch.ones(1)
    >>> sgld_step(one, 2 * one, one, step_size=0.04, num_tempered=10, localization=5).item()  # 1 − .02·(20 + 5) + .2·1
    0.699999988079071
    """
    force = num_tempered * gradient + localization * displacement
    return displacement - 0.5 * step_size * force + step_size**0.5 * noise


def rmsprop_step(
    displacement: Float[Tensor, " D"],
    gradient: Float[Tensor, " D"],
    noise: Float[Tensor, " D"],
    squares: Float[Tensor, " D"],
    *,
    step_size: float,
    num_tempered: float,
    localization: float,
    stability: float,
    decay: float = 0.99,
) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """RMSprop-SGLD: V ← αV + (1 − α)g², G = 1/(√V + ε_r); drift × G, noise × √G (Li et al., 1512.07666, without its Γ).

    Returns:
        The new displacement and V.
    """
    squares = decay * squares + (1 - decay) * gradient.square()
    scale = 1 / (squares.sqrt() + stability)
    force = num_tempered * gradient + localization * displacement
    return displacement - 0.5 * step_size * scale * force + (step_size * scale).sqrt() * noise, squares


def langevin_step(
    displacement: Float[Tensor, " D"],
    gradient: Float[Tensor, " D"],
    noise: Float[Tensor, " D"],
    next_noise: Float[Tensor, " D"],
    precision: Float[Tensor, " D"],
    *,
    step_size: float,
    num_tempered: float,
    localization: float,
) -> Float[Tensor, " D"]:
    """Preconditioned Langevin with a frozen G = 1/precision: −(ε/2)·G·[nβ·g + γ(w − w*)] + √(εG)·(ξ + ξ')/2.

    ξ' is the noise of the *next* step, which uses it as its ξ. With this average (Leimkuhler & Matthews, 1203.5428) the chain's
    law is exactly the posterior where that is Gaussian, at every stable step size, in place of too wide by 1/(1 − ε/4).

    Args:
        precision: d > 0 on the axes of `displacement`: nβΛ + γ in the eigenbasis of EK-FAC. Any d leaves the law unchanged.

    >>> one = torch.ones(1)
    >>> options = dict(step_size=1.0, num_tempered=10, localization=5)
    >>> langevin_step(one, 2 * one, one, 3 * one, 25 * one, **options).item()  # 1 − ½·25/25 + ⅕·2
    0.8999999761581421
    """
    force = num_tempered * gradient + localization * displacement
    kick = (step_size / precision).sqrt() * (0.5 * (noise + next_noise))
    return displacement - 0.5 * step_size * force / precision + kick
