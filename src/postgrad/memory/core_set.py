"""Which tokens read which slots: the core set of a fact, and what of a text reads the rows that a patch changed.

The paper calls the slots that all paraphrases of a fact access its core set (2510.15103): a choice of rows is good if it holds
much of it, and little else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from postgrad.core.models import Model
from postgrad.core.models.memory.patch import Patch, tables
from postgrad.memory.batches import encode_texts, pad
from postgrad.memory.profiling import Recording, require_memory


class Reading(NamedTuple):
    """How a text reads a memory.

    Attributes:
        tokens: words of the text as the tokenizer cuts them, T of them.
        slots: by layer name, int64 [T, M], heads and look-ups together.
        weights: by layer name, [T, M], softmax weights; those of a head sum to 1.
    """

    tokens: list[str]
    slots: dict[str, Tensor]
    weights: dict[str, Tensor]


@torch.no_grad()
def readings(model: Model, texts: Sequence[str], max_tokens: int = 512) -> list[Reading]:
    """What each text reads, one after the other.

    Raises:
        DataError: a text is longer than `max_tokens` or the context.
        ModelError: the model has no memory.
    """
    layers = require_memory(model)
    found: list[Reading] = []
    for text in texts:
        for row in encode_texts(model, [text], max_tokens, cut=False):
            batch = pad(model, [row])
            with Recording(layers) as recording:
                model.module(input_ids=batch.tokens, attention_mask=batch.counted.long(), use_cache=False)
                accesses = recording.take()
            words = [str(model.tokenizer.decode([token])) for token in row]
            slots = {name: access.slots.cpu() for name, access in accesses.items()}
            found.append(
                Reading(words, slots, {name: a.weights.float().cpu() for name, a in accesses.items()})
            )
    return found


def changed_rows(model: Model, patch: Patch) -> dict[str, Tensor]:
    """The rows that a patch changed, by the names of the layers that read them."""
    names = {id(table): name for name, table in tables(model.module).items()}
    found: dict[str, Tensor] = {}
    for name, layer in require_memory(model).items():
        change = patch.changes.get(names[id(layer.table.weight)])
        if change is not None:
            found[name] = change.rows
    return found


def share_of_rows(reading: Reading, rows: Mapping[str, Tensor]) -> list[float]:
    """Of each token, the share of its look-ups' weight that lies on the given rows, over all layers.

    >>> slots, weights = torch.tensor([[3, 5], [5, 7]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    >>> share_of_rows(Reading(["a", "b"], {"m": slots}, {"m": weights}), {"m": torch.tensor([5])})
    [0.75, 0.5]
    """
    hit = sum(
        (weights * torch.isin(reading.slots[name], rows.get(name, torch.tensor([], dtype=torch.int64)))).sum(
            -1
        )
        for name, weights in reading.weights.items()
    )
    total = sum(weights.sum(-1) for weights in reading.weights.values())
    return (torch.as_tensor(hit) / total).tolist()


def core_set(found: Sequence[Reading], name: str) -> Tensor:
    """The slots of layer `name` that every one of the texts reads, sorted.

    >>> texts = [Reading(["a"], {"m": torch.tensor([slots])}, {}) for slots in ([1, 2, 3], [3, 4, 2])]
    >>> core_set(texts, "m").tolist()
    [2, 3]
    """
    shared = found[0].slots[name].unique()
    for reading in found[1:]:
        shared = shared[torch.isin(shared, reading.slots[name])]
    return shared
