"""The background: which slots ordinary text uses, counted once and kept with the model (paper, §3)."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from postgrad.core.errors import DataError, ModelError
from postgrad.core.models import Model
from postgrad.core.models.memory import Accesses, MemoryLayer, memory_layers
from postgrad.core.models.memory.patch import fingerprint
from postgrad.memory.batches import TokenBatch, encode_texts, in_batches, pad
from postgrad.memory.config import ProfileConfig
from postgrad.memory.ops import access_counts

PROFILE_FILE = Path("memory") / "profile.safetensors"


@dataclass
class Profile:
    """Of each layer by its name: how many background batches accessed a slot, and how often in all; int64 [N] each.

    Attributes:
        batch_counts, counts: by layer.
        num_batches: B.
        model: fingerprint of the model.
        tokenizer: of its vocabulary.
    """

    batch_counts: dict[str, Tensor]
    counts: dict[str, Tensor]
    num_batches: int
    model: str
    tokenizer: str

    @classmethod
    def empty(cls, model: Model) -> Profile:
        """Of no background: every slot is as good as any other."""
        layers = require_memory(model)
        zeros = {
            name: torch.zeros(layer.config.num_slots, dtype=torch.int64) for name, layer in layers.items()
        }
        counts = {k: v.clone() for k, v in zeros.items()}
        return cls(counts, zeros, 0, fingerprint(model.module), vocabulary_hash(model))

    def add(self, layer: str, counts: Tensor) -> None:
        """Takes up one batch's counts [N] of one layer."""
        self.batch_counts[layer] += counts > 0
        self.counts[layer] += counts

    def save(self, folder: Path) -> Path:
        """Writes it into a model directory, whole or not at all."""
        from safetensors.torch import save_file

        path = folder / PROFILE_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"batch_counts/{name}": tensor for name, tensor in self.batch_counts.items()}
        tensors |= {f"counts/{name}": tensor for name, tensor in self.counts.items()}
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        metadata = {"num_batches": str(self.num_batches), "model": self.model, "tokenizer": self.tokenizer}
        save_file(tensors, partial, metadata)
        partial.rename(path)
        return path

    @classmethod
    def load(cls, folder: Path, model: Model) -> Profile:
        """Of a model directory. Raises DataError if it has none, or one of another model."""
        from safetensors import safe_open

        path = find_profile(folder)
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata()
            parts: dict[str, dict[str, Tensor]] = {"batch_counts": {}, "counts": {}}
            for key in file.keys():  # noqa: SIM118
                part, _, name = key.partition("/")
                parts[part][name] = file.get_tensor(key)
        own = {"model": fingerprint(model.module), "tokenizer": vocabulary_hash(model)}
        other = [what for what, value in own.items() if metadata.get(what, value) != value]
        if other:
            raise DataError(
                f"The background profile in {folder} was made with another {other[0]}. Make it anew: "
                f"postgrad memory profile {folder} --background TEXTS"
            )
        return cls(parts["batch_counts"], parts["counts"], int(metadata["num_batches"]), **own)


def vocabulary_hash(model: Model) -> str:
    """Names the tokenizer by its tokens and their numbers: sixteen hex digits."""
    tokens = sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]


def find_profile(folder: Path) -> Path:
    """The file in a model directory. Raises DataError if there is none."""
    path = folder / PROFILE_FILE
    if not path.is_file():
        raise DataError(
            f"{folder} has no background profile. Make one: postgrad memory profile {folder} --background TEXTS"
        )
    return path


def require_memory(model: Model) -> dict[str, MemoryLayer]:
    """The model's memory layers by name. Raises ModelError if it has none."""
    layers = memory_layers(model.module)
    if not layers:
        raise ModelError(
            f"{model.source or 'The model'} has no memory layers. Give it some: postgrad memory attach MODEL --layers 1 --out DIR"
        )
    return layers


class Recording:
    """Within it every forward pass of a model leaves its accesses in `take()`."""

    def __init__(self, layers: Mapping[str, MemoryLayer]) -> None:
        self.layers = layers

    def __enter__(self) -> Recording:
        for layer in self.layers.values():
            layer.accesses = []
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self.layers.values():
            layer.accesses = None

    def take(self) -> dict[str, Accesses]:
        """What the last forward pass accessed, by layer."""
        found: dict[str, Accesses] = {}
        for name, layer in self.layers.items():
            assert layer.accesses is not None
            found[name] = layer.accesses[-1]
            layer.accesses.clear()
        return found


def profile(
    model: Model,
    texts: Sequence[str],
    config: ProfileConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Counts the accesses of up to `config.batches` batches of background text.

    Args:
        model: with memory.
        texts: documents; in an order drawn by the seed.
        config: sizes.
        progress: told (batches done, batches) after each.

    Raises:
        DataError: no text with at least two tokens.
        ModelError: the model has no memory.
    """
    config = config or ProfileConfig()
    layers = require_memory(model)
    found = Profile.empty(model)
    batches = list(_background(model, texts, config))
    if not batches:
        raise DataError("The background holds no text of two tokens or more.")
    with torch.no_grad(), Recording(layers) as recording:
        for index, batch in enumerate(batches):
            model.module(input_ids=batch.tokens, attention_mask=batch.counted.long(), use_cache=False)
            for name, accesses in recording.take().items():
                counted = batch.counted.flatten()
                found.add(name, access_counts(accesses.slots, layers[name].config.num_slots, counted).cpu())
            found.num_batches += 1
            if progress is not None:
                progress(index + 1, len(batches))
    return found


def _background(model: Model, texts: Sequence[str], config: ProfileConfig) -> Iterator[TokenBatch]:
    """Batches of similar length, so that little is padding; at most `config.batches` of them."""
    order = list(range(len(texts)))
    random.Random(config.seed).shuffle(order)
    rows: list[list[int]] = []
    wanted = config.batches * config.batch_tokens
    used = 0
    for index in order:
        pieces = encode_texts(model, [texts[index]], config.max_tokens, cut=True)
        rows += pieces
        used += sum(map(len, pieces))
        if used >= wanted:
            break
    batches = in_batches(rows, config.batch_tokens)
    for index, batch in enumerate(batches):
        if index == config.batches:
            return
        yield pad(model, batch)
