"""The loop of ACE (2510.04618): samples are studied side by side, and merged into the playbook in their order.

A sample starts from the playbook as it was `window` samples before it, whatever has been merged meanwhile, so the result depends
neither on how many workers there are nor on which of them is faster. The log is the truth: a sample counts when its delta is in
it, and what a killed run has to know again (views, pairs that look alike) is had by going through the log as at first.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from postgrad.core.data import plain_text
from postgrad.core.errors import ChatError, ConfigError
from postgrad.core.protocols import Logger
from postgrad.core.statistics import clustered_rate
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
from postgrad.playbook.config import ROLES, LearnConfig
from postgrad.playbook.curate import Decision, Refiner, decide, make_room
from postgrad.playbook.dedup import Index
from postgrad.playbook.embed import Embedder
from postgrad.playbook.log import PlaybookLog
from postgrad.playbook.study import Assignment, Attempt, Studying, Study
from postgrad.playbook.view import View, advance, line, render, select

if TYPE_CHECKING:
    from postgrad.playbook.traces import Trace

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
    validating = config.mode == "offline" and config.validation_samples
    if validating and not held_out:
        raise ConfigError(
            "No prompt is held out, so versions cannot be compared. Raise data.holdout_fraction, or set validation_samples = 0."
        )
    return Work(samples, len(chosen), tuple(held_out[: config.validation_samples]) if validating else ())


def trace_work(traces: Sequence[Trace]) -> Work:
    """Traces in the given order."""
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
        records: what the log says of each sample.
    """

    refiner: Refiner
    book: Playbook = field(default_factory=Playbook)
    view: View = field(default_factory=View)
    merged: int = 0
    validated: set[int] = field(default_factory=set[int])
    best: float | None = None
    records: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


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
    ) -> None:
        self.log, self.work, self.config, self.run = log, work, config, run
        self._studying, self._embedder, self._start = studying, embedder, start
        self._count = studying.count_tokens
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
        done = sum(_is_sample(delta) for delta in recorded)
        gate = asyncio.Semaphore(min(self.config.workers, self.config.window))
        tasks: dict[int, asyncio.Task[Study]] = {}
        assignments: dict[int, Assignment] = {}
        admitted = 0

        async def one(sample: Assignment) -> Study:
            async with gate:
                return await self._studying.study(sample)

        def admit() -> None:
            nonlocal admitted
            while admitted < min(len(self.work.samples), self.state.merged + self.config.window):
                sample = self._assign(admitted)
                if admitted >= done:
                    assignments[admitted] = sample
                    tasks[admitted] = asyncio.create_task(one(sample))
                admitted += 1

        self._absorb(self.log.deltas[: self._start])
        admit()
        for delta in recorded:
            self._absorb([delta])
            admit()
        try:
            await self._validate_if_due()
            held: list[tuple[Assignment, Study]] = []
            while self.state.merged + len(held) < len(self.work.samples):
                number = self.state.merged + len(held)
                if number not in tasks:  # the window ends with samples that got no reply
                    break
                study = await tasks.pop(number)
                held.append((assignments.pop(number), study))
                if study.failure is not None:
                    if len(held) >= self.config.max_failures:
                        break
                    continue
                for sample, finished in held:
                    self._merge(sample, finished)
                    await self._validate_if_due()
                    admit()
                held = []
            if held and (
                len(held) >= self.config.max_failures
                or self.state.merged + len(held) < len(self.work.samples)
            ):
                raise ChatError(
                    f"{len(held)} samples in a row got no reply; the last: {held[-1][1].failure}\n"
                    f"  {self.state.merged} of {len(self.work.samples)} samples are done and kept. Go on with --resume."
                )
            for sample, finished in held:
                self._merge(sample, finished)
                await self._validate_if_due()
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        return self.log.at(BEST) if BEST in self.log.playbook.marks else self.log.playbook

    # -- state ---------------------------------------------------------------------------------------------

    def _absorb(self, deltas: Iterable[Delta]) -> None:
        """Takes deltas of the log into the state, one by one."""
        state = self.state
        for delta in deltas:
            if any(isinstance(operation, Rollback) for operation in delta.operations):
                state.book = self.log.at(state.book.version + 1)
            else:
                state.book = fold([delta], state.book)
            if delta.sample is None:
                continue
            if "validation" in delta.sample:
                state.validated.add(int(delta.sample["validation"]["after"]))
                if any(isinstance(operation, Mark) for operation in delta.operations):
                    state.best = float(delta.sample["validation"]["accuracy"])
            elif state.book.version > self._start:
                state.merged += 1
                state.records.append(dict(delta.sample))
        budget = self.config.budget_tokens - self.config.retrieved_tokens
        state.view = advance(state.view, state.book, budget, self._count)
        if self.config.refine != "off" or self.config.retrieved_tokens:
            state.refiner.keep_up(state.book)

    def _assign(self, number: int) -> Assignment:
        """A sample, with the playbook as it is now."""
        state, config = self.state, self.config
        key, prompt, trace = self.work.samples[number]
        text = state.view.text
        tokens = self._count(text)
        full = sum(self._count(line(b) + "\n") for b in state.book.trusted) > 0.9 * config.budget_tokens
        look = config.refine == "proactive" or (config.refine == "lazy" and full)
        shown = frozenset(state.view.shown or {})
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

    def _retrieve(self, prompt: Prompt, shown: frozenset[str]) -> list[Bullet]:
        """Bullets that are not shown anyway, nearest to the question first, as many as fit."""
        if not self.config.retrieved_tokens:
            return []
        others = [bullet for bullet in self.state.book.trusted if bullet.id not in shown]
        index = self.state.refiner.index
        cosines = dict(index.near(plain_text(prompt), 1e-6, len(index))) if others else {}
        return select(
            [bullet for bullet in others if bullet.id in cosines],
            self.config.retrieved_tokens,
            self._count,
            lambda bullet: cosines[bullet.id],
        )

    # -- merging -------------------------------------------------------------------------------------------

    def _merge(self, sample: Assignment, study: Study) -> None:
        """One sample's delta, on the disk."""
        state, config = self.state, self.config
        if study.failure is None:
            decision = decide(state.book, state.refiner.index, study.tags, study.requested, config)
        else:
            decision = Decision([], [f"no reply: {redact(study.failure)[:300]}"])
        operations = list(decision.operations)
        if not config.retrieved_tokens:
            after = fold([Delta(tuple(operations))], state.book)
            operations += make_room(after, config.budget_tokens, self._count)
        record = _record(sample, study, self.work.per_epoch)
        step = state.merged + 1
        self.run.log_samples(step, [_sample_row(sample, study, decision.refused)])
        source = f"{sample.prompt.task or 'trace'} {sample.prompt.id}"
        delta = self.log.append(operations, source=source, sample=record, refused=decision.refused)
        self._absorb([delta])
        self.run.log(step, metrics_row(state.records, state.book, state.view, self._count))

    def log_missing(self, last_step: int) -> None:
        """Metrics of samples that are in the log and whose row was not written before a kill; call after `learn` absorbed."""
        for step in range(last_step + 1, self.state.merged + 1):
            self.run.log(
                step, metrics_row(self.state.records[:step], self.state.book, self.state.view, self._count)
            )

    # -- validation ----------------------------------------------------------------------------------------

    async def _validate_if_due(self) -> None:
        """At the beginning, after every so many samples and at the end: does this version answer more held-out prompts?"""
        state, every = self.state, self.config.validate_every or self.work.per_epoch
        after = state.merged
        due = after % every == 0 or after == len(self.work.samples)
        if not self.work.held_out or not due or after in state.validated:
            return
        quarantine = self.config.quarantine == "validation"
        rate, account = await self.evaluate(self.work.held_out, f"validate/{after}", quarantined=quarantine)
        waiting = (
            [b.id for b in state.book.bullets.values() if b.trust == "quarantined"] if quarantine else []
        )
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
        record = {"validation": {"after": after, "accuracy": rate.mean, "low": rate.low, "high": rate.high}}
        self._absorb([self.log.append(operations, source="validation", sample=record)])
        self.run.log(
            after,
            {
                "validation/accuracy": rate.mean,
                "validation/accuracy_low": rate.low,
                "validation/accuracy_high": rate.high,
                "validation/best_accuracy": state.best,
                "validation/cost_usd": account.cost_usd,
            },
        )

    async def evaluate(
        self, prompts: Sequence[Prompt], key: str, *, quarantined: bool = False, empty: bool = False
    ) -> tuple[Any, Account]:
        """Share of prompts that the Generator answers rightly with the playbook as it is.

        A prompt without a reply counts as wrong; if none got one, this is an error.

        Args:
            prompts: each asked once.
            key: for the journal of calls.
            quarantined: show bullets in quarantine too.
            empty: without the playbook.

        Returns:
            A rate with its interval, and what it cost.
        """
        text, shown = self.state.view.text, frozenset(self.state.view.shown or {})
        if quarantined:
            budget = self.config.budget_tokens - self.config.retrieved_tokens
            text = render(self.state.book, budget, self._count, quarantined=True)
            shown = frozenset(id for id in self.state.book.bullets if f"[{id}]" in text)
        if empty:
            text, shown = View().text, frozenset()
        gate = asyncio.Semaphore(min(self.config.workers, self.config.window))

        async def one(number: int, prompt: Prompt) -> tuple[Attempt | None, Account, str]:
            retrieved = () if empty else tuple(self._retrieve(prompt, shown))
            sample = Assignment(
                number, f"{key}/{number}", prompt, self.state.book, text, shown, self._count(text), retrieved
            )
            async with gate:
                return await self._studying.answer(sample)

        found = await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts)))
        if found and all(attempt is None for attempt, _, _ in found):
            raise ChatError(f"No held-out prompt got a reply; the last: {found[-1][2]}")
        passed = [[bool(attempt and attempt.passed)] for attempt, _, _ in found]
        return clustered_rate(passed), sum((account for _, account, _ in found), Account())


def _is_sample(delta: Delta) -> bool:
    return delta.sample is not None and "validation" not in delta.sample


def _record(sample: Assignment, study: Study, per_epoch: int) -> dict[str, Any]:
    """What the log keeps of a sample: enough for its metrics, no texts."""
    first = study.attempts[0] if study.attempts else None
    last = study.attempts[-1] if study.attempts else None
    return {
        "number": sample.number,
        "epoch": sample.number // per_epoch,
        "prompt": sample.prompt.id,
        "correct": bool(first and first.passed),
        "judged": bool(first and first.feedback.score is not None),
        "correct_after": bool(last and last.passed),
        "score": first.feedback.score if first else None,
        "failed": study.failure is not None,
        "attempts": len(study.attempts),
        "problems": len(study.problems),
        "used": list(first.used) if first else [],
        "context_tokens": sample.tokens,
        "from_version": sample.book.version,
        "calls": {role: account.calls + account.replayed for role, account in study.account.items()},
        "accounts": {role: account.as_dict() for role, account in study.account.items()},
    }


def _sample_row(sample: Assignment, study: Study, refused: Sequence[str]) -> dict[str, Any]:
    """For samples.jsonl: the texts, without secrets."""
    first = study.attempts[0] if study.attempts else None
    return {
        "prompt_id": sample.prompt.id,
        "task": sample.prompt.task,
        "prompt": redact(plain_text(sample.prompt)),
        "completion": redact(first.trace) if first else "",
        "answers": [redact(attempt.answer) for attempt in study.attempts],
        "feedback": [redact(attempt.feedback.text) for attempt in study.attempts],
        "reward": first.feedback.score if first else None,
        "reflections": study.reflections,
        "tags": study.tags,
        "requested": [
            {
                key: redact(value) if isinstance(value, str) else value
                for key, value in item.model_dump().items()
                if value
            }
            for item in study.requested
        ],
        "refused": list(refused),
        "problems": [redact(problem) for problem in study.problems],
        "failure": redact(study.failure) if study.failure else None,
    }


_RECENT = 50


def metrics_row(records: Sequence[dict[str, Any]], book: Playbook, view: View, count: Any) -> dict[str, Any]:
    """Metrics after the last of these samples."""
    now, recent = records[-1], records[-_RECENT:]
    accounts = {
        role: sum(
            (Account(**record["accounts"][role]) for record in records if role in record["accounts"]),
            Account(),
        )
        for role in ROLES
    }
    total = sum(accounts.values(), Account())
    row: dict[str, Any] = {
        "learn/accuracy": sum(record["correct"] for record in records) / len(records),
        "learn/accuracy_recent": sum(record["correct"] for record in recent) / len(recent),
        "learn/accuracy_after": sum(record["correct_after"] for record in records) / len(records),
        "learn/correct": float(now["correct"]),
        "learn/failed": sum(record["failed"] for record in records),
        "learn/calls": sum(now["calls"].values()),
        "learn/problems": now["problems"],
        "playbook/bullets": len(book.bullets),
        "playbook/quarantined": sum(bullet.trust == "quarantined" for bullet in book.bullets.values()),
        "playbook/retired": len(book.retired),
        "playbook/tokens": count(view.text),
        "playbook/rewrites": view.num_rewrites,
        "cost/usd": total.cost_usd,
    }
    for role, account in accounts.items():
        row[f"cost/{role}_calls"] = account.calls
        row[f"cost/{role}_prompt_tokens"] = account.prompt_tokens
        row[f"cost/{role}_cached_tokens"] = account.cached_tokens
        row[f"cost/{role}_completion_tokens"] = account.completion_tokens
    return row
