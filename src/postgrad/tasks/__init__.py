"""Tasks: prompts, and the verifiers that judge completions of them.

A task comes from a reasoning-gym data set (no download), or from a file or `datasets` source with a prompt
and an answer column; its verifier is the data set's own, math-verify, or a function of yours. Verifiers run
in worker processes with a time limit (`VerifierPool`); instead of one, a reward model or a language model
behind a server may judge (`make_judge` has whoever judges). A split by content keeps some prompts for evaluation,
the same ones in every run (`split`), and a stream mixes tasks by weight (`PromptStream`).

    config = DataConfig(tasks=(TaskConfig(name="chain_sum", size=200),))
    (task,) = load_tasks(config)
    train, held_out, _ = split(task.prompts(), config.holdout_fraction)
    with make_judge(config) as judge:
        ticket = judge.submit(train[0], "<answer>42</answer>")
        (verdict,) = judge.collect([ticket])

Start at `load.py` for tasks and at `judge.py` for verdicts. Importing this package imports neither torch nor
reasoning-gym.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from postgrad.tasks.split import Split, is_held_out, split  # at once: the function has the module's name

if TYPE_CHECKING:
    from postgrad.tasks.answer import extract_answer
    from postgrad.tasks.config import DataConfig, JudgeConfig, RewardModelConfig, RewardPart, TaskConfig
    from postgrad.tasks.files import FileTask
    from postgrad.tasks.judge import check_judges, make_judge
    from postgrad.tasks.load import load_tasks
    from postgrad.tasks.maths import MathVerifier
    from postgrad.tasks.mix import PromptStream, by_task
    from postgrad.tasks.pool import VerifierPool
    from postgrad.tasks.reasoning import ReasoningTask, names

__all__ = [
    "DataConfig",
    "FileTask",
    "JudgeConfig",
    "MathVerifier",
    "PromptStream",
    "ReasoningTask",
    "RewardModelConfig",
    "RewardPart",
    "Split",
    "TaskConfig",
    "VerifierPool",
    "by_task",
    "check_judges",
    "extract_answer",
    "is_held_out",
    "load_tasks",
    "make_judge",
    "names",
    "split",
]

_MODULES = {
    "DataConfig": "config",
    "FileTask": "files",
    "JudgeConfig": "config",
    "MathVerifier": "maths",
    "PromptStream": "mix",
    "ReasoningTask": "reasoning",
    "RewardModelConfig": "config",
    "RewardPart": "config",
    "TaskConfig": "config",
    "VerifierPool": "pool",
    "by_task": "mix",
    "check_judges": "judge",
    "extract_answer": "answer",
    "load_tasks": "load",
    "make_judge": "judge",
    "names": "reasoning",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"postgrad.tasks.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'postgrad.tasks' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
