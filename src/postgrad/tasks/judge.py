"""Who judges: verifiers in worker processes, reward models in this process, language models behind a server.

`make_judge` makes one `core.protocols.Judge` of all; each prompt goes to the judge of its task. Nothing here imports torch or
openai before a task asks for it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from postgrad.core.cluster import ClusterConfig, connect
from postgrad.core.errors import ConfigError, ModelError, TaskError, nearest
from postgrad.core.models.paths import locate, looks_local
from postgrad.core.protocols import Judge
from postgrad.core.types import Prompt, Verdict
from postgrad.tasks.config import DataConfig, JudgeConfig, RewardModelConfig, TaskConfig
from postgrad.tasks.extras import require
from postgrad.tasks.pool import VerifierPool

if TYPE_CHECKING:
    from postgrad.tasks.ray_judge import RayJudge


def check_judges(tasks: Sequence[TaskConfig]) -> None:
    """What can be said of reward models and judges without loading or asking them.

    Raises:
        ConfigError: an environment variable without a key, or a label that the reward model does not have.
        ModelError: a local reward model that is not there or not complete. (A hub name is looked up when it is loaded.)
        MissingExtraError: a judge without the package openai.
    """
    for task in tasks:
        for part in (task, *task.rewards):
            if part.reward_model is not None:
                try:
                    _check_reward_model(part.reward_model)
                except ModelError as error:
                    raise ModelError(f"The reward model of task {task.name!r}: {error}") from None
            if part.judge is not None:
                _check_judge(part.judge, task.name)


def _check_reward_model(config: RewardModelConfig) -> None:
    if not (Path(config.path).expanduser().exists() or looks_local(config.path)):
        return
    folder, _ = locate(config.path, config.revision, trust_remote_code=config.trust_remote_code)
    try:
        shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}/config.json cannot be read: {error}") from None
    names = shape.get("id2label") or {}
    reward_label(config, {int(index): str(name) for index, name in names.items()} or {0: "", 1: ""})


def reward_label(config: RewardModelConfig, names: dict[int, str]) -> int:
    """The output that is the reward.

    Args:
        config: says which, where there are several.
        names: index → name of the model's outputs.

    Raises:
        ConfigError: several outputs and no label, or one that is not there; names them.

    >>> reward_label(RewardModelConfig(path="rm"), {0: "LABEL_0"})
    0
    """
    if config.label is None and len(names) == 1:
        return 0
    if config.label is None or config.label not in names:
        shown = ", ".join(
            f"{index} ({name})" if name else f"{index}" for index, name in sorted(names.items())
        )
        received = "" if config.label is None else f" (received {config.label})"
        raise ConfigError(
            f"The reward model {config.path} has the outputs {shown}; say which is the reward with "
            f"reward_model.label{received}."
        )
    return config.label


def _check_judge(config: JudgeConfig, task: str) -> None:
    require("openai", package="openai", extra="llm", purpose=f"The judge of task {task!r}")
    api_key(config)


def api_key(config: JudgeConfig) -> str:
    """The key of a server; a placeholder for one that wants none.

    Raises:
        ConfigError: the environment variable is not set.
    """
    if config.api_key_env is None:
        return "none"
    key = os.environ.get(config.api_key_env, "")
    if not key:
        raise ConfigError(
            f"The judge's key is expected in the environment variable {config.api_key_env}, which is not set. "
            f"Set it (export {config.api_key_env}=…), or leave judge.api_key_env out for a server that wants no key."
        )
    return key


@contextlib.contextmanager
def make_judge(config: DataConfig, cluster: ClusterConfig | None = None) -> Iterator[Judge]:
    """The judge of all tasks of a config; reward models are loaded once, processes and connections end with the context.

    With a cluster verifiers are in actors of it.

    Raises:
        ConfigError, ModelError, TaskError, MissingExtraError: as `check_judges`, and when a reward model cannot be loaded.
    """
    check_judges(config.tasks)
    with contextlib.ExitStack() as stack:
        yield _judge_of(config, cluster, stack)


def _judge_of(config: DataConfig, cluster: ClusterConfig | None, stack: contextlib.ExitStack) -> Judge:
    single = [task.with_part(part) for task in config.tasks for part in task.rewards]
    single += [task for task in config.tasks if not task.rewards]
    pools = _make_pools([task for task in single if not task.judged], config, cluster, stack)
    made: dict[str, Judge] = {}

    def judge_of(task: TaskConfig) -> Judge:
        """Of a task with one reward; reward models and servers once each."""
        if not task.judged:
            return pools[task.model_dump_json()]
        key = task.model_dump_json(include={"reward_model", "judge"})
        if key not in made:
            made[key] = _make(task, stack)
        return made[key]

    judges: dict[str, Judge] = {}
    for task in config.tasks:
        if task.rewards:
            from postgrad.tasks.weighted import WeightedJudge

            parts = [(part, judge_of(task.with_part(part))) for part in task.rewards]
            judges[task.name] = WeightedJudge(parts)
        else:
            judges[task.name] = judge_of(task)
    if not judges:
        return stack.enter_context(_make_pool((), config, cluster))
    return next(iter(judges.values())) if len(set(map(id, judges.values()))) == 1 else _Router(judges)


def _make_pools(
    tasks: Sequence[TaskConfig],
    config: DataConfig,
    cluster: ClusterConfig | None,
    stack: contextlib.ExitStack,
) -> dict[str, Judge]:
    """The pool of each task with one verifier, by the task as JSON. A pool knows a task by its name: several of one name
    need several pools.
    """
    members: list[list[TaskConfig]] = []
    for task in tasks:
        free = [pool for pool in members if all(other.name != task.name for other in pool)]
        if free:
            free[0].append(task)
        else:
            members.append([task])
    pools: dict[str, Judge] = {}
    for pool in members:
        opened = stack.enter_context(_make_pool(pool, config, cluster))
        pools |= dict.fromkeys((task.model_dump_json() for task in pool), opened)
    return pools


def _make(task: TaskConfig, stack: contextlib.ExitStack) -> Judge:
    if task.reward_model is not None:
        from postgrad.tasks.reward_model import RewardModel

        return RewardModel(task.reward_model)
    from postgrad.tasks.chat_judge import ChatJudge

    assert task.judge is not None  # or it would not be judged
    return stack.enter_context(ChatJudge(task.judge))


def _make_pool(
    tasks: Sequence[TaskConfig], config: DataConfig, cluster: ClusterConfig | None
) -> VerifierPool | RayJudge:
    if cluster is None or cluster.address is None:
        return VerifierPool(tasks, config.verify_workers, config.verify_timeout_s)
    from postgrad.tasks.ray_judge import RayJudge

    return RayJudge(
        connect(cluster.address),
        cluster.address,
        tasks,
        cluster.verifiers,
        config.verify_workers,
        config.verify_timeout_s,
    )


class _Router:
    """Passes each prompt on to the judge of its task."""

    def __init__(self, judges: dict[str, Judge]) -> None:
        self._judges = judges
        self._tickets: dict[int, tuple[Judge, int]] = {}
        self._numbers = count()

    def submit(self, prompt: Prompt, completion: str) -> int:
        """As `Judge.submit`. Raises TaskError for a prompt of an unknown task."""
        if prompt.task not in self._judges:
            raise TaskError(f"No judge for task {prompt.task!r}. {nearest(prompt.task, self._judges)}")
        judge = self._judges[prompt.task]
        ticket = next(self._numbers)
        self._tickets[ticket] = judge, judge.submit(prompt, completion)
        return ticket

    def collect(self, tickets: Sequence[int]) -> list[Verdict]:
        """As `Judge.collect`: each judge is asked once for all of its tickets."""
        check_tickets(tickets, self._tickets)
        places: dict[int, list[int]] = {}
        found = [self._tickets.pop(ticket) for ticket in tickets]
        for place, (judge, _) in enumerate(found):
            places.setdefault(id(judge), []).append(place)
        verdicts: dict[int, Verdict] = {}
        for mine in places.values():
            judge = found[mine[0]][0]
            verdicts |= zip(mine, judge.collect([found[place][1] for place in mine]), strict=True)
        return [verdicts[place] for place in range(len(tickets))]


def check_tickets(tickets: Sequence[int], known: Mapping[int, object]) -> None:
    """Raises TaskError unless all tickets are there, each once."""
    unknown = [ticket for ticket in tickets if ticket not in known]
    if unknown or len(set(tickets)) < len(tickets):
        raise TaskError(f"Tickets are collected once (unknown here: {unknown[:5]}, {len(tickets)} in all).")


def after_thinking(completion: str) -> str:
    """What a reader sees: the text after the last `</think>`, without surrounding white space.

    >>> after_thinking("<think>Rhyme?</think>\\n\\nRoses are red. ")
    'Roses are red.'
    """
    return completion.rpartition("</think>")[2].strip()


def checked(score: float, source: str) -> Verdict:
    """A score as a verdict.

    >>> checked(math.inf, "the reward model").status
    'non_finite'
    """
    if not math.isfinite(score):
        return Verdict(None, "non_finite", f"{source} gave {score}")
    return Verdict(score)
