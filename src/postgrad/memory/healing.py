"""Training of fresh memory layers on ordinary text, so that they take part in the model before they are taught facts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import torch

from postgrad.core.errors import DataError, TrainingError
from postgrad.core.models import Model
from postgrad.core.models.memory.patch import tables
from postgrad.core.models.memory.shard import refuse_sharded
from postgrad.memory.batches import encode_texts, pad
from postgrad.memory.config import HealConfig
from postgrad.memory.profiling import require_memory


def heal(
    model: Model,
    texts: Sequence[str],
    config: HealConfig,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Next-token training in place; the loss of each update, nats per token.

    AdamW; value tables have a learning rate of their own (paper: 1e-3 against 1e-4), all rates rise over the first 5 % and fall
    to 0 along a cosine. The tables' gradients are dense here, as in the paper's pre-training.

    Args:
        model: with memory.
        texts: documents.
        config: how long, how fast, which weights.
        progress: told (update, updates, loss) after each.

    Raises:
        DataError: no text of two tokens.
        ModelError: the values are sharded over ranks.
        TrainingError: a loss is not finite.
    """
    layers = require_memory(model)
    rows = encode_texts(model, texts, config.max_tokens, cut=True)
    if not rows:
        raise DataError("There is no text of two tokens or more to train on.")
    refuse_sharded(model.module, "Training the memory on texts")
    values = {id(table) for table in tables(model.module).values()}
    inside = {id(p) for layer in layers.values() for p in layer.parameters()}
    model.module.requires_grad_(False)
    for parameter in model.module.parameters():
        if config.train == "all" or id(parameter) in inside:
            parameter.requires_grad_(True)
    trained = [p for p in model.module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in values], "lr": config.value_lr},
        {"params": [p for p in trained if id(p) not in values], "lr": config.lr},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, config.steps))
    generator = random.Random(config.seed)
    losses: list[float] = []
    for step in range(config.steps):
        batch = pad(model, generator.choices(rows, k=config.batch_size))
        loss = model.module(
            input_ids=batch.tokens,
            attention_mask=batch.counted.long(),
            labels=batch.labels,
            use_cache=False,
        ).loss
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"The loss of update {step + 1} is {losses[-1]}. Lower --lr and --value-lr.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if progress is not None:
            progress(step + 1, config.steps, losses[-1])
    model.module.requires_grad_(True)
    return losses


def _share(step: int, steps: int) -> float:
    """Of the peak rate.

    >>> _share(0, 100), _share(4, 100), round(_share(99, 100), 3)
    (0.2, 1.0, 0.0)
    """
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
