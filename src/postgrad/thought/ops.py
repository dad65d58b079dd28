"""The equations of Thought Communication (arXiv 2510.20733, §4 unless said otherwise; it numbers few of them), as pure functions.

The states of all agents side by side are H = [H¹ … H^{n_a}]; an autoencoder ẑ = f_e(H), Ĥ = f̂(ẑ) is trained on
‖H − Ĥ‖² + λ‖J_f̂‖₁, J_ij = ∂ĥ_i/∂ẑ_j. Thought j belongs to agent k where column j of B, the support of J, has a 1 within agent k's
rows; α_j agents hold it. (A review of the paper has it as a column of Ẑ, and as α_k: slips.) Agent i is given ẑ ⊙ w_i.

Symbols: H = `states`, ẑ = `thoughts`, B = `support`, α = `alpha`, w = `weights`, λ = `penalty_weight`, R² = explained variance.

Shapes: S samples, H state dimensions of all agents, Z thoughts, A agents, T tokens, V vocabulary, D width of embeddings.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RoutingMode = Literal["paper", "broadcast", "others", "learned"]

# -- the autoencoder's loss ------------------------------------------------------------------------------------------


class Scale(NamedTuple):
    """Mean and deviation of every state dimension, [H] each."""

    mean: Tensor
    deviation: Tensor


def measure_scale(states: Float[Tensor, "S H"]) -> Scale:
    """Mean and deviation (denominator S) of every dimension; a dimension that never moves has deviation 1.

    >>> mean, deviation = measure_scale(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    >>> mean.tolist(), deviation.tolist()
    ([2.0, 5.0], [1.0, 1.0])
    """
    deviation = states.std(0, correction=0)
    return Scale(states.mean(0), torch.where(deviation > 0, deviation, 1.0))


def standardise(states: Float[Tensor, "S H"], scale: Scale) -> Float[Tensor, "S H"]:
    """(H − mean)/deviation: λ has no units then.

    >>> standardise(torch.tensor([[7.0]]), Scale(torch.tensor([1.0]), torch.tensor([2.0]))).tolist()
    [[3.0]]
    """
    return (states - scale.mean) / scale.deviation


def reconstruction_error(
    reconstructed: Float[Tensor, "S H"], states: Float[Tensor, "S H"]
) -> Float[Tensor, ""]:
    """(1/(S·H)) Σ (ĥ − h)². Of standardised states it is 1 − R².

    >>> reconstruction_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).item()
    2.5
    """
    return (reconstructed - states).square().mean()


def autoencoder_loss(
    error: Float[Tensor, ""], jacobian_l1: Float[Tensor, ""], penalty_weight: float
) -> Float[Tensor, ""]:
    """‖H − Ĥ‖² + λ‖J‖₁, both divided by the number of state dimensions H: `error` is a mean over dimensions, so `jacobian_l1` is
    (1/H) Σ_i Σ_j |J_ij| (mean over samples too), a *sum* over thoughts. A mean over thoughts would make λ smaller by Z.

    >>> autoencoder_loss(torch.tensor(0.5), torch.tensor(2.0), 0.25).item()
    1.0
    """
    return error + penalty_weight * jacobian_l1


def ramp(step: int, warmup_steps: int, ramp_steps: int) -> float:
    """Share of λ at a step: 0 in the warm-up, then a line to 1.

    >>> [ramp(step, 10, 4) for step in (9, 10, 12, 14, 90)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    if step < warmup_steps:
        return 0.0
    return min(1.0, (step - warmup_steps) / ramp_steps) if ramp_steps else 1.0


def adjust_penalty(
    penalty_weight: float, error: float, allowed: float, rate: float, share: float = 1.0
) -> float:
    """λ·exp(rate·clip((allowed − error)/allowed, −1, 1)·share): more penalty while the error is below what is allowed.

    >>> round(adjust_penalty(0.3, 0.1, 0.2, 0.02), 5), round(adjust_penalty(0.3, 9.0, 0.2, 0.02), 5)  # e^0.01, e^−0.02
    (0.30302, 0.29406)
    """
    slack = max(-1.0, min(1.0, (allowed - error) / allowed))
    return penalty_weight * 2.718281828459045 ** (rate * slack * share)


# -- who holds what --------------------------------------------------------------------------------------------------


def agent_rms(
    jacobian_rms: Float[Tensor, "H Z"], agent_rows: Int[Tensor, " H"], num_agents: int
) -> Float[Tensor, "Z A"]:
    """Root of the mean of J² over each agent's rows (J² is a mean over samples already).

    Args:
        agent_rows: which agent a state dimension is of.

    >>> agent_rms(torch.tensor([[3.0], [5.0], [2.0]]), torch.tensor([0, 0, 1]), 2)[0].square().tolist()  # (9 + 25)/2, 4
    [17.0, 4.0]
    """
    total = jacobian_rms.new_zeros(num_agents, jacobian_rms.shape[1])
    total = total.index_add(0, agent_rows, jacobian_rms.square())
    return (total / torch.bincount(agent_rows, minlength=num_agents)[:, None]).sqrt().T


def binarise(magnitude: Float[Tensor, "*"], tolerance: float) -> Bool[Tensor, "*"]:
    """|J| > tolerance·max |J|; all False where J is 0.

    >>> binarise(torch.tensor([[1.0, -0.05], [0.2, 0.1]]), 0.1).tolist()
    [[True, False], [True, False]]
    """
    size = magnitude.abs()
    return size > tolerance * size.max()


def belongs(
    support: Bool[Tensor, "H Z"], agent_rows: Int[Tensor, " H"], num_agents: int
) -> Bool[Tensor, "Z A"]:
    """Thought j belongs to agent k where column j of B has a 1 in agent k's rows.

    >>> belongs(torch.tensor([[True, False], [False, False], [True, True]]), torch.tensor([0, 0, 1]), 2).tolist()
    [[True, True], [False, True]]
    """
    counts = torch.zeros(num_agents, support.shape[1], dtype=torch.long, device=support.device)
    return (counts.index_add(0, agent_rows, support.long()) > 0).T


def alpha(held: Bool[Tensor, "Z A"]) -> Int[Tensor, " Z"]:
    """α_j, how many agents hold thought j: 0 = nobody (dead), 1 = private, 2 and more = shared.

    >>> alpha(torch.tensor([[True, True], [False, True], [False, False]])).tolist()
    [2, 1, 0]
    """
    return held.sum(1)


def alpha_histogram(held: Bool[Tensor, "Z A"]) -> Int[Tensor, " A_plus_1"]:
    """Thoughts that 0, 1, …, A agents hold.

    >>> alpha_histogram(torch.tensor([[True, True], [False, True], [False, True]])).tolist()
    [0, 2, 1]
    """
    return torch.bincount(alpha(held), minlength=held.shape[1] + 1)


# -- who is told what ------------------------------------------------------------------------------------------------


def routing_weights(
    held: Bool[Tensor, "Z A"], mode: RoutingMode, weights: Float[Tensor, "*"] | None = None
) -> Float[Tensor, "A Z"]:
    """w_ij, by which agent i's copy of thought j is multiplied.

    | mode | agent i is told of thought j | so that it never gets |
    |---|---|---|
    | `paper` | where it holds it, with w_{α_j} | what is private to others |
    | `broadcast` | always, with w_{α_j} | - |
    | `others` | where somebody else holds it, with w_{α_j} | what is private to itself |
    | `learned` | always, with a weight of its own | - |

    A thought that nobody holds reaches nobody, but for `learned`.

    Args:
        weights: w_α for α = 0 … A [A + 1] (None = 1), by hand or learned; of `learned`: [A, Z], which is returned as it is.

    Raises:
        ValueError: weights of another shape, or none for `learned`.

    >>> held = torch.tensor([[True, True], [False, True]])
    >>> routing_weights(held, "paper", torch.tensor([0.0, 1.0, 0.5])).tolist()  # thought 0 is shared, 1 is agent 1's
    [[0.5, 0.0], [0.5, 1.0]]
    >>> routing_weights(held, "others").tolist()
    [[1.0, 1.0], [1.0, 0.0]]
    """
    thoughts, agents = held.shape
    expected = (agents, thoughts) if mode == "learned" else (agents + 1,)
    if weights is None:
        if mode == "learned":
            raise ValueError(f"Routing 'learned' needs weights of shape {expected} (agents, thoughts).")
        weights = torch.ones(agents + 1, device=held.device)
    if tuple(weights.shape) != expected:
        raise ValueError(
            f"Routing {mode!r} needs weights of shape {expected}; received {tuple(weights.shape)}."
        )
    if mode == "learned":
        return weights
    by_alpha = weights[alpha(held)]
    held_by = held.T
    if mode == "broadcast":
        told = held_by.any(0).expand(agents, thoughts)
    elif mode == "paper":
        told = held_by
    else:
        told = (alpha(held) - held_by.long()) > 0
    return torch.where(told, by_alpha, 0.0)


def route(thoughts: Float[Tensor, "S Z"], weights: Float[Tensor, "A Z"]) -> Float[Tensor, "S A Z"]:
    """ẑ ⊙ w_i of each agent.

    >>> route(torch.tensor([[3.0, 5.0]]), torch.tensor([[1.0, 0.0], [0.5, 1.0]])).tolist()
    [[[3.0, 0.0], [1.5, 5.0]]]
    """
    return thoughts[:, None] * weights


# -- how it is told --------------------------------------------------------------------------------------------------


def safe_prefix(vectors: Float[Tensor, "*"], embed_norm: float, max_norm: float) -> Float[Tensor, "*"]:
    """Virtual tokens of the size of real ones: p = n·v·min(1, c/‖v‖), with n = `embed_norm` and c = `max_norm`.

    Args:
        vectors: v [..., D], in mean norms of token embeddings.
        embed_norm: mean norm of an embedding.
        max_norm: longest vector, in that unit. Vectors 20 times as long as embeddings gave NaN in some models.

    >>> safe_prefix(torch.tensor([[0.0, 4.0], [0.0, 0.5]]), 2.0, 1.0).tolist()  # 4 is cut to 1
    [[0.0, 2.0], [0.0, 1.0]]
    """
    norm = vectors.square().sum(-1, keepdim=True).sqrt()
    return embed_norm * vectors * (max_norm / norm.clamp(min=torch.finfo(vectors.dtype).tiny)).clamp(max=1)


def mean_soft_embedding(
    probabilities: Float[Tensor, "T V"],
    embedding: Float[Tensor, "V D"],
    row: Int[Tensor, " T"],
    num_rows: int,
) -> Float[Tensor, "S D"]:
    """φ̄ of each sequence: the mean over its tokens of Σ_v p_v·e_v. Soft, so that a gradient goes through; an argmax has none.

    Args:
        row: which sequence a token is of.

    >>> p, e = torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([[2.0], [4.0]])
    >>> mean_soft_embedding(p, e, torch.tensor([0, 0]), 1).tolist()  # (3 + 4)/2
    [[3.5]]
    """
    soft = probabilities @ embedding
    total = soft.new_zeros(num_rows, soft.shape[1]).index_add(0, row, soft)
    return total / torch.bincount(row, minlength=num_rows).clamp(min=1)[:, None]


def similarity_loss(said: Float[Tensor, "S D"], reference: Float[Tensor, "S D"]) -> Float[Tensor, " S"]:
    """1 − cos(φ̄(y_gen), φ̄(y_ref)).

    >>> similarity_loss(torch.tensor([[3.0, 0.0]]), torch.tensor([[-1.0, 0.0]])).tolist()
    [2.0]
    """
    return 1 - torch.nn.functional.cosine_similarity(said, reference, dim=-1)


def cross_entropy(logits: Float[Tensor, "T V"], targets: Tensor) -> Float[Tensor, " T"]:
    """−log p of the words (`targets` int [T]), or −Σ_v q_v log p_v of somebody's probabilities (float [T, V]).

    >>> even = torch.zeros(1, 2)
    >>> round(cross_entropy(even, torch.tensor([1])).item(), 4), round(cross_entropy(even, torch.tensor([[0.5, 0.5]])).item(), 4)
    (0.6931, 0.6931)
    """
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def quantise(thoughts: Float[Tensor, "*"], bits: int, reach: float = 3.0) -> Float[Tensor, "*"]:
    """Each thought as one of 2^bits levels, evenly between −reach and reach (a thought's deviation is 1): what a message of so
    many bits a thought can say.

    >>> quantise(torch.tensor([-9.0, 0.2, 1.2]), 1).tolist(), quantise(torch.tensor([0.2, 1.2]), 2).tolist()
    ([-3.0, 3.0, 3.0], [1.0, 1.0])
    """
    steps = 2**bits - 1
    share = (thoughts.clamp(-reach, reach) + reach) / (2 * reach)
    return (share * steps).round() / steps * (2 * reach) - reach


def realignment(
    head: Float[Tensor, "V H"], embedding: Float[Tensor, "V D"], ridge: float = 1e-3
) -> Float[Tensor, "H D"]:
    """W with h·W ≈ the embedding of the token that h predicts: (UᵀU + r·I)⁻¹UᵀE, of a head U and embeddings E of the same words.
    It tells an agent another's raw state without training, as in LatentMAS (arXiv 2511.20639).

    Args:
        ridge: r, as a share of the mean of UᵀU's diagonal.

    >>> realignment(torch.eye(2), torch.tensor([[3.0], [5.0]]), 0.0).tolist()
    [[3.0], [5.0]]
    """
    head, embedding = head.float(), embedding.float()
    gram = head.T @ head
    gram = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    return torch.linalg.solve(gram, head.T @ embedding)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


# -- was it found ----------------------------------------------------------------------------------------------------


def correlations(left: Float[Tensor, "S X"], right: Float[Tensor, "S Y"]) -> Float[Tensor, "X Y"]:
    """Pearson's correlation of every pair of columns; 0 where one never moves.

    >>> correlations(torch.tensor([[1.0], [2.0]]), torch.tensor([[5.0, 7.0], [3.0, 7.0]])).tolist()
    [[-1.0, 0.0]]
    """
    left, right = left - left.mean(0), right - right.mean(0)
    size = left.square().sum(0).sqrt()[:, None] * right.square().sum(0).sqrt()
    found = (left.T @ right) / size.clamp(min=torch.finfo(size.dtype).tiny)
    return torch.where(size > 0, found.clamp(-1, 1), 0.0)


def assign(score: Float[Tensor, "X Y"]) -> Int[Tensor, " Y"]:
    """For each column another row, so that the sum of scores is largest (Hungarian algorithm, O(Y²·X)); X ≥ Y.

    Raises:
        ValueError: fewer rows than columns.

    >>> assign(torch.tensor([[0.9, 0.8], [0.7, 0.1]])).tolist()  # 0.7 + 0.8, not 0.9 + 0.1
    [1, 0]
    """
    rows, columns = score.shape
    if rows < columns:
        raise ValueError(f"Each of {columns} columns needs a row of its own; there are {rows}.")
    cost = -score.detach().double().cpu().T  # [Y, X]
    infinity = torch.tensor(float("inf"), dtype=torch.float64)
    column_price = torch.zeros(columns, dtype=torch.float64)
    row_price = torch.zeros(rows, dtype=torch.float64)
    owner = torch.full((rows,), -1, dtype=torch.long)  # column that has this row
    for column in range(columns):
        nearest = torch.full((rows,), float("inf"), dtype=torch.float64)
        before = torch.full((rows,), -1, dtype=torch.long)  # row before this one on the path to it
        visited = torch.zeros(rows, dtype=torch.bool)
        current, last = column, -1
        distance = torch.zeros((), dtype=torch.float64)
        while True:  # a shortest path from this column to a free row
            offer = distance + cost[current] - column_price[current] - row_price
            better = ~visited & (offer < nearest)
            nearest = torch.where(better, offer, nearest)
            before = torch.where(better, last, before)
            last = int(torch.where(visited, infinity, nearest).argmin())
            distance = nearest[last]
            visited[last] = True
            if int(owner[last]) < 0:
                break
            current = int(owner[last])
        column_price[column] += distance
        passed = visited & (owner >= 0)
        column_price[owner[passed]] += distance - nearest[passed]
        row_price[visited] -= distance - nearest[visited]
        while last >= 0:  # every row on the path moves to the column before it
            previous = int(before[last])
            owner[last] = owner[previous] if previous >= 0 else column
            last = previous
    found = torch.empty(columns, dtype=torch.long)
    found[owner[owner >= 0]] = (owner >= 0).nonzero().squeeze(-1)
    return found.to(score.device)


class Matched(NamedTuple):
    """Attributes:
    mcc: mean over true thoughts of |correlation| with the one assigned to it.
    each: of every true thought [Z].
    assignment: which found thought each true one has [Z].
    """

    mcc: Tensor
    each: Tensor
    assignment: Tensor


def mean_correlation(
    found_fit: Float[Tensor, "S X"],
    true_fit: Float[Tensor, "S Z"],
    found_score: Float[Tensor, "R X"],
    true_score: Float[Tensor, "R Z"],
) -> Matched:
    """MCC: the assignment is made on one set of samples and scored on another, because the best of Z! flatters itself.

    >>> z = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0]])
    >>> found = mean_correlation(-z.flip(1), z, z.flip(1), z)
    >>> round(found.mcc.item(), 4), found.assignment.tolist()
    (1.0, [1, 0])
    """
    assignment = assign(correlations(found_fit, true_fit).abs())
    scored = correlations(found_score, true_score).abs()
    each = scored[assignment, torch.arange(len(assignment), device=scored.device)]
    return Matched(each.mean(), each, assignment)


def block_r2(
    found_fit: Float[Tensor, "S X"],
    true_fit: Float[Tensor, "S Z"],
    found_score: Float[Tensor, "R X"],
    true_score: Float[Tensor, "R Z"],
) -> Float[Tensor, " Z"]:
    """R² of each true thought of a block (those shared by the same agents), regressed linearly on the found block on one set of
    samples and scored on another: 1 − Σ(z − ẑ)²/Σ(z − mean)². Below 0 where the mean of the fit would do better.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> block_r2(x, 2 * x + 1, x, 2 * x + 1).round(decimals=4).tolist()
    [1.0]
    """
    mean_found, mean_true = found_fit.mean(0), true_fit.mean(0)
    inverse = cast("Tensor", cast("Any", torch.linalg).pinv(found_fit - mean_found))  # not typed
    slope = inverse @ (true_fit - mean_true)
    rest = true_score - mean_true - (found_score - mean_found) @ slope
    return 1 - rest.square().sum(0) / (true_score - true_score.mean(0)).square().sum(0)


def f1(found: Bool[Tensor, "*"], true: Bool[Tensor, "*"]) -> Float[Tensor, ""]:
    """2·hits/(found + true) of two supports; 1 where both are empty.

    >>> f1(torch.tensor([True, True, False]), torch.tensor([True, False, True])).item()
    0.5
    """
    total = found.sum() + true.sum()
    return torch.where(total > 0, 2 * (found & true).sum() / total.clamp(min=1), 1.0)
