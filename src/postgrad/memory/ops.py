"""Which slots are about *this* text: the equations of Sparse Memory Finetuning (arXiv 2510.15103), as pure functions.

Symbols: c(i) = `counts`, accesses of slot i by all tokens and heads of a batch (padding is not counted); B = `num_batches`
background batches; Σ_b 1[c_b(i) > 0] = `batch_counts`, how many of them accessed slot i; t = `budget`.

Shapes: N slots, R chosen rows.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def access_counts(
    slots: Int[Tensor, "T M"], num_slots: int, counted: Bool[Tensor, " T"] | None = None
) -> Int[Tensor, " N"]:
    """c(i): how often each slot was looked up.

    Args:
        slots: of each token, all heads together.
        num_slots: N.
        counted: tokens that count; None = all. (Padding does not.)

    >>> access_counts(torch.tensor([[0, 2], [2, 1]]), 4, torch.tensor([True, True])).tolist()
    [1, 1, 2, 0]
    """
    return torch.bincount((slots if counted is None else slots[counted]).flatten(), minlength=num_slots)


def tf_idf(
    counts: Int[Tensor, " N"], batch_counts: Int[Tensor, " N"], num_batches: int
) -> Float[Tensor, " N"]:
    """c(i)/Σ_j c(j) · log[(B + 1)/(Σ_b 1[c_b(i) > 0] + 1)] (paper, §3): much here, and hardly ever elsewhere.

    Slots in every background batch score 0, slots in none of them log(B + 1) times their share.

    >>> [round(x, 4) for x in tf_idf(torch.tensor([1, 3, 0]), torch.tensor([0, 9, 4]), 9).tolist()]  # ¼·log 10, ¾·log 1
    [0.5756, 0.0, 0.0]
    """
    share = counts / counts.sum().clamp(min=1)
    return share * ((num_batches + 1) / (batch_counts + 1)).log()


def term_frequency(counts: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """c(i)/Σ_j c(j): the paper's ablation without the background.

    >>> term_frequency(torch.tensor([1, 3])).tolist()
    [0.25, 0.75]
    """
    return counts / counts.sum().clamp(min=1)


def kl_score(counts: Int[Tensor, " N"], background: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """p(i)·log(p(i)/q(i)), the slot's part of KL(batch ‖ background); p = shares of the batch, q = those of the background.

    q is smoothed by one access in all, spread evenly over the slots, so that unseen slots are finite.

    Args:
        counts: of the batch.
        background: accesses in the background, all batches together.

    >>> [round(x, 4) for x in kl_score(torch.tensor([2, 2]), torch.tensor([0.5, 2.5])).tolist()]  # ½·log(½/¼), ½·log(½/¾)
    [0.3466, -0.2027]
    """
    p = counts / counts.sum().clamp(min=1)
    q = (background + 1 / len(background)) / (background.sum() + 1)
    return torch.where(counts > 0, p * (p.clamp(min=1e-30) / q).log(), torch.zeros_like(p))


def choose_rows(scores: Float[Tensor, " N"], counts: Int[Tensor, " N"], budget: int) -> Int[Tensor, " R"]:
    """The slots with the highest scores among those accessed, at most t of them, sorted; ties go to the lower slot.

    A budget of at least the number of accessed slots chooses them all.

    >>> choose_rows(torch.tensor([0.1, 0.5, 0.5, 0.9]), torch.tensor([1, 1, 1, 0]), 2).tolist()
    [1, 2]
    """
    accessed = counts.nonzero().squeeze(-1)
    if len(accessed) <= budget:
        return accessed
    order = scores[accessed].sort(descending=True, stable=True).indices[:budget]
    return accessed[order].sort().values
