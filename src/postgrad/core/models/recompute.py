"""Gradient checkpointing: the activations of a layer are computed again in the backward pass instead of kept."""

from __future__ import annotations

from typing import Any

from postgrad.core.errors import ModelError


def recompute_activations(module: Any) -> None:
    """Turns it on, without reentrance, for a model in evaluation mode: loss and gradient stay what they were.

    transformers does it in training mode only, where dropout acts. So the layers alone, which have none of their own, are set
    to training; what is inside them stays in evaluation. Call it after `module.eval()`, which undoes it.

    Raises:
        ModelError: the model has no layers that can do it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(f"{error} Set optimizer.gradient_checkpointing = false.") from None
    layers = [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{type(module).__name__} has no layers that transformers can recompute. "
            "Set optimizer.gradient_checkpointing = false."
        )
    for layer in layers:
        layer.training = True
        if isinstance(
            getattr(layer, "dropout", None), float
        ):  # OPT's kind: a rate that the layer itself applies
            layer.__dict__["dropout"] = 0.0
