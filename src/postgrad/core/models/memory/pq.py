"""An approximate look-up among a flat set of keys: product quantisation, then the true scores of a few.

A key is near the centre of its cell plus one code for each sub-vector of what is left (Jégou et al. 2011, IVFADC), so a query's
score with it is near a sum of S + 1 numbers of a table that is computed once per query:

    q·K_n ≈ q·c_cell(n) + Σ_s q_s·b_s,code(n, s)

The M keys with the best sums in the cells that are looked into are candidates, and get their true scores: what is approximate
is *which* slots are found, never their scores. Codes belong to keys as they are, which suits sparse finetuning: keys are frozen.

Shapes: as in `ops`; C cells, S sub-vectors, K codes of each, M candidates, d width of a key.

FLOP per token and head: 2·(C + K)·d for the table, share·N·(S + 1) for the sums, 2·M·d for the true scores; `flat_lookup` needs
2·N·d. With N = 65,536, d = K = M = 256, C = 512, S = 64, all cells: 4.8 million against 33.6 million.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch is only partly typed)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from postgrad.core.models.memory.ops import Found, read

_SUMS, _MAX_TOKENS = 2**24, 64
"""How many sums, and tokens, a block has at most."""
_GATHERED = 2**20
"""How many numbers are gathered at once. None of the three changes a result."""


class Codes(NamedTuple):
    """The quantised keys of one head, which lie in the order of their cells.

    Attributes:
        centres: of the cells [C, d].
        codebooks: of each sub-vector [K, d_s], Σ d_s = d.
        entries: int32 [N, S + 1], which entries of a query's table are summed: it lists S·K codes, then C cells.
        slots: int64 [N], whose entries these are.
        ends: int64 [C], where each cell ends.
    """

    centres: Tensor
    codebooks: tuple[Tensor, ...]
    entries: Tensor
    slots: Tensor
    ends: Tensor


def k_means(
    points: Float[Tensor, "N d"], num_centres: int, generator: torch.Generator, iterations: int = 6
) -> Float[Tensor, "C d"]:
    """Lloyd's algorithm from different points drawn at random; a centre without points stays where it is.

    Args:
        points: N of them.
        num_centres: C; with fewer points, each is a centre.
        generator: on the CPU.
        iterations: of assignment and mean.

    >>> points = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    >>> sorted(k_means(points, 2, torch.Generator().manual_seed(0)).flatten().tolist())
    [0.5, 11.0]
    """
    start = torch.randperm(len(points), generator=generator)[:num_centres]
    centres = points[start.to(points.device)]
    for _ in range(iterations):
        centres = _means(points, nearest_centre(points, centres), centres)
    return centres


def nearest_centre(points: Float[Tensor, "N d"], centres: Float[Tensor, "C d"]) -> Int[Tensor, " N"]:
    """argmin ‖p − c‖² = argmin ½‖c‖² − p·c, a block of points at a time.

    >>> nearest_centre(torch.tensor([[0.4], [0.6], [9.0]]), torch.tensor([[0.0], [1.0]])).tolist()
    [0, 1, 1]
    """
    half = centres.square().sum(-1) / 2
    blocks = points.split(max(1, _GATHERED // len(centres)))
    return torch.cat([torch.addmm(half, block, centres.T, alpha=-1).argmin(-1) for block in blocks])


def _means(points: Tensor, nearest: Tensor, centres: Tensor) -> Tensor:
    """The mean of each centre's points; without points, the centre."""
    nearest, order = nearest.sort(stable=True)
    first = torch.searchsorted(nearest, torch.arange(len(centres), device=points.device))
    used = torch.bincount(nearest, minlength=len(centres)) > 0
    return torch.where(used.unsqueeze(-1), F.embedding_bag(order, points, first, mode="mean"), centres)


@torch.no_grad()
def build(
    keys: Float[Tensor, "N d"],
    num_subvectors: int,
    num_codes: int,
    generator: torch.Generator,
    points_per_code: int = 32,
) -> Codes:
    """Quantises the keys of one head: 2·√N cells, then codes for what is left of a key in its cell.

    Args:
        keys: at least one.
        num_subvectors: S, at most d; where d is no multiple of it, the first sub-vectors are one longer.
        num_codes: K, at most N.
        generator: on the CPU; the same seed gives the same codes.
        points_per_code: keys per code or cell, drawn at random, that k-means looks at.
    """
    keys = keys.to(torch.promote_types(keys.dtype, torch.float32))
    num_cells = min(2 * math.isqrt(len(keys)), len(keys))
    drawn = torch.randperm(len(keys), generator=generator).to(keys.device)
    centres = k_means(keys[drawn[: num_cells * points_per_code]], num_cells, generator)
    cell = nearest_centre(keys, centres)
    centres = _means(keys, cell, centres)
    parts = (keys - centres[cell]).tensor_split(min(num_subvectors, keys.shape[1]), -1)
    drawn = drawn[: num_codes * points_per_code]
    codebooks = tuple(k_means(part[drawn], num_codes, generator) for part in parts)
    entries = [nearest_centre(part, book) for part, book in zip(parts, codebooks, strict=True)]
    first = torch.arange(len(parts) + 1, device=keys.device) * len(codebooks[0])
    slots = cell.argsort(stable=True)
    entries = (torch.stack([*entries, cell], -1) + first)[slots].int()
    return Codes(centres, codebooks, entries, slots, torch.bincount(cell, minlength=len(centres)).cumsum(0))


def pq_lookup(
    query: Float[Tensor, "T H d"],
    keys: Float[Tensor, "H N d"],
    codes: Sequence[Codes],
    k: int,
    share: float = 1.0,
    candidates: int = 256,
) -> Found:
    """TopK(K·q) among candidates; with share = 1 and M = N the same as `flat_lookup`.

    Sums exist for a block of tokens and one head at a time. Scores are differentiable in the query, not in the keys.

    Args:
        query, keys: as for `flat_lookup`.
        codes: of these keys, by head.
        k: slots to find.
        share: of the cells, those whose centres score best, that are looked into; rounded up, and enough that they have k keys
            whichever they are.
        candidates: M; at least k are.

    >>> keys = torch.tensor([[[0.0, 0.0], [1.0, 3.0], [3.0, 1.0], [2.0, 2.0]]])
    >>> codes = [build(keys[0], 2, 2, torch.Generator().manual_seed(0))]
    >>> found = pq_lookup(torch.tensor([[[2.0, 1.0]]]), keys, codes, k=2, candidates=4)
    >>> found.scores.tolist(), found.slots.tolist()
    ([[[7.0, 6.0]]], [[[2, 3]]])
    """
    with torch.no_grad():
        heads = [
            _lookup_head(query[:, head], keys[head], some, k, share, candidates)
            for head, some in enumerate(codes)
        ]
        scores, slots = (torch.stack(parts, 1) for parts in zip(*heads, strict=True))
    return Found(_KnownScores.apply(query, keys, scores, slots), slots)  # pyright: ignore[reportArgumentType]


def _lookup_head(query: Tensor, keys: Tensor, codes: Codes, k: int, share: float, candidates: int) -> Found:
    num_cells = len(codes.ends)
    smallest_first = codes.ends.diff(prepend=codes.ends.new_zeros(1)).sort().values
    enough = int(torch.searchsorted(smallest_first.cumsum(0), k)) + 1
    probes = min(max(math.ceil(share * num_cells), enough), num_cells)
    most = int(smallest_first[num_cells - probes :].sum())
    found: list[Found] = []
    for block in query.split(min(max(1, _SUMS // most), _MAX_TOKENS)):
        positions = _candidates(block, codes, probes, max(k, candidates))
        slots = codes.slots[positions.clamp(min=0)]
        scores = _true_scores(block, keys, slots).masked_fill(positions < 0, -math.inf)
        best = scores.topk(k, -1)
        found.append(Found(best.values, slots.gather(-1, best.indices)))
    return Found(torch.cat([one.scores for one in found]), torch.cat([one.slots for one in found]))


def _candidates(query: Tensor, codes: Codes, probes: int, count: int) -> Tensor:
    """Positions in `codes` of the best sums [T, M]; -1 = a token's cells have no more."""
    cells = query @ codes.centres.T
    parts = query.split([book.shape[1] for book in codes.codebooks], -1)
    table = [part @ book.T for part, book in zip(parts, codes.codebooks, strict=True)]
    table = torch.cat([*table, cells], -1)
    if probes == len(codes.ends):  # all tokens sum the same entries
        sums = F.embedding_bag(codes.entries, table.T.contiguous(), mode="sum").T.contiguous()
        return sums.topk(min(count, sums.shape[1]), -1, sorted=False).indices
    positions = cell_positions(cells.topk(probes, -1).indices, codes.ends)
    sums = _sums(table, codes.entries, positions.clamp(min=0)).masked_fill(positions < 0, -math.inf)
    return positions.gather(-1, sums.topk(min(count, sums.shape[1]), -1, sorted=False).indices)


def cell_positions(cells: Int[Tensor, "T P"], ends: Int[Tensor, " C"]) -> Int[Tensor, "T W"]:
    """The positions that a token's cells hold, W those of the token with most; others end in -1.

    >>> cell_positions(torch.tensor([[2, 0], [1, 2]]), torch.tensor([2, 3, 6])).tolist()
    [[3, 4, 5, 0, 1], [2, 3, 4, 5, -1]]
    """
    sizes = ends.diff(prepend=ends.new_zeros(1))[cells]
    filled = sizes.cumsum(-1)
    total = filled[:, -1:]
    number = torch.arange(int(total.max()), device=cells.device).expand(len(cells), -1).contiguous()
    which = torch.searchsorted(filled, number, right=True).clamp(max=cells.shape[1] - 1)
    behind = ends[cells] - filled  # of a cell's positions, how far they are from their numbers
    return torch.where(number < total, number + behind.gather(-1, which), -1)


def _sums(table: Tensor, entries: Tensor, positions: Tensor) -> Tensor:
    """Sums of other keys for each token [T, W]."""
    tokens = max(1, _GATHERED // (positions.shape[1] * entries.shape[1]))
    found: list[Tensor] = []
    for some, where in zip(table.split(tokens), positions.split(tokens), strict=True):
        offsets = torch.arange(len(some), device=table.device, dtype=torch.int32) * some.shape[1]
        rows = F.embedding(where, entries) + offsets.view(-1, 1, 1)
        found.append(F.embedding_bag(rows.flatten(0, 1), some.view(-1, 1), mode="sum").view(where.shape))
    return torch.cat(found)


def _true_scores(query: Tensor, keys: Tensor, slots: Tensor) -> Tensor:
    """K·q at slots [T, M]."""
    tokens = max(1, _GATHERED // (slots.shape[1] * keys.shape[1]))
    return torch.cat(
        [
            torch.einsum("td,tmd->tm", some, F.embedding(where, keys).to(some.dtype))
            for some, where in zip(query.split(tokens), slots.split(tokens), strict=True)
        ]
    )


class _KnownScores(torch.autograd.Function):
    """Scores that are there already, with their gradient in the query: ∂L/∂q = Σ_m g_m·K_m, a `read` of keys."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, query: Tensor, keys: Tensor, scores: Tensor, slots: Tensor
    ) -> Tensor:
        ctx.save_for_backward(keys, slots)
        return scores.view_as(scores)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        keys, slots = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        (gradient,) = gradients
        heads = [read(keys[head], slots[:, head], gradient[:, head]) for head in range(len(keys))]
        return torch.stack(heads, 1).to(gradient.dtype), None, None, None


def recall_at_k(found: Int[Tensor, "... k"], exact: Int[Tensor, "... k"]) -> Float[Tensor, ""]:
    """Share of the true best k that was found: Σ |found ∩ exact| / (T·H·k).

    >>> float(recall_at_k(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 0], [3, 4]])))
    0.75
    """
    return (exact.unsqueeze(-1) == found.unsqueeze(-2)).any(-1).float().mean()
