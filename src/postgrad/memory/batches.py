"""Texts as padded batches of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from postgrad.core.errors import DataError
from postgrad.core.models import Model

_IGNORE = -100


class TokenBatch(NamedTuple):
    """tokens int64 [B, T], padded on the right; counted bool [B, T], False on padding."""

    tokens: Tensor
    counted: Tensor

    @property
    def labels(self) -> Tensor:
        """The tokens, −100 on padding."""
        return self.tokens.masked_fill(~self.counted, _IGNORE)


def encode_texts(model: Model, texts: Sequence[str], max_tokens: int, *, cut: bool) -> list[list[int]]:
    """Tokens of each text with the stop token behind; with `cut` longer ones become several pieces.

    Raises:
        DataError: a text is longer than `max_tokens` and `cut` is False, or than the model's context.
    """
    limit = min(max_tokens, model.context_length or max_tokens)
    stop = model.tokenizer.eos_token_id
    found: list[list[int]] = []
    for text in texts:
        ids = list(model.tokenizer(text, verbose=False)["input_ids"])
        if isinstance(stop, int) and (not ids or ids[-1] != stop):
            ids.append(stop)
        if len(ids) > limit and not cut:
            raise DataError(
                f"A text has {len(ids)} tokens, above max_tokens = {max_tokens}"
                + (f" or the model's context of {model.context_length}" if limit < max_tokens else "")
                + f": {text[:60]!r}. Raise --max-tokens, or shorten it."
            )
        found += [ids[i : i + limit] for i in range(0, len(ids), limit) if len(ids) - i > 1]
    return found


def pad(model: Model, rows: Sequence[Sequence[int]]) -> TokenBatch:
    """A batch on the model's device."""
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), model.pad_token_id, dtype=torch.int64)
    counted = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        counted[index, : len(row)] = True
    return TokenBatch(tokens.to(model.device), counted.to(model.device))


def in_batches(rows: Iterable[Sequence[int]], batch_tokens: int) -> Iterator[list[Sequence[int]]]:
    """Consecutive rows with at most `batch_tokens` tokens together; a longer row alone.

    >>> list(in_batches([[1, 2], [3], [4, 5, 6]], 3))
    [[[1, 2], [3]], [[4, 5, 6]]]
    """
    batch: list[Sequence[int]] = []
    used = 0
    for row in rows:
        if batch and used + len(row) > batch_tokens:
            yield batch
            batch, used = [], 0
        batch.append(row)
        used += len(row)
    if batch:
        yield batch
