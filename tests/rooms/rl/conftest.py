"""A tiny model and hand-made samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, PreTrainedConfig, Qwen3Config

from postgrad.core.models.model import Model
from postgrad.core.types import Group, Prompt, Sample, Verdict

VOCAB = 61
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "head_dim": 8,
}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen3": lambda: Qwen3Config(**BASE, tie_word_embeddings=True),
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB, n_positions=96, n_embd=32, n_layer=2, n_head=4),
    "gemma3": lambda: Gemma3TextConfig(
        **BASE,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
        final_logit_softcapping=4.0,
    ),
}


class Tokenizer:
    eos_token_id = 1
    pad_token_id = 0


def build(name: str = "qwen3", seed: int = 0) -> Model:
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Model(module=module, tokenizer=Tokenizer(), source="test", revision=None)  # type: ignore[arg-type]


def make_groups(seed: int = 0, num_groups: int = 4, size: int = 4) -> list[Group]:
    """Groups of random tokens, lengths 1..9, some injected tokens, rewards ±1 that differ within each group."""
    rng = np.random.default_rng(seed)
    groups = []
    for g in range(num_groups):
        prompt = rng.integers(3, VOCAB, rng.integers(2, 9))
        samples = []
        for i in range(size):
            length = int(rng.integers(1, 10))
            mask = np.ones(length, dtype=bool)
            if i == 2 and length > 3:
                mask[1:3] = False
            score = float(i % 2)
            samples.append(
                Sample(
                    request_id=g * size + i,
                    group_id=g,
                    prompt_tokens=prompt,
                    token_ids=rng.integers(3, VOCAB, length),
                    loss_mask=mask,
                    behaviour_logp=np.where(mask, -rng.random(length) * 4 - 1, 0).astype(np.float32),
                    policy_version=np.zeros(length, dtype=np.int64),
                    stop_reason="stop",
                    verdict=Verdict(score),
                    reward=2 * score - 1,
                )
            )
        groups.append(Group(Prompt(id=str(g), text="x", task="t"), samples))
    return groups


@pytest.fixture
def model() -> Model:
    return build()
