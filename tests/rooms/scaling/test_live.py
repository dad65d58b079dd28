"""The forecast while a run is going on: in our own loop's metrics, and inside the real TRL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.fitting import Law
from postgrad.scaling.live import Forecaster

LAW = Law(0.6, 2.0, 6.0, 0.1)


def rows(count: int, seconds: float = 600.0) -> list[dict[str, Any]]:
    """Metrics as `rl` writes them: an evaluation every update, one update an hour sixth."""
    noise = 0.002 * np.random.default_rng(0).normal(size=count)
    return [
        {
            "step": step,
            "eval/pass_rate": float(LAW(step) + noise[step]),
            "compute/train_flops": 3e9 * step,
            "compute/generate_flops": 1e9 * step,
            "time/elapsed_s": seconds * step,
        }
        for step in range(count)
    ]


def test_nothing_is_said_before_there_is_something_to_say() -> None:
    forecaster = Forecaster()
    assert forecaster(rows(3)) == ({}, "")
    assert forecaster([{"step": 0, "loss/policy": 1.0}]) == ({}, "")


def test_a_flat_start_is_no_forecast() -> None:
    flat = [{**row, "eval/pass_rate": 0.1 + 0.001 * (row["step"] % 3)} for row in rows(20)]
    assert Forecaster()(flat) == ({}, "")


def test_the_line_names_ceiling_share_and_clock() -> None:
    metrics, line = Forecaster(ScalingConfig(share=0.97))(rows(30))
    assert metrics["forecast/ceiling"] == pytest.approx(0.6, abs=0.01)
    assert metrics["forecast/ceiling_low"] < metrics["forecast/ceiling"] < metrics["forecast/ceiling_high"]
    # 0.97·A = 0.582 is reached at C_mid·(0.482/0.018)^½ = 6·5.17 = 31 updates of 600 s: 5.2 hours
    assert metrics["forecast/compute_to_share"] == pytest.approx(31e0 * 4e9, rel=0.1)
    assert line.startswith("forecast A = 0.6")
    assert "97 % reached at 5." in line
    assert line.endswith(" h")


def test_the_forecast_keeps_no_state() -> None:
    forecaster = Forecaster()
    forecaster(rows(12))
    assert forecaster(rows(30)) == Forecaster()(rows(30))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # TRL's and transformers' own
def test_trl_users_get_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real GRPOTrainer on a tiny model; its reward follows the law by the count of calls, so that the truth is known."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from postgrad.scaling import ForecastCallback

    calls: list[int] = []
    noise = 0.002 * np.random.default_rng(1).normal(size=200)

    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        calls.append(1)
        return [float(LAW(len(calls)) + noise[len(calls)])] * len(completions)

    callback = ForecastCallback(every=5, x="steps", y="reward")
    tokenizer = _tokenizer(PreTrainedTokenizerFast)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=1,
        )
    )
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=2,
            max_steps=30,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a b"] * 8}),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    assert callback.line.startswith("forecast A = 0.")
    assert callback.metrics["forecast/ceiling_low"] < 0.6 < callback.metrics["forecast/ceiling_high"]
    assert callback.line in capsys.readouterr().out
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == 30


def _tokenizer(kind: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<eos>", *"abcdefghijklmn"]
    backend = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return kind(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>")
