"""Arms of an ablation, the rule of the forward search, and summaries over seeds; without training anything."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scipy import stats

from postgrad.core.config import read_toml, validate
from postgrad.core.errors import ConfigError, TrainingError
from postgrad.core.recipes import find_recipe
from postgrad.core.statistics import mean_interval, student_t_quantile
from postgrad.rl import RLConfig, ablation_runs, leave_one_out
from postgrad.rl.ablation import AXES, AblationConfig, choose_axes, put_on, read_axes
from postgrad.rl.ablation_results import (
    SeedResult,
    arm_from_record,
    arm_record,
    summarise_arm,
)
from postgrad.rl.config import make_config


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_students_quantile_is_scipys(degrees: int, confidence: float) -> None:
    expected = stats.t.ppf(0.5 + 0.5 * confidence, degrees)
    assert student_t_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-9)


def test_each_axis_of_scalerl_is_taken_back_and_nothing_else() -> None:
    arms = leave_one_out()
    assert list(arms) == list(AXES)
    for name, overrides in arms.items():
        recipe = put_on(RLConfig(), overrides)
        assert recipe != RLConfig()
        assert put_on(recipe, choose_axes(recipe, "forward", names=[name]).overrides[name]) == RLConfig()


def test_adding_every_axis_to_the_baselines_gives_scalerl() -> None:
    for preset in ("deepseek-grpo", "qwen2.5-dapo", "magistral", "minimax-m1"):
        baseline = make_config(read_toml(find_recipe(preset)), overrides={"model.path": "x"})
        chosen = choose_axes(baseline, "forward").overrides
        scalerl = make_config(read_toml(find_recipe("scalerl")), overrides={"model.path": "x"})
        whole = put_on(baseline, *chosen.values(), {"algorithm": {"clip_high": None}})
        assert whole == scalerl


def test_files_of_axes(tmp_path: Path) -> None:
    path = tmp_path / "axes.toml"
    path.write_text("[axes.fast]\noptimizer.lr = 1e-3\n[axes.hot.algorithm]\ntemperature = 2.0\n")
    assert read_axes(path) == {
        "fast": {"optimizer": {"lr": 1e-3}},
        "hot": {"algorithm": {"temperature": 2.0}},
    }
    path.write_text("steps = 3\n[axes.fast]\noptimizer.lr = 1e-3\n")
    with pytest.raises(ConfigError, match=r"nothing else \(received steps\)"):
        read_axes(path)
    with pytest.raises(ConfigError, match="cannot be called 'full'"):
        leave_one_out(axes={"full": {"optimizer.lr": 1e-3}})
    with pytest.raises(ConfigError, match="cannot be called '../up'"):
        leave_one_out(axes={"../up": {"optimizer.lr": 1e-3}})


def seed_result(score: float) -> SeedResult:
    return SeedResult(score, 10.0, 0.0, {0: (0.0, 0.1), 5: (2.0, score)})


def test_arms_are_compared_over_the_seeds_that_both_have() -> None:
    full = summarise_arm("full", {}, {0: seed_result(0.5), 1: seed_result(0.7), 2: seed_result(0.6)}, {})
    arm = summarise_arm("loss", {}, {0: seed_result(0.4), 2: seed_result(0.48)}, {1: "nan"}, full)
    assert arm.difference == pytest.approx(mean_interval([-0.1, -0.12]))
    assert arm.curve.mean == pytest.approx([0.1, 0.44])
    assert arm.failed == {1: "nan"}
    assert arm_from_record(arm_record(arm)) == arm
    alone = summarise_arm("loss", {}, {0: seed_result(0.4)}, {}, full)
    assert math.isnan(alone.difference.low)
    assert alone.curve.low == alone.curve.mean


class Work:
    """Stands for runs: every axis adds to a score what it is worth, with a little noise that seeds share."""

    def __init__(self, worth: dict[str, float], seeds: int = 4) -> None:
        recipe = make_config()
        axes = {name: {"optimizer": {"lr": 1e-3 * (i + 1)}} for i, name in enumerate(worth)}
        data = {"mode": "forward", "seeds": seeds, "recipe": recipe.model_dump(), "axes": axes}
        self.config = validate(AblationConfig, data)
        self.worth, self.arms = worth, dict[str, Any]()
        self.run = SimpleNamespace(path=Path("out"))

    def do(self, arms: dict[str, Any], reference: str = "") -> None:
        for name, overrides in arms.items():
            gain = sum(self.worth.get(axis, 0.0) for axis in name.split("+"))
            results = {
                seed: seed_result(0.3 + 0.05 * seed + gain + 1e-3 * ((seed * len(name)) % 3))
                for seed in self.config.seed_list
            }
            self.arms[name] = summarise_arm(name, overrides, results, {}, self.arms.get(reference))


def test_the_forward_search_keeps_what_helps_and_stops() -> None:
    found = ablation_runs._forward(Work({"small": 0.05, "large": 0.1, "none": 0.0, "bad": -0.1}))  # type: ignore[arg-type]
    assert found.kept == ["large", "small"]
    assert [item.kept for item in found.rounds] == ["large", "small", None]
    assert found.rounds[0].tried == ["small", "large", "none", "bad"]
    assert found.rounds[2].tried == ["large+small+none", "large+small+bad"]
    references = {arm.name: arm.reference for arm in found.arms}
    assert references["large"] == "start"
    assert references["large+small"] == "large"


def test_without_a_run_of_the_recipe_itself_nothing_is_compared() -> None:
    arm = summarise_arm("full", {}, {}, {0: "the loss is nan"})
    with pytest.raises(TrainingError, match="nothing can be compared: the loss is nan"):
        ablation_runs._require(arm)
