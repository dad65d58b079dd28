"""Verdicts from worker processes, with rewards that hang, crash, raise and lie."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from postgrad.core.errors import ConfigError, TaskError
from postgrad.core.types import Prompt, Verdict
from postgrad.tasks import TaskConfig, VerifierPool
from postgrad.tasks.worker import judge

REWARDS = Path(__file__).with_name("rewards_for_tests.py")
TASK = TaskConfig(name="obey", path="unused.jsonl", reward=f"{REWARDS}:obey")
PROMPT = Prompt(id="p", text="?", answer="4", task="obey", metadata={"weight": 0.25})


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool([TASK], num_workers=1, timeout_s=1.0) as pool:
        yield pool


def verdicts(pool: VerifierPool, *completions: str) -> list[Verdict]:
    return pool.collect([pool.submit(PROMPT, completion) for completion in completions])


def outcomes(pool: VerifierPool, *completions: str) -> list[tuple[float | None, str]]:
    return [(verdict.score, verdict.status) for verdict in verdicts(pool, *completions)]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def gone_within(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_scores_come_back_in_order(pool: VerifierPool) -> None:
    completions = [f"score {number / 8}" for number in range(300)]
    assert [verdict.score for verdict in verdicts(pool, *completions)] == [
        number / 8 for number in range(300)
    ]
    assert outcomes(pool, "answer 4", "answer 5", "numpy", "meta weight") == [
        (1.0, "ok"),
        (0.0, "ok"),
        (0.5, "ok"),
        (0.25, "ok"),
    ]


def test_tickets_may_be_collected_in_any_order_and_once(pool: VerifierPool) -> None:
    first, second = pool.submit(PROMPT, "score 1"), pool.submit(PROMPT, "score 2")
    assert pool.collect([second])[0].score == 2.0
    assert pool.collect([first])[0].score == 1.0
    for tickets in ([first], [10**9]):
        with pytest.raises(TaskError, match="collected once"):
            pool.collect(tickets)
    third = pool.submit(PROMPT, "score 3")
    with pytest.raises(TaskError, match="collected once"):
        pool.collect([third, third])
    assert pool.collect([third])[0].score == 3.0
    assert pool.collect([]) == []


def test_a_failing_reward_never_scores(pool: VerifierPool) -> None:
    found = verdicts(
        pool, "raise no luck", "score nan", "score inf", "text 1", "none", "system_exit", "meta gone"
    )
    assert [verdict.score for verdict in found] == [None] * 7
    assert [verdict.status for verdict in found] == ["error", "non_finite", "non_finite", *["error"] * 4]
    details = [verdict.detail for verdict in found]
    assert details[0] == "ValueError: no luck"
    assert details[1] == "the reward returned nan"
    assert details[3] == "the reward returned '1' (str), not a number"
    assert details[4] == "the reward returned None (NoneType), not a number"
    assert details[6] == "KeyError: 'gone'"


def test_one_that_hangs_is_timed_out_and_the_others_go_on(pool: VerifierPool) -> None:
    (before,) = pool.worker_pids()
    start = time.monotonic()
    found = verdicts(pool, "score 1", "hang", "score 2", "score 3")
    assert time.monotonic() - start < 15
    assert [(one.score, one.status) for one in found] == [(1, "ok"), (None, "timeout"), (2, "ok"), (3, "ok")]
    assert found[1].detail == "no verdict within 1 s"
    assert pool.worker_pids() != [before]
    assert not alive(before)


def test_a_late_verdict_is_a_timeout_whenever_the_parent_looks(pool: VerifierPool) -> None:
    verdicts(pool, "score 0")  # the worker is up
    ticket = pool.submit(PROMPT, "sleep 1.2")
    time.sleep(1.6)
    (verdict,) = pool.collect([ticket])
    assert (verdict.score, verdict.status) == (None, "timeout")


def test_one_that_hangs_while_the_parent_is_away_is_a_timeout(pool: VerifierPool) -> None:
    (before,) = pool.worker_pids()
    ticket = pool.submit(PROMPT, "hang")
    assert gone_within([before], 10)  # by its own alarm: nobody is in `collect`
    (verdict,) = pool.collect([ticket])
    assert (verdict.score, verdict.status) == (None, "timeout")


def test_the_limit_is_per_item_not_per_chunk(pool: VerifierPool) -> None:
    tickets = [pool.submit(PROMPT, "sleep 0.3") for _ in range(5)]
    assert [verdict.status for verdict in pool.collect(tickets)] == ["ok"] * 5


def test_a_process_that_dies_is_an_error_with_its_end(pool: VerifierPool) -> None:
    found = verdicts(pool, "exit 3", "score 1", "crash", "score 2")
    assert [(one.score, one.status) for one in found] == [
        (None, "error"),
        (1, "ok"),
        (None, "error"),
        (2, "ok"),
    ]
    assert "exit code 3" in found[0].detail
    assert "SIGSEGV" in found[2].detail


def test_kill_from_outside_costs_nothing_unless_it_comes_twice(pool: VerifierPool) -> None:
    verdicts(pool, "score 0")
    (idle,) = pool.worker_pids()
    os.kill(idle, signal.SIGKILL)
    assert outcomes(pool, "score 1", "score 2") == [(1, "ok"), (2, "ok")]
    expected = outcomes(pool, "sleep 0.7")
    for kills in (1, 2):
        tickets = [pool.submit(PROMPT, "sleep 0.7"), pool.submit(PROMPT, "score 3")]
        for _ in range(kills):
            (busy,) = pool.worker_pids()
            while not pool._workers[0].begun:
                pool._pump(0.05)
            os.kill(busy, signal.SIGKILL)
            while pool.worker_pids() == [busy]:
                pool._pump(0.05)
        found = pool.collect(tickets)
        first = expected[0] if kills == 1 else (None, "error")
        assert [(one.score, one.status) for one in found] == [first, (3, "ok")], found
    assert "SIGKILL" in found[0].detail


def test_large_texts_and_long_errors_do_not_deadlock(pool: VerifierPool) -> None:
    tickets = [pool.submit(PROMPT, "length " + "x" * 400_000) for _ in range(30)]
    tickets += [pool.submit(PROMPT, "long_error") for _ in range(300)]
    time.sleep(0.2)
    found = pool.collect(tickets)
    assert [one.score for one in found[:30]] == [400_007.0] * 30
    assert {one.status for one in found[30:]} == {"error"}
    assert all(len(one.detail) <= 1000 for one in found)


def test_a_parent_that_is_away_does_not_cause_timeouts(pool: VerifierPool) -> None:
    # the worker fills the pipe with answers and waits, longer than the time limit, until they are read
    verdicts(pool, "score 0")
    (before,) = pool.worker_pids()
    slow = [
        pool.submit(PROMPT, "sleep 0.2")
    ]  # meanwhile the queue grows, so that the next chunk is a large one
    tickets = slow + [pool.submit(PROMPT, "long_error") for _ in range(1000)]
    time.sleep(0.3)
    tickets.append(pool.submit(PROMPT, "long_error"))  # hands out the chunk
    time.sleep(2.5)
    assert {verdict.status for verdict in pool.collect(tickets[1:])} == {"error"}
    assert pool.collect(slow)[0].score == 1.0
    assert pool.worker_pids() == [before]


def test_workers_import_no_torch_and_leave_stdout_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with VerifierPool([TASK]) as pool:
        assert outcomes(pool, "torch", "print") == [(0.0, "ok"), (1.0, "ok")]
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "noise\n")


def test_an_interrupt_is_not_the_workers_business(pool: VerifierPool) -> None:
    verdicts(pool, "score 0")
    ticket = pool.submit(PROMPT, "sleep 0.4")
    time.sleep(0.1)
    os.kill(pool.worker_pids()[0], signal.SIGINT)
    assert pool.collect([ticket])[0].score == 1.0


def test_lone_surrogates_survive(pool: VerifierPool) -> None:
    assert outcomes(pool, "length \ud800") == [(8.0, "ok")]


def test_verdicts_do_not_depend_on_the_number_of_workers(pool: VerifierPool) -> None:
    completions = ["random", "hash", "score 1", "raise x", "score nan"] * 20
    alone = verdicts(pool, *completions)
    assert len({one.score for one in alone[::5]}) == 1
    with VerifierPool([TASK], num_workers=3) as three:
        assert verdicts(three, *completions) == alone


def test_close_ends_every_worker_and_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with VerifierPool([TASK], num_workers=2, timeout_s=60) as pool:
        pool.submit(PROMPT, f"child {pid_file}")
        deadline = time.monotonic() + 30
        while not (pid_file.exists() and pid_file.read_text()):
            assert time.monotonic() < deadline
            pool.collect([pool.submit(PROMPT, "score 1")])
        pids = [*pool.worker_pids(), int(pid_file.read_text())]
        assert all(map(alive, pids))
    assert gone_within(pids, 5)
    pool.close()
    with pytest.raises(TaskError, match="closed"):
        pool.submit(PROMPT, "score 1")
    with pytest.raises(TaskError, match="closed"):
        pool.collect([])


def test_a_forgotten_pool_is_cleaned_up() -> None:
    pool = VerifierPool([TASK])
    pids = pool.worker_pids()
    del pool
    assert gone_within(pids, 5)


PARENT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started with SIGINT ignored
import postgrad.tasks as tasks
from postgrad.core.types import Prompt
task = tasks.TaskConfig(name="obey", path="x", reward=sys.argv[1])
pool = tasks.VerifierPool([task], 2, timeout_s=float(sys.argv[2]))
prompt = Prompt(id="p", text="?", task="obey")
pool.collect([pool.submit(prompt, "score 1") for _ in range(20)])
pool.submit(prompt, "hang")
time.sleep(0.3)
print(*pool.worker_pids(), flush=True)
time.sleep(60) if sys.argv[3] == "sleep" else pool.collect([pool.submit(prompt, "sleep 50")])
"""


def start_parent(tmp_path: Path, timeout_s: float, then: str) -> tuple[subprocess.Popen[str], list[int]]:
    script = tmp_path / "parent.py"  # no `if __name__ == "__main__"`: workers must not run it again
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), f"{REWARDS}:obey", str(timeout_s), then],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    return parent, [int(word) for word in parent.stdout.readline().split()]


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent, pids = start_parent(tmp_path, timeout_s=2, then="sleep")
    assert len(pids) == 2
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    assert any(map(alive, pids))  # the one that hangs, for a while
    assert gone_within(pids, 15)  # by its alarm
    parent.communicate()


def test_ctrl_c_prints_no_worker_traceback(tmp_path: Path) -> None:
    parent, pids = start_parent(tmp_path, timeout_s=30, then="collect")
    time.sleep(0.2)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    _, errors = parent.communicate(timeout=60)
    assert errors.count("KeyboardInterrupt") == 1
    assert errors.count("Traceback") == 1
    assert gone_within(pids, 5)


def test_a_verifier_that_cannot_be_loaded_is_an_error_verdict() -> None:
    broken = TaskConfig(name="broken", path="x", reward=f"{REWARDS}:nowhere")
    with VerifierPool([TASK, broken]) as pool:
        tickets = [pool.submit(Prompt(id="b", text="?", task="broken"), "1"), pool.submit(PROMPT, "score 1")]
        bad, good = pool.collect(tickets)
    assert (bad.score, bad.status, good.score) == (None, "error", 1.0)
    assert "no attribute 'nowhere'" in bad.detail


def test_workers_that_cannot_start_end_in_an_error_not_a_loop(tmp_path: Path) -> None:
    module = tmp_path / "quits.py"
    module.write_text("import os\nos._exit(7)\n")
    with VerifierPool([TaskConfig(name="obey", path="x", reward=f"{module}:f")]) as pool:
        ticket = pool.submit(PROMPT, "1")
        with pytest.raises(
            TaskError, match="cannot start: the last ended with exit code 7, 3 times in a row"
        ):
            pool.collect([ticket])


def test_bad_arguments_are_refused() -> None:
    for keywords in ({"num_workers": 0}, {"timeout_s": 0.0}):
        with pytest.raises(ConfigError, match="Needs workers and time"):
            VerifierPool([TASK], **keywords)
    with pytest.raises(ConfigError, match="same name"):
        VerifierPool([TASK, TASK])


def test_an_unknown_task_is_refused(pool: VerifierPool) -> None:
    with pytest.raises(TaskError, match=r"No verifier for task 'obay'. Did you mean 'obey'\?"):
        pool.submit(Prompt(id="p", text="?", task="obay"), "x")


def test_judge_survives_an_item_that_cannot_be_read() -> None:
    score, status, detail = judge(b"no pickle", {})
    assert (score, status) == (None, "error")
    assert detail.startswith("UnpicklingError")


def test_throughput_of_trivial_verdicts(pool: VerifierPool) -> None:
    verdicts(pool, "score 1")
    start = time.process_time()
    verdicts(pool, *["score 1"] * 4000)
    # CPU time of the parent alone, so that a busy machine does not fail it; 4,000 take about 0.1 s
    assert time.process_time() - start < 1.0
