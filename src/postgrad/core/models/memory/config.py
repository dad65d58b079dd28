"""Sizes and place of a memory layer. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from postgrad.core.config import Config, Seed


class MemoryConfig(Config):
    """Memory+ layers in a causal LM (Memory Layers at Scale, arXiv 2412.09764)."""

    layers: tuple[int, ...] = Field(min_length=1)
    """Which blocks get one, counted from 0 (paper: 12 of 22)."""
    mode: Literal["additive", "replace"] = "additive"
    """`additive`: mlp(x) + scale·memory(x), the model as it is at first; `replace`: memory(x) instead of the MLP, which then
    has to be trained (paper)."""
    num_slots: int = Field(default=1024**2, ge=1)
    """N, rows of the value table (paper: 1024²)."""
    num_heads: int = Field(default=4, ge=1)
    """H, look-ups per token."""
    top_k: int = Field(default=32, ge=1)
    """k, slots that one look-up reads."""
    key_dim: int = Field(default=256, ge=2)
    """Width of a query and of a key, halves together."""
    value_dim: int = Field(default=0, ge=0)
    """dv, width of a value; 0 = that of the model."""
    index: Literal["product", "flat", "pq"] = "product"
    """How the best keys are found: product keys, exact in √N (1907.05242); all N keys of a flat set; or the flat set's keys by
    product quantisation, approximate, once keys are frozen."""
    pq_subvectors: int = Field(default=64, ge=1)
    """S, parts that a key is quantised in (index pq); at most key_dim."""
    pq_codes: int = Field(default=256, ge=1)
    """K, codes of each part (index pq)."""
    pq_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the cells that a look-up goes through (index pq). Saves time below about 1/16, and finds the best slots only where
    keys lie in clusters."""
    pq_candidates: int = Field(default=256, ge=1)
    """M, keys whose true scores are computed (index pq); at least top_k are."""
    query_norm: bool = True
    """Layer norm on the (halves of the) query: small tables are unstable without it."""
    shared_values: bool = False
    """One value table for all layers instead of one each."""
    scale: float = 0.01
    """Of an additive layer's output at first; learned in training, frozen in sparse finetuning."""
    seed: Seed = 0
    """Of the initial weights."""

    @model_validator(mode="after")
    def _possible(self) -> MemoryConfig:
        if len(set(self.layers)) < len(self.layers) or min(self.layers) < 0:
            raise ValueError(f"layers are different blocks, counted from 0; received {list(self.layers)}")
        if self.top_k > self.num_slots:
            raise ValueError(f"top_k = {self.top_k} slots cannot be read from num_slots = {self.num_slots}")
        return self
