"""Independent components of states, linear and without agents: FastICA (Hyvärinen 1999; a fixed-point iteration, symmetric
decorrelation, log cosh), which is the baseline, and `unfold`, FastICA without its bent duplicates, from which training starts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from postgrad.core.errors import DataError

EXACT_SIZE = 2048
"""Principal directions of more dimensions than this are found by subspace iteration, in float32."""
NUM_ANGLES = 12
NUM_BINS = 20
"""Of equal counts, in which one component's mean given another is taken."""
SURE_BEND, POSSIBLE_BEND = 0.5, 0.2
"""R² from which a pair is taken for one bent thought at once, or tried alone."""
NUM_TRIES, MAX_EXCHANGES = 4, 30
MIN_GAIN = 0.01
"""An exchange stays where it lowers the unexplained variance by this share."""
KNOTS = (-1.0, 0.0, 1.0)
"""Where a component's effect on the states may bend, in its deviations."""


class IndependentComponents(NamedTuple):
    """Attributes:
    unmixing: W with sources = (states − mean)·Wᵀ [Z, H].
    mixing: states ≈ mean + sources·mixingᵀ, by least squares [H, Z].
    mean: [H].
    num_iterations: until it stopped; of `unfold`, exchanges.
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


def principal_directions(
    centred: Tensor, count: int, generator: torch.Generator | None = None, exact_size: int = EXACT_SIZE
) -> tuple[Tensor, Tensor]:
    """(variances, directions [H, P]) of centred states [S, H], largest first, at most `count` and at most their rank.

    Exact up to `exact_size` dimensions; above it four rounds of subspace iteration (Halko, Martinsson & Tropp 2011), whose memory
    is that of [S + H, P + 32] and not of [H, H].
    """
    samples, width = centred.shape
    if width <= exact_size:
        values, vectors = torch.linalg.eigh(centred.T @ centred / samples)
    else:
        device = "cpu" if generator is None else generator.device
        size = min(count + 32, samples, width)
        basis = torch.randn(width, size, generator=generator, dtype=centred.dtype, device=device)
        basis = basis.to(centred.device)
        for _ in range(4):
            basis = torch.linalg.qr(centred.T @ (centred @ basis))[0]
        seen = centred @ basis
        values, vectors = torch.linalg.eigh(seen.T @ seen / samples)
        vectors = basis @ vectors
    values, vectors = values.flip(0), vectors.flip(1)
    smallest = 1e-10 if values.dtype == torch.float64 else 1e-7
    count = min(count, samples - 1, int((values > values[0] * smallest).sum()))
    return values[:count], vectors[:, :count]


def _centre(states: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, centred states), in float64 where it is affordable."""
    states = states.to(torch.float64 if states.shape[1] <= EXACT_SIZE else torch.float32)
    mean = states.mean(0)
    return mean, states - mean


def fast_ica(
    states: Tensor,
    num_components: int,
    generator: torch.Generator | None = None,
    max_iterations: int = 500,
    tolerance: float = 1e-6,
) -> IndependentComponents:
    """W ← E[g(Wx)xᵀ] − diag(E[g′(Wx)])·W, then W ← (WWᵀ)^{−½}W, with g = tanh, on whitened states x.

    Args:
        states: [S, H]; computed in float64 (wider than `EXACT_SIZE`: whitened in float32).
        num_components: Z, at most the rank of the states.
        generator: of the first W.
        tolerance: stops where every |w_new·w_old| is within this of 1.

    Raises:
        DataError: more components than the states have directions.
    """
    mean, centred = _centre(states)
    values, vectors = principal_directions(centred, num_components, generator)
    if num_components > len(values):
        raise DataError(
            f"{num_components} components were asked for, but {len(states)} states have {len(values)} directions."
        )
    scale = values.sqrt()
    white = (centred @ vectors / scale).double()
    rotation = torch.randn(num_components, num_components, generator=generator, dtype=torch.float64)
    rotation = _decorrelate(rotation.to(white.device))
    done, converged = 0, False
    while done < max_iterations and not converged:
        done += 1
        value = torch.tanh(white @ rotation.T)  # [S, Z]
        slope = (1 - value.square()).mean(0)
        changed = _decorrelate(value.T @ white / len(white) - slope[:, None] * rotation)
        converged = bool(((changed * rotation).sum(1).abs() - 1).abs().max() < tolerance)
        rotation = changed
    unmixing = rotation @ (vectors / scale).T.double()
    return IndependentComponents(
        unmixing, (vectors * scale).double() @ rotation.T, mean.double(), done, converged
    )


def _decorrelate(matrix: Tensor) -> Tensor:
    """(WWᵀ)^{−½}W: the orthogonal matrix that is nearest to W."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


# -- bent duplicates -------------------------------------------------------------------------------------------------


def unfold(
    states: Tensor, num_components: int, generator: torch.Generator | None = None
) -> IndependentComponents:
    """FastICA in which no thought takes two places.

    Where states bend in a thought z, they vary along z and along |z|, and FastICA prefers the sparser z⁺ and z⁻ to them: one
    thought takes two of Z places, and a weaker one has none. Such a pair shows itself: turned by some angle, one is a function of
    the other. That other stays; the freed place is given to the direction in which the states are least explained by what is left
    and its bends; FastICA turns all of them again. The exchange stays where the states are explained better than before.

    Args:
        states: [S, H], of which the 4Z largest principal directions are looked at.
        num_components: Z; fewer are given where the states have fewer directions.
    """
    mean, centred = _centre(states)
    values, vectors = principal_directions(centred, 4 * num_components, generator)
    seen = (centred @ vectors).double()
    count = min(num_components, len(values))
    unmixing = fast_ica(seen, count, generator).unmixing
    rest = float(_unexplained(seen, seen @ unmixing.T).trace())
    done, improved = 0, True
    while improved and done < MAX_EXCHANGES:
        improved = False
        for kept in _merged(seen @ unmixing.T):
            tried = _refill(seen, kept @ unmixing, count, generator)
            now = float(_unexplained(seen, seen @ tried.T).trace())
            if now < rest * (1 - MIN_GAIN):
                unmixing, rest, done, improved = tried, now, done + 1, True
                break
    sources = seen @ unmixing.T
    mixing = vectors.double() @ (seen.T @ sources / len(seen))
    return IndependentComponents(unmixing @ vectors.T.double(), mixing, mean.double(), done, not improved)


def bend(first: Tensor, second: Tensor) -> tuple[float, float]:
    """(R², θ): how well the second of two components [S], turned by θ, is a function of the first.

    The function is a mean in 20 bins; of independent components R² is about 20/S. Of twelve angles the one is taken around which
    R² is largest (mean of five), because a bent thought is a function of much that rises with it.

    >>> z = torch.linspace(-1, 1, 2001)
    >>> share, angle = bend(z.clamp(min=0), z.clamp(max=0))  # z⁺ + z⁻ = z, of which z⁺ − z⁻ = |z| is a function
    >>> round(share, 1), round(angle / math.pi, 2)
    (1.0, 0.25)
    """
    angles = torch.arange(NUM_ANGLES, dtype=first.dtype, device=first.device) * (math.pi / NUM_ANGLES)
    cosine, sine = angles.cos(), angles.sin()
    first, second = first[:, None], second[:, None]
    along, across = cosine * first + sine * second, cosine * second - sine * first  # [S, angles]
    across = across.gather(0, along.argsort(0))[: len(first) // NUM_BINS * NUM_BINS]
    means = across.view(NUM_BINS, -1, NUM_ANGLES).mean(1)
    share = means.var(0, correction=0) / across.var(0, correction=0)
    best = int(torch.stack([share.roll(turn) for turn in range(-2, 3)]).sum(0).argmax())
    return float(share[best]), float(angles[best])


def dependence(sources: Tensor, bins: int = 6) -> Tensor:
    """Mean-square contingency of every pair of components [Z, Z], from 6 bins of equal counts: about 25/S where independent."""
    samples, count = sources.shape
    place = sources.argsort(0).argsort(0) * bins // samples
    table = F.one_hot(place, bins).flatten(1).float()
    table = table.T @ table * (bins / samples)
    return table.view(count, bins, count, bins).square().sum((1, 3)) - 1


def _merged(sources: Tensor) -> list[Tensor]:
    """Matrices that take components [S, Z] to fewer [Y, Z]: all pairs that are surely one thought, and the likeliest alone."""
    samples, count = sources.shape
    if count < 2 or samples < NUM_BINS:
        return []
    pairs = dependence(sources).triu(1).flatten()
    found: list[tuple[float, float, int, int]] = []
    for index in pairs.topk(min(count, count * (count - 1) // 2)).indices.tolist():
        one, other = divmod(index, count)
        share, angle = bend(sources[:, one], sources[:, other])
        if share > POSSIBLE_BEND:
            found.append((share, angle, one, other))
    found.sort(reverse=True)
    sure = [pair for pair in found if pair[0] > SURE_BEND]
    groups = [sure] * (len(sure) > 1) + [[pair] for pair in found[:NUM_TRIES]]
    return [_without(group, count).to(sources) for group in groups]


def _without(pairs: list[tuple[float, float, int, int]], count: int) -> Tensor:
    """The identity [Y, Z] in which each pair, of those that are disjoint, has one row, cos θ·a + sin θ·b, in place of two."""
    rows = torch.eye(count, dtype=torch.float64)
    gone: set[int] = set()
    used: set[int] = set()
    for _, angle, one, other in pairs:
        if not used & {one, other}:
            used |= {one, other}
            gone.add(other)
            rows[one, one], rows[one, other] = math.cos(angle), math.sin(angle)
    return rows[[row for row in range(count) if row not in gone]]


def _unexplained(states: Tensor, sources: Tensor) -> Tensor:
    """Covariance [H, H] of what is left of the states by least squares on the sources and their bends, y and |y − knot|."""
    bends = torch.cat([sources, *((sources - knot).abs() for knot in KNOTS)], 1)
    bends = bends - bends.mean(0)
    gram = bends.T @ bends / len(states)
    gram.diagonal().add_(1e-5)
    cross = bends.T @ states / len(states)
    return states.T @ states / len(states) - cross.T @ torch.linalg.solve(gram, cross)


def _refill(states: Tensor, unmixing: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Adds the least explained directions, half of those that lack at a time, and turns all to independence [Z, H]."""
    while len(unmixing) < count:
        values, vectors = torch.linalg.eigh(_unexplained(states, states @ unmixing.T))
        more = max(1, (count - len(unmixing)) // 2)
        fresh = vectors[:, -more:] / values[-more:].clamp(min=1e-12).sqrt()
        unmixing = torch.cat([unmixing, fresh.T])
    return fast_ica(states @ unmixing.T, count, generator, 200).unmixing @ unmixing
