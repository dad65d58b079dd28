"""The torch engine against `model.generate`, against itself under other schedules, and on weight swaps and resumes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from postgrad.core.errors import EngineError
from postgrad.core.models.memory import MemoryConfig, attach, memory_layers
from postgrad.core.models.model import Model
from postgrad.core.types import Request, Sample
from postgrad.engines import TorchEngine, generate
from postgrad.engines.torch_engine.decoder import HFDecoder
from postgrad.engines.torch_engine.fused import FusedDecoder

VOCAB, EOS = 61, 1


class Tokenizer:
    """The engine needs the stop token only."""

    eos_token_id = EOS
    pad_token_id = 0


BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "bos_token_id": 2,
}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen3": lambda: Qwen3Config(**BASE, head_dim=8, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**BASE),
    "llama": lambda: LlamaConfig(**BASE, tie_word_embeddings=False),
    "llama-scaled-rope": lambda: LlamaConfig(**BASE, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
    "mistral-sliding": lambda: MistralConfig(**BASE, sliding_window=6),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_positions=96, n_embd=32, n_layer=2, n_head=4, eos_token_id=EOS, bos_token_id=2
    ),
    "gemma2": lambda: Gemma2Config(**BASE, head_dim=8, sliding_window=6, final_logit_softcapping=5.0),
    "gemma3": lambda: Gemma3TextConfig(**{**BASE, "num_hidden_layers": 3}, head_dim=8, sliding_window=6,
                                        layer_types=["sliding_attention", "sliding_attention", "full_attention"]),
}  # fmt: skip
FUSED = {"qwen3", "qwen2", "llama", "llama-scaled-rope"}


def build(name: str, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for parameter in module.parameters():  # norms and biases away from 1 and 0, logits away from uniform
            parameter.add_(0.15 * torch.randn_like(parameter))
    module.generation_config.eos_token_id = EOS
    module.generation_config.pad_token_id = 0
    return Model(module=module, tokenizer=Tokenizer(), source="test", revision=None)  # type: ignore[arg-type]


def prompts(count: int, seed: int = 0, low: int = 1, high: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB, rng.integers(low, high)) for _ in range(count)]


def requests(count: int, max_tokens: int = 20, temperature: float = 1.0, **changes: object) -> list[Request]:
    tokens = prompts(count)
    return [
        Request(
            id=i,
            group_id=i,
            prompt_tokens=tokens[i],
            max_tokens=max_tokens,
            temperature=temperature,
            **changes,
        )  # type: ignore[arg-type]
        for i in range(count)
    ]


def recomputed(model: Model, sample: Sample, temperature: float = 1.0) -> np.ndarray:
    """Log-probs of a sample's tokens by one plain forward pass."""
    ids = torch.from_numpy(np.concatenate([sample.prompt_tokens, sample.token_ids]))[None]
    with torch.no_grad():
        logps = (model.module(ids).logits[0].float() / temperature).log_softmax(-1)
    start = len(sample.prompt_tokens) - 1
    return logps[start:-1].gather(1, ids[0, start + 1 :, None])[:, 0].numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_equals_generate_token_for_token(name: str) -> None:
    model = build(name)
    engine = TorchEngine(model, slots=3, max_length=64)
    assert isinstance(engine.decoder, FusedDecoder if name in FUSED else HFDecoder)
    wanted = requests(7, max_tokens=24, temperature=0.0)
    for request, sample in zip(wanted, generate(engine, wanted), strict=True):
        ids = torch.from_numpy(request.prompt_tokens)[None]
        output = model.module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
        )
        expected = output[0, ids.shape[1] :].tolist()
        assert sample.token_ids.tolist() == expected
        assert sample.stop_reason == ("stop" if expected[-1] == EOS else "length")


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
@pytest.mark.parametrize(
    ("mode", "index"),
    [("additive", "product"), ("replace", "product"), ("additive", "pq"), ("replace", "pq")],
)
def test_a_model_with_memory_generates_what_generate_does(name: str, mode: str, index: str) -> None:
    model = build(name)
    pq = {"pq_subvectors": 4, "pq_codes": 3, "pq_share": 0.5, "pq_candidates": 6}
    options = {
        "index": index,
        **pq,
        "num_slots": 30,
        "num_heads": 2,
        "top_k": 4,
        "key_dim": 9,
        "scale": 3.0,
        "shared_values": True,
    }
    without = greedy(model, requests(4, temperature=0.0))
    attach(model.module, MemoryConfig(layers=(0, 1), mode=mode, **options))  # type: ignore[arg-type]
    wanted = requests(4, temperature=0.0)
    engine = TorchEngine(model, slots=3, max_length=64)
    assert isinstance(engine.decoder, HFDecoder)
    found = [sample.token_ids.tolist() for sample in generate(engine, wanted)]
    assert found == greedy(model, wanted)
    assert found != without
    with torch.no_grad():
        for layer in memory_layers(model.module).values():
            layer.table.weight.zero_()
    engine.load_weights(model.module.state_dict(), 1)
    found = [sample.token_ids.tolist() for sample in generate(engine, wanted)]
    assert found == greedy(model, wanted)
    assert found == without or mode == "replace"


def greedy(model: Model, wanted: list[Request]) -> list[list[int]]:
    """`model.generate`'s tokens, without what follows the stop token."""
    found = []
    for request in wanted:
        ids = torch.from_numpy(request.prompt_tokens)[None]
        output = model.module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_tokens, do_sample=False
        )
        tokens = output[0, ids.shape[1] :].tolist()
        found.append(tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens)
    return found


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma3"])
def test_logps_equal_a_plain_forward_pass(name: str) -> None:
    model = build(name)
    engine = TorchEngine(model, slots=4, max_length=64)
    for sample in generate(engine, requests(9, temperature=0.7)):
        np.testing.assert_allclose(sample.behaviour_logp, recomputed(model, sample, 0.7), atol=2e-5)


def test_samples_do_not_depend_on_slots_or_order() -> None:
    model = build("qwen3")
    wanted = requests(10)
    reference = generate(TorchEngine(model, slots=10, max_length=64), wanted)
    for slots, order in ((1, 1), (3, -1), (4, 1)):
        again = generate(TorchEngine(model, slots=slots, max_length=64), wanted[::order])[::order]
        for a, b in zip(reference, again, strict=True):
            assert a.token_ids.tolist() == b.token_ids.tolist()
    other = generate(TorchEngine(model, slots=10, max_length=64), [replace(r, seed=1) for r in wanted])
    assert any(a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(reference, other, strict=True))


def test_sampling_follows_the_softmax() -> None:
    """First-token frequencies of 4,000 samples of one prompt against the model's own distribution (chi-square)."""
    model = build("qwen3")
    prompt = prompts(1)[0]
    engine = TorchEngine(model, slots=500, max_length=32)
    wanted = [Request(id=i, group_id=0, prompt_tokens=prompt, max_tokens=1) for i in range(4000)]
    first = np.array([sample.token_ids[0] for sample in generate(engine, wanted)])
    with torch.no_grad():
        probs = model.module(torch.from_numpy(prompt)[None]).logits[0, -1].softmax(-1).numpy()
    order = probs.argsort()[::-1]
    bins = np.minimum(np.arange(VOCAB), 25)  # the unlikely ones share the last bin
    expected = np.bincount(bins, weights=probs[order]) * 4000
    observed = np.bincount(bins, weights=np.bincount(first, minlength=VOCAB)[order])
    assert expected.min() > 5
    chi2 = ((observed - expected) ** 2 / expected).sum()
    degrees = len(expected) - 1
    assert chi2 < degrees + 5 * (2 * degrees) ** 0.5


def test_a_group_computes_its_prompt_once() -> None:
    model = build("qwen3")
    tokens = prompts(2, low=8)
    wanted = [Request(id=i, group_id=i // 8, prompt_tokens=tokens[i // 8], max_tokens=6) for i in range(16)]
    engine = TorchEngine(model, slots=5, max_length=32)
    shared = generate(engine, wanted)
    assert engine.num_prefill_tokens == sum(len(t) - 1 for t in tokens)
    alone = generate(TorchEngine(model, slots=1, max_length=32), [replace(r, group_id=r.id) for r in wanted])
    assert [s.token_ids.tolist() for s in shared] == [s.token_ids.tolist() for s in alone]


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_weights_are_swapped_between_steps_without_dropping(name: str) -> None:
    model, other = build(name), build(name, seed=1)
    engine = TorchEngine(model, slots=4, max_length=64)
    engine.submit(requests(6, max_tokens=12))
    samples = [sample for _ in range(5) for sample in engine.step()]
    engine.load_weights(other.module.state_dict(), version=3)
    while engine.num_running or engine.num_queued:
        samples += engine.step()
    assert len(samples) == 6
    for sample in samples:
        assert (np.diff(sample.policy_version) >= 0).all()
        assert set(sample.policy_version.tolist()) <= {0, 3}
    late = [s for s in samples if (s.policy_version == 3).all()]
    mixed = [s for s in samples if len(set(s.policy_version.tolist())) == 2]
    assert late
    assert mixed
    for sample in late:  # admitted after the swap: the new policy from the first token on
        np.testing.assert_allclose(sample.behaviour_logp, recomputed(other, sample), atol=2e-5)
    for sample in mixed:  # tokens before the swap carry the old policy's log-probs
        old = sample.policy_version == 0
        np.testing.assert_allclose(sample.behaviour_logp[old], recomputed(model, sample)[old], atol=2e-5)
        new = ~old  # the cache of the earlier tokens stays stale: neither policy's own forward pass
        assert np.abs(sample.behaviour_logp[new] - recomputed(other, sample)[new]).max() > 1e-3


def test_snapshot_and_resubmit_continue_each_sample() -> None:
    model = build("qwen3")
    wanted = requests(7, max_tokens=15)
    reference = generate(TorchEngine(model, slots=3, max_length=64), wanted)
    engine = TorchEngine(model, slots=3, max_length=64)
    engine.submit(wanted)
    done = {s.request_id: s for _ in range(6) for s in engine.step()}
    taken = engine.snapshot()
    assert engine.num_running == engine.num_queued == 0
    assert any(request.tokens for request in taken)
    fresh = TorchEngine(model, slots=2, max_length=64)
    done |= {s.request_id: s for s in generate(fresh, taken)}
    for expected in reference:
        got = done[expected.request_id]
        assert got.token_ids.tolist() == expected.token_ids.tolist()
        np.testing.assert_allclose(got.behaviour_logp, expected.behaviour_logp, atol=1e-5)


@pytest.mark.parametrize("cut", [0, 2, 5, 6, 9])
def test_interruption_injects_the_phrase_once_and_masks_it(cut: int) -> None:
    model = build("qwen3")
    phrase = (50, 51, 52)
    wanted = requests(6, max_tokens=14, interrupt_at=5, interrupt_tokens=phrase)
    engine = TorchEngine(model, slots=6, max_length=64)
    engine.submit(wanted)
    samples = [sample for _ in range(cut) for sample in engine.step()]
    samples += generate(TorchEngine(model, slots=4, max_length=64), engine.snapshot())
    assert sum(sample.interrupted for sample in samples) >= 3
    for sample in samples:
        if sample.interrupted:
            assert tuple(sample.token_ids[5:8]) == phrase
            assert sample.loss_mask.tolist() == [not 5 <= i < 8 for i in range(sample.num_tokens)]
            own = sample.loss_mask
            np.testing.assert_allclose(sample.behaviour_logp[own], recomputed(model, sample)[own], atol=2e-5)
            assert (sample.behaviour_logp[~own] == 0).all()
        else:
            assert sample.num_tokens <= 5
            assert sample.loss_mask.all()


def test_no_interruption_after_the_marker() -> None:
    model = build("qwen3")
    free = generate(TorchEngine(model, slots=8, max_length=64), requests(8, max_tokens=14))
    marker = int(next(sample for sample in free if sample.num_tokens > 4).token_ids[2])
    wanted = requests(8, max_tokens=14, interrupt_at=5, interrupt_tokens=(50, 51), interrupt_unless=marker)
    for before, sample in zip(
        free, generate(TorchEngine(model, slots=8, max_length=64), wanted), strict=True
    ):
        spared = marker in before.token_ids[:5] or before.num_tokens <= 5
        assert sample.interrupted != spared
        if spared:
            assert sample.token_ids.tolist() == before.token_ids.tolist()


def test_mixed_sampling_parameters_in_one_batch() -> None:
    model = build("qwen3")
    base = requests(6)
    changes = [
        {},
        {"temperature": 0.0},
        {"top_k": 1},
        {"top_p": 1e-6},
        {"temperature": 2.0},
        {"top_p": 0.5, "top_k": 3},
    ]
    mixed = [replace(request, **change) for request, change in zip(base, changes, strict=True)]
    together = generate(TorchEngine(model, slots=6, max_length=64), mixed)
    for request, sample in zip(mixed, together, strict=True):
        alone = generate(TorchEngine(model, slots=1, max_length=64), [request])[0]
        assert alone.token_ids.tolist() == sample.token_ids.tolist()
    for index in (2, 3):  # only the most likely token is left
        greedy = generate(
            TorchEngine(model, slots=1, max_length=64), [replace(base[index], temperature=0.0)]
        )[0]
        assert greedy.token_ids.tolist() == together[index].token_ids.tolist()


def test_fused_and_generic_decoders_agree() -> None:
    model = build("qwen3")
    a = generate(TorchEngine(model, slots=4, max_length=64), requests(9))
    b = generate(TorchEngine(model, slots=4, max_length=64, decoder="hf"), requests(9))
    for x, y in zip(a, b, strict=True):
        assert x.token_ids.tolist() == y.token_ids.tolist()
        np.testing.assert_allclose(x.behaviour_logp, y.behaviour_logp, atol=2e-5)


def test_the_engine_has_its_own_weights() -> None:
    model = build("gpt2")
    engine = TorchEngine(model, slots=2, max_length=64)
    before = generate(engine, requests(2, temperature=0.0))
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.zero_()
    after = generate(engine, requests(2, temperature=0.0))
    assert [s.token_ids.tolist() for s in before] == [s.token_ids.tolist() for s in after]


def test_bad_requests_are_refused_with_numbers() -> None:
    engine = TorchEngine(build("qwen3"), slots=2, max_length=16)
    request = Request(id=5, group_id=0, prompt_tokens=np.arange(3, 13), max_tokens=7)
    with pytest.raises(EngineError, match="10 prompt tokens \\+ 7 completion tokens"):
        engine.submit([request])
    with pytest.raises(EngineError, match="context of 96 tokens"):
        TorchEngine(build("qwen3"), slots=2, max_length=97)
    engine.submit([replace(request, max_tokens=3)])
    with pytest.raises(EngineError, match="idle"):
        generate(engine, [])


def test_models_without_a_kv_cache_per_token_are_refused() -> None:
    from transformers import BloomConfig

    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(
        BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=1, n_head=4)
    ).eval()
    with pytest.raises(EngineError, match="BloomForCausalLM"):
        TorchEngine(
            Model(module=module, tokenizer=Tokenizer(), source="", revision=None), slots=2, max_length=16
        )  # type: ignore[arg-type]


def test_an_engine_leaves_the_model_alone() -> None:
    model = build("qwen3")
    before = copy.deepcopy(model.module.state_dict())
    model.module.train()
    generate(TorchEngine(model, slots=2, max_length=64), requests(3))
    assert model.module.training
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name])
