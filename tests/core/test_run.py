"""Run: what survives a kill, a full disk, a second process and a careless user."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from postgrad.core import runfiles
from postgrad.core.config import Config
from postgrad.core.console import format_step
from postgrad.core.errors import RunError
from postgrad.core.run import Run, list_runs


class Small(Config):
    """A config."""

    seed: int = 0
    """Seed."""


def create(path: Path, **options: Any) -> Run:
    options = {"command": ["postgrad", "rl", "train"], "kind": "rl.train", "seed": 3, "quiet": True} | options
    return Run.create(path, Small(), **options)


def fill(content: str):
    """A checkpoint writer."""

    def write(directory: Path) -> None:
        (directory / "sub").mkdir()
        (directory / "model.safetensors").write_text(content)
        (directory / "sub" / "state.json").write_text(content)

    return write


# -- content -----------------------------------------------------------------------------------------------


def test_a_run_reads_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "Läufe heute" / "run 1 ✓"
    with create(path, device="cpu") as run:
        run.log(1, {"rollout/pass_rate": np.float32(0.5), "staleness/histogram": np.arange(3)})
        run.log_samples(1, [{"prompt": "2 + 2 = ?\u2028", "completion": "\ud800 lone", "correct": True}])
        run.save_checkpoint(1, fill("one"), keep=1)
    read = Run.open(path)
    assert read.metrics() == [{"step": 1, "rollout/pass_rate": 0.5, "staleness/histogram": [0, 1, 2]}]
    assert read.samples()[0] == {
        "step": 1,
        "prompt": "2 + 2 = ?\u2028",
        "completion": "\ud800 lone",
        "correct": True,
    }
    assert read.config_dict() == {"seed": 0}
    assert read.status == "finished"
    assert read.last_step == 1
    assert read.info["seed"] == 3
    assert read.info["command"] == ["postgrad", "rl", "train"]
    assert read.info["versions"]["pydantic"]
    assert read.info["started"].endswith("Z")
    assert read.info["ended"] >= read.info["started"]


def test_non_finite_values_become_null_and_are_counted(tmp_path: Path) -> None:
    with create(tmp_path / "r") as run:
        run.log(1, {"a/x": float("nan"), "a/y": [1.0, np.inf], "a/z": np.float64("-inf"), "a/ok": 1})
        run.log(2, {"a/x": 1.0})
    first, second = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first, parse_constant=pytest.fail) == {
        "step": 1,
        "a/x": None,
        "a/y": [1.0, None],
        "a/z": None,
        "a/ok": 1,
        "nonfinite/count": 3,
    }
    assert json.loads(second) == {"step": 2, "a/x": 1.0}


@pytest.mark.parametrize("key", ["loss", "step", "a b/c", "/x", "x/"])
def test_a_metric_key_needs_an_area(tmp_path: Path, key: str) -> None:
    with create(tmp_path / "r") as run:
        with pytest.raises(RunError, match="area/name"):
            run.log(1, {key: 1.0})
        assert run.metrics() == []


def test_what_cannot_be_logged_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with create(tmp_path / "r") as run:
        with pytest.raises(RunError, match="object"):
            run.log(1, {"a/x": object()})
        assert run.metrics() == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "interrupted"), (ValueError("x"), "failed"), (None, "finished")],
)
def test_the_context_manager_sets_the_status(
    tmp_path: Path, error: BaseException | None, status: str
) -> None:
    try:
        with create(tmp_path / "r"):
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError):
        pass
    assert Run.open(tmp_path / "r").status == status


def test_the_console_line() -> None:
    row = {"step": 7, "rollout/pass_rate": 0.25, "loss/policy": None, "nonfinite/count": 1}
    line = format_step(7, row, [("rollout/pass_rate", "pass", ".1%"), ("loss/policy", "loss", ".3f")], 100)
    assert line == "step   7/100  pass 25.0%  loss non-finite  (1 non-finite)"


# -- used, locked and foreign directories ------------------------------------------------------------------


def test_a_used_directory_is_refused_with_the_exits_named(tmp_path: Path) -> None:
    create(tmp_path / "r").finish()
    with pytest.raises(RunError, match=r"(?s)already holds a run.*--resume.*another name.*--overwrite"):
        create(tmp_path / "r")


def test_overwrite_removes_the_old_run_and_nothing_else(tmp_path: Path) -> None:
    with create(tmp_path / "r") as run:
        run.log(1, {"a/x": 1})
        run.save_checkpoint(1, fill("one"))
    (tmp_path / "r" / "notes.txt").write_text("mine")
    with create(tmp_path / "r", overwrite=True) as run:
        assert run.metrics() == []
        assert run.latest_checkpoint() is None
    assert (tmp_path / "r" / "notes.txt").read_text() == "mine"


def test_a_directory_that_is_no_run_is_never_overwritten(tmp_path: Path) -> None:
    # A Hugging Face model directory has a config.json too.
    (tmp_path / "config.json").write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="holds no run"):
            create(tmp_path, overwrite=overwrite)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.json"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="no directory"):
            create(path)


def test_a_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=r"(?s)Read-only file system.*--out"):
        create(tmp_path / "r")


def test_open_and_resume_want_a_run(tmp_path: Path) -> None:
    for reach in (Run.open, Run.resume):
        with pytest.raises(RunError, match="does not exist"):
            reach(tmp_path / "nothing")
        with pytest.raises(RunError, match=r"run\.json is missing"):
            reach(tmp_path)
    (tmp_path / "run.json").write_text("[")
    with pytest.raises(RunError, match="damaged"):
        Run.open(tmp_path)


def test_an_open_run_cannot_be_written(tmp_path: Path) -> None:
    create(tmp_path / "r").finish()
    read = Run.open(tmp_path / "r")
    for write in (
        lambda: read.log(1, {"a/x": 1}),
        lambda: read.log_samples(1, [{}]),
        lambda: read.save_checkpoint(1, fill("x")),
        lambda: read.truncate_after(0),
    ):
        with pytest.raises(RunError, match=r"reading only.*Run\.resume"):
            write()


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(runfiles.__file__).parents[2])},
    )


HOLDER = """
    import os, sys, time
    from postgrad.core.config import Config
    from postgrad.core.run import Run
    run = Run.create(sys.argv[1], Config(), command=[], kind="rl.train", seed=0, quiet=True)
    if sys.argv[2] == "fork":
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
        print(child, flush=True)
    print("ready", flush=True)
    time.sleep(20)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    holder = python(HOLDER, tmp_path / "r", "plain")
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        for attempt in (Run.resume, lambda path: create(path, overwrite=True), create):
            with pytest.raises(RunError, match=f"in use by process {holder.pid}"):
                attempt(tmp_path / "r")
        assert Run.open(tmp_path / "r").status == "running"
        assert [summary.status for summary in list_runs(tmp_path)] == ["running"]
    finally:
        holder.kill()
        holder.communicate()
    assert Run.open(tmp_path / "r").status == "interrupted"
    Run.resume(tmp_path / "r", quiet=True).finish()


def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_parent(tmp_path: Path) -> None:
    holder = python(HOLDER, tmp_path / "r", "fork")
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        assert holder.stdout.readline() == "ready\n"
        os.kill(child, 0)
        holder.kill()
        holder.wait()
        Run.resume(tmp_path / "r", quiet=True).finish()
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


# -- checkpoints -------------------------------------------------------------------------------------------


def test_checkpoints_are_pruned_to_the_newest(tmp_path: Path) -> None:
    with create(tmp_path / "r") as run:
        for step in (10, 100, 20_000, 123_456_789):
            run.save_checkpoint(step, fill(str(step)), keep=2)
        assert [step for step, _ in run.checkpoints()] == [20_000, 123_456_789]
        latest = run.latest_checkpoint()
        assert latest is not None
        assert latest[1].name == "step_123456789"
        run.save_checkpoint(123_456_790, fill("x"), keep=0)
        assert [step for step, _ in run.checkpoints()] == [123_456_790]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    with create(tmp_path / "r") as run:
        run.save_checkpoint(5, fill("old"))
        path = run.save_checkpoint(5, fill("new"))
        assert (path / "model.safetensors").read_text() == "new"
        assert [entry.name for entry in path.parent.iterdir()] == ["step_00000005"]


def write_to_full_disk(directory: Path) -> None:
    (directory / "part.bin").write_bytes(b"x")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raise_a_library_error(directory: Path) -> None:
    (directory / "part.bin").write_bytes(b"x")
    raise ValueError("safetensors is unhappy")


@pytest.mark.parametrize(
    ("write", "reason"), [(write_to_full_disk, "No space left"), (raise_a_library_error, "unhappy")]
)
def test_a_failed_checkpoint_leaves_the_old_one(tmp_path: Path, write: Any, reason: str) -> None:
    with create(tmp_path / "r") as run:
        with pytest.raises(RunError, match=rf"(?s)step 1\. No earlier checkpoint.*{reason}"):
            run.save_checkpoint(1, write)
        run.save_checkpoint(2, fill("two"))
        for step in (2, 3):
            with pytest.raises(
                RunError, match=rf"(?s)step {step}\. The checkpoint of step 2 is intact.*{reason}"
            ):
                run.save_checkpoint(step, write)
        assert [entry.name for entry in (run.path / "checkpoints").iterdir()] == ["step_00000002"]
        assert (run.path / "checkpoints" / "step_00000002" / "sub" / "state.json").read_text() == "two"


def test_a_failing_fsync_is_a_failed_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path / "r") as run:
        run.save_checkpoint(1, fill("one"))

        def fail(_: Path) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr("postgrad.core.checkpoints.sync_tree", fail)
            with pytest.raises(RunError, match="step 1 is intact"):
                run.save_checkpoint(2, fill("two"))
        assert [step for step, _ in run.checkpoints()] == [1]


def test_everything_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def record_rename(path: Path, target: Path) -> Path:
        events.append(f"rename {path.name}")
        return rename(path, target)

    with create(tmp_path / "r") as run:
        run.log(1, {"a/x": 1})
        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(Path, "rename", record_rename)
        run.save_checkpoint(1, fill("one"))
        monkeypatch.undo()
    before = events[: events.index("rename .tmp-step_00000001")]
    assert set(before) >= {"metrics.jsonl", "model.safetensors", "state.json", "sub", ".tmp-step_00000001"}
    assert "checkpoints" in events[len(before) :]


def test_resume_clears_what_a_killed_writer_left(tmp_path: Path) -> None:
    with create(tmp_path / "r") as run:
        run.save_checkpoint(1, fill("one"))
        run.save_checkpoint(2, fill("two"), keep=2)
    checkpoints = tmp_path / "r" / "checkpoints"
    (checkpoints / ".tmp-step_00000003").mkdir()
    # Killed between the two renames that replace the checkpoint of step 2:
    (checkpoints / "step_00000002").rename(checkpoints / ".old-step_00000002")
    # Killed after them:
    (checkpoints / ".old-step_00000001").mkdir()
    with Run.resume(tmp_path / "r", quiet=True) as run:
        assert [entry.name for _, entry in run.checkpoints()] == ["step_00000001", "step_00000002"]
    assert sorted(entry.name for entry in checkpoints.iterdir()) == ["step_00000001", "step_00000002"]


# -- full disks and torn lines -----------------------------------------------------------------------------


def test_a_really_full_device(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with create(tmp_path / "r") as run:
        (run.path / "metrics.jsonl").symlink_to("/dev/full")
        with pytest.raises(RunError, match=r"(?s)No space left.*Free some space.*--resume"):
            run.log(1, {"a/x": 1})


def test_a_line_cut_short_by_a_full_disk_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    calls = 0

    def half(descriptor: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, bytes(data[: len(data) // 2]))

    with create(tmp_path / "r") as run:
        run.log(1, {"a/x": 1})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(RunError, match="No space left"):
                run.log(2, {"a/x": 2})
        assert calls == 2
        run.log(3, {"a/x": 3})
    assert [row["step"] for row in Run.open(tmp_path / "r").metrics()] == [1, 3]


def test_a_full_disk_at_the_end_does_not_hide_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def work() -> None:
        with create(tmp_path / "r"):
            monkeypatch.setattr("postgrad.core.run.replace_file", fail)
            raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause"):
        work()


def test_a_torn_last_line_is_ignored_and_trimmed_on_resume(tmp_path: Path) -> None:
    create(tmp_path / "r").finish()
    metrics = tmp_path / "r" / "metrics.jsonl"
    metrics.write_text('{"step": 1, "a/x": 1}\n{"step": 2, "a/')
    assert [row["step"] for row in Run.open(tmp_path / "r").metrics()] == [1]
    assert metrics.read_text().endswith("a/")
    with Run.resume(tmp_path / "r", quiet=True) as run:
        run.log(2, {"a/x": 2})
        assert [row["step"] for row in run.metrics()] == [1, 2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    create(tmp_path / "r").finish()
    (tmp_path / "r" / "metrics.jsonl").write_text('{"step": 1}\n\x00\x00\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2 is damaged"):
        Run.open(tmp_path / "r").metrics()
    assert [summary.status for summary in list_runs(tmp_path)] == ["damaged"]


def test_truncate_after_keeps_every_byte_of_the_rest(tmp_path: Path) -> None:
    with create(tmp_path / "r") as run:
        run.log(1, {"a/x": 0.1})
        run.log(2, {"a/x": 0.2})
        run.log_samples(2, [{"prompt": "p"}])
        wanted = (run.path / "metrics.jsonl").read_bytes(), (run.path / "samples.jsonl").read_bytes()
        run.save_checkpoint(2, fill("two"), keep=5)
        run.log(3, {"a/x": 0.3})
        run.log_samples(3, [{"prompt": "q"}])
        run.save_checkpoint(3, fill("three"), keep=5)
        run.truncate_after(2)
        assert (
            (run.path / "metrics.jsonl").read_bytes(),
            (run.path / "samples.jsonl").read_bytes(),
        ) == wanted
        assert [step for step, _ in run.checkpoints()] == [2]
        run.log(3, {"a/x": 0.33})
        assert [row["a/x"] for row in run.metrics()] == [0.1, 0.2, 0.33]


# -- kill -9 -----------------------------------------------------------------------------------------------

WRITER = """
    import sys
    from pathlib import Path
    from postgrad.core.config import Config
    from postgrad.core.run import Run
    path, last = Path(sys.argv[1]), int(sys.argv[2])
    if (path / "run.json").exists():
        run = Run.resume(path, quiet=True)
        latest = run.latest_checkpoint()
        start = latest[0] if latest else 0
        if latest:
            texts = {f.read_text() for f in latest[1].iterdir()}
            assert texts == {str(start) * 20000} and len(list(latest[1].iterdir())) == 3, "half a checkpoint"
        run.truncate_after(start)
    else:
        run, start = Run.create(path, Config(), command=[], kind="rl.train", seed=0, quiet=True), 0
    print("ready", flush=True)
    for step in range(start + 1, last + 1):
        run.log(step, {"a/x": step / 7, "a/long": "y" * 3000})
        run.log_samples(step, [{"prompt": f"p{step}" * 300, "completion": "c"}] * 3)
        if step % 3 == 0:
            def write(directory):
                for name in "abc":
                    (directory / name).write_text(str(step) * 20000)
            run.save_checkpoint(step, write, keep=2)
    run.finish()
"""


def test_kill_nine_at_random_moments_then_the_same_files(tmp_path: Path) -> None:
    """Eight kills spread over the writing; the finished files equal those of a run that was never killed."""
    random_generator = random.Random(5)
    killed = tmp_path / "killed"
    num_steps = 300  # far more than eight kills can let pass
    num_kills = 0
    for _ in range(8):
        writer = python(WRITER, killed, num_steps)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        log = killed / "metrics.jsonl"
        size = log.stat().st_size if log.exists() else 0
        more = random_generator.randint(1, 8) * 3000  # a line has a little over 3,000 bytes
        while writer.poll() is None and (not log.exists() or log.stat().st_size < size + more):
            pass
        time.sleep(random_generator.uniform(0.0, 0.003))
        writer.kill()
        writer.communicate()
        num_kills += writer.returncode == -signal.SIGKILL
    assert num_kills == 8
    for path in (killed, tmp_path / "whole"):
        writer = python(WRITER, path, num_steps)
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    for name in ("metrics.jsonl", "samples.jsonl", "config.json"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(entry.name for entry in (killed / "checkpoints").iterdir()) == [
        "step_00000297",
        "step_00000300",
    ]
    assert Run.open(killed).status == "finished"


# -- listing -----------------------------------------------------------------------------------------------


def test_list_runs_finds_nested_runs_with_their_last_evaluation(tmp_path: Path) -> None:
    with create(tmp_path / "a") as run:
        run.log(0, {"eval/pass_rate": 0.2, "eval/pass_rate_low": 0.1, "eval/pass_rate_high": 0.3})
        run.log(5, {"eval/pass_rate": 0.6, "eval/pass_rate_low": 0.5, "eval/pass_rate_high": 0.7})
        run.log(6, {"loss/policy": 1.0})
    create(tmp_path / "deep" / "er" / "b").finish("failed")
    found = {summary.path.name: summary for summary in list_runs(tmp_path)}
    assert set(found) == {"a", "b"}
    assert (found["a"].pass_rate, found["a"].pass_rate_low, found["a"].last_step) == (0.6, 0.5, 6)
    assert found["b"].status == "failed"
    assert found["b"].pass_rate is None
    assert found["a"].size_bytes > 100
    assert [summary.path for summary in list_runs(tmp_path / "a")] == [tmp_path / "a"]
    with pytest.raises(RunError, match="no directory"):
        list_runs(tmp_path / "nope")
