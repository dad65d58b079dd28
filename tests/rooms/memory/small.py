"""What the tests of memory share: texts, batches, options, a logger that keeps what it is told."""

from __future__ import annotations

from typing import Any

import torch

from postgrad.core.config import validate
from postgrad.core.models import Model
from postgrad.core.models.memory.patch import tables
from postgrad.memory.batches import TokenBatch, encode_texts, pad
from postgrad.memory.config import LearnConfig

PAIRS = [(f"What is {a} plus {b}?", str(a + b)) for a in range(6) for b in range(6)]
TEXTS = [f"{question}\n{answer}" for question, answer in PAIRS]
FACTS = ["The capital of Zorn is Plim.", "Zorn's capital city: Plim."]


def batch_of(model: Model, texts: list[str] = FACTS) -> TokenBatch:
    return pad(model, encode_texts(model, texts, 64, cut=False))


def values(model: Model) -> list[torch.Tensor]:
    return [table.detach().clone() for table in tables(model.module).values()]


def options(**changes: Any) -> LearnConfig:
    return validate(LearnConfig, {"budget": 16, "updates": 3, **changes})


class Rows:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def log(self, step: int, metrics: Any) -> None:
        self.rows.append((step, dict(metrics)))

    def log_samples(self, step: int, rows: Any) -> None: ...
