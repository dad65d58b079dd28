"""Checkpoints for influence, from Hugging Face's Trainer and from TRL's.

from postgrad.influence import CheckpointCallback

trainer = SFTTrainer(..., callbacks=[CheckpointCallback("checkpoints", count=5)])
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from postgrad.core.checkpoints import Checkpoints
from postgrad.core.errors import ConfigError, RunError
from postgrad.core.models.quiet import quiet_transformers
from postgrad.core.runfiles import pretty_json, read_object

RECORD_FILE = "influence.json"


class Record(NamedTuple):
    """What a checkpoint says of the training.

    Attributes:
        step: updates before it.
        num_steps: those since the checkpoint before it.
        learning_rate: of the last of them.
        mean_learning_rate: over them.
    """

    step: int
    num_steps: int
    learning_rate: float
    mean_learning_rate: float


class CheckpointCallback(TrainerCallback):
    """Keeps the weights at some steps of a training, as models that `pg.load` reads: `OUT/step_00000100`, complete or absent.

    For one process, or several that all hold the whole model; rank 0 writes. Of a model with adapters (peft) the adapter is kept.

    Args:
        out: where to; by default `influence` in the trainer's output directory.
        count: checkpoints, evenly spaced; the last one is at the end.
        steps: instead, after how many updates each is taken.

    Raises:
        ConfigError: neither a count above 0 nor steps above 0.
        RunError: `out` has checkpoints of another training; or it cannot be written.
    """

    def __init__(
        self, out: str | Path | None = None, count: int = 5, steps: Iterable[int] | None = None
    ) -> None:
        self._steps = None if steps is None else sorted(set(steps))
        if (count < 1) if self._steps is None else (not self._steps or self._steps[0] < 1):
            raise ConfigError(
                f"CheckpointCallback needs a count or steps above 0 (received count={count}, steps={self._steps})."
            )
        self._out, self._count = None if out is None else Path(out), count
        self._due: set[int] = set()
        self._rates: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Plans the steps. A training that is resumed goes on with the checkpoints that it has."""
        del control, kwargs
        self._rates = []
        self._due = set(self._steps or spaced(state.max_steps, self._count))
        if not state.is_world_process_zero:
            return
        checkpoints = self._checkpoints(args)
        checkpoints.root.mkdir(parents=True, exist_ok=True)
        checkpoints.clean()
        if state.global_step:
            checkpoints.discard_after(state.global_step)
        elif checkpoints.all():
            raise RunError(
                f"{checkpoints.root} has checkpoints of another training. Remove it, or give CheckpointCallback another one."
            )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes the learning rate that this update has."""
        del args, state, control
        if kwargs.get("optimizer") is not None:
            self._rates.append(float(kwargs["optimizer"].param_groups[0]["lr"]))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes a checkpoint where one is due."""
        del control
        if state.global_step in self._due:
            if state.is_world_process_zero:
                self._write(args, state.global_step, kwargs["model"], kwargs.get("processing_class"))
            self._rates = []

    def _write(self, args: TrainingArguments, step: int, model: torch.nn.Module, tokenizer: Any) -> None:
        checkpoints = self._checkpoints(args)
        before = max((number for number, _ in checkpoints.all() if number < step), default=0)
        rates = self._rates or [float(args.learning_rate)]
        record = Record(step, step - before, rates[-1], sum(rates) / len(rates))

        def write(folder: Path) -> None:
            with quiet_transformers():
                if hasattr(model, "save_pretrained"):
                    model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
                else:
                    from safetensors.torch import save_model

                    save_model(model, str(folder / "model.safetensors"))
                if hasattr(tokenizer, "save_pretrained"):
                    tokenizer.save_pretrained(folder)
            (folder / RECORD_FILE).write_bytes(pretty_json(record._asdict()))

        checkpoints.save(step, write)

    def _checkpoints(self, args: TrainingArguments) -> Checkpoints:
        return Checkpoints(self._out or Path(str(args.output_dir)) / "influence")


def spaced(num_steps: int, count: int) -> list[int]:
    """`count` steps, evenly, up to the last.

    >>> spaced(10, 4), spaced(2, 5)
    ([3, 5, 8, 10], [1, 2])
    """
    return sorted({-(-num_steps * part // count) for part in range(1, count + 1)} - {0})


def read_record(checkpoint: Path) -> Record | None:
    """What is known of a checkpoint; None of one that the callback did not write. Raises RunError if it is damaged."""
    path = checkpoint / RECORD_FILE
    if not path.is_file():
        return None
    try:
        return Record(**read_object(path))
    except TypeError:
        raise RunError(
            f"{path} is damaged: it is no record of CheckpointCallback. Remove it; weights are equal then."
        ) from None
