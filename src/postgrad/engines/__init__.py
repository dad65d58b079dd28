"""Engines generate; all of them stand behind `core.protocols.Engine`.

Start at `torch_engine/engine.py` (continuous batching over slots), then `ops.py` (sampling as pure functions) and
`vllm_engine/engine.py` (the same by vLLM).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from postgrad.engines.config import EngineConfig

if TYPE_CHECKING:
    from postgrad.engines.torch_engine.engine import TorchEngine, generate
    from postgrad.engines.vllm_engine.engine import VllmEngine

__all__ = ["EngineConfig", "TorchEngine", "VllmEngine", "generate"]


def __getattr__(name: str) -> Any:
    if name in ("TorchEngine", "generate"):
        from postgrad.engines.torch_engine import engine

        return getattr(engine, name)
    if name == "VllmEngine":
        from postgrad.engines.vllm_engine.engine import VllmEngine

        return VllmEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
