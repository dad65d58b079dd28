"""Closed forms, and whether training reaches them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.mara import ops, tabular, theory
from postgrad.mara.tabular import Settings

REF = np.array([0.6, 0.02, 0.2, 0.1, 0.08])
REWARDS = np.array([1.0, 1.0, 0.0, 0.5, 0.0])

seeds = st.integers(0, 10_000)
betas = st.sampled_from([1e-3, 0.01, 0.1, 1.0, 30.0])


def problem(seed: int, answers: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """(a skewed reference, rewards of 0, ½ and 1), each [V]."""
    generator = np.random.default_rng(seed)
    ref = generator.dirichlet(np.full(answers, 0.5)) + 1e-6
    rewards = generator.integers(0, 3, answers) / 2
    rewards[:2] = 1.0
    return ref / ref.sum(), rewards


# -- closed forms ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([0.05, 0.5, 5.0]))
def test_reverse_kl_ratios(seed: int, beta: float) -> None:
    """log G1/G2 = log π_ref1/π_ref2 + (R1 − R2)/β, for every pair."""
    ref, rewards = problem(seed)
    optimum = theory.reverse_kl_optimum(ref, rewards, beta)
    assert optimum.sum() == pytest.approx(1)
    left = np.log(optimum)[:, None] - np.log(optimum)
    right = np.log(ref)[:, None] - np.log(ref) + (rewards[:, None] - rewards) / beta
    np.testing.assert_allclose(left, right, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seeds, betas)
def test_equal_rewards_keep_the_references_ratio_whatever_beta(seed: int, beta: float) -> None:
    """Why it is *designed* to collapse. Answers 0 and 1 have equal reward."""
    ref, rewards = problem(seed)
    optimum = theory.reverse_kl_optimum(ref, rewards, beta)
    assert optimum[0] / optimum[1] == pytest.approx(ref[0] / ref[1])


def test_equal_support_gives_the_exponential_ratio() -> None:
    optimum = theory.reverse_kl_optimum(np.full(4, 0.25), [1.0, 0.9, 0.0, 0.0], 0.05)
    assert optimum[0] / optimum[1] == pytest.approx(math.exp(0.1 / 0.05))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 0.9), st.floats(0.01, 0.09), st.floats(0.01, 1.0))
def test_at_the_crossover_two_answers_are_equally_likely(much: float, little: float, more: float) -> None:
    beta = theory.crossover_beta(much, little, 0.0, more)
    ref = np.array([much, little, 1 - much - little])
    rewards = np.array([0.0, more, 0.0])
    at, below, above = (theory.reverse_kl_optimum(ref, rewards, beta * f) for f in (1.0, 0.9, 1.1))
    assert at[0] == pytest.approx(at[1])
    assert below[0] < below[1]
    assert above[0] > above[1]


def test_without_a_trade_off_there_is_no_crossover() -> None:
    with pytest.raises(ValueError, match="less support"):
        theory.crossover_beta(0.8, 0.2, 1.0, 0.0)


@settings(max_examples=40, deadline=None)
@given(seeds, betas)
def test_forward_kl_normalises_and_its_multiplier_is_the_only_one(seed: int, beta: float) -> None:
    ref, rewards = problem(seed)
    optimum = theory.forward_kl_optimum(ref, rewards, beta)
    multiplier = float(theory.forward_kl_multiplier(ref, rewards, beta))
    assert optimum.sum() == pytest.approx(1, abs=1e-9)
    assert rewards.max() < multiplier <= rewards.max() + beta + 1e-12

    def mass(candidate: float) -> float:
        return float((beta * ref / (candidate - rewards)).sum())

    grid = rewards.max() + beta * np.geomspace(1e-6, 1.0, 200)
    values = np.array([mass(candidate) for candidate in grid])
    assert (np.diff(values) < 0).all()
    assert ((values > 1) == (grid < multiplier))[np.abs(values - 1) > 1e-6].all()


def test_forward_kl_optimum_is_stationary_by_finite_differences() -> None:
    """∂/∂G of Σ G·R + β·Σ π_ref·log G is Λ for every answer."""
    optimum = theory.forward_kl_optimum(REF, REWARDS, 0.2)

    def objective(policy: np.ndarray) -> float:
        return float((policy * REWARDS).sum() + 0.2 * (REF * np.log(policy)).sum())

    for a in range(len(REF)):
        step = np.zeros(len(REF))
        step[a], step[a - 1] = 1e-6, -1e-6
        assert (objective(optimum + step) - objective(optimum - step)) / 2e-6 == pytest.approx(0, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seeds, betas)
def test_mara_is_uniform_over_good_answers_even_if_their_rewards_differ(seed: int, beta: float) -> None:
    ref, rewards = problem(seed)
    good = rewards >= 0.5
    optimum = theory.mara_optimum(ref, rewards, beta, 0.5)
    np.testing.assert_allclose(optimum[good] / optimum[good].sum(), 1 / good.sum(), rtol=1e-9)
    np.testing.assert_array_equal(theory.mara_rewards(ref, rewards, beta, 0.5)[~good], rewards[~good])


def test_the_forward_kl_optimum_under_mara_is_not_uniform() -> None:
    """The paper's success with forward KL is empirical: .82 for the rare one of (.60, .02)."""
    ref, rewards = np.array([0.6, 0.02, 0.38]), np.array([1.0, 1.0, 0.0])
    augmented = theory.mara_rewards(ref, rewards, 0.1, 1.0)
    optimum = theory.forward_kl_optimum(ref, augmented, 0.1)
    assert optimum[1] / optimum[:2].sum() == pytest.approx(0.8198, abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_the_table_and_the_op_augment_alike(seed: int) -> None:
    ref, rewards = problem(seed)
    expected = theory.mara_rewards(ref, rewards, 0.3, 0.5)
    found = ops.mara(torch.tensor(rewards)[None], torch.tensor(ref)[None].log(), tau=0.5, beta=0.3)
    np.testing.assert_allclose(found.rewards[0].numpy(), expected, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from([-7.0, 3.0]), st.permutations(range(7)))
def test_optima_ignore_shifts_of_the_reward_and_follow_permutations(
    seed: int, shift: float, order: list[int]
) -> None:
    ref, rewards = problem(seed)
    for optimum in (theory.reverse_kl_optimum, theory.forward_kl_optimum):
        once = optimum(ref, rewards, 0.3)
        np.testing.assert_allclose(optimum(ref, rewards + shift, 0.3), once, rtol=1e-9)
        np.testing.assert_allclose(optimum(ref[order], rewards[order], 0.3), once[order], rtol=1e-9)
    rows = np.stack([ref, ref[order]])
    batched = theory.forward_kl_optimum(rows, np.stack([rewards, rewards[order]]), 0.3)
    np.testing.assert_allclose(batched[1], once[order], rtol=1e-9)


def test_an_answer_without_support_stays_without_mass() -> None:
    ref, rewards = [0.5, 0.5, 0.0], [0.0, 1.0, 2.0]
    for optimum in (theory.reverse_kl_optimum, theory.forward_kl_optimum):
        assert optimum(ref, rewards, 0.1)[2] == 0
        np.testing.assert_allclose(optimum(ref, rewards, 0.1)[:2], optimum(ref[:2], rewards[:2], 0.1))


@pytest.mark.parametrize(("ref", "beta", "words"), [([0.5, 0.5], 0.0, "beta"), ([0.5, 0.6], 1.0, "sum to 1")])
def test_impossible_problems_are_refused(ref: list[float], beta: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        theory.forward_kl_optimum(ref, [0.0, 1.0], beta)


# -- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_exact_gradient_flow_reaches_the_closed_form(
    direction: tabular.Direction, augment: bool, beta: float
) -> None:
    rewards = theory.mara_rewards(REF, REWARDS, beta, 1.0) if augment else REWARDS
    closed = (theory.reverse_kl_optimum if direction == "reverse" else theory.forward_kl_optimum)(
        REF, rewards, beta
    )
    policy = tabular.gradient_flow(torch.tensor(REF), torch.tensor(rewards), beta, direction, steps=3000)
    assert theory.total_variation(policy.numpy(), closed) < 1e-3
    assert theory.total_variation(REF, closed) > 0.05


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_the_exact_gradient_is_autograds(direction: tabular.Direction) -> None:
    logits = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    log_ref, rewards = torch.tensor(REF).log(), torch.tensor(REWARDS)
    log_policy = logits.log_softmax(-1)
    policy, ref = log_policy.exp(), log_ref.exp()
    kl = (
        (policy * (log_policy - log_ref)).sum()
        if direction == "reverse"
        else (ref * (log_ref - log_policy)).sum()
    )
    (expected,) = torch.autograd.grad((policy * rewards).sum() - 0.3 * kl, logits)
    found = tabular.exact_gradient(log_policy.detach(), log_ref, rewards, 0.3, direction)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("placement", "direction"), [("k1_reward", "reverse"), ("k2_loss", "reverse"), ("k3_loss", "forward")]
)
def test_the_expected_gradient_of_each_estimator_names_its_kl(
    placement: tabular.Placement, direction: tabular.Direction
) -> None:
    """Groups of two, all 25 enumerated, weighted by their chance. Centring by all G shrinks what is centred by (G − 1)/G."""
    log_policy = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).log_softmax(
        -1
    )
    log_ref, rewards = torch.tensor(REF).log(), torch.tensor(REWARDS)
    known = Settings(placement=placement, deviation="none", augment=False, group_size=2, leave_one_out=True)
    answers = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    one = torch.ones(25, 2, dtype=torch.float64)
    c = tabular.coefficients(
        rewards[answers], log_policy[answers], log_ref[answers], one, 0.3 * one[:, 0], known
    )
    gradients = tabular.policy_gradient(log_policy.expand(25, 5), answers, c)
    chance = log_policy[answers].sum(-1).exp().unsqueeze(-1)
    expected = tabular.exact_gradient(log_policy, log_ref, rewards, 0.3, direction)
    torch.testing.assert_close((chance * gradients).sum(0), expected)


def test_importance_weights_leave_the_expected_gradient_unchanged() -> None:
    """Two reference samples, one replayed, five of the policy: Σ w·f/G estimates E_π[f] for any f, here indicators."""
    chains, known = 20_000, Settings(group_size=8, reference_fraction=0.25, replay=0.125)
    assert known.sources() == (2, 1, 5)
    policy = torch.tensor([0.9, 0.001, 0.05, 0.04, 0.009], dtype=torch.float64)
    seen = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64).repeat(chains, 1)
    drawn = tabular.draw_group(
        policy.log().repeat(chains, 1), torch.tensor(REF), seen, known, torch.Generator().manual_seed(0)
    )
    assert float(drawn.weights.max()) <= 8 / 5
    estimates = torch.zeros(chains, 5, dtype=torch.float64).scatter_add_(1, drawn.answers, drawn.weights) / 8
    error = estimates.std(0) / math.sqrt(chains)
    assert bool(((estimates.mean(0) - policy).abs() < 4 * error).all())
    uncorrected = tabular.draw_group(
        policy.log().repeat(2, 1),
        torch.tensor(REF),
        seen[:2],
        Settings(reference_fraction=0.25, importance_power=0.0),
        torch.Generator(),
    )
    assert bool((uncorrected.weights == 1).all())


SKEWED = torch.cat([torch.tensor([0.6, 0.02]), torch.full((14,), 0.38 / 14)])
TWO_GOOD = torch.tensor([1.0, 1.0, *[0.0] * 14])


def shares(settings: Settings, beta: float = 0.1, chains: int = 16) -> tabular.Trained:
    """P(rare | good) and the rest after training `chains` seeds on π_ref good = (.60, .02)."""
    return tabular.train(
        SKEWED, TWO_GOOD, torch.full((chains,), beta), settings, torch.Generator().manual_seed(0)
    )


QUICK = {"steps": 1000, "learning_rate": 0.05}


def test_sampled_training_finds_what_theory_says_of_each_estimator() -> None:
    """Vanilla: .02/.62. MARA: ½. MARA with k3: the forward-KL optimum, .8198; centred by all eight, β is 8/7 times as large."""
    vanilla = shares(Settings(augment=False, deviation="none", **QUICK)).rare_given_good
    assert float(vanilla.mean()) == pytest.approx(0.02 / 0.62, abs=0.01)
    ours = shares(Settings(**QUICK))
    assert float((ours.rare_given_good - 0.5).abs().max()) < 0.05
    assert float(ours.good_mass.min()) > 0.98
    forward = shares(
        Settings(placement="k3_loss", deviation="none", leave_one_out=True, **QUICK)
    ).rare_given_good
    assert float(forward.mean()) == pytest.approx(0.8198, abs=0.02)
    shrunk = shares(Settings(placement="k2_loss", deviation="none", **QUICK)).rare_given_good
    assert float(shrunk.mean()) == pytest.approx(1 / (1 + 30 ** (1 / 8)), abs=0.03)


def test_scaling_the_reward_but_not_the_kl_overshoots() -> None:
    """The trap: dividing R̃ by its deviation multiplies the bonus, and the rare answer takes all."""
    found = shares(Settings(placement="k2_loss", deviation="augmented", **QUICK))
    assert float(found.rare_given_good.min()) > 0.95


def test_the_floor_of_the_deviation_quiets_the_end_and_not_the_way() -> None:
    """At the optimum totals differ by noise alone: unfloored advantages stay of size 1, floored ones vanish with it."""
    beta, one = torch.tensor([0.1, 0.001]).double(), torch.ones(2, 4).double()

    def sizes(difference: float, floor: float) -> list[float]:
        logps = difference * torch.tensor([[1.0, -1.0, 1.0, -1.0]] * 2).double()
        settings = Settings(augment=False, min_deviation=floor)
        found = tabular.coefficients(one, logps, 0 * one, one, beta, settings)
        return found.abs().flatten().tolist()

    assert sizes(0.01, 0.0) == pytest.approx([1.0] * 8)
    assert sizes(0.01, 1.0) == pytest.approx([0.01] * 8)
    assert sizes(3.0, 1.0) == pytest.approx([1.0] * 8)


def test_steps_to_uniform_is_the_first_step_of_the_last_stay() -> None:
    """Chains do not depend on how many steps follow, so each answer can be checked by stopping around it."""
    found = shares(Settings(**QUICK), chains=4)
    for chain, step in enumerate(found.steps_to_uniform.tolist()):
        assert 1 < step < 1000
        for steps, above in ((int(step) - 1, False), (int(step), True)):
            stopped = shares(Settings(steps=steps, learning_rate=0.05), chains=4)
            assert bool(stopped.rare_given_good[chain] >= 0.4) is above
    vanilla = shares(Settings(augment=False, deviation="none", steps=50), chains=4)
    assert bool(torch.isinf(vanilla.steps_to_uniform).all())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"placement": "k3_loss"}, "needs the KL in the reward"),
        ({"placement": "k4"}, "valid: k1_reward"),
        ({"reference_fraction": 0.5, "replay": 0.5}, "at least one must come from the policy"),
        ({"leave_one_out": True}, "deviation 'none'"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(**options)  # type: ignore[arg-type]


def test_training_without_a_good_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="a good answer"):
        tabular.train(SKEWED, 0 * TWO_GOOD, torch.tensor([0.1]), Settings(), torch.Generator())
