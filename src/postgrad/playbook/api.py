"""`learn`, `evaluate` and `open`: from a config to a playbook, the same for the command line and for Python."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from postgrad.core.config import nest, validate
from postgrad.core.data import plain_text
from postgrad.core.errors import ConfigError, DataError, PostgradError
from postgrad.core.protocols import Logger
from postgrad.core.statistics import Interval, clustered_rate, paired_difference
from postgrad.core.types import Prompt
from postgrad.engines.chat import Account, Call, Chat, Journal, Reply, make_chat
from postgrad.playbook.book import Delta, Playbook
from postgrad.playbook.clean import redact
from postgrad.playbook.config import ROLES, LearnConfig
from postgrad.playbook.dedup import Index
from postgrad.playbook.embed import Embedder, HashedNgrams, SentenceTransformers
from postgrad.playbook.learning import Learning, Work, answers, draw_held_out, plan_work, retrieve, trace_work
from postgrad.playbook.log import PlaybookLog
from postgrad.playbook.score import make_score
from postgrad.playbook.study import Agent, Assignment, Feedback, Roles, Score, Studying, prices_of
from postgrad.playbook.traces import Trace
from postgrad.playbook.view import CountTokens, View, advance
from postgrad.tasks import Split, load_tasks, split
from postgrad.tasks.function import load_callable

T = TypeVar("T")


class _Silent:
    """Takes metrics and keeps nothing."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""


def read_work(config: LearnConfig) -> Work:
    """Prompts of the config's tasks, split and ordered. Raises as the tasks do, and ConfigError as `plan_work`."""
    sides = _split(config)
    return plan_work(sides.train, sides.held_out, config)


def held_out_prompts(config: LearnConfig) -> list[Prompt]:
    """Prompts that are never learned from, at most `validation_samples` (0 = all), of all tasks. Raises as the tasks do."""
    return draw_held_out(_split(config).held_out, config)


def _split(config: LearnConfig) -> Split:
    prompts = [prompt for task in load_tasks(config.data) for prompt in task.prompts()]
    return split(prompts, config.data.holdout_fraction)


def make_roles(config: LearnConfig) -> Roles:
    """The chats of a config; roles that differ in nothing share one.

    Raises:
        ConfigError: no model was named, or as `make_chat`.
    """
    if not (config.chat or all(getattr(config, name) for name in ROLES)):
        raise ConfigError(
            "No language model. Name a server (--chat.base_url http://127.0.0.1:11434/v1 --chat.model NAME) or a local model "
            "(--chat.path DIR)."
        )
    made: dict[str, Chat] = {}
    chats: list[Chat] = []
    for chat in map(config.role, ROLES):
        key = chat.model_dump_json()
        if key not in made:
            made[key] = make_chat(chat)
        chats.append(made[key])
    return Roles(*chats, prices=prices_of(config))


def with_journals(roles: Roles, folder: Path) -> Roles:
    """The same roles with `calls-ROLE.jsonl` in a folder, so that a killed run pays for no call twice; who shares a chat shares
    its journal. Raises as `Journal`."""
    made: dict[int, Chat] = {}
    for name in ROLES:
        chat = getattr(roles, name)
        if id(chat) not in made:
            made[id(chat)] = _OwnJournal(chat, folder / f"calls-{name}.jsonl", redact=redact)
    return replace(roles, **{name: made[id(getattr(roles, name))] for name in ROLES})


class _OwnJournal(Journal):
    """A journal of the same run: what it answers was paid for by the sample that asks again, which is in no account yet."""

    async def complete(self, call: Call) -> Reply:
        return replace(await super().complete(call), replayed=False)


def make_embedder(config: LearnConfig) -> Embedder:
    """The embedder of a config."""
    return HashedNgrams() if config.embedder == "hashed" else SentenceTransformers(config.embedder)


def read_instructions(config: LearnConfig) -> dict[str, str]:
    """Instructions by role, of those that were given as files.

    Raises:
        DataError: a file that cannot be read.
    """
    found: dict[str, str] = {}
    for role, path in config.prompts.items():
        try:
            found[role] = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"The instructions of the {role} in {path} cannot be read: {error}") from None
    return found


def load_agent(config: LearnConfig) -> Agent | None:
    """The agent of a config, if it names one."""
    if config.agent is None:
        return None
    return load_callable(config.agent, "Agent", "--agent my_agent:work")


@contextlib.contextmanager
def studying(config: LearnConfig, roles: Roles, score: Score | None = None) -> Generator[Studying]:
    """Who works on samples, with judges that end with the context."""
    with contextlib.ExitStack() as stack:
        judge = score or stack.enter_context(make_score(config))
        yield Studying(roles, judge, config, read_instructions(config), load_agent(config))


def learn(
    log: PlaybookLog,
    config: LearnConfig,
    *,
    run: Logger | None = None,
    traces: Sequence[Trace] | None = None,
    roles: Roles | None = None,
    score: Score | None = None,
    work: Work | None = None,
    journal: Path | None = None,
    start: int = 0,
    logged: Collection[tuple[int, str]] = (),
) -> Playbook:
    """Grows a playbook: offline, online, or from traces.

    Args:
        log: of the playbook, which gets a delta for each sample.
        config: all options.
        run: takes metrics and samples.
        traces: work that was done elsewhere, in place of the config's tasks.
        roles: who answers, reflects and curates; default: as the config says. They are closed at the end.
        score: judges answers; default: as the config says.
        work: samples; default: of the config's tasks.
        journal: directory for the calls of the roles, so that none is paid for twice.
        start: deltas of the log that were there before; those after it are this session's, which goes on.
        logged: (step, area) of metrics that `run` has already.

    Returns:
        The best version by validation, else the last.

    Raises:
        ChatError: too many samples in a row got no reply. What was learned is in the log.
        PostgradError: as tasks, judges, chats and the log raise it.
    """
    work = work or (trace_work(traces) if traces is not None else read_work(config))
    own = roles or make_roles(config)
    own = with_journals(own, journal) if journal else own

    async def go(who: Studying) -> Playbook:
        try:
            session = Learning(log, work, who, config, run or _Silent(), make_embedder(config), start, logged)
            return await session.learn()
        finally:
            await own.close()

    with contextlib.ExitStack() as stack:
        if score is None and traces is not None:
            score = _no_score
        return _run(go(stack.enter_context(studying(config, own, score))))


async def _no_score(prompt: Prompt, answer: str) -> Feedback:
    raise AssertionError("a trace is never answered again")


class Evaluation(NamedTuple):
    """Shares of prompts that were answered rightly, each with its 95 % interval.

    Attributes:
        with_playbook, without: the two shares.
        difference: the first minus the second, on the same prompts.
        outcomes: of each prompt, whether it was right with the playbook and without.
        account: what both took.
    """

    with_playbook: Interval
    without: Interval
    difference: Interval
    outcomes: Sequence[tuple[bool, bool]]
    account: Account


def evaluate(
    playbook: Playbook,
    prompts: Sequence[Prompt],
    config: LearnConfig,
    *,
    roles: Roles | None = None,
    score: Score | None = None,
    journal: Path | None = None,
) -> Evaluation:
    """Share of prompts that the Generator answers rightly with a playbook, and without; no reply is a wrong answer.

    Raises:
        ChatError: `max_failures` prompts in a row got no reply.
    """
    own = roles or make_roles(config)
    own = with_journals(own, journal) if journal else own

    async def go(who: Studying) -> Evaluation:
        try:
            outcomes: list[list[bool]] = []
            total = Account()
            for name, book in (("with", playbook), ("without", Playbook())):
                found, account = await answers(
                    who, _asked(name, book, prompts, config, who.count_tokens), config
                )
                outcomes.append([bool(attempt and attempt.passed) for attempt in found])
                total += account
            pairs = list(zip(*outcomes, strict=True))
            first, second = (clustered_rate([[passed] for passed in side]) for side in outcomes)
            return Evaluation(first, second, paired_difference(pairs), pairs, total)
        finally:
            await own.close()

    with studying(config, own, score) as who:
        return _run(go(who))


def _asked(
    name: str, book: Playbook, prompts: Sequence[Prompt], config: LearnConfig, count: CountTokens
) -> list[Assignment]:
    """Each prompt with the playbook."""
    view = advance(View(), book, config.budget_tokens - config.retrieved_tokens, count)
    shown = view.shown or {}
    index = Index(make_embedder(config))
    if config.retrieved_tokens:
        index.add_all((bullet.id, bullet.text) for bullet in book.trusted)
    found: list[Assignment] = []
    for number, prompt in enumerate(prompts):
        more = retrieve(book, index, plain_text(prompt), shown, config.retrieved_tokens, count)
        key = f"eval/{name}/{number}"
        found.append(Assignment(number, key, prompt, book, view.text, shown, 0, tuple(more)))
    return found


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Runs to the end; in a thread of its own where the caller's has a loop already, as in notebooks."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1, "postgrad-playbook") as thread:
        return thread.submit(asyncio.run, work).result()


class OpenPlaybook:
    """A playbook beside an agent of one's own: `context` before a task, `learn` after it.

    Args:
        path: of the log; it is made with the first delta.
        options: of `LearnConfig`, dotted or nested: chat, budget_tokens, …
        roles: who reflects and curates; default: as the options say.

    >>> with open_playbook("team.jsonl", chat={"base_url": URL, "model": NAME}) as book:  # doctest: +SKIP
    ...     answer = my_agent(question, book.context(question))
    ...     book.learn(question, answer, score=1.0)
    """

    def __init__(self, path: Path | str, *, roles: Roles | None = None, **options: Any) -> None:
        self.log = PlaybookLog(path)
        self.config = validate(LearnConfig, nest(options))
        self._thread = ThreadPoolExecutor(
            1, "postgrad-playbook"
        )  # its own: the caller's may have a loop, as in notebooks
        self._runner = asyncio.Runner()
        self._roles = roles or make_roles(self.config)
        who = Studying(self._roles, _no_score, self.config, read_instructions(self.config))
        self._session = Learning(
            self.log,
            Work([], 0),
            who,
            self.config,
            _Silent(),
            make_embedder(self.config),
            len(self.log.deltas),
        )
        self._session.begin()

    @property
    def playbook(self) -> Playbook:
        """As it is now."""
        return self.log.playbook

    def context(self, question: str = "") -> str:
        """The text for an agent's prompt, within the budget; with `retrieved_tokens`, bullets that fit the question too."""
        return self._session.context(Prompt(id="", text=question))

    def learn(
        self,
        question: str,
        trace: str,
        *,
        answer: str = "",
        score: float | None = None,
        feedback: str = "",
        truth: str | None = None,
    ) -> Delta:
        """Reflects on what was done, and takes what is worth keeping into the playbook.

        Args:
            question: the task.
            trace: all that the agent wrote; ids in brackets, such as [calc-00003], tell which bullets it used.
            answer: its answer, where the trace has more than that.
            score: at least `pass_score` is right; None = nobody knows.
            feedback: what the environment said.
            truth: the right answer, where it is known.

        Returns:
            What has changed; it is on the disk.

        Raises:
            ChatError: no reply could be had; nothing has changed.
        """
        work = Trace(
            id=f"{self.log.path.stem}/{len(self.log.deltas) + 1}",
            question=question,
            messages=trace,
            answer=answer or trace,
            score=score,
            feedback=feedback,
            truth=truth,
        )
        prompt = Prompt(id=work.id, text=question, answer=truth)
        return self._thread.submit(self._runner.run, self._session.take(prompt, work)).result()

    def close(self) -> None:
        """Lets go of connections and of the log."""
        with contextlib.suppress(PostgradError):
            self._thread.submit(self._runner.run, self._roles.close()).result()
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


open_playbook = OpenPlaybook
