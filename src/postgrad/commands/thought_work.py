"""What the verbs of `postgrad thought` share: cases, whoever grades them, and the team of a run."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from postgrad.core.config import resolve, validate
from postgrad.core.errors import ConfigError, DataError, RunError
from postgrad.core.run import Run
from postgrad.core.types import Prompt
from postgrad.thought.cases import Case, Grader, grade_by, grade_exact, of_prompts, read_cases, split_cases
from postgrad.thought.config import PAPER, TeamConfig

if TYPE_CHECKING:
    from postgrad.thought.team import Team

KIND = "thought.fit"
TEAM = "team"


class Work(NamedTuple):
    """Cases of a config.

    Attributes:
        train: to learn from.
        held: to measure on.
        asked: of tasks, the prompt without instruction by the id of its case, for the verifier; else empty.
    """

    train: list[Case]
    held: list[Case]
    asked: dict[str, Prompt]


def resolve_config(
    recipe: Path | None, overrides: Mapping[str, Any], *, paper: bool, earlier: Run | None = None
) -> TeamConfig:
    """Recipe (or the config of a run that goes on), the paper's choices, dotted options.

    Cases that are not where the name says are looked for beside the recipe.
    """
    if earlier is not None:
        if overrides or paper:
            raise ConfigError(
                "--resume goes on with the config of the run: repeat its command, or give no options."
            )
        return validate(TeamConfig, earlier.config_dict())
    config = resolve(TeamConfig, recipe, {**(PAPER if paper else {}), **overrides})
    if not config.agents:
        raise ConfigError(
            "No agents. Give a recipe with at least two [[agents]], or --agents MODEL,MODEL (a directory, a run or a hub name)."
        )
    moved: dict[str, str] = {}
    for key in ("cases", "eval_cases"):
        name = getattr(config, key)
        if name and recipe and not Path(name).exists() and (recipe.parent / name).is_file():
            moved[key] = str(recipe.parent / name)
    return config.model_copy(update=moved) if moved else config


def read_work(config: TeamConfig) -> Work:
    """Cases to learn from and to measure on.

    Raises:
        ConfigError: neither `cases` nor tasks, or both.
        DataError: a file that cannot be read, or no case for one of the two.
    """
    if config.cases and config.data.tasks:
        raise ConfigError("cases and data.tasks are both given. Take one of them away.")
    if not config.cases and not config.data.tasks:
        raise ConfigError("Nothing to learn from. Give --cases FILE (JSONL), or name tasks in data.tasks.")
    work = _of_file(config) if config.cases else _of_tasks(config)
    if not work.train or not work.held:
        which = "to measure on" if work.train else "to learn from"
        raise DataError(
            f"No case is left {which}: {len(work.train) + len(work.held)} were split with data.holdout_fraction = "
            f"{config.data.holdout_fraction}. Give more cases, or --eval_cases FILE, or another fraction."
        )
    return work


def _of_file(config: TeamConfig) -> Work:
    cases = read_cases(str(config.cases), config.names)
    if config.eval_cases:
        return Work(cases, read_cases(config.eval_cases, config.names), {})
    return Work(*split_cases(cases, config.data.holdout_fraction), {})


def _of_tasks(config: TeamConfig) -> Work:
    from postgrad.tasks import load_tasks, split

    prompts = [prompt for task in load_tasks(config.data) for prompt in task.prompts()]
    train, held, _ = split(prompts, config.data.holdout_fraction)

    def cases(side: Sequence[Prompt]) -> list[Case]:
        return of_prompts(
            [_instructed(prompt, config.data.instruction) for prompt in side], len(config.agents)
        )

    return Work(cases(train), cases(held), {prompt.id: prompt for prompt in prompts})


def _instructed(prompt: Prompt, instruction: str) -> Prompt:
    """The prompt with an instruction before its first words.

    >>> _instructed(Prompt(id="1", text="1 + 1 ="), "Add.").text
    'Add.\\n\\n1 + 1 ='
    """
    if not instruction:
        return prompt
    if prompt.messages is None:
        return replace(prompt, text=f"{instruction}\n\n{prompt.text}")
    first, *others = prompt.messages
    return replace(
        prompt,
        messages=({"role": first["role"], "content": f"{instruction}\n\n{first['content']}"}, *others),
    )


@contextlib.contextmanager
def grading(config: TeamConfig, work: Work) -> Iterator[Grader]:
    """Whoever grades answers to these cases: the tasks' verifiers, or the same text."""
    if not work.asked:
        yield grade_exact
        return
    from postgrad.tasks import make_judge

    with make_judge(config.data) as judge:
        by_task = grade_by(judge)

        def grade(cases: Sequence[Case], answers: Sequence[str]) -> list[bool]:
            return by_task([replace(case, views=(work.asked[case.id],)) for case in cases], answers)

        yield grade


class Opened(NamedTuple):
    """A team that has learned.

    Attributes:
        folder: of its files.
        config: its own.
    """

    folder: Path
    config: TeamConfig


def open_run(path: Path) -> Opened:
    """The team of a finished run, or of a folder that `Team.save_pretrained` wrote; no weights are loaded.

    Raises:
        RunError: no run there, of another kind, or not finished.
        ModelError: the files of a team cannot be read.
    """
    from postgrad.thought.team import read_about

    if not (path / "team.json").is_file():
        run = Run.open(path)
        if run.info.get("kind") != KIND:
            raise RunError(f"{path} holds a run of {run.info.get('kind')}, not of {KIND}.")
        if run.status != "finished":
            raise RunError(
                f"{path} is not finished ({run.status}). Go on with it: postgrad thought fit --out {path} --resume"
            )
        path = path / TEAM
    return Opened(path, read_about(path)[0])


@contextlib.contextmanager
def loaded_team(opened: Opened) -> Iterator[Team]:
    """The team with its models, which for as long as the context lasts compute no state and no answer twice.

    Raises:
        ModelError: a model that is not there, or not the one that the team was fitted to.
    """
    from postgrad.thought.cache import CachedAgent
    from postgrad.thought.team import Team, make_agents

    with tempfile.TemporaryDirectory(prefix="postgrad-thought-") as folder:
        agents = [CachedAgent(agent, Path(folder)) for agent in make_agents(opened.config)]
        yield Team.from_pretrained(opened.folder, agents)


def held_out(opened: Opened, cases: Path | None) -> Work:
    """Cases of a file, or the held-out ones of the run."""
    if cases is not None:
        return Work([], read_cases(cases, opened.config.names), {})
    if opened.config.cases is None and not opened.config.data.tasks:
        raise ConfigError("This team names no cases of its own. Say which: --cases FILE.")
    return read_work(opened.config)
