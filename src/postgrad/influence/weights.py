"""Borrowing a module: which weights are sampled, float32 copies of them, and all as it was afterwards."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Sequence

import torch
from torch import Tensor, nn

from postgrad.core.errors import ConfigError
from postgrad.influence.layers import Named, layer_type


def choose_parameters(module: nn.Module, pattern: str) -> Named:
    """Parameters whose names contain the pattern; without one those of linear layers and convolutions, but for the output head,
    and of a model with adapters (peft) the adapters' alone.

    Raises:
        ConfigError: not a regular expression, or nothing found.
    """
    named = [
        (name, parameter) for name, parameter in module.named_parameters() if parameter.is_floating_point()
    ]
    if not pattern:
        get_head = getattr(module, "get_output_embeddings", None)
        head = get_head() if callable(get_head) else None
        layers = [layer for layer in module.modules() if _is_factored(layer) and layer is not head]
        inside = {id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)}
        found = [(name, parameter) for name, parameter in named if id(parameter) in inside]
        if hasattr(module, "peft_config"):
            found = [(name, parameter) for name, parameter in found if "lora_" in name]
    else:
        try:
            search = re.compile(pattern).search
        except re.error as error:
            raise ConfigError(f"parameters: {pattern!r} is no regular expression: {error}.") from None
        found = [(name, parameter) for name, parameter in named if search(name)]
    if not found:
        some = ", ".join(name for name, _ in named[:6])
        raise ConfigError(f"parameters: {pattern!r} is in the name of no weight. They are called {some}, …")
    return found


def _is_factored(module: nn.Module) -> bool:
    kind = layer_type(module)
    return kind is not None and kind.factored


@contextlib.contextmanager
def borrowed(module: nn.Module, chosen: Named) -> Generator[list[nn.Parameter]]:
    """The chosen parameters as float32 copies that may be overwritten; the module in evaluation mode, all of it in float32.

    Half precision would round most of the noise of a small step away. Afterwards, also after an error, every parameter and
    buffer is the tensor that it was, and modes and `requires_grad` are as they were; `.grad` is never touched.
    """
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    kept = [(tensor, tensor.data, tensor.requires_grad) for tensor in tensors]
    modes = [(part, part.training) for part in module.modules()]
    owned = {id(parameter) for _, parameter in chosen}
    try:
        module.eval()
        for tensor, data, _ in kept:
            if tensor.is_floating_point():
                tensor.data = data.float().clone() if id(tensor) in owned else data.float()
                if isinstance(tensor, nn.Parameter):
                    tensor.requires_grad_(id(tensor) in owned)
        yield [parameter for _, parameter in chosen]
    finally:
        for tensor, data, needed in kept:
            tensor.data = data
            tensor.requires_grad_(needed)
        for part, mode in modes:
            part.training = mode


class PlainBasis:
    """The weights themselves as one flat vector, parameter after parameter."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._shapes = [parameter.shape for parameter in parameters]
        self.size = sum(parameter.numel() for parameter in parameters)
        self.device = parameters[0].device

    def to_flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """[D] from one tensor for each parameter."""
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def from_flat(self, flat: Tensor) -> list[Tensor]:
        """One tensor for each parameter from [D]."""
        parts = flat.split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def precision(self, num_tempered: float, localization: float) -> Tensor:
        """1 on every axis: no preconditioner."""
        del num_tempered, localization
        return torch.ones(self.size, device=self.device)
