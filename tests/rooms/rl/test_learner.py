"""Packing and micro-batching against the plain way of computing the same loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.rooms.rl.conftest import BASE, CONFIGS, Tokenizer, build, make_groups

from postgrad.core.errors import TrainingError
from postgrad.core.models import fp32_head, head, packing
from postgrad.core.models.model import Model
from postgrad.core.models.packing import loss_tokens, row_logps, rows
from postgrad.core.types import Group, Prompt
from postgrad.rl.config import AlgorithmConfig, OptimizerConfig
from postgrad.rl.learner import Learner, make_batch


def plain_logps(model: Model, groups: list[Group], temperature: float = 1.0) -> torch.Tensor:
    """Log-probs of all loss tokens, one sample at a time."""
    parts = []
    for group in groups:
        for sample in group.samples:
            ids = torch.from_numpy(np.concatenate([sample.prompt_tokens, sample.token_ids]))[None]
            logps = (model.module(ids).logits[0].float() / temperature).log_softmax(-1)
            start = len(sample.prompt_tokens) - 1
            chosen = logps[start:-1].gather(1, ids[0, start + 1 :, None])[:, 0]
            parts.append(chosen[torch.from_numpy(sample.loss_mask)])
    return torch.cat(parts)


def alike(groups: list[Group]) -> list[Group]:
    """The same groups with completions of two tokens only, so that many begin alike and some are the same."""
    for group in groups:
        for sample in group.samples:
            sample.token_ids = sample.token_ids % 2 + 5
    return groups


def num_prefixes(group: Group) -> int:
    """Tokens of the prompt, and distinct beginnings of completions without their last tokens."""
    ends = {tuple(s.token_ids[:n]) for s in group.samples for n in range(1, s.num_tokens)}
    return len(group.samples[0].prompt_tokens) + len(ends)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("max_tokens", [1, 40, 100, 10_000])
@pytest.mark.parametrize("kind", ["different", "alike"])
def test_trees_give_each_samples_own_logps(name: str, max_tokens: int, kind: str) -> None:
    model, groups = build(name), make_groups(num_groups=6, size=5)
    if kind == "alike":
        alike(groups)
    samples = [sample for group in groups for sample in group.samples]
    expected = plain_logps(model, groups, temperature=0.8)
    got = torch.zeros_like(expected)
    for row in rows(samples, max_tokens):
        got[row.place] = row_logps(model, row, temperature=0.8).logp
        longest = max(len(s.prompt_tokens) + s.num_tokens - 1 for s in samples)
        assert row.token.numel() <= max(max_tokens, longest)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_computed_twice_and_nothing_is_padding() -> None:
    for groups in (make_groups(), alike(make_groups(size=8))):
        for group in groups:
            (row,) = rows(group.samples, 10_000)
            assert row.token.numel() == num_prefixes(group)
    one = alike(make_groups(num_groups=1, size=8))[0].samples
    copies = [replace(s, group_id=g, request_id=8 * g + i) for g in range(6) for i, s in enumerate(one)]
    (row,) = rows(copies, 10_000)
    assert row.token.shape == (6, num_prefixes(Group(Prompt(id="0", text="x"), one)))


def test_a_head_that_the_model_goes_around_is_gathered_after_it(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = make_groups(num_groups=2)[0].samples
    (row,) = rows(samples, 1000)
    expected = row_logps(model, row).logp
    weight = model.module.get_output_embeddings().weight
    inner = model.module.model

    def forward(**options: object) -> object:
        options.pop("logits_to_keep", None)
        return SimpleNamespace(logits=torch.nn.functional.linear(inner(**options).last_hidden_state, weight))

    monkeypatch.setattr(model.module, "forward", forward)
    torch.testing.assert_close(row_logps(model, row).logp, expected)


@pytest.mark.parametrize("name", [*CONFIGS, "granite"])
@pytest.mark.parametrize("fp32", [False, True])
def test_a_large_vocabulary_in_chunks_gives_the_same_log_probs(
    name: str, fp32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, GraniteConfig

    if name == "granite":
        module = AutoModelForCausalLM.from_config(GraniteConfig(**BASE, logits_scaling=3.0)).eval()
        model = Model(module=module, tokenizer=Tokenizer(), source="test", revision=None)  # type: ignore[arg-type]
    else:
        model = build(name)
    fp32_head(model.module, fp32)
    samples = [sample for group in make_groups() for sample in group.samples]
    expected = {row.place: row_logps(model, row, 0.8).logp.detach() for row in rows(samples, 40)}
    monkeypatch.setattr(packing, "VOCABULARY_CHUNK", 7)
    assert head.has_plain_logits(model.module)
    for place, logp in expected.items():
        row = next(row for row in rows(samples, 40) if torch.equal(row.place, place))
        torch.testing.assert_close(packing.row_scores(model, row, 0.8), logp, rtol=1e-4, atol=1e-5)
    assert head.has_fp32_head(model.module) == fp32  # what was lent is back
    keep, inverse, target = packing._predictions(model, row)
    with head.captured_hidden(model.module) as hidden:
        assert packing._run(model, row).shape[-1] == 0  # no logits at all
    inputs = hidden[0].flatten(0, 1)[keep]
    small = head.chosen_logps(model.module, inputs, inverse, target, 0.8, chunk=5)
    whole = head.chosen_logps(model.module, inputs, inverse, target, 0.8, chunk=10_000)
    torch.testing.assert_close(small, whole, rtol=1e-5, atol=1e-5)


def test_a_head_that_does_more_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that shifts its logits by itself: noticed, and scored the plain way."""
    model = build()
    real = model.module.forward

    def shifted(*args: object, **kwargs: object) -> object:
        found = real(*args, **kwargs)
        if found.logits.shape[-1]:
            found.logits = found.logits + torch.arange(found.logits.shape[-1])
        return found

    monkeypatch.setattr(model.module, "forward", shifted)
    monkeypatch.setattr(packing, "VOCABULARY_CHUNK", 7)
    (row,) = rows(make_groups(num_groups=1)[0].samples, 1000)
    assert not head.has_plain_logits(model.module)
    assert torch.equal(packing.row_scores(model, row), row_logps(model, row).logp)


def test_entropy_is_that_of_the_predicting_distribution(model: Model) -> None:
    groups = make_groups(num_groups=1, size=2)
    samples = groups[0].samples
    (row,) = rows(samples, 1000)
    ids = torch.from_numpy(np.concatenate([samples[0].prompt_tokens, samples[0].token_ids]))[None]
    logits = model.module(ids).logits[0, len(samples[0].prompt_tokens) - 1 : -1]
    expected = torch.distributions.Categorical(logits=logits).entropy()
    found = torch.zeros(len(row.place))
    found[row.place] = row_logps(model, row).entropy
    torch.testing.assert_close(found[: len(expected)], expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["cispo", "grpo", "gspo", "reinforce"])
@pytest.mark.parametrize("aggregation", ["prompt", "sample", "token"])
def test_micro_batching_cannot_change_loss_or_gradient(loss: str, aggregation: str) -> None:
    algorithm = AlgorithmConfig(loss=loss, aggregation=aggregation)  # type: ignore[arg-type]
    results = []
    for max_tokens in (1, 17, 60, 10_000):
        learner = Learner(build(), algorithm, OptimizerConfig(micro_batch_tokens=max_tokens))
        batch = make_batch(make_groups(), algorithm)
        assert batch is not None
        metrics = learner.accumulate(batch)
        gradient = torch.cat([p.grad.flatten() for p in learner.parameters.values() if p.grad is not None])
        results.append((metrics, gradient))
    for metrics, gradient in results[1:]:
        for key, value in results[0][0].items():
            assert metrics[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-3, atol=1e-5)


def test_loss_and_gradient_equal_the_formula_of_the_paper(model: Model) -> None:
    """J of the paper written out sample by sample, differentiated by autograd."""
    groups, cap = make_groups(), 5.0
    logp = plain_logps(model, groups)
    sample, behaviour = loss_tokens([s for g in groups for s in g.samples])
    rewards = torch.tensor([[s.reward for s in g.samples] for g in groups], dtype=torch.float32)
    advantage = rewards - rewards.mean(1, keepdim=True)
    advantage = (advantage / advantage.square().mean().sqrt()).flatten()
    objective = torch.zeros(())
    start = 0
    for group in groups:
        count = sum(int(s.loss_mask.sum()) for s in group.samples)
        tokens = slice(start, start + count)
        ratio = (logp[tokens] - behaviour[tokens]).exp().clamp(max=cap).detach()
        objective = objective + (ratio * advantage[sample[tokens]] * logp[tokens]).sum() / count / len(groups)
        start += count
    expected = torch.autograd.grad(-objective, list(model.module.parameters()))

    learner = Learner(model, AlgorithmConfig(), OptimizerConfig(micro_batch_tokens=50))
    batch = make_batch(groups, AlgorithmConfig())
    assert batch is not None
    metrics = learner.accumulate(batch)
    assert metrics["loss/policy"] == pytest.approx(-objective.item(), rel=1e-4)
    for parameter, gradient in zip(model.module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_filters() -> None:
    groups = make_groups(num_groups=5)
    for sample in groups[0].samples:  # zero variance
        sample.reward = 1.0
    groups[1].samples[0].reward = None  # failed verification
    for sample in groups[2].samples[1:]:  # truncated: one sample is left, no baseline
        sample.stop_reason = "length"
    groups[3].samples[3].stop_reason = "length"
    batch = make_batch(groups, AlgorithmConfig())
    assert batch is not None
    assert [s.request_id for s in batch.samples] == [5, 6, 7, 12, 13, 14, 16, 17, 18, 19]
    assert batch.metrics["loss/trained_groups"] == 3
    kept = make_batch(groups, AlgorithmConfig(truncated="keep", zero_variance="keep"))
    assert kept is not None
    assert len(kept.samples) == 19
    for group in groups:
        for sample in group.samples:
            sample.reward = -1.0
    assert make_batch(groups, AlgorithmConfig()) is None
    assert make_batch(groups, AlgorithmConfig(zero_variance="keep")) is None


def gradient_of(model: Model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None])


def test_without_a_baseline_the_gradient_is_reinvents(model: Model) -> None:
    """The squared loss of REINVENT, (log π_ref + σR − log π_θ)², written out: half its gradient, over σ, is ours."""
    groups, sigma = make_groups(num_groups=1, size=6), 4.0
    samples = groups[0].samples
    logp = plain_logps(model, groups)
    sample, _ = loss_tokens(samples)
    sums = torch.zeros(len(samples)).index_add(0, sample, logp)
    score = torch.tensor([0.1, 0.9, 0.0, 0.4, 0.4, 1.0])
    ref = sums.detach() + torch.tensor([0.3, -0.2, 0.0, 0.5, -1.0, 0.1])
    squared = (ref + sigma * score - sums).square().sum()
    expected = torch.autograd.grad(squared / (2 * sigma) / len(logp), list(model.module.parameters()))
    total = score + (ref - sums.detach()) / sigma
    for each, value in zip(samples, total.tolist(), strict=True):
        each.reward = value
    algorithm = AlgorithmConfig(loss="reinforce", baseline="none", advantage_norm="none")
    batch = make_batch(groups, algorithm)
    assert batch is not None
    Learner(model, algorithm, OptimizerConfig(micro_batch_tokens=50)).accumulate(batch)
    torch.testing.assert_close(
        gradient_of(model), torch.cat([g.flatten() for g in expected]), rtol=1e-3, atol=1e-6
    )


def test_an_importance_weight_of_two_counts_like_two_equal_samples() -> None:
    algorithm = AlgorithmConfig(aggregation="sample", loss="reinforce")
    results = []
    for doubled in (False, True):
        (group,) = make_groups(num_groups=1, size=4)
        group.samples[0].reward, group.samples[1].reward = 1.0, -1.0
        if doubled:
            group.samples.append(group.samples[0])
        else:
            group.samples[0].weight = 2.0
        batch = make_batch([group], algorithm)
        assert batch is not None
        model = build()
        Learner(model, algorithm, OptimizerConfig()).accumulate(batch)
        results.append((batch.advantage[:4], gradient_of(model) * len(group.samples)))
    for weighted, repeated in zip(*results, strict=True):
        torch.testing.assert_close(weighted, repeated, rtol=1e-4, atol=1e-5)


def test_noise_is_not_scaled_up_beyond_the_least_deviation() -> None:
    (group,) = make_groups(num_groups=1, size=4)
    for sample, reward in zip(group.samples, [1.01, 0.99, 1.01, 0.99], strict=True):
        sample.reward = reward
    for least, expected in ((0.0, 1.0), (0.005, 1.0), (0.1, 0.1)):
        batch = make_batch([group], AlgorithmConfig(), min_deviation=least)
        assert batch is not None
        assert batch.advantage.abs().tolist() == pytest.approx([expected] * 4, rel=1e-3)


@pytest.mark.parametrize("kind", ["kl", "clip"])
def test_covariance_acts_on_chosen_tokens_alone_and_splitting_cannot_change_it(kind: str) -> None:
    plain = AlgorithmConfig(loss="reinforce")
    chosen = plain.model_copy(
        update={
            "covariance": kind,
            "covariance_fraction": 0.2,
            "covariance_low": 0.01,
            "covariance_high": 9.0,
        }
    )
    gradients = []
    for max_tokens in (17, 10_000):
        batch = make_batch(make_groups(), chosen, generator=torch.Generator().manual_seed(1))
        assert batch is not None
        model = build()
        Learner(model, chosen, OptimizerConfig(micro_batch_tokens=max_tokens)).accumulate(batch)
        gradients.append(gradient_of(model))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)

    model, groups = build(), make_groups()
    batch, without = (
        make_batch(groups, chosen, generator=torch.Generator().manual_seed(1)),
        make_batch(groups, plain),
    )
    assert batch is not None
    assert without is not None
    logp = plain_logps(model, groups)
    terms = -batch.advantage[batch.sample] * logp
    if kind == "kl":
        assert 0 < int(batch.penalised.sum()) == int(0.2 * len(logp))
        assert torch.equal(batch.weight, without.weight)
        terms = terms + (logp - batch.behaviour_logp).abs() * batch.penalised
    else:
        assert 0 < int((batch.weight == 0).sum()) <= int(0.2 * len(logp))
    (batch.weight * terms).sum().backward()
    torch.testing.assert_close(gradient_of(model), gradients[0], rtol=1e-3, atol=1e-5)


def test_a_batch_without_signal_changes_nothing_but_counts(model: Model) -> None:
    groups = make_groups()
    for group in groups:
        for sample in group.samples:
            sample.reward = 1.0
    learner = Learner(model, AlgorithmConfig(), OptimizerConfig(lr=0.1, warmup_steps=0))
    before = {name: value.clone() for name, value in learner.weights().items()}
    assert learner.update(groups)["loss/skipped"] == 1
    assert learner.num_updates == 1
    assert all(torch.equal(value, before[name]) for name, value in learner.weights().items())


def test_non_finite_gradients_leave_the_weights_alone(model: Model) -> None:
    groups = make_groups()
    groups[0].samples[0].behaviour_logp[0] = np.nan
    learner = Learner(model, AlgorithmConfig(), OptimizerConfig(lr=0.1, warmup_steps=0))
    before = {name: value.clone() for name, value in learner.weights().items()}
    with pytest.raises(TrainingError, match="not finite"):
        learner.update(groups)
    assert all(torch.equal(value, before[name]) for name, value in learner.weights().items())
    assert all(p.grad is None for p in learner.parameters.values())


def test_updates_raise_the_probability_of_rewarded_samples(model: Model) -> None:
    groups = make_groups()
    learner = Learner(model, AlgorithmConfig(), OptimizerConfig(lr=1e-3, warmup_steps=0))
    sign = torch.cat([torch.full((int(s.loss_mask.sum()),), s.reward) for g in groups for s in g.samples])
    before = float((sign * plain_logps(model, groups).detach()).sum())
    for _ in range(3):
        learner.update(groups)
    assert float((sign * plain_logps(model, groups).detach()).sum()) > before + 1


def test_saved_optimizer_goes_on_exactly(tmp_path: Path) -> None:
    algorithm, optimizer = AlgorithmConfig(), OptimizerConfig(lr=1e-3, warmup_steps=4)
    straight = Learner(build(), algorithm, optimizer)
    for seed in range(4):
        straight.update(make_groups(seed))
    first = Learner(build(), algorithm, optimizer)
    for seed in range(2):
        first.update(make_groups(seed))
    first.save(tmp_path / "learner.safetensors")
    second_model = build(seed=5)
    second_model.module.load_state_dict(first.weights())
    second = Learner(second_model, algorithm, optimizer)
    second.load(tmp_path / "learner.safetensors")
    assert second.num_updates == 2
    for seed in range(2, 4):
        second.update(make_groups(seed))
    for name, value in straight.weights().items():
        assert torch.equal(value, second.weights()[name]), name


def test_bf16_weights_are_updated_through_fp32_masters() -> None:
    model = build()
    model.module.to(torch.bfloat16)
    learner = Learner(model, AlgorithmConfig(), OptimizerConfig(lr=1e-5, warmup_steps=0))
    masters = {name: value.clone() for name, value in learner._master.items()}
    for _ in range(3):
        learner.update(make_groups())
    moved = [float((learner._master[name] - masters[name]).abs().max()) for name in masters]
    assert min(moved) > 5e-6  # below bf16's resolution of the weights, kept in the masters
    for name, parameter in learner.parameters.items():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, learner._master[name].bfloat16())
