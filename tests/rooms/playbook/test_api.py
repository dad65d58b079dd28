"""From Python: traces, a playbook beside one's own agent, environments, agents, what the Reflector may know."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks._student import Student, as_work, judge, roles
from tests.rooms.playbook.small import RULES, Moody, Recorder, config, no_reply, play, work_of

from postgrad.core.errors import ChatError, ConfigError, TaskError
from postgrad.core.types import Prompt
from postgrad.engines.chat import Call, Reply
from postgrad.playbook.api import OpenPlaybook, evaluate, learn, open_playbook
from postgrad.playbook.book import Playbook, SetTrust, Tag
from postgrad.playbook.log import PlaybookLog
from postgrad.playbook.plan import plan
from postgrad.playbook.score import by_environment
from postgrad.playbook.study import Feedback, read_feedback
from postgrad.playbook.traces import Trace


def traces(count: int, **fields: Any) -> list[Trace]:
    return [
        Trace(id=f"t{n}", question=str(prompt.text), messages="I guessed.", answer="0", **fields)
        for n, prompt in enumerate(RULES.prompts(count, 5))
    ]


# -- traces --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "truth", "said"),
    [(0.0, "7", "Answer (wrong)"), (1.0, None, "Answer (right)"), (None, None, "Answer (not judged)")],
)
def test_traces_teach(score: float | None, truth: str | None, said: str, tmp_path: Path) -> None:
    student = Moody(RULES, reveal=1.0, keep=True)
    run = Recorder()
    with PlaybookLog(tmp_path / "p.jsonl") as log:
        given = traces(8, score=score, truth=truth, feedback="hm")
        book = learn(log, config(window=3), traces=given, roles=roles(student), run=run)
    assert set(student.calls) == {"reflector", "curator"}
    assert student.calls == {"reflector": 8, "curator": 8}
    assert len(book) > 4
    for text in student.prompts["reflector"]:
        assert said in text
        assert ("Right answer" in text) is (truth is not None)
    assert run.last("learn/accuracy") == (score or 0)
    assert [(d.sample or {})["judged"] for d in log.deltas] == [score is not None] * 8
    assert log.deltas[2].source == "trace t2"


def test_traces_tag_the_lines_that_they_cite(tmp_path: Path) -> None:
    student = Moody(RULES, reveal=1.0)
    book, log, _ = play(tmp_path, student, config(), work_of(12))
    known = next(iter(book.bullets.values()))
    word = known.text.split(" counts ")[0].split()[-1]
    trace = Trace("t", f"Add up: {word}", f"By [{known.id}] and [calc-99999].", "1", 1.0)
    start = len(log.deltas)
    with PlaybookLog(log.path) as log:
        learn(log, config(), traces=[trace], roles=roles(student), start=start)
    assert log.deltas[-1].operations[0] == Tag(known.id, helpful=1)
    assert (log.deltas[-1].sample or {})["used"] == [known.id]


def test_no_traces_and_nothing_to_validate_on_are_said(tmp_path: Path) -> None:
    with PlaybookLog(tmp_path / "p.jsonl") as log:
        with pytest.raises(ConfigError, match="no trace to learn from"):
            learn(log, config(), traces=[], roles=roles(Student(RULES)))
        held = config(mode="offline", quarantine="validation")
        with pytest.raises(ConfigError, match="which traces do not have"):
            learn(log, held, traces=traces(2), roles=roles(Student(RULES)))


# -- beside an agent of one's own ----------------------------------------------------------------------------


def test_three_calls_are_enough(tmp_path: Path) -> None:
    student = Moody(RULES, reveal=1.0, keep=True)
    path = tmp_path / "team" / "p.jsonl"
    right = 0
    with open_playbook(path, roles=roles(student), window=1) as book:
        assert isinstance(book, OpenPlaybook)
        for prompt in RULES.prompts(40, 6):
            question = str(prompt.text)
            reply = student.generator(f"{book.context(question)}\nTask:\n{question}", None)  # type: ignore[arg-type]
            right = right + 1 if reply["final_answer"] == prompt.answer else 0
            cited = " ".join(f"[{id}]" for id in reply["bullet_ids"])
            delta = book.learn(question, f"I used {cited}.", answer=reply["final_answer"], truth=prompt.answer,
                               score=float(reply["final_answer"] == prompt.answer), feedback="sum checked")  # fmt: skip
            assert (delta.sample or {})["epoch"] == 0
        assert right > 10
        assert sum(bullet.helpful for bullet in book.playbook.bullets.values()) > 10
        assert "generator" not in student.calls
        before = book.playbook
    with open_playbook(path, roles=roles(student)) as again:
        assert again.playbook == before
        assert again.context("x").count("\n") + 1 >= len(before)


def test_a_loop_that_runs_already_is_no_hindrance(tmp_path: Path) -> None:
    async def notebook() -> int:
        with PlaybookLog(tmp_path / "p.jsonl") as log:
            given = traces(2, score=0.0)
            learned = learn(log, config(), traces=given, roles=roles(Moody(RULES, reveal=1.0)))
        options: dict[str, Any] = {"roles": roles(Moody(RULES, reveal=1.0))}
        with open_playbook(tmp_path / "q.jsonl", **options) as book:
            book.learn(str(RULES.prompts(1, 5)[0].text), "I guessed.", answer="0", score=0.0)
            return min(len(learned), len(book.playbook))

    assert asyncio.run(notebook()) > 0


def test_what_fails_leaves_an_open_playbook_as_it_was(tmp_path: Path) -> None:
    student = Moody(
        RULES, reveal=1.0, spoil=lambda call, number: no_reply(call) if number in (0, 3) else None
    )
    with open_playbook(tmp_path / "p.jsonl", roles=roles(student)) as book:
        with pytest.raises(ChatError, match="no reply to trace/0/reflect/1"):
            book.learn("Add up: zivigo", "x", score=0.0)
        assert not book.log.deltas
        book.learn("Add up: zivigo", "x", score=0.0)
        with pytest.raises(ChatError):
            book.learn("Add up: roliru", "x", score=float("nan"))
        delta = book.learn("Add up: roliru", "x", score=float("nan"))
        assert (delta.sample or {})["judged"] is False
        assert len(book.log.deltas) == 2


def test_an_open_playbook_retrieves_by_the_question(tmp_path: Path) -> None:
    student = Student(RULES, reveal=1.0, repeat=0.0)
    options = {"budget_tokens": 120, "retrieved_tokens": 60}
    with open_playbook(tmp_path / "p.jsonl", roles=roles(student), **options) as book:
        for word in RULES.values:
            book.learn(f"Add up: {word}", "x", score=0.0)
        assert len(book.playbook) == 16
        for word in RULES.values:
            context = book.context(f"Add up: {word}")
            assert f"{word} counts {RULES.values[word]}" in context
            assert student.count_tokens(context) <= 121


# -- environments --------------------------------------------------------------------------------------------


def test_an_environment_judges_and_its_exceptions_are_feedback(tmp_path: Path) -> None:
    def environment(prompt: Prompt, answer: str) -> Any:
        number = int(prompt.id.split("-")[1])
        if number == 1:
            raise RuntimeError("the sandbox fell over")
        right = answer == prompt.answer
        return [float(right), None, (right, "tuple"), {"score": float(right), "feedback": "table"}][
            number % 4
        ]

    student = Moody(RULES, reveal=1.0, keep=True)
    _, log, run = play(
        tmp_path, student, config(reflection_rounds=1), work_of(8), score=by_environment(environment)
    )
    texts = {
        delta.sample["prompt"]: row
        for delta, (_, row) in zip(log.deltas, run.samples, strict=True)
        if delta.sample
    }
    assert texts["1-1"]["feedback"][0] == "RuntimeError: the sandbox fell over"
    assert texts["1-2"]["feedback"][0] == "tuple"
    assert texts["1-3"]["feedback"][0] == "table"
    judged = [(delta.sample or {})["judged"] for delta in log.deltas]
    assert judged == [True, False, True, True, True, False, True, True]
    assert "the sandbox fell over" in student.prompts["reflector"][1]
    assert "Answer (not judged)" in student.prompts["reflector"][1]
    with pytest.raises(TaskError, match="gives a score"):
        play(
            tmp_path / "x", student, config(), work_of(3), score=by_environment(lambda prompt, answer: "good")
        )


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_none(score: float, tmp_path: Path) -> None:
    assert read_feedback(score).score is None
    assert read_feedback((score, None)) == Feedback(None, "")
    _, log, _ = play(tmp_path, Moody(RULES), config(), work_of(2), score=by_environment(lambda p, a: score))
    assert (log.deltas[0].sample or {})["score"] is None


@pytest.mark.parametrize(("pass_score", "right"), [(0.4, 1.0), (0.5, 1.0), (0.6, 0.0)])
def test_a_pass_score_says_what_is_right(pass_score: float, right: float, tmp_path: Path) -> None:
    settings = config(pass_score=pass_score)
    _, _, run = play(tmp_path, Moody(RULES), settings, work_of(4), score=by_environment(lambda p, a: 0.5))
    assert run.last("learn/accuracy") == right


def test_without_labels_the_reflector_does_not_see_the_right_answer(tmp_path: Path) -> None:
    async def silent(prompt: Prompt, answer: str) -> Feedback:
        return Feedback(float(answer == prompt.answer), "right" if answer == prompt.answer else "wrong")

    work = as_work(
        [Prompt(id=p.id, text=p.text, answer=f"ANSWER{p.answer}", task="t") for p in RULES.prompts(6, 1)]
    )
    for labels in (True, False):
        student = Moody(RULES, reveal=0.0, keep=True)
        play(tmp_path / str(labels), student, config(labels=labels), work, score=silent)
        shown = ["ANSWER" in text for text in [*student.prompts["reflector"], *student.prompts["curator"]]]
        assert any(shown) is labels
        assert not any("ANSWER" in text for text in student.prompts["generator"])


def test_an_instruction_stands_before_each_task(tmp_path: Path) -> None:
    student = Moody(RULES, reveal=1.0, keep=True)
    play(tmp_path, student, config(data={"instruction": "Think twice."}), work_of(3))
    for role, texts in student.prompts.items():
        assert all("Think twice.\nTask" in text for text in texts), role


# -- agents --------------------------------------------------------------------------------------------------


class Echo:
    """A model that counts, and waits as a journal does: for a thread of the loop's own pool."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    async def complete(self, call: Call) -> Reply:
        import asyncio

        self.keys.append(call.key)
        await asyncio.to_thread(lambda: None)
        return Reply(call.messages[-1]["content"].upper(), 1, 0, 1)

    def count_tokens(self, text: str) -> int:
        return len(text) // 4

    async def close(self) -> None: ...


Ask = Callable[[Sequence[dict[str, str]]], str]


def agent_config(monkeypatch: pytest.MonkeyPatch, agent: Any, **options: Any) -> Any:
    import types

    module = types.ModuleType("agent_for_tests")
    module.work = agent  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "agent_for_tests", module)
    return config(agent="agent_for_tests:work", **options)


def play_agent(folder: Path, settings: Any, work: Any, chat: Any = None, **options: Any) -> Any:
    from dataclasses import replace

    student = Moody(RULES, reveal=1.0)
    cast = replace(roles(student), generator=chat or Echo())
    run = Recorder()
    with PlaybookLog(folder / "p.jsonl") as log:
        book = learn(log, settings, run=run, roles=cast, work=work, score=judge, **options)
    return book, log, run


def test_many_agents_ask_many_times_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More agents than the loop's own pool has threads, all waiting for replies that need one of these."""
    barrier = threading.Barrier(12, timeout=20)

    def agent(question: str, playbook: str, ask: Ask) -> Any:
        barrier.wait()
        said = [ask([{"role": "user", "content": f"{turn}"}]) for turn in range(3)]
        return {"answer": "1", "trace": f"{said} {playbook[:20]}"}

    settings = agent_config(monkeypatch, agent, window=12, workers=12, reflection_rounds=1)
    chat = Echo()
    prompts = RULES.prompts(12, 1)
    _, log, run = play_agent(tmp_path, settings, as_work(prompts), chat, journal=tmp_path)
    assert len(log.deltas) == 12
    assert sorted(chat.keys) == sorted(
        f"0/{n}/generate/{turn}/{k}" for n in range(12) for turn in (0, 1) for k in range(3)
    )
    assert run.samples[0][1]["completion"].startswith("['0', '1', '2']")
    assert run.last("cost/generator_calls") == 72


def test_an_agent_may_judge_itself_and_give_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter([
        {"answer": 1, "score": 1, "feedback": None}, "text", None, 7, {"trace": "t"},
        {"answer": "x", "score": float("nan")}, {"answer": "x", "score": None},
    ])  # fmt: skip
    settings = agent_config(monkeypatch, lambda question, playbook, ask: next(given), reflection_rounds=1)
    monkeypatch.setattr("postgrad.playbook.study.Studying._reflect", _nothing)
    _, log, run = play_agent(tmp_path, settings, work_of(7))
    assert [row["answers"][0] for _, row in run.samples] == ["1", "text", "", "7", "", "x", "x"]
    assert [(d.sample or {})["score"] for d in log.deltas] == [1.0, 0.0, 0.0, 0.0, 0.0, None, None]


async def _nothing(*_: Any) -> None:
    return None


def test_an_agent_that_raises_is_a_sample_without_a_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def agent(question: str, playbook: str, ask: Ask) -> str:
        if "Task 1-2." in question:
            raise KeyError("tool")
        return "0"

    settings = agent_config(monkeypatch, agent, reflection_rounds=1, max_failures=2)
    _, log, run = play_agent(tmp_path / "one", settings, work_of(5))
    assert [(d.sample or {})["failed"] for d in log.deltas] == [False, False, True, False, False]
    assert "The agent ended with KeyError: 'tool'" in run.samples[2][1]["failure"]
    settings = agent_config(monkeypatch, lambda *_: 1 / 0, max_failures=2)
    with pytest.raises(
        ChatError, match="2 samples in a row got no reply; the last: The agent ended with ZeroDivision"
    ):
        play_agent(tmp_path / "all", settings, work_of(5))


# -- evaluation and plan -------------------------------------------------------------------------------------


def test_an_evaluation_is_paired(tmp_path: Path) -> None:
    student = Student(RULES, reveal=1.0)
    book, _, _ = play(tmp_path, student, config(), work_of(40))
    chat = Moody(RULES)
    found = evaluate(book, RULES.prompts(30, 8), config(workers=4), roles=roles(chat), score=judge)
    assert found.with_playbook.mean - found.without.mean == pytest.approx(found.difference.mean)
    assert found.difference.low <= found.difference.mean <= found.difference.high
    assert found.with_playbook.mean == sum(a for a, _ in found.outcomes) / 30 > 0.8
    assert found.account.calls == 60 == len({call.key for call in chat.log})
    assert set(chat.calls) == {"generator"}
    poison = Moody(
        RULES, spoil=lambda call, number: no_reply(call) if call.key == "eval/with/3/answer" else None
    )
    worse = evaluate(book, RULES.prompts(30, 8), config(), roles=roles(poison), score=judge)
    assert worse.with_playbook.mean == pytest.approx(found.with_playbook.mean - 1 / 30)
    silent = Moody(RULES, spoil=lambda call, number: no_reply(call))
    with pytest.raises(ChatError, match="5 held-out prompts in a row got no reply"):
        evaluate(Playbook(), RULES.prompts(5, 8), config(), roles=roles(silent), score=judge)


def test_quarantined_bullets_do_not_answer(tmp_path: Path) -> None:
    book, log, _ = play(tmp_path, Student(RULES, reveal=1.0), config(), work_of(40))
    with PlaybookLog(log.path) as log:
        log.append([SetTrust(id, "quarantined") for id in book.bullets])
    found = evaluate(log.playbook, RULES.prompts(10, 8), config(), roles=roles(Student(RULES)), score=judge)
    assert found.with_playbook.mean == 0.0


@pytest.mark.parametrize("traced", [False, True])
def test_a_plan_bounds_what_happens(traced: bool, tmp_path: Path) -> None:
    settings = config(
        mode="offline", epochs=1, validate_every=4, validation_samples=5, reflection_rounds=3,
        chat={"base_url": "http://127.0.0.1:1/v1", "model": "m", "price_prompt": 1.0, "price_completion": 1.0},
    )  # fmt: skip
    from postgrad.playbook.learning import trace_work

    work = trace_work(traces(10)) if traced else as_work(RULES.prompts(10, 1), RULES.prompts(5, 2))
    expected = plan(settings, work)
    student = Moody(RULES, reveal=0.4)
    play(tmp_path, student, settings, work)
    assert expected.validations == (0 if traced else 20)
    assert expected.best.calls <= student.total <= expected.worst.calls
    assert expected.best.cost_usd is not None
    assert len(expected.lines()) == 3
