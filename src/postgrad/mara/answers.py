"""Answers to compare: read from runs and tables, split into sides (files and phases), grouped by prompt.

Rows are those of a run's samples.jsonl (`core.report` lists the keys) or of any .jsonl, .csv or .tsv with the columns

    completion, answer or text    what was said; where a row has `completion`, its `answer` is the prompt's solution
    prompt_id, prompt             which prompt; without either, all rows answer one prompt
    correct, score, reward        quality; the first that is given decides (see `MeasureConfig.tau`)
    step, phase                   of a run
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from postgrad.core.errors import DataError
from postgrad.mara.config import MeasureConfig
from postgrad.mara.readers import Row, finite, number, read_rows, verdict

Canonical = Callable[[str], "str | None"]
"""Answer → its canonical form, or None if it is no answer of the kind at all (no molecule)."""

_SAID = ("completion", "answer", "text")


class Answer(NamedTuple):
    """One answer.

    Attributes:
        key: canonical form: equal keys are the same answer.
        text: as it was said.
        valid: whether it has a canonical form.
        good: the verdict; None = unknown.
        value: score or reward; None = unknown.
        step: of the run; None = unknown.
    """

    key: str
    text: str
    valid: bool
    good: bool | None
    value: float | None
    step: int | None


@dataclass(frozen=True)
class Group:
    """Answers of one prompt, in order; `good` is its enumerated good set (canonical), if known."""

    prompt_id: str
    prompt: str
    answers: tuple[Answer, ...]
    good: frozenset[str] | None = None


@dataclass(frozen=True)
class Side:
    """What is compared: one file, or one phase of a run.

    Attributes:
        name: short, different from the other sides'.
        path: where it was read.
        groups: by prompt, in order of appearance.
        notes: what a reader of its numbers must know.
        order: all answers as (group index, answer) in the file's order.
    """

    name: str
    path: Path
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()
    order: tuple[tuple[int, Answer], ...] = field(default=(), repr=False)

    @property
    def num_answers(self) -> int:
        """Of all groups."""
        return sum(len(group.answers) for group in self.groups)


def read_sides(paths: Sequence[Path], config: MeasureConfig, good: Path | None = None) -> list[Side]:
    """The sides of all files, in order: a run gives one per phase.

    Args:
        paths: run directories or tables.
        config: see there.
        good: a .jsonl with the good set of each prompt (`read_good`).

    Raises:
        DataError: what is wrong, with file and line; or nothing is left to measure.
        MissingExtraError: molecules without RDKit.
    """
    canonical = canonical_form(config)
    sides: list[Side] = []
    for path, label in zip(paths, _labels(paths), strict=True):
        file = _table_of(path)
        parts = _phases(read_rows(file), file, config)
        for phase, (rows, notes) in parts.items():
            several = len(parts) > 1
            short = "-".join(phase.split())
            name = label if not phase else (short if len(paths) == 1 else f"{label}:{short}")
            answers = [(_prompt(row), _answer(row, file, config, canonical)) for row in rows]
            side = _side(
                name, path, answers, [*notes, *_train_note(phase, answers)] if several or phase else notes
            )
            sides.append(_first(side, config.samples) if config.samples else side)
    empty = [side.name for side in sides if not side.groups]
    if empty:
        raise DataError(
            f"{empty[0]}: no prompt has {config.samples} answers; give a smaller --samples, or none."
        )
    if good is not None:
        sides = [_with_good(side, read_good(good, canonical), config, good) for side in sides]
    return sides


def canonical_form(config: MeasureConfig) -> Canonical:
    """What `config` takes for the same answer.

    >>> canonical_form(MeasureConfig())("  1 +\\n 2 ")
    '1 + 2'
    """
    if config.molecules:
        from postgrad.mara.molecules import canonical

        known: dict[str, str | None] = {}

        def molecule(text: str) -> str | None:
            if text not in known:
                known[text] = canonical(text.strip())
            return known[text]

        return molecule
    if config.answers == "text":
        return lambda text: text
    return lambda text: " ".join(text.split())


# -- files ---------------------------------------------------------------------------------------------------------


def _labels(paths: Sequence[Path]) -> list[str]:
    """A short name for each file; equal ones are numbered.

    >>> _labels([Path("a/x.csv"), Path("b/x.csv"), Path("runs/y"), Path("runs/z/samples.jsonl")])
    ['x-1', 'x-2', 'y', 'z']
    """
    names: list[str] = []
    for path in paths:
        inside = path.name == "samples.jsonl" and path.resolve().parent.name
        name = inside or (path.resolve().name if path.is_dir() or not path.suffix else path.stem)
        names.append("-".join(name.split()) or "answers")
    return [f"{name}-{i}" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


def _table_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    if not (path / "samples.jsonl").is_file():
        raise DataError(
            f"{path} holds no samples.jsonl. Name a run that logged samples, or a .jsonl, .csv or .tsv of answers."
        )
    return path / "samples.jsonl"


def _phases(rows: list[Row], path: Path, config: MeasureConfig) -> dict[str, tuple[list[Row], list[str]]]:
    """Rows by phase, in the order of the config; each evaluation under way is a policy, hence a side, of its own."""
    found: dict[str, list[Row]] = {}
    order: dict[str, tuple[int, float]] = {}
    for row in rows:
        phase = str(row.cells.get("phase") or "")
        step = finite(number(row.cells.get("step"), path, row.line, "step"))
        name = f"{phase}@{step:g}" if phase == "eval" and step is not None else phase
        found.setdefault(name, []).append(row)
        rank = config.phases.index(phase) if phase in config.phases else -1
        order.setdefault(name, (rank, step or 0.0))
    wanted = sorted((name for name in found if order[name][0] >= 0), key=lambda name: order[name])
    left_out = [name for name in found if name and name not in wanted]
    if "" in found:
        wanted = ["", *wanted]
    if not wanted:
        wanted, left_out = list(found), []
    note = (
        [f"{path}: left out {_shorten(left_out)}; see --phases."] if left_out else []
    )  # said once, by the first side
    return {name: (found[name], note if index == 0 else []) for index, name in enumerate(wanted)}


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _train_note(phase: str, answers: Sequence[tuple[Any, Answer]]) -> list[str]:
    steps = {answer.step for _, answer in answers}
    if phase != "train" or len(steps) < 2:
        return []
    return [f"train: its answers come from {len(steps)} steps, so from as many policies."]


def _prompt(row: Row) -> tuple[str, str]:
    """(identity, text) of the prompt of a row."""
    text = row.cells.get("prompt")
    prompt = "" if text is None else str(text).strip()
    identity = row.cells.get("prompt_id")
    return (prompt if identity in (None, "") else str(identity), prompt)


def _answer(row: Row, path: Path, config: MeasureConfig, canonical: Canonical) -> Answer:
    cells = row.cells
    column = next((name for name in _SAID if cells.get(name) is not None), None)
    if column is None:
        raise DataError(
            f"{path}, line {row.line}: no answer. Needed is one of the columns {', '.join(_SAID)}; it has "
            f"{', '.join(cells) or 'nothing'}."
        )
    text = str(cells[column])
    key = canonical(text)
    value = finite(number(cells.get("score"), path, row.line, "score"))
    if value is None:
        value = finite(number(cells.get("reward"), path, row.line, "reward"))
    step = finite(number(cells.get("step"), path, row.line, "step"))
    good = _is_good(verdict(cells.get("correct"), path, row.line, "correct"), value, config.tau)
    return Answer(
        text if key is None else key,
        text,
        key is not None,
        good if key is not None else (None if good is None else False),
        value,
        None if step is None else int(step),
    )


def _is_good(correct: bool | None, value: float | None, tau: float | None) -> bool | None:
    """Verdict: a given τ judges the score or reward; without one `correct` does, or failing that τ = 1.

    >>> _is_good(True, 0.3, None), _is_good(True, 0.3, 0.5), _is_good(None, 0.3, None), _is_good(None, None, 0.5)
    (True, False, False, None)
    """
    if correct is not None and (tau is None or value is None):
        return correct
    return None if value is None else value >= (1.0 if tau is None else tau)


# -- groups --------------------------------------------------------------------------------------------------------


def _side(
    name: str, path: Path, answers: Sequence[tuple[tuple[str, str], Answer]], notes: Sequence[str]
) -> Side:
    index: dict[str, int] = {}
    texts: list[str] = []
    members: list[list[Answer]] = []
    order: list[tuple[int, Answer]] = []
    for (identity, text), answer in answers:
        if identity not in index:
            index[identity] = len(index)
            texts.append(text)
            members.append([])
        members[index[identity]].append(answer)
        order.append((index[identity], answer))
    groups = tuple(Group(key, texts[i], tuple(members[i])) for key, i in index.items())
    return Side(name, path, groups, tuple(notes), tuple(order))


def _first(side: Side, count: int) -> Side:
    """Only the first `count` answers of each prompt; prompts with fewer are left out."""
    kept = {i for i, group in enumerate(side.groups) if len(group.answers) >= count}
    place = {old: new for new, old in enumerate(sorted(kept))}
    seen = dict.fromkeys(kept, 0)
    order: list[tuple[int, Answer]] = []
    for i, answer in side.order:
        if i in kept and seen[i] < count:
            seen[i] += 1
            order.append((place[i], answer))
    groups = tuple(replace(side.groups[i], answers=side.groups[i].answers[:count]) for i in sorted(kept))
    lost = len(side.groups) - len(groups)
    notes = [f"{side.name}: {lost} prompts with fewer than {count} answers are left out."] if lost else []
    return replace(side, groups=groups, order=tuple(order), notes=(*side.notes, *notes))


def read_good(path: Path, canonical: Canonical) -> dict[str, frozenset[str]]:
    """Good answers by prompt (its text, or its prompt_id): rows {"prompt": …, "answers": [...]}.

    Raises:
        DataError: what is wrong, with file and line.
    """
    sets: dict[str, frozenset[str]] = {}
    for row in read_rows(path):
        answers = row.cells.get("answers")
        if not isinstance(answers, list) or not answers:
            raise DataError(
                f'{path}, line {row.line}: needs "answers", a list of at least one good answer, as in '
                '{"prompt": "…", "answers": ["a", "b"]}.'
            )
        forms = {text: canonical(text) for text in map(str, answers)}
        broken = [text for text, form in forms.items() if form is None]
        if broken:
            raise DataError(f"{path}, line {row.line}: the good answer {broken[0]!r} is no molecule.")
        identity, _ = _prompt(row)
        if identity in sets:
            raise DataError(
                f"{path}, line {row.line}: a second good set of the prompt {identity!r}. Join them."
            )
        sets[identity] = frozenset(form for form in forms.values() if form is not None)
    return sets


def _with_good(side: Side, sets: Mapping[str, frozenset[str]], config: MeasureConfig, path: Path) -> Side:
    """Groups with their good sets; answers without a verdict of their own are judged by them."""
    found = [sets.get(group.prompt_id, sets.get(group.prompt)) for group in side.groups]
    missing = sum(good is None for good in found)
    if missing == len(found):
        raise DataError(
            f"{path}: none of its prompts is one of {side.name}'s, such as {side.groups[0].prompt_id[:60]!r}. Its rows name "
            "a prompt by prompt_id or by its exact text."
        )
    notes = [f"{side.name}: {missing} of {len(found)} prompts have no good set."] if missing else []

    def judged(i: int, answer: Answer) -> Answer:
        good = found[i]
        return answer if good is None or answer.good is not None else answer._replace(good=answer.key in good)

    groups = tuple(
        replace(group, answers=tuple(judged(i, answer) for answer in group.answers), good=found[i])
        for i, group in enumerate(side.groups)
    )
    order = tuple((i, judged(i, answer)) for i, answer in side.order)
    return replace(side, groups=groups, order=order, notes=(*side.notes, *notes))
