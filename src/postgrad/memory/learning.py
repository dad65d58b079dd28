"""A stream of edits: texts in, one patch after the other out; evaluated on the way, resumed where it stopped.

What has been learned is what lies in the model's directory: each patch carries the stream's name and its place in it, so a stream
that was killed goes on after the last patch that is there. Rivals (`rivals.py`) go the same way, but change a model in memory
only; they start again from the beginning.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from postgrad.core.errors import DataError
from postgrad.core.models import Model
from postgrad.core.models.lora import require_peft
from postgrad.core.models.memory.patch import fingerprint, tables
from postgrad.core.models.memory.shard import is_first_rank
from postgrad.core.protocols import Logger
from postgrad.memory.batches import encode_texts, pad
from postgrad.memory.config import LearnConfig
from postgrad.memory.data import Fact
from postgrad.memory.evaluate import answer_questions, text_loss
from postgrad.memory.profiling import Profile, find_profile, require_memory
from postgrad.memory.rivals import Rival
from postgrad.memory.sparse import SparseLearner
from postgrad.memory.store import PatchStore

_AGAINST_BACKGROUND = ("tf_idf", "kl")
"""Scores that need the background's profile."""


@dataclass(frozen=True)
class Probes:
    """What is looked at to see what was learned and what was kept.

    Attributes:
        keep: facts that the model knew before; their questions are asked.
        ask: questions about what is taught, for documents, which have none of their own; all are asked every time.
        background: texts whose loss is taken.
        answer_tokens: longest answer.
    """

    keep: tuple[Fact, ...] = ()
    ask: tuple[Fact, ...] = ()
    background: tuple[str, ...] = ()
    answer_tokens: int = 32


def learn(
    model: Model,
    folder: Path,
    facts: Sequence[Fact],
    config: LearnConfig,
    log: Logger,
    *,
    probes: Probes | None = None,
    background: Sequence[str] = (),
    keep_patches: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, float]:
    """Teaches facts in order, `config.per_edit` at a time; the metrics of the end.

    Args:
        model: loaded from `folder`; changes in place. If its tables are sharded over ranks, all ranks call, and rank 0 writes.
        folder: model directory; with method sparse it gets the patches.
        facts: what is to be learned.
        config: how.
        log: one row per edit, at the number of facts taught.
        probes: for evaluation.
        background: texts for the rivals that need them.
        keep_patches: False leaves `folder` as it is.
        note: told in words what is skipped.

    Raises:
        DataError: a text that is too long, no background profile where the score needs one.
        ModelError: the model has no memory, or a patch cannot be written; the patches so far stay.
        TrainingError: a loss is not finite; the patches so far stay.
    """
    probes = probes or Probes()
    edits = _in_edits(facts, config)
    rows = encode_edits(model, facts, config)  # all texts are checked before anything is learned
    teach = _teacher(model, folder, config, background)
    done = 0
    if isinstance(teach, _Sparse) and keep_patches:
        done = edits_in_force(model, folder, facts, config)
        teach.write_to(PatchStore(folder), stream_name(model, facts, config))
    if done:
        note(f"{done} of {len(edits)} edits are in force already; going on after them.")
    if not done:
        log.log(0, _evaluate(model, [], probes))
    metrics: dict[str, float] = {}
    for index, (edit, texts) in enumerate(zip(edits, rows, strict=True)):
        if index < done:
            continue
        taught = (index + 1) * config.per_edit
        started = time.perf_counter()
        metrics = teach(edit, texts, index)
        metrics["learn/seconds"] = time.perf_counter() - started
        last = index + 1 == len(edits)
        if last or (config.evaluate_every and (index + 1) % config.evaluate_every == 0):
            metrics |= _evaluate(model, facts[:taught], probes)
        log.log(index + 1, metrics)
    return metrics


def check_without_weights(
    outline: Model, folder: Path, facts: Sequence[Fact], config: LearnConfig, background: Sequence[str]
) -> list[list[list[int]]]:
    """What `learn` refuses that can be seen without weights; the tokens of each edit's texts.

    Args:
        outline: the model on the meta device, with its tokenizer.
        folder, facts, config, background: as for `learn`.

    Raises:
        DataError, ModelError, MissingExtraError: as `learn` does.
    """
    if config.method == "sparse":
        require_memory(outline)
        PatchStore(folder)
        if config.score in _AGAINST_BACKGROUND:
            find_profile(folder)
    elif config.method == "lora":
        require_peft("Method lora")
    elif config.method in ("replay", "ewc") and not encode_texts(
        outline, background, config.max_tokens, cut=True
    ):
        raise DataError(f"method {config.method!r} needs background texts: give --background TEXTS.")
    return encode_edits(outline, facts, config)


def _in_edits(facts: Sequence[Fact], config: LearnConfig) -> list[Sequence[Fact]]:
    return [facts[i : i + config.per_edit] for i in range(0, len(facts), config.per_edit)]


def encode_edits(model: Model, facts: Sequence[Fact], config: LearnConfig) -> list[list[list[int]]]:
    """Tokens of each edit's texts. Raises DataError if a fact is too long; documents are cut."""
    return [
        [
            row
            for fact in edit
            for row in encode_texts(model, fact.texts, config.max_tokens, cut=fact.question is None)
        ]
        for edit in _in_edits(facts, config)
    ]


def stream_name(model: Model, facts: Sequence[Fact], config: LearnConfig) -> str:
    """Names a stream by model, texts and config: twelve hex digits."""
    content = [fingerprint(model.module), config.model_dump(mode="json"), [[f.id, *f.texts] for f in facts]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def edits_in_force(model: Model, folder: Path, facts: Sequence[Fact], config: LearnConfig) -> int:
    """How many edits of a sparse stream are in force in `folder`, which are its first ones.

    Raises:
        DataError: some in the middle were rolled back.
    """
    stream = stream_name(model, facts, config)
    patches = [entry.patch.facts for entry in PatchStore(folder).entries()]
    mine = [facts["edit"] for facts in patches if facts.get("stream") == stream]
    if mine != list(range(len(mine))):
        raise DataError(
            f"Of this stream's edits {mine} are in force, so some in the middle were rolled back. Roll back the later ones "
            "as well to go on from there, or learn the missing facts as a stream of their own."
        )
    return len(mine)


def _evaluate(model: Model, taught: Sequence[Fact], probes: Probes) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, facts in (("learned", [*taught, *probes.ask]), ("kept", probes.keep)):
        answers = answer_questions(model, facts, probes.answer_tokens)
        if answers.exact:
            metrics[f"{name}/exact"] = sum(answers.exact) / len(answers.exact)
            metrics[f"{name}/f1"] = sum(answers.f1) / len(answers.f1)
    if probes.background:
        metrics["kept/loss"] = text_loss(model, probes.background)
    return metrics


Teach = Callable[[Sequence[Fact], Sequence[Sequence[int]], int], dict[str, float]]


class _Sparse:
    """Edits as patches of a model directory."""

    def __init__(self, model: Model, folder: Path, config: LearnConfig) -> None:
        needs = config.score in _AGAINST_BACKGROUND
        profile = Profile.load(folder, model) if needs else Profile.empty(model)
        self.model = model
        self.learner = SparseLearner(model, profile, config)
        self.store: PatchStore | None = None
        self.stream = ""

    def write_to(self, store: PatchStore, stream: str) -> None:
        """From now on every edit becomes a patch of the store."""
        self.store, self.stream = store, stream

    def __call__(self, edit: Sequence[Fact], texts: Sequence[Sequence[int]], index: int) -> dict[str, float]:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        facts: Mapping[str, Any] = {
            "stream": self.stream,
            "edit": index,
            "created": created,
            "facts": [fact.id for fact in edit],
            "texts": [fact.texts[0][:200] for fact in edit],
        }
        learned = self.learner.learn(pad(self.model, texts), facts)
        if self.store is not None and all(
            is_first_rank(table) for table in tables(self.model.module).values()
        ):
            self.store.append(learned.patch)
        return {
            "learn/loss_before": learned.losses[0],
            "learn/loss_after": learned.losses[-1],
            "learn/rows": float(learned.patch.num_rows),
        }


class _Rival:
    """Edits by a rival."""

    def __init__(self, model: Model, config: LearnConfig, background: Sequence[str]) -> None:
        self.model = model
        try:
            self.rival = Rival(model, config, background)
        except ValueError as error:
            raise DataError(f"{error}: give --background TEXTS.") from None

    def __call__(self, edit: Sequence[Fact], texts: Sequence[Sequence[int]], index: int) -> dict[str, float]:
        losses = self.rival.learn(pad(self.model, texts))
        return {"learn/loss_before": losses[0], "learn/loss_after": losses[-1]}


def _teacher(model: Model, folder: Path, config: LearnConfig, background: Sequence[str]) -> _Sparse | _Rival:
    if config.method == "sparse":
        return _Sparse(model, folder, config)
    return _Rival(model, config, background)
