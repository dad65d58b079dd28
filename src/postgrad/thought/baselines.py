"""FastICA (Hyvärinen 1999): independent components by a fixed-point iteration, symmetric decorrelation, log cosh. The baseline
that knows neither agents nor sparsity.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from postgrad.core.errors import DataError


class IndependentComponents(NamedTuple):
    """Attributes:
    unmixing: W with sources = (states − mean)·Wᵀ [Z, H].
    mixing: the pseudo-inverse [H, Z].
    mean: [H].
    num_iterations: until it stopped.
    converged: False where it stopped at `max_iterations`.
    """

    unmixing: Tensor
    mixing: Tensor
    mean: Tensor
    num_iterations: int
    converged: bool

    def sources(self, states: Tensor) -> Tensor:
        """Of states [S, H]: [S, Z], variance 1 on the states it was fitted to."""
        return ((states.double() - self.mean) @ self.unmixing.T).to(states.dtype)


def fast_ica(
    states: Tensor,
    num_components: int,
    generator: torch.Generator | None = None,
    max_iterations: int = 500,
    tolerance: float = 1e-6,
) -> IndependentComponents:
    """W ← E[g(Wx)xᵀ] − diag(E[g′(Wx)])·W, then W ← (WWᵀ)^{−½}W, with g = tanh, on whitened states x.

    Args:
        states: [S, H]; computed in float64.
        num_components: Z, at most the rank of the states.
        generator: of the first W.
        tolerance: stops where every |w_new·w_old| is within this of 1.

    Raises:
        DataError: more components than the states have directions.
    """
    mean = states.double().mean(0)
    centred = states.double() - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    values, vectors = values.flip(0), vectors.flip(1)
    rank = int((values > values[0] * 1e-10).sum())
    if num_components > min(rank, len(states) - 1):
        raise DataError(
            f"{num_components} components were asked for, but {len(states)} states have {rank} directions."
        )
    whiten = (vectors[:, :num_components] / values[:num_components].sqrt()).T  # [Z, H]
    white = centred @ whiten.T
    rotation = _decorrelate(
        torch.randn(num_components, num_components, generator=generator, dtype=torch.float64).to(white.device)
    )
    done, converged = 0, False
    while done < max_iterations and not converged:
        done += 1
        value = torch.tanh(white @ rotation.T)  # [S, Z]
        slope = (1 - value.square()).mean(0)
        changed = _decorrelate(value.T @ white / len(white) - slope[:, None] * rotation)
        converged = bool(((changed * rotation).sum(1).abs() - 1).abs().max() < tolerance)
        rotation = changed
    unmixing = rotation @ whiten
    return IndependentComponents(unmixing, torch.linalg.pinv(unmixing), mean, done, converged)


def _decorrelate(matrix: Tensor) -> Tensor:
    """(WWᵀ)^{−½}W: the orthogonal matrix that is nearest to W."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right
