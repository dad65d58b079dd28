"""`rl ablate` on a toy task: arms, a kill in the middle, forward search, what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import postgrad as pg
from postgrad.cli import main
from postgrad.core.run import Run

REWARD = '''
def digit(prompt, completion):
    """1 when the completion begins with the last digit of the prompt."""
    return float(completion.strip()[:1] == prompt.text.strip()[-1])
'''
RECIPE = """
steps = 4
[data]
holdout_fraction = 0.2
[[data.tasks]]
name = "digits"
path = "{folder}/prompts.jsonl"
reward = "{folder}/my_reward.py:digit"
[model.embedded]
hidden_size = 32
num_layers = 2
intermediate_size = 48
head_dim = 8
vocab_size = 300
max_position = 96
steps = 30
[algorithm]
prompts_per_batch = 6
samples_per_prompt = 4
[schedule]
k = 2
update_cost_steps = 3
[length]
max_prompt_tokens = 60
max_completion_tokens = 8
interrupt_min = "none"
[optimizer]
lr = 1e-3
warmup_steps = 2
micro_batch_tokens = 512
[engine]
slots = 20
[eval]
every = 2
prompts = 10
samples_per_prompt = 2
[run]
checkpoint_every = 1
"""


@pytest.fixture
def recipe(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSTGRAD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "my_reward.py").write_text(REWARD)
    rows = [{"prompt": f"repeat {i} after me {i % 10}", "answer": str(i % 10)} for i in range(120)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "toy.toml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def test_a_killed_ablation_goes_on_and_repeats_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["rl", "ablate", str(recipe), "--axes", "loss", "--seeds", "2", "--out", str(out)]
    victim = subprocess.Popen(
        [sys.executable, "-m", "postgrad", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    late = out / "loss" / "seed_0" / "checkpoints" / "step_00000001"
    deadline = time.monotonic() + 120
    while not late.is_dir() and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert Run.open(out).status == "interrupted"
    first = out / "full" / "seed_0"
    metrics = (first / "metrics.jsonl").read_bytes()
    assert main(["rl", "ablate", "--out", str(out), "--resume", "--seeds", "3"]) == 2
    assert "takes no recipe" in capsys.readouterr().err
    assert main(["rl", "ablate", "--out", str(out), "--resume"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 4 runs are finished already" in shown
    assert "cannot be read off" in shown  # three evaluations are no curve
    assert (first / "metrics.jsonl").read_bytes() == metrics
    assert "resumed" not in Run.open(first).info
    assert len(Run.open(out / "loss" / "seed_0").info["resumed"]) == 1

    result = json.loads((out / "result.json").read_text())
    arms = {arm["name"]: arm for arm in result["arms"]}
    assert list(arms) == ["full", "loss"]
    for name, arm in arms.items():
        for seed in (0, 1):
            rows = Run.open(out / name / f"seed_{seed}").metrics()
            assert [row["step"] for row in rows] == list(range(5))
            assert arm["scores"][str(seed)] == rows[-1]["eval/pass_rate"]
        paired = [arm["scores"][seed] - arms["full"]["scores"][seed] for seed in ("0", "1")]
        if name != "full":
            assert arm["difference"]["mean"] == pytest.approx(sum(paired) / 2)
            assert arm["reference"] == "full"
        assert len(arm["curve"]["mean"]) == 3
    config = Run.open(out / "loss" / "seed_1").config_dict()
    assert (config["algorithm"]["loss"], config["seed"]) == ("dapo", 1)

    page = out / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert main(["report", str(out)]) == 0
    assert page.read_bytes() == before
    assert b"Held-out pass rate over compute" in before
    assert main(["rl", "ablate", str(recipe), "--axes", "loss", "--out", str(out)]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_processes_side_by_side_write_the_runs_of_one_process(recipe: Path, tmp_path: Path) -> None:
    from postgrad.core.config import resolve
    from postgrad.rl import RLConfig

    out, fewer = tmp_path / "out", ["--steps", "2", "--axes", "loss", "--seeds", "1"]
    assert main(["rl", "ablate", str(recipe), *fewer, "--out", str(out), "--jobs", "2", "--json"]) == 0
    alone = pg.rl.train(
        config=resolve(RLConfig, recipe), out=tmp_path / "alone", quiet=True, steps=2, algorithm__loss="dapo"
    )
    rates = [
        [row.get("rollout/pass_rate") for row in run.metrics()]
        for run in (alone, Run.open(out / "loss" / "seed_0"))
    ]
    assert rates[0] == rates[1]
    result = json.loads((out / "result.json").read_text())
    assert result["arms"][1]["scores"] == {"0": alone.metrics()[-1]["eval/pass_rate"]}
    assert result["arms"][1]["difference"]["low"] is None  # one seed has no interval
    assert (out / "loss" / "seed_0.log").is_file()


def test_a_forward_search_from_python_with_axes_of_ones_own(recipe: Path, tmp_path: Path) -> None:
    from postgrad.core.config import resolve
    from postgrad.rl import RLConfig

    found = pg.rl.ablate(
        config=resolve(RLConfig, recipe),
        mode="forward",
        axes={"same": {"schedule.update_cost_steps": 4}},
        seeds=2,
        out=tmp_path / "forward",
        quiet=True,
        steps=2,
        optimizer__lr=1e-12,
    )
    assert [arm.name for arm in found.arms] == ["start", "same"]
    assert found.arms[1].overrides == {"schedule": {"update_cost_steps": 4}}
    assert found.rounds[0].tried == ["same"]
    assert found.rounds[0].best == "same"
    assert found.kept == []  # no difference beyond noise
    assert main(["report", str(tmp_path / "forward")]) == 0


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--axes", "los"], "No axis 'los'. Did you mean 'loss'?"),
        (
            ["--axes", "interruption"],
            "No axis changes this recipe: interruption: the same as the recipe itself.",
        ),
        (["--mode", "forward"], "A forward search starts from a baseline"),
        (["--mode", "forward", "--preset", "deepseek-grpo", "--seeds", "1"], "give seeds = 2 or more"),
        (["--mode", "backward"], "'backward' is not one of"),
        (["--preset", "magistal"], "Did you mean 'magistral'?"),
        (["--jobs", "0"], "0 is not in the range"),
        (["--algorithm.los", "dapo"], "Did you mean 'algorithm.loss'?"),
        (["--axes-file", "AXES"], "Unknown key 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
        (["--axes-file", "PROMPTS"], "is not valid"),
        (["--algorithm.prompts_per_batch", "500"], "fewer than algorithm.prompts_per_batch"),
        (["--task", "no_such_task"], "no_such_task"),
        (["--resume"], "takes no recipe"),
        (["--resume", "--overwrite"], "exclude each other"),
    ],
)
def test_wrong_words_leave_nothing_behind(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], answer: str
) -> None:
    axes = tmp_path / "axes.toml"
    axes.write_text("[axes.fast]\noptimizer.lrr = 1e-2\n")
    places = {"AXES": str(axes), "PROMPTS": str(tmp_path / "prompts.jsonl")}
    given = [places.get(word, word) for word in words]
    out = tmp_path / "out"
    assert main(["rl", "ablate", str(recipe), "--out", str(out), *given]) == 2
    assert answer in capsys.readouterr().err
    assert not out.exists()


def test_a_dry_run_says_what_would_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = sorted(tmp_path.iterdir())
    assert main(["rl", "ablate", str(recipe), "--dry-run", "--seeds", "3"]) == 0
    shown = capsys.readouterr().out
    assert "11 arms × 3 seeds, 4 updates each" in shown
    assert "algorithm.history_threshold = none" in shown
    assert "left out: interruption: the same as the recipe itself" in shown
    assert sorted(tmp_path.iterdir()) == files
