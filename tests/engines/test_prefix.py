"""Prefix embeddings in the torch engine: against plain forward passes, against real tokens, and under every schedule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3nTextConfig, Gemma3TextConfig, GPT2Config, Qwen3Config

from postgrad.core.errors import EngineError
from postgrad.core.models.model import Model
from postgrad.core.types import Request, Sample
from postgrad.engines import TorchEngine, generate
from postgrad.engines.torch_engine.decoder import HFDecoder
from postgrad.engines.torch_engine.fused import FusedDecoder
from postgrad.engines.torch_engine.prefix import check_prefix

VOCAB, EOS, WIDTH = 61, 1, 32


class Tokenizer:
    """The engine needs the stop token only."""

    eos_token_id = EOS
    pad_token_id = 0


BASE = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "bos_token_id": 2,
}
GPT2 = {"vocab_size": VOCAB, "n_positions": 96, "n_embd": WIDTH, "n_layer": 2, "n_head": 4}
CONFIGS = {
    "qwen3": lambda: Qwen3Config(**BASE, tie_word_embeddings=True),
    "gpt2": lambda: GPT2Config(**GPT2, eos_token_id=EOS, bos_token_id=2),
    "gemma3": lambda: Gemma3TextConfig(
        **BASE, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    ),
}
"""The fused decoder; absolute positions; embeddings that the model scales, and a window shorter than the prefix."""

every_model = pytest.mark.parametrize("name", CONFIGS)


def build(name: str) -> Model:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for parameter in module.parameters():  # norms and biases away from 1 and 0, logits away from uniform
            parameter.add_(0.15 * torch.randn_like(parameter))
    module.generation_config.eos_token_id = EOS
    return Model(module=module, tokenizer=Tokenizer(), source="test", revision=None)  # type: ignore[arg-type]


def thoughts(length: int, seed: int = 0) -> np.ndarray:
    """Virtual tokens [length, D] as large as embeddings are, but none of them."""
    return np.random.default_rng(seed).normal(0, 0.5, (length, WIDTH)).astype(np.float32)


def requests(max_tokens: int = 14, temperature: float = 1.0, **changes: object) -> list[Request]:
    """Prefixes of 0 to 9 virtual tokens before prompts of 1 to 11 tokens."""
    rng = np.random.default_rng(1)
    shapes = [(3, 5), (None, 11), (9, 1), (1, 8), (0, 4), (None, 1), (4, 2)]
    return [
        Request(
            id=i,
            group_id=i,
            prompt_tokens=rng.integers(3, VOCAB, length),
            prefix_embeds=None if virtual is None else thoughts(virtual, seed=i),
            max_tokens=max_tokens,
            temperature=temperature,
            **changes,  # type: ignore[arg-type]
        )
        for i, (virtual, length) in enumerate(shapes)
    ]


def assert_same(found: list[Sample], expected: list[Sample], atol: float = 2e-5) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
        assert a.stop_reason == b.stop_reason
        assert a.loss_mask.tolist() == b.loss_mask.tolist()
        assert a.prompt_tokens.tolist() == b.prompt_tokens.tolist()
        np.testing.assert_allclose(a.behaviour_logp, b.behaviour_logp, atol=atol)


@torch.no_grad()
def slow_greedy(model: Model, request: Request) -> tuple[list[int], list[float]]:
    """Tokens and their log-probs by one plain forward pass over all embeddings per token."""
    embedding = model.module.get_input_embeddings()
    prefix = torch.zeros(0, WIDTH) if request.prefix_embeds is None else torch.tensor(request.prefix_embeds)
    ids, made, logps = request.prompt_tokens.tolist(), [], []
    while len(made) < request.max_tokens and EOS not in made:
        embeds = torch.cat([prefix, embedding(torch.tensor(ids + made))])
        logp = model.module(inputs_embeds=embeds[None], use_cache=False).logits[0, -1].log_softmax(-1)
        made.append(int(logp.argmax()))
        logps.append(float(logp.max()))
    return made, logps


@every_model
def test_greedy_equals_a_loop_of_forward_passes(name: str) -> None:
    model, wanted = build(name), requests(temperature=0.0)
    engine = TorchEngine(model, slots=3, max_length=64)
    assert isinstance(engine.decoder, FusedDecoder if name == "qwen3" else HFDecoder)
    samples = generate(engine, wanted)
    for request, sample in zip(wanted, samples, strict=True):
        tokens, logps = slow_greedy(model, request)
        assert sample.token_ids.tolist() == tokens
        np.testing.assert_allclose(sample.behaviour_logp, logps, atol=2e-5)
        assert sample.prompt_tokens is request.prompt_tokens
    without = generate(engine, [replace(request, prefix_embeds=None) for request in wanted])
    differ = [a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(samples, without, strict=True)]
    assert sum(differ) >= 3


@every_model
def test_embeddings_of_real_tokens_are_those_tokens(name: str) -> None:
    model = build(name)
    whole = [r for r in requests() if len(r.prompt_tokens) > 2]
    whole = [replace(r, prefix_embeds=None) for r in whole]
    split = []
    for request in whole:
        cut = 1 + request.id % (len(request.prompt_tokens) - 1)
        head, tail = np.split(request.prompt_tokens, [cut])
        embeds = model.module.get_input_embeddings()(torch.from_numpy(head)).detach().numpy()
        split.append(replace(request, prompt_tokens=tail, prefix_embeds=embeds))
    expected = generate(TorchEngine(model, slots=3, max_length=64), whole)
    found = generate(TorchEngine(model, slots=3, max_length=64), split)
    for a, b in zip(found, expected, strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
        assert a.behaviour_logp.tolist() == b.behaviour_logp.tolist()  # the same numbers, not only close ones


@every_model
@pytest.mark.parametrize(("slots", "order"), [(7, 1), (2, -1)])
def test_mixed_batches_equal_each_request_alone(name: str, slots: int, order: int) -> None:
    model, wanted = build(name), requests()
    alone = [generate(TorchEngine(model, slots=1, max_length=64), [request])[0] for request in wanted]
    together = generate(TorchEngine(model, slots=slots, max_length=64), wanted[::order])[::order]
    assert_same(together, alone)


@every_model
@pytest.mark.parametrize("cut", [1, 4, 6, 9])
def test_a_snapshot_keeps_the_prefix(name: str, cut: int) -> None:
    """Resubmitted in the middle, before and after the injected phrase: the samples of an undisturbed engine."""
    model = build(name)
    wanted = requests(interrupt_at=5, interrupt_tokens=(50, 51, 52))
    expected = generate(TorchEngine(model, slots=4, max_length=64), wanted)
    for sample in expected:
        masked = range(5, 8) if sample.interrupted else []
        assert np.flatnonzero(~sample.loss_mask).tolist() == list(masked)
    engine = TorchEngine(model, slots=4, max_length=64)
    engine.submit(wanted)
    done = [sample for _ in range(cut) for sample in engine.step()]
    taken = engine.snapshot()
    assert any(request.tokens and request.prefix_embeds is not None for request in taken)
    done += generate(TorchEngine(model, slots=3, max_length=64), taken)
    assert_same(sorted(done, key=lambda sample: sample.request_id), expected)


@every_model
def test_a_group_computes_each_of_its_prefixes_once(name: str) -> None:
    model = build(name)
    prompt = np.array([7, 8, 9])
    kinds = [thoughts(4), thoughts(4, seed=1), None]
    wanted = [
        Request(id=i, group_id=0, prompt_tokens=prompt, max_tokens=6, prefix_embeds=kinds[i % 3])
        for i in range(12)
    ]
    wanted[3] = replace(
        wanted[3], prefix_embeds=kinds[0][::-1].copy()[::-1]
    )  # the same values in another array
    engine = TorchEngine(model, slots=6, max_length=32)
    found = generate(engine, wanted)
    alone = [generate(TorchEngine(model, slots=1, max_length=32), [request])[0] for request in wanted]
    assert_same(found, alone)
    at_once = TorchEngine(model, slots=12, max_length=32)
    assert_same(generate(at_once, wanted), alone)
    assert at_once.num_prefill_tokens == 2 + 2 * (4 + 2)


def test_a_16_bit_model_takes_a_prefix_in_32_bits() -> None:
    model = build("qwen3")
    model.module.to(torch.bfloat16)
    request = replace(requests()[0], temperature=0.0)
    rounded = torch.tensor(request.prefix_embeds).bfloat16().float().numpy()
    found = generate(
        TorchEngine(model, slots=2, max_length=64), [request, replace(request, id=9, prefix_embeds=rounded)]
    )
    assert found[0].token_ids.tolist() == found[1].token_ids.tolist()


BAD = {
    "width": (np.zeros((2, WIDTH + 1), np.float32), r"float32 \[2, 33\]; valid is .* float32 \[M, 32\]"),
    "width of nothing": (np.zeros((0, 5), np.float32), r"\[0, 5\]"),
    "one axis": (np.zeros(WIDTH, np.float32), r"float32 \[32\]; valid is"),
    "three axes": (np.zeros((1, 2, WIDTH), np.float32), r"\[1, 2, 32\]; valid is"),
    "dtype": (np.zeros((2, WIDTH)), r"float64 \[2, 32\]; valid is"),
    "tensor": (torch.zeros(2, WIDTH), r"torch.float32 \[2, 32\]; valid is a NumPy array"),
    "nan": (np.full((2, WIDTH), np.nan, np.float32), "64 of the 64 values of prefix_embeds are not finite"),
    "infinity": (np.where(np.eye(2, WIDTH), np.inf, 0).astype(np.float32), "2 of the 64 values"),
    "length": (np.zeros((9, WIDTH), np.float32), "9 prefix embeddings \\+ 5 prompt tokens \\+ 3 completion"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_prefixes_are_refused_with_numbers(case: str) -> None:
    embeds, message = BAD[case]
    engine = TorchEngine(build("qwen3"), slots=2, max_length=16)
    request = Request(id=5, group_id=0, prompt_tokens=np.arange(3, 8), max_tokens=3)
    with pytest.raises(EngineError, match=message) as error:
        engine.submit([request, replace(request, prefix_embeds=embeds)])
    assert "Request 5" in str(error.value)


def test_models_with_embeddings_in_each_layer_refuse_a_prefix() -> None:
    torch.manual_seed(0)
    config = Gemma3nTextConfig(
        **BASE,
        hidden_size_per_layer_input=4,
        vocab_size_per_layer_input=VOCAB,
        num_kv_shared_layers=0,
        laurel_rank=4,
    )
    module = AutoModelForCausalLM.from_config(config)
    request = requests()[0]
    with pytest.raises(
        EngineError, match=r"Request 0 .* Gemma3nForCausalLM cannot take: each of its layers .* \(4 wide\)"
    ):
        check_prefix(request, module)
    check_prefix(replace(request, prefix_embeds=None), module)
