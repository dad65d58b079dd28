"""Who says whether an answer is right: the verifier of its task, or an environment that tries it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from postgrad.core.protocols import Judge
from postgrad.core.types import Prompt
from postgrad.playbook.config import LearnConfig
from postgrad.playbook.study import Feedback, Score, read_feedback
from postgrad.tasks.function import load_callable
from postgrad.tasks.judge import make_judge

Environment = Callable[[Prompt, str], Any]


@contextlib.contextmanager
def make_score(config: LearnConfig) -> Iterator[Score]:
    """The judge of a config's answers; its processes and connections end with the context.

    Raises:
        ConfigError, ModelError, TaskError, MissingExtraError: as `tasks.make_judge` and `tasks.load_callable`.
    """
    if config.environment is not None:
        function = load_callable(config.environment, "Environment", "--environment my_tasks:judge")
        yield by_environment(function)
        return
    with make_judge(config.data) as judge, ThreadPoolExecutor(1, "postgrad-judge") as thread:
        yield by_judge(judge, thread)


def by_judge(judge: Judge, thread: ThreadPoolExecutor) -> Score:
    """Verdicts of a judge, which is asked from one thread; what it could not judge has no score and says why."""

    def ask(prompt: Prompt, answer: str) -> Feedback:
        (verdict,) = judge.collect([judge.submit(prompt, answer)])
        return Feedback(verdict.score, verdict.detail)

    async def score(prompt: Prompt, answer: str) -> Feedback:
        return await asyncio.get_running_loop().run_in_executor(thread, ask, prompt, answer)

    return score


def by_environment(function: Environment) -> Score:
    """An environment of the user's, in threads. An exception of its is feedback, and no score.

    Raises:
        TaskError: (when awaited) it gives neither a score, nor (score, feedback), nor a table with score.
    """

    async def score(prompt: Prompt, answer: str) -> Feedback:
        try:
            found = await asyncio.to_thread(function, prompt, answer)
        except Exception as error:
            return Feedback(None, f"{type(error).__name__}: {error}")
        return read_feedback(found)

    return score
