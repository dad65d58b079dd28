"""What one would do without draws: gradients by dot product or through EK-FAC, and BM25, which knows words alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor, nn

from postgrad.influence.ekfac import LayerBasis, example_gradients
from postgrad.influence.examples import Examples

GRADIENT_FLOATS = 2**28
Visits = Callable[[], Generator[None]]
"""Puts the module's weights at each of the places that a mean is of, the same ones every time. Closed at once where a pass fails,
as it has weights to put back."""


class GradientScores(NamedTuple):
    """What `gradient_scores` finds.

    Attributes:
        scores: [Q, N]; positive = proponent.
        own: of each training example with itself [N].
        total: Σ w_i E[∇ℓ_i], of all training examples [D].
    """

    scores: Tensor
    own: Tensor
    total: Tensor


def here() -> Generator[None]:
    """One visit, of the weights as they are."""
    yield


def gradient_scores(
    basis: LayerBasis,
    parameters: Sequence[nn.Parameter],
    train: Examples,
    queries: Examples,
    batch_size: int,
    precision: Tensor | None = None,
    visits: Visits = here,
    *,
    with_own: bool = False,
    with_total: bool = False,
) -> GradientScores:
    """E[∇ℓ_j]ᵀ·P⁻¹·E[∇ℓ_i], and E[∇ℓ_iᵀ·P⁻¹·∇ℓ_i] of each training example with itself.

    With P = nβΛ + γ, at the weights themselves, it is what the covariance is to leading order. Queries' gradients are held, as
    many as take a gigabyte; training gradients are made for each such part and forgotten.

    Args:
        precision: P [D] on the axes of `basis`; None = the identity.
        visits: to the places that E is the mean of.
        with_own, with_total: whether `own` and `total` are wanted; else they are 0.
    """
    scores = torch.zeros(len(queries), len(train), device=basis.device)
    own = torch.zeros(len(train), device=basis.device)
    total = torch.zeros(basis.size if with_total else 0, device=basis.device)
    for number, batches in enumerate(query_parts(queries, batch_size, basis.size)):
        rows = torch.tensor([index for batch in batches for index in batch], device=basis.device)
        held, count = directions(basis, parameters, queries, batches, precision, visits)
        parts = basis.split(held)
        with closing(visits()) as places:
            for _ in places:
                for batch, gradients in example_gradients(basis, parameters, train, batch_size):
                    columns = torch.tensor(batch, device=basis.device)
                    products = [
                        part @ gradient.flatten(1).T for part, gradient in zip(parts, gradients, strict=True)
                    ]
                    scores[rows[:, None], columns] += torch.stack(products).sum(0) / count
                    if with_own and number == 0:
                        flat = basis.flatten(gradients)
                        squares = flat.square() if precision is None else flat.square() / precision
                        own[columns] += squares.sum(1) / count
                    if with_total and number == 0:
                        for part, gradient in zip(basis.split(total), gradients, strict=True):
                            part += train.weights[batch] @ gradient.flatten(1) / count
    return GradientScores(scores, own, total)


def directions(
    basis: LayerBasis,
    parameters: Sequence[nn.Parameter],
    queries: Examples,
    batches: Sequence[list[int]],
    precision: Tensor | None,
    visits: Visits,
) -> tuple[Tensor, int]:
    """P⁻¹·E[∇ℓ_j] of the queries in `batches`, one after the other [K, D], and the number of visits. A score is the derivative of
    a training loss along one of them."""
    held = torch.zeros(sum(map(len, batches)), basis.size, device=basis.device)
    count = 0
    with closing(visits()) as places:
        for _ in places:
            count, start = count + 1, 0
            for batch, gradients in example_gradients(basis, parameters, queries, 1, batches=batches):
                held[start : start + len(batch)] += basis.flatten(gradients)
                start += len(batch)
    held /= count if precision is None else count * precision
    return held, count


def query_parts(queries: Examples, batch_size: int, num_weights: int) -> list[list[list[int]]]:
    """Batches of queries in as few parts as may be, so that the gradients of a part take at most a gigabyte."""
    most = max(1, GRADIENT_FLOATS // num_weights)
    parts: list[list[list[int]]] = []
    held = most
    for batch in queries.batches(min(batch_size, most)):
        if held + len(batch) > most:
            parts.append([])
            held = 0
        parts[-1].append(batch)
        held += len(batch)
    return parts


def bm25(
    train: Sequence[Sequence[int]], queries: Sequence[Sequence[int]], *, k1: float = 1.2, b: float = 0.75
) -> Tensor:
    """BM25 of token ids [Q, N] (Robertson & Zaragoza 2009; idf = log(1 + (N − n + ½)/(n + ½))). Blind to what was learned.

    >>> bm25([[1, 2], [3, 4]], [[1]])[0].tolist()[1]  # no token in common
    0.0
    """
    counts = [Counter(tokens) for tokens in train]
    containing = Counter(token for count in counts for token in count)
    mean = sum(map(len, train)) / len(train)
    scores = torch.zeros(len(queries), len(train))
    for row, tokens in enumerate(queries):
        for token in set(tokens):
            present = containing[token]
            idf = math.log(1 + (len(train) - present + 0.5) / (present + 0.5))
            for column, count in enumerate(counts):
                if token in count:
                    long = 1 - b + b * len(train[column]) / mean
                    scores[row, column] += idf * count[token] * (k1 + 1) / (count[token] + k1 * long)
    return scores
