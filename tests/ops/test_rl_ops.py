"""Each equation: a value by hand, a slow obvious reference, an invariance, a gradient, a known answer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.rl import ops


def ragged(seed: int, num_groups: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(group [N], sample [T], reward [N]) with group sizes 2..5 and lengths 1..7."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 6, (num_groups,), generator=generator)
    group = torch.repeat_interleave(torch.arange(num_groups), sizes)
    lengths = torch.randint(1, 8, (len(group),), generator=generator)
    sample = torch.repeat_interleave(torch.arange(len(group)), lengths)
    return group, sample, torch.randn(len(group), generator=generator)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("seed", range(5))
def test_advantages_equal_a_loop(norm: ops.AdvantageNorm, seed: int) -> None:
    group, _, reward = ragged(seed)
    centred = [float(reward[i] - reward[group == group[i]].mean()) for i in range(len(reward))]
    expected = []
    for i, value in enumerate(centred):
        pool = (
            centred
            if norm == "batch"
            else [c for c, g in zip(centred, group.tolist(), strict=True) if g == int(group[i])]
        )
        deviation = math.sqrt(sum(c * c for c in pool) / len(pool)) if norm != "none" else 1.0
        expected.append(value / deviation)
    torch.testing.assert_close(
        ops.advantages(reward, group, norm), torch.tensor(expected), rtol=1e-5, atol=1e-6
    )


def test_batch_norm_divides_by_the_std_of_advantages_not_of_rewards() -> None:
    """Trap: two groups with means far apart. The std of the raw rewards would be 5.02."""
    reward = torch.tensor([0.0, 1.0, 10.0, 11.0])
    group = torch.tensor([0, 0, 1, 1])
    assert ops.advantages(reward, group, "batch").tolist() == pytest.approx([-1, 1, -1, 1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(-50, 50), st.floats(0.1, 20))
def test_advantages_ignore_shift_and_scale_of_rewards(seed: int, shift: float, scale: float) -> None:
    group, _, reward = ragged(seed)
    once = ops.advantages(reward, group, "batch")
    again = ops.advantages(reward * scale + shift, group, "batch")
    torch.testing.assert_close(once, again, rtol=1e-3, atol=1e-3)


def test_weights_count_like_repetitions_and_no_baseline_subtracts_nothing() -> None:
    reward, group = torch.tensor([1.0, -1.0, 3.0]), torch.tensor([0, 0, 0])
    repeated = ops.advantages(
        torch.tensor([1.0, -1.0, 3.0, 3.0, 3.0]), torch.zeros(5, dtype=torch.long), "group"
    )
    weighted = ops.advantages(reward, group, "group", weight=torch.tensor([1.0, 1.0, 3.0]))
    torch.testing.assert_close(weighted, repeated[:3])
    assert ops.advantages(reward, group, "none", baseline="none").tolist() == reward.tolist()
    scaled = ops.advantages(reward, group, "batch", baseline="none")  # √(11/3) about 0
    assert scaled.tolist() == pytest.approx([x / math.sqrt(11 / 3) for x in (1, -1, 3)])


def test_equal_rewards_have_no_variance_whatever_their_value() -> None:
    """Trap: a filter by mean breaks with rewards that are not binary."""
    reward = torch.tensor([0.3, 0.3, 0.3, 0.2, 0.9, 0.9])
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    assert ops.has_variance(reward, group).tolist() == [False, True, False]
    assert ops.advantages(torch.full((4,), 0.1), torch.zeros(4, dtype=torch.long), "batch").tolist() == [
        0,
        0,
        0,
        0,
    ]


@pytest.mark.parametrize("seed", range(5))
def test_token_weights_equal_the_formulas(seed: int) -> None:
    group, sample, _ = ragged(seed)
    values = torch.randn(len(sample), generator=torch.Generator().manual_seed(seed))
    per_prompt, per_sample = [], []
    for g in group.unique():
        members = [i for i in range(len(group)) if group[i] == g]
        tokens = torch.cat([values[sample == i] for i in members])
        per_prompt.append(tokens.mean())
        per_sample.append(torch.stack([values[sample == i].mean() for i in members]).mean())
    expected = {
        "prompt": torch.stack(per_prompt).mean(),
        "sample": torch.stack(per_sample).mean(),
        "token": values.mean(),
    }
    for aggregation, value in expected.items():
        weight = ops.token_weights(sample, group, aggregation)  # type: ignore[arg-type]
        assert float(weight.sum()) == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close((weight * values).sum(), value)


def test_prompt_and_token_aggregation_differ() -> None:
    """Trap: what the paper calls DAPO averages by prompt; others average by token."""
    sample, group = torch.tensor([0, 1, 2, 2, 2, 2, 3]), torch.tensor([0, 0, 1, 1])
    assert ops.token_weights(sample, group, "prompt").tolist() == pytest.approx([0.25, 0.25, *[0.1] * 5])
    assert ops.token_weights(sample, group, "token").tolist() == pytest.approx([1 / 7] * 7)


def test_cispo_gradient_is_the_capped_policy_gradient() -> None:
    behaviour = torch.log(torch.tensor([0.5, 0.1, 0.9]))
    logp = torch.log(torch.tensor([0.25, 0.8, 0.9])).requires_grad_()
    advantage = torch.tensor([2.0, 1.0, -3.0])
    terms = ops.cispo(logp, behaviour, advantage, cap=5.0)
    (gradient,) = torch.autograd.grad(terms.term.sum(), logp)
    assert gradient.tolist() == pytest.approx([-0.5 * 2, -5.0 * 1, 1.0 * 3])
    assert terms.limited.tolist() == [False, True, False]
    assert terms.ratio.tolist() == pytest.approx([0.5, 8.0, 1.0])


def test_the_cap_is_the_cap_and_there_is_no_lower_one() -> None:
    """Trap: 1+ε in most frameworks."""
    logp = torch.tensor([math.log(4.9), math.log(5.5), math.log(1e-4)])
    coefficient = -torch.autograd.grad(
        ops.cispo(x := logp.clone().requires_grad_(), torch.zeros(3), torch.ones(3), cap=5.0).term.sum(), x
    )[0]
    assert coefficient.tolist() == pytest.approx([4.9, 5.0, 1e-4], rel=1e-4)


def test_on_policy_all_losses_have_reinforces_gradient() -> None:
    _, sample, _ = ragged(3)
    generator = torch.Generator().manual_seed(1)
    logp = -torch.rand(len(sample), generator=generator)
    per_sample = torch.randn(int(sample.max()) + 1, generator=generator)
    advantage = per_sample[sample]

    def gradient(loss: str) -> torch.Tensor:
        x = logp.clone().requires_grad_()
        match loss:
            case "cispo":
                terms = ops.cispo(x, logp, advantage)
            case "clipped":
                terms = ops.clipped(x, logp, advantage)
            case "gspo":
                terms = ops.gspo(x, logp, advantage, sample)
            case _:
                terms = ops.reinforce(x, logp, advantage)
        return torch.autograd.grad(terms.term.sum(), x)[0]

    for loss in ("cispo", "clipped", "gspo"):
        torch.testing.assert_close(gradient(loss), gradient("reinforce"))


def test_clipped_has_no_gradient_beyond_the_clip_on_the_winning_side_only() -> None:
    behaviour = torch.zeros(4)
    logp = torch.log(torch.tensor([1.5, 0.5, 1.5, 0.5])).requires_grad_()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    terms = ops.clipped(logp, behaviour, advantage, 0.2, 0.26)
    assert terms.term.tolist() == pytest.approx([-1.26, -0.5, 1.5, 0.8])
    (gradient,) = torch.autograd.grad(terms.term.sum(), logp)
    assert gradient.tolist() == pytest.approx([0, -0.5, 1.5, 0])
    assert terms.limited.tolist() == [True, False, False, True]


def test_gspo_uses_the_length_normalised_sequence_ratio() -> None:
    sample = torch.tensor([0, 0, 1])
    logp = torch.tensor([0.1, 0.2, 0.5])
    terms = ops.gspo(logp, torch.zeros(3), torch.ones(3), sample, 0.2, 0.2)
    assert terms.ratio.tolist() == pytest.approx([math.exp(0.15)] * 2 + [math.exp(0.5)])
    assert terms.limited.tolist() == [False, False, True]


@pytest.mark.parametrize("loss", ["cispo", "clipped", "reinforce"])
def test_gradients_by_finite_differences(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logp = (-torch.rand(6, generator=generator, dtype=torch.float64)).requires_grad_()
    behaviour = logp.detach() + 0.05
    advantage = torch.randn(6, generator=generator, dtype=torch.float64)
    if loss == "clipped":
        assert torch.autograd.gradcheck(lambda x: ops.clipped(x, behaviour, advantage).term, (logp,))
        return
    fixed = logp.detach()  # the ratio is a constant: freeze it for the numerical derivative
    op = ops.cispo if loss == "cispo" else ops.reinforce
    (analytic,) = torch.autograd.grad(op(logp, behaviour, advantage).term.sum(), logp)
    ratio = (fixed - behaviour).exp() if loss == "cispo" else torch.ones_like(fixed)
    torch.testing.assert_close(analytic, -ratio * advantage)


def test_mismatch_estimators_agree_with_the_exact_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(8, generator=generator).log_softmax(-1)
    q = (p + 0.2 * torch.randn(8, generator=generator)).log_softmax(-1)
    exact = float((p.exp() * (p - q)).sum())
    draws = torch.multinomial(p.exp(), 200_000, replacement=True, generator=generator)
    kl = ops.mismatch_kl(q[draws], p[draws])
    assert float(kl.kl_k1) == pytest.approx(exact, abs=3e-3)
    assert float(kl.kl_k3) == pytest.approx(exact, abs=1e-3)
    assert ops.mismatch_kl(p, p) == (0, 0)


# -- KL-Cov and Clip-Cov ---------------------------------------------------------------------------------------------


def test_kl_cov_takes_the_largest_covariances() -> None:
    generator = torch.Generator().manual_seed(2)
    logps, advantages = torch.randn(2, 500, generator=generator)
    covariance = [
        float((a - logps.mean()) * (b - advantages.mean())) for a, b in zip(logps, advantages, strict=True)
    ]
    mask = ops.kl_cov(logps, advantages, 0.02)
    top = sorted(range(500), key=lambda i: -covariance[i])[:10]
    assert set(mask.nonzero().flatten().tolist()) == set(top)
    assert int(ops.kl_cov(logps, advantages, 1e-6).sum()) == 1
    assert not len(ops.kl_cov(torch.zeros(0), torch.zeros(0)))
    assert torch.isclose(
        ops.covariances(logps, advantages).mean() * 500 / 499,
        torch.cov(torch.stack([logps, advantages]))[0, 1],
    )


def test_clip_cov_draws_evenly_from_the_window() -> None:
    logps, advantages = torch.randn(2, 400, generator=torch.Generator().manual_seed(3))
    covariance = ops.covariances(logps, advantages)
    allowed = (covariance >= 0.5) & (covariance <= 2.0)
    count = int(allowed.sum())
    generator = torch.Generator().manual_seed(4)
    hits = torch.zeros(400)
    for _ in range(2000):
        mask = ops.clip_cov(logps, advantages, generator, fraction=0.025, low=0.5, high=2.0)
        assert int(mask.sum()) == 10
        assert not mask[~allowed].any()
        hits += mask
    spread = math.sqrt(2000 * 10 / count)
    assert float((hits[allowed] - 2000 * 10 / count).abs().max()) < 5 * spread
    assert not ops.clip_cov(logps, advantages, generator, low=1e6, high=1e7).any()
    everything = ops.clip_cov(logps, advantages, generator, fraction=1.0, low=0.5, high=2.0)
    assert torch.equal(everything, allowed)


def test_overlong_penalty_by_hand_and_against_a_loop() -> None:
    lengths = torch.arange(0, 121)
    penalty = ops.overlong_penalty(lengths, 100, 20)
    assert penalty[[79, 80, 90, 99, 100, 120]].tolist() == pytest.approx([0, 0, -0.5, -0.95, -1, -1])
    for length, value in zip(lengths.tolist(), penalty.tolist(), strict=True):
        assert value == pytest.approx(min(0.0, max(-1.0, (100 - length) / 20 - 1)))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_penalty_equals_a_loop(estimator: ops.KLEstimator) -> None:
    group, sample, _ = ragged(3)
    logp, ref = -torch.rand(len(sample)) * 3, -torch.rand(len(sample)) * 3
    expected = [0.0] * len(group)
    for i, p, q in zip(sample.tolist(), logp.tolist(), ref.tolist(), strict=True):
        d = p - q
        expected[i] += {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[estimator]
    got = ops.kl_penalty(logp, ref, sample, len(group), estimator)
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_values_and_gradients_of_the_kl_estimators_over_all_outcomes() -> None:
    """Exact expectations over five tokens: k1 and k3 have the KL as their mean; the gradients are those of the docstring."""
    logits = torch.tensor([0.3, -1.0, 0.7, 0.0, 1.5], requires_grad=True)
    ref_logp = torch.tensor([1.0, 0.2, -0.4, 0.1, 0.0]).log_softmax(0)
    logp = logits.log_softmax(0)
    p = logp.detach().exp()
    mean = float((p * (logp.detach() - ref_logp)).sum())
    reverse = (logp.exp() * (logp - ref_logp)).sum()
    forward = (ref_logp.exp() * (ref_logp - logp)).sum()
    for estimator in ("k1", "k3"):
        assert float((p * ops.kl_estimate(logp.detach(), ref_logp, estimator)).sum()) == pytest.approx(mean)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    def as_loss(estimator: ops.KLEstimator) -> torch.Tensor:
        return gradient((p * ops.kl_estimate(logp, ref_logp, estimator)).sum())

    reward = -ops.kl_estimate(logp, ref_logp, "k1").detach()
    in_reward = gradient(-(p * reward * logp).sum())  # REINFORCE
    torch.testing.assert_close(in_reward, gradient(reverse))
    torch.testing.assert_close(as_loss("k2"), gradient(reverse))
    torch.testing.assert_close(as_loss("k3"), gradient(forward))
    torch.testing.assert_close(as_loss("k1"), torch.zeros(5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_learning_rates_are_those_of_torchs_schedulers(schedule: ops.LRSchedule, warmup: int) -> None:
    steps, peak, final = 30, 3e-4, 0.1
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    rest = steps - warmup
    after = {
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, final, total_iters=rest),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rest, eta_min=final * peak),
    }[schedule]()
    got = [ops.learning_rate(n, peak, warmup, steps, schedule, final) for n in range(steps + 1)]
    assert got[:warmup] == pytest.approx([peak * (n + 1) / warmup for n in range(warmup)])
    for value in got[warmup:]:
        assert value == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        after.step()
    assert ops.learning_rate(10 * steps, peak, warmup, steps, schedule, final) == got[-1]
