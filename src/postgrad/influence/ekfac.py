"""EK-FAC (arXiv 1806.03884) of the layers of `layers.py`: Kronecker factors, their eigenbasis, and eigenvalues corrected in it.

Of each layer the curvature of the mean loss is taken as U diag(Λ) Uᵀ with U = U_out ⊗ U_in: U_in are the eigenvectors of E[a aᵀ],
a the layer's input (with a 1 for the bias); U_out those of E[g gᵀ], g the gradient at its output; and Λ is the mean over examples
of the squared gradient on these axes. Gradients are of targets drawn from the model (true Fisher information). A norm has no such
factors: U is the identity, Λ the diagonal of its Fisher information.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence

import torch
from torch import Tensor, nn

from postgrad.core.errors import ConfigError
from postgrad.influence.examples import Examples
from postgrad.influence.layers import Layer


class LayerBasis:
    """The axes of `layers` as one flat vector, layer after layer: a `Basis` of the sampler."""

    def __init__(self, layers: Sequence[Layer], parameters: Sequence[Tensor]) -> None:
        self.layers = list(layers)
        self.device = parameters[0].device
        self._shapes = [parameter.shape for parameter in parameters]
        self.sizes = [tuple(self._matrix(layer, parameters).shape) for layer in layers]
        self.size = sum(rows * columns for rows, columns in self.sizes)

    def to_flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """[D] from one tensor for each parameter."""
        return self.flatten([layer.to_axes(self._matrix(layer, tensors)) for layer in self.layers])

    def from_flat(self, flat: Tensor) -> list[Tensor]:
        """One tensor for each parameter from [D]."""
        found: list[Tensor] = [flat] * len(self._shapes)
        for layer, matrix in zip(self.layers, self.matrices(flat), strict=True):
            if layer.bias is not None:
                found[layer.bias], matrix = matrix[:, -1], matrix[:, :-1]
            found[layer.weight] = layer.tensor(matrix, self._shapes[layer.weight])
        return found

    def matrices(self, flat: Tensor) -> list[Tensor]:
        """[O, I] for each layer, off the axes, from [D]."""
        return [
            layer.from_axes(part.view(size))
            for layer, part, size in zip(self.layers, self.split(flat), self.sizes, strict=True)
        ]

    def precision(self, num_tempered: float, localization: float) -> Tensor:
        """nβΛ + γ [D]."""
        return num_tempered * self.curvature() + localization

    def curvature(self) -> Tensor:
        """Λ [D]. Raises RuntimeError before `fit`."""
        values = [layer.eigenvalues for layer in self.layers if layer.eigenvalues is not None]
        if len(values) != len(self.layers):
            raise RuntimeError("The factors are not fitted yet.")
        return self.flatten(values)

    def split(self, flat: Tensor) -> Sequence[Tensor]:
        """Views […, O·I] of […, D], one for each layer."""
        return flat.split([rows * columns for rows, columns in self.sizes], -1)

    @staticmethod
    def flatten(matrices: Sequence[Tensor]) -> Tensor:
        """[…, D] from one [..., O, I] for each layer."""
        return torch.cat([matrix.flatten(-2) for matrix in matrices], -1)

    @staticmethod
    def _matrix(layer: Layer, tensors: Sequence[Tensor]) -> Tensor:
        weight = layer.matrix(tensors[layer.weight])
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
            read = layer.read(inputs[0].detach().float())

            def backward(gradient: Tensor) -> None:
                self._calls[number].append((read, layer.written(gradient.detach().float())))

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
                for read, gradient in found if basis.layers[number].factored else ():
                    counted = (gradient != 0).any(-1, keepdim=True)  # nothing depends on padding
                    a, g = (weights * read * counted).flatten(0, 1), (weights * gradient).flatten(0, 1)
                    before_a, before_g = inputs[number], outputs[number]
                    inputs[number] = a.T @ a if before_a is None else before_a + a.T @ a
                    outputs[number] = g.T @ g if before_g is None else before_g + g.T @ g
    for layer, read, gradient in zip(basis.layers, inputs, outputs, strict=True):
        if read is not None and gradient is not None:
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
    batches: Sequence[list[int]] | None = None,
) -> Generator[tuple[list[int], list[Tensor]]]:
    """(indices, gradient of each example on the axes of each layer [B, O, I]), batch by batch, of all examples or of some
    `batches`; of sampled targets with a generator, of the true ones without."""
    recorder = Recorder(basis.layers)
    for batch in examples.batches(batch_size) if batches is None else batches:
        with recorder.recording():  # closed before the caller has its turn, whose passes are not ours
            losses = (
                examples.losses(batch) if generator is None else examples.sampled_losses(batch, generator)
            )
            calls = recorder.take(losses, parameters)
        found: list[Tensor] = []
        for layer, parts in zip(basis.layers, calls, strict=True):
            matrices = [layer.gradient_on_axes(read, gradient) for read, gradient in parts]
            if not matrices:
                raise ConfigError(
                    f"A chosen {type(layer.module).__name__} takes no part in the loss. Narrow parameters to those that do."
                )
            found.append(matrices[0] if len(matrices) == 1 else torch.stack(matrices).sum(0))
        yield batch, found


def _axes(matrix: Tensor) -> Tensor:
    """Eigenvectors, in double precision: factors are nearly singular. Contiguous, as they are when read back: another layout is
    multiplied in another order."""
    return torch.linalg.eigh(matrix.double()).eigenvectors.to(matrix.dtype).contiguous()
