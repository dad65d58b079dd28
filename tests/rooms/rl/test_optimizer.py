"""Gradient checkpointing, bf16 weights with fp32 masters, learning rates."""

from __future__ import annotations

import pytest
import torch
from tests.live_bytes import LiveBytes
from tests.rooms.rl.conftest import CONFIGS, build, make_groups
from tests.rooms.rl.test_learner import gradient_of
from transformers import AutoModelForCausalLM, OPTConfig, Qwen3Config

from postgrad.core.errors import ModelError
from postgrad.core.models import fp32_head
from postgrad.core.models.model import Model
from postgrad.core.models.recompute import recompute_activations
from postgrad.core.models.reference import completion_logps
from postgrad.rl.config import AlgorithmConfig, OptimizerConfig
from postgrad.rl.learner import Learner, make_batch


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_checkpointing_changes_neither_loss_nor_gradient(name: str) -> None:
    results = []
    for on in (False, True):
        model = build(name)
        for part in model.module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.5  # must stay asleep
        batch = make_batch(make_groups(), AlgorithmConfig())
        assert batch is not None
        options = OptimizerConfig(micro_batch_tokens=40, gradient_checkpointing=on)
        metrics = Learner(model, AlgorithmConfig(), options).accumulate(batch)
        results.append((metrics, gradient_of(model)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-7)


def test_it_keeps_fewer_activations() -> None:
    peaks = []
    for on in (False, True):
        torch.manual_seed(0)
        shape = {
            "hidden_size": 32,
            "intermediate_size": 256,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        }
        module = AutoModelForCausalLM.from_config(
            Qwen3Config(**shape, vocab_size=61, num_hidden_layers=8, head_dim=16, max_position_embeddings=96)
        )
        model = Model(module.eval(), build().tokenizer)
        batch = make_batch(make_groups(), AlgorithmConfig())
        assert batch is not None
        learner = Learner(model, AlgorithmConfig(), OptimizerConfig(gradient_checkpointing=on))
        with LiveBytes() as live:
            learner.accumulate(batch)
        peaks.append(live.peak)
    assert peaks[1] < 0.7 * peaks[0]


def test_a_layer_that_applies_dropout_itself_does_not() -> None:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=61, hidden_size=16, num_hidden_layers=2, ffn_dim=32, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=16, dropout=0.5,
    )  # fmt: skip
    module = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.tensor([[5, 6, 7, 8]])
    expected = module(tokens).logits
    recompute_activations(module)
    assert torch.equal(module(tokens).logits, expected)


def test_a_model_without_such_layers_is_refused() -> None:
    module = build().module
    module._supports_gradient_checkpointing = False  # type: ignore[misc]
    module.supports_gradient_checkpointing = False
    with pytest.raises(ModelError, match="gradient_checkpointing = false"):
        recompute_activations(module)


def test_bf16_weights_have_fp32_masters() -> None:
    """At this learning rate one update is below the resolution of bf16: the master moves, the weights do so after many."""
    model = build()
    model.module.bfloat16()
    learner = Learner(model, AlgorithmConfig(), OptimizerConfig(lr=1e-5, warmup_steps=0, weight_decay=0.0))
    name, parameter = next((n, p) for n, p in learner.parameters.items() if "mlp.down_proj" in n)
    before, master = parameter.detach().clone(), learner._master[name]
    assert master.dtype == torch.float32
    metrics = learner.update(make_groups())
    assert metrics["loss/skipped"] == 0
    moved = (master - before.float()).abs()
    assert float(moved.max()) == pytest.approx(1e-5, rel=0.05)  # AdamW's first step is lr in every coordinate
    assert torch.equal(parameter, master.bfloat16())
    assert float((parameter != before).float().mean()) < 0.2


def test_a_bf16_head_is_a_mismatch_that_the_metric_shows() -> None:
    """A generator with an fp32 head; a trainer of the same bf16 weights with one, and without."""
    groups = make_groups()
    generator = build()
    generator.module.bfloat16()
    fp32_head(generator.module)
    samples = [sample for group in groups for sample in group.samples]
    for sample, logp in zip(samples, completion_logps(generator, samples, 1.0, 8192), strict=True):
        sample.behaviour_logp[sample.loss_mask] = logp.numpy()
    mismatch = []
    for on in (True, False):
        model = build()
        model.module.bfloat16()
        batch = make_batch(groups, AlgorithmConfig())
        assert batch is not None
        metrics = Learner(model, AlgorithmConfig(fp32_head=on), OptimizerConfig()).accumulate(batch)
        mismatch.append(metrics["mismatch/kl_k3_gen_train"])
    assert mismatch[0] < 1e-3 * mismatch[1]
    assert mismatch[1] > 1e-7


def test_the_learning_rate_that_is_logged_falls_to_its_end() -> None:
    options = OptimizerConfig(lr=1e-3, warmup_steps=1, schedule="cosine", final_lr_fraction=0.1)
    learner = Learner(build(), AlgorithmConfig(), options, steps=5)
    rates = [learner.update(make_groups(seed))["loss/lr"] for seed in range(5)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1e-3
    assert learner.lr == pytest.approx(1e-4)
