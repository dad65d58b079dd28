"""Options of MARA inside reinforcement learning: the table `[mara]` of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from postgrad.core.config import Config


class MaraConfig(Config):
    """Mode Anchored Reward Augmentation (arXiv 2510.20817) with the KL to the reference that it needs."""

    beta: float = Field(ge=0)
    """Coefficient of the KL to the reference, and of the augmentation: they must be the same (paper: 0.001 to 0.1)."""
    augment: bool = True
    """False leaves the KL alone (ordinary KL-regularised RL, which collapses by design), for comparison."""
    tau: float | None = None
    """A sample is good when its reward is at least this. None = the reward of a pass (1 with signed rewards)."""
    percentile: float | None = Field(default=None, ge=0, le=100)
    """Instead of `tau`: the percentile of the group's rewards, for rewards without a verifier (paper: 90)."""
    anchor: Literal["group", "stored"] = "group"
    """What good samples are lifted to: the reference's favourite among the good samples of the group (paper), or of all
    that this prompt ever had; a stored anchor needs no reference pass for the group's good samples."""
    max_bonus: float | None = Field(default=None, gt=0)
    """Bound on the lift of one sample, in units of reward; None = none. Where it bites, uniformity is given up."""
    cache: int = Field(default=200_000, ge=0)
    """Reference log-probs remembered, by prompt and completion; 0 = none."""
    max_tokens: int = Field(default=8192, ge=1)
    """Most tokens in one forward pass of the reference."""

    @model_validator(mode="after")
    def _possible(self) -> MaraConfig:
        if self.beta == 0:
            raise ValueError(
                "beta = 0 makes MARA inert: without a KL there is no optimum to shape. Give beta above 0 (the paper's "
                "range is 0.001 to 0.1), or leave the table [mara] out"
            )
        if self.tau is not None and self.percentile is not None:
            raise ValueError("give tau or percentile, not both: each says which samples are good")
        if self.anchor == "stored" and self.percentile is not None:
            raise ValueError(
                'a stored anchor was good under another group\'s percentile; use anchor = "group" with percentile'
            )
        return self
