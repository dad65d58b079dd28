"""The LM head: logits in fp32 on a bf16 model (ScaleRL §3.2), so that generator and trainer agree on log-probs, and log-probs
of chosen tokens without all logits at once.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

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


VOCABULARY_CHUNK = 16_384
"""Columns of the logits that `chosen_logps` has at once."""


@contextmanager
def captured_hidden(module: PreTrainedModel) -> Generator[list[torch.Tensor]]:
    """Within it the head computes nothing: what would be its input is appended to the list, its output has no columns."""
    head = cast("Any", module.get_output_embeddings())
    inputs: list[torch.Tensor] = []

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        inputs.append(hidden)
        return hidden[..., :0]

    state = cast("dict[str, object]", head.__dict__)
    before = state.get("forward")
    state["forward"] = keep
    try:
        yield inputs
    finally:
        state.pop("forward")
        if before is not None:
            state["forward"] = before


@contextmanager
def gathered_head(module: PreTrainedModel, keep: torch.Tensor) -> Generator[list[int]]:
    """Within it the head is computed for chosen tokens only: of hidden states [N, L, D] for `keep` of the N·L tokens, giving
    [1, K, V]. The list has an entry for each time that it was; none if the model goes around its head.
    """
    head = cast("Any", module.get_output_embeddings())
    uses: list[int] = []
    if head is None:
        yield uses
        return
    inner = head.forward

    def chosen(hidden: torch.Tensor) -> torch.Tensor:
        uses.append(len(keep))
        return inner(hidden.flatten(0, 1)[keep][None])

    state = cast("dict[str, object]", head.__dict__)
    before = state.get("forward")
    state["forward"] = chosen
    try:
        yield uses
    finally:
        state.pop("forward")
        if before is not None:
            state["forward"] = before


def chosen_logps(
    module: PreTrainedModel,
    hidden: torch.Tensor,
    row: torch.Tensor,
    target: torch.Tensor,
    temperature: float = 1.0,
    chunk: int = VOCABULARY_CHUNK,
) -> torch.Tensor:
    """log softmax(head(hidden)/temperature) of chosen tokens, in fp32, a chunk of the vocabulary at a time; no gradient.

    Memory is K × chunk instead of K × V, for K positions and V tokens.

    Args:
        module: a causal LM for which `has_plain_logits` holds.
        hidden: [K, D], the head's input.
        row: int64 [T], which position predicts each target.
        target: int64 [T].
        temperature: > 0.
        chunk: columns at once.

    Returns:
        float32 [T].
    """
    head = cast("torch.nn.Linear", module.get_output_embeddings())
    fp32 = has_fp32_head(module)
    inputs = hidden.float() if fp32 else hidden
    scale, softcap = _logit_options(module)
    total = torch.full((len(hidden),), -torch.inf, device=hidden.device)
    chosen = torch.zeros(len(target), device=hidden.device)
    for start in range(0, len(head.weight), chunk):
        weight = head.weight[start : start + chunk]
        bias = None if head.bias is None else head.bias[start : start + chunk]  # pyright: ignore[reportUnnecessaryComparison]
        if fp32:
            weight, bias = weight.float(), None if bias is None else bias.float()
        logits = F.linear(inputs, weight, bias).float() * scale
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        logits /= temperature
        total = torch.logaddexp(total, logits.logsumexp(-1))
        inside = (target >= start) & (target < start + len(weight))
        chosen[inside] = logits[row[inside], target[inside] - start]
    return chosen - total[row]


def _logit_options(module: PreTrainedModel) -> tuple[float, float]:
    """(factor of the logits, cap) of the families that have one: Granite, Cohere; Gemma."""
    config: Any = module.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    scale *= getattr(config, "logit_scale", None) or 1.0
    return scale, float(getattr(config, "final_logit_softcapping", None) or 0.0)


def has_plain_logits(module: PreTrainedModel) -> bool:
    """Whether `chosen_logps` gives what the model itself gives, tried on two tokens; remembered."""
    known = module.__dict__
    if "_postgrad_plain_logits" not in known:
        known["_postgrad_plain_logits"] = _try_plain_logits(module)
    return bool(known["_postgrad_plain_logits"])


@torch.no_grad()
def _try_plain_logits(module: PreTrainedModel) -> bool:
    head = cast("object", module.get_output_embeddings())
    if not isinstance(head, torch.nn.Linear) or not head.weight.is_floating_point():
        return False
    tokens = torch.tensor([[1, 2]], device=head.weight.device) % len(head.weight)
    network = cast("Any", module)
    logits = network(input_ids=tokens, use_cache=False).logits[0]
    with captured_hidden(module) as inputs:
        network(input_ids=tokens, use_cache=False)
    if len(inputs) != 1 or logits.shape[-1] != len(head.weight):
        return False
    row, target = torch.arange(2, device=tokens.device), logits.argmin(-1)
    ours = chosen_logps(module, inputs[0][0], row, target)
    theirs = logits.float().log_softmax(-1)[row, target]
    return bool(
        torch.allclose(ours, theirs, rtol=1e-3, atol=1e-2 if logits.dtype == torch.bfloat16 else 1e-4)
    )
