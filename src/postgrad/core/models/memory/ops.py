"""Look-up and reading of a memory layer, as pure functions (1907.05242, 2412.09764).

Symbols: q = `query`, K = `keys`, I = `slots`, s = `weights`, V = `values`, TopK as in the papers.

Shapes: T tokens, H heads, N slots, A × B = N the two sets of half keys, k slots per look-up, D width of a value, R selected rows,
P pairs of a token and a slot.

Reading and its gradients are torch's operations, and on CUDA the kernels of `kernels.py` where Triton is installed.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch, transformers and safetensors are only partly typed)

from __future__ import annotations

import math
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_COPIED_BYTES = 2**25
"""So much of the table `weights_gradient` copies at a time; a bound on memory that changes no result."""


class Found(NamedTuple):
    """What a look-up gives: scores and slots [T, H, k], best first."""

    scores: Tensor
    slots: Tensor


def half_sizes(num_slots: int) -> tuple[int, int]:
    """(A, B) with A·B = N and A the greatest divisor up to √N; a prime N gives (1, N), which is a flat set.

    >>> half_sizes(1024), half_sizes(12), half_sizes(7)
    ((32, 32), (3, 4), (1, 7))
    """
    for first in range(math.isqrt(num_slots), 0, -1):
        if num_slots % first == 0:
            return first, num_slots // first
    raise ValueError(f"a table has at least one slot; received {num_slots}")


def flat_lookup(query: Float[Tensor, "T H d"], keys: Float[Tensor, "H N d"], k: int) -> Found:
    """TopK(K·q) over all N keys: the oracle."""
    return Found(*torch.einsum("thd,hnd->thn", query, keys).topk(k, -1))


def product_lookup(
    first: Float[Tensor, "T H d1"],
    second: Float[Tensor, "T H d2"],
    first_keys: Float[Tensor, "H A d1"],
    second_keys: Float[Tensor, "H B d2"],
    k: int,
) -> Found:
    """TopK over all A·B pairs of half keys, exactly, from A + B half scores; slot (a, b) is a·B + b.

    The score of a pair is the sum of its halves', so with both halves sorted a pair at ranks (i, j), counted from 0, is
    beaten by (i + 1)(j + 1) − 1 others: only pairs with (i + 1)(j + 1) ≤ k can be among the best k.

    >>> one = torch.ones(1, 1, 1)
    >>> found = product_lookup(one, one, torch.tensor([[[0.0], [3.0]]]), torch.tensor([[[1.0], [0.0]]]), 3)
    >>> found.scores.tolist(), found.slots.tolist()
    ([[[4.0, 3.0, 1.0]]], [[[2, 3, 0]]])
    """
    size = second_keys.shape[1]
    best = torch.einsum("thd,hnd->thn", first, first_keys).topk(min(k, first_keys.shape[1]), -1)
    other = torch.einsum("thd,hnd->thn", second, second_keys).topk(min(k, size), -1)
    ranks = _candidates(best.values.shape[-1], other.values.shape[-1], k)
    rows, columns = (rank.to(first.device) for rank in ranks)
    sums = best.values[..., rows] + other.values[..., columns]
    slots = best.indices[..., rows] * size + other.indices[..., columns]
    scores, place = sums.topk(k, -1)
    return Found(scores, slots.gather(-1, place))


@cache
def _candidates(first: int, second: int, k: int) -> tuple[Tensor, Tensor]:
    """Ranks (i, j) that can be among the best k, as two index vectors."""
    pairs = [(i, j) for i in range(first) for j in range(second) if (i + 1) * (j + 1) <= k]
    with torch.inference_mode(False):  # they are kept, and may be asked for again where gradients are wanted
        return torch.tensor([i for i, _ in pairs]), torch.tensor([j for _, j in pairs])


def read(
    values: Float[Tensor, "N D"], slots: Int[Tensor, "T M"], weights: Float[Tensor, "T M"]
) -> Float[Tensor, "T D"]:
    """y = Σ_m s_m·V[I_m], heads and look-ups together (M = H·k). Bytes: T·M·D values read once.

    >>> read(torch.tensor([[1.0], [10.0]]), torch.tensor([[0, 1]]), torch.tensor([[2.0, 0.5]])).tolist()
    [[7.0]]
    """
    if _kernels(values) is not None:
        return _Read.apply(values, slots, weights)  # pyright: ignore[reportReturnType]
    return F.embedding_bag(slots, values, per_sample_weights=weights.to(values.dtype), mode="sum")


def selected_gradient(
    gradient: Float[Tensor, "T D"],
    slots: Int[Tensor, "T M"],
    weights: Float[Tensor, "T M"],
    rows: Int[Tensor, " R"],
) -> Float[Tensor, "R D"]:
    """The gradient of `read` in the values of chosen rows alone: g_r = Σ over (t, m) with I_tm = r of s_tm·∂L/∂y_t.

    It is a `read` of the output's gradient: the pairs of chosen rows, sorted by row, are the bags. Memory and work are those
    of these pairs; no [N, D] is ever made.

    Args:
        gradient: ∂L/∂y.
        slots, weights: as read.
        rows: different slots, sorted.

    >>> g = torch.tensor([[1.0], [10.0]])
    >>> slots, weights = torch.tensor([[0, 5], [5, 7]]), torch.tensor([[0.5, 2.0], [1.0, 1.0]])
    >>> selected_gradient(g, slots, weights, torch.tensor([5, 6])).tolist()  # 2·1 + 1·10; never read
    [[12.0], [0.0]]
    """
    kernels = _kernels(gradient)
    if kernels is not None:
        return kernels.selected_gradient(gradient, slots, weights, rows)
    pairs, offsets = pairs_of_rows(slots, rows)
    chosen = weights.flatten()[pairs].to(gradient.dtype)
    tokens = pairs // slots.shape[1]
    return F.embedding_bag(
        tokens, gradient, offsets, per_sample_weights=chosen, mode="sum", include_last_offset=True
    )


class Pairs(NamedTuple):
    """Which (token, slot) pairs read the chosen rows.

    pairs: int64 [P], places in the flattened [T, M], sorted by row and within a row by place; offsets: int64 [R + 1], row r has
    pairs[offsets[r] : offsets[r + 1]].
    """

    pairs: Tensor
    offsets: Tensor


def pairs_of_rows(slots: Int[Tensor, "T M"], rows: Int[Tensor, " R"]) -> Pairs:
    """The reverse index of chosen rows, which are different slots, sorted.

    >>> found = pairs_of_rows(torch.tensor([[5, 0], [7, 5]]), torch.tensor([0, 5, 6]))
    >>> found.pairs.tolist(), found.offsets.tolist()
    ([1, 0, 3], [0, 1, 3, 3])
    """
    flat = slots.flatten()
    place = torch.searchsorted(rows.contiguous(), flat).clamp(max=len(rows) - 1)
    pairs = (rows[place] == flat).nonzero().squeeze(-1)
    row, order = place[pairs].sort(stable=True)
    return Pairs(pairs[order], torch.searchsorted(row, torch.arange(len(rows) + 1, device=row.device)))


def weights_gradient(
    gradient: Float[Tensor, "T D"], values: Float[Tensor, "N D"], slots: Int[Tensor, "T M"]
) -> Float[Tensor, "T M"]:
    """The gradient of `read` in its weights: ∂L/∂s_tm = ⟨∂L/∂y_t, V[I_tm]⟩, without all T·M·D values at once.

    >>> g, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    >>> weights_gradient(g, values, torch.tensor([[1, 0]])).tolist()
    [[3.0, 3.0]]
    """
    kernels = _kernels(values)
    if kernels is not None:
        return kernels.weights_gradient(gradient, values, slots)
    token_bytes = slots.shape[1] * values.shape[1] * values.element_size()
    tokens = max(1, _COPIED_BYTES // max(1, token_bytes))
    parts = zip(gradient.split(tokens), slots.split(tokens), strict=True)
    return torch.cat([torch.einsum("td,tmd->tm", part, values[where]) for part, where in parts])


def _kernels(tensor: Tensor) -> ModuleType | None:
    """`kernels.py` for a tensor that it can take, on CUDA where Triton works; else None."""
    if not tensor.is_cuda or tensor.dtype == torch.float64:
        return None
    from postgrad.core.models.memory import kernels

    return kernels if kernels.available() else None


class _Read(torch.autograd.Function):
    """`read` by kernels, differentiable in the whole table (a dense gradient) and in the weights."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, values: Tensor, slots: Tensor, weights: Tensor
    ) -> Tensor:
        from postgrad.core.models.memory import kernels

        ctx.save_for_backward(values, slots, weights)
        return kernels.read(values, slots, weights)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, slots, weights = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        (gradient,) = gradients
        wanted = ctx.needs_input_grad  # pyright: ignore[reportAttributeAccessIssue]
        dense = None
        if wanted[0]:
            rows = slots.unique()
            dense = torch.zeros_like(values)
            dense[rows] = selected_gradient(gradient, slots, weights, rows)
        scores = weights_gradient(gradient, values, slots) if wanted[2] else None
        return dense, None, scores


class _ReadSelected(torch.autograd.Function):
    """`read`, differentiable in `active` (the values of the selected rows) and in the weights, not in the table."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        active: Tensor,
        values: Tensor,
        slots: Tensor,
        weights: Tensor,
        rows: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(values, slots, weights, rows)
        return read(values, slots, weights)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, slots, weights, rows = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        (gradient,) = gradients
        active = selected_gradient(gradient, slots, weights, rows)
        scores = None
        if ctx.needs_input_grad[3]:  # pyright: ignore[reportAttributeAccessIssue]
            scores = weights_gradient(gradient, values, slots)
        return active, None, None, scores, None


def read_selected(
    active: Float[Tensor, "R D"],
    values: Float[Tensor, "N D"],
    slots: Int[Tensor, "T M"],
    weights: Float[Tensor, "T M"],
    rows: Int[Tensor, " R"],
) -> Float[Tensor, "T D"]:
    """`read`, whose gradient goes to `active` alone by `selected_gradient`.

    Args:
        active: equal to values[rows]; a leaf that requires a gradient.
        values, slots, weights: as for `read`.
        rows: different slots, sorted.
    """
    return _ReadSelected.apply(active, values, slots, weights, rows)  # pyright: ignore[reportReturnType]
