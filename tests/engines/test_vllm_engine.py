"""The vLLM engine with a real vLLM, on whatever device that build is for. The models have float32 weights unless said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

from postgrad.core.errors import EngineError
from postgrad.core.models.model import Model
from postgrad.core.types import Request, Sample
from postgrad.engines import TorchEngine, VllmEngine, generate
from postgrad.engines.config import VllmConfig
from postgrad.rl import train

pytest.importorskip("vllm", reason="the extra vllm is not installed")
pytestmark = pytest.mark.timeout(600)

VOCAB, EOS, LENGTH = 61, 1, 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = VllmConfig(enforce_eager=True, kv_cache_gb=0.1)
TOLERANCE = {torch.float32: 2e-5 if DEVICE == "cpu" else 2e-3, torch.bfloat16: 0.3}
"""Largest difference of one log-prob from a plain forward pass: rounding of the dtype."""

BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 96,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "bos_token_id": 2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**BASE, tie_word_embeddings=True),
    "llama": LlamaConfig(**BASE, tie_word_embeddings=False),
}


class Tokenizer:
    """The engine needs the stop token only."""

    eos_token_id = EOS
    pad_token_id = 0


def build(name: str = "qwen3", seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in module.parameters():  # logits away from uniform
            parameter.add_(0.15 * torch.randn_like(parameter))
    module.generation_config.eos_token_id = EOS
    return Model(module.to(DEVICE, dtype), Tokenizer(), source="test")  # type: ignore[arg-type]


def start(model: Model, slots: int = 4, **changes: Any) -> VllmEngine:
    return VllmEngine(model, slots=slots, max_length=LENGTH, **{"options": OPTIONS, **changes})


@pytest.fixture(scope="module")
def shared() -> tuple[Model, VllmEngine]:
    model = build()
    return model, start(model)


@pytest.fixture
def ready(shared: tuple[Model, VllmEngine]) -> Iterator[tuple[Model, VllmEngine]]:
    """The shared engine, idle and at version 0."""
    model, engine = shared
    engine.load_weights(model.module.state_dict(), 0)
    yield model, engine
    engine.snapshot()


def requests(count: int, max_tokens: int = 20, temperature: float = 1.0, **changes: Any) -> list[Request]:
    rng = np.random.default_rng(0)
    tokens = [rng.integers(3, VOCAB, rng.integers(1, 12)) for _ in range(count)]
    return [
        Request(
            id=i,
            group_id=i,
            prompt_tokens=tokens[i],
            max_tokens=max_tokens,
            temperature=temperature,
            **changes,
        )
        for i in range(count)
    ]


def finish(engine: VllmEngine) -> list[Sample]:
    samples: list[Sample] = []
    while engine.num_running or engine.num_queued:
        samples += engine.step()
    return samples


def run(engine: VllmEngine, wanted: list[Request]) -> list[Sample]:
    engine.submit(wanted)
    return sorted(finish(engine), key=lambda sample: sample.request_id)


def recomputed(model: Model, sample: Sample, temperature: float = 1.0) -> np.ndarray:
    """Log-probs of a sample's tokens by one plain forward pass."""
    ids = torch.from_numpy(np.concatenate([sample.prompt_tokens, sample.token_ids]))[None].to(DEVICE)
    with torch.no_grad():
        logps = (model.module(ids).logits[0].float() / temperature).log_softmax(-1)
    start = len(sample.prompt_tokens) - 1
    return logps[start:-1].gather(1, ids[0, start + 1 :, None])[:, 0].cpu().numpy()


def test_greedy_equals_the_torch_engine_token_for_token(ready: tuple[Model, VllmEngine]) -> None:
    model, engine = ready
    wanted = requests(7, max_tokens=24, temperature=0.0)
    expected = generate(TorchEngine(model, slots=4, max_length=LENGTH), wanted)
    for ours, reference in zip(run(engine, wanted), expected, strict=True):
        assert ours.token_ids.tolist() == reference.token_ids.tolist()
        assert ours.stop_reason == reference.stop_reason
        np.testing.assert_allclose(
            ours.behaviour_logp, reference.behaviour_logp, atol=TOLERANCE[torch.float32]
        )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logps_equal_a_plain_forward_pass(ready: tuple[Model, VllmEngine], temperature: float) -> None:
    model, engine = ready
    for sample in run(engine, requests(9, temperature=temperature)):
        assert (sample.policy_version == 0).all()
        np.testing.assert_allclose(
            sample.behaviour_logp, recomputed(model, sample, temperature), atol=TOLERANCE[torch.float32]
        )


def test_weights_are_swapped_between_steps_without_dropping(ready: tuple[Model, VllmEngine]) -> None:
    model, engine = ready
    other = build(seed=1)
    engine.submit(requests(6, max_tokens=12))
    samples = [sample for _ in range(5) for sample in engine.step()]
    engine.load_weights(other.module.state_dict(), version=3)
    samples += finish(engine)
    assert len(samples) == 6
    for sample in samples:
        assert (np.diff(sample.policy_version) >= 0).all()
        assert set(sample.policy_version.tolist()) <= {0, 3}
    late = [s for s in samples if (s.policy_version == 3).all()]
    mixed = [s for s in samples if len(set(s.policy_version.tolist())) == 2]
    assert late
    assert mixed
    tolerance = TOLERANCE[torch.float32]
    for sample in late:  # admitted after the swap: the new policy from the first token on
        np.testing.assert_allclose(sample.behaviour_logp, recomputed(other, sample), atol=tolerance)
    for sample in mixed:  # tokens before the swap carry the old policy's log-probs
        old = sample.policy_version == 0
        assert old.sum() == 5
        np.testing.assert_allclose(sample.behaviour_logp[old], recomputed(model, sample)[old], atol=tolerance)
        new = ~old  # the cache of the earlier tokens stays stale: neither policy's own forward pass
        assert np.abs(sample.behaviour_logp[new] - recomputed(other, sample)[new]).max() > 1e-3


def test_a_prompt_that_is_cached_under_old_weights_is_computed_anew(
    ready: tuple[Model, VllmEngine],
) -> None:
    """Long enough for whole blocks; one request of the old weights still holds them."""
    model, engine = ready
    other = build(seed=1)
    prompt = np.arange(3, 53)
    wanted = [Request(id=i, group_id=0, prompt_tokens=prompt, max_tokens=10) for i in range(3)]
    engine.submit(wanted[:1])
    engine.step()
    engine.step()
    engine.load_weights(other.module.state_dict(), 1)
    engine.submit(wanted[1:])
    for sample in finish(engine):
        if (sample.policy_version == 1).all():
            np.testing.assert_allclose(
                sample.behaviour_logp, recomputed(other, sample), atol=TOLERANCE[torch.float32]
            )
    assert engine.num_decoded_tokens > 0
    assert model.module.training is False


def test_snapshot_and_resubmit_continue_each_sample(ready: tuple[Model, VllmEngine]) -> None:
    """Greedy ones as if nothing had been; sampled ones keep what they had, and it is rebuilt under the new weights."""
    _, engine = ready
    greedy = requests(7, max_tokens=15, temperature=0.0)
    reference = run(engine, greedy)
    engine.submit(greedy)
    done = [sample for _ in range(6) for sample in engine.step()]
    taken = engine.snapshot()
    assert engine.num_running == engine.num_queued == 0
    assert any(request.tokens for request in taken)
    done += run(engine, taken)
    for expected, got in zip(reference, sorted(done, key=lambda s: s.request_id), strict=True):
        assert got.token_ids.tolist() == expected.token_ids.tolist()
        np.testing.assert_allclose(got.behaviour_logp, expected.behaviour_logp, atol=TOLERANCE[torch.float32])

    other = build(seed=1)
    engine.submit(requests(4, max_tokens=15))
    done = [sample for _ in range(6) for sample in engine.step()]
    taken = {request.id: request for request in engine.snapshot()}
    engine.load_weights(other.module.state_dict(), 1)
    for sample in run(engine, list(taken.values())):
        before = taken[sample.request_id]
        cut = len(before.tokens)
        assert tuple(sample.token_ids[:cut]) == before.tokens
        assert sample.policy_version.tolist() == [0] * cut + [1] * (sample.num_tokens - cut)
        np.testing.assert_allclose(
            sample.behaviour_logp[cut:], recomputed(other, sample)[cut:], atol=TOLERANCE[torch.float32]
        )


@pytest.mark.parametrize("cut", [0, 2, 5, 6, 9])
def test_interruption_injects_the_phrase_once_and_masks_it(ready: tuple[Model, VllmEngine], cut: int) -> None:
    model, engine = ready
    phrase = (50, 51, 52)
    engine.submit(requests(6, max_tokens=14, interrupt_at=5, interrupt_tokens=phrase))
    samples = [sample for _ in range(cut) for sample in engine.step()]
    samples += run(engine, engine.snapshot())
    assert sum(sample.interrupted for sample in samples) >= 3
    for sample in samples:
        if sample.interrupted:
            assert tuple(sample.token_ids[5:8]) == phrase
            assert sample.loss_mask.tolist() == [not 5 <= i < 8 for i in range(sample.num_tokens)]
            own = sample.loss_mask
            expected = recomputed(model, sample)
            np.testing.assert_allclose(
                sample.behaviour_logp[own], expected[own], atol=TOLERANCE[torch.float32]
            )
            assert (sample.behaviour_logp[~own] == 0).all()
        else:
            assert sample.num_tokens <= 5
            assert sample.loss_mask.all()


def test_the_same_seed_gives_the_same_sample_and_another_one_does_not(
    ready: tuple[Model, VllmEngine],
) -> None:
    _, engine = ready
    wanted = requests(8)
    first = run(engine, wanted)
    again = run(engine, wanted[::-1])
    other = run(engine, [replace(request, seed=1) for request in wanted])
    same = [a.token_ids.tolist() == b.token_ids.tolist() for a, b in zip(first, again, strict=True)]
    assert all(same)
    assert any(a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(first, other, strict=True))


def test_sampling_follows_the_softmax(ready: tuple[Model, VllmEngine]) -> None:
    """First-token frequencies of 2,000 samples of one prompt against the model's own distribution (chi-square)."""
    model, engine = ready
    prompt = requests(1)[0].prompt_tokens
    wanted = [Request(id=i, group_id=0, prompt_tokens=prompt, max_tokens=1) for i in range(2000)]
    first = np.array([sample.token_ids[0] for sample in run(engine, wanted)])
    with torch.no_grad():
        logits = model.module(torch.from_numpy(prompt)[None].to(DEVICE)).logits[0, -1]
    probs = logits.softmax(-1).cpu().numpy()
    order = probs.argsort()[::-1]
    bins = np.minimum(np.arange(VOCAB), 25)  # the unlikely ones share the last bin
    expected = np.bincount(bins, weights=probs[order]) * 2000
    observed = np.bincount(bins, weights=np.bincount(first, minlength=VOCAB)[order])
    assert expected.min() > 5
    chi2 = ((observed - expected) ** 2 / expected).sum()
    degrees = len(expected) - 1
    assert chi2 < degrees + 5 * (2 * degrees) ** 0.5


def test_weights_that_vllm_does_not_know_are_noticed(ready: tuple[Model, VllmEngine]) -> None:
    """A name left out: vLLM itself only writes a line into its log."""
    model, engine = ready
    other = build(seed=1).module.state_dict()
    partial = {name: tensor for name, tensor in other.items() if "layers.1.mlp" not in name}
    complete = {name: other[name] for name in other}
    engine.load_weights(complete, 1)
    shifted = {name: tensor * 2 if "layers.1.mlp" in name else tensor for name, tensor in complete.items()}
    backend = engine._backend
    load = backend.load
    try:
        backend.load = lambda weights, change=None: load(partial, change)  # type: ignore[method-assign]
        with pytest.raises(EngineError, match="does not compute with the weights of version 2"):
            engine.load_weights(shifted, 2)
    finally:
        backend.load = load  # type: ignore[method-assign]
    engine.load_weights(model.module.state_dict(), 0)


def test_the_engine_has_its_own_weights(ready: tuple[Model, VllmEngine]) -> None:
    _, engine = ready
    other = build(seed=1)
    engine.load_weights(other.module.state_dict(), 1)
    before = run(engine, requests(2, temperature=0.0))
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter.zero_()
    after = run(engine, requests(2, temperature=0.0))
    assert [s.token_ids.tolist() for s in before] == [s.token_ids.tolist() for s in after]


def test_bad_requests_are_refused_with_numbers(ready: tuple[Model, VllmEngine]) -> None:
    _, engine = ready
    request = Request(id=5, group_id=0, prompt_tokens=np.arange(3, 13), max_tokens=55)
    with pytest.raises(EngineError, match="10 prompt tokens \\+ 55 completion tokens"):
        engine.submit([request])
    engine.submit([replace(request, max_tokens=54)])
    [sample] = finish(engine)
    assert sample.num_tokens == 54 or sample.stop_reason == "stop"


# -- with an engine of their own, which closes the shared one: these come last ------------------------------------------


def test_a_new_engine_closes_the_one_before() -> None:
    model = build()
    first = start(model)
    start(model)
    first.submit(requests(1))
    with pytest.raises(EngineError, match="one per process"):
        first.step()


def test_bfloat16_and_the_compiled_model() -> None:
    """And an untied head; its logits are in float32 on both sides."""
    model = build("llama", dtype=torch.bfloat16)
    other = build("llama", seed=1, dtype=torch.bfloat16)
    engine = start(model, options=OPTIONS.model_copy(update={"enforce_eager": False}))
    for version, weights in enumerate((model, other, model)):
        engine.load_weights(weights.module.state_dict(), version)
        samples = run(engine, requests(9))
        differences = np.concatenate([s.behaviour_logp - recomputed(weights, s) for s in samples])
        assert np.abs(differences).mean() < TOLERANCE[torch.bfloat16] / 10
        assert np.abs(differences).max() < TOLERANCE[torch.bfloat16]


def test_truncated_sampling_records_the_log_probs_before_truncation() -> None:
    model = build()
    engine = start(model, truncated=True)
    samples = run(engine, requests(6, top_k=3, top_p=0.9))
    for sample in samples:
        np.testing.assert_allclose(
            sample.behaviour_logp, recomputed(model, sample), atol=TOLERANCE[torch.float32]
        )
    ranks = []
    for sample in samples:
        ids = torch.from_numpy(np.concatenate([sample.prompt_tokens, sample.token_ids]))[None].to(DEVICE)
        with torch.no_grad():
            logits = model.module(ids).logits[0, len(sample.prompt_tokens) - 1 : -1]
        chosen = logits.gather(1, ids[0, len(sample.prompt_tokens) :, None])
        ranks += (logits > chosen).sum(-1).tolist()
    assert max(ranks) == 2


def test_a_model_that_vllm_does_not_know_is_refused() -> None:
    model = build()
    type(model.module).__name__, before = "NoSuchForCausalLM", type(model.module).__name__
    try:
        with pytest.raises(EngineError, match="vLLM cannot run NoSuchForCausalLM"):
            start(model)
    finally:
        type(model.module).__name__ = before


def test_rl_trains_with_vllm(tmp_path: Path) -> None:
    """Three updates end to end, interruptions and stale weights included; generator and trainer agree on log-probs."""
    rows = [{"prompt": f"repeat {i} after me {i % 10}", "answer": str(i % 10)} for i in range(60)]
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_rewards.py").write_text(
        "def even(prompt, completion):\n    return float(len(completion) % 2 == 0)\n"
    )
    overrides = {
        "steps": 3,
        "data.tasks": [{"name": "even", "path": str(data), "reward": f"{tmp_path / 'my_rewards.py'}:even"}],
        "model.embedded.hidden_size": 64,
        "model.embedded.num_layers": 2,
        "model.embedded.intermediate_size": 96,
        "model.embedded.vocab_size": 300,
        "model.embedded.max_position": 96,
        "model.embedded.steps": 20,
        "algorithm.prompts_per_batch": 4,
        "algorithm.samples_per_prompt": 4,
        "algorithm.truncated": "keep",
        "length.max_prompt_tokens": 60,
        "length.max_completion_tokens": 12,
        "length.interrupt_min": 3,
        "length.interrupt_max": 4,
        "length.interrupt_phrase": "so:",
        "schedule.k": 2,
        "schedule.update_cost_steps": 3,
        "optimizer.lr": 1e-3,
        "engine.kind": "vllm",
        "engine.slots": 8,
        "engine.vllm.enforce_eager": True,
        "engine.vllm.kv_cache_gb": 0.1,
        "eval.prompts": 4,
        "eval.samples_per_prompt": 2,
        "run.checkpoint_every": 2,
    }
    dotted = {key.replace(".", "__"): value for key, value in overrides.items()}
    finished = train(out=tmp_path / "run", quiet=True, **dotted)
    rows = [row for row in finished.metrics() if row["step"] > 0]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert max(row["staleness/max"] for row in rows) in (1, 2)
    assert max(row["rollout/interrupted_fraction"] for row in rows) > 0
    first = rows[0]  # nothing stale yet: what is left is the difference of two implementations
    assert abs(first["mismatch/kl_k3_gen_train"]) < 1e-6
    assert all(abs(row["mismatch/kl_k3_gen_train"]) < 0.05 for row in rows)
