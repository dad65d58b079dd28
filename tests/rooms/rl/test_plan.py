"""The simulated schedule against what must come out where that can be said, costs and memory by hand, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from postgrad.cli import main
from postgrad.commands.rl_plan import read_lengths, splits
from postgrad.core.config import validate
from postgrad.core.errors import ConfigError
from postgrad.core.run import Run
from postgrad.rl.config import RLConfig
from postgrad.rl.costs import DECODE_SHARE, TRAIN_SHARE, Hardware, Shape, by_data_sheet, measure, memory
from postgrad.rl.simulate import Costs, Simulated, simulate


def config(mode: str = "pipeline", k: int = 2, batch: int = 8, slots: int = 32, **more: Any) -> RLConfig:
    return validate(
        RLConfig,
        {
            "algorithm": {"prompts_per_batch": batch, "samples_per_prompt": 4},
            "schedule": {"mode": mode, "k": k},
            "engine": {"slots": slots},
            **more,
        },
    )


def costs(update_s: float, step_s: float = 1.0, transfer_s: float = 0.0) -> Costs:
    return Costs(lambda count: step_s, 0.0, lambda tokens: update_s, transfer_s)


def run(
    update_s: float, length: int = 10, generators: int = 1, updates: int = 60, **options: Any
) -> Simulated:
    return simulate(config(**options), costs(update_s), [length], generators, updates=updates)


def test_ppo_takes_generation_and_update_one_after_the_other() -> None:
    """A batch of 32 samples fills the slots once: 10 steps of 1 s, then an update."""
    found = run(5.0, mode="ppo", k=2)
    assert found.update_s == pytest.approx(15.0, rel=0.03)
    assert found.idle_trainer == pytest.approx(10 / 15, abs=0.03)
    assert found.idle_generator == pytest.approx(5 / 15, abs=0.03)
    assert found.samples_per_s == pytest.approx(32 / 15, rel=0.03)


@pytest.mark.parametrize(("update_s", "expected"), [(1.0, 10.0), (30.0, 30.0)])
def test_a_pipeline_goes_as_fast_as_its_slower_side(update_s: float, expected: float) -> None:
    found = run(update_s, k=4)
    assert found.update_s == pytest.approx(expected, rel=0.05)
    assert found.idle_trainer == pytest.approx(1 - update_s / expected, abs=0.05)
    assert found.idle_generator <= (0.05 if update_s < expected else 0.7)
    assert found.lag <= 4


def test_twice_the_generators_make_twice_the_samples_while_the_trainer_waits() -> None:
    one, two, eight = (run(1.0, generators=count, k=8) for count in (1, 2, 8))
    assert two.samples_per_s == pytest.approx(2 * one.samples_per_s, rel=0.05)
    assert eight.update_s >= 1.0


@pytest.mark.parametrize("k", [1, 2, 8])
def test_however_many_generate_k_plus_one_batches_are_under_way(k: int) -> None:
    """With slots for everything each batch takes as long as its longest sample, 400 s, and k + 1 of them run at once."""
    found = simulate(config(k=k, slots=10_000), costs(0.01), [10, 10, 10, 400], 1, updates=80)
    assert found.update_s == pytest.approx(400 / (k + 1), rel=0.1)


def test_new_weights_and_more_sequences_take_time() -> None:
    free = simulate(config(k=2), costs(1.0), [10], 1, updates=40)
    loaded = simulate(config(k=2), costs(1.0, transfer_s=5.0), [10], 1, updates=40)
    assert loaded.update_s == pytest.approx(free.update_s + 5.0, rel=0.05)
    growing = Costs(lambda count: count / 32, 0.0, lambda tokens: 0.1, 0.0)
    full, half = (simulate(config(k=2, slots=slots), growing, [10], 1, updates=40) for slots in (32, 16))
    assert full.update_s == pytest.approx(half.update_s, rel=0.05)


def test_costs_and_memory_by_hand() -> None:
    shape = Shape(10**9, 2, 1000, 10, 100, 5000)
    card = Hardware(flops=1e15, bandwidth=1e12, memory=80e9)
    plain = config(
        slots=8, length={"max_prompt_tokens": 100, "max_completion_tokens": 900, "interrupt_min": None}
    )
    found = by_data_sheet(plain, shape, card, [200], 100, 4)
    assert found.decode_s(1) == pytest.approx((2e9 + 200 * 1000) / 1e12 / DECODE_SHARE)  # context 100 + 200/2
    assert found.decode_s(10**6) == pytest.approx(2e9 * 10**6 / 1e15 / DECODE_SHARE)
    assert found.update_s(800) == pytest.approx(6e9 * 800 * (1 + 100 / 800) / (TRAIN_SHARE * 4e15))
    needed = memory(plain, shape, 4)
    assert needed.generator == 2e9 + 1000 * 8 * 1000
    tokens = plain.optimizer.micro_batch_tokens
    assert needed.trainer == 16e9 / 4 + 34 * 10 * tokens * 100 + 2 * tokens**2 + 8 * tokens * 5000
    again = config(slots=8, optimizer={"gradient_checkpointing": True})
    assert memory(again, shape, 4).trainer < needed.trainer
    assert by_data_sheet(again, shape, card, [200], 100, 4).update_s(800) > found.update_s(800)


def test_lengths_have_the_mean_that_was_asked_for_and_those_of_a_run_are_its_own(tmp_path: Path) -> None:
    lengths = read_lengths("1000,0.5", config())
    assert sum(lengths) / len(lengths) == pytest.approx(1000, rel=0.02)
    assert max(read_lengths("14000,2", config())) == 14336
    with Run.create(tmp_path / "run", RLConfig(), command=[], kind="rl.train", seed=0, quiet=True) as written:
        written.log_samples(1, [{"num_tokens": 3, "prompt_id": "a"}, {"num_tokens": 5, "prompt_id": "b"}])
    assert read_lengths(str(tmp_path / "run"), config()) == [3, 5]
    for wrong in ("long", "0", "5,-1"):
        with pytest.raises(ConfigError, match="--lengths"):
            read_lengths(wrong, config())


def test_splits_leave_something_to_both() -> None:
    for gpus in (2, 3, 8, 100, 4096):
        assert all(0 < count < gpus for count in splits(gpus))
        assert splits(gpus)


def test_the_command_names_the_fastest_split_that_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 5000, "hidden_size": 1024,
             "intermediate_size": 3072, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
             "head_dim": 128, "max_position_embeddings": 40000}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    words = ["rl", "plan", "scalerl", "--model.path", str(tmp_path), "--gpus", "8", "--lengths", "2000,0.5"]
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["trainers"] + row["generators"] for row in record["splits"]] == [8] * len(record["splits"])
    best = max((row for row in record["splits"] if row["fits"]), key=lambda row: row["samples_per_s"])
    assert main(words) == 0
    assert f"fastest that fits: {best['trainers']} to train" in capsys.readouterr().out
    assert main([*words, "--hardware", "h10"]) == 2
    assert "Did you mean 'h100'?" in capsys.readouterr().err


def test_measured_costs_are_those_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.rooms.rl.test_train import config as small

    monkeypatch.setenv("POSTGRAD_CACHE", str(tmp_path / "cache"))
    found, lengths = measure(small(tmp_path))
    assert len(lengths) == 24
    assert 0 < found.decode_s(1) <= found.decode_s(20)
    assert found.update_s(100) == pytest.approx(2 * found.update_s(50))
    assert found.transfer_s > 0
