"""Which model, where, in which precision. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from postgrad.core.config import Config, Seed


class EmbeddedConfig(Config):
    """The small Qwen3-type model that is built and warm-started when no model path is given."""

    hidden_size: int = Field(default=128, ge=8)
    """Width D of the residual stream."""
    num_layers: int = Field(default=4, ge=1)
    num_heads: int = Field(default=4, ge=1)
    """Query heads."""
    num_kv_heads: int = Field(default=2, ge=1)
    """Key and value heads; divides `num_heads`."""
    head_dim: int = Field(default=32, ge=2)
    intermediate_size: int = Field(default=384, ge=8)
    """Width of the feed-forward layer."""
    vocab_size: int = Field(default=512, ge=264)
    """Most tokens in the vocabulary: 256 bytes, 4 special tokens, common phrases of the demonstrations."""
    max_position: int = Field(default=512, ge=16)
    """Longest sequence, prompt and completion together."""
    rope_theta: float = Field(default=100.0, gt=1)
    """Base of the rotary positions: small, since sequences are short."""
    steps: int = Field(default=250, ge=0)
    """Warm start: supervised updates on the demonstrations. 0 = random weights."""
    batch_size: int = Field(default=64, ge=1)
    """Warm start: demonstrations in one update."""
    matrix_lr: float = Field(default=0.02, gt=0)
    """Warm start: peak learning rate of the weight matrices (Muon). Linear warm-up over 5 % of the steps, then
    cosine to a tenth."""
    lr: float = Field(default=3e-3, gt=0)
    """Warm start: peak learning rate of embeddings and norms (AdamW), same schedule."""
    demonstrations: int = Field(default=8000, ge=1)
    """Warm start: how many (prompt, answer) pairs the caller collects from its tasks."""
    wrong_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Warm start: share of demonstrations that carry the answer of another prompt. Like a corpus that is right only part
    of the time, it leaves a model that has learned the skill without having learned to prefer it."""
    seed: Seed = 0
    """Fixes the initial weights and the order of the demonstrations."""

    @model_validator(mode="after")
    def _heads(self) -> EmbeddedConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions need an even number")
        return self


class LoraConfig(Config):
    """A low-rank adapter: y = Wx + alpha/rank·BAx, of which only A and B are trained."""

    rank: int = Field(default=16, ge=1)
    """Rows of A and columns of B."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter is scaled by alpha/rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """On the adapter's input, in the trainer's forward pass only: the generator has none, so importance ratios carry its
    noise."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers that get one, such as ["q_proj", "v_proj"]. `all-linear`: every linear layer but the head."""

    @model_validator(mode="after")
    def _some(self) -> LoraConfig:
        if not self.target_modules:
            raise ValueError('target_modules is empty: name layers, or "all-linear"')
        return self


class ModelConfig(Config):
    """The model that a command starts from."""

    path: str = ""
    """Model directory, run directory (latest checkpoint) or hub name. Empty = the embedded small model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    device: str = "auto"
    """`auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:1`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights. `auto`: float32 on a CPU (bfloat16 is far slower there), else bfloat16."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for sources that you trust."""
    embedded: EmbeddedConfig = Field(default_factory=EmbeddedConfig)
    """The embedded small model, used when `path` is empty."""
