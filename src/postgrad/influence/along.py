"""Scores of tokens where the score is a derivative: those of a ranking's first and last examples, and of their query.

Without covariances the score of training example i on query j is v_jᵀ·E[∇ℓ_i] with v_j = P⁻¹·E[∇ℓ_j]: the derivative of the loss
ℓ_i along v_j. It is linear in the loss, so token t has v_jᵀ·E[∇ℓ_{i,t}], and over t they add up to the score. What all training
examples together do to token s of query j is the derivative of ℓ_{j,s} along P⁻¹·Σ_i w_i E[∇ℓ_i].

A layer with input a and output gradient g adds Σ gᵀV a over its positions to the derivative along V. A backward pass with weights
u on the tokens' losses gives g, linear in u: its derivative in u has all tokens at once, and neither a gradient of weights nor a
backward pass for each token is needed. It takes second derivatives of what stands above the layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from postgrad.influence import baselines
from postgrad.influence.baselines import Visits
from postgrad.influence.config import InfluenceConfig
from postgrad.influence.ekfac import LayerBasis
from postgrad.influence.examples import Examples, Texts
from postgrad.influence.layers import Layer
from postgrad.influence.result import Result
from postgrad.influence.tokens import MAX_TOKEN_BYTES, NO_TOKENS, TokenExamples

MAX_TOKENS = 30_000
"""Of training examples, that are scored: with many queries those of the first ones alone."""


class Origin(NamedTuple):
    """Where a chain's scores come from.

    Attributes:
        visits: to its draws.
        load: gives `total`, Σ w_i E[∇ℓ_i] [D], and `precision`, P [D], where it is not the identity.
    """

    visits: Visits
    load: Callable[[], Mapping[str, Tensor]]


@dataclass
class ShownTokens:
    """Scores of the tokens of some examples: a `TokenView`.

    Attributes:
        train: by (query, training example), [T].
        query: with all training examples together, by query, [T].
        num_query, num_train: counted tokens of each query [Q] and training example [N].
        num_shown: how many at each end of a ranking have theirs.
        query_texts, train_texts: where the tokens stand, of texts; None of other examples.
    """

    train: dict[tuple[int, int], Tensor]
    query: dict[int, Tensor]
    num_query: list[int]
    num_train: list[int]
    num_shown: int | None
    query_texts: Texts | None = field(default=None, repr=False)
    train_texts: Texts | None = field(default=None, repr=False)

    def has(self, query: int, example: int | None = None) -> bool:
        """Whether a query has its totals; with an example, whether that has its scores with the query."""
        return query in self.query if example is None else (query, example) in self.train

    def of_example(self, query: int, example: int) -> Tensor:
        """Scores of a training example's tokens with a query [T]; their sum is `scores[query, example]`."""
        return self.train[query, example]

    def totals(self, query: int) -> Tensor:
        """Of a query's tokens with all training examples together [T], equal ones counted as often as they occur."""
        return self.query[query]


class Along:
    """Makes token scores when the scores are known.

    Args:
        basis, parameters: of the borrowed module.
        train, queries: as given; without `token_losses` a note says that there are no token scores.
        held_bytes: what has to be held for them; above 2 GiB a note says so in their place.

    Attributes:
        wanted: whether there will be token scores.
    """

    def __init__(
        self,
        basis: LayerBasis,
        parameters: Sequence[nn.Parameter],
        train: Examples,
        queries: Examples,
        config: InfluenceConfig,
        held_bytes: int = 0,
    ) -> None:
        self._basis, self._parameters, self._config = basis, parameters, config
        self._train, self._queries = cast("TokenExamples", train), cast("TokenExamples", queries)
        self._note = ""
        if not all(hasattr(examples, "token_losses") for examples in (train, queries)):
            self._note = NO_TOKENS
        elif held_bytes > MAX_TOKEN_BYTES:
            self._note = (
                f"token scores are left out: {held_bytes / 2**30:.1f} GiB would have to be held, and "
                f"{MAX_TOKEN_BYTES / 2**30:.0f} is the limit. Give state, a directory, which then holds them."
            )
        self.wanted = config.tokens and not self._note

    def put(self, result: Result, origins: Sequence[Origin]) -> None:
        """Gives the result token scores, the mean over `origins`, and notes."""
        if not self.wanted:
            result.notes += [self._note] if self._config.tokens else []
            return
        train, queries, count = self._train, self._queries, self._config.token_examples
        chosen = choose(result, train.num_tokens, count)
        pairs = [(query, one) for query, ones in chosen.items() for one in ones]
        found = ShownTokens(
            {pair: torch.zeros(train.num_tokens[pair[1]]) for pair in pairs},
            {query: torch.zeros(queries.num_tokens[query]) for query in chosen},
            list(queries.num_tokens),
            list(train.num_tokens),
            count,
            *(side if isinstance(side, Texts) else None for side in (queries, train)),
        )
        for origin in origins:
            self._add(found, chosen, origin, len(origins))
        result.tokens = found
        if left := len(queries) - len(chosen):
            result.notes.append(
                f"token scores are those of the first {len(chosen)} queries: explain the other {left} by themselves"
            )

    def _add(
        self, found: ShownTokens, chosen: Mapping[int, list[int]], origin: Origin, num_origins: int
    ) -> None:
        """Adds a chain's part. Directions are held as many as take a gigabyte."""
        basis, layers, size = self._basis, self._basis.layers, self._config.batch_size
        kept = {name: part.to(basis.device) for name, part in origin.load().items()}
        precision = kept.get("precision")
        together = [basis.matrices(kept["total"] if precision is None else kept["total"] / precision)]
        most = max(1, min(size, baselines.GRADIENT_FLOATS // (2 * basis.size)))
        for batch in (list(chosen)[start : start + most] for start in range(0, len(chosen), most)):
            held, num_visits = baselines.directions(
                basis, self._parameters, self._queries, [batch], precision, origin.visits
            )
            directions = [basis.matrices(row) for row in held]
            del held
            share = 1 / (num_visits * num_origins)
            pairs = [(place, one) for place, query in enumerate(batch) for one in chosen[query]]
            for _ in origin.visits():
                for start in range(0, len(pairs), size):
                    some = pairs[start : start + size]
                    parts = token_derivatives(layers, self._train, some, directions)
                    for (place, one), part in zip(some, parts, strict=True):
                        found.train[batch[place], one] += share * part.cpu()
                parts = token_derivatives(layers, self._queries, [(0, query) for query in batch], together)
                for query, part in zip(batch, parts, strict=True):
                    found.query[query] += share * part.cpu()


def choose(result: Result, num_tokens: Sequence[int], count: int) -> dict[int, list[int]]:
    """`count` training examples at both ends of each query's ranking, for as many queries as `MAX_TOKENS` allows.

    Args:
        num_tokens: of each training example.
    """
    chosen: dict[int, list[int]] = {}
    budget = MAX_TOKENS
    for query in range(len(result.scores)):
        ends = result.proponents(query, count, anyway=True), result.opponents(query, count, anyway=True)
        examples = list(dict.fromkeys(one.number for end in ends for one in end))
        budget -= sum(num_tokens[one] for one in examples)
        if chosen and budget < 0:
            break
        chosen[query] = examples
    return chosen


def token_derivatives(
    layers: Sequence[Layer],
    examples: TokenExamples,
    pairs: Sequence[tuple[int, int]],
    directions: Sequence[Sequence[Tensor]],
) -> list[Tensor]:
    """Derivatives of the losses of an example's tokens along a direction, at the module's weights: [T] for each pair.

    Args:
        layers: whose weights move.
        pairs: (number of a direction, index of an example), examples of one pass.
        directions: of each, a matrix [O, I] for every layer.
    """
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        with _watching(layers) as calls:
            losses, counts = examples.token_losses([index for _, index in pairs])
        weights = torch.ones_like(losses, requires_grad=True)
        written = torch.autograd.grad(
            losses,
            [edge for _, _, edge in calls],
            weights,
            create_graph=True,
            allow_unused=True,
        )
        which = torch.tensor([direction for direction, _ in pairs])
        places = {
            number: (which == number).nonzero()[:, 0].to(losses.device) for number in which.unique().tolist()
        }
        along = losses.new_zeros(())
        for (number, read, _), gradient in zip(calls, written, strict=True):
            if gradient is None:
                continue
            layer, gradient = layers[number], layers[number].written(gradient)
            for direction, rows in places.items():
                moved = layer.moved(read[rows], directions[direction][number])
                along = along + (gradient[rows] * moved).sum()
        (found,) = torch.autograd.grad(along, weights)
    return list(found.split(counts.tolist()))


@contextlib.contextmanager
def _watching(layers: Sequence[Layer]) -> Generator[list[tuple[int, Tensor, GradientEdge]]]:
    """Collects, of every call of a layer, its number, what it reads [B, T, I], and what it writes as a place in the graph."""
    calls: list[tuple[int, Tensor, GradientEdge]] = []

    def hook(number: int) -> Any:
        def forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            read = layers[number].read(inputs[0].detach().float())
            calls.append((number, read, get_gradient_edge(output)))

        return forward

    hooks = [layer.module.register_forward_hook(hook(number)) for number, layer in enumerate(layers)]
    try:
        yield calls
    finally:
        for one in hooks:
            one.remove()
