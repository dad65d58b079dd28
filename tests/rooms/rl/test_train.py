"""Whole runs of a tiny model: learning, exact resume after kill -9, same seed same metrics, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from postgrad.core.config import resolve
from postgrad.core.errors import ConfigError, DataError, RunError, TrainingError
from postgrad.core.run import Run
from postgrad.rl import RLConfig, evaluate_model, train

REWARDS = '''
import math, os, time

def digits(prompt, completion):
    """1 when the completion begins with the last digit of the prompt."""
    return float(completion.strip()[:1] == prompt.text.strip()[-1])

def half(prompt, completion):
    return len(completion) % 2 / 2

def slow_half(prompt, completion):
    time.sleep(0.02)
    return half(prompt, completion)

def always(prompt, completion):
    return 1.0

def raises(prompt, completion):
    raise ValueError("no such number")

def hangs(prompt, completion):
    time.sleep(60)

def nan(prompt, completion):
    return math.nan

def picky(prompt, completion):
    """Fails on some samples, works on the others."""
    if len(completion) % 3 == 0:
        raise RuntimeError("one of three")
    return float(len(completion) % 2)
'''


def write_data(folder: Path, count: int = 120) -> Path:
    (folder / "my_rewards.py").write_text(REWARDS)
    path = folder / "prompts.jsonl"
    rows = [{"prompt": f"repeat {i} after me {i % 10}", "answer": str(i % 10)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(folder: Path, reward: str = "digits", **changes: Any) -> dict[str, Any]:
    data = folder / "prompts.jsonl"
    if not data.exists():
        write_data(folder)
    return {
        "steps": 6,
        "data.tasks": [
            {"name": "digits", "path": str(data), "reward": f"{folder / 'my_rewards.py'}:{reward}"}
        ],
        "data.holdout_fraction": 0.2,
        "model.embedded.hidden_size": 32,
        "model.embedded.num_layers": 2,
        "model.embedded.intermediate_size": 48,
        "model.embedded.head_dim": 8,
        "model.embedded.vocab_size": 300,
        "model.embedded.max_position": 96,
        "model.embedded.steps": 30,
        "algorithm.prompts_per_batch": 6,
        "algorithm.samples_per_prompt": 4,
        "length.max_prompt_tokens": 60,
        "length.max_completion_tokens": 8,
        "length.interrupt_min": 3,
        "length.interrupt_max": 4,
        "length.interrupt_phrase": "so:",
        "schedule.k": 3,
        "schedule.update_cost_steps": 3,
        "optimizer.lr": 1e-3,
        "optimizer.warmup_steps": 2,
        "optimizer.micro_batch_tokens": 512,
        "engine.slots": 20,
        "eval.every": 3,
        "eval.prompts": 10,
        "eval.samples_per_prompt": 2,
        "run.checkpoint_every": 2,
        **changes,
    }


def config(folder: Path, reward: str = "digits", **changes: Any) -> RLConfig:
    return resolve(RLConfig, None, options(folder, reward, **changes))


WALL = ("time/", "speed/")


def stable(run: Run) -> list[dict[str, Any]]:
    """Metrics without wall time."""
    return [{k: v for k, v in row.items() if not k.startswith(WALL)} for row in run.metrics()]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRAD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_training_raises_the_held_out_pass_rate_and_the_checkpoint_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_data(tmp_path, 400)
    changes = {
        "eval.every": 0,
        "eval.prompts": 80,
        "eval.samples_per_prompt": 4,
        "algorithm.prompts_per_batch": 24,
        "algorithm.samples_per_prompt": 8,
        "algorithm.truncated": "keep",
        "length.interrupt_min": None,
        "optimizer.lr": 2e-3,
        "engine.slots": 100,
        "model.embedded.steps": 80,
    }
    run = train(config=config(tmp_path, steps=40, **changes), out=tmp_path / "run", quiet=True)
    rows = run.metrics()
    assert [row["step"] for row in rows] == list(range(41))
    assert rows[-1]["eval/pass_rate_low"] > rows[0]["eval/pass_rate_high"]
    step, folder = run.checkpoints()[-1]
    assert step == 40
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() < 100_000
    assert AutoTokenizer.from_pretrained(folder).eos_token_id is not None
    assert {row["phase"] for row in run.samples()} == {"before", "after", "train"}
    again = evaluate_model(config(tmp_path, **changes, **{"model.path": str(folder)}))
    assert again.metrics["eval/pass_rate"] == rows[-1]["eval/pass_rate"]


@pytest.mark.parametrize("mode", ["pipeline", "ppo"])
def test_same_seed_same_metrics_and_other_seed_others(tmp_path: Path, mode: str) -> None:
    changes = {"schedule.mode": mode}
    first = train(config=config(tmp_path, **changes), out=tmp_path / "a", quiet=True)
    second = train(config=config(tmp_path, **changes), out=tmp_path / "b", quiet=True)
    assert stable(first) == stable(second)
    other = train(config=config(tmp_path, seed=1, **changes), out=tmp_path / "c", quiet=True)
    assert stable(first) != stable(other)


def test_generators_in_lockstep_are_the_run_of_one_process_bit_for_bit(tmp_path: Path) -> None:
    """The asynchronous parts made synchronous: same metrics, same final weights."""
    beside = {"engine.generators": 1, "engine.lockstep": True}
    first = train(config=config(tmp_path), out=tmp_path / "a", quiet=True)
    second = train(config=config(tmp_path, **beside), out=tmp_path / "b", quiet=True)
    assert stable(first) == stable(second)
    weights = [run.checkpoints()[-1][1] / "model.safetensors" for run in (first, second)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("mode", ["pipeline", "ppo"])
def test_generators_beside_the_trainer_train_on_every_group_once(tmp_path: Path, mode: str) -> None:
    beside = {"engine.generators": 2, "schedule.mode": mode, "run.log_samples": 6, "engine.slots": 8}
    run = train(config=config(tmp_path, **beside), out=tmp_path / "run", quiet=True)
    rows = run.metrics()
    assert [row["step"] for row in rows] == list(range(7))
    for row in rows[1:]:
        assert row["staleness/max"] <= 3
        assert 0 <= row["idle/trainer_fraction"] <= 1
        assert row["idle/generator_fraction"] <= 1
        assert row["idle/generator_restarts"] == 0
    trained = [row["prompt_id"] for row in run.samples() if row["phase"] == "train"]
    assert len(trained) == len(set(trained)) == 36


RUNNER = """
import json, sys
from pathlib import Path
from postgrad.core.config import resolve
from postgrad.rl import RLConfig, train
if __name__ == "__main__":
    options, out, resume = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], sys.argv[3] == "resume"
    train(config=resolve(RLConfig, None, options), out=out, resume=resume, quiet=True)
"""


def start(folder: Path, out: Path, *, resume: bool) -> subprocess.Popen[bytes]:
    script, settings = folder / "runner.py", folder / "options.json"
    script.write_text(RUNNER)
    settings.write_text(json.dumps(options(folder, steps=12)))
    words = [sys.executable, str(script), str(settings), str(out), "resume" if resume else "new"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)


@pytest.mark.parametrize("kill_at", [1, 5])
def test_a_killed_run_resumes_to_the_same_metrics(tmp_path: Path, kill_at: int) -> None:
    """kill -9 once `kill_at` updates are logged, then --resume; against a run that nobody disturbed."""
    undisturbed = start(tmp_path, tmp_path / "straight", resume=False)
    _, errors = undisturbed.communicate(timeout=240)
    assert undisturbed.returncode == 0, errors.decode()
    out = tmp_path / "killed"
    victim = start(tmp_path, out, resume=False)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and victim.poll() is None:
        if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_bytes().count(b"\n") > kill_at:
            break
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    logged = len(Run.open(out).metrics())
    assert kill_at < logged < 13, "the run was to be killed in the middle"
    survivor = start(tmp_path, out, resume=True)
    _, errors = survivor.communicate(timeout=240)
    assert survivor.returncode == 0, errors.decode()
    assert stable(Run.open(out)) == stable(Run.open(tmp_path / "straight"))
    final = [
        Run.open(tmp_path / name).checkpoints()[-1][1] / "model.safetensors"
        for name in ("killed", "straight")
    ]
    assert final[0].read_bytes() == final[1].read_bytes()


def test_ctrl_c_writes_a_checkpoint_and_the_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(tmp_path, out, resume=False)
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert b"KeyboardInterrupt" in errors  # this script does not catch it; the command line does
    run = Run.open(out)
    assert run.status == "interrupted"
    latest = run.latest_checkpoint()
    assert latest is not None
    assert latest[0] == run.last_step
    resumed = train(out=out, resume=True, quiet=True)
    assert [row["step"] for row in resumed.metrics()] == list(range(13))


@pytest.mark.parametrize(
    ("reward", "status"),
    [("raises", "verify_errors"), ("hangs", "verify_timeouts"), ("nan", "verify_non_finite")],
)
def test_a_reward_that_always_fails_stops_the_run_with_its_words(
    tmp_path: Path, reward: str, status: str
) -> None:
    small = {"data.verify_timeout_s": 0.05, "algorithm.prompts_per_batch": 2, "algorithm.samples_per_prompt": 2,
             "eval.prompts": 2, "eval.samples_per_prompt": 1, "engine.slots": 4}  # fmt: skip
    with pytest.raises(TrainingError, match="could be verified") as caught:
        train(config=config(tmp_path, reward, **small), out=tmp_path / "run", quiet=True)
    expected = {
        "verify_errors": "no such number",
        "verify_timeouts": "timeout",
        "verify_non_finite": "non_finite",
    }
    assert expected[status] in str(caught.value)
    assert Run.open(tmp_path / "run").status == "failed"


def test_samples_whose_verification_fails_are_counted_and_left_out(tmp_path: Path) -> None:
    run = train(
        config=config(tmp_path, "picky", **{"algorithm.success_threshold": 1.0}),
        out=tmp_path / "run",
        quiet=True,
    )
    rows = run.metrics()[1:]
    assert any(row["rollout/verify_failed_fraction"] > 0 for row in rows)
    for row in rows:
        assert row["rollout/verify_errors"] == pytest.approx(row["rollout/verify_failed_fraction"] * 24)
        assert row["loss/trained_samples"] <= 24 - row["rollout/verify_errors"]


def test_mastered_prompts_leave_the_stream(tmp_path: Path) -> None:
    run = train(
        config=config(tmp_path, "half", **{"algorithm.success_threshold": 0.0}),
        out=tmp_path / "run",
        quiet=True,
    )
    rows = run.metrics()
    assert rows[-1]["curriculum/removed_prompts"] == 36  # every sample passes: each prompt is seen once
    assert rows[1]["curriculum/removed_prompts"] == 6
    assert rows[-1]["curriculum/active_prompts"] == rows[1]["curriculum/active_prompts"] - 30


def test_held_out_prompts_are_never_trained_on(tmp_path: Path) -> None:
    run = train(
        config=config(tmp_path, **{"run.log_samples": 6, "eval.prompts": 1000}),
        out=tmp_path / "run",
        quiet=True,
    )
    trained = {
        row["prompt_id"] for row in run.samples() if row["phase"] == "train" and row["step"] not in (0, 3)
    }
    held_out = {row["prompt_id"] for row in run.samples() if row["phase"] in ("before", "after")}
    assert trained
    assert held_out
    assert not trained & held_out


def test_whole_groups_can_be_logged(tmp_path: Path) -> None:
    run = train(
        config=config(tmp_path, steps=1, **{"run.log_samples": 2, "run.samples_per_group": 3}),
        out=tmp_path / "run",
        quiet=True,
    )
    rows = [row["prompt_id"] for row in run.samples() if row["phase"] == "train"]
    assert [rows.count(name) for name in dict.fromkeys(rows)] == [3, 3]


def test_bad_input_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"algorithm.prompts_per_batch": 500}, DataError, "fewer than algorithm.prompts_per_batch = 500"),
        ({"length.max_prompt_tokens": 2}, DataError, "longer than length.max_prompt_tokens = 2"),
        ({"length.max_completion_tokens": 95}, ConfigError, "context has 96"),
    ]
    for index, (changes, kind, words) in enumerate(cases):
        with pytest.raises(kind, match=words):
            train(config=config(tmp_path, **changes), out=tmp_path / f"run{index}", quiet=True)
    with pytest.raises(ConfigError, match="Did you mean 'optimizer.lr'"):
        train(config=config(tmp_path), optimizer__lrr=1, out=tmp_path / "x", quiet=True)
    train(config=config(tmp_path, steps=1), out=tmp_path / "used", quiet=True)
    with pytest.raises(RunError, match="--resume"):
        train(config=config(tmp_path), out=tmp_path / "used", quiet=True)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import postgrad.rl.trainer as trainer

    real, calls = trainer.save, []

    def full(model: Any, folder: Path) -> None:
        calls.append(folder)
        real(model, folder)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "save", full)
    with pytest.raises(RunError, match="space"):
        train(config=config(tmp_path), out=tmp_path / "run", quiet=True)
    monkeypatch.undo()
    run = Run.open(tmp_path / "run")
    assert [step for step, _ in run.checkpoints()] == [2]
    monkeypatch.setenv("POSTGRAD_CACHE", str(tmp_path / "cache"))
    resumed = train(out=tmp_path / "run", resume=True, quiet=True)
    assert resumed.metrics()[-1]["step"] == 6
