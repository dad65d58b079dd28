"""Options of the room thought. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from postgrad.core.config import Config

Activation = Literal["leaky_relu", "gelu", "silu", "tanh"]
Routing = Literal["paper", "broadcast", "others", "learned"]


class AutoencoderConfig(Config):
    """Which thoughts there are: the autoencoder over the states of all agents."""

    num_thoughts: int = Field(default=1024, ge=1)
    """n_z, latent coordinates (paper: 1,024)."""
    encoder_hidden: int | None = Field(default=None, ge=1)
    """Hidden units of the encoder. None = 4 n_z, at least 64."""
    decoder_hidden: int | None = Field(default=None, ge=1)
    """Hidden units of the decoder, for each agent. None = 2 n_z, at least 64."""
    activation: Activation = "leaky_relu"
    """Of both hidden layers."""
    start: Literal["ica", "random"] = "ica"
    """First weights: those of FastICA, which is linear, or random ones."""
    warmup_steps: int = Field(default=500, ge=0)
    """Updates before there is a penalty."""
    ramp_steps: int = Field(default=500, ge=0)
    """Updates in which the penalty grows from 0 to its weight."""
    sparse_steps: int = Field(default=1500, ge=0)
    """Updates with the whole penalty."""
    refit_steps: int = Field(default=1500, ge=0)
    """Updates after it, in which agents keep the thoughts they held and the penalty is lighter, so that it biases less."""
    batch_size: int = Field(default=256, ge=2)
    """States in one update."""
    lr: float = Field(default=2e-3, gt=0)
    """Peak learning rate of Adam, one cycle in each of the two parts."""
    penalty: float | None = Field(default=None, ge=0)
    """λ, weight of the Jacobian's L1 beside the error per dimension of standardised states. None = what `budget` allows."""
    budget: float = Field(default=0.15, gt=0, lt=1)
    """Where λ is not given: share of the explained variance that the penalty may cost while it is whole."""
    refit_share: float = Field(default=0.3, ge=0)
    """λ in the refit, as a share of λ before it."""
    tolerance: float = Field(default=0.1, ge=0, lt=1)
    """An agent holds a thought where its RMS Jacobian is above this share of the largest one."""
    backend: Literal["auto", "exact", "sampled", "group", "path"] = "auto"
    """How the penalty is taken; `auto` = exact where a batch's Jacobians fit in `jacobian_bytes`, else sampled."""
    jacobian_bytes: int = Field(default=2**25, ge=1)
    """Memory for Jacobians."""
    standardise: bool = True
    """Thoughts have mean 0 and variance 1 in a batch. Without it the decoder's Jacobian shrinks for free as thoughts grow."""
    seed: int = 0
    """Of initial weights, batches and sampled Jacobians."""

    @model_validator(mode="after")
    def _some_steps(self) -> AutoencoderConfig:
        if self.warmup_steps + self.ramp_steps + self.sparse_steps < 1:
            raise ValueError("warmup_steps, ramp_steps and sparse_steps are all 0: there is nothing to train")
        return self

    @property
    def encoder_units(self) -> int:
        """`encoder_hidden`, or its default."""
        return self.encoder_hidden or max(64, 4 * self.num_thoughts)

    @property
    def decoder_units(self) -> int:
        """`decoder_hidden`, or its default."""
        return self.decoder_hidden or max(64, 2 * self.num_thoughts)
