"""Which prompts, which verifier, which split."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from postgrad.core.config import Config


class TaskConfig(Config):
    """One source of prompts. `name` is a reasoning-gym data set, or any label when `path` is given."""

    name: str
    """Name of a reasoning-gym data set (`chain_sum`, `gcd`, …), or a label of your own when `path` is given."""
    dataset: str | None = None
    """reasoning-gym data set, where it is not the name: so one data set can be in the mix twice, easy and hard."""
    path: str | None = None
    """JSONL, JSON, CSV or Parquet file, a directory saved by `datasets`, or a hub data set name with prompt and answer. Or
    a function that gives such rows, `module:function` or `file.py:function`, called with size, seed and `options`."""
    reward: str | None = None
    """`module:function` or `path/to/file.py:function`, called as reward(prompt, completion) -> float. Default: the data
    set's own verifier (reasoning-gym), or math-verify against the answer (files)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the reasoning-gym data set, such as {min_terms = 2, max_terms = 3}; for a hub data set also `name`,
    `revision`, `data_dir`, `data_files` of `datasets.load_dataset`."""
    size: int = Field(default=2000, ge=1)
    """How many prompts to generate (reasoning-gym) or read at most (files)."""
    weight: float = Field(default=1.0, gt=0)
    """Share of this task in the prompt stream, relative to the other tasks."""
    seed: int = 0
    """Seed of the reasoning-gym generator, or of the function in `path`."""
    partial_credit: bool = False
    """Use reasoning-gym's fractional scores. Off: 1 for a score of exactly 1.0, else 0 (its scorers give partial
    credit to substrings)."""
    prompt_column: str = "prompt"
    """Column that holds the prompt text or the chat messages."""
    answer_column: str = "answer"
    """Column that holds the reference answer."""
    split: str = "train"
    """Split of a `datasets` source."""


class DataConfig(Config):
    """Prompts, verifiers and the held-out split."""

    tasks: tuple[TaskConfig, ...] = ()
    """The sources, mixed by weight."""
    holdout_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts kept for evaluation, chosen by a hash of their content: never trained on, in any run. 0 = nothing is
    held out and evaluation draws on the training prompts, for sampling without a question: it has one prompt."""
    verify_workers: int = Field(default=1, ge=1)
    """Worker processes that run verifiers."""
    verify_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds one verdict may take before its worker is replaced and the sample is counted as a timeout."""
    instruction: str = ""
    """Text put before each prompt (a system message for chat models), for example to ask for <answer> tags."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        """A name, or a list with names in it, stands for tasks with default options."""
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            return value
        return tuple({"name": item.strip()} if isinstance(item, str) else item for item in items)
