"""The equations of thought and the Jacobian's penalty against slow references, autograd and known answers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from postgrad.thought import jacobian, ops
from postgrad.thought.autoencoder import ACTIVATIONS, LINES

S, Z, K, H = 6, 4, 5, 7


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer() -> tuple[Tensor, Tensor, Tensor]:
    return random(S, K), random(K, Z, seed=1), random(H, K, seed=2)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_the_jacobian_is_that_of_jacrev(name: str) -> None:
    act = ACTIVATIONS[name]
    _, w_in, w_out = layer()
    thoughts = random(S, Z, seed=3)
    expected = torch.func.vmap(torch.func.jacrev(lambda z: w_out @ act.value(w_in @ z)))(thoughts)
    slopes = act.slope(thoughts @ w_in.T)
    torch.testing.assert_close(jacobian.decoder_jacobian(slopes, w_in, w_out), expected)
    l1 = expected.abs().sum() / (S * H)
    torch.testing.assert_close(jacobian.l1_exact(slopes, w_in, w_out), l1)
    torch.testing.assert_close(jacobian.squared_mean(slopes, w_in, w_out, 1), expected.square().mean(0))
    assert jacobian.path_bound(slopes, w_in, w_out) >= l1
    step, gain = LINES[name]
    z = torch.linspace(-0.3, 0.3, 7, dtype=torch.float64)
    line = act.value(step * z) - act.value(-step * z)
    torch.testing.assert_close(line, gain * z, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("max_bytes", [1, 2000, 2**25])
def test_the_exact_gradient_is_autograds_in_blocks_of_any_size(max_bytes: int) -> None:
    parts = [part.requires_grad_() for part in layer()]
    ours = torch.autograd.grad(3 * jacobian.l1_exact(*parts, max_bytes), parts)
    reference = jacobian.decoder_jacobian(*parts).abs().sum() / (S * H)
    for a, b in zip(ours, torch.autograd.grad(3 * reference, parts), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(lambda *a: jacobian.l1_exact(*a, max_bytes), parts)


def flat_gradient(value: Tensor, parts: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parts)])


@pytest.mark.parametrize("backend", ["sampled", "group"])
def test_estimates_and_their_gradients_are_unbiased(backend: str) -> None:
    """z-tests on 3,000 draws: of the value, and of the gradient along one fixed direction and in its largest entries."""
    parts = [part.requires_grad_() for part in layer()]
    whole = jacobian.decoder_jacobian(*parts)
    l1, group = whole.abs().sum() / (S * H), whole.norm(dim=1).sum() / (S * math.sqrt(H))
    truth = l1 if backend == "sampled" else group
    true_gradient = flat_gradient(truth, parts)
    generator = torch.Generator().manual_seed(0)
    values, gradients = [], []
    for _ in range(3000):
        value = jacobian.penalty(backend, *parts, generator, num_pairs=5)  # pyright: ignore[reportArgumentType]
        values.append(value.detach())
        gradients.append(flat_gradient(value, parts))
    drawn, slopes = torch.stack(values), torch.stack(gradients)
    direction = random(len(true_gradient), seed=9)
    for draws, expected in ((drawn, truth.detach()), (slopes @ direction, true_gradient @ direction)):
        assert abs(draws.mean() - expected) < 4 * draws.std() / len(draws) ** 0.5
    each = (slopes.mean(0) - true_gradient) / (slopes.std(0) / len(slopes) ** 0.5).clamp(min=1e-12)
    assert each.abs().max() < 4.5


def test_pairs_are_dealt_evenly_and_every_pair_has_the_same_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(3, 2)
    for _ in range(2000):
        pairs = jacobian.draw_pairs(6, 2, 3, generator)
        assert torch.bincount(pairs.rows).tolist() == [2, 2, 2]
        assert torch.bincount(pairs.samples).tolist() == [3, 3]
        counts.index_put_((pairs.rows, pairs.samples), torch.ones(6), accumulate=True)
    assert (counts / 2000 - 1).abs().max() < 0.1


def test_all_pairs_are_the_exact_value() -> None:
    parts = layer()
    every = torch.cartesian_prod(torch.arange(H), torch.arange(S))
    pairs = jacobian.Pairs(every[:, 0], every[:, 1])
    torch.testing.assert_close(jacobian.l1_sampled(*parts, pairs), jacobian.l1_exact(*parts))


def test_assignment_is_the_best_of_all_permutations_and_scipys() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(20):
        score = random(6, 5, seed=seed)
        found = ops.assign(score)
        assert len(set(found.tolist())) == 5
        best = max(sum(score[r, c] for c, r in enumerate(p)) for p in itertools.permutations(range(6), 5))
        torch.testing.assert_close(score[found, torch.arange(5)].sum(), torch.as_tensor(best))
    large = random(60, 40)
    rows, columns = optimize.linear_sum_assignment(large.numpy(), maximize=True)
    torch.testing.assert_close(
        large[ops.assign(large), torch.arange(40)].sum(),
        large[torch.as_tensor(rows), torch.as_tensor(columns)].sum(),
    )
    with pytest.raises(ValueError, match="there are 2"):
        ops.assign(random(2, 3))


def test_correlation_ignores_order_sign_and_scale_and_is_scored_elsewhere() -> None:
    fit, other = random(300, 4), random(300, 4, seed=1)
    order = torch.tensor([2, 0, 3, 1])
    mixed = [-3 * part[:, order] + 7 for part in (fit, other)]
    found = ops.mean_correlation(mixed[0], fit, mixed[1], other)
    assert found.mcc == pytest.approx(1.0)
    assert order[found.assignment].tolist() == [0, 1, 2, 3]
    noise = ops.mean_correlation(random(300, 4, seed=5), fit, random(300, 4, seed=6), other)
    assert noise.mcc < 0.15
    torch.testing.assert_close(ops.correlations(fit, fit), torch.corrcoef(fit.T))


def test_a_block_is_found_when_it_is_mixed_within_itself_only() -> None:
    fit, other = random(400, 3), random(400, 3, seed=1)
    turn = random(3, 3, seed=2)
    torch.testing.assert_close(
        ops.block_r2(fit @ turn, fit, other @ turn, other), torch.ones(3, dtype=torch.float64)
    )
    assert ops.block_r2(random(400, 3, seed=7), fit, random(400, 3, seed=8), other).max() < 0.05


def test_who_holds_what_by_a_loop() -> None:
    support = random(9, 5) > 0.5
    rows = torch.tensor([0, 0, 2, 1, 1, 2, 2, 0, 1])
    held = ops.belongs(support, rows, 3)
    rms = ops.agent_rms(random(9, 5, seed=1), rows, 3)
    for thought, agent in itertools.product(range(5), range(3)):
        mine = [row for row in range(9) if rows[row] == agent]
        assert held[thought, agent] == any(support[row, thought] for row in mine)
        expected = sum(float(random(9, 5, seed=1)[row, thought]) ** 2 for row in mine) / len(mine)
        assert rms[thought, agent].item() == pytest.approx(expected**0.5)
    assert ops.alpha_histogram(held).sum() == 5
    assert not ops.binarise(torch.zeros(2, 2), 0.1).any()


def test_routing_says_who_never_gets_what() -> None:
    held = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]]).bool()
    by_alpha = torch.tensor([9.0, 1.0, 2.0, 3.0])
    assert ops.routing_weights(held, "paper", by_alpha)[0].tolist() == [1, 0, 2, 3, 0]
    assert ops.routing_weights(held, "broadcast", by_alpha)[2].tolist() == [1, 1, 2, 3, 0]
    assert ops.routing_weights(held, "others", by_alpha)[0].tolist() == [0, 1, 2, 3, 0]
    own = random(3, 5)
    assert ops.routing_weights(held, "learned", own) is own
    order = torch.tensor([4, 2, 0, 1, 3])
    for mode in ("paper", "broadcast", "others"):
        whole = ops.routing_weights(held, mode)
        torch.testing.assert_close(ops.routing_weights(held[order], mode), whole[:, order])
    with pytest.raises(ValueError, match=r"shape \(3, 5\)"):
        ops.routing_weights(held, "learned")
    with pytest.raises(ValueError, match=r"received \(3,\)"):
        ops.routing_weights(held, "paper", torch.ones(3))
