"""Groups as rows without padding: each prompt once, followed by all its completions, in one attention mask.

A completion token sees its group's prompt and the earlier tokens of its own completion, at the positions that it had in
generation. So the prompt is computed once per group instead of G times, and no padding is computed at all. A completion's
last token is only a target, never an input.

Shapes: L tokens in a row, T completion tokens that count for the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from postgrad.core.models.head import VOCABULARY_CHUNK, captured_hidden, chosen_logps, has_plain_logits
from postgrad.core.models.masks import additive_mask, attention_layout
from postgrad.core.models.model import Model
from postgrad.core.types import Sample


class Row(NamedTuple):
    """One forward pass.

    Attributes:
        token, position: int64 [L].
        segment: int64 [L]; equal for the tokens of one completion; prompts have their own.
        prompt: int64 [L]; the segment of the prompt that a token sees besides its own segment.
        source: int64 [T]; index in the row of the token whose logits predict the target.
        target: int64 [T]; the completion token.
        place: int64 [T]; index of the target among all loss tokens of the batch.
    """

    token: Tensor
    position: Tensor
    segment: Tensor
    prompt: Tensor
    source: Tensor
    target: Tensor
    place: Tensor


def loss_tokens(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """(sample index, behaviour log-prob) of every token that counts for the loss, samples in order; [T] each."""
    index = np.concatenate([np.full(int(s.loss_mask.sum()), i) for i, s in enumerate(samples)])
    behaviour_logp = np.concatenate([s.behaviour_logp[s.loss_mask] for s in samples])
    return torch.as_tensor(index), torch.as_tensor(behaviour_logp.astype(np.float32))


def rows(samples: Sequence[Sample], max_tokens: int) -> Iterator[Row]:
    """Packs samples into rows of at most `max_tokens` (a single longer sample gets a row of its own).

    Samples of a group should follow one another: within a row they share their prompt.
    """
    starts = np.cumsum([0] + [int(s.loss_mask.sum()) for s in samples])
    row: list[int] = []
    used = 0
    prompts: set[int] = set()
    for index, sample in enumerate(samples):
        cost = sample.num_tokens - 1 + (0 if sample.group_id in prompts else len(sample.prompt_tokens))
        if row and used + cost > max_tokens:
            yield _row([samples[i] for i in row], [int(starts[i]) for i in row])
            row, used = [], 0
            prompts = set()
            cost = sample.num_tokens - 1 + len(sample.prompt_tokens)
        row.append(index)
        used += cost
        prompts.add(sample.group_id)
    if row:
        yield _row([samples[i] for i in row], [int(starts[i]) for i in row])


def _row(samples: Sequence[Sample], starts: Sequence[int]) -> Row:
    token: list[np.ndarray] = []
    position: list[np.ndarray] = []
    segment: list[np.ndarray] = []
    prompt: list[np.ndarray] = []
    source: list[np.ndarray] = []
    target: list[np.ndarray] = []
    place: list[np.ndarray] = []
    where: dict[
        int, tuple[int, int]
    ] = {}  # group -> (segment of its prompt, index of the prompt's last token)
    length = count = 0

    def append(tokens: np.ndarray, first_position: int, prompt_segment: int) -> None:
        nonlocal length, count
        token.append(tokens)
        position.append(np.arange(first_position, first_position + len(tokens)))
        segment.append(np.full(len(tokens), count))
        prompt.append(np.full(len(tokens), prompt_segment))
        length += len(tokens)
        count += 1

    for sample, start in zip(samples, starts, strict=True):
        if sample.group_id not in where:
            where[sample.group_id] = (count, length + len(sample.prompt_tokens) - 1)
            append(sample.prompt_tokens, 0, count)
        prompt_segment, last = where[sample.group_id]
        begin = length
        append(sample.token_ids[:-1], len(sample.prompt_tokens), prompt_segment)
        sources = np.concatenate([[last], np.arange(begin, length)])
        source.append(sources[sample.loss_mask])
        target.append(sample.token_ids[sample.loss_mask])
        place.append(np.arange(start, start + int(sample.loss_mask.sum())))
    parts = (token, position, segment, prompt, source, target, place)
    return Row(*(torch.as_tensor(np.concatenate(part).astype(np.int64)) for part in parts))


class TokenStatistics(NamedTuple):
    """logp: float32 [T], differentiable. entropy: float32 [T], nats; differentiable only where that was asked for."""

    logp: Tensor
    entropy: Tensor


def row_logps(
    model: Model, row: Row, temperature: float = 1.0, *, entropy_gradient: bool = False
) -> TokenStatistics:
    """Log-probs of a row's targets under the model at `temperature`; logits are computed where they are needed only."""
    keep, inverse, target = _predictions(model, row)
    logits = _forward(model, row, keep)
    logps = (logits.float() / temperature).log_softmax(-1)
    known = logps if entropy_gradient else logps.detach()
    entropy = -(known.exp() * known).sum(-1)
    return TokenStatistics(logps[inverse, target], entropy[inverse])


@torch.no_grad()
def row_scores(model: Model, row: Row, temperature: float = 1.0) -> Tensor:
    """The log-probs of `row_logps`, float32 [T], without gradient: a large vocabulary is gone through in chunks."""
    module = model.module
    vocab_size = len(cast("Tensor", module.get_input_embeddings().weight))
    if vocab_size <= VOCABULARY_CHUNK or not has_plain_logits(module):
        return row_logps(model, row, temperature).logp
    keep, inverse, target = _predictions(model, row)
    with captured_hidden(module) as hidden:
        _forward(model, row, keep)
    return chosen_logps(module, hidden[0][0], inverse, target, temperature)


def _predictions(model: Model, row: Row) -> tuple[Tensor, Tensor, Tensor]:
    """(positions whose logits are needed [K], which of them predicts each target [T], the targets [T])."""
    unique = cast("Callable[..., tuple[Tensor, Tensor]]", torch.unique)  # pyright: ignore[reportUnknownMemberType]
    keep, inverse = unique(row.source.to(model.device), return_inverse=True)
    return keep, inverse, row.target.to(model.device)


def _forward(model: Model, row: Row, keep: Tensor) -> Tensor:
    """Logits [K, V] at the positions `keep`."""
    device = model.device
    token, position, segment, prompt = (
        part.to(device) for part in (row.token, row.position, row.segment, row.prompt)
    )
    distance = position[:, None] - position[None]
    own = segment[:, None] == segment[None]
    seen = (own & (distance >= 0)) | (segment[None] == prompt[:, None])
    seen &= distance >= 0
    mask = additive_mask(
        attention_layout(model.module.config),
        seen[None, None],
        distance[None, None],
        _activation_dtype(model),
    )
    return model.module(
        input_ids=token[None],
        position_ids=position[None],
        attention_mask=mask,
        use_cache=False,
        logits_to_keep=keep,
    ).logits[0]


def _activation_dtype(model: Model) -> torch.dtype:
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
