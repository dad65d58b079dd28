"""The same answers on a GPU as on the CPU, and bf16 close to fp32. Skipped by name without one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tests.rooms.rl.conftest import VOCAB, build, make_groups

from postgrad.core.models.model import Model
from postgrad.core.types import Request
from postgrad.engines import TorchEngine, generate
from postgrad.rl.config import AlgorithmConfig, OptimizerConfig
from postgrad.rl.learner import Learner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(model: Model, dtype: torch.dtype = torch.float32) -> Model:
    module = copy.deepcopy(model.module).to(device="cuda", dtype=dtype)  # type: ignore[call-overload]
    return Model(module, model.tokenizer, source="test")


def requests(temperature: float) -> list[Request]:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, VOCAB, rng.integers(2, 9)) for _ in range(8)]
    return [
        Request(id=i, group_id=i, prompt_tokens=p, max_tokens=12, temperature=temperature)
        for i, p in enumerate(prompts)
    ]


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma3"])
def test_greedy_tokens_equal_those_of_the_cpu(name: str) -> None:
    model = build(name)
    torch.backends.cuda.matmul.allow_tf32 = False
    cpu = generate(TorchEngine(model, slots=4, max_length=40), requests(0.0))
    gpu = generate(TorchEngine(on_gpu(model), slots=4, max_length=40), requests(0.0))
    assert [s.token_ids.tolist() for s in cpu] == [s.token_ids.tolist() for s in gpu]


def test_bf16_engine_has_fp32_logits_and_finite_log_probs() -> None:
    engine = TorchEngine(on_gpu(build("qwen3"), torch.bfloat16), slots=4, max_length=40)
    for sample in generate(engine, requests(1.0)):
        assert np.isfinite(sample.behaviour_logp).all()


def test_the_learners_gradient_equals_that_of_the_cpu() -> None:
    model = build("qwen3")
    norms = []
    for policy in (model, on_gpu(model)):
        learner = Learner(policy, AlgorithmConfig(), OptimizerConfig(lr=1e-3, warmup_steps=0))
        norms.append(learner.update(make_groups())["loss/grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
