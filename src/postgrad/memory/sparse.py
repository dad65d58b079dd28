"""One edit by sparse memory finetuning: a few rows of the value tables learn a few texts (arXiv 2510.15103).

Every update reads the texts, sees which slots they access, chooses the rows that are about them (`ops.py`), and changes these
alone. All other weights are frozen, so nothing before the first memory is differentiated, and what enters its block
is computed once for all updates (`Prefix`). The whole edit is a patch; until `learn` returns nothing of the model has
changed for good: on any error the rows are put back.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from postgrad.core.errors import TrainingError
from postgrad.core.models import Model
from postgrad.core.models.memory import Accesses, MemoryLayer, Selection
from postgrad.core.models.memory.attach import find_blocks
from postgrad.core.models.memory.patch import Change, Patch, fingerprint, tables
from postgrad.core.models.memory.shard import gather_columns, norm_over_ranks, own_columns
from postgrad.memory import ops
from postgrad.memory.batches import TokenBatch
from postgrad.memory.config import LearnConfig
from postgrad.memory.profiling import Profile, require_memory


class Learned(NamedTuple):
    """patch: what changed; losses: mean nats per token before each update and after the last; rows: chosen per update."""

    patch: Patch
    losses: list[float]
    rows: list[int]


class SparseLearner:
    """Teaches a model's value tables, edit by edit.

    Args:
        model: with memory; its tables change in place. If they are sharded over ranks, all of them learn the same batches, and
            get the same patches of whole rows.
        profile: of the background.
        config: with `method = "sparse"`.
    """

    def __init__(self, model: Model, profile: Profile, config: LearnConfig) -> None:
        self.model, self.profile, self.config = model, profile, config
        self.layers = require_memory(model)
        self.names = {id(tensor): name for name, tensor in tables(model.module).items()}

    def learn(self, batch: TokenBatch, facts: Mapping[str, Any] | None = None) -> Learned:
        """One edit: `config.updates` updates on the batch.

        Raises:
            TrainingError: a loss or gradient is not finite; the model is as it was.
        """
        before: dict[str, tuple[Tensor, Tensor]] = {}
        losses: list[float] = []
        chosen: list[int] = []
        state = _State(self.config)
        try:
            with self._frozen(), Prefix(self.model, min(self._blocks())) as prefix:
                for _ in range(self.config.updates):
                    loss = self._update(batch, prefix, before, state, chosen)
                    losses.append(loss)
                with torch.no_grad():
                    losses.append(float(self._loss(batch, prefix)))
            if not math.isfinite(losses[-1]):
                raise TrainingError(
                    f"The loss is {losses[-1]} after the last update. Lower lr = {self.config.learning_rate:g}."
                )
        except BaseException:
            self._restore(before)
            raise
        return Learned(self._patch(before, facts or {}), losses, chosen)

    def _update(
        self,
        batch: TokenBatch,
        prefix: Prefix,
        before: dict[str, tuple[Tensor, Tensor]],
        state: _State,
        chosen: list[int],
    ) -> float:
        for name, layer in self.layers.items():
            layer.selection = Selection(self._chooser(name, layer, batch.counted))
        loss = self._loss(batch, prefix)
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"The loss is {float(loss.detach())}; nothing was learned. Lower lr = {self.config.learning_rate:g}."
            )
        loss.backward()
        selections = [(layer, cast("Selection", layer.selection)) for layer in self.layers.values()]
        gradients = [cast("Tensor", cast("Tensor", s.active).grad) for _, s in selections]
        norm = norm_over_ranks(selections[0][0].table.weight, torch.nn.utils.get_total_norm(gradients))
        if not bool(torch.isfinite(norm)):
            raise TrainingError(
                f"The gradient's norm is {float(norm)}; nothing was learned. Lower lr or max_grad_norm."
            )
        factor = min(1.0, self.config.max_grad_norm / (float(norm) + 1e-6))
        for (layer, selection), gradient in zip(selections, gradients, strict=True):
            rows = cast("Tensor", selection.rows)
            name = self.names[id(layer.table.weight)]
            values = own_columns(layer.table.weight.detach())
            _remember(before, name, rows, values)
            with torch.no_grad():
                values.index_add_(0, rows, state.step(name, rows, gradient * factor).to(values.dtype))
            layer.selection = None
        chosen.append(sum(len(cast("Tensor", selection.rows)) for _, selection in selections))
        return float(loss.detach())

    def _chooser(self, name: str, layer: MemoryLayer, counted: Tensor) -> Any:
        def choose(accesses: Accesses) -> Tensor:
            counts = ops.access_counts(accesses.slots, layer.config.num_slots, counted.flatten())
            if self.config.score == "all":
                return counts.nonzero().squeeze(-1)
            return ops.choose_rows(self._scores(name, counts), counts, self.config.budget)

        return choose

    def _scores(self, name: str, counts: Tensor) -> Tensor:
        profile = self.profile
        match self.config.score:
            case "tf_idf":
                return ops.tf_idf(counts, profile.batch_counts[name].to(counts.device), profile.num_batches)
            case "kl":
                return ops.kl_score(counts, profile.counts[name].to(counts.device).float())
            case _:
                return ops.term_frequency(counts)

    def _loss(self, batch: TokenBatch, prefix: Prefix) -> Tensor:
        return prefix.run(batch).loss

    def _blocks(self) -> tuple[int, ...]:
        return next(iter(self.layers.values())).config.layers

    @contextmanager
    def _frozen(self) -> Generator[None]:
        """No parameter wants a gradient; the selected rows are leaves of their own."""
        wanted = [p for p in self.model.module.parameters() if p.requires_grad]
        training = self.model.module.training
        self.model.module.requires_grad_(False)
        self.model.module.eval()
        try:
            yield
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)
            self.model.module.train(training)
            for layer in self.layers.values():
                layer.selection = None

    def _restore(self, before: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        own = tables(self.model.module)
        with torch.no_grad():
            for name, (rows, values) in before.items():
                own_columns(own[name].detach())[rows] = values

    def _patch(self, before: Mapping[str, tuple[Tensor, Tensor]], facts: Mapping[str, Any]) -> Patch:
        own = tables(self.model.module)
        changes: dict[str, Change] = {}
        for name, (rows, values) in before.items():
            order = rows.sort().indices
            rows, table = rows[order], own[name].detach()
            old, new = (gather_columns(table, part) for part in (values[order], own_columns(table)[rows]))
            changes[name] = Change(rows.cpu(), old.cpu(), new.cpu())
        return Patch(changes, fingerprint(self.model.module), facts)


def _remember(before: dict[str, tuple[Tensor, Tensor]], name: str, rows: Tensor, table: Tensor) -> None:
    """Keeps the values of rows that change for the first time in this edit."""
    if name not in before:
        before[name] = (rows.clone(), table[rows])
        return
    known, values = before[name]
    fresh = rows[~torch.isin(rows, known)]
    before[name] = (torch.cat([known, fresh]), torch.cat([values, table[fresh]]))


class _State:
    """The optimizer of one edit: SGD, or AdamW without decay whose moments exist for the rows that were ever chosen."""

    def __init__(self, config: LearnConfig) -> None:
        self.config = config
        self._rows: dict[str, dict[int, int]] = {}
        self._moments: dict[str, list[Tensor]] = {}

    def step(self, name: str, rows: Tensor, gradient: Tensor) -> Tensor:
        """What is added to the rows [R, D]."""
        if self.config.optimizer_name == "sgd":
            return -self.config.learning_rate * gradient
        known = self._rows.setdefault(name, {})
        place = torch.tensor(
            [known.setdefault(row, len(known)) for row in rows.tolist()], device=gradient.device
        )
        width = gradient.shape[1]
        empty = [gradient.new_zeros(0, width, dtype=torch.float32) for _ in range(2)] + [
            gradient.new_zeros(0, 1)
        ]
        moments = self._moments.setdefault(name, empty)
        for index, moment in enumerate(moments):
            missing = len(known) - len(moment)
            moments[index] = torch.cat([moment, moment.new_zeros(missing, moment.shape[1])])
        first, second, count = moments
        count[place] += 1
        first[place] = 0.9 * first[place] + 0.1 * gradient.float()
        second[place] = 0.999 * second[place] + 0.001 * gradient.float().square()
        mean = first[place] / (1 - 0.9 ** count[place])
        variance = second[place] / (1 - 0.999 ** count[place])
        return -self.config.learning_rate * mean / (variance.sqrt() + 1e-8)


class Prefix:
    """Runs a model again and again on the same batch, computing what comes before a block only once.

    The first run notes what enters the block; in later ones the blocks before it pass on what they are given, and the noted
    tensor takes its place. Exact while the weights before the block do not change.

    Args:
        model: in evaluation mode.
        block: the first one that may change.
    """

    def __init__(self, model: Model, block: int) -> None:
        self.model = model
        blocks = find_blocks(model.module)
        self.before, self.block = list(blocks)[:block], blocks[block]
        self._entered: Tensor | None = None
        self._tuples: list[bool] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Prefix:
        self._handles.append(self.block.register_forward_pre_hook(self._at_the_block, with_kwargs=True))
        for module in self.before:
            self._handles.append(module.register_forward_hook(self._note_kind))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._restore_blocks()
        self._entered = None

    def run(self, batch: TokenBatch) -> Any:
        """The model's output with the mean loss of the batch."""
        return self.model.module(
            input_ids=batch.tokens,
            attention_mask=batch.counted.long(),
            labels=batch.labels,
            use_cache=False,
        )

    def _note_kind(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self._entered is None:
            self._tuples.append(isinstance(output, tuple))

    def _at_the_block(
        self, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = not inputs
        hidden = cast("Tensor", options["hidden_states"] if named else inputs[0])
        if self._entered is None:
            self._entered = hidden.detach()
            self._skip_blocks()
        if named:
            return inputs, {**options, "hidden_states": self._entered}
        return (self._entered, *inputs[1:]), options

    def _skip_blocks(self) -> None:
        for module, as_tuple in zip(self.before, self._tuples, strict=True):

            def passing(hidden_states: Tensor, *_: Any, _tuple: bool = as_tuple, **__: Any) -> Any:
                return (hidden_states,) if _tuple else hidden_states

            cast("dict[str, Any]", module.__dict__)["forward"] = passing

    def _restore_blocks(self) -> None:
        for module in self.before:
            cast("dict[str, Any]", module.__dict__).pop("forward", None)
