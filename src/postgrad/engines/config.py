"""Options of the generation engines."""

from __future__ import annotations

from pydantic import Field

from postgrad.core.config import Config


class EngineConfig(Config):
    """The torch engine: continuous batching over a fixed number of slots."""

    slots: int = Field(default=64, ge=1)
    """Sequences generated at the same time."""
    compile: bool = False
    """torch.compile of the decode step (Llama family in fp32). Costs 20 to 60 s once per machine and shape."""
    prefill_tokens: int = Field(default=4096, ge=1)
    """Most prompt tokens computed in one prefill."""
