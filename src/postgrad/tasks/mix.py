"""Several tasks mixed by weight into one endless, reproducible stream of training prompts."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postgrad.core.errors import ConfigError, DataError, nearest
from postgrad.core.types import Prompt


def by_task(prompts: Iterable[Prompt]) -> dict[str, list[Prompt]]:
    """Prompts grouped by `Prompt.task`, in order of first appearance."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.task, []).append(prompt)
    return groups


def epoch_order(num_prompts: int, seed: int, task: str, epoch: int) -> list[int]:
    """The order of one pass over a task: a permutation that depends on the arguments alone.

    >>> epoch_order(4, seed=0, task="gcd", epoch=0) == epoch_order(4, seed=0, task="gcd", epoch=0)
    True
    """
    order = list(range(num_prompts))
    random.Random(f"{seed}/{task}/{epoch}").shuffle(order)
    return order


@dataclass
class _Cursor:
    """How far the stream has read one task. `credit`: draws it is owed, in [-1, number of tasks)."""

    epoch: int = 0
    position: int = 0
    credit: float = 0.0


class PromptStream:
    """Draws prompts from several tasks in proportion to their weights, each shuffled anew at every epoch.

    Tasks are chosen by smooth weighted round robin, without random numbers: at each draw every task with
    prompts left is credited its share, the largest credit is drawn and pays one. So after t draws a task of
    share w has had w·t draws to within max(1, tasks − 1), at every t, while
    no task runs out.

    `remove` takes a prompt out for good (no-positive-resampling). A task without prompts left passes its
    share to the others.

    Args:
        prompts_by_task: task name → its training prompts; ids are unique over all tasks.
        weights: task name → positive number.
        seed: fixes the order.

    Raises:
        ConfigError: a task without a weight, or one that is not positive.
        DataError: a task without prompts, or an id that occurs twice.
    """

    def __init__(
        self, prompts_by_task: Mapping[str, Sequence[Prompt]], weights: Mapping[str, float], seed: int
    ) -> None:
        self._prompts = {task: tuple(prompts) for task, prompts in prompts_by_task.items()}
        self._task_of: dict[str, str] = {}
        for task, prompts in self._prompts.items():
            if task not in weights or not weights[task] > 0:
                raise ConfigError(f"Task {task!r} needs a weight above 0 (received {weights.get(task)!r}).")
            if not prompts:
                raise DataError(
                    f"Task {task!r} has no training prompts. Raise its size, or leave the task out."
                )
            for prompt in prompts:
                if prompt.id in self._task_of:
                    raise DataError(
                        f"Prompt id {prompt.id!r} occurs twice; `postgrad.tasks.split` drops duplicates."
                    )
                self._task_of[prompt.id] = task
        if not self._prompts:
            raise DataError("A prompt stream needs at least one task.")
        self._weights = {task: float(weights[task]) for task in self._prompts}
        self._seed = seed
        self._cursors = {task: _Cursor() for task in self._prompts}
        self._removed: set[str] = set()
        self._num_left = {task: len(prompts) for task, prompts in self._prompts.items()}
        self._orders: dict[str, tuple[int, list[int]]] = {}

    @property
    def num_active(self) -> int:
        """Prompts that have not been removed, over all tasks."""
        return sum(self._num_left.values())

    @property
    def num_removed(self) -> int:
        """Prompts that have been removed, over all tasks."""
        return len(self._removed)

    def next(self) -> Prompt | None:
        """The next prompt, or None when all have been removed (the caller decides what that means)."""
        tasks = [task for task, num_left in self._num_left.items() if num_left]
        if not tasks:
            return None
        total = sum(self._weights[task] for task in tasks)
        for task in tasks:
            self._cursors[task].credit += self._weights[task] / total
        chosen = max(tasks, key=lambda task: self._cursors[task].credit)
        self._cursors[chosen].credit -= 1.0
        return self._next_of(chosen)

    def _next_of(self, task: str) -> Prompt:
        """The next prompt of `task` that was not removed; there is at least one."""
        cursor, prompts = self._cursors[task], self._prompts[task]
        while True:
            if cursor.position == len(prompts):
                cursor.epoch, cursor.position = cursor.epoch + 1, 0
            if self._orders.get(task, (-1, []))[0] != cursor.epoch:
                self._orders[task] = (cursor.epoch, epoch_order(len(prompts), self._seed, task, cursor.epoch))
            prompt = prompts[self._orders[task][1][cursor.position]]
            cursor.position += 1
            if prompt.id not in self._removed:
                return prompt

    def remove(self, prompt_id: str) -> None:
        """Never draw this prompt again; removing it twice is allowed. Raises DataError for an unknown id."""
        if prompt_id not in self._task_of:
            raise DataError(f"No prompt {prompt_id!r} in the stream. {nearest(prompt_id, self._task_of)}")
        if prompt_id not in self._removed:
            self._removed.add(prompt_id)
            self._num_left[self._task_of[prompt_id]] -= 1

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, in JSON values; `load_state_dict` goes on exactly from there."""
        return {
            "seed": self._seed,
            "fingerprint": self._fingerprint(),
            "cursors": {
                task: {"epoch": cursor.epoch, "position": cursor.position, "credit": cursor.credit}
                for task, cursor in self._cursors.items()
            },
            "removed": sorted(self._removed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            DataError: it was saved with other prompts, another order of them, or another seed.
        """
        if state["fingerprint"] != self._fingerprint() or state["seed"] != self._seed:
            raise DataError(
                "The prompts or the seed are not those of the checkpoint, so the stream cannot go on from "
                "there. Resume with the data and the seed of the run's config.json, or start a new run."
            )
        self._cursors = {task: _Cursor(**cursor) for task, cursor in state["cursors"].items()}
        self._removed = set(state["removed"])
        self._num_left = {
            task: sum(prompt.id not in self._removed for prompt in prompts)
            for task, prompts in self._prompts.items()
        }

    def _fingerprint(self) -> str:
        """A hash of the tasks and their prompt ids, in order."""
        digest = hashlib.blake2b(digest_size=8)
        for task, prompts in self._prompts.items():
            for name in (task, *(prompt.id for prompt in prompts)):
                digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()
