"""The KL to the model before training and the entropy bonus, against the plain way of computing them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.rooms.rl.conftest import build, make_groups
from tests.rooms.rl.test_learner import gradient_of, plain_logps

from postgrad.core.models.model import Model
from postgrad.core.models.packing import loss_tokens
from postgrad.core.models.reference import ReferencePolicy
from postgrad.core.types import Group
from postgrad.rl import ops
from postgrad.rl.config import AlgorithmConfig, OptimizerConfig
from postgrad.rl.learner import Learner, make_batch


def away(max_tokens: int = 8192) -> tuple[Model, Model, ReferencePolicy]:
    """A policy that has moved, the model that it was, and the reference made of that model's weights."""
    policy, before = build(), build()
    weights = {name: p.detach().clone() for name, p in before.module.named_parameters()}
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return policy, before, ReferencePolicy(policy, weights, max_tokens=max_tokens)


def learned(
    groups: list[Group], max_tokens: int = 50, **options: Any
) -> tuple[dict[str, float], torch.Tensor]:
    policy, _, reference = away(max_tokens)
    algorithm = AlgorithmConfig(loss="reinforce", **options)
    given = reference if algorithm.kl != "none" else None
    learner = Learner(policy, algorithm, OptimizerConfig(micro_batch_tokens=max_tokens), reference=given)
    batch = make_batch(groups, algorithm, reference=given)
    assert batch is not None
    return batch.metrics | learner.accumulate(batch), gradient_of(policy)


def test_reference_logps_are_those_of_before_and_the_policy_comes_back() -> None:
    policy, before, reference = away(40)
    trained = copy.deepcopy(policy.module.state_dict())
    groups = make_groups()
    got = torch.cat(reference.token_logps([s for g in groups for s in g.samples]))
    torch.testing.assert_close(got, plain_logps(before, groups).detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, plain_logps(policy, groups).detach(), atol=1e-2)
    for name, value in policy.module.state_dict().items():
        assert torch.equal(value, trained[name])


@pytest.mark.parametrize(
    ("kl", "estimator"), [("loss", "k2"), ("loss", "k3"), ("reward", "k1"), ("reward", "k3")]
)
def test_kl_equals_the_formula_written_out(kl: str, estimator: str) -> None:
    """Sample by sample, prompt average, advantages over the batch; differentiated by autograd."""
    groups, coef = make_groups(), 0.3
    policy, before, _ = away()
    logp, ref = plain_logps(policy, groups), plain_logps(before, groups).detach()
    sample, behaviour = loss_tokens([s for g in groups for s in g.samples])
    rewards = torch.tensor([float(s.reward or 0) for g in groups for s in g.samples])
    spent = []
    if kl == "reward":
        for i in range(len(rewards)):
            d = (behaviour - ref)[sample == i]
            spent.append(coef * float((d if estimator == "k1" else torch.exp(-d) - 1 + d).sum()))
            rewards[i] -= spent[-1]
    advantage = rewards.view(len(groups), -1) - rewards.view(len(groups), -1).mean(1, keepdim=True)
    advantage = (advantage / advantage.square().mean().sqrt()).flatten()
    loss, start = torch.zeros(()), 0
    for group in groups:
        count = sum(int(s.loss_mask.sum()) for s in group.samples)
        for t in range(start, start + count):
            term = -advantage[sample[t]] * logp[t]
            if kl == "loss":
                d = logp[t] - ref[t]
                term = term + coef * (d * d / 2 if estimator == "k2" else torch.exp(-d) - 1 + d)
            loss = loss + term / count / len(groups)
        start += count
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.module.parameters()))])
    metrics, gradient = learned(groups, kl=kl, kl_coef=coef, kl_estimator=estimator)
    assert metrics["loss/policy"] == pytest.approx(loss.item(), rel=1e-3)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
    if kl == "reward":
        assert metrics["loss/reward_kl_mean"] == pytest.approx(sum(spent) / len(spent), rel=1e-3)
    for name in ("k1", "k3"):
        estimate = ops.kl_estimate(logp.detach(), ref, name).mean()  # type: ignore[arg-type]
        assert metrics[f"loss/kl_{name}_policy_ref"] == pytest.approx(float(estimate), rel=1e-3)


def test_entropy_bonus_equals_the_formula_written_out() -> None:
    groups, coef = make_groups(num_groups=2), 0.7
    policy, _, _ = away()
    parameters = list(policy.module.parameters())
    _, plain = learned(groups)
    total, start = torch.zeros(()), 0
    for group in groups:
        count = sum(int(s.loss_mask.sum()) for s in group.samples)
        for sample in group.samples:
            ids = torch.tensor([*sample.prompt_tokens, *sample.token_ids])[None]
            logits = policy.module(ids).logits[0, len(sample.prompt_tokens) - 1 : -1]
            entropy = torch.distributions.Categorical(logits=logits).entropy()
            total = total + entropy[torch.from_numpy(sample.loss_mask)].sum() / count / len(groups)
        start += count
    bonus = torch.cat([g.flatten() for g in torch.autograd.grad(-coef * total, parameters)])
    metrics, gradient = learned(groups, entropy_coef=coef)
    torch.testing.assert_close(gradient, plain + bonus, rtol=1e-3, atol=1e-5)
    assert metrics["loss/entropy"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"kl": "loss", "kl_coef": 0.2},
        {"kl": "reward", "kl_coef": 0.2, "kl_estimator": "k1"},
        {"entropy_coef": 0.5},
    ],
)
def test_micro_batching_changes_neither(options: dict[str, Any]) -> None:
    results = [learned(make_groups(), max_tokens, **options) for max_tokens in (1, 17, 10_000)]
    for metrics, gradient in results[1:]:
        for key, value in results[0][0].items():
            assert metrics[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-3, atol=1e-5)


def test_what_has_no_advantage_is_pulled_to_the_reference_all_the_same() -> None:
    groups = make_groups(num_groups=1)
    for sample in groups[0].samples:
        sample.reward = 1.0
    options: dict[str, Any] = {"zero_variance": "keep", "kl_coef": 0.2}
    assert make_batch(groups, AlgorithmConfig(zero_variance="keep")) is None
    for kl in ("loss", "reward"):
        _, gradient = learned(groups, kl=kl, **options)
        assert float(gradient.norm()) > 1e-4


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="regularises nothing"):
        AlgorithmConfig(kl="loss", kl_estimator="k1")
    with pytest.raises(ValueError, match="needs a reference"):
        Learner(build(), AlgorithmConfig(kl="loss"), OptimizerConfig())
