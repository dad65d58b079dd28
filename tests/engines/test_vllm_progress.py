"""The vLLM engine without vLLM: a stand-in that counts upwards, so that what each token should be is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from postgrad.core.errors import ConfigError, EngineError, MissingExtraError
from postgrad.core.models.memory import MemoryConfig, attach
from postgrad.core.models.model import Model
from postgrad.core.types import Request, Sample
from postgrad.engines import VllmEngine
from postgrad.engines.vllm_engine import backend as backend_module
from postgrad.engines.vllm_engine import probe
from postgrad.engines.vllm_engine.backend import Leg, Output
from postgrad.engines.vllm_engine.progress import Progress
from postgrad.rl.api import make_engine
from postgrad.rl.config import make_config

VOCAB, EOS = 97, 1


class Tokenizer:
    eos_token_id = EOS


def build(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, eos_token_id=EOS, bos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return Model(LlamaForCausalLM(config).eval(), Tokenizer(), source="test")  # type: ignore[arg-type]


class Counter:
    """Each leg goes on counting from its last token, one token per step; log-probs are −token/100.

    With `reads` a leg's prompt takes that many steps, without a token. `deaf` ignores new weights.
    """

    def __init__(self, model: Model, *, reads: int = 0, deaf: bool = False) -> None:
        self.module, self.reads, self.deaf = model.module, reads, deaf
        self.weights: Mapping[str, torch.Tensor] = {}
        self.legs: dict[str, Leg] = {}
        self.waits: dict[str, int] = {}
        self.made: dict[str, int] = {}
        self.seen: list[Leg] = []
        self.most = 0

    def add(self, leg: Leg) -> None:
        assert leg.name not in self.legs
        self.legs[leg.name], self.waits[leg.name], self.made[leg.name] = leg, self.reads, 0
        self.seen.append(leg)
        self.most = max(self.most, sum(not leg.probe for leg in self.legs.values()))

    def step(self) -> list[Output]:
        outputs: list[Output] = []
        for leg in list(self.legs.values()):
            if self.waits[leg.name]:
                self.waits[leg.name] -= 1
                outputs.append(Output(leg.name, [], [], finished=False, stopped=False))
                continue
            self.made[leg.name] += 1
            token = int(leg.tokens[-1]) + self.made[leg.name]
            token = EOS if token == 60 else token
            stopped = token == EOS
            logps = probe.forward_logps(self.module, self.weights, leg.tokens) if leg.probe else None
            finished = stopped or self.made[leg.name] == leg.max_tokens
            outputs.append(Output(leg.name, [token], [-token / 100], finished, stopped, logps))
            if finished:
                del self.legs[leg.name]
        return outputs

    def abort(self, names: Sequence[str]) -> None:
        for name in names:
            self.legs.pop(name, None)

    def close(self) -> None:
        self.legs.clear()

    def load(
        self,
        weights: Mapping[str, torch.Tensor],
        change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        if not self.deaf or not self.weights:
            self.weights = {k: change(v) if change else v.clone() for k, v in weights.items()}


def engine(model: Model, slots: int = 4, **changes: Any) -> tuple[VllmEngine, Counter]:
    counter = Counter(model, reads=changes.pop("reads", 0))
    return VllmEngine(model, slots=slots, max_length=40, backend=counter, **changes), counter


def request(request_id: int, first: int = 10, max_tokens: int = 8, **changes: Any) -> Request:
    tokens = np.array([5, first - 1])
    return Request(id=request_id, group_id=0, prompt_tokens=tokens, max_tokens=max_tokens, **changes)


def finish(made: VllmEngine) -> list[Sample]:
    samples: list[Sample] = []
    while made.num_running or made.num_queued:
        samples += made.step()
    return samples


@pytest.mark.parametrize("reads", [0, 2])
def test_each_token_carries_the_version_that_was_in_force(reads: int) -> None:
    model = build()
    made, _ = engine(model, reads=reads)
    made.submit([request(0)])
    for step in range(8 + reads):
        if step in (3, 6):
            made.load_weights(model.module.state_dict(), version=step)
        samples = made.step()
    [sample] = samples
    sampled_at = np.arange(reads, 8 + reads)
    assert sample.policy_version.tolist() == np.select([sampled_at < 3, sampled_at < 6], [0, 3], 6).tolist()
    assert sample.token_ids.tolist() == list(range(10, 18))
    np.testing.assert_allclose(sample.behaviour_logp, -np.arange(10, 18) / 100, rtol=1e-6)
    assert (sample.stop_reason, sample.interrupted) == ("length", False)
    assert sample.loss_mask.all()


def test_a_stop_token_ends_a_sample_and_frees_its_slot() -> None:
    made, counter = engine(build(), slots=2)
    made.submit([request(i, first=57, max_tokens=6) for i in range(5)])
    samples = finish(made)
    assert [s.request_id for s in samples] == [0, 1, 2, 3, 4]
    assert all(s.token_ids.tolist() == [57, 58, 59, EOS] and s.stop_reason == "stop" for s in samples)
    assert counter.most == 2


@pytest.mark.parametrize("cut", range(8))
def test_a_snapshot_goes_on_where_it_was(cut: int) -> None:
    model = build()
    wanted = [request(i, first=10 + 3 * i, interrupt_at=3, interrupt_tokens=(70, 71)) for i in range(5)]
    made, _ = engine(model, slots=3)
    made.submit(wanted)
    expected = sorted(finish(made), key=lambda s: s.request_id)
    made, _ = engine(model, slots=3)
    made.submit(wanted)
    done = [sample for _ in range(cut) for sample in made.step()]
    taken = made.snapshot()
    assert made.num_running == made.num_queued == 0
    assert len(done) + len(taken) == 5
    other, _ = engine(model, slots=2)
    other.submit(taken)
    done += finish(other)
    for a, b in zip(expected, sorted(done, key=lambda s: s.request_id), strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
        assert a.loss_mask.tolist() == b.loss_mask.tolist()
        np.testing.assert_array_equal(a.behaviour_logp, b.behaviour_logp)
        assert (a.stop_reason, a.interrupted) == (b.stop_reason, b.interrupted)


def test_an_interruption_is_masked_and_generation_goes_on_after_it() -> None:
    made, counter = engine(build())
    made.submit([request(0, interrupt_at=3, interrupt_tokens=(70, 71))])
    [sample] = finish(made)
    assert sample.token_ids.tolist() == [10, 11, 12, 70, 71, 72, 73, 74]
    assert sample.loss_mask.tolist() == [True] * 3 + [False] * 2 + [True] * 3
    assert sample.behaviour_logp[3:5].tolist() == [0, 0]
    assert sample.interrupted
    first, second = (leg for leg in counter.seen if not leg.probe)
    assert second.tokens.tolist() == [5, 9, 10, 11, 12, 70, 71]
    assert (first.max_tokens, second.max_tokens) == (8, 3)
    assert first.salt == second.salt  # its own blocks, stale or not, are found again
    assert first.seed != second.seed


@pytest.mark.parametrize(
    ("changes", "tokens", "reason"),
    [
        ({"interrupt_unless": 11}, [10, 11, 12, 13, 14, 15, 16, 17], "length"),
        ({"interrupt_unless": 13}, [10, 11, 12, 70, 71, 72, 73, 74], "length"),
        ({"max_tokens": 4}, [10, 11, 12, 70], "length"),
        ({"max_tokens": 3}, [10, 11, 12], "length"),
        ({"interrupt_at": 0}, [70, 71, 72, 73, 74, 75, 76, 77], "length"),
        ({"interrupt_tokens": (70, EOS, 5)}, [10, 11, 12, 70, EOS], "length"),
        ({"first": 58}, [58, 59, EOS], "stop"),
    ],
)
def test_when_an_interruption_is_due(changes: dict[str, Any], tokens: list[int], reason: str) -> None:
    made, _ = engine(build())
    made.submit([request(0, **{"interrupt_at": 3, "interrupt_tokens": (70, 71), **changes})])
    [sample] = finish(made)
    assert sample.token_ids.tolist() == tokens
    assert sample.stop_reason == reason


def test_a_phrase_that_was_cut_is_completed() -> None:
    """Another engine may stop in the middle of it."""
    half = request(0, interrupt_at=3, interrupt_tokens=(70, 71), tokens=(10, 11, 12, 70), logps=(-1.0, -1.0, -1.0, 0.0),
                   versions=(0, 0, 0, 0), mask=(True, True, True, False))  # fmt: skip
    progress = Progress(half)
    assert progress.inject(version=2, stop_token_ids=())
    assert progress.tokens[3:] == [70, 71]
    assert progress.versions == [0, 0, 0, 0, 2]
    assert not progress.inject(version=2, stop_token_ids=())


def test_cached_blocks_are_shared_only_between_two_changes_of_weights() -> None:
    model = build()
    made, counter = engine(model)
    made.submit([request(0)])
    made.step()
    made.submit([request(1)])
    made.step()
    made.load_weights(model.module.state_dict(), 1)
    made.submit([request(2)])
    made.step()
    made.submit(made.snapshot())
    made.step()
    salts = [leg.salt for leg in counter.seen if not leg.probe]
    assert salts[0] == salts[1]
    assert len({salts[1], salts[2], salts[3]}) == 3
    assert salts[3:] == [salts[3]] * 3


def test_weights_that_do_not_arrive_are_noticed_at_the_start() -> None:
    model = build()
    with pytest.raises(EngineError, match="does not compute with the weights of version 0"):
        VllmEngine(model, slots=2, max_length=40, backend=Counter(model, deaf=True))


@pytest.mark.parametrize("busy", [False, True])
def test_weights_that_do_not_arrive_later_are_noticed(busy: bool) -> None:
    model, other = build(), build(seed=1)
    made, counter = engine(model)
    made.submit([request(0)] * busy)
    made.step()
    counter.deaf = True
    if busy:  # the probe goes with the next step
        made.load_weights(other.module.state_dict(), 1)
        with pytest.raises(EngineError, match="weights of version 1"):
            made.step()
    else:
        with pytest.raises(EngineError, match="weights of version 1"):
            made.load_weights(other.module.state_dict(), 1)


def test_the_probe_leaves_the_model_and_the_samples_alone() -> None:
    model, other = build(), build(seed=1)
    model.module.train()
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    made, _ = engine(model)
    made.submit([request(0)])
    made.step()
    for version in (1, 2):
        made.load_weights(other.module.state_dict(), version)
    assert finish(made)[0].policy_version.tolist() == [0] + [2] * 7
    assert model.module.training
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())


def test_the_forward_pass_of_the_probe_is_that_of_the_weights_given() -> None:
    model, other = build(), build(seed=1)
    tokens = probe.probe_tokens(VOCAB)
    with torch.no_grad():
        logps = other.module(torch.from_numpy(tokens)[None]).logits[0].log_softmax(-1)
    expected = logps[:-1].gather(1, torch.from_numpy(tokens)[1:, None])[:, 0].numpy()
    found = probe.forward_logps(model.module, other.module.state_dict(), tokens)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert probe.distance(np.array([np.nan]), np.array([0.0])) == float("inf")
    assert len(probe.probe_tokens(VOCAB, context_length=9)) == 8


def test_requests_that_vllm_would_do_wrong_are_refused_with_numbers() -> None:
    model = build()
    made, _ = engine(model)
    with pytest.raises(
        EngineError, match="2 prompt tokens \\+ 39 completion tokens; the engine takes 1 to 40"
    ):
        made.submit([request(0, max_tokens=39)])
    with pytest.raises(EngineError, match="at least one token"):
        made.submit([replace(request(0), prompt_tokens=np.array([], dtype=np.int64))])
    with pytest.raises(EngineError, match="already has its 1"):
        made.submit([request(0, max_tokens=1, tokens=(4,), logps=(0.0,), versions=(0,), mask=(True,))])
    with pytest.raises(EngineError, match="prefix_embeds"):
        made.submit([request(0, prefix_embeds=np.zeros((2, 16), dtype=np.float32))])
    with pytest.raises(EngineError, match="top_p 0.9, top_k 0"):
        made.submit([request(0, top_p=0.9)])
    made.submit([request(0, top_p=0.9, temperature=0.0), request(1, temperature=0.6)])
    truncated, _ = engine(model, truncated=True)
    with pytest.raises(EngineError, match="temperature 0.6"):
        truncated.submit([request(0, temperature=0.6)])
    truncated.submit([request(0, top_p=0.9)])


def test_models_that_vllm_cannot_run_are_refused() -> None:
    model = build()
    with pytest.raises(EngineError, match="context of 64 tokens"):
        VllmEngine(model, slots=2, max_length=65, backend=Counter(model))
    attach(model.module, MemoryConfig(layers=(0,), num_slots=16, num_heads=1, top_k=2, key_dim=4))
    with pytest.raises(EngineError, match="memory layers"):
        VllmEngine(model, slots=2, max_length=40, backend=Counter(model))


def test_without_vllm_the_error_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(backend_module.importlib, "import_module", missing)
    config = make_config(
        overrides={"engine.kind": "vllm", "length.max_completion_tokens": 8, "length.interrupt_min": "none"}
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'postgrad\[vllm\]'"):
        make_engine(build(), config, longest_prompt=4)


def test_truncated_sampling_at_another_temperature_is_refused_by_the_config() -> None:
    options = {"engine.kind": "vllm", "algorithm.top_p": 0.9}
    assert make_config(overrides=options).algorithm.truncates
    for key in ("algorithm.temperature", "eval.temperature"):
        with pytest.raises(ConfigError, match="at temperature 1"):
            make_config(overrides={**options, key: 0.6})
        make_config(overrides={key: 0.6, "engine.kind": "vllm"})
        make_config(overrides={key: 0.6, "algorithm.top_p": 0.9})


def test_tied_weights_are_probed_too() -> None:
    model, other = build(), build(seed=1)
    for each in (model, other):
        each.module.config.tie_word_embeddings = True
        each.module.tie_weights()
        each.module.lm_head.weight = each.module.model.embed_tokens.weight
    state = other.module.state_dict()
    assert "lm_head.weight" in state
    tokens = probe.probe_tokens(VOCAB)
    expected = probe.forward_logps(other.module, state, tokens)
    np.testing.assert_array_equal(probe.forward_logps(model.module, state, tokens), expected)
