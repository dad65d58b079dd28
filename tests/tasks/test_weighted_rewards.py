"""Several rewards of one task: by hand, with a part that fails, with a part that decides, through pools and reward models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tasks.small_models import reward_model

from postgrad.core.config import resolve
from postgrad.core.errors import ConfigError, DataError, TaskError
from postgrad.core.types import Prompt, Sample, Verdict
from postgrad.rl.config import AlgorithmConfig, LengthConfig, RLConfig
from postgrad.rl.rollout import Rollout
from postgrad.tasks import DataConfig, RewardPart, TaskConfig, load_tasks, make_judge
from postgrad.tasks.reward_model import RewardModel
from postgrad.tasks.weighted import WeightedJudge, weighted_verdict

REWARDS = """
def short(prompt, completion):
    return 1.0 / len(completion)

def polite(prompt, completion):
    assert prompt.task == "sums" and prompt.metadata["mood"] == "good"
    return float("please" in completion)

def fussy(prompt, completion):
    if "x" in completion:
        raise RuntimeError("no x")
    return 0.5
"""


def write(folder: Path) -> Path:
    (folder / "weighed.py").write_text(REWARDS)
    path = folder / "prompts.jsonl"
    rows = [{"prompt": f"{i} + {i}?", "answer": str(2 * i), "mood": "good"} for i in range(1, 6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def task(folder: Path, *parts: dict[str, Any]) -> TaskConfig:
    parts = tuple(
        {**part, "reward": f"{folder / 'weighed.py'}:{part['reward']}"} if "reward" in part else part
        for part in parts
    )
    return TaskConfig.model_validate({"name": "sums", "path": str(write(folder)), "rewards": parts})


def judged(config: TaskConfig, completions: list[str], others: tuple[TaskConfig, ...] = ()) -> list[Verdict]:
    (first, *_) = load_tasks(DataConfig(tasks=(config, *others)))
    prompt = first.prompts()[0]
    with make_judge(DataConfig(tasks=(config, *others))) as judge:
        return judge.collect([judge.submit(prompt, completion) for completion in completions])


def test_the_weighted_mean_by_hand_and_a_part_without_a_score() -> None:
    parts = [RewardPart(verifier=True, weight=0.8), RewardPart(reward="m:f", weight=0.2)]
    assert weighted_verdict(parts, [Verdict(1.0), Verdict(0.5)]) == Verdict(
        pytest.approx(0.9),
        parts={"verifier": 1.0, "f": 0.5},  # type: ignore[arg-type]
    )
    scaled = [part.model_copy(update={"weight": 7 * part.weight}) for part in parts]
    assert weighted_verdict(scaled, [Verdict(1.0), Verdict(0.5)]).score == pytest.approx(0.9)
    failed = weighted_verdict(parts, [Verdict(1.0), Verdict(None, "timeout", "too slow")])
    assert (failed.score, failed.status, failed.detail, failed.parts) == (None, "timeout", "f: too slow", {})


def test_verifier_and_functions_are_asked_in_processes_of_their_own(tmp_path: Path) -> None:
    config = task(tmp_path, {"verifier": True, "weight": 2}, {"reward": "short"}, {"reward": "polite"})
    plain = TaskConfig.model_validate({"name": "other", "path": str(tmp_path / "prompts.jsonl")})
    right, wrong, polite = judged(config, ["2", "3", "2 please"], (plain,))
    assert right.parts == {"verifier": 1.0, "short": 1.0, "polite": 0.0}
    assert right.score == pytest.approx(3 / 4)
    assert wrong.score == pytest.approx(1 / 4)
    assert polite.parts["polite"] == 1
    assert polite.parts["short"] == pytest.approx(1 / 8)


def test_a_part_that_raises_leaves_the_sample_without_a_score(tmp_path: Path) -> None:
    fine, failed = judged(task(tmp_path, {"verifier": True}, {"reward": "fussy"}), ["2", "x"])
    assert fine.score == pytest.approx(0.75)
    assert (failed.score, failed.status) == (None, "error")
    assert failed.detail.startswith("fussy: ")
    assert "no x" in failed.detail


def test_a_reward_model_is_one_of_the_parts(tmp_path: Path) -> None:
    folder = reward_model(tmp_path / "rm")
    (verdict,) = judged(
        task(tmp_path, {"verifier": True, "weight": 0.8}, {"reward_model": str(folder), "weight": 0.2}), ["2"]
    )
    config = RewardPart.model_validate({"reward_model": str(folder)}).reward_model
    assert config is not None
    alone = RewardModel(config)
    prompt = load_tasks(DataConfig(tasks=(task(tmp_path, {"verifier": True}),)))[0].prompts()[0]
    (expected,) = alone.collect([alone.submit(prompt, "2")])
    assert verdict.parts["reward_model"] == pytest.approx(expected.score)
    assert verdict.score == pytest.approx(0.8 + 0.2 * (expected.score or 0))


def test_tickets_are_collected_in_any_order_and_once() -> None:
    class Counting:
        def __init__(self) -> None:
            self.known: list[str] = []

        def submit(self, prompt: Prompt, completion: str) -> int:
            self.known.append(completion)
            return len(self.known) - 1

        def collect(self, tickets: Any) -> list[Verdict]:
            return [Verdict(float(self.known[ticket])) for ticket in tickets]

    halves = [RewardPart(reward="m:f"), RewardPart(reward="m:g")]
    judge = WeightedJudge([(part, Counting()) for part in halves])
    tickets = [judge.submit(Prompt(id="p", text="x"), str(number)) for number in range(5)]
    assert [v.score for v in judge.collect(tickets[::-2])] == [4, 2, 0]
    assert [v.score for v in judge.collect([tickets[1], tickets[3]])] == [1, 3]
    with pytest.raises(TaskError, match="collected once"):
        judge.collect(tickets[:1])


def test_one_part_may_decide_what_passes(sample: Sample) -> None:
    rollout = Rollout(None, LengthConfig(), AlgorithmConfig(), 0)  # type: ignore[arg-type]
    parts = [RewardPart(verifier=True), RewardPart(reward="m:f")]
    sample.verdict = weighted_verdict(parts, [Verdict(1.0), Verdict(0.2)])
    assert not rollout.passed(sample)  # 0.6 is below the threshold of 1
    parts[0] = RewardPart(verifier=True, passes=True)
    sample.verdict = weighted_verdict(parts, [Verdict(1.0), Verdict(0.2)])
    assert rollout.passed(sample)
    assert sample.verdict.score == pytest.approx(0.6)
    sample.verdict = weighted_verdict(parts, [Verdict(0.0), Verdict(1.0)])
    assert not rollout.passed(sample)


@pytest.fixture
def sample() -> Sample:
    from tests.rooms.rl.conftest import make_groups

    return make_groups(num_groups=1, size=2)[0].samples[0]


def test_answers_are_needed_where_the_own_verifier_is_a_part(tmp_path: Path) -> None:
    with_verifier, without = task(tmp_path, {"verifier": True}), task(tmp_path, {"reward": "short"})
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1 + 1?"}\n')
    with pytest.raises(DataError, match="no answer column"):
        load_tasks(DataConfig(tasks=(with_verifier,)))[0].prompts()
    assert len(load_tasks(DataConfig(tasks=(without,)))[0].prompts()) == 1
    with pytest.raises(TaskError, match="make_judge"):
        load_tasks(DataConfig(tasks=(without,)))[0].verifier()


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ([{"weight": 1}], "nothing that judges"),
        ([{"verifier": True, "reward": "m:f"}], "reward and verifier; give exactly one"),
        ([{"reward": "a:f"}, {"reward": "b:f"}], "have one name"),
        ([{"reward": "a:f", "passes": True}, {"verifier": True, "passes": True}], "one decides"),
        ([{"reward": "a:f", "weight": 0}], "greater than 0"),
        ([{"reward": "a:f", "wieght": 1}], "Did you mean"),
    ],
)
def test_what_cannot_be_meant_is_refused(rewards: list[dict[str, Any]], words: str) -> None:
    tasks = [{"name": "gcd", "rewards": rewards}]
    with pytest.raises(ConfigError, match=words):
        resolve(RLConfig, None, {"data.tasks": tasks})
    with pytest.raises(ConfigError, match="put the latter into rewards"):
        resolve(
            RLConfig,
            None,
            {"data.tasks": [{"name": "gcd", "reward": "m:f", "rewards": [{"verifier": True}]}]},
        )
