"""MARA inside `rl`: total rewards by hand, the reference's log-probs by `generate`'s own model, exact resume."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from postgrad.core.config import validate
from postgrad.core.errors import ConfigError
from postgrad.core.models.model import Model
from postgrad.core.protocols import TransformContext
from postgrad.core.types import Group, Prompt, Sample
from postgrad.mara.config import MaraConfig
from postgrad.mara.reference import Reference
from postgrad.mara.rewards import Transform, transform

VOCAB = 23


class Tokenizer:
    eos_token_id = 1
    pad_token_id = 0


def build(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    module = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return Model(module=module, tokenizer=Tokenizer(), source="test", revision=None)  # type: ignore[arg-type]


def parameters(model: Model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.module.named_parameters()}


def make_group(name: str, rewards: list[float | None], seed: int = 0, logp: float = -0.5) -> Group:
    rng = np.random.default_rng([seed, *name.encode()])
    prompt = rng.integers(2, VOCAB, 4)
    samples = []
    for index, reward in enumerate(rewards):
        length = int(rng.integers(1, 6))
        mask = np.ones(length, bool)
        if length > 3:
            mask[1] = False  # an injected token
        samples.append(
            Sample(
                request_id=index,
                group_id=int.from_bytes(name.encode()),
                prompt_tokens=prompt,
                token_ids=rng.integers(2, VOCAB, length),
                loss_mask=mask,
                behaviour_logp=np.where(mask, logp, 0.0).astype(np.float32),
                policy_version=np.zeros(length, np.int64),
                stop_reason="stop",
                reward=reward,
            )
        )
    return Group(Prompt(id=name, text=name), samples)


def context(
    options: dict[str, object], model: Model, weights: Callable[[], dict[str, torch.Tensor]]
) -> TransformContext:
    return TransformContext(
        options=options,
        model=model,
        initial_weights=weights,
        temperature=1.0,
        pass_reward=1.0,
        fail_reward=-1.0,
        max_tokens=512,
        seed=0,
    )


def slow_logp(model: Model, sample: Sample, temperature: float = 1.0) -> float:
    """One sample, one forward pass, no packing."""
    tokens = torch.tensor(np.concatenate([sample.prompt_tokens, sample.token_ids]))[None]
    with torch.no_grad():
        logps = (model.module(input_ids=tokens).logits[0].double() / temperature).log_softmax(-1)
    first = len(sample.prompt_tokens) - 1
    picked = [logps[first + t, token] for t, token in enumerate(sample.token_ids) if sample.loss_mask[t]]
    return float(sum(picked))


# -- the reference -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reference_logps_are_those_of_the_model_before_training(temperature: float) -> None:
    model = build()
    before, weights = copy.deepcopy(model), parameters(model)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(1.3)
    trained = parameters(model)
    samples = [s for name in "abc" for s in make_group(name, [1.0] * 4).samples]
    reference = Reference(model, weights, temperature=temperature, max_tokens=16)
    expected = [slow_logp(before, sample, temperature) for sample in samples]
    assert reference(samples) == pytest.approx(expected, abs=2e-5)
    assert expected != pytest.approx([slow_logp(model, s, temperature) for s in samples], abs=0.1)
    for name, parameter in model.module.named_parameters():  # the policy is back, bit by bit
        assert torch.equal(parameter, trained[name])


def test_what_was_scored_once_is_not_scored_again_until_it_is_forgotten() -> None:
    model = build()
    reference = Reference(model, parameters(model), cache=3)
    samples = make_group("a", [1.0] * 5, seed=3).samples
    first = reference(samples)
    assert reference.num_scored == 5
    assert reference(samples[2:]) == first[2:]
    assert reference.num_scored == 5
    assert reference([samples[0]]) == pytest.approx(first[:1], abs=1e-5)
    assert reference.num_scored == 6
    again = replace(samples[4], request_id=99)
    assert reference([again, again]) == [first[4]] * 2


def test_the_order_and_size_of_rows_do_not_matter() -> None:
    model = build()
    samples = [s for name in "abcd" for s in make_group(name, [1.0] * 3).samples]
    whole = Reference(model, parameters(model), max_tokens=4096)(samples)
    single = Reference(model, parameters(model), max_tokens=1)(samples[::-1])[::-1]
    assert whole == pytest.approx(single, abs=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft on a newer transformers
def test_a_lora_policy_needs_no_copy() -> None:
    peft = pytest.importorskip("peft")
    model = build()
    before = copy.deepcopy(model)
    adapted = peft.get_peft_model(
        model.module, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    policy = Model(module=adapted, tokenizer=model.tokenizer, source="lora", revision=None)
    samples = make_group("a", [1.0] * 4).samples
    found = transform(context({"beta": 0.1}, policy, _never)).reference(samples)
    assert found == pytest.approx([slow_logp(before, s) for s in samples], abs=2e-5)
    assert found != pytest.approx([slow_logp(policy, s) for s in samples], abs=1e-3)


def _never() -> dict[str, torch.Tensor]:
    raise AssertionError("a LoRA policy needs no weights of its reference")


# -- the transform -------------------------------------------------------------------------------------------------


def make(beta: float = 0.5, **options: object) -> Transform:
    model = build()
    return transform(context({"beta": beta, **options}, model, lambda: parameters(model)))


def by_hand(found: Transform, group: Group, beta: float) -> list[float]:
    """The spec's formula, sample by sample, anchor by a loop."""
    ref = [slow_logp(found.reference.model, s) for s in group.samples]
    old = [float(s.behaviour_logp.sum()) for s in group.samples]
    good = [i for i, s in enumerate(group.samples) if (s.reward or 0) >= 1]
    totals = []
    for i, sample in enumerate(group.samples):
        reward = float(sample.reward or 0)
        if i in good:
            z = max(good, key=lambda j: ref[j])
            reward = float(group.samples[z].reward or 0) + beta * (ref[z] - ref[i])
        totals.append(reward - beta * (old[i] - ref[i]))
    return totals


def test_total_rewards_by_hand() -> None:
    found = make(0.5)
    groups = [
        make_group("a", [1.0, -1.0, 1.0, 1.0]),
        make_group("b", [-1.0, -1.0]),
        make_group("c", [2.0, 1.0]),
    ]
    changed, metrics = found(groups)
    for before, after in zip(groups, changed, strict=True):
        assert after.rewards == pytest.approx(by_hand(found, before, 0.5), abs=1e-4)
        assert after.prompt is before.prompt
    assert metrics["mara/good_fraction"] == 5 / 8
    assert metrics["mara/reference_needed_fraction"] == 1.0
    assert groups[0].rewards == [1.0, -1.0, 1.0, 1.0]  # the groups that came in are as they were


def test_without_augmentation_it_is_the_kl_alone() -> None:
    found = make(0.5, method="none")
    group = make_group("a", [1.0, -1.0, 1.0])
    (after,), _ = found([group])
    ref = [slow_logp(found.reference.model, s) for s in group.samples]
    expected = [
        float(s.reward or 0) - 0.5 * (float(s.behaviour_logp.sum()) - r)
        for s, r in zip(group.samples, ref, strict=True)
    ]
    assert after.rewards == pytest.approx(expected, abs=1e-4)


def test_a_policy_that_is_uniform_over_good_answers_gets_equal_totals() -> None:
    """The fixed point: R(z) + β·log π_ref(z) − β·log π_θ(y) is the same for good y exactly when π_θ is."""
    group = make_group("a", [1.0, 1.0, 1.0])
    for sample in group.samples:
        sample.behaviour_logp[:] = 0.0
        sample.behaviour_logp[np.flatnonzero(sample.loss_mask)[0]] = np.log(1 / 3)
    (after,), _ = make(0.5)([group])
    assert after.rewards == pytest.approx([after.rewards[0]] * 3, abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("method", ["entropy_bonus", "unlikeliness", "differential_smoothing", "pass_at_k"])
def test_rivals_by_hand(method: str, beta: float) -> None:
    """Rewards (1, −1, 1, 1), logp −0.5 per counted token; the rank penalty by counting, pass@2 by all pairs."""
    found = (
        make(beta, method=method, k=2)
        if method == "pass_at_k"
        else make(beta, method=method, coefficient=0.2)
    )
    group = make_group("a", [1.0, -1.0, 1.0, 1.0])
    (after,), metrics = found([group])
    old = [float(s.behaviour_logp.sum()) for s in group.samples]
    good = [True, False, True, True]
    match method:
        case "entropy_bonus":
            expected = [r - 0.2 * o for r, o in zip([1, -1, 1, 1], old, strict=True)]
        case "differential_smoothing":
            expected = [1 - 0.2 * o if g else -1.0 for g, o in zip(good, old, strict=True)]
        case "unlikeliness":
            ranks = [sum(o < p for p in old) + 0.5 * (sum(o == p for p in old) - 1) for o in old]
            expected = [(1 - 0.2 * (4 - rank) / 4) * g for g, rank in zip(good, ranks, strict=True)]
        case _:  # one wrong of four: every pair has a right one
            expected = [0.0] * 4
    if beta:
        ref = [slow_logp(found.reference.model, s) for s in group.samples]
        expected = [e - beta * (o - r) for e, o, r in zip(expected, old, ref, strict=True)]
    assert after.rewards == pytest.approx(expected, abs=1e-4)
    assert metrics["mara/reference_needed_fraction"] == float(beta > 0)


def test_pass_at_k_rewards_the_lone_success() -> None:
    group = make_group("a", [1.0, -1.0, -1.0])
    (after,), _ = make(0.0, method="pass_at_k", k=2)([group])
    assert after.rewards == pytest.approx([0.7071, -0.3536, -0.3536], abs=1e-4)


def test_flow_rl_scales_the_reward_and_takes_means_over_tokens() -> None:
    found = make(0.0, method="flow_rl", coefficient=2.0)
    group = make_group("a", [1.0, -1.0, -1.0])
    (after,), metrics = found([group])
    mean, deviation = -1 / 3, math.sqrt(8) / 3
    expected = [
        2 * (float(s.reward or 0) - mean) / deviation
        - (float(s.behaviour_logp.sum()) - slow_logp(found.reference.model, s)) / int(s.loss_mask.sum())
        for s in group.samples
    ]
    assert after.rewards == pytest.approx(expected, abs=1e-4)
    assert metrics["mara/reference_needed_fraction"] == 1.0


def test_the_diversity_filter_takes_the_reward_of_what_was_seen_too_often_and_remembers() -> None:
    found = make(0.0, method="diversity_filter", bucket=2, answers="text")
    group = make_group("a", [1.0, 1.0, 1.0, -1.0, 1.0])
    for sample, text in zip(group.samples, ["x y", "x  y ", "x y", "x y", "z"], strict=True):
        sample.text = text
    (after,), metrics = found([group])
    assert after.rewards == [1.0, 1.0, -1.0, -1.0, 1.0]
    assert metrics["mara/filtered_fraction"] == 1 / 5
    resumed = make(0.0, method="diversity_filter", bucket=2, answers="text")
    resumed.load_state_dict(json.loads(json.dumps(found.state_dict())))
    for each in (found, resumed):
        (after,), metrics = each([group])
        assert after.rewards == [-1.0, -1.0, -1.0, -1.0, 1.0]
        assert metrics["mara/filtered_fraction"] == 3 / 5


def test_spellings_of_one_answer_are_lifted_by_their_joint_probability() -> None:
    found, plain = make(0.5, answers="text"), make(0.5)
    group = make_group("a", [1.0, 1.0, 1.0])
    for sample, text in zip(group.samples, ["one", "one", "two"], strict=True):
        sample.text = text
    ref = [slow_logp(found.reference.model, s) for s in group.samples]
    joint = float(np.logaddexp(ref[0], ref[1]))
    best = max(joint, ref[2])
    old = [float(s.behaviour_logp.sum()) for s in group.samples]
    expected = [
        1 + 0.5 * (best - j) - 0.5 * (o - r) for j, o, r in zip([joint, joint, ref[2]], old, ref, strict=True)
    ]
    assert found([group])[0][0].rewards == pytest.approx(expected, abs=1e-4)
    assert plain([group])[0][0].rewards != pytest.approx(expected, abs=1e-2)


# -- replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_replayed_answers_join_with_the_policys_log_probs_and_the_mixtures_weights(power: float) -> None:
    found = make(0.5, replay=2, replay_power=power)
    model = found.reference.model
    first = make_group("a", [1.0, -1.0, 1.0])
    (unchanged,), metrics = found([first])
    assert [s.weight for s in unchanged.samples] == [1.0] * 3  # nothing was known yet
    assert metrics["mara/num_replay_answers"] == 2
    second = make_group("a", [-1.0, None, 1.0, 1.0], seed=4)
    second.samples[3].token_ids = first.samples[0].token_ids.copy()
    second.samples[3].loss_mask = first.samples[0].loss_mask.copy()
    second.samples[3].behaviour_logp = first.samples[0].behaviour_logp.copy()
    second.samples[3].policy_version = np.zeros(len(first.samples[0].token_ids), np.int64)
    (joined,), metrics = found([second])
    own, added = joined.samples[:4], joined.samples[4:]
    assert metrics["mara/replayed_fraction"] == 2 / 5
    assert {s.token_ids.tobytes() for s in added} == {first.samples[i].token_ids.tobytes() for i in (0, 2)}
    for sample in added:  # both known answers, each once, under the policy as it is
        assert float(sample.behaviour_logp.sum()) == pytest.approx(slow_logp(model, sample), abs=1e-4)
    assert own[3].reward is None
    for sample in (s for s in joined.samples if s.reward is not None):
        policy = math.exp(float(sample.behaviour_logp.sum()))
        known = sample.token_ids.tobytes() in {s.token_ids.tobytes() for s in added}
        expected = policy / ((3 * policy + 2 * known / 2) / 5)
        assert sample.weight == pytest.approx(expected**power, rel=1e-3)
    assert second.samples[0].weight == 1.0  # what came in is as it was


def test_replay_survives_a_resume_and_forgets_the_oldest() -> None:
    found = make(0.5, replay=1, replay_size=2)
    found([make_group("a", [1.0, 1.0, 1.0])])
    assert len(found.replay) == 2
    other = make(0.5, replay=1, replay_size=2)
    other.load_state_dict(json.loads(json.dumps(found.state_dict())))
    later = make_group("a", [1.0, -1.0], seed=9)
    (one,), _ = found([later])
    (two,), _ = other([later])
    assert one.rewards == two.rewards
    assert [s.token_ids.tolist() for s in one.samples] == [s.token_ids.tolist() for s in two.samples]


def test_failed_samples_stay_without_reward() -> None:
    (after,), metrics = make()([make_group("a", [None, 1.0, -1.0])])
    assert after.samples[0].reward is None
    assert len(after.rewards) == 2
    assert metrics["mara/good_fraction"] == 0.5


def test_a_stored_anchor_spares_the_reference_and_gives_the_same_differences() -> None:
    stored, fresh = make(0.5, anchor="stored"), make(0.5)
    first, later = make_group("a", [1.0, -1.0, 1.0]), make_group("a", [1.0, 1.0, -1.0, 1.0], seed=5)
    assert stored([first])[0][0].rewards == pytest.approx(fresh([first])[0][0].rewards, abs=1e-5)
    (after,), metrics = stored([later])
    assert metrics["mara/reference_needed_fraction"] == 0.25  # the one that is not good
    expected = fresh([later])[0][0].rewards
    difference = np.array(after.rewards) - np.array(expected)
    assert difference[[0, 1, 3]] == pytest.approx([difference[0]] * 3, abs=1e-4)
    assert difference[2] == pytest.approx(0, abs=1e-4)


def test_anchors_survive_a_resume() -> None:
    stored = make(0.5, anchor="stored")
    stored([make_group("a", [1.0, 1.0])])
    other = make(0.5, anchor="stored")
    other.load_state_dict(json.loads(json.dumps(stored.state_dict())))
    later = make_group("a", [1.0, -1.0], seed=9)
    assert other([later])[0][0].rewards == stored([later])[0][0].rewards


def test_a_percentile_says_what_is_good_where_there_is_no_verifier() -> None:
    found = make(0.5, percentile=75)
    group = make_group("a", [0.1, 0.2, 0.3, 0.4, 0.5])
    _, metrics = found([group])
    assert metrics["mara/good_fraction"] == 2 / 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": 0}, "beta = 0 makes MARA inert"),
        ({"beta": 0.1, "coefficient": 1.0}, "coefficient is the strength of entropy_bonus"),
        ({"beta": 0.1, "method": "entropie"}, "method: Input should be 'mara', 'none'"),
        ({}, "Missing key 'beta'"),
        ({"beta": -1}, "beta: Input should be greater than or equal to 0"),
        ({"beta": 0.1, "tau": 1.0, "percentile": 90}, "tau or percentile, not both"),
        ({"beta": 0.1, "anchor": "stored", "percentile": 90}, "another group's percentile"),
        ({"beta": 0.1, "method": "flow_rl"}, "flow_rl has its own KL"),
        ({"beta": 0.1, "anchor": "stored", "answers": "text"}, "joint probability"),
        ({"beta": 0.1, "method": "entropy_bonus", "replay": 2}, "give replay = 0"),
        ({"beta": 0.1, "bta": 1}, "Unknown key 'bta'"),
    ],
)
def test_combinations_that_cannot_work_are_refused_with_the_reason(
    options: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(MaraConfig, options)


def test_rl_with_mara_resumes_to_the_same_metrics(tmp_path: Path) -> None:
    """A run of three updates, against one that stops after two and goes on."""
    import postgrad as pg

    options: dict[str, object] = {
        "task": "chain_sum",
        "model__embedded__steps": 30,
        "model__embedded__demonstrations": 200,
        "algorithm__prompts_per_batch": 4,
        "algorithm__samples_per_prompt": 4,
        "eval__prompts": 8,
        "eval__samples_per_prompt": 1,
        "engine__slots": 16,
        "mara__beta": 0.05,
        "mara__anchor": "stored",
        "run__checkpoint_every": 2,
        "quiet": True,
        "transform": pg.mara.transform,
    }
    whole = pg.rl.train(**options, steps=3, out=tmp_path / "whole")  # type: ignore[arg-type]
    pg.rl.train(**options, steps=3, out=tmp_path / "half")  # type: ignore[arg-type]
    half = tmp_path / "half"
    for newer in (half / "checkpoints").glob("step_*3"):
        import shutil

        shutil.rmtree(newer)
    resumed = pg.rl.train(out=half, resume=True, quiet=True, transform=pg.mara.transform)
    keys = (
        "rollout/reward_total_mean",
        "mara/kl_k1_policy_ref",
        "mara/good_fraction",
        "loss/policy",
        "rollout/pass_rate",
    )
    rows = [[{k: row.get(k) for k in keys} for row in run.metrics()] for run in (whole, resumed)]
    assert rows[0] == rows[1]
    assert rows[0][1]["mara/kl_k1_policy_ref"] is not None
    with pytest.raises(ConfigError, match="no transform was given"):
        pg.rl.train(out=half, resume=True, quiet=True)
