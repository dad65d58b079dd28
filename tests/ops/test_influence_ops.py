"""The equations of influence against slow references, closed forms and invariances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from postgrad.influence import ops


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ar1(rho: float, chains: int, steps: int, seed: int = 0) -> Tensor:
    """A stationary chain of known autocorrelation: [C, S, 1], variance 1."""
    noise = random(steps, chains, seed=seed) * (1 - rho**2) ** 0.5
    found = [random(chains, seed=seed + 1)]
    for step in range(1, steps):
        found.append(rho * found[-1] + noise[step])
    return torch.stack(found, 1).unsqueeze(-1)


# -- covariance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [[1] * 7, [7], [2, 4, 1], [6, 1]])
def test_moments_merged_in_any_blocks_are_those_of_all_draws(blocks: list[int]) -> None:
    left, right = random(7, 3) + 1e6, random(7, 2, seed=1) - 1e6  # a large mean breaks the textbook formula
    found = None
    for a, b in zip(left.split(blocks), right.split(blocks), strict=True):
        one = ops.moments(a, b)
        found = one if found is None else ops.merge_moments(found, one)
    assert found is not None
    expected = torch.cov(torch.cat([left - 1e6, right + 1e6], 1).T)[:3, 3:]
    torch.testing.assert_close(ops.covariance(found), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.left, left.mean(0))


def test_one_draw_has_no_covariance() -> None:
    assert ops.covariance(ops.moments(random(1, 2), random(1, 2))).isnan().all()


def test_covariance_is_taken_within_chains() -> None:
    query, train = random(3, 50, 2), random(3, 50, 4, seed=1)
    per_chain = ops.chain_covariances(query, train)
    for chain in range(3):
        for q in range(2):
            for n in range(4):
                expected = torch.cov(torch.stack([query[chain, :, q], train[chain, :, n]]))[0, 1]
                torch.testing.assert_close(per_chain[chain, q, n], expected)
    apart = torch.arange(3.0, dtype=torch.float64)[:, None, None] * 100  # chains elsewhere: no influence
    torch.testing.assert_close(ops.chain_covariances(query + apart, train + apart), per_chain)
    torch.testing.assert_close(ops.bif(per_chain), -per_chain)


def test_correlation_is_that_of_torch_with_one_chain() -> None:
    query, train = random(1, 60, 2), random(1, 60, 3, seed=1)
    expected = torch.corrcoef(torch.cat([query[0], train[0]], 1).T)[:2, 2:]
    torch.testing.assert_close(ops.correlation(query, train), expected)
    torch.testing.assert_close(ops.correlation(5 * query - 3, train), expected)


def test_scores_of_tokens_add_up_to_those_of_sequences() -> None:
    lengths = torch.tensor([3, 1, 4])
    tokens, train = random(1, 40, 8), random(1, 40, 5, seed=1)
    sequences = torch.stack([part.sum(-1) for part in tokens.split(lengths.tolist(), -1)], -1)
    by_token = ops.chain_covariances(tokens, train)[0]
    torch.testing.assert_close(ops.sum_tokens(by_token, lengths), ops.chain_covariances(sequences, train)[0])


def test_standard_errors_cover_the_truth() -> None:
    """Of 400 means of 8 chains as many lie within t(7) = 2.365 standard errors as should: 95 %."""
    mean, error = ops.mean_and_error(random(8, 400))
    inside = (mean.abs() < 2.365 * error).double().mean().item()
    assert abs(inside - 0.95) < 4 * (0.95 * 0.05 / 400) ** 0.5
    assert ops.mean_and_error(random(1, 3))[1].isnan().all()


# -- trust -----------------------------------------------------------------------------------------------------------


def test_r_hat_tells_mixed_chains_from_others() -> None:
    mixed = random(4, 500, 1)
    assert ops.r_hat(mixed).item() < 1.01
    apart = mixed + torch.arange(4.0, dtype=torch.float64)[:, None, None]
    assert ops.r_hat(apart).item() > 1.3
    trend = mixed + torch.linspace(0, 3, 500, dtype=torch.float64)[None, :, None]
    assert ops.r_hat(trend).item() > 1.1  # the halves differ, though the chains do not
    torch.testing.assert_close(ops.r_hat(7 * apart - 2), ops.r_hat(apart))
    assert ops.r_hat(torch.zeros(2, 8, 1)).item() == 1


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_effective_sample_size_is_that_of_theory(rho: float) -> None:
    draws = ar1(rho, 8, 4000)
    expected = draws.numel() * (1 - rho) / (1 + rho)
    assert ops.effective_sample_size(draws).item() == pytest.approx(expected, rel=0.15)
    assert ops.effective_sample_size(torch.ones(2, 10, 1)).item() == 20


@pytest.mark.parametrize(
    ("rho", "chains", "steps"), [(0.0, 1, 60), (0.6, 1, 400), (0.6, 4, 100), (0.9, 4, 300)]
)
def test_the_interval_of_a_mean_covers_it_as_often_as_it_says(rho: float, chains: int, steps: int) -> None:
    """Of 300 intervals 95 % are 285 ± 8 (two deviations); the estimated effective number costs some."""
    found = [ops.mean_interval(ar1(rho, chains, steps, seed=2 * seed)[..., 0]) for seed in range(300)]
    assert 272 <= sum(one.low <= 0 <= one.high for one in found) <= 297
    exact = 1.96 * ((1 + rho) / (1 - rho) / (chains * steps)) ** 0.5
    width = sum(one.high - one.value for one in found) / 300
    assert width == pytest.approx(exact, rel=0.2)


def test_chains_in_different_places_widen_the_interval() -> None:
    apart = ar1(0.0, 4, 100)[..., 0]
    narrow = ops.mean_interval(apart)
    wide = ops.mean_interval(apart + torch.tensor([-3.0, -1.0, 1.0, 3.0])[:, None])
    assert wide.value == pytest.approx(narrow.value)
    assert wide.high - wide.low > 20 * (narrow.high - narrow.low)
    means = torch.tensor([-3.0, -1.0, 1.0, 3.0])
    assert wide.high - wide.value > 1.96 * float(means.std()) / 2  # no narrower than by the four means


def test_drift_and_common_mode() -> None:
    still = random(2, 400, 3)
    assert ops.drift(still).abs().max() < 0.15
    slope = torch.linspace(0, 20, 400, dtype=torch.float64)[None, :, None]
    assert ops.drift(still - slope).max() < -0.95
    assert ops.common_mode(still).item() == pytest.approx(1 / 3, abs=0.05)
    assert ops.common_mode(still + slope).item() > 0.9
    assert ops.common_mode(torch.zeros(1, 3, 2)).item() == 0


# -- ranks -----------------------------------------------------------------------------------------------------------


def test_ranks_and_spearman_against_a_loop() -> None:
    values = torch.tensor([[3.0, 1.0, 3.0, 2.0, 3.0, -1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    for row, found in zip(values.tolist(), ops.ranks(values).tolist(), strict=True):
        expected = [sum(other < x for other in row) + (row.count(x) - 1) / 2 for x in row]
        assert found == expected
    a, b = random(4, 30), random(4, 30, seed=1)
    expected = torch.stack(
        [torch.corrcoef(torch.stack([ops.ranks(x), ops.ranks(y)]))[0, 1] for x, y in zip(a, b, strict=True)]
    )
    torch.testing.assert_close(ops.spearman(a, b), expected)
    torch.testing.assert_close(ops.spearman(a.exp(), b), expected)  # only the order counts
    assert ops.spearman(torch.ones(5), b[0, :5]).item() == 0


def test_lds_against_a_loop() -> None:
    scores, subsets, outputs = random(3, 12), random(20, 12, seed=1) > 0, random(3, 20, seed=2)
    found = ops.linear_datamodeling_score(scores, subsets, outputs)
    for query in range(3):
        sums = torch.stack([scores[query][subset].sum() for subset in subsets])
        torch.testing.assert_close(found[query], ops.spearman(sums, outputs[query]))
    exact = scores @ subsets.T.double()
    torch.testing.assert_close(
        ops.linear_datamodeling_score(scores, subsets, exact), torch.ones(3, dtype=torch.float64)
    )


def test_stability_of_ranks() -> None:
    truth = random(1, 5, 200)
    assert ops.rank_stability(truth + 0.01 * random(4, 5, 200, seed=1)).min() > 0.99
    assert ops.rank_stability(random(4, 5, 200, seed=2)).abs().max() < 0.4
    noisy = truth + random(
        8, 5, 200, seed=3
    )  # the mean of 8 has 8/9 of its variance from the truth, so has another mean of 8
    assert ops.rank_stability(noisy).mean() == pytest.approx(8 / 9, abs=0.03)


# -- steps: stationary laws ------------------------------------------------------------------------------------------


def run_chains(kind: str, step_size: float, precision: Tensor, steps: int = 400) -> Tensor:
    """Variance on each axis of 20,000 parallel chains on the quadratic loss ½Σ h·z², nβ = 10, γ = 5."""
    curvature = torch.tensor([1.0, 20.0], dtype=torch.float64)
    options = {"step_size": step_size, "num_tempered": 10.0, "localization": 5.0}
    z, noise = torch.zeros(20_000, 2, dtype=torch.float64), random(20_000, 2)
    squares = torch.zeros_like(z)
    for step in range(steps):
        following = random(20_000, 2, seed=step + 1)
        if kind == "langevin":
            z = ops.langevin_step(z, curvature * z, noise, following, precision, **options)
        elif kind == "sgld":
            z = ops.sgld_step(z, curvature * z, noise, **options)
        else:
            z, squares = ops.rmsprop_step(
                z, curvature * z, noise, squares, decay=1.0, stability=1.0, **options
            )
        noise = following
    return z.var(0)


EXACT = 1 / (10 * torch.tensor([1.0, 20.0], dtype=torch.float64) + 5)
NOISE = 4 * (2 / 20_000) ** 0.5  # four standard errors of a variance, relative


@pytest.mark.parametrize("precision", [[15.0, 205.0], [25.0, 150.0]])
@pytest.mark.parametrize("step_size", [0.3, 1.5])
def test_preconditioned_langevin_has_the_posterior_at_any_step(
    precision: list[float], step_size: float
) -> None:
    found = run_chains("langevin", step_size, torch.tensor(precision, dtype=torch.float64), steps=100)
    torch.testing.assert_close(found, EXACT, rtol=NOISE, atol=0)


def test_sgld_is_too_wide_by_the_known_factor() -> None:
    step_size = 1 / 205
    found = run_chains("sgld", step_size, torch.ones(2))
    biased = EXACT / (1 - step_size / EXACT / 4)
    torch.testing.assert_close(found, biased, rtol=NOISE, atol=0)
    assert (found[1] - EXACT[1]) / EXACT[1] > 3 * NOISE  # so the exactness above is no accident


def test_rmsprop_without_squares_is_sgld() -> None:
    torch.testing.assert_close(
        run_chains("rmsprop", 1 / 205, torch.ones(2), 20), run_chains("sgld", 1 / 205, torch.ones(2), 20)
    )


def test_rmsprop_by_hand() -> None:
    one = torch.ones(1, dtype=torch.float64)
    new, squares = ops.rmsprop_step(
        one, 2 * one, one, 0 * one, step_size=0.04, num_tempered=10, localization=5, decay=0.75, stability=1.0
    )
    assert squares.item() == 1  # ¼·2²
    assert new.item() == pytest.approx(1 - 0.02 * 0.5 * 25 + 0.02**0.5)


# -- curvature -------------------------------------------------------------------------------------------------------


def symmetric(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    axes, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    values = torch.linspace(-1, 1, size, dtype=torch.float64) ** 3 * 4  # most of them small, of both signs
    return axes @ values.diag() @ axes.T


def test_largest_eigenvalue_is_exact_with_as_many_steps_as_dimensions() -> None:
    found = ops.largest_eigenvalue(lambda vector: symmetric(6) @ vector, torch.ones(6).double(), 99)
    assert found.item() == pytest.approx(4.0, rel=1e-6)


def test_largest_eigenvalue_is_that_of_the_krylov_space() -> None:
    matrix, steps = symmetric(40), 7
    start = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    powers = [start]
    while len(powers) < steps:
        powers.append(matrix @ powers[-1])
    axes, _ = torch.linalg.qr(torch.stack(powers, 1))
    expected = torch.linalg.eigvalsh(axes.T @ matrix @ axes)[-1]
    found = ops.largest_eigenvalue(lambda vector: matrix @ vector, start, steps)
    torch.testing.assert_close(found, expected)
    last = powers[-1] / powers[-1].norm()
    assert last @ matrix @ last < found <= 4.0  # what as many products of power iteration know


def test_largest_eigenvalue_is_not_finite_where_a_product_is_not() -> None:
    assert ops.largest_eigenvalue(lambda vector: vector * torch.nan, torch.ones(3), 2).isnan()
    assert ops.largest_eigenvalue(lambda vector: 2 * vector, torch.ones(3), 3).item() == pytest.approx(2.0)
