"""Logits in fp32 on a bf16 model (ScaleRL §3.2), so that generator and trainer agree on log-probs."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F

from postgrad.core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _forward_fp32(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """logits = hidden · Wᵀ (+ b) with every operand upcast; the gradient of W comes back in W's own dtype."""
    bias = None if head.bias is None else head.bias.float()  # pyright: ignore[reportUnnecessaryComparison]
    with torch.autocast(device_type=hidden.device.type, enabled=False):
        return F.linear(hidden.float(), head.weight.float(), bias)


def fp32_head(module: PreTrainedModel, enabled: bool = True) -> None:
    """Make the LM head compute fp32 logits, or undo it. Works on any causal LM, with tied embeddings too.

    Only the head's `forward` is replaced, so parameters, their dtype, their ties and the `state_dict` keys
    stay as they are, and the embedding look-up still happens in the weights' own dtype. Survives
    `copy.deepcopy`.

    Args:
        module: a Hugging Face causal LM.
        enabled: False restores the ordinary head. Both directions may be repeated.

    Raises:
        ModelError: the model's head is no `torch.nn.Linear` with floating-point weights.
    """
    head = cast("object", module.get_output_embeddings())
    if not isinstance(head, torch.nn.Linear) or not head.weight.is_floating_point():
        raise ModelError(
            f"fp32 logits need a linear LM head with floating-point weights; {type(module).__name__} has "
            f"{type(head).__name__}. Set algorithm.fp32_head = false, or load the model without quantisation."
        )
    state = cast("dict[str, object]", head.__dict__)
    state.pop("forward", None)
    if enabled:
        state["forward"] = MethodType(_forward_fp32, head)


def has_fp32_head(module: PreTrainedModel) -> bool:
    """Whether `fp32_head` is in force on this model."""
    forward = getattr(cast("object", module.get_output_embeddings()), "forward", None)
    return getattr(forward, "__func__", None) is _forward_fp32
