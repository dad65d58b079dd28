"""The doors between floors: what a room may ask of an engine, a task or another room without importing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from postgrad.core.types import Group, Prompt, Request, Sample, Verdict

if TYPE_CHECKING:
    import torch

    from postgrad.core.models import Model


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


class Usage(NamedTuple):
    """What generators did.

    Attributes:
        busy_s, total_s: seconds of all of them together since the last call: at work, and in all.
        num_restarts: how many were replaced so far.
        num_reissued: requests that began anew for it so far.
    """

    busy_s: float
    total_s: float
    num_restarts: int
    num_reissued: int


class ConcurrentEngine(Engine, Protocol):
    """An engine that generates by itself, whatever its caller does: `step` waits for samples that finish.

    What finished before a `snapshot` is not in it; the next `arrived` or `step` gives it.
    """

    def arrived(self) -> list[Sample]:
        """Samples that finished, without waiting."""
        ...

    def usage(self) -> Usage:
        """Of its generators."""
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
    """Re-rewards the groups of a batch before advantages are computed (mara is one)."""

    @property
    def min_deviation(self) -> float:
        """Advantages are divided by no less than this: smaller differences of its rewards are noise."""
        ...

    def __call__(self, groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
        """(the groups with new rewards, metrics). Further samples may follow those of a group, with their weights."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, JSON-serialisable."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        ...


class TransformContext(NamedTuple):
    """What a reward transform is made from, when the policy is there.

    Attributes:
        options: its table of the recipe.
        model: the policy, trained in place.
        initial_weights: its parameters before training, by name, in host memory; also in a resumed run.
        temperature: samples are drawn, and their log-probs taken, at this temperature.
        pass_reward, fail_reward: reward of a sample that passes; of one with a score of 0.
        max_tokens: in one forward pass, as the trainer has it.
        seed: of the run.
    """

    options: Mapping[str, Any]
    model: Model
    initial_weights: Callable[[], Mapping[str, torch.Tensor]]
    temperature: float
    pass_reward: float
    fail_reward: float
    max_tokens: int
    seed: int


class Forecaster(Protocol):
    """Tells from the metrics so far where a run will end (scaling has one)."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], str]:
        """(metrics to log, one line for the console), from all rows of metrics.jsonl and the one about to be written."""
        ...


class Logger(Protocol):
    """The only way a loop writes: see `core.run.Run`."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None: ...

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None: ...
