"""Models: weights + tokenizer + revision; any Hugging Face causal LM, or a small one that is built here.

Start at `model.load`; `embedded.embedded_model` makes the small one. `ModelConfig` needs no torch; the rest
of this face imports it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from postgrad.core.models.config import EmbeddedConfig, LoraConfig, ModelConfig

if TYPE_CHECKING:
    from postgrad.core.models.embedded import embedded_model
    from postgrad.core.models.head import fp32_head
    from postgrad.core.models.model import Model, load, save
    from postgrad.core.models.paths import latest_checkpoint
    from postgrad.core.models.skeleton import load_shape, load_skeleton

__all__ = [
    "EmbeddedConfig",
    "LoraConfig",
    "Model",
    "ModelConfig",
    "embedded_model",
    "fp32_head",
    "latest_checkpoint",
    "load",
    "load_shape",
    "load_skeleton",
    "save",
]

_LAZY = {
    "Model": "model",
    "embedded_model": "embedded",
    "fp32_head": "head",
    "latest_checkpoint": "paths",
    "load": "model",
    "load_shape": "skeleton",
    "load_skeleton": "skeleton",
    "save": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
