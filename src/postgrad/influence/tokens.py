"""Scores of tokens: which words of a query, and of a training example, carry the influence.

A sequence's loss is the sum of its tokens' losses, and a covariance is linear in each side: the score of token s of query j with
training example i is Cov(ℓ_i, ℓ_{j,s}), that of token s of example i with query j is Cov(ℓ_{i,s}, ℓ_j), and each adds up over
s to Cov(ℓ_i, ℓ_j). Both come from running cross moments, a block of draws at a time: draws × tokens × examples are never held.

Symbols: T tokens of all queries or of all training examples, one example after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from postgrad.influence.examples import Examples, Texts
from postgrad.influence.ops import Moments, covariance, merge_moments, moments

MAX_TOKEN_BYTES = 2 * 2**30
"""Above this token scores are left out."""
NO_TOKENS = "there are no token scores: these examples have no token_losses"
BLOCK_DRAWS = 16
_CONTEXT, _CHARACTER = 4, 4  # tokens
_COPIES = 4  # the moments, those of a block, and two of the same size while they are merged


class TokenExamples(Examples, Protocol):
    """Examples whose losses are sums over tokens.

    Attributes:
        num_tokens: how many tokens of each count.
    """

    num_tokens: list[int]

    def token_losses(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Losses of the counted tokens, one example after the other [T], and how many each has [B]."""
        ...


class TokenView(Protocol):
    """Scores of single tokens, which add up to those of sequences.

    Attributes:
        num_query, num_train: counted tokens of each query [Q] and training example [N].
        query_texts, train_texts: where the tokens stand, of texts; None of other examples.
        num_shown: how many at each end of a query's ranking have theirs; None = all examples have.
    """

    num_query: list[int]
    num_train: list[int]
    query_texts: Texts | None
    train_texts: Texts | None
    num_shown: int | None

    def has(self, query: int, example: int | None = None) -> bool:
        """Whether a query has its totals; with an example, whether that has its scores with the query."""
        ...

    def of_example(self, query: int, example: int) -> Tensor:
        """Scores of a training example's tokens with a query [T]; their sum is `scores[query, example]`."""
        ...

    def totals(self, query: int) -> Tensor:
        """Of a query's tokens with all training examples together [T], equal ones counted as often as they occur."""
        ...


class ByToken:
    """Examples that remember the losses of their tokens: after a pass over all of them `values` has them [T].

    Losses are summed in the order of tokens, as `Texts` does: they are the same bits.
    """

    def __init__(self, examples: TokenExamples) -> None:
        self.examples, self.weights = examples, examples.weights
        counts = examples.num_tokens
        self.num_tokens = list(counts)
        self._spans = [range(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]
        self.values = torch.full((sum(counts),), torch.nan, device=examples.weights.device)

    def __len__(self) -> int:
        return len(self.examples)

    def losses(self, indices: Sequence[int]) -> Tensor:
        """Their sums [B]; remembers the tokens'."""
        found, counts = self.examples.token_losses(indices)
        device = found.device
        places = torch.tensor([place for index in indices for place in self._spans[index]], device=device)
        self.values[places] = found.detach().float()
        owner = torch.repeat_interleave(torch.arange(len(indices), device=device), counts)
        return found.new_zeros(len(indices)).index_add(0, owner, found)

    def sampled_losses(self, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        """As of the examples."""
        return self.examples.sampled_losses(indices, generator)

    def batches(self, size: int) -> list[list[int]]:
        """As of the examples."""
        return self.examples.batches(size)


class TokenMoments:
    """Running moments of one chain: query tokens × training losses [T_q, N], and query losses × training tokens [Q, T_n], in
    double precision. Up to 16 draws wait to be merged together; `state_dict` has them too, so that a resumed chain rounds alike.

    Args:
        train, queries: whose tokens were passed over just before each `add`.
    """

    def __init__(self, train: ByToken, queries: ByToken) -> None:
        self._train, self._queries = train, queries
        self._waiting: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._found: list[Moments] = []

    def add(self, train: Tensor, query: Tensor) -> None:
        """One draw: training losses [N] and query losses [Q], with their tokens' where these are remembered."""
        row = (self._queries.values, train, query, self._train.values)
        self._waiting.append(tuple(part.double() for part in row))  # type: ignore[arg-type]
        if len(self._waiting) == BLOCK_DRAWS:
            self._found = self._merged()
            self._waiting.clear()

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Cov [T_q, N] and Cov [Q, T_n] over the draws so far; NaN of fewer than two."""
        by_query, by_train = self._merged()
        return covariance(by_query), covariance(by_train)

    def state_dict(self) -> dict[str, Tensor]:
        """Flat, all tensors."""
        state: dict[str, Tensor] = {}
        for number, found in enumerate(self._found):
            state |= {
                f"{number}.{name}": part for name, part in found._asdict().items() if name != "num_draws"
            }
            state[f"{number}.num_draws"] = torch.tensor(found.num_draws)
        for number, column in enumerate(zip(*self._waiting, strict=True)):
            state[f"waiting.{number}"] = torch.stack(column)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on where `state_dict` was taken."""
        self._found = [
            Moments(
                int(state[f"{n}.num_draws"]), *(state[f"{n}.{name}"] for name in ("left", "right", "cross"))
            )
            for n in range(2)
            if f"{n}.num_draws" in state
        ]
        columns = [state[f"waiting.{n}"] for n in range(4)] if "waiting.0" in state else []
        self._waiting = list(zip(*(column.unbind() for column in columns), strict=True))  # type: ignore[assignment]

    def _merged(self) -> list[Moments]:
        if not self._waiting:
            return self._found
        query_tokens, train, query, train_tokens = (
            torch.stack(part) for part in zip(*self._waiting, strict=True)
        )
        block = [moments(query_tokens, train), moments(query, train_tokens)]
        return (
            [merge_moments(*pair) for pair in zip(self._found, block, strict=True)] if self._found else block
        )


class Piece(NamedTuple):
    """A bit of text: a token, or the tokens of one character."""

    text: str
    num_tokens: int


@dataclass
class TokenScores:
    """Scores of tokens, +Cov as those of sequences, to which they add up: means over chains.

    Attributes:
        query: of each query token with each training example [T_q, N].
        train: of each training token with each query [Q, T_n].
        num_query, num_train: counted tokens of each query [Q] and training example [N].
        weights: how often each training example counts [N].
        query_texts, train_texts: where the tokens stand, of texts; None of other examples.
    """

    query: Tensor
    train: Tensor
    num_query: list[int]
    num_train: list[int]
    weights: Tensor
    query_texts: Texts | None = field(default=None, repr=False)
    train_texts: Texts | None = field(default=None, repr=False)
    num_shown: int | None = field(default=None, init=False)

    def has(self, query: int, example: int | None = None) -> bool:
        """Always."""
        del query, example
        return True

    def of_query(self, query: int, example: int) -> Tensor:
        """Scores of a query's tokens with a training example [T]; their sum is `scores[query, example]`."""
        end = sum(self.num_query[: query + 1])
        return self.query[end - self.num_query[query] : end, example]

    def of_example(self, query: int, example: int) -> Tensor:
        """Scores of a training example's tokens with a query [T]; their sum is `scores[query, example]`."""
        end = sum(self.num_train[: example + 1])
        return self.train[query, end - self.num_train[example] : end]

    def totals(self, query: int) -> Tensor:
        """Of a query's tokens with all training examples together [T], equal ones counted as often as they occur."""
        end = sum(self.num_query[: query + 1])
        return self.query[end - self.num_query[query] : end] @ self.weights


def by_token(train: Examples, queries: Examples, num_chains: int) -> tuple[ByToken, ByToken] | str:
    """Both sides with their tokens, or why there are no token scores."""
    sides: list[ByToken] = []
    for examples in (train, queries):
        if not hasattr(examples, "token_losses"):
            return NO_TOKENS
        sides.append(ByToken(examples))  # type: ignore[arg-type]
    size = moments_bytes(sides[0].num_tokens, sides[1].num_tokens, num_chains)
    if size > MAX_TOKEN_BYTES:
        return (
            f"token scores are left out: they would take {size / 2**30:.1f} GiB, and {MAX_TOKEN_BYTES / 2**30:.0f} is the limit. "
            "Explain fewer queries at a time, or fewer training examples."
        )
    return sides[0], sides[1]


def moments_bytes(num_train: Sequence[int], num_query: Sequence[int], num_chains: int = 1) -> int:
    """Of the moments of C chains at their peak: 8·(T_q·N + Q·T_n)·(C + 3), the last term while a block is merged.

    Args:
        num_train, num_query: counted tokens of each example.
        num_chains: C, whose moments are held together.

    >>> moments_bytes([2, 3], [4])  # 8·(4·2 + 1·5)·4
    416
    """
    pairs = sum(num_query) * len(num_train) + len(num_query) * sum(num_train)
    return 8 * pairs * (num_chains + _COPIES - 1)


def token_scores(per_chain: Sequence[TokenMoments], train: ByToken, queries: ByToken) -> TokenScores:
    """Means over chains, float32."""
    total: list[Tensor] = []
    for one in per_chain:
        parts = one.covariances()
        total = [a.add_(b) for a, b in zip(total, parts, strict=True)] if total else list(parts)
    by_query, by_train = ((part / len(per_chain)).float().cpu() for part in total)
    texts = [side.examples if isinstance(side.examples, Texts) else None for side in (queries, train)]
    counts = queries.num_tokens, train.num_tokens
    return TokenScores(by_query, by_train, *counts, train.weights.float().cpu(), *texts)


def pieces(tokenizer: Any, ids: Sequence[int], start: int) -> tuple[str, list[Piece]]:
    """What stands before the counted tokens, and these as text.

    Tokens that only together make a character become one piece. Spaces that a tokenizer drops at the beginning of a text are kept
    within it.

    Args:
        tokenizer: of the model.
        ids: of the whole text.
        start: the first that counts.
    """
    found: list[Piece] = []
    before, seen = max(0, start - _CONTEXT), start
    for end in range(start + 1, len(ids) + 1):
        head, whole = (_decode(tokenizer, ids[before:stop]) for stop in (seen, end))
        if whole.endswith("\ufffd") and end < len(ids) and end - seen < _CHARACTER:
            continue
        text = whole[len(head) :] if whole.startswith(head) else _decode(tokenizer, ids[seen:end])
        found.append(Piece(text, end - seen))
        before, seen = max(0, seen - _CONTEXT), end
    return _decode(tokenizer, ids[:start]), found


def piece_scores(parts: Sequence[Piece], scores: Tensor) -> list[float]:
    """Sums over the tokens of each piece.

    >>> piece_scores([Piece("a", 1), Piece("é", 2)], torch.tensor([1.0, 2.0, 4.0]))
    [1.0, 6.0]
    """
    return [float(part.sum()) for part in scores.split([part.num_tokens for part in parts])]


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
