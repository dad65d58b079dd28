"""EK-FAC (arXiv 1806.03884) of linear layers: Kronecker factors, their eigenbasis, and eigenvalues corrected in it.

Of each layer the curvature of the mean loss is taken as U diag(Λ) Uᵀ with U = U_out ⊗ U_in: U_in are the eigenvectors of E[a aᵀ],
a the layer's input (with a 1 for the bias); U_out those of E[g gᵀ], g the gradient at its output; and Λ is the mean over examples
of the squared gradient on these axes. Gradients are of targets drawn from the model (true Fisher information).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from postgrad.core.errors import ConfigError
from postgrad.influence.examples import Examples
from postgrad.influence.weights import Named, is_linear


@dataclass
class Layer:
    """A linear layer with its place among the chosen parameters; matrices are [O, I], with the bias as the last column.

    Attributes:
        module: the layer.
        weight: index of its weight among the chosen parameters.
        bias: index of its bias, None if it has none.
        transposed: the weight is stored as [I, O] (Conv1D).
        output_axes, input_axes: U_out [O, O], U_in [I, I]; None = the standard ones.
        eigenvalues: Λ [O, I].
    """

    module: nn.Module
    weight: int
    bias: int | None
    transposed: bool
    output_axes: Tensor | None = None
    input_axes: Tensor | None = None
    eigenvalues: Tensor | None = None

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


def find_layers(module: nn.Module, chosen: Named) -> list[Layer]:
    """Linear layers that own the chosen parameters.

    Raises:
        ConfigError: a chosen parameter belongs to no linear layer, or is a bias without its weight.
    """
    place = {id(parameter): index for index, (_, parameter) in enumerate(chosen)}
    layers: list[Layer] = []
    for part in module.modules():
        weight = place.get(id(getattr(part, "weight", None)))
        if is_linear(part) and weight is not None and all(layer.weight != weight for layer in layers):
            bias = place.get(id(part.bias)) if part.bias is not None else None
            layers.append(Layer(part, weight, bias, transposed=not isinstance(part, nn.Linear)))
    covered = {index for layer in layers for index in (layer.weight, layer.bias)}
    left = [name for index, (name, _) in enumerate(chosen) if index not in covered]
    if left:
        raise ConfigError(
            f"EK-FAC knows linear layers alone; {len(left)} chosen weights are in none, such as {left[0]}. "
            "Narrow parameters to linear layers, or use method sgld."
        )
    return layers


class LayerBasis:
    """The axes of `layers` as one flat vector, layer after layer: a `Basis` of the sampler."""

    def __init__(self, layers: Sequence[Layer], parameters: Sequence[Tensor]) -> None:
        self.layers = list(layers)
        self.device = parameters[0].device
        self._shapes = [parameter.shape for parameter in parameters]
        self.sizes = [self._shape(layer) for layer in layers]
        self.size = sum(rows * columns for rows, columns in self.sizes)

    def to_flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """[D] from one tensor for each parameter."""
        return self.flatten([layer.to_axes(self._matrix(layer, tensors)) for layer in self.layers])

    def from_flat(self, flat: Tensor) -> list[Tensor]:
        """One tensor for each parameter from [D]."""
        found: list[Tensor] = [flat] * len(self._shapes)
        parts = flat.split([rows * columns for rows, columns in self.sizes])
        for layer, part, size in zip(self.layers, parts, self.sizes, strict=True):
            matrix = layer.from_axes(part.view(size))
            if layer.bias is not None:
                found[layer.bias], matrix = matrix[:, -1], matrix[:, :-1]
            found[layer.weight] = matrix.T if layer.transposed else matrix
        return found

    def precision(self, num_tempered: float, localization: float) -> Tensor:
        """nβΛ + γ [D]."""
        return num_tempered * self.curvature() + localization

    def curvature(self) -> Tensor:
        """Λ [D]. Raises RuntimeError before `fit`."""
        values = [layer.eigenvalues for layer in self.layers if layer.eigenvalues is not None]
        if len(values) != len(self.layers):
            raise RuntimeError("The factors are not fitted yet.")
        return self.flatten(values)

    @staticmethod
    def flatten(matrices: Sequence[Tensor]) -> Tensor:
        """[…, D] from one [..., O, I] for each layer."""
        return torch.cat([matrix.flatten(-2) for matrix in matrices], -1)

    def _shape(self, layer: Layer) -> tuple[int, int]:
        rows, columns = self._shapes[layer.weight]
        rows, columns = (columns, rows) if layer.transposed else (rows, columns)
        return rows, columns + (layer.bias is not None)

    @staticmethod
    def _matrix(layer: Layer, tensors: Sequence[Tensor]) -> Tensor:
        weight = tensors[layer.weight]
        weight = weight.T if layer.transposed else weight
        return weight if layer.bias is None else torch.cat([weight, tensors[layer.bias][:, None]], 1)


class Recorder:
    """Inputs [B, T, I] and output gradients [B, T, O] of each layer's calls in one forward and backward pass. The first axis of
    what a layer reads is the example."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = list(layers)
        self._calls: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]

    @contextlib.contextmanager
    def recording(self) -> Generator[None]:
        """While this is open, passes are recorded."""
        hooks = [
            layer.module.register_forward_hook(self._hook(number))
            for number, layer in enumerate(self._layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def take(self, losses: Tensor, parameters: Sequence[nn.Parameter]) -> list[list[tuple[Tensor, Tensor]]]:
        """(inputs, output gradients) of every call of each layer since the last time, for Σ losses."""
        torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        calls, self._calls = self._calls, [[] for _ in self._layers]
        return calls

    def _hook(self, number: int):
        layer = self._layers[number]

        def forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            read = inputs[0].detach().float()
            read = read.reshape(len(read), -1, read.shape[-1])
            if layer.bias is not None:
                read = torch.cat([read, read.new_ones(*read.shape[:2], 1)], -1)

            def backward(gradient: Tensor) -> None:
                flat = gradient.detach().float()
                self._calls[number].append((read, flat.reshape(len(flat), -1, flat.shape[-1])))

            output.register_hook(backward)

        return forward


def fit(
    basis: LayerBasis,
    parameters: Sequence[nn.Parameter],
    train: Examples,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """Factors, axes and corrected eigenvalues of every layer, in two passes over the training examples."""
    recorder = Recorder(basis.layers)
    total = float(train.weights.sum())
    inputs: list[Tensor | None] = [None] * len(basis.layers)
    outputs: list[Tensor | None] = [None] * len(basis.layers)
    with recorder.recording():
        for batch in train.batches(batch_size):
            calls = recorder.take(train.sampled_losses(batch, generator), parameters)
            weights = train.weights[batch].sqrt()[:, None, None]
            for number, found in enumerate(calls):
                for read, gradient in found:
                    counted = (gradient != 0).any(-1, keepdim=True)  # nothing depends on padding
                    a, g = (weights * read * counted).flatten(0, 1), (weights * gradient).flatten(0, 1)
                    before_a, before_g = inputs[number], outputs[number]
                    inputs[number] = a.T @ a if before_a is None else before_a + a.T @ a
                    outputs[number] = g.T @ g if before_g is None else before_g + g.T @ g
    for layer, read, gradient in zip(basis.layers, inputs, outputs, strict=True):
        if read is None or gradient is None:
            raise ConfigError(
                "A chosen linear layer takes no part in the loss. Narrow parameters to those that do."
            )
        layer.input_axes, layer.output_axes = _axes(read), _axes(gradient)
    squares: list[Tensor] = [torch.zeros(())] * len(basis.layers)
    for batch, gradients in example_gradients(basis, parameters, train, batch_size, generator):
        weights = train.weights[batch][:, None, None]
        for number, gradient in enumerate(gradients):
            squares[number] = (weights * gradient.square()).sum(0) + squares[number].to(gradient.device)
    for layer, square in zip(basis.layers, squares, strict=True):
        layer.eigenvalues = square / total


def example_gradients(
    basis: LayerBasis,
    parameters: Sequence[nn.Parameter],
    examples: Examples,
    batch_size: int,
    generator: torch.Generator | None = None,
) -> Generator[tuple[list[int], list[Tensor]]]:
    """(indices, gradient of each example on the axes of each layer [B, O, I]), batch by batch; of sampled targets with a
    generator, of the true ones without."""
    recorder = Recorder(basis.layers)
    for batch in examples.batches(batch_size):
        with recorder.recording():  # closed before the caller has its turn, whose passes are not ours
            losses = (
                examples.losses(batch) if generator is None else examples.sampled_losses(batch, generator)
            )
            calls = recorder.take(losses, parameters)
        found: list[Tensor] = []
        for layer, parts in zip(basis.layers, calls, strict=True):
            matrices = [torch.einsum("bto,bti->boi", gradient, read) for read, gradient in parts]
            if not matrices:
                raise ConfigError("A chosen linear layer takes no part in the loss. Narrow parameters.")
            found.append(layer.to_axes(torch.stack(matrices).sum(0)))
        yield batch, found


def _axes(matrix: Tensor) -> Tensor:
    """Eigenvectors, in double precision: factors are nearly singular. Contiguous, as they are when read back: another layout is
    multiplied in another order."""
    return torch.linalg.eigh(matrix.double()).eigenvectors.to(matrix.dtype).contiguous()
