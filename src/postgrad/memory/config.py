"""Options of the room memory. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from postgrad.core.config import Config, Seed

Method = Literal["sparse", "full", "lora", "replay", "ewc"]
Score = Literal["tf_idf", "tf", "kl", "all"]


class HealConfig(Config):
    """Training of fresh memory layers on ordinary text."""

    steps: int = Field(default=0, ge=0)
    """Updates; 0 = none, which is right for an additive memory that is taught at once."""
    batch_size: int = Field(default=32, ge=1)
    """Texts in one update."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate of all weights but the values (paper: 1e-4)."""
    value_lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the values (paper: 1e-3)."""
    train: Literal["memory", "all"] = "memory"
    """Which weights change: the memory's alone, or all (with mode `replace` mostly all)."""
    max_tokens: int = Field(default=512, ge=2)
    """Of one text; longer ones are cut into pieces."""
    seed: Seed = 0
    """Of the order of texts."""


class ProfileConfig(Config):
    """`postgrad memory profile`: which slots the background uses, so that they are left alone."""

    batches: int = Field(default=1000, ge=1)
    """B, background batches (paper: 1,000)."""
    batch_tokens: int = Field(default=4096, ge=1)
    """Tokens in one of them, padding not counted."""
    max_tokens: int = Field(default=512, ge=2)
    """Of one document; longer ones are cut into pieces."""
    seed: Seed = 0
    """Of the order of documents."""


class StreamConfig(Config):
    """A stream of edits, by whatever method."""

    score: Score = "tf_idf"
    """How rows are chosen: this batch against the background (paper), this batch alone, its part of the KL, or no choice."""
    budget: int = Field(default=500, ge=1)
    """t, rows that one update may change in each layer (paper: 500 for facts, 10,000 for documents)."""
    updates: int = Field(default=8, ge=1)
    """Updates for each edit."""
    per_edit: int = Field(default=1, ge=1)
    """Facts, or pieces of documents, that are learned together as one edit, which is one patch."""
    max_tokens: int = Field(default=512, ge=2)
    """Of one text; longer documents are cut into pieces, longer facts are refused."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm (all chosen rows together)."""
    lora_rank: int = Field(default=16, ge=1)
    """Of method lora."""
    replay_fraction: float = Field(default=0.5, gt=0, lt=1)
    """Of method replay: share of background texts in a batch."""
    ewc_strength: float = Field(default=100.0, gt=0)
    """Of method ewc: weight of the quadratic penalty."""
    seed: Seed = 0
    """Of the order of texts and of what a rival draws."""


class LearnConfig(StreamConfig):
    """`postgrad memory learn`."""

    method: Method = "sparse"
    """`sparse`: a few rows of the value table (the paper); or a rival: all weights (`full`), all weights with background text
    in every batch (`replay`) or held to the old ones by Fisher information (`ewc`), or a low-rank adapter (`lora`)."""
    optimizer: Literal["sgd", "adamw"] | None = None
    """None = `sgd` for sparse (paper), `adamw` for all others. Sparse's AdamW has a state for the rows that were ever chosen, and
    for no others."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate. None = with sgd 2 (sparse) or 0.01, with adamw 1e-3 (sparse), 1e-4 (lora) or 1e-5."""
    evaluate_every: int = Field(default=0, ge=0)
    """Edits between evaluations; 0 = at the end."""

    @property
    def optimizer_name(self) -> Literal["sgd", "adamw"]:
        """`optimizer`, or the method's default."""
        return self.optimizer or ("sgd" if self.method == "sparse" else "adamw")

    @property
    def learning_rate(self) -> float:
        """`lr`, or the default of method and optimizer."""
        if self.lr is not None:
            return self.lr
        if self.optimizer_name == "sgd":
            return 2.0 if self.method == "sparse" else 0.01
        return {"sparse": 1e-3, "lora": 1e-4}.get(self.method, 1e-5)


class CompareConfig(StreamConfig):
    """`postgrad memory compare`."""

    methods: tuple[Method, ...] = Field(default=("sparse", "full", "lora", "replay", "ewc"), min_length=1)
    """Which are compared, joined by commas, each with its own optimizer over five learning rates."""

    @field_validator("methods", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value
