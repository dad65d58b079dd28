"""From config to tasks and verifiers."""

from __future__ import annotations

from postgrad.core.errors import ConfigError
from postgrad.core.protocols import Verifier
from postgrad.tasks.config import DataConfig, TaskConfig
from postgrad.tasks.files import FileTask
from postgrad.tasks.function import load_function
from postgrad.tasks.judge import check_judges
from postgrad.tasks.maths import MathVerifier
from postgrad.tasks.reasoning import ReasoningTask, ReasoningVerifier


def load_tasks(config: DataConfig) -> list[ReasoningTask | FileTask]:
    """The tasks of `config`, in order: a file if a path is given, else a reasoning-gym data set.

    Names, options and rewards are checked here; prompts are read or generated at `task.prompts()`.

    Raises:
        ConfigError: no task, or two of one name.
        DataError, TaskError, MissingExtraError: as the tasks raise them.
        ConfigError, ModelError: as `check_judges`.
    """
    if not config.tasks:
        raise ConfigError('No task. Name at least one, for example [[data.tasks]] with name = "chain_sum".')
    task_names = [task.name for task in config.tasks]
    for name in task_names:
        if task_names.count(name) > 1:
            raise ConfigError(
                f"Two tasks are called {name!r}; the name decides who judges a completion: make it unique."
            )
    check_judges(config.tasks)
    return [ReasoningTask(task) if task.path is None else FileTask(task) for task in config.tasks]


def make_verifier(config: TaskConfig) -> Verifier:
    """The verifier of a task, without reading its prompts (what a worker process needs).

    Raises:
        TaskError, ConfigError, MissingExtraError: as `load_tasks`.
    """
    if config.reward is not None:
        return load_function(config.reward)
    return ReasoningVerifier(config) if config.path is None else MathVerifier()
