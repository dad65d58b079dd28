"""MARA and its rivals: values by hand, loops, enumeration of all subsets, invariances."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.mara import ops

P, G = 4, 6
seeds = st.integers(0, 10_000)


def groups(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rewards with many ties, reference and policy log-probs), each [P, G]; the last prompt has no good sample."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 3, (P, G), generator=generator) / 2
    rewards[-1] = rewards[-1].clamp(max=0.5)
    ref, policy = -20 * torch.rand(2, P, G, generator=generator)
    return rewards, ref, policy


def by_loop(rewards: list[float], ref: list[float], tau: float, beta: float) -> list[float]:
    """The formula for one prompt, in Python floats."""
    good = [i for i in range(len(rewards)) if rewards[i] >= tau]
    if not good or beta == 0:
        return rewards
    z = max(good, key=lambda i: (ref[i], rewards[i]))
    return [rewards[z] + beta * (ref[z] - ref[i]) if i in good else rewards[i] for i in range(len(rewards))]


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.01, 0.5]))
def test_mara_equals_a_loop_over_prompts(seed: int, beta: float) -> None:
    rewards, ref, _ = groups(seed)
    tau = torch.tensor([0.5, 1.0, 0.0, 1.0])
    found = ops.mara(rewards, ref, tau=tau, beta=beta)
    expected = [by_loop(*row, beta) for row in zip(rewards.tolist(), ref.tolist(), tau.tolist(), strict=True)]
    torch.testing.assert_close(found.rewards, torch.tensor(expected), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found.bonus, found.rewards - rewards)
    assert torch.equal(found.good, rewards >= tau.unsqueeze(1))


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_log_reference_plus_reward_over_beta_is_constant_over_good_samples(seed: int) -> None:
    """The theorem that makes the optimum uniform, with rewards that differ among the good samples."""
    rewards, ref, _ = groups(seed)
    found = ops.mara(rewards.double(), ref.double(), tau=0.5, beta=0.3)
    level = ref.double() + found.rewards / 0.3
    for row, good in zip(level, found.good, strict=True):
        if good.any():
            assert float(row[good].max() - row[good].min()) < 1e-9


def test_anchors_are_per_prompt() -> None:
    """A batch-wide anchor would be the second prompt's −1, and lift the first prompt's only good sample by 9."""
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    ref = torch.tensor([[-10.0, -1.0], [-1.0, -3.0]])
    assert ops.mara(rewards, ref, tau=1.0, beta=1.0).rewards.tolist() == [[1.0, 0.0], [1.0, 3.0]]


def test_a_prompt_without_good_samples_is_unchanged() -> None:
    rewards, ref, _ = groups(3)
    found = ops.mara(rewards, ref, tau=1.0, beta=0.5)
    assert torch.equal(found.rewards[-1], rewards[-1])
    assert not found.good[-1].any()
    assert found.anchor.ref_logps[-1] == -math.inf
    assert torch.isfinite(found.rewards).all()
    assert torch.isfinite(found.bonus).all()


def test_beta_zero_is_inert_even_if_good_rewards_differ() -> None:
    rewards, ref, _ = groups(4)
    found = ops.mara(rewards, ref, tau=0.5, beta=0.0)
    assert torch.equal(found.rewards, rewards)
    assert not found.bonus.any()


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_impossible_betas_are_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta is the coefficient"):
        ops.mara(torch.ones(1, 2), -torch.ones(1, 2), tau=1.0, beta=beta)


@settings(max_examples=30, deadline=None)
@given(seeds, st.permutations(range(G)))
def test_the_order_of_samples_does_not_matter(seed: int, order: list[int]) -> None:
    """Reference log-probs are rounded to make ties, which must not be settled by position."""
    rewards, ref, policy = groups(seed)
    ref = (ref / 5).round() * 5
    once = ops.mara(rewards, ref, tau=0.5, beta=0.5)
    again = ops.mara(rewards[:, order], ref[:, order], tau=0.5, beta=0.5)
    assert torch.equal(once.rewards[:, order], again.rewards)
    advantages = ops.centre_and_scale(ops.total_reward(once.rewards, policy, ref, 0.5))
    permuted = ops.centre_and_scale(ops.total_reward(again.rewards, policy[:, order], ref[:, order], 0.5))
    torch.testing.assert_close(advantages[:, order], permuted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        ops.unlikeliness(rewards, ref)[:, order], ops.unlikeliness(rewards[:, order], ref[:, order])
    )


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([-8.0, 0.5, 16.0]))
def test_a_shift_of_rewards_and_threshold_shifts_the_result(seed: int, shift: float) -> None:
    rewards, ref, policy = groups(seed)
    once = ops.mara(rewards, ref, tau=0.5, beta=0.5).rewards
    again = ops.mara(rewards + shift, ref, tau=0.5 + shift, beta=0.5).rewards
    torch.testing.assert_close(once + shift, again)
    first, second = (ops.centre_and_scale(ops.total_reward(r, policy, ref, 0.5)) for r in (once, again))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(-30, 30))
def test_a_shift_of_reference_log_probs_does_not_matter(seed: int, shift: float) -> None:
    rewards, ref, _ = groups(seed)
    once, again = (ops.mara(rewards, r, tau=0.5, beta=0.5).rewards for r in (ref, ref + shift))
    torch.testing.assert_close(once, again, rtol=1e-4, atol=1e-4)


def test_a_stored_anchor_replaces_the_search_and_nan_means_search() -> None:
    """Row 0: stored R(z) = 2 at −1. Row 1: searched."""
    rewards, ref = torch.ones(2, 2), torch.tensor([[-3.0, -5.0], [-3.0, -5.0]])
    stored = ops.Anchor(torch.tensor([2.0, math.nan]), torch.tensor([-1.0, math.nan]))
    found = ops.mara(rewards, ref, tau=1.0, beta=0.5, anchor=stored)
    assert found.rewards.tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert found.anchor.ref_logps.tolist() == [-1.0, -3.0]


def test_the_bonus_is_cut_on_both_sides() -> None:
    """A stored anchor rarer than a sample lowers that sample."""
    stored = ops.Anchor(torch.tensor([1.0]), torch.tensor([-5.0]))
    ref = torch.tensor([[-1.0, -5.5, -99.0]])
    found = ops.mara(torch.ones(1, 3), ref, tau=1.0, beta=1.0, anchor=stored, max_bonus=2.0)
    assert found.bonus.tolist() == [[-2.0, 0.5, 2.0]]


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.5]))
def test_the_entropy_form_needs_no_reference_of_good_samples(seed: int, beta: float) -> None:
    rewards, ref, policy = groups(seed)
    augmented = ops.mara(rewards, ref, tau=0.5, beta=beta)
    expected = ops.total_reward(augmented.rewards, policy, ref, beta)
    unknown = torch.where(augmented.good, math.nan, ref)
    found = ops.anchored_total(rewards, policy, unknown, augmented.anchor, tau=0.5, beta=beta)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_percentile_thresholds_by_hand() -> None:
    rewards = torch.tensor([[4.0, 0.0, 1.0, 3.0, 2.0], [7.0, 7.0, 7.0, 7.0, 7.0]])
    assert ops.percentile_threshold(rewards, 90.0).tolist() == pytest.approx([3.6, 7.0])  # and just above 7
    assert (rewards >= ops.percentile_threshold(rewards, 90.0).unsqueeze(1)).sum(1).tolist() == [1, 0]
    with pytest.raises(ValueError, match="0 to 100"):
        ops.percentile_threshold(rewards, 101.0)


# -- advantages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_centre_and_scale_equals_a_loop(norm: ops.Normalisation) -> None:
    total = torch.randn(P, G, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1.0], [9.0], [0.1], [2.0]]
    )
    rows = [[x - sum(row) / G for x in row] for row in total.tolist()]
    everything = math.sqrt(sum(x * x for row in rows for x in row) / (P * G))
    own = [math.sqrt(sum(x * x for x in row) / G) for row in rows]
    scale = {"group": own, "batch": [everything] * P, "none": [1.0] * P}[norm]
    expected = [[x / s for x in row] for row, s in zip(rows, scale, strict=True)]
    torch.testing.assert_close(
        ops.centre_and_scale(total, norm), torch.tensor(expected), rtol=1e-4, atol=1e-5
    )


def test_integer_weights_are_repetitions() -> None:
    weighted = ops.centre_and_scale(torch.tensor([[1.0, 5.0]]), "group", torch.tensor([[3.0, 1.0]]))
    repeated = ops.centre_and_scale(torch.tensor([[1.0, 1.0, 1.0, 5.0]]))
    torch.testing.assert_close(weighted, repeated[:, [0, 3]])


def test_rounding_noise_at_the_optimum_is_not_scaled_up() -> None:
    """Totals around 1,000 that are equal in exact arithmetic differ by 6e-5 in fp32."""
    noise = torch.tensor([[1000.0, 1000.0001, 1000.0, 999.9999]])
    assert float(noise.std()) > 0
    assert not ops.centre_and_scale(noise).any()


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_pass_at_k_advantages_equal_the_enumeration_of_all_subsets(size: int) -> None:
    for k in range(1, size + 1):
        for right in range(size + 1):
            passed = [i < right for i in range(size)]
            subsets = list(itertools.combinations(range(size), k))
            reward = {s: float(any(passed[i] for i in s)) for s in subsets}
            mean = sum(reward.values()) / len(subsets)
            deviation = math.sqrt(sum((r - mean) ** 2 for r in reward.values()) / len(subsets))
            mine = [[(reward[s] - mean) for s in subsets if i in s] for i in range(size)]
            expected = [sum(m) / len(m) / deviation if deviation > 1e-12 else 0.0 for m in mine]
            found = ops.pass_at_k_advantages(torch.tensor([passed]), k)[0]
            assert found.tolist() == pytest.approx(expected, abs=1e-6), (k, right)


def test_pass_at_1_is_grpo_and_k_outside_the_group_is_refused() -> None:
    passed = torch.tensor([[True, False, False, True, False], [True] * 5])
    torch.testing.assert_close(ops.pass_at_k_advantages(passed, 1), ops.centre_and_scale(passed.float()))
    with pytest.raises(ValueError, match="1 to 5"):
        ops.pass_at_k_advantages(passed, 6)


# -- the other rivals ------------------------------------------------------------------------------------------------


def test_unlikeliness_by_hand() -> None:
    """G = 4, β = .25: factors .75, .8125, .875, .9375 from likely to rare; ties share the mean rank; wrong stays 0."""
    rewards = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]])
    logps = torch.tensor([[-3.0, -1.0, -2.0, -4.0], [-1.0, -1.0, -2.0, -3.0]])
    assert ops.unlikeliness(rewards, logps).tolist() == [
        [0.875, 0.75, 0.8125, 0.9375],
        [0.78125, 0.78125, 0.0, 0.9375],
    ]


def test_mara_and_the_entropy_bonus_agree_where_all_samples_are_good() -> None:
    """Both totals are −β·log π_θ plus a constant of the prompt, so their advantages are equal."""
    _, ref, policy = groups(5)
    rewards = torch.ones(P, G)
    ours = ops.total_reward(ops.mara(rewards, ref, tau=1.0, beta=0.2).rewards, policy, ref, 0.2)
    torch.testing.assert_close(
        ops.centre_and_scale(ours),
        ops.centre_and_scale(ops.entropy_bonus(rewards, policy, 0.2)),
        rtol=1e-3,
        atol=1e-4,
    )


def test_differential_smoothing_is_an_entropy_bonus_on_correct_and_a_penalty_on_wrong_samples() -> None:
    rewards, _, policy = groups(6)
    found = ops.differential_smoothing(rewards, policy, tau=1.0, correct=0.3, incorrect=0.2)
    good = rewards >= 1.0
    torch.testing.assert_close(found[good], ops.entropy_bonus(rewards, policy, 0.3)[good])
    torch.testing.assert_close(found[~good], ops.entropy_bonus(rewards, policy, -0.2)[~good])


def test_the_diversity_filter_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    answers = torch.randint(0, 5, (60,), generator=generator)
    rewards = torch.rand(60, generator=generator)
    counts = torch.tensor([0, 1, 2, 3, 9])
    expected, held = [], counts.tolist()
    for answer, reward in zip(answers.tolist(), rewards.tolist(), strict=True):
        counted = reward >= 0.4
        expected.append(0.0 if counted and held[answer] >= 3 else reward)
        held[answer] += counted
    found = ops.diversity_filter(rewards, answers, counts, bucket_size=3, minimum=0.4)
    assert found.rewards.tolist() == expected
    assert found.counts.tolist() == held
    first = ops.diversity_filter(rewards[:25], answers[:25], counts, bucket_size=3, minimum=0.4)
    second = ops.diversity_filter(rewards[25:], answers[25:], first.counts, bucket_size=3, minimum=0.4)
    assert torch.equal(torch.cat([first.rewards, second.rewards]), found.rewards)


def test_flow_rl_is_reinforce_on_the_total_with_the_best_log_z() -> None:
    """The paper's square, written out, with log Z at its least squares: its gradient is −2·(centred total)/|y|."""
    rewards, ref, policy = groups(7)
    lengths = torch.arange(1, G + 1).expand(P, G)
    scaled = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, correction=0, keepdim=True)
    policy = policy.clone().requires_grad_()
    per_token = policy / lengths - ref / lengths - 15 * scaled
    log_z = -per_token.mean(1, keepdim=True).detach()
    (gradient,) = torch.autograd.grad((log_z + per_token).square().sum(), policy)
    total = ops.flow_rl(rewards, policy.detach(), ref, lengths)
    centred = ops.centre_and_scale(total, "none")
    torch.testing.assert_close(gradient, -2 * centred / lengths, rtol=1e-4, atol=1e-4)
    optimum = lengths * (ref / lengths + 15 * scaled - torch.tensor([[0.3], [-1.0], [2.0], [0.0]]))
    assert float(ops.centre_and_scale(ops.flow_rl(rewards, optimum, ref, lengths), "none").abs().max()) < 1e-4


def test_replay_weights_make_a_mixed_group_count_as_one_of_the_policy() -> None:
    """E_q[w·f] = E_π[f] exactly, q the mixture, for any f; with all answers known w = π/((1−s)π + s·u)."""
    policy = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    known, size, replayed = torch.tensor([True, False, True, True]), 8, 2
    uniform = known / known.sum()
    mixture = (policy * (size - replayed) + uniform * replayed) / size
    logps, marks = (
        policy.log().repeat(2, 2),
        known.repeat(2, 2),
    )  # the eight members of a group, any of the answers
    weights = ops.replay_weights(logps, marks, torch.tensor([3, 3]), replayed)[0, :4]
    torch.testing.assert_close(mixture * weights, policy)
    assert float(weights.max()) <= size / (size - replayed)
    impossible = ops.replay_weights(
        torch.full((1, 4), -1e4), torch.ones(1, 4, dtype=torch.bool), torch.tensor([1]), 1
    )
    assert impossible.tolist() == [pytest.approx([0.0] * 4, abs=1e-20)]


def test_joint_logps_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(8)
    sequences = torch.randint(0, 6, (5, 12), generator=generator)
    answers = sequences // 2  # two spellings of each answer
    ref = torch.randn(6, generator=generator)[sequences]
    found = ops.joint_logps(ref, answers, sequences)
    for row in range(5):
        for i in range(12):
            spellings = {
                int(s): float(r)
                for s, r, a in zip(sequences[row], ref[row], answers[row], strict=True)
                if a == answers[row, i]
            }
            expected = math.log(sum(math.exp(r) for r in spellings.values()))
            assert float(found[row, i]) == pytest.approx(expected, abs=1e-5)
    alone = ops.joint_logps(ref, sequences, sequences)
    torch.testing.assert_close(alone, ref)


def test_mara_over_answers_is_uniform_over_answers_at_its_fixed_point() -> None:
    """Where π_θ is uniform over two answers, and within them as the reference has it, totals of good samples are equal."""
    ref = torch.tensor([[0.4, 0.1, 0.02]]).log()  # the first two are one answer
    answers, sequences = torch.tensor([[0, 0, 1]]), torch.tensor([[0, 1, 2]])
    policy = torch.tensor([[0.4, 0.1, 0.5]]).log()
    rewards = torch.ones(1, 3)
    augmented = ops.mara(rewards, ops.joint_logps(ref, answers, sequences), tau=1.0, beta=0.3).rewards
    total = ops.total_reward(augmented, policy, ref, 0.3)
    torch.testing.assert_close(total, total[:, :1].expand(1, 3))
