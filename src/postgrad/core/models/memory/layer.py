"""The Memory+ layer: look up slots, read values, gate, project (2412.09764, 2510.15103).

    I = TopK(K·q(x), k);  s = softmax(K_I·q) in fp32;  y = Σ_heads s·V_I;  out = (y ⊙ silu(W1·x))·W2

Keys per head, values shared by the heads. A layer that is being taught (`Selection`) reads as always, and its gradient goes to
the chosen rows alone.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch, transformers and safetensors are only partly typed)

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from postgrad.core.models.memory.config import MemoryConfig
from postgrad.core.models.memory.ops import (
    Found,
    flat_lookup,
    half_sizes,
    product_lookup,
    read,
    read_selected,
)
from postgrad.core.models.memory.pq import Codes, build, pq_lookup
from postgrad.core.models.memory.shard import gather_columns, own_columns, sum_gradients


@dataclass
class Accesses:
    """What one forward pass of a layer looked up: slots and weights [T, H·k]."""

    slots: Tensor
    weights: Tensor


@dataclass
class Selection:
    """Which rows of a layer are being taught.

    Attributes:
        choose: called once per forward pass with what it accessed; the rows to teach, sorted.
        rows: int64 [R], its last answer.
        active: the values of these rows, a leaf whose `grad` is theirs after backward.
    """

    choose: Callable[[Accesses], Tensor]
    rows: Tensor | None = None
    active: Tensor | None = None


class _Made(NamedTuple):
    """Codes, and what they were made of: the keys (held, so that no others come to lie where they are) in which state."""

    keys: Tensor
    state: tuple[object, ...]
    codes: list[Codes]


class ValueTable(nn.Module):
    """V: N values of width dv, N(0, dv^-½)."""

    def __init__(self, num_slots: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_slots, width))

    def reset(self, generator: torch.Generator) -> None:
        """Initial values."""
        with torch.no_grad():
            self.weight.normal_(std=self.weight.shape[1] ** -0.5, generator=generator)


class MemoryLayer(nn.Module):
    """A memory in the place of an MLP, or beside it: [..., D] to [..., D].

    Args:
        config: sizes.
        width: D.
        table: of another layer, where values are shared; it is not registered here a second time.

    The index `pq` has the parameters of `flat`, and looks keys up as `flat` does wherever their gradient is wanted (they require
    one and gradients are on): codes of keys that change with every step would be stale, and a gradient in them missing. Elsewhere
    it uses codes, which are no weights and are never saved: they are made of the keys at the first look-up, and again when the
    keys were written to, moved or replaced. So freeze the keys to train on what generation looks up.

    Attributes:
        accesses: set to a list, every forward pass appends to it; None = off.
        selection: rows that are being taught; None = none.
    """

    def __init__(self, config: MemoryConfig, width: int, table: ValueTable | None = None) -> None:
        super().__init__()
        self.config = config
        value_dim = config.value_dim or width
        halves = (config.key_dim // 2, config.key_dim - config.key_dim // 2)
        heads = config.num_heads
        self.query = nn.Linear(width, heads * config.key_dim, bias=False)
        if config.index == "product":
            sizes = half_sizes(config.num_slots)
            parts = list(zip(sizes, halves, strict=True))
        else:
            parts = [(config.num_slots, config.key_dim)]
        self.keys = nn.ParameterList([torch.empty(heads, size, dim) for size, dim in parts])
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _, dim in parts] if config.query_norm else [])
        self.gate = nn.Linear(width, value_dim, bias=False)
        self.out = nn.Linear(value_dim, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(config.scale)) if config.mode == "additive" else None
        if table is None:
            self.values = ValueTable(config.num_slots, value_dim)
        self._lent = [] if table is None else [table]  # in a list, so that it stays the other layer's
        self.accesses: list[Accesses] | None = None
        self.selection: Selection | None = None
        self._codes: _Made | None = None

    @property
    def table(self) -> ValueTable:
        """The values, own or shared."""
        return self._lent[0] if self._lent else self.values

    def reset(self, generator: torch.Generator) -> None:
        """Initial weights: keys U(±1/√d), query and projections Xavier, values N(0, dv^-½)."""
        with torch.no_grad():
            for key in self.keys:
                bound = 1 / math.sqrt(key.shape[-1])
                key.uniform_(-bound, bound, generator=generator)
            for linear in (self.query, self.gate, self.out):
                nn.init.xavier_uniform_(linear.weight, generator=generator)
        if not self._lent:
            self.values.reset(generator)

    def look_up(self, x: Tensor) -> Found:
        """Scores (fp32) and slots [T, H, k] of x [T, D]."""
        query = self.query(x).float().unflatten(-1, (self.config.num_heads, self.config.key_dim))
        parts = query.split([key.shape[-1] for key in self.keys], -1)
        if len(self.norms):
            parts = [_norm_fp32(norm, part) for norm, part in zip(self.norms, parts, strict=True)]
        if self.config.index == "pq" and not (torch.is_grad_enabled() and self.keys[0].requires_grad):
            return self._look_up_codes(parts[0])
        keys = [key.float() for key in self.keys]
        if len(keys) == 1:
            return flat_lookup(parts[0], keys[0], self.config.top_k)
        return product_lookup(parts[0], parts[1], keys[0], keys[1], self.config.top_k)

    def _look_up_codes(self, query: Tensor) -> Found:
        keys, config = self.keys[0].detach(), self.config
        state = (keys.data_ptr(), keys._version, keys.dtype, config.pq_subvectors, config.pq_codes)
        if self._codes is None or self._codes.state != state:
            generator = torch.Generator().manual_seed(config.seed)
            made = [build(head, config.pq_subvectors, config.pq_codes, generator) for head in keys]
            self._codes = _Made(keys, state, made)
        return pq_lookup(query, keys, self._codes.codes, config.top_k, config.pq_share, config.pq_candidates)

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes its own codes, since its keys may change."""
        return {**self.__dict__, "_codes": None}

    def forward(self, hidden: Tensor) -> Tensor:
        """out of the module's equations, times the scale of an additive layer."""
        x = hidden.flatten(0, -2)
        found = self.look_up(x)
        weights = found.scores.softmax(-1).flatten(1)
        slots = found.slots.flatten(1)
        if self.accesses is not None:
            self.accesses.append(Accesses(slots, weights.detach()))
        y = self._read(slots, weights)
        out = self.out(y.to(x.dtype) * F.silu(self.gate(x)))
        if self.scale is not None:
            out = out * self.scale
        return out.view_as(hidden)

    def _read(self, slots: Tensor, weights: Tensor) -> Tensor:
        table = self.table.weight
        values, weights = own_columns(table), sum_gradients(table, weights)
        if self.selection is None:
            return gather_columns(table, read(values, slots, weights))
        rows = self.selection.choose(Accesses(slots, weights.detach()))
        self.selection.rows = rows
        self.selection.active = values.detach()[rows].requires_grad_()
        y = read_selected(self.selection.active, values.detach(), slots, weights, rows)
        return gather_columns(table, y)


def _norm_fp32(norm: nn.Module, x: Tensor) -> Tensor:
    """A layer norm in fp32, whatever its weights are in."""
    layer = cast("nn.LayerNorm", norm)
    return F.layer_norm(x, layer.normalized_shape, layer.weight.float(), layer.bias.float(), layer.eps)
