"""The doors between floors: what a room may ask of an engine, a task or another room without importing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from postgrad.core.types import Group, Prompt, Request, Sample, Verdict

if TYPE_CHECKING:
    import torch


class Engine(Protocol):
    """Generates. Weights may be swapped between any two steps; running sequences go on with their stale KV cache."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; they start as slots come free, in order."""
        ...

    def step(self) -> list[Sample]:
        """Advance every running sequence by one token; returns the samples that finished."""
        ...

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Copy in new weights (names of the model's `state_dict`); later tokens carry `version`."""
        ...

    def snapshot(self) -> list[Request]:
        """Take every queued and running request out of the engine, with the tokens generated so far.

        Submitting them again continues each one; its KV cache is then rebuilt under the current weights.
        """
        ...


class Verifier(Protocol):
    """Judges one completion text. Runs in a worker process, so it must be picklable or built from a picklable spec."""

    def __call__(self, prompt: Prompt, completion: str) -> float: ...


class Task(Protocol):
    """Prompts and the verifier that judges their completions."""

    @property
    def name(self) -> str: ...

    def prompts(self) -> Sequence[Prompt]:
        """All prompts of the task, each with `Prompt.task == name`; same order at every call."""
        ...

    def verifier(self) -> Verifier: ...


class Judge(Protocol):
    """Verdicts for many completions at once, in bounded time (see `tasks.pool`)."""

    def submit(self, prompt: Prompt, completion: str) -> int:
        """Start judging; returns a ticket."""
        ...

    def collect(self, tickets: Sequence[int]) -> list[Verdict]:
        """Wait for these tickets, in order."""
        ...


class RewardTransform(Protocol):
    """Re-rewards a group before advantages are computed (mara is one)."""

    def __call__(self, group: Group) -> Group: ...


class Forecaster(Protocol):
    """Tells from the metrics so far where a run will end (scaling has one)."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], str]:
        """(metrics to log, one line for the console), from all rows of metrics.jsonl and the one about to be written."""
        ...


class Logger(Protocol):
    """The only way a loop writes: see `core.run.Run`."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None: ...

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None: ...
