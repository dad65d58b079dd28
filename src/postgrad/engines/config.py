"""Options of the generation engines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from postgrad.core.config import Config


class EngineConfig(Config):
    """The torch engine: continuous batching over a fixed number of slots."""

    slots: int = Field(default=64, ge=1)
    """Sequences generated at the same time."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the decode step. `auto`: on for supported architectures on a GPU or when the run is long
    enough to pay for it."""
    prefill_tokens: int = Field(default=4096, ge=1)
    """Most prompt tokens computed in one prefill."""
