"""The live forecast for users of Hugging Face's Trainer and of TRL.

from postgrad.scaling import ForecastCallback

trainer = GRPOTrainer(..., callbacks=[ForecastCallback(y="eval_reward")])
"""

from __future__ import annotations

from typing import Any

from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from postgrad.core.config import validate
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.live import Forecaster


class ForecastCallback(TrainerCallback):
    """Prints the forecast, and adds `forecast/…` to what the trainer's own loggers write.

    Args:
        every: log events between two fits; evaluations always count.
        options: of `ScalingConfig`, such as `x="num_tokens"`, `y="eval_reward"` or `exclude_below=…`; by default the columns
            are found as in `postgrad scaling fit trainer_state.json`.

    Attributes:
        line: the latest forecast in words; empty before there is one.
        metrics: the latest `forecast/…` values.
    """

    def __init__(self, every: int = 10, **options: Any) -> None:
        self.every = every
        self.forecaster = Forecaster(validate(ScalingConfig, options), "this run")
        self.line = ""
        self.metrics: dict[str, float] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Fits again where it is time to, on the main process."""
        del args, control, kwargs
        evaluated = logs is not None and any(key.startswith("eval_") for key in logs)
        if not state.is_world_process_zero or not (evaluated or len(state.log_history) % self.every == 0):
            return
        self.metrics, line = self.forecaster(state.log_history)
        if line and line != self.line:
            print(line, flush=True)
        self.line = line
        if logs is not None:
            logs.update(self.metrics)
