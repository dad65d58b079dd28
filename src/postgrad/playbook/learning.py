"""The loop of ACE (2510.04618): samples are studied side by side, and merged into the playbook in their order.

A sample starts from the playbook as it was `window` samples before it, whatever has been merged meanwhile, so the result depends
neither on how many workers there are nor on which of them is faster. The log is the truth: a sample counts when its delta is in
it, and what a killed run has to know again (views, pairs that look alike) is had by going through the log as at first.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from postgrad.core.data import plain_text
from postgrad.core.errors import ChatError, ConfigError
from postgrad.core.protocols import Logger
from postgrad.core.statistics import Interval, clustered_rate
from postgrad.core.types import Prompt
from postgrad.engines.chat import Account
from postgrad.playbook.book import (
    Bullet,
    Delta,
    Mark,
    Operation,
    Playbook,
    Retire,
    Rollback,
    SetTrust,
    fold,
)
from postgrad.playbook.clean import redact
from postgrad.playbook.config import LearnConfig
from postgrad.playbook.curate import Decision, Refiner, decide, make_room
from postgrad.playbook.dedup import Index
from postgrad.playbook.embed import Embedder
from postgrad.playbook.log import PlaybookLog
from postgrad.playbook.record import Totals, is_sample, record_of, sample_row
from postgrad.playbook.study import Assignment, Attempt, Study, Studying
from postgrad.playbook.view import EMPTY, CountTokens, View, advance, line, select

if TYPE_CHECKING:
    from postgrad.playbook.traces import Trace

_FULL = 0.9
"""Share of the budget from which a lazy refinement begins."""
_LINE = 4000
"""Characters; token counts of shorter texts are remembered."""
_ANY = 1e-6
BEST = "best"
"""Mark of the version that answered most held-out prompts."""


@dataclass(frozen=True)
class Work:
    """What there is to study, in order.

    Attributes:
        samples: (key, prompt, trace or None), for all epochs.
        per_epoch: samples of one epoch.
        held_out: prompts for validation.
    """

    samples: Sequence[tuple[str, Prompt, Trace | None]]
    per_epoch: int
    held_out: Sequence[Prompt] = ()


def plan_work(prompts: Sequence[Prompt], held_out: Sequence[Prompt], config: LearnConfig) -> Work:
    """The order of samples: each epoch has its own, or the given one (online).

    Raises:
        ConfigError: there are no prompts, or no held-out ones where they are asked for.
    """
    chosen = list(prompts)
    if config.mode == "offline":
        random.Random(f"{config.seed}/prompts").shuffle(chosen)
    chosen = chosen[: config.num_samples] if config.num_samples else chosen
    if not chosen:
        raise ConfigError("There is no prompt to learn from. Name a task, or lower data.holdout_fraction.")
    epochs = config.epochs if config.mode == "offline" else 1
    samples: list[tuple[str, Prompt, Trace | None]] = []
    for epoch in range(epochs):
        order = list(chosen)
        if config.mode == "offline":
            random.Random(f"{config.seed}/epoch {epoch}").shuffle(order)
        samples += [(f"{epoch}/{number}", prompt, None) for number, prompt in enumerate(order)]
    if config.mode == "online" or not config.validation_samples:
        return Work(samples, len(chosen))
    if not held_out:
        raise ConfigError(
            "No prompt is held out, so versions cannot be compared. Raise data.holdout_fraction, or set validation_samples = 0."
        )
    return Work(samples, len(chosen), tuple(draw_held_out(held_out, config)))


def draw_held_out(held_out: Sequence[Prompt], config: LearnConfig) -> list[Prompt]:
    """At most `validation_samples` (0 = all), by the seed; of several tasks, one after another, each gets its share."""
    drawn = list(held_out)
    random.Random(f"{config.seed}/held out").shuffle(drawn)
    return drawn[: config.validation_samples or None]


def trace_work(traces: Sequence[Trace]) -> Work:
    """Traces in the given order. Raises ConfigError if there are none."""
    if not traces:
        raise ConfigError("There is no trace to learn from.")
    samples = [
        (f"trace/{number}", Prompt(id=trace.id, text=trace.question, answer=trace.truth), trace)
        for number, trace in enumerate(traces)
    ]
    return Work(samples, len(samples))


@dataclass
class State:
    """All that a sample's start depends on; a function of the log.

    Attributes:
        book, view: of the version that was merged last.
        merged: samples that are in the log.
        validated: samples after which a validation is in the log.
        best: accuracy of the best version, or None.
        totals: sums over samples.
    """

    refiner: Refiner
    book: Playbook = field(default_factory=Playbook)
    view: View = field(default_factory=View)
    merged: int = 0
    validated: set[int] = field(default_factory=set[int])
    best: float | None = None
    totals: Totals = field(default_factory=Totals)


class Learning:
    """A session of learning.

    Args:
        log: of the playbook; deltas that it has already count as this session's from `start` on.
        work: what to study.
        studying: who works on samples.
        config: all options.
        run: takes metrics and samples.
        embedder: for lines that look alike, and for choosing by the question.
        start: deltas that were there before this session.
        logged: (step, area) of metrics that the run has already.

    Raises:
        ConfigError: quarantine until validation, and nothing is held out.
    """

    def __init__(
        self,
        log: PlaybookLog,
        work: Work,
        studying: Studying,
        config: LearnConfig,
        run: Logger,
        embedder: Embedder,
        start: int = 0,
        logged: Collection[tuple[int, str]] = (),
    ) -> None:
        if config.quarantine == "validation" and not work.held_out:
            raise ConfigError(
                "quarantine = validation needs held-out prompts, which traces do not have. Use quarantine = approve or off."
            )
        self.log, self.work, self.config, self.run = log, work, config, run
        self._studying, self._start, self._logged = studying, start, logged
        cached = lru_cache(maxsize=65_536)(studying.count_tokens)
        self._count: CountTokens = lambda text: (
            cached(text) if len(text) < _LINE else studying.count_tokens(text)
        )
        self.state = State(Refiner(Index(embedder, config.threshold)))

    async def learn(self) -> Playbook:
        """Studies what is not in the log yet.

        Returns:
            The best version where there was validation, else the last.

        Raises:
            ChatError: too many samples in a row got no reply; they are tried again by another session.
            RunError: the disk is full.
        """
        recorded = self.log.deltas[self._start :]
        done, total = sum(map(is_sample, recorded)), len(self.work.samples)
        # All that is left may not fail, but for one last sample: it must not stop every session.
        limit = min(self.config.max_failures, max(total - done, 2 if done else 1))
        gate = asyncio.Semaphore(min(self.config.workers, self.config.window))
        tasks: dict[int, tuple[Assignment, asyncio.Task[Study]]] = {}
        admitted = 0
        held: list[tuple[Assignment, Study]] = []
        """Studied, not merged. What got no reply waits for a later one that does: a server that is out costs no sample."""

        async def one(sample: Assignment) -> Study:
            async with gate:
                return await self._studying.study(sample)

        def admit() -> None:
            nonlocal admitted
            # What got no reply changes nothing when it is merged, so samples after it start from the same playbook.
            known = 0
            while known < len(held) and held[known][1].failure is not None and not self._due(known + 1):
                known += 1
            while admitted < min(total, self.state.merged + known + self.config.window):
                sample = self._assign(admitted, *self.work.samples[admitted])
                if admitted >= done:
                    tasks[admitted] = sample, asyncio.create_task(one(sample))
                admitted += 1

        self.begin()
        try:
            for delta in recorded:
                if not self._due():
                    admit()
                self._absorb([delta])
            if self._due():
                await self._validate()
            admit()
            row = 0
            for number in range(done, total):
                sample, task = tasks.pop(number)
                study = await task
                held.append((sample, study))
                row = 0 if study.failure is None else row + 1
                if row >= limit:
                    raise ChatError(
                        f"{row} samples in a row got no reply; the last: {study.failure}\n  {self._kept()}"
                    )
                if self._due(len(held)) and all(failed.failure is not None for _, failed in held):
                    await self._validate(held)
                admit()
                while held and (_is_certain(held) or number == total - 1):
                    self._merge(*held.pop(0))
                    if self._due():
                        await self._validate()
                    admit()
        finally:
            for _, task in tasks.values():
                task.cancel()
            await asyncio.gather(*(task for _, task in tasks.values()), return_exceptions=True)
        return self.log.at(BEST) if self.state.best is not None else self.log.playbook

    def _kept(self) -> str:
        return (
            f"{self.state.merged} of {len(self.work.samples)} samples are done and kept. Go on with --resume."
        )

    def begin(self) -> None:
        """Takes in what was there before this session."""
        self._absorb(self.log.deltas[: self._start])

    def context(self, prompt: Prompt) -> str:
        """The playbook as the text of a prompt, with what is retrieved for this one at its end."""
        shown = self.state.view.shown or {}
        return "\n".join([self.state.view.text, *map(line, self._retrieve(prompt, shown))])

    async def take(self, prompt: Prompt, trace: Trace) -> Delta:
        """Studies one more trace, now."""
        number = self.state.merged
        sample = self._assign(number, f"trace/{number}", prompt, trace)
        study = await self._studying.study(sample)
        if study.failure is not None:
            raise ChatError(study.failure)
        self._merge(sample, study)
        return self.log.deltas[-1]

    # -- state ---------------------------------------------------------------------------------------------

    def _absorb(self, deltas: Sequence[Delta]) -> None:
        """Takes deltas of the log into the state."""
        state = self.state
        for delta in deltas:
            if any(isinstance(operation, Rollback) for operation in delta.operations):
                state.book = self.log.at(state.book.version + 1)
            else:
                state.book = fold([delta], state.book)
        budget = self.config.budget_tokens - self.config.retrieved_tokens
        state.view = advance(state.view, state.book, budget, self._count)
        if self.config.refine != "off" or self.config.retrieved_tokens:
            state.refiner.keep_up(state.book)
        for delta in deltas if state.book.version > self._start else ():
            if delta.sample is not None and "validation" in delta.sample:
                found = delta.sample["validation"]
                state.validated.add(found["after"])
                if any(isinstance(operation, Mark) for operation in delta.operations):
                    state.best = found["accuracy"]
                state.totals.add_validation(found["account"])
                row = {f"validation/{key}": found[key] for key in found if key not in ("after", "account")}
                if found["cost_usd"] is None:
                    del row["validation/cost_usd"]
                self._log(found["after"], {**row, "validation/best_accuracy": state.best})
            elif delta.sample is not None:
                state.merged += 1
                state.totals.add(delta.sample)
                self._log(state.merged, {**state.totals.row(), **self._size()})

    def _log(self, step: int, row: dict[str, Any]) -> None:
        if (step, next(iter(row)).partition("/")[0]) not in self._logged:
            self.run.log(step, row)

    def _size(self) -> dict[str, Any]:
        bullets = self.state.book.bullets.values()
        return {
            "playbook/bullets": len(bullets),
            "playbook/quarantined": sum(bullet.trust == "quarantined" for bullet in bullets),
            "playbook/retired": len(self.state.book.retired),
            "playbook/tokens": self._count(self.state.view.text),
            "playbook/rewrites": self.state.view.num_rewrites,
        }

    def _assign(self, number: int, key: str, prompt: Prompt, trace: Trace | None) -> Assignment:
        """A sample, with the playbook as it is now."""
        state, config = self.state, self.config
        text = state.view.text
        tokens = self._count(text)
        full = tokens > _FULL * config.budget_tokens
        look = config.refine == "proactive" or (config.refine == "lazy" and full)
        shown = state.view.shown or {}
        return Assignment(
            number,
            key,
            prompt,
            state.book,
            text,
            shown,
            tokens,
            tuple(self._retrieve(prompt, shown)),
            tuple(state.refiner.take_pairs()) if look else (),
            trace,
        )

    def _retrieve(self, prompt: Prompt, shown: Collection[str]) -> list[Bullet]:
        tokens, index = self.config.retrieved_tokens, self.state.refiner.index
        return (
            retrieve(self.state.book, index, plain_text(prompt), shown, tokens, self._count) if tokens else []
        )

    # -- merging -------------------------------------------------------------------------------------------

    def _merge(self, sample: Assignment, study: Study) -> None:
        """One sample's delta, on the disk."""
        state, config = self.state, self.config
        if study.failure is None:
            decision = decide(
                state.book, sample.book, state.refiner.index, study.tags, study.requested, config, self._count
            )
        else:
            decision = Decision([], [f"no reply: {redact(study.failure)[:300]}"])
        operations = list(decision.operations)
        if not config.retrieved_tokens:
            after = fold([Delta(tuple(operations))], state.book)
            operations += make_room(after, config.budget_tokens, self._count)
        record = record_of(sample, study, self.work.per_epoch)
        step = state.merged + 1
        self.run.log_samples(step, [sample_row(sample, study, decision.refused)])
        source = f"{sample.prompt.task or 'trace'} {sample.prompt.id}"
        delta = self.log.append(operations, source=source, sample=record, refused=decision.refused)
        self._absorb([delta])

    # -- validation ----------------------------------------------------------------------------------------

    def _due(self, more: int = 0) -> bool:
        """Whether a validation comes now: at the beginning, after every so many samples, at the end; `more` are not merged."""
        after = self.state.merged + more
        if not self.work.held_out or after in self.state.validated:
            return False
        every = self.config.validate_every or self.work.per_epoch
        return after % every == 0 or after == len(self.work.samples)

    async def _validate(self, held: list[tuple[Assignment, Study]] | None = None) -> None:
        """Does this version answer more held-out prompts? What got no reply is merged once others do: no server is out then.

        Raises:
            ChatError: too many in a row got no reply.
        """
        state, waiting = self.state, list[str]()
        text, shown = state.view.text, state.view.shown or {}
        if self.config.quarantine == "validation":
            waiting = [b.id for b in state.book.bullets.values() if b.trust == "quarantined"]
            budget = self.config.budget_tokens - self.config.retrieved_tokens
            chosen = select(list(state.book.bullets.values()), budget, self._count)
            shown = {bullet.id: line(bullet) for bullet in chosen}
            text = "\n".join(shown.values()) or EMPTY
        after = state.merged + len(held or ())
        samples = [
            Assignment(number, f"validate/{after}/{number}", prompt, state.book, text, shown, 0,
                       tuple(self._retrieve(prompt, shown)))
            for number, prompt in enumerate(self.work.held_out)
        ]  # fmt: skip
        try:
            rate, account = await accuracy(self._studying, samples, self.config)
        except ChatError as error:
            raise ChatError(f"{error}\n  {self._kept()}") from None
        while held:
            self._merge(*held.pop(0))
        operations: list[Operation] = []
        better = state.best is None or rate.mean > state.best
        if waiting and (state.best is None or rate.mean >= state.best):
            operations += [SetTrust(id, "trusted") for id in waiting]
            better = True
        elif waiting:
            operations += [Retire(id, "validation") for id in waiting]
            better = False
        if better:
            operations.append(Mark(BEST, rate.mean))
        found = {"after": after, "accuracy": rate.mean, "accuracy_low": rate.low, "accuracy_high": rate.high}
        found |= {"cost_usd": account.cost_usd, "account": account.as_dict()}
        self._absorb([self.log.append(operations, source="validation", sample={"validation": found})])


def _is_certain(held: Sequence[tuple[Assignment, Study]]) -> bool:
    """Whether the first can be merged as it is: it was studied, or another one was, with a call that came after its failure."""
    first = held[0][1]
    return first.failure is None or any(
        study.failure is None and study.asked_s > first.ended_s for _, study in held
    )


def retrieve(
    book: Playbook, index: Index, question: str, shown: Collection[str], tokens: int, count: CountTokens
) -> list[Bullet]:
    """Trusted bullets that are not shown anyway, those nearest to the question, as many as fit, in order.

    Args:
        index: holds the bullets' texts.
        shown: ids.
    """
    others = [bullet for bullet in book.trusted if bullet.id not in shown]
    cosines = dict(index.near(question, _ANY, len(index))) if others else {}
    near = [bullet for bullet in others if bullet.id in cosines]
    return select(near, tokens, count, lambda bullet: cosines[bullet.id])


async def answers(
    studying: Studying, samples: Sequence[Assignment], config: LearnConfig
) -> tuple[list[Attempt | None], Account]:
    """First answers, None where there was no reply, and what they cost.

    Raises:
        ChatError: none got a reply, or `max_failures` in a row did not.
    """
    gate = asyncio.Semaphore(config.workers)

    async def one(sample: Assignment) -> tuple[Attempt | None, Account, str]:
        async with gate:
            return await studying.answer(sample)

    found = await asyncio.gather(*map(one, samples))
    row = 0
    for attempt, _, why in found:
        row = 0 if attempt else row + 1
        if row >= min(config.max_failures, len(found)):
            raise ChatError(f"{row} held-out prompts in a row got no reply; the last: {why}")
    return [attempt for attempt, _, _ in found], sum((account for _, account, _ in found), Account())


async def accuracy(
    studying: Studying, samples: Sequence[Assignment], config: LearnConfig
) -> tuple[Interval, Account]:
    """Share of samples whose first answer is right, with its 95 % interval, and what it cost; no reply is a wrong answer.

    Raises:
        ChatError: as `answers`.
    """
    found, account = await answers(studying, samples, config)
    return clustered_rate([[bool(attempt and attempt.passed)] for attempt in found]), account
