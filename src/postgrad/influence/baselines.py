"""What one would do without draws: gradients by dot product or through EK-FAC, and BM25, which knows words alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from postgrad.influence.ekfac import LayerBasis, example_gradients
from postgrad.influence.examples import Examples

GRADIENT_FLOATS = 2**28


def gradient_scores(
    basis: LayerBasis,
    parameters: Sequence[nn.Parameter],
    train: Examples,
    queries: Examples,
    batch_size: int,
    precision: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """∇ℓ_jᵀ·P⁻¹·∇ℓ_i [Q, N], and that of each training example with itself [N]; positive = proponent.

    With P = nβΛ + γ it is what the covariance is to leading order.
    Queries' gradients are held, as many as take a gigabyte; training gradients are made for each such part and forgotten.

    Args:
        precision: P [D] on the axes of `basis`; None = the identity.
    """
    scores = torch.empty(len(queries), len(train), device=basis.device)
    own = torch.empty(len(train), device=basis.device)
    part = max(1, GRADIENT_FLOATS // basis.size)
    rows: list[tuple[list[int], Tensor]] = []

    def finish() -> None:
        held = torch.cat([row for _, row in rows])
        indices = [index for batch, _ in rows for index in batch]
        held = held if precision is None else held / precision
        for batch, gradients in example_gradients(basis, parameters, train, batch_size):
            columns = torch.tensor(batch, device=basis.device)
            flat = basis.flatten(gradients)
            scores[torch.tensor(indices, device=basis.device)[:, None], columns] = held @ flat.T
            own[columns] = (flat.square() if precision is None else flat.square() / precision).sum(1)
        rows.clear()

    for batch, gradients in example_gradients(basis, parameters, queries, min(batch_size, part)):
        rows.append((batch, basis.flatten(gradients)))
        if sum(len(done) for done, _ in rows) + batch_size > part:
            finish()
    if rows:
        finish()
    return scores, own


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
