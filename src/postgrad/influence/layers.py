"""Layers whose gradient for one example is known from what they read and the gradient of what they wrote.

Everything is a matrix [O, I] for each layer, with the bias as the last column: a linear layer's weight; a convolution's, with its
kernel flattened, which is a linear layer on the patches that it reads; a norm's scale, as a single column.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from postgrad.core.errors import ConfigError

Named = list[tuple[str, nn.Parameter]]
"""Parameters with their names."""


@dataclass
class Layer:
    """A linear layer (`nn.Linear`, GPT-2's `Conv1D`) with its place among the chosen parameters.

    Attributes:
        module: the layer.
        weight: index of its weight among the chosen parameters.
        bias: index of its bias, None if it has none.
        output_axes, input_axes: U_out [O, O], U_in [I, I]; None = the standard ones.
        eigenvalues: Λ [O, I].
    """

    module: nn.Module
    weight: int
    bias: int | None
    output_axes: Tensor | None = None
    input_axes: Tensor | None = None
    eigenvalues: Tensor | None = None

    factored: ClassVar[bool] = True
    """Whether it has Kronecker factors; without them its curvature is a diagonal on the standard axes."""

    def to_axes(self, matrix: Tensor) -> Tensor:
        """U_outᵀ M U_in of [..., O, I]."""
        if self.output_axes is None or self.input_axes is None:
            return matrix
        return self.output_axes.T @ matrix @ self.input_axes

    def from_axes(self, matrix: Tensor) -> Tensor:
        """The way back."""
        if self.output_axes is None or self.input_axes is None:
            return matrix
        return self.output_axes @ matrix @ self.input_axes.T

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight (or a tensor of its shape) as [O, I without the bias]."""
        return weight if isinstance(self.module, nn.Linear) else weight.T

    def tensor(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The way back."""
        del shape
        return matrix if isinstance(self.module, nn.Linear) else matrix.T

    def read(self, inputs: Tensor) -> Tensor:
        """What a call reads [B, T, I], from its first argument [B, ...]; T are the positions that share the weight."""
        return self._with_one(inputs.reshape(len(inputs), -1, inputs.shape[-1]))

    def written(self, gradient: Tensor) -> Tensor:
        """The gradient at a call's output as [B, T, O]."""
        return gradient.reshape(len(gradient), -1, gradient.shape[-1])

    def gradient(self, read: Tensor, written: Tensor) -> Tensor:
        """Of each example [B, O, I], from `read` and `written` of one call."""
        return torch.einsum("bto,bti->boi", written, read)

    def gradient_on_axes(self, read: Tensor, written: Tensor) -> Tensor:
        """`to_axes` of `gradient`. Few positions are rotated themselves, T·(O² + I²) products; else the gradient, O·I·(O + I)."""
        if self.output_axes is None or self.input_axes is None:
            return self.gradient(read, written)
        rows, columns = written.shape[-1], read.shape[-1]
        if read.shape[1] * (rows**2 + columns**2) > rows * columns * (rows + columns):
            return self.to_axes(self.gradient(read, written))
        return self.gradient(read @ self.input_axes, written @ self.output_axes)

    def moved(self, read: Tensor, matrix: Tensor) -> Tensor:
        """What a call writes more [B, T, O] when the weight grows by a matrix [O, I]: the adjoint of `gradient`."""
        return read @ matrix.T

    def _with_one(self, read: Tensor) -> Tensor:
        return read if self.bias is None else torch.cat([read, read.new_ones(*read.shape[:2], 1)], -1)


class ConvLayer(Layer):
    """`nn.Conv2d` in one group, as in KFC (arXiv 1602.01407): inputs are the patches under the kernel, positions its places."""

    def matrix(self, weight: Tensor) -> Tensor:
        """[O, C·height·width]."""
        return weight.flatten(1)

    def tensor(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The way back."""
        return matrix.reshape(shape)

    def read(self, inputs: Tensor) -> Tensor:
        """Patches of images [B, C, H, W]."""
        conv = cast("nn.Conv2d", self.module)
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        padded = F.pad(inputs, cast("Any", conv)._reversed_padding_repeated_twice, mode=mode)
        patches = F.unfold(padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
        return self._with_one(patches.transpose(1, 2))

    def written(self, gradient: Tensor) -> Tensor:
        """From [B, O, H, W]."""
        return gradient.flatten(2).transpose(1, 2)


class NormLayer(Layer):
    """A norm of the last axis, y = x̂·w (+ b): `nn.LayerNorm`, or one called …RMSNorm. Its curvature is a diagonal."""

    factored = False

    def matrix(self, weight: Tensor) -> Tensor:
        """[O, 1]."""
        return weight[:, None]

    def tensor(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The way back."""
        return matrix.reshape(shape)

    @torch.no_grad()
    def read(self, inputs: Tensor) -> Tensor:
        """x̂ [B, T, O]: the output's change from scale 0 to 1, so that it holds for y = x̂·(1 + w) too."""
        weight = cast("Tensor", self.module.weight)
        double = cast("Any", copy.copy(self.module))  # its own table of parameters; forward knows no hooks
        ends: list[Tensor] = []
        for scale in (1.0, 0.0):
            double._parameters = {**self.module._parameters, "weight": torch.full_like(weight, scale)}
            ends.append(double.forward(inputs))
        return self.written(ends[0] - ends[1])

    def gradient(self, read: Tensor, written: Tensor) -> Tensor:
        """Of each example [B, O, 1], or [B, O, 2] with a bias."""
        columns = [read * written] if self.bias is None else [read * written, written]
        return torch.stack([column.sum(1) for column in columns], -1)

    def moved(self, read: Tensor, matrix: Tensor) -> Tensor:
        """From [O, 1], or [O, 2] with a bias."""
        scaled = read * matrix[:, 0]
        return scaled if self.bias is None else scaled + matrix[:, 1]


def layer_type(module: nn.Module) -> type[Layer] | None:
    """What stands for this module; None if it is of no known kind."""
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return Layer
    if isinstance(module, nn.Conv2d):
        return ConvLayer if module.groups == 1 else None
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm"):
        return NormLayer if isinstance(weight, Tensor) and weight.dim() == 1 else None
    return None


def find_layers(module: nn.Module, chosen: Named) -> list[Layer]:
    """Layers that own the chosen parameters.

    Raises:
        ConfigError: a chosen parameter belongs to no layer of a known kind, or is a bias without its weight.
    """
    place = {id(parameter): index for index, (_, parameter) in enumerate(chosen)}
    layers: list[Layer] = []
    for part in module.modules():
        kind, weight = layer_type(part), place.get(id(getattr(part, "weight", None)))
        if kind is not None and weight is not None and all(layer.weight != weight for layer in layers):
            layers.append(kind(part, weight, place.get(id(getattr(part, "bias", None)))))
    covered = {index for layer in layers for index in (layer.weight, layer.bias)}
    left = [name for index, (name, _) in enumerate(chosen) if index not in covered]
    if left:
        raise ConfigError(
            "EK-FAC knows linear layers, convolutions (Conv2d in one group) and norms of the last axis (LayerNorm, RMSNorm), "
            f"each with its weight; {len(left)} chosen weights are in none, such as {left[0]}. "
            "Narrow parameters to those layers, or use method sgld."
        )
    return layers
