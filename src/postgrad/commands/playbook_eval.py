"""`postgrad playbook eval`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postgrad.commands.playbook_learn import KIND, resolve_config
from postgrad.core.config import deep_merge, nest, validate
from postgrad.core.errors import ConfigError, RunError
from postgrad.core.run import Run
from postgrad.playbook.config import LearnConfig

if TYPE_CHECKING:
    from postgrad.core.statistics import Interval
    from postgrad.playbook.book import Playbook


def main(
    book: Path,
    recipe: Path | None,
    overrides: Mapping[str, Any],
    tasks: tuple[str, ...],
    *,
    json_output: bool,
) -> int:
    """Answers held-out prompts with and without a playbook; see `postgrad playbook eval --help`."""
    config = _config(book, recipe, overrides, tasks)
    if not config.data.tasks:
        raise ConfigError("No prompts to answer. Name a task (--task chain_sum, or data.tasks in a recipe).")

    from postgrad.playbook.api import evaluate, held_out_prompts, make_roles

    playbook = read_playbook(book)
    prompts = held_out_prompts(config)
    found = evaluate(playbook, prompts, config, roles=make_roles(config))
    if json_output:
        print(json.dumps({
            "playbook": str(book),
            "bullets": len(playbook.trusted),
            "prompts": len(prompts),
            "with_playbook": found.with_playbook._asdict(),
            "without": found.without._asdict(),
            "difference": found.difference._asdict(),
            "only_with": sum(first and not second for first, second in found.outcomes),
            "only_without": sum(second and not first for first, second in found.outcomes),
            "cost": found.account.as_dict(),
        }, indent=2))  # fmt: skip
        return 0
    print(f"{len(prompts)} held-out prompts, {len(playbook.trusted)} bullets")
    print(f"with the playbook  {_show(found.with_playbook)}")
    print(f"without            {_show(found.without)}")
    print(f"difference         {_show(found.difference, '+.3f')} (the same prompts, 95 % interval)")
    return 0


def _show(rate: Interval, form: str = ".3f") -> str:
    return f"{rate.mean:{form}} [{rate.low:{form}}, {rate.high:{form}}]"


def _config(
    book: Path, recipe: Path | None, overrides: Mapping[str, Any], tasks: tuple[str, ...]
) -> LearnConfig:
    """A recipe's, else that of the run that `book` is, else the defaults; then overrides and tasks."""
    if recipe is not None or not (book / "run.json").is_file():
        return resolve_config(recipe, overrides, tasks)
    run = Run.open(book)
    if run.info.get("kind") != KIND:
        raise RunError(f"{book} holds a run of {run.info.get('kind')}, not of {KIND}.")
    changes = nest({**overrides, **({"data.tasks": list(tasks)} if tasks else {})})
    return validate(LearnConfig, deep_merge(run.config_dict(), changes))


def read_playbook(path: Path) -> Playbook:
    """The playbook of a run (its best version), of a log or of a text in the published format.

    Raises:
        RunError: it cannot be read.
        DataError: it is no playbook.
    """
    from postgrad.playbook.book import Delta, fold
    from postgrad.playbook.learning import BEST
    from postgrad.playbook.log import NAME, parse
    from postgrad.playbook.text import parse_text

    place = path / NAME if path.is_dir() else path
    try:
        data = place.read_bytes()
    except OSError as error:
        raise RunError(
            f"{place} cannot be read: {error.strerror}. Name a run, a playbook.jsonl or a text."
        ) from None
    if place.suffix != ".jsonl":
        return fold([Delta(tuple(parse_text(data.decode("utf-8", "replace")).adds))])
    deltas, _ = parse(data[: data.rfind(b"\n") + 1], place)
    book = fold(deltas)
    return fold(deltas[: book.marks[BEST][0]]) if path.is_dir() and BEST in book.marks else book
