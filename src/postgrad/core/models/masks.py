"""Attention masks for models with full and sliding-window layers.

A custom mask reaches a Hugging Face model as one additive [.., Q, C] tensor when all its layers are of one kind, and as
a dict by kind when they are mixed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from postgrad.core.errors import ModelError

FULL, SLIDING = "full_attention", "sliding_attention"


class AttentionLayout(NamedTuple):
    """Which kinds of attention a model has.

    Attributes:
        kinds: `full_attention` and/or `sliding_attention`, sorted.
        num_layers: layers that keep a KV cache.
        window: tokens that a sliding layer sees, itself included; 0 without sliding layers.
    """

    kinds: tuple[str, ...]
    num_layers: int
    window: int


def attention_layout(config: Any) -> AttentionLayout:
    """Reads a model config. Raises ModelError for layers that do not keep one KV cache entry per token."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or [SLIDING if window else FULL] * text.num_hidden_layers
    unknown = sorted(set(kinds) - {FULL, SLIDING})
    if unknown:
        raise ModelError(
            f"A model of type {text.model_type!r} has layers of type {', '.join(unknown)}, which do not keep one KV cache "
            "entry per token. Use a model with full or sliding-window attention."
        )
    return AttentionLayout(tuple(sorted(set(kinds))), len(kinds), int(window or 0))


def additive_mask(
    layout: AttentionLayout, seen: Tensor, distance: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """0 where attention is allowed and the lowest number of `dtype` elsewhere, in the form that the model takes.

    Args:
        layout: of the model.
        seen: bool [..., Q, C]; which keys a query of a full-attention layer sees.
        distance: int [..., Q, C]; position of the query minus position of the key.
        dtype: of the model's activations.
    """
    by_kind = {FULL: seen, SLIDING: seen & (distance < layout.window)}
    low = torch.finfo(dtype).min
    masks = {
        kind: torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~by_kind[kind], low)
        for kind in layout.kinds
    }
    return masks[layout.kinds[0]] if len(masks) == 1 else masks
