"""Whatever a config says, the command line answers in words: done, or what is wrong. Never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.rooms.rl.test_train import options

from postgrad.cli import main
from postgrad.core.config import resolve, walk_fields
from postgrad.core.errors import EngineError, PostgradError
from postgrad.rl import RLConfig, train

_LEFT_OUT = ("model.path", "model.revision", "data.tasks", "cluster", "steps", "mara", "engine.kind")
"""What would go to a hub, start a cluster or another engine, or run for ever."""
PATHS = [path for path, _ in walk_fields(RLConfig) if not path.startswith(_LEFT_OUT)]
WORDS = st.one_of(
    st.sampled_from(
        ["", "none", "off", "true", "nan", "inf", "-1", "0", "1", "2", "3", "7", "0.5", "1e-30", "1e30", "1000000000000",
         "99999999999999999999", "cpu", "cuda:7", "float32", "bfloat16", "[]", "{}", "[1, 2]", "prompt", "group", "loss",
         "reward", "ppo", "keep", "resample", "linear", "\x00", "é", "a,b"]
    ),
    st.text(max_size=8),
    st.integers().map(str),
    st.floats().map(str),
)  # fmt: skip
CHANGES = st.dictionaries(st.sampled_from(PATHS), WORDS, min_size=1, max_size=4)
QUIET = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSTGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("postgrad.rl.plan._matmul_rate", lambda device, dtype: 1e9)
    config = resolve(RLConfig, None, options(tmp_path, steps=1))
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    return path


@settings(QUIET, max_examples=300)
@given(changes=CHANGES)
def test_any_words_are_answered_by_a_dry_run(
    recipe: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str]
) -> None:
    words = [f"--{path}={value}" for path, value in changes.items()]
    code = main(["rl", "train", str(recipe), *words, "--out", str(recipe.parent / "run"), "--dry-run"])
    said = capsys.readouterr()
    assert code in (0, 2)
    assert (code == 0) == ("dry run" in said.out)
    assert code == 0 or said.err.strip()
    assert not (recipe.parent / "run").exists()


SMALL: dict[str, Any] = {
    "algorithm.prompts_per_batch": [1, 2, 6, 90, 1000],
    "algorithm.samples_per_prompt": [2, 3],
    "algorithm.loss": ["cispo", "grpo", "dapo", "gspo", "reinforce"],
    "algorithm.aggregation": ["prompt", "sample", "token"],
    "algorithm.advantage_norm": ["batch", "group", "none"],
    "algorithm.baseline": ["group", "none"],
    "algorithm.zero_variance": ["drop", "keep", "resample"],
    "algorithm.kl": ["none", "loss", "reward"],
    "algorithm.kl_estimator": ["k1", "k2", "k3"],
    "algorithm.covariance": ["none", "kl", "clip"],
    "algorithm.entropy_coef": [0.0, 0.01, -0.01],
    "algorithm.temperature": [1e-6, 0.5, 1.0, 100.0],
    "algorithm.top_p": [1e-9, 0.5, 1.0],
    "algorithm.top_k": [0, 1, 10**6],
    "algorithm.truncated": ["exclude", "keep"],
    "algorithm.history_threshold": [None, 1e-9, 1.0],
    "schedule.mode": ["pipeline", "ppo"],
    "schedule.k": [1, 3, 64],
    "schedule.update_cost_steps": [0, 50],
    "length.max_prompt_tokens": [1, 60],
    "length.max_completion_tokens": [1, 5, 8, 80],
    "length.interrupt_min": [None, 1, 3],
    "length.interrupt_max": [1, 4],
    "length.interrupt_phrase": ["", "so:", "é" * 50],
    "length.penalty_tokens": [None, 1, 4],
    "optimizer.lr": [1e-30, 1e-3, 1e30],
    "optimizer.eps": [0.0, 1e-15],
    "optimizer.micro_batch_tokens": [1, 64, 10**6],
    "optimizer.max_grad_norm": [1e-9, 1.0],
    "optimizer.schedule": ["constant", "linear", "cosine"],
    "optimizer.gradient_checkpointing": [False, True],
    "engine.slots": [1, 20, 10**12],
    "engine.prefill_tokens": [1, 4096],
    "eval.prompts": [1, 1000],
    "eval.samples_per_prompt": [1, 2],
    "eval.temperature": [0.0, 1.0],
    "data.holdout_fraction": [0.0, 0.2, 0.999],
    "model.dtype": ["float32", "bfloat16"],
}


@settings(QUIET, max_examples=40)
@given(data=st.data())
def test_any_sensible_looking_config_trains_or_says_why_not(recipe: Path, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(sorted(SMALL)), min_size=1, max_size=6, unique=True))
    changes = {path: data.draw(st.sampled_from(SMALL[path]), label=path) for path in chosen}
    out = recipe.parent / "run"
    try:
        config = resolve(RLConfig, recipe, changes)
        run = train(config=config, out=out, overwrite=True, quiet=True)
    except PostgradError:
        pass
    else:
        assert run.status == "finished"


def test_a_cache_that_no_memory_holds_is_named(recipe: Path) -> None:
    config = resolve(RLConfig, recipe, {"engine.slots": 10**12})
    with pytest.raises(EngineError, match="1,000,000,000,000 sequences"):
        train(config=config, out=recipe.parent / "run", quiet=True)


def test_memory_that_runs_out_anywhere_is_told_in_words(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr("postgrad.rl.api.train", full)
    assert main(["rl", "train", str(recipe), "--out", str(recipe.parent / "run")]) == 2
    assert "out of memory" in capsys.readouterr().err
