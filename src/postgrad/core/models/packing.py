"""Groups as trees of tokens: what several completions begin with is computed once.

A group is a tree: its prompt, then its completions, of which one that begins as another does branches off where they part. A
token sees the tokens before it on its own branch, prompt included, at the positions that they had in generation, so each
log-prob is that of the completion alone. Trees lie one after the other in lines of one length, some lines are one forward pass,
and next to nothing is padding. A completion's last token is only a target, never an input.

Shapes: N lines of L tokens, T completion tokens that count for the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from postgrad.core.models.head import (
    VOCABULARY_CHUNK,
    captured_hidden,
    chosen_logps,
    gathered_head,
    has_plain_logits,
)
from postgrad.core.models.masks import additive_mask, attention_layout
from postgrad.core.models.model import Model
from postgrad.core.types import Sample

_Ints = NDArray[np.int64]


class Row(NamedTuple):
    """One forward pass.

    Attributes:
        token, position: int64 [N, L]; 0 where a line is shorter.
        end: int64 [N, L]; token j of a line is seen by the tokens j … end − 1 of it.
        source: int64 [T]; index in the N·L tokens of the one whose logits predict the target.
        target: int64 [T]; the completion token.
        place: int64 [T]; index of the target among all loss tokens of the batch.
    """

    token: Tensor
    position: Tensor
    end: Tensor
    source: Tensor
    target: Tensor
    place: Tensor


def loss_tokens(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """(sample index, behaviour log-prob) of every token that counts for the loss, samples in order; [T] each."""
    index = np.concatenate([np.full(int(s.loss_mask.sum()), i) for i, s in enumerate(samples)])
    behaviour_logp = np.concatenate([s.behaviour_logp[s.loss_mask] for s in samples])
    return torch.as_tensor(index), torch.as_tensor(behaviour_logp.astype(np.float32))


def rows(samples: Sequence[Sample], max_tokens: int) -> Iterator[Row]:
    """Lays samples out as forward passes of at most `max_tokens`, padding included (a longer sample has one of its own).

    Samples with the same `group_id` share their prompt. No sample is split.
    """
    starts = np.cumsum([0] + [int(s.loss_mask.sum()) for s in samples])
    groups: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.group_id, []).append(index)
    trees: list[_Tree] = []
    for members in groups.values():
        tree = None
        for index in sorted(members, key=lambda index: samples[index].token_ids.astype(">u4").tobytes()):
            sample, start = samples[index], int(starts[index])
            if tree is None or len(tree) + tree.cost(sample) > max_tokens:
                tree = _Tree(sample.prompt_tokens)
                trees.append(tree)
            tree.add(sample, start)
    trees.sort(key=len, reverse=True)
    while trees:
        lines, trees = _fill(trees, max_tokens)
        yield _row(lines)


def _fill(trees: Sequence[_Tree], max_tokens: int) -> tuple[list[list[_Tree]], list[_Tree]]:
    """(lines of one forward pass, as long as the longest tree and filled first-fit; the trees that are left)."""
    width = len(trees[0])
    room = [width] * max(1, max_tokens // width)
    lines: list[list[_Tree]] = [[] for _ in room]
    left: list[_Tree] = []
    for tree in trees:
        number = next((number for number, free in enumerate(room) if free >= len(tree)), None)
        if number is None:
            left.append(tree)
        else:
            lines[number].append(tree)
            room[number] -= len(tree)
    return [line for line in lines if line], left


class _Tree:
    """The tree of one prompt, in the order of a walk through it. Completions come in lexicographic order."""

    def __init__(self, prompt: _Ints) -> None:
        self.prompt = prompt
        self._length = len(prompt)
        self._tokens, self._positions = [prompt], [np.arange(len(prompt))]
        self._ends: list[tuple[_Ints, int]] = []  # (nodes, end): where branches ended
        self._inputs = self._path = np.zeros(0, dtype=np.int64)  # of the last completion, and where they lie
        self.source: list[_Ints] = []
        self.target: list[_Ints] = []
        self.place: list[_Ints] = []

    def __len__(self) -> int:
        return self._length

    def _shared(self, inputs: _Ints) -> int:
        """How many tokens it has in common with the completion before."""
        both = min(len(inputs), len(self._inputs))
        differ = np.flatnonzero(inputs[:both] != self._inputs[:both])
        return int(differ[0]) if len(differ) else both

    def cost(self, sample: Sample) -> int:
        """Tokens by which a completion makes it longer."""
        inputs = sample.token_ids[:-1]
        return len(inputs) - self._shared(inputs)

    def add(self, sample: Sample, start: int) -> None:
        """Adds a completion, whose loss tokens are at start, start + 1, … of the batch."""
        inputs = sample.token_ids[:-1]
        shared = self._shared(inputs)
        self._ends.append((self._path[shared:], self._length))
        added = np.arange(self._length, self._length + len(inputs) - shared)
        self._tokens.append(inputs[shared:])
        self._positions.append(np.arange(shared, len(inputs)) + len(self.prompt))
        self._path, self._inputs = np.concatenate([self._path[:shared], added]), inputs
        self._length += len(added)
        sources = np.concatenate([[len(self.prompt) - 1], self._path])
        self.source.append(sources[sample.loss_mask])
        self.target.append(sample.token_ids[sample.loss_mask])
        self.place.append(np.arange(start, start + int(sample.loss_mask.sum())))

    def columns(self) -> tuple[_Ints, _Ints, _Ints]:
        """token, position, end; [L] each."""
        end = np.full(self._length, self._length)
        for nodes, at in self._ends:
            end[nodes] = at
        return np.concatenate(self._tokens), np.concatenate(self._positions), end


def _row(lines: Sequence[Sequence[_Tree]]) -> Row:
    width = max(sum(len(tree) for tree in line) for line in lines)
    table = np.zeros((3, len(lines), width), dtype=np.int64)
    table[2] = np.arange(1, width + 1)  # padding sees itself
    source: list[_Ints] = []
    for number, line in enumerate(lines):
        begin = 0
        for tree in line:
            token, position, end = tree.columns()
            table[:, number, begin : begin + len(tree)] = token, position, end + begin
            source += [part + number * width + begin for part in tree.source]
            begin += len(tree)
    target = [part for line in lines for tree in line for part in tree.target]
    place = [part for line in lines for tree in line for part in tree.place]
    flat = (torch.as_tensor(np.concatenate(part).astype(np.int64)) for part in (source, target, place))
    return Row(*torch.as_tensor(table), *flat)


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
        _run(model, row)
    return chosen_logps(module, hidden[0].flatten(0, 1)[keep], inverse, target, temperature)


def _predictions(model: Model, row: Row) -> tuple[Tensor, Tensor, Tensor]:
    """(positions whose logits are needed [K], which of them predicts each target [T], the targets [T])."""
    unique = cast("Callable[..., tuple[Tensor, Tensor]]", torch.unique)  # pyright: ignore[reportUnknownMemberType]
    keep, inverse = unique(row.source.to(model.device), return_inverse=True)
    return keep, inverse, row.target.to(model.device)


def _forward(model: Model, row: Row, keep: Tensor) -> Tensor:
    """Logits [K, V] of the tokens `keep` of all lines."""
    with gathered_head(model.module, keep) as gathered:
        logits = _run(model, row)
    return logits[0] if gathered else logits.flatten(0, 1)[keep]


def _run(model: Model, row: Row) -> Tensor:
    """The model's logits of all lines."""
    device = model.device
    token, position, end = (part.to(device) for part in (row.token, row.position, row.end))
    index = torch.arange(token.shape[1], device=device)
    seen = (index[None] <= index[:, None]) & (index[:, None] < end[:, None, :])  # [N, query, key]
    distance = position[:, :, None] - position[:, None, :]
    mask = additive_mask(
        attention_layout(model.module.config), seen[:, None], distance[:, None], _activation_dtype(model)
    )
    return model.module(input_ids=token, position_ids=position, attention_mask=mask, use_cache=False).logits


def _activation_dtype(model: Model) -> torch.dtype:
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
