"""Options beyond the paper's recipe, in whole runs: what they change, what they refuse, and that they resume exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.rooms.rl.conftest import make_groups
from tests.rooms.rl.test_train import config, stable

from postgrad.core.errors import ConfigError
from postgrad.core.models import load
from postgrad.core.run import Run
from postgrad.core.types import Verdict
from postgrad.rl import evaluate_model, train
from postgrad.rl.api import load_model, read_data
from postgrad.rl.config import AlgorithmConfig, LengthConfig
from postgrad.rl.filters import informative, usable
from postgrad.rl.plan import make_plan
from postgrad.rl.rollout import Rollout
from postgrad.rl.trainer import Trainer


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRAD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


class Killed(BaseException):
    """Ends a run where a kill would."""


def straight_and_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, reward: str = "half", **changes: Any
) -> tuple[Run, Run]:
    """A run of 6 updates that nobody disturbed, and one that ended after 5 and went on from its checkpoint of 4."""
    straight = train(config=config(folder, reward, **changes), out=folder / "straight", quiet=True)
    advance = Trainer._advance

    def killed(self: Trainer) -> bool:
        if self.step == 5:
            raise Killed
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_advance", killed)
        with pytest.raises(Killed):
            train(config=config(folder, reward, **changes), out=folder / "killed", quiet=True)
    resumed = train(out=folder / "killed", resume=True, quiet=True)
    return straight, resumed


def assert_equal_runs(first: Run, second: Run) -> None:
    assert stable(first) == stable(second)
    files = [run.checkpoints()[-1][1].glob("*model.safetensors") for run in (first, second)]
    contents = [{path.name: path.read_bytes() for path in found} for found in files]
    assert contents[0]
    assert contents[0] == contents[1]


# -- zero_variance = "resample" ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["pipeline", "ppo"])
def test_dynamic_sampling_fills_batches_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    changes = {"algorithm.zero_variance": "resample", "schedule.mode": mode, "algorithm.truncated": "keep"}
    straight, resumed = straight_and_resumed(tmp_path, monkeypatch, **changes)
    assert_equal_runs(straight, resumed)
    rows = straight.metrics()[1:]
    assert sum(row["rollout/dropped_groups"] for row in rows) > 0
    for row in rows:
        assert row["loss/trained_groups"] == 6
        flat = row["rollout/zero_variance_fraction"] * (6 + row["rollout/dropped_groups"])
        assert flat == pytest.approx(row["rollout/dropped_groups"])


def test_where_all_groups_are_equal_updates_are_skipped(tmp_path: Path) -> None:
    changes = {
        "steps": 2,
        "algorithm.zero_variance": "resample",
        "algorithm.resample_limit": 1,
        "algorithm.success_threshold": -1.0,
        "algorithm.history_threshold": None,
        "algorithm.samples_per_prompt": 2,
    }
    run = train(config=config(tmp_path, "always", **changes), out=tmp_path / "run", quiet=True)
    for row in run.metrics()[1:]:
        assert row["loss/skipped"] == 1
        assert row["rollout/dropped_groups"] > 6
        assert row["rollout/zero_variance_fraction"] == 1


def test_what_is_informative_is_what_the_learner_keeps() -> None:
    kept, flat, failed, cut = make_groups(num_groups=4)
    for sample in flat.samples:
        sample.reward = 1.0
    for sample in failed.samples[1:]:
        sample.reward = None
    cut.samples[0].stop_reason = cut.samples[2].stop_reason = "length"
    algorithm = AlgorithmConfig()
    assert [informative(group, algorithm) for group in (kept, flat, failed, cut)] == [
        True,
        False,
        False,
        False,
    ]
    assert [s.request_id for s in usable(cut, algorithm)] == [13, 15]
    assert informative(cut, AlgorithmConfig(truncated="keep"))


def test_resampling_without_a_baseline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="baseline"):
        config(tmp_path, **{"algorithm.zero_variance": "resample", "algorithm.baseline": "none"})


# -- length.penalty_tokens ---------------------------------------------------------------------------------------------


def test_only_long_samples_that_passed_pay(model: Any) -> None:
    length = LengthConfig(max_completion_tokens=10, interrupt_min=None, penalty_tokens=4)
    rollout = Rollout(model, length, AlgorithmConfig(), 0)
    (group,) = make_groups(num_groups=1, size=3)
    for sample, tokens in zip(group.samples, (6, 9, 9), strict=True):
        sample.token_ids, sample.loss_mask = np.ones(tokens, dtype=np.int64), np.ones(tokens, dtype=bool)

    class Known:
        def collect(self, tickets: Any) -> list[Verdict]:
            return [Verdict(1.0), Verdict(1.0), Verdict(0.0)]

    rollout.judge(group, Known(), [0, 1, 2])  # type: ignore[arg-type]
    assert [sample.reward for sample in group.samples] == [1.0, 1.0 - 0.75, -1.0]  # (10 − 9)/4 − 1 = −0.75
    assert all(rollout.passed(sample) for sample in group.samples[:2])


def test_the_penalty_is_in_the_reward_and_logged(tmp_path: Path) -> None:
    changes = {
        "steps": 1,
        "length.interrupt_min": None,
        "length.penalty_tokens": 6,
        "algorithm.truncated": "keep",
        "algorithm.success_threshold": 0.5,
    }
    row = train(config=config(tmp_path, "always", **changes), out=tmp_path / "run", quiet=True).metrics()[1]
    assert -1 <= row["rollout/length_penalty_mean"] < 0
    assert row["rollout/reward_mean"] == pytest.approx(1 + row["rollout/length_penalty_mean"])
    assert row["rollout/pass_rate"] == 1
    with pytest.raises(ConfigError, match="penalty_tokens 8 must be below"):
        config(tmp_path, **{"length.penalty_tokens": 8})
    assert config(tmp_path, **{"length.penalty_tokens": "none"}).length.penalty_tokens is None


# -- regularisers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm.kl": "loss", "algorithm.kl_coef": 0.5, "algorithm.entropy_coef": 0.1},
        {"algorithm.kl": "reward", "algorithm.kl_coef": 0.05, "algorithm.kl_estimator": "k1"},
    ],
)
def test_a_regularised_run_resumes_with_the_reference_of_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    straight, resumed = straight_and_resumed(
        tmp_path,
        monkeypatch,
        **changes,
        **{"algorithm.zero_variance": "keep", "algorithm.truncated": "keep"},
    )
    assert_equal_runs(straight, resumed)
    rows = straight.metrics()[1:]
    assert rows[0]["loss/kl_k3_policy_ref"] == pytest.approx(
        0, abs=1e-6
    )  # the first update starts at the reference
    assert rows[-1]["loss/kl_k3_policy_ref"] > 1e-4
    assert ("loss/reward_kl_mean" in rows[0]) == (changes["algorithm.kl"] == "reward")


# -- optimizer ---------------------------------------------------------------------------------------------------------


def test_schedule_and_gradient_checkpointing_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"optimizer.schedule": "cosine", "optimizer.gradient_checkpointing": True, "optimizer.lr": 3e-3}
    straight, resumed = straight_and_resumed(
        tmp_path, monkeypatch, **changes, **{"algorithm.truncated": "keep", "model.dtype": "bfloat16"}
    )
    assert_equal_runs(straight, resumed)
    rates = [row["loss/lr"] for row in straight.metrics()[1:]]
    assert rates == pytest.approx([1.5e-3, 3e-3, 3e-3, 2.5606e-3, 1.5e-3, 0.43934e-3], rel=1e-4)


# -- LoRA --------------------------------------------------------------------------------------------------------------

LORA = {
    "lora.rank": 4,
    "lora.alpha": 8.0,
    "optimizer.lr": 1e-2,
    "algorithm.truncated": "keep",
    "algorithm.zero_variance": "keep",
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft on a newer transformers
def test_a_lora_run_resumes_and_its_checkpoint_is_a_model_and_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft")
    changes = {**LORA, "lora.dropout": 0.1, "algorithm.kl": "loss", "algorithm.kl_coef": 0.01}
    straight, resumed = straight_and_resumed(tmp_path, monkeypatch, **changes)
    assert_equal_runs(straight, resumed)
    rows = straight.metrics()
    assert rows[-1]["loss/kl_k3_policy_ref"] > 1e-5
    folder = straight.checkpoints()[-1][1]
    files = [
        run.checkpoints()[-1][1] / "adapter" / "adapter_model.safetensors" for run in (straight, resumed)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    again = evaluate_model(config(tmp_path, "half", **changes, **{"model.path": str(straight.path)}))
    assert again.metrics["eval/pass_rate"] == rows[-1]["eval/pass_rate"]
    settings = config(tmp_path, "half", **changes)
    base = load_model(settings, read_data(settings)).module
    initial = {name: p.detach().clone() for name, p in base.named_parameters()}
    theirs = peft.PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().state_dict()
    ours = load(folder).module.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    moved = {name for name, value in initial.items() if not torch.equal(ours[name], value)}
    assert moved
    assert all("proj" in name for name in moved)


def test_a_model_that_is_given_is_trained_in_place_and_plain_again(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    settings = config(tmp_path, "half", **LORA, steps=2)
    model = load_model(settings, read_data(settings))
    model.source = ""
    names, before = list(model.module.state_dict()), model.module.lm_head.weight.clone()  # type: ignore[union-attr]
    run = train(model, config=settings, out=tmp_path / "run", quiet=True)
    assert list(model.module.state_dict()) == names
    saved = load(run.checkpoints()[-1][1]).module.state_dict()
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, saved[name])
    assert torch.equal(model.module.lm_head.weight, before)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="given in memory"):
        train(out=tmp_path / "run", resume=True, quiet=True)


def test_the_plan_counts_what_is_trained(tmp_path: Path) -> None:
    full = make_plan(config(tmp_path))
    lora = make_plan(config(tmp_path, **{"lora.rank": 2, "lora.target_modules": ["q_proj"]}))
    added = 2 * 2 * (32 + 4 * 8)  # two layers, rank·(inputs + outputs)
    assert lora.num_parameters == full.num_parameters + added
    assert lora.gradient_bytes == 4 * added
    assert lora.flops_per_update < full.flops_per_update
    assert config(tmp_path, lora="none").lora is None


# -- several rewards ---------------------------------------------------------------------------------------------------


def test_the_parts_of_a_reward_are_logged(tmp_path: Path) -> None:
    settings = config(tmp_path, **{"steps": 1, "algorithm.success_threshold": 0.5})
    (task,) = settings.data.tasks
    file = (task.reward or "").rpartition(":")[0]
    parts = [{"reward": f"{file}:half", "weight": 3.0, "passes": True}, {"reward": f"{file}:always"}]
    tasks = [{"name": "digits", "path": task.path, "rewards": parts}]
    run = train(config=settings, data__tasks=tasks, out=tmp_path / "run", quiet=True)
    row = run.metrics()[1]
    half = row["rollout/half/score_mean"]
    assert row["rollout/always/score_mean"] == 1
    assert row["rollout/reward_mean"] == pytest.approx(2 * (3 * half + 1) / 4 - 1)  # signed
    assert row["rollout/pass_rate"] == pytest.approx(2 * half)  # `half` gives 0 or 1/2
    logged = [sample for sample in run.samples() if "parts" in sample]
    assert logged
    assert set(logged[0]["parts"]) == {"half", "always"}
