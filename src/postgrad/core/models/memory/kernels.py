"""Reading a memory's values and the gradients of it on a GPU, as Triton kernels.

The same functions as in `ops.py`, which calls them for tensors on CUDA. No atomics: every result is summed by one program in a
fixed order, in fp32, so the same input gives the same bits. Values are fp32, bf16 or fp16, of any width.

The step of SGD is not fused into `selected_gradient`: gradients are clipped by the norm of all chosen rows together, which is
known only after all of them are.

Shapes: T tokens, M = H·k slots of each, N slots, D width of a value, R selected rows, P pairs of a token and a slot.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportInvalidTypeForm=false
# (triton is not installed everywhere; the arguments of its kernels have no types of Python)

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from postgrad.core.models.memory.ops import pairs_of_rows

try:
    import triton
    import triton.language as tl
except ImportError:
    triton: Any = None
    tl: Any = None

_ROWS = 16
"""Rows of the table that a program reads at a time."""
_COLUMNS = 256
"""Columns of a tile; narrower tables have one tile of the next power of two."""


@cache
def available() -> bool:
    """Whether the kernels can be used: Triton is installed, with a C compiler to build its launchers, or interprets."""
    if triton is None:
        return False
    compilers = (os.environ.get("CC", ""), "gcc", "clang")
    return triton.knobs.runtime.interpret or any(map(shutil.which, compilers))


def _jit(function: Callable[..., None]) -> Any:
    """A kernel; without Triton the bare function, which nothing calls."""
    return function if triton is None else triton.jit(function)


@_jit
def _sum_bags(
    table,  # [*, D], with strides
    index,  # [P], rows of the table
    weight,  # [P]
    offset,  # int64 [bags + 1]
    out,  # [bags, D]
    width,
    tiles,
    row_stride,
    column_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out_b = Σ of weight_p·table[index_p] over offset_b ≤ p < offset_{b+1}; one program for a bag and a tile of columns."""
    bag = (tl.program_id(0) // tiles).to(tl.int64)
    column = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    start = tl.load(offset + bag)
    end = tl.load(offset + bag + 1)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    while start < end:  # not range: Triton's interpreter cannot take its ends from memory with numpy 2.4
        pair = start + tl.arange(0, ROWS)
        there = pair < end
        row = tl.load(index + pair, mask=there, other=0).to(tl.int64)
        factor = tl.load(weight + pair, mask=there, other=0.0).to(tl.float32)
        place = table + row[:, None] * row_stride + column[None, :] * column_stride
        block = tl.load(place, mask=there[:, None] & inside[None, :], other=0.0)
        total += factor[:, None] * block.to(tl.float32)
        start += ROWS
    tl.store(out + bag * width + column, tl.sum(total, 0).to(out.dtype.element_ty), mask=inside)


@_jit
def _products(
    gradient,  # [T, D], with strides
    table,  # [N, D], with strides
    index,  # [T, M], rows of the table
    out,  # [T, M]
    per_token,
    parts,
    gradient_row_stride,
    gradient_column_stride,
    row_stride,
    column_stride,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out_tm = ⟨gradient_t, table[index_tm]⟩; one program for a token and ROWS of its slots."""
    token = (tl.program_id(0) // parts).to(tl.int64)
    slot = (tl.program_id(0) % parts) * ROWS + tl.arange(0, ROWS)
    there = slot < per_token
    row = tl.load(index + token * per_token + slot, mask=there, other=0).to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, WIDTH, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < WIDTH
        given = gradient + token * gradient_row_stride + column * gradient_column_stride
        slope = tl.load(given, mask=inside, other=0.0).to(tl.float32)
        place = table + row[:, None] * row_stride + column[None, :] * column_stride
        block = tl.load(place, mask=there[:, None] & inside[None, :], other=0.0)
        total += slope[None, :] * block.to(tl.float32)
    product = tl.sum(total, 1).to(out.dtype.element_ty)
    tl.store(out + token * per_token + slot, product, mask=there)


def read(
    values: Float[Tensor, "N D"], slots: Int[Tensor, "T M"], weights: Float[Tensor, "T M"]
) -> Float[Tensor, "T D"]:
    """y = Σ_m s_m·V[I_m], in the type of the values; `ops.read` without autograd."""
    tokens, per_token = slots.shape
    offsets = torch.arange(tokens + 1, device=slots.device) * per_token
    return _bags(values, slots.flatten(), weights.flatten(), offsets)


def selected_gradient(
    gradient: Float[Tensor, "T D"],
    slots: Int[Tensor, "T M"],
    weights: Float[Tensor, "T M"],
    rows: Int[Tensor, " R"],
) -> Float[Tensor, "R D"]:
    """g_r = Σ over (t, m) with I_tm = r of s_tm·∂L/∂y_t, in the type of the gradient; as `ops.selected_gradient`."""
    pairs, offsets = pairs_of_rows(slots, rows)
    return _bags(gradient, pairs // slots.shape[1], weights.flatten()[pairs], offsets)


def weights_gradient(
    gradient: Float[Tensor, "T D"], values: Float[Tensor, "N D"], slots: Int[Tensor, "T M"]
) -> Float[Tensor, "T M"]:
    """∂L/∂s_tm = ⟨∂L/∂y_t, V[I_tm]⟩, in the type of the gradient; as `ops.weights_gradient`. Bytes: T·M·D values read once."""
    (tokens, per_token), width = slots.shape, values.shape[1]
    out = gradient.new_empty(tokens, per_token)
    parts = triton.cdiv(per_token, _ROWS)
    if out.numel():
        with torch.cuda.device_of(values):
            _products[(tokens * parts,)](
                gradient,
                values,
                slots.contiguous(),
                out,
                per_token,
                parts,
                *gradient.stride(),
                *values.stride(),
                WIDTH=width,
                ROWS=_ROWS,
                COLUMNS=_columns(width),
            )
    return out


def _bags(table: Tensor, index: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """Sums [bags, D] of weighted rows of a table [*, D]; bag b has the pairs offset[b] to offset[b + 1]."""
    bags, width = len(offset) - 1, table.shape[1]
    out = table.new_empty(bags, width)
    columns = _columns(width)
    tiles = triton.cdiv(width, columns)
    if out.numel():
        with torch.cuda.device_of(table):
            _sum_bags[(bags * tiles,)](
                table, index, weight, offset, out, width, tiles, *table.stride(), ROWS=_ROWS, COLUMNS=columns
            )
    return out


def _columns(width: int) -> int:
    """Columns of a tile: a power of two."""
    return min(_COLUMNS, triton.next_power_of_2(max(1, width)))
