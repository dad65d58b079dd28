"""The loop: the same result whatever is fast, and after every kill; failures, counts, budgets, validation."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks._student import Rules, Student, as_work, judge
from tests.rooms.playbook.small import (
    RULES,
    Moody,
    Recorder,
    config,
    no_reply,
    operations,
    play,
    work_of,
)

from postgrad.core.errors import ChatError, ConfigError
from postgrad.core.types import Prompt
from postgrad.engines.chat import Call
from postgrad.playbook.api import evaluate
from postgrad.playbook.book import Add, Delta, Playbook, Tag, Update, fold
from postgrad.playbook.config import LearnConfig
from postgrad.playbook.learning import BEST, plan_work
from postgrad.playbook.log import PlaybookLog
from postgrad.playbook.ops import calls_bound
from postgrad.playbook.roles import curator_messages, generator_messages, instructions, reflector_messages
from postgrad.playbook.text import format_text
from postgrad.playbook.view import View, advance, line

RULE = re.compile(r"counts \d")


def everything(
    folder: Path, student: Student, settings: LearnConfig, work: Any, **options: Any
) -> tuple[Any, ...]:
    book, log, run = play(folder, student, settings, work, **options)
    return (
        operations(log),
        book.bullets,
        list(book.bullets),
        format_text(book.bullets.values()),
        run.metrics(),
        run.samples,
        [call.messages for call in sorted(getattr(student, "log", ()), key=lambda call: call.key)],
    )


# -- order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "offline", "quarantine": "validation", "validate_every": 5, "validation_samples": 6},
        {"budget_tokens": 260, "refine": "lazy"},
        {"budget_tokens": 260, "retrieved_tokens": 130},
    ],
    ids=lambda options: options.get("quarantine") or str(options.get("budget_tokens", "plain")),
)
def test_which_call_is_faster_changes_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    found: list[tuple[Any, ...]] = []
    peaks: list[int] = []
    for turn, workers in enumerate((1, 3, 8, 8)):
        student = Moody(RULES, mislead=0.15, reveal=0.7, repeat=0.5, jitter_s=0.012, jitter_seed=turn)
        settings = config(window=8, workers=workers, **options)
        found.append(everything(tmp_path / str(turn), student, settings, work_of(28, 6)))
        peaks.append(student.peak)
    assert peaks[0] == 1 or options.get("quarantine")
    assert max(peaks) > 4
    for other in found[1:]:
        assert other == found[0]


def test_the_order_of_ids_in_prompts_is_not_that_of_a_hash(tmp_path: Path) -> None:
    """The Reflector reads lines in the order of the playbook, in every process: else a resumed run would ask anew."""
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.rooms.playbook.small import *\n"
        "student = Moody(RULES)\n"
        "play(Path(sys.argv[1]), student, config(), as_work(RULES.prompts(14, 1, words_each=4)))\n"
        "print([call.messages for call in student.log])"
    )
    root = Path(__file__).parents[3]
    prompts = [
        subprocess.check_output(
            [sys.executable, "-c", code, str(tmp_path / seed)],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        for seed in "12"
    ]
    assert prompts[0] == prompts[1]


def by_hand(student: Student, prompts: list[Prompt], rounds: int) -> tuple[Playbook, str, list[bool]]:
    """The paper's loop, one call after another, with nothing but the Curator's additions and updates."""
    told = {role: instructions(role) for role in ("generator", "reflector", "curator")}
    deltas: list[Delta] = []
    view = View()
    right: list[bool] = []

    def ask(key: str, role: str, messages: Any) -> dict[str, Any]:
        return json.loads(asyncio.run(student.complete(Call(key, role, messages))).text)

    for number, prompt in enumerate(prompts):
        book = fold(deltas)
        view = advance(view, book, 16_384, student.count_tokens)
        question = prompt.text or ""
        reply = ask(
            f"0/{number}/generate/0", "generator", generator_messages(told["generator"], view.text, question)
        )
        right.append(reply["final_answer"] == prompt.answer)
        correct, text, tags = right[-1], "", dict[str, str]()
        for turn in range(1, 2 if correct else rounds + 1):
            messages = reflector_messages(
                told["reflector"],
                question,
                json.dumps(reply),
                reply["final_answer"],
                {id: line(book.bullets[id]) for id in book.bullets if id in reply["bullet_ids"]},
                truth=prompt.answer,
                feedback=f"expected {prompt.answer}",
                correct=correct,
                earlier=text,
            )
            found = ask(f"0/{number}/reflect/{turn}", "reflector", messages)
            tags |= {tag["id"]: tag["tag"] for tag in found["bullet_tags"]}
            text = json.dumps({"key_insight": found["key_insight"]}) if found["key_insight"] else "{}"
            if correct:
                break
            messages = generator_messages(
                told["generator"], view.text, question, reflection=text, earlier_answer=reply["final_answer"]
            )
            reply = ask(f"0/{number}/generate/{turn}", "generator", messages)
            correct = reply["final_answer"] == prompt.answer
            if correct:
                break
        messages = curator_messages(
            told["curator"],
            view.text,
            question,
            text,
            tokens=student.count_tokens(view.text),
            budget_tokens=16_384,
        )
        asked = ask(f"0/{number}/curate", "curator", messages)["operations"]
        done: list[Any] = [Tag(id, **{tag: 1}) for id, tag in tags.items()]
        done += [
            Add(one["section"], one["content"]) if one["type"] == "ADD" else Update(one["id"], one["content"])
            for one in asked
        ]
        deltas.append(Delta(tuple(done)))
    book = fold(deltas)
    return book, advance(view, book, 16_384, student.count_tokens).text, right


def test_a_window_of_one_is_the_papers_loop(tmp_path: Path) -> None:
    prompts = RULES.prompts(30, 3)
    settings = config(refine="off", reflection_rounds=3)
    student = Moody(RULES, mislead=0.5, reveal=0.3, repeat=0.3)
    book, log, run = play(tmp_path, student, settings, as_work(prompts))
    expected, text, right = by_hand(Student(RULES, mislead=0.5, reveal=0.3, repeat=0.3), prompts, 3)
    assert [(b.id, b.text, b.helpful, b.harmful) for b in book.bullets.values()] == [
        (b.id, b.text, b.helpful, b.harmful) for b in expected.bullets.values()
    ]
    assert sum(b.harmful for b in book.bullets.values()) > 0
    assert any(d.operations and isinstance(o, Update) for d in log.deltas for o in d.operations)
    assert [bool(row["learn/correct"]) for _, row in run.rows] == right
    assert run.last("playbook/tokens") == student.count_tokens(text)


# -- kill and resume -----------------------------------------------------------------------------------------


class KillError(Exception):
    """Ends a session as a kill would, as far as files go."""


SETTINGS: list[dict[str, Any]] = [
    {"window": 1},
    {"window": 4, "workers": 3, "budget_tokens": 300},
    {
        "window": 4,
        "workers": 4,
        "mode": "offline",
        "quarantine": "validation",
        "validate_every": 3,
        "validation_samples": 5,
    },
]


@pytest.mark.parametrize("options", SETTINGS, ids=["sequential", "window", "validation"])
def test_a_run_that_is_killed_anywhere_ends_as_if_nothing_had_been(
    options: dict[str, Any], tmp_path: Path
) -> None:
    settings = config(**options)
    work = work_of(9, 5 if "mode" in options else 0)
    student = Moody(RULES, mislead=0.1, reveal=0.7, jitter_s=0.002)
    whole = everything(tmp_path / "whole", student, settings, work, journal=tmp_path / "whole")
    calls = len(student.log)
    for at in range(1, calls, max(1, calls // 12)):
        folder, run = tmp_path / str(at), Recorder()
        paid: list[str] = []

        def kill(call: Call, number: int, at: int = at) -> Exception | None:
            return KillError() if number == at else None

        first = Moody(RULES, mislead=0.1, reveal=0.7, jitter_s=0.002, jitter_seed=at, spoil=kill)
        with pytest.raises(KillError):
            play(folder, first, settings, work, journal=folder, run=run)
        paid += [
            json.loads(row)["key"] for row in (folder / "calls-generator.jsonl").read_text().splitlines()
        ]
        second = Moody(RULES, mislead=0.1, reveal=0.7, jitter_s=0.002, jitter_seed=-at)
        # As the command does: what is later than the log is forgotten.
        log = PlaybookLog(folder / "playbook.jsonl")
        done = sum(d.sample is not None and "validation" not in d.sample for d in log.deltas)
        run.samples = [item for item in run.samples if item[0] <= done]
        logged = {(step, next(iter(row)).partition("/")[0]) for step, row in run.rows}
        _, log, _ = play(folder, second, settings, work, journal=folder, run=run, logged=logged)
        again = {call.key for call in second.log}
        assert not again & set(paid), at
        assert len(paid) + len(again) == calls
        assert operations(log) == whole[0], at
        assert run.metrics() == whole[4], at
        assert run.samples == whole[5], at


def test_a_session_that_is_done_does_nothing_more(tmp_path: Path) -> None:
    settings = config(mode="offline", validation_samples=4)
    book, log, _ = play(tmp_path, Student(RULES), settings, work_of(6, 4))
    again, after, run = play(
        tmp_path, Moody(RULES, spoil=lambda call, n: no_reply(call)), settings, work_of(6, 4)
    )
    assert again == book
    assert len(after.deltas) == len(log.deltas)
    assert run.rows  # what a run without them would get again


# -- failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 8])
@pytest.mark.parametrize("role", ["generate", "reflect", "curate"])
def test_a_sample_without_a_reply_is_wrong_and_stops_nothing(window: int, role: str, tmp_path: Path) -> None:
    poison = {3, 4, 11}

    def spoil(call: Call, number: int) -> Exception | None:
        place = int(call.key.split("/")[1])
        return no_reply(call) if place in poison and f"/{role}" in call.key else None

    settings = config(window=window, workers=window)
    student = Moody(RULES, reveal=1.0, spoil=spoil, jitter_s=0.005)
    _, log, run = play(tmp_path, student, settings, work_of(12))
    records = [delta.sample or {} for delta in log.deltas]
    assert [record["number"] for record in records] == list(range(12))
    assert {record["number"] for record in records if record["failed"]} == poison
    assert run.last("learn/failed") == 3
    assert run.last("learn/accuracy") == sum(record["correct"] for record in records) / 12
    for number in poison:
        assert not log.deltas[number].operations
        assert f"no reply to 0/{number}/{role}" in log.deltas[number].refused[0]
        assert run.samples[number][1]["failure"]
    if role == "generate":
        assert not any(records[number]["correct"] for number in poison)


@pytest.mark.parametrize("window", [1, 8])
def test_a_server_that_dies_costs_no_sample(window: int, tmp_path: Path) -> None:
    settings = config(window=window, workers=window, max_failures=3)
    whole = play(tmp_path / "whole", Moody(RULES), settings, work_of(20))

    def dies(call: Call, number: int) -> Exception | None:
        return no_reply(call) if number > 40 else None

    student = Moody(RULES, spoil=dies)
    with pytest.raises(
        ChatError, match=r"3 samples in a row got no reply; the last: no reply to .*\n.*--resume"
    ) as e:
        play(tmp_path / "it", student, settings, work_of(20), journal=tmp_path / "it")
    log = PlaybookLog(tmp_path / "it" / "playbook.jsonl")
    assert 0 < len(log.deltas) < 20
    assert f"{len(log.deltas)} of 20 samples are done" in str(e.value)
    assert not any((delta.sample or {})["failed"] for delta in log.deltas)
    _, after, _ = play(tmp_path / "it", Moody(RULES), settings, work_of(20), journal=tmp_path / "it")
    assert operations(after) == operations(whole[1])


def test_a_server_that_dies_before_a_validation_spoils_neither_samples_nor_verdict(tmp_path: Path) -> None:
    """Two samples fail before the validation that is due: they are not merged before it has had replies."""
    settings = config(
        mode="offline", window=4, workers=4, max_failures=4, validate_every=5, validation_samples=5, epochs=1
    )
    whole = play(tmp_path / "whole", Moody(RULES), settings, work_of(10, 5))

    def dies(call: Call, number: int) -> Exception | None:
        later = call.key.startswith("0/") and int(call.key.split("/")[1]) >= 3
        return no_reply(call) if later or call.key.startswith("validate/5") else None

    with pytest.raises(ChatError, match=r"4 held-out prompts in a row got no reply|in a row got no reply"):
        play(tmp_path / "it", Moody(RULES, spoil=dies), settings, work_of(10, 5))
    _, log, _ = play(tmp_path / "it", Moody(RULES), settings, work_of(10, 5))
    assert operations(log) == operations(whole[1])


def test_one_reply_in_a_validation_is_enough_to_go_on(tmp_path: Path) -> None:
    def spoil(call: Call, number: int) -> Exception | None:
        return no_reply(call) if call.key in ("0/4/generate/0", "validate/5/1") else None

    settings = config(mode="offline", window=4, workers=4, validate_every=5, validation_samples=5, epochs=1)
    _, log, run = play(tmp_path, Moody(RULES, spoil=spoil), settings, work_of(10, 5))
    assert [("validation" in (d.sample or {})) for d in log.deltas].index(True, 1) == 6
    assert run.last("learn/failed") == 1


@pytest.mark.parametrize(("total", "stops"), [(1, True), (3, True), (20, True)])
def test_when_nobody_answers_nothing_is_recorded(total: int, stops: bool, tmp_path: Path) -> None:
    student = Moody(RULES, spoil=lambda call, number: no_reply(call))
    with pytest.raises(ChatError, match=f"{min(total, 8)} samples in a row got no reply"):
        play(tmp_path, student, config(window=4), work_of(total))
    assert not (tmp_path / "playbook.jsonl").exists()
    assert stops


def test_the_last_sample_of_all_cannot_block_its_run_for_ever(tmp_path: Path) -> None:
    def spoil(call: Call, number: int) -> Exception | None:
        return no_reply(call) if call.key.startswith("0/5/") else None

    play(tmp_path, Moody(RULES, spoil=spoil), config(), as_work(RULES.prompts(5, 1)))
    _, log, _ = play(tmp_path, Moody(RULES, spoil=spoil), config(), work_of(6))
    assert (log.deltas[-1].sample or {})["failed"]


@pytest.mark.parametrize("role", ["generator", "reflector", "curator"])
@pytest.mark.parametrize("reply", ["", "no JSON", '{"a": 1}', "[1]", '{"operations": [{"type": "DROP"}]}'])
def test_replies_that_cannot_be_read_are_asked_for_again(role: str, reply: str, tmp_path: Path) -> None:
    def spoil(call: Call, number: int) -> str | None:
        return reply if call.role == role and call.key.startswith("0/2/") else None

    once = Moody(RULES, spoil=lambda call, number: None if "repair" in call.key else spoil(call, number))
    _, log, _ = play(tmp_path / "once", once, config(window=2), work_of(5))
    assert [bool((d.sample or {})["problems"]) for d in log.deltas] == [False, False, True, False, False]
    assert any("/repair1" in call.key for call in once.log)
    always = Moody(RULES, spoil=spoil)
    _, log, run = play(tmp_path / "always", always, config(window=2, repairs=1), work_of(5))
    record = log.deltas[2].sample or {}
    assert record["problems"] >= 2
    assert not record["failed"]
    assert run.last("learn/accuracy") <= 1
    assert len(run.samples) == 5
    if role == "generator":
        assert not record["correct"]
    else:
        assert not any(isinstance(o, Add) for o in log.deltas[2].operations)


# -- counts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", ["json", "text"])
def test_calls_are_bounded_and_counters_move(reply: str, tmp_path: Path) -> None:
    class Free(Moody):
        def generator(self, text: str, rng: random.Random) -> Any:
            found = super().generator(text, rng)
            if reply == "json":
                return found
            return f"{found['reasoning']} [calc-99999] so <answer>{found['final_answer']}</answer>"

    async def score(prompt: Prompt, answer: str) -> Any:
        return await judge(prompt, answer.rpartition("<answer>")[2].partition("</answer>")[0].strip(' "'))

    student = Free(RULES, reveal=0.5, mislead=0.2)
    settings = config(window=4, workers=2, reflection_rounds=3, reply=reply)
    book, log, run = play(tmp_path, student, settings, work_of(40), score=score)
    by_sample: dict[str, list[str]] = {}
    for call in student.log:
        by_sample.setdefault(call.key.split("/")[1], []).append(call.role)
    for delta in log.deltas:
        record = delta.sample or {}
        roles = by_sample[str(record["number"])]
        assert record["calls"] == {role: roles.count(role) for role in sorted(set(roles), key=roles.index)}
        assert len(roles) <= calls_bound(record["correct"], 3)
        if record["correct"]:
            assert sorted(roles) == ["curator", "generator", "reflector"]
        assert "calc-99999" not in record["used"]
    assert sum(bullet.helpful for bullet in book.bullets.values()) > 20
    assert sum(bullet.harmful for bullet in book.bullets.values()) > 0
    records = [delta.sample or {} for delta in log.deltas]
    assert run.last("learn/accuracy") == sum(r["correct"] for r in records) / 40
    assert run.last("learn/accuracy") < run.last("learn/accuracy_after")
    assert run.last("cost/generator_calls") == sum(call.role == "generator" for call in student.log)


def test_a_reflector_tags_only_what_it_was_shown(tmp_path: Path) -> None:
    class Talkative(Moody):
        def reflector(self, text: str, rng: random.Random) -> dict[str, Any]:
            found = super().reflector(text, rng)
            more = [{"id": f"[calc-{n:05d}]", "tag": "harmful"} for n in range(1, 60)]
            return {**found, "bullet_tags": [*more, *found["bullet_tags"]]}

    book, log, _ = play(tmp_path, Talkative(RULES, reveal=1.0), config(), work_of(30))
    for delta in log.deltas:
        tagged = {o.id for o in delta.operations if isinstance(o, Tag)}
        assert tagged <= set((delta.sample or {})["used"])
    assert all(bullet.harmful == 0 for bullet in book.bullets.values())
    assert any(bullet.helpful for bullet in book.bullets.values())


def test_ids_in_brackets_and_numbers_as_answers_are_understood(tmp_path: Path) -> None:
    class Sloppy(Moody):
        def generator(self, text: str, rng: random.Random) -> dict[str, Any]:
            found = super().generator(text, rng)
            ids = [f"[{id}]" for id in found["bullet_ids"]]
            return {"reasoning": "", "bullet_ids": ids, "final_answer": int(found["final_answer"])}

    book, _, run = play(tmp_path, Sloppy(RULES, reveal=1.0), config(), work_of(30))
    assert run.last("learn/problems") == 0
    assert run.last("learn/accuracy_recent") > 0.4
    assert any(bullet.helpful for bullet in book.bullets.values())


# -- budget --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [64, 150, 400])
@pytest.mark.parametrize("retrieved", [0, 0.5])
def test_the_context_never_exceeds_its_budget(budget: int, retrieved: float, tmp_path: Path) -> None:
    rules = Rules.make(50, 4)
    student = Moody(rules, reveal=1.0, mislead=0.2, repeat=0.5, keep=True)
    settings = config(
        window=3, budget_tokens=budget, retrieved_tokens=int(budget * retrieved), reflection_rounds=1
    )
    book, log, _ = play(tmp_path, student, settings, work_of(100, rules=rules))
    for text in student.prompts["generator"]:
        playbook, _, task = text.partition("Playbook:\n")[2].partition("\nTask:\n")
        further = task and text.partition("Further lines of the playbook that may matter here:\n")[2]
        playbook = playbook.partition("\nFurther lines")[0]
        assert student.count_tokens(playbook) <= budget - settings.retrieved_tokens
        assert student.count_tokens(further.partition("\n\nTask:")[0]) <= settings.retrieved_tokens
    total = sum(student.count_tokens(line(bullet) + "\n") for bullet in book.bullets.values())
    if retrieved:
        assert not any(gone.reason == "budget" for gone in book.retired.values())
        assert budget == 64 or total > budget
    else:
        assert total <= budget
    assert all((delta.sample or {})["context_tokens"] <= budget for delta in log.deltas)


def test_beyond_the_budget_the_right_bullets_are_retrieved(tmp_path: Path) -> None:
    rules = Rules.make(50, 4)
    student = Moody(rules, reveal=1.0, repeat=0.0)
    settings = config(budget_tokens=400, retrieved_tokens=200, reflection_rounds=1)
    book, _, _ = play(tmp_path, student, settings, work_of(150, rules=rules))
    asked = rules.prompts(40, 9)
    found = evaluate(book, asked, settings, roles=_roles(Student(rules)), score=judge)
    assert found.with_playbook.mean > 0.9
    cut = settings.model_copy(update={"retrieved_tokens": 0})
    assert evaluate(book, asked, cut, roles=_roles(Student(rules)), score=judge).with_playbook.mean < 0.5


def test_one_huge_bullet_does_not_drive_out_all_others(tmp_path: Path) -> None:
    class Boaster(Moody):
        def curator(self, text: str, rng: random.Random) -> dict[str, Any]:
            found = super().curator(text, rng)
            found["operations"].append(
                {"type": "ADD", "section": "OTHERS", "content": f"{rng.random()} " + "blah " * 300}
            )
            return found

    settings = config(budget_tokens=400, reflection_rounds=1)
    book, log, _ = play(tmp_path, Boaster(RULES, reveal=1.0), settings, work_of(10))
    assert len(book) > 5
    assert any("half of the budget" in words for delta in log.deltas for words in delta.refused)


def _roles(student: Student) -> Any:
    from postgrad.playbook.study import Roles

    return Roles(student, student, student)


# -- validation ----------------------------------------------------------------------------------------------


def validations(log: PlaybookLog) -> list[dict[str, Any]]:
    return [
        delta.sample["validation"] for delta in log.deltas if delta.sample and "validation" in delta.sample
    ]


def test_the_best_version_is_kept_and_a_ruinous_curator_ruins_nothing(tmp_path: Path) -> None:
    class Ruin(Moody):
        def curator(self, text: str, rng: random.Random) -> dict[str, Any]:
            if self.total < 100:
                return super().curator(text, rng)
            playbook = text.partition("Playbook:\n")[2].partition("\nTask:")[0]
            ids = [row[1:].partition("]")[0] for row in playbook.splitlines() if row.startswith("[")]
            return {
                "operations": [{"type": "UPDATE", "id": id, "content": f"ruin {id[-3:]}"} for id in ids[:12]]
            }

    settings = config(mode="offline", validate_every=5, validation_samples=12, reflection_rounds=1, window=2)
    book, log, run = play(tmp_path, Ruin(RULES, reveal=1.0), settings, work_of(60, 12))
    found = validations(log)
    assert [one["after"] for one in found] == list(range(0, 61, 5))
    assert found[0]["accuracy"] == 0.0
    best = max(one["accuracy"] for one in found)
    assert best > 0.8 > 0.3 > found[-1]["accuracy"]
    assert log.playbook.marks[BEST][1] == best
    again = evaluate(book, RULES.prompts(12, 2), settings, roles=_roles(Student(RULES)), score=judge)
    assert again.with_playbook.mean == best
    assert run.last("validation/best_accuracy") == best
    samples = [delta.sample or {} for delta in log.deltas]
    versions = [n for n, one in enumerate(samples, 1) if one.get("validation", {}).get("accuracy") == best]
    assert log.playbook.marks[BEST][0] == versions[0]


class Poisoner(Moody):
    """Adds what is true in four samples, and four lies a sample in the next four."""

    def curator(self, text: str, rng: random.Random) -> dict[str, Any]:
        found = super().curator(text, rng)
        number = int(text.rpartition("Task 1-")[2].partition(".")[0])
        if number // 4 % 2:
            lies = [f"{word} counts {value + 1}" for word, value in sorted(self.rules.values.items())]
            found["operations"] = [
                {"type": "ADD", "section": "OTHERS", "content": rng.choice(lies)} for _ in range(4)
            ]
        return found


@pytest.mark.parametrize("window", [1, 4])
def test_quarantine_lets_in_what_helps_and_throws_out_what_harms(window: int, tmp_path: Path) -> None:
    settings = config(
        mode="offline",
        quarantine="validation",
        validate_every=4,
        validation_samples=30,
        reflection_rounds=1,
        window=window,
    )
    work = as_work(RULES.prompts(64, 1, words_each=1), RULES.prompts(30, 2, words_each=1))
    student = Poisoner(RULES, reveal=1.0, repeat=0.0)
    book, log, _ = play(tmp_path, student, settings, work)
    lies = {f"{word} counts {value + 1}" for word, value in RULES.values.items()}
    thrown = [gone for gone in log.playbook.retired.values() if gone.reason == "validation"]
    assert thrown
    assert sum(bullet.text in lies for bullet in book.trusted) <= len(book.trusted) // 4
    assert validations(log)[0]["accuracy"] == 0.0
    assert (log.playbook.marks[BEST][1] or 0) > 0.6
    assert not {b.id for b in book.trusted} & {gone.bullet.id for gone in thrown}


def test_quarantine_until_approved_shows_nothing(tmp_path: Path) -> None:
    student = Moody(RULES, reveal=1.0, keep=True)
    book, _, run = play(tmp_path, student, config(quarantine="approve"), work_of(12))
    assert len(book) > 5
    assert not book.trusted
    assert all(RULE.search(text.partition("\nTask:")[0]) is None for text in student.prompts["generator"])
    assert run.last("playbook/quarantined") == len(book)
    assert "Proposed earlier and not yet in the playbook" in student.prompts["curator"][-1]


def test_work_is_ordered_by_the_seed_and_held_out_prompts_are_of_all_tasks() -> None:
    prompts = [Prompt(id=f"{task}{n}", text=f"{task} {n}", task=task) for task in "ab" for n in range(50)]
    settings = LearnConfig(epochs=2, validation_samples=20)
    work = plan_work(prompts, prompts, settings)
    assert len(work.samples) == 200
    assert {p.task for p in work.held_out} == {"a", "b"}
    assert work == plan_work(prompts, prompts, settings)
    assert work != plan_work(prompts, prompts, LearnConfig(epochs=2, validation_samples=20, seed=1))
    first, second = ([p.id for _, p, _ in work.samples[i : i + 100]] for i in (0, 100))
    assert sorted(first) == sorted(second) == sorted(p.id for p in prompts)
    assert first != second
    online = plan_work(prompts, prompts, LearnConfig(mode="online", num_samples=7))
    assert [p.id for _, p, _ in online.samples] == [p.id for p in prompts[:7]]
    assert not online.held_out
    with pytest.raises(ConfigError, match="no prompt to learn from"):
        plan_work([], prompts, settings)
    with pytest.raises(ConfigError, match="No prompt is held out"):
        plan_work(prompts, [], settings)
