"""How one sample is studied: answer, reflect, answer again, curate. Nothing here changes a playbook."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from postgrad.core.data import plain_text
from postgrad.core.errors import ChatError, TaskError
from postgrad.core.types import Message, Prompt
from postgrad.engines.chat import Account, Call, Chat, Ledger, Metered, Prices, Reply, ask
from postgrad.engines.chat.structured import visible
from postgrad.playbook.book import Bullet, Playbook
from postgrad.playbook.config import ROLES, LearnConfig
from postgrad.playbook.roles import (
    Curation,
    GeneratorReply,
    Reflection,
    RequestedOperation,
    cited_ids,
    curator_messages,
    generator_messages,
    instructions,
    reflection_text,
    reflector_messages,
)
from postgrad.playbook.view import line

if TYPE_CHECKING:
    from postgrad.playbook.traces import Trace


@dataclass(frozen=True)
class Feedback:
    """What is known of an answer.

    Attributes:
        score: None = it could not be judged; so is a number that is not finite.
        text: what the environment said.
    """

    score: float | None
    text: str = ""

    def __post_init__(self) -> None:
        if self.score is not None and not math.isfinite(self.score):
            object.__setattr__(self, "score", None)


def read_feedback(found: Any) -> Feedback:
    """What an environment gave.

    Raises:
        TaskError: neither a score, nor (score, feedback), nor a table with score.

    >>> read_feedback((1, "all tests pass")), read_feedback({"score": None, "feedback": "timed out"})
    (Feedback(score=1.0, text='all tests pass'), Feedback(score=None, text='timed out'))
    """
    score, text = found, ""
    if isinstance(found, Mapping):
        score, text = found.get("score"), found.get("feedback", "")
    elif isinstance(found, tuple) and len(found) == 2:
        score, text = found
    try:
        return Feedback(None if score is None else float(score), "" if text is None else str(text))
    except (TypeError, ValueError):
        raise TaskError(
            f'An environment gives a score, (score, feedback) or {{"score", "feedback"}}; this one gave {found!r}.'[
                :500
            ]
        ) from None


Score = Callable[[Prompt, str], Awaitable[Feedback]]
Agent = Callable[[str, str, Callable[[Sequence[Message]], str]], Any]


@dataclass(frozen=True)
class Roles:
    """Who plays the three roles, and at what prices."""

    generator: Chat
    reflector: Chat
    curator: Chat
    prices: Mapping[str, Prices] = field(default_factory=dict[str, Prices])

    async def close(self) -> None:
        """Closes each chat once."""
        for chat in {id(chat): chat for chat in (self.generator, self.reflector, self.curator)}.values():
            await chat.close()


@dataclass(frozen=True)
class Assignment:
    """One sample, and the playbook that it starts from.

    Attributes:
        number: of the sample, from 0.
        key: for its calls.
        prompt: the task.
        book: as it is now for this sample.
        text: the playbook in the prompt.
        shown: ids in that text, in its order.
        tokens: of that text.
        retrieved: bullets that were chosen by the question.
        pairs: ids that look alike, for the Curator.
        trace: work that was done elsewhere, instead of an answer of the Generator.
    """

    number: int
    key: str
    prompt: Prompt
    book: Playbook
    text: str
    shown: Collection[str]
    tokens: int
    retrieved: tuple[Bullet, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    trace: Trace | None = None


@dataclass(frozen=True)
class Attempt:
    """One answer.

    Attributes:
        answer: as it is judged.
        trace: all that was written.
        used: ids of bullets that it says it used.
        feedback: its judgement.
        passed: whether it is right; what could not be judged is not.
    """

    answer: str
    trace: str
    used: tuple[str, ...]
    feedback: Feedback
    passed: bool


@dataclass
class Study:
    """What became of a sample.

    Attributes:
        attempts: in order; the first one counts for accuracy.
        reflections: what was found, as text.
        tags: id → the last judgement of it.
        requested: operations that the Curator asks for.
        problems: replies that could not be used, and why.
        failure: a call that gave no reply ended it.
        account: calls, tokens, seconds and cost, by role.
        asked_s, ended_s: when the last call was sent, and when all was done, by the clock of the event loop.
    """

    attempts: list[Attempt] = field(default_factory=list[Attempt])
    reflections: list[str] = field(default_factory=list[str])
    tags: dict[str, str] = field(default_factory=dict[str, str])
    requested: list[RequestedOperation] = field(default_factory=list[RequestedOperation])
    problems: list[str] = field(default_factory=list[str])
    failure: str | None = None
    account: dict[str, Account] = field(default_factory=dict[str, Account])
    asked_s: float = 0.0
    ended_s: float = 0.0


class _Asked(Metered):
    """Enters calls into an account, and into a study when the last one was sent."""

    def __init__(self, chat: Chat, ledger: Ledger, study: Study) -> None:
        super().__init__(chat, ledger)
        self._study = study

    async def complete(self, call: Call) -> Reply:
        self._study.asked_s = asyncio.get_running_loop().time()
        return await super().complete(call)


class Studying:
    """Works on samples.

    Args:
        roles: who answers, reflects and curates.
        score: judges answers.
        config: how.
        told: instructions by role, where they are not the default ones.
        agent: works on tasks in place of the Generator's one call, in threads of its own: what it asks may need the others.
    """

    def __init__(
        self,
        roles: Roles,
        score: Score,
        config: LearnConfig,
        told: Mapping[str, str] | None = None,
        agent: Agent | None = None,
    ) -> None:
        self._roles, self._score, self._config, self._agent = roles, score, config, agent
        self._threads = ThreadPoolExecutor(2 * config.workers, "postgrad-agent") if agent else None
        generator = "generator" if config.reply == "json" else "generator_text"
        self._told = {
            "generator": instructions(generator),
            "reflector": instructions("reflector"),
            "curator": instructions("curator"),
            **(told or {}),
        }

    def count_tokens(self, text: str) -> int:
        """As the Generator's model reads it."""
        return self._roles.generator.count_tokens(text)

    async def study(self, sample: Assignment) -> Study:
        """All calls for one sample; what fails is in the result."""
        study, ledger = Study(), Ledger(self._roles.prices)
        try:
            await self._work(sample, study, ledger)
        except ChatError as error:
            study.failure = str(error)
        study.account = dict(ledger.accounts)
        study.ended_s = asyncio.get_running_loop().time()
        return study

    async def answer(self, sample: Assignment) -> tuple[Attempt | None, Account, str]:
        """Only the first answer, for evaluation; (None, …, why) where there was no reply."""
        study, ledger = Study(), Ledger(self._roles.prices)
        try:
            attempt: Attempt | None = await self._attempt(sample, study, ledger, "answer")
        except ChatError as error:
            attempt, study.failure = None, str(error)
        return attempt, ledger.total(), study.failure or ""

    async def _work(self, sample: Assignment, study: Study, ledger: Ledger) -> None:
        if sample.trace is None:
            attempt = await self._attempt(sample, study, ledger, "generate/0")
        else:
            attempt = self._from_trace(sample, sample.trace)
        study.attempts.append(attempt)
        reflection: Reflection | None = None
        rounds = 1 if attempt.passed or sample.trace else self._config.reflection_rounds
        for number in range(1, rounds + 1):
            found = await self._reflect(sample, study, ledger, attempt, number)
            reflection = found or reflection
            if found is None or attempt.passed or sample.trace:
                break
            attempt = await self._attempt(
                sample, study, ledger, f"generate/{number}", study.reflections[-1], attempt.answer
            )
            study.attempts.append(attempt)
            if attempt.passed:
                break
        if reflection is not None:
            await self._curate(sample, study, ledger)

    async def _attempt(
        self,
        sample: Assignment,
        study: Study,
        ledger: Ledger,
        name: str,
        reflection: str = "",
        earlier_answer: str = "",
    ) -> Attempt:
        chat, key = _Asked(self._roles.generator, ledger, study), f"{sample.key}/{name}"
        question = self._question(sample)
        retrieved = "\n".join(map(line, sample.retrieved))
        known = [*sample.shown, *(bullet.id for bullet in sample.retrieved)]
        if self._agent is not None:
            return await self._with_agent(sample, chat, key, question, retrieved, reflection, known)
        messages = generator_messages(
            self._told["generator"],
            sample.text,
            question,
            retrieved=retrieved,
            reflection=reflection,
            earlier_answer=earlier_answer,
        )
        call = Call(key, "generator", messages)
        if self._config.reply == "text":
            trace = (await chat.complete(call)).text
            answer, used = visible(trace).strip(), cited_ids(trace, known)
        else:
            got = await ask(chat, call, GeneratorReply, self._config.repairs)
            study.problems += [f"generator: {problem}" for problem in got.problems]
            trace = got.replies[-1].text
            answer = got.value.final_answer if got.value else ""
            cited = set(got.value.bullet_ids if got.value else ()) | set(cited_ids(trace, known))
            used = [id for id in known if id in cited]
        return await self._judged(sample.prompt, answer, trace, used)

    async def _with_agent(
        self,
        sample: Assignment,
        chat: Chat,
        key: str,
        question: str,
        retrieved: str,
        reflection: str,
        known: Sequence[str],
    ) -> Attempt:
        assert self._agent is not None
        loop, numbers = asyncio.get_running_loop(), iter(range(10**9))

        def ask_model(messages: Sequence[Message]) -> str:
            call = Call(f"{key}/{next(numbers)}", "generator", tuple(messages))
            return asyncio.run_coroutine_threadsafe(chat.complete(call), loop).result().text

        parts = [sample.text, retrieved, reflection and f"Found about an earlier answer:\n{reflection}"]
        context = "\n\n".join(part for part in parts if part)
        try:
            found = await loop.run_in_executor(self._threads, self._agent, question, context, ask_model)
        except ChatError:
            raise
        except Exception as error:
            raise ChatError(f"The agent ended with {type(error).__name__}: {error}") from error
        result = found if isinstance(found, Mapping) else {"answer": found}
        answer = "" if result.get("answer") is None else str(result["answer"])
        trace = str(result.get("trace", answer))
        used = cited_ids(trace, known)
        if "score" in result:
            feedback = read_feedback(result)
            return Attempt(answer, trace, tuple(used), feedback, self._passes(feedback))
        return await self._judged(sample.prompt, answer, trace, used)

    def _question(self, sample: Assignment) -> str:
        return plain_text(sample.prompt, self._config.data.instruction).removesuffix("\n")

    async def _judged(self, prompt: Prompt, answer: str, trace: str, used: Sequence[str]) -> Attempt:
        feedback = await self._score(prompt, answer)
        return Attempt(answer, trace, tuple(used), feedback, self._passes(feedback))

    def _passes(self, feedback: Feedback) -> bool:
        return feedback.score is not None and feedback.score >= self._config.pass_score

    def _from_trace(self, sample: Assignment, trace: Trace) -> Attempt:
        feedback = Feedback(trace.score, trace.feedback)
        used = cited_ids(trace.messages, sample.book.bullets)
        return Attempt(trace.answer, trace.messages, tuple(used), feedback, self._passes(feedback))

    async def _reflect(
        self, sample: Assignment, study: Study, ledger: Ledger, attempt: Attempt, number: int
    ) -> Reflection | None:
        used = {id: line(sample.book.bullets[id]) for id in attempt.used if id in sample.book.bullets}
        messages = reflector_messages(
            self._told["reflector"],
            self._question(sample),
            attempt.trace,
            attempt.answer,
            used,
            truth=sample.prompt.answer if self._config.labels else None,
            feedback=attempt.feedback.text,
            correct=None if attempt.feedback.score is None else attempt.passed,
            earlier=study.reflections[-1] if study.reflections else "",
        )
        call = Call(f"{sample.key}/reflect/{number}", "reflector", messages)
        got = await ask(_Asked(self._roles.reflector, ledger, study), call, Reflection, self._config.repairs)
        study.problems += [f"reflector: {problem}" for problem in got.problems]
        if got.value is not None:
            study.reflections.append(reflection_text(got.value))
            # Of lines that it was not shown it knows nothing, whatever stands in the work that it read.
            study.tags.update((tag.id, tag.tag) for tag in got.value.bullet_tags if tag.id in used)
        return got.value

    async def _curate(self, sample: Assignment, study: Study, ledger: Ledger) -> None:
        held = [line(b) for b in sample.book.bullets.values() if b.trust == "quarantined"]
        messages = curator_messages(
            self._told["curator"],
            sample.text,
            self._question(sample),
            study.reflections[-1],
            tokens=sample.tokens,
            budget_tokens=self._config.budget_tokens,
            similar=[
                (line(sample.book.bullets[a]), line(sample.book.bullets[b]))
                for a, b in sample.pairs
                if a in sample.book.bullets and b in sample.book.bullets
            ],
            retrieved=list(map(line, sample.retrieved)),
            quarantined=held[-20:],
            context=self._config.about,
        )
        call = Call(f"{sample.key}/curate", "curator", messages)
        got = await ask(_Asked(self._roles.curator, ledger, study), call, Curation, self._config.repairs)
        study.problems += [f"curator: {problem}" for problem in got.problems]
        if got.value is not None:
            study.requested = got.value.operations


def prices_of(config: LearnConfig) -> dict[str, Prices]:
    """By role."""
    return {name: Prices.of(config.role(name)) for name in ROLES}
