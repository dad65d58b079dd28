"""What users would otherwise do: full finetuning, LoRA, replay of background text, elastic weight consolidation.

Each learns the same texts with the same number of updates as sparse memory finetuning, with AdamW (or SGD) without decay, whose
state lives from edit to edit. They change the model for good: there is no patch to take back.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from postgrad.core.errors import TrainingError
from postgrad.core.models import LoraConfig, Model
from postgrad.core.models.lora import add_lora
from postgrad.core.models.memory.shard import refuse_sharded
from postgrad.memory.batches import TokenBatch, encode_texts, pad
from postgrad.memory.config import LearnConfig

FISHER_TEXTS = 256
"""Background texts behind the Fisher information of `ewc`."""


class Rival:
    """Learns by changing weights everywhere.

    Args:
        model: changes in place; of method lora its module becomes a peft model.
        config: with the method.
        background: texts for replay and ewc.

    Raises:
        MissingExtraError: peft is not installed.
        ModelError: the model's memory is sharded over ranks.
        ValueError: replay or ewc without background.
    """

    def __init__(self, model: Model, config: LearnConfig, background: Sequence[str] = ()) -> None:
        refuse_sharded(model.module, f"Method {config.method}")
        self.model, self.config = model, config
        self.background = encode_texts(model, background, config.max_tokens, cut=True)
        if config.method in ("replay", "ewc") and not self.background:
            raise ValueError(f"method {config.method!r} needs background texts")
        self.random = random.Random(config.seed)
        if config.method == "lora":
            adapter = LoraConfig(rank=config.lora_rank, alpha=2.0 * config.lora_rank)
            model.module = add_lora(model.module, adapter, config.seed)
        else:
            model.module.requires_grad_(True)
        model.module.eval()  # no dropout, as sparse finetuning has none
        self.parameters = [p for p in model.module.parameters() if p.requires_grad]
        kind = torch.optim.SGD if config.optimizer_name == "sgd" else torch.optim.AdamW
        self.optimizer = kind(self.parameters, lr=config.learning_rate, weight_decay=0.0)
        self.fisher, self.anchor = self._fisher() if config.method == "ewc" else ([], [])

    def learn(self, batch: TokenBatch) -> list[float]:
        """One edit: `config.updates` updates; the mean loss of the batch before each and after the last, nats per token.

        Raises:
            TrainingError: a loss is not finite; the last update was not made.
        """
        losses: list[float] = []
        for _ in range(self.config.updates):
            loss = self._loss(batch)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise TrainingError(f"The loss is {losses[-1]}. Lower lr = {self.config.learning_rate:g}.")
            total = loss
            if self.config.method == "replay":
                share = self.config.replay_fraction
                total = (1 - share) * loss + share * self._loss(self._replayed(len(batch.tokens)))
            total.backward()
            self._pull_back()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            losses.append(float(self._loss(batch)))
        return losses

    def _loss(self, batch: TokenBatch) -> Tensor:
        return self.model.module(
            input_ids=batch.tokens,
            attention_mask=batch.counted.long(),
            labels=batch.labels,
            use_cache=False,
        ).loss

    def _replayed(self, count: int) -> TokenBatch:
        share = self.config.replay_fraction
        wanted = max(1, round(count * share / (1 - share)))
        return pad(self.model, self.random.choices(self.background, k=wanted))

    def _fisher(self) -> tuple[list[Tensor], list[Tensor]]:
        """Mean squared gradient of single background texts, and the weights of before (Kirkpatrick et al. 2017)."""
        fisher = [torch.zeros_like(p) for p in self.parameters]
        chosen = self.random.sample(self.background, min(FISHER_TEXTS, len(self.background)))
        for row in chosen:
            self._loss(pad(self.model, [row])).backward()
            for total, parameter in zip(fisher, self.parameters, strict=True):
                if parameter.grad is not None:
                    total += parameter.grad.square() / len(chosen)
                    parameter.grad = None
        return fisher, [p.detach().clone() for p in self.parameters]

    def _pull_back(self) -> None:
        """Adds the gradient of ½·strength·Σ F·(θ − θ*)² (ewc)."""
        for parameter, fisher, anchor in zip(self.parameters, self.fisher, self.anchor, strict=False):
            if parameter.grad is not None:
                parameter.grad += self.config.ewc_strength * fisher * (parameter.detach() - anchor)
