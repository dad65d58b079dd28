"""Tasks from reasoning-gym: prompts without a download, each data set with its own verifier."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from postgrad.core.errors import ConfigError, TaskError, nearest
from postgrad.core.protocols import Verifier
from postgrad.core.types import Prompt
from postgrad.tasks.answer import extract_answer
from postgrad.tasks.config import TaskConfig
from postgrad.tasks.extras import require
from postgrad.tasks.function import load_function
from postgrad.tasks.split import prompt_id

_OURS = ("seed", "size")
"""Fields of every reasoning-gym config that are fields of TaskConfig."""

HASH_ORDERED = frozenset({"isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder"})
"""Data sets that iterate over Python sets of strings, so that their entries change from process to process
with the seed of Python's string hash (reasoning-gym 0.1.25: 12 entries of each
data set compared with default options; knight_swap, which is slow, was not)."""

_GENERATE_IN_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from postgrad.tasks.config import TaskConfig
from postgrad.tasks.reasoning import generate
config = TaskConfig.model_validate_json(sys.argv[2])
print(json.dumps(list(generate(config))))
"""


def names() -> list[str]:
    """The reasoning-gym data sets, sorted. Raises MissingExtraError."""
    return sorted(_registry())


def _registry() -> dict[str, tuple[type, type]]:
    """Name → (data set class, config class). `composite` is left out: tasks are mixed by `PromptStream`."""
    require("reasoning_gym", package="reasoning-gym", extra="envs", purpose="A reasoning-gym task")
    factory = require(
        "reasoning_gym.factory", package="reasoning-gym", extra="envs", purpose="A reasoning-gym task"
    )
    return {name: entry for name, entry in factory.DATASETS.items() if name != "composite"}


def source_name(config: TaskConfig) -> str:
    """Name of the reasoning-gym data set."""
    return config.dataset or config.name


def make_dataset(config: TaskConfig) -> Any:
    """The reasoning-gym data set that `config` describes (entries are generated when they are asked for).

    Raises:
        MissingExtraError: reasoning-gym is not installed (extra `envs`).
        TaskError: no data set of this name.
        ConfigError: an option that it does not have, or that it refuses.
    """
    registry = _registry()
    if source_name(config) not in registry:
        raise TaskError(
            f"No reasoning-gym data set {source_name(config)!r}. {nearest(source_name(config), registry)} "
            "For prompts from a file give its path as well (--data.tasks.path)."
        )
    dataset_class, config_class = registry[source_name(config)]
    valid = [field.name for field in dataclasses.fields(config_class) if field.name not in _OURS]
    for option in config.options:
        if option in _OURS:
            raise ConfigError(
                f"{option!r} is a field of the task itself: set {option}, not options.{option}."
            )
        if option not in valid:
            raise ConfigError(f"{source_name(config)} has no option {option!r}. {nearest(option, valid)}")
    try:
        return dataset_class(config_class(**config.options, seed=config.seed, size=config.size))
    except Exception as error:  # each config class checks in its own way, mostly by assert
        reason = str(error) or type(error).__name__
        raise ConfigError(
            f"{source_name(config)} refuses the options {config.options!r}: {reason}. Options: {', '.join(valid)}."
        ) from None


@contextlib.contextmanager
def _global_random_kept() -> Iterator[None]:
    """Leaves the global random generators as they were (some data sets draw from them, or seed them)."""
    ours, numpys = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)


def generate_entry(dataset: Any, index: int) -> dict[str, Any]:
    """Entry `index`, the same at every call: data sets that draw from the global generator get it seeded."""
    random.seed(f"{dataset.seed}/{index}")
    return dataset[index]


def generate(config: TaskConfig) -> Iterator[tuple[str, str | None, Any]]:
    """(question, answer, entry metadata or None) of each entry, in order.

    The metadata is None when it does not survive JSON (sets, arrays, tuples that the scorer tells from
    lists); the verifier then generates the entry again from its index.
    """
    dataset = make_dataset(config)
    with _global_random_kept():
        for index in range(config.size):
            entry = generate_entry(dataset, index)
            metadata = {key: value for key, value in entry["metadata"].items() if key != "difficulty"}
            yield entry["question"], entry["answer"], metadata if _survives_json(metadata) else None


def _survives_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _generate_in_child(config: TaskConfig) -> list[tuple[str, str | None, Any]]:
    """`generate` in a Python whose string hash has a fixed seed."""
    child = subprocess.run(
        [sys.executable, "-c", _GENERATE_IN_CHILD, json.dumps(sys.path), config.model_dump_json()],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        reason = child.stderr.strip().splitlines()[-1:] or ["no error output"]
        raise TaskError(f"Generating {source_name(config)} failed: {reason[0]}")
    return json.loads(child.stdout.splitlines()[-1])


class ReasoningTask:
    """A reasoning-gym data set as a Task.

    Each prompt has metadata `{"index": i, "entry": …}`: enough to score it in another process that has the
    same TaskConfig. Two entries that ask the same have the same id (`postgrad.tasks.split` drops the second).

    Args:
        config: name, options, size and seed of the data set; `reward` replaces its verifier.

    Raises:
        MissingExtraError, TaskError, ConfigError: see `make_dataset` and `load_function`.
    """

    def __init__(self, config: TaskConfig) -> None:
        make_dataset(config)
        self._config = config
        functions = [load_function(spec) for spec in config.functions]
        self._verifier = functions[0] if config.reward else ReasoningVerifier(config)
        self._prompts: tuple[Prompt, ...] | None = None

    @property
    def name(self) -> str:
        return self._config.name

    def prompts(self) -> Sequence[Prompt]:
        """All prompts, generated at the first call."""
        if self._prompts is None:
            rows = (
                _generate_in_child(self._config)
                if source_name(self._config) in HASH_ORDERED
                else generate(self._config)
            )
            self._prompts = tuple(self._prompt(index, *row) for index, row in enumerate(rows))
        return self._prompts

    def _prompt(self, index: int, question: str, answer: str | None, entry: Any) -> Prompt:
        return Prompt(
            id=prompt_id(self.name, Prompt(id="", text=question)),
            text=question,
            answer=answer,
            task=self.name,
            metadata={"index": index, "entry": entry},
        )

    def verifier(self) -> Verifier:
        return self._verifier

    def demonstrations(self, prompt: Prompt) -> Sequence[str]:
        """The reference answer, for supervised warm-start; nothing for data sets without one."""
        return [prompt.answer] if prompt.answer else []


class ReasoningVerifier:
    """The data set's own `score_answer` on the extracted answer.

    1.0 for a score of exactly 1.0, else 0.0: several scorers give partial credit to any answer that contains
    the right one (`17` for `7`). With `partial_credit` the score as it is.

    Some scorers raise on an answer of the wrong form (prime_factorization on anything but numbers). If the
    scorer accepts the reference answer, the given one was at fault, and the score is 0.0; otherwise the error
    is passed on (`VerifierPool` makes it a verdict with status `error`).

    Args:
        config: the task's config; the same as the prompts were generated with.
    """

    def __init__(self, config: TaskConfig) -> None:
        self._dataset = make_dataset(config)
        self._partial_credit = config.partial_credit
        self._entry_at = lru_cache(maxsize=256)(self._generate_entry)

    def __call__(self, prompt: Prompt, completion: str) -> float:
        entry = self._entry(prompt)
        try:
            score = self._dataset.score_answer(extract_answer(completion), entry)
        except Exception:
            if prompt.answer is None or self._dataset.score_answer(prompt.answer, entry) != 1.0:
                raise
            return 0.0
        return float(score) if self._partial_credit else float(score == 1.0)

    def _entry(self, prompt: Prompt) -> Mapping[str, Any]:
        metadata = prompt.metadata.get("entry")
        if metadata is not None:
            return {"question": prompt.text, "answer": prompt.answer, "metadata": metadata}
        entry = self._entry_at(prompt.metadata["index"])
        if entry["answer"] != prompt.answer:
            raise TaskError(f"Prompt {prompt.id} was generated with another config than its verifier has.")
        return entry

    def _generate_entry(self, index: int) -> dict[str, Any]:
        with _global_random_kept():
            return generate_entry(self._dataset, index)
