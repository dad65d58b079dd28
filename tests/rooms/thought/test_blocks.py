"""Blocks give what one pass gives, in less memory; bent duplicates are found; the reweighted penalty is what it says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.live_bytes import LiveBytes
from torch import Tensor

from postgrad.core.errors import DataError
from postgrad.thought import AutoencoderConfig, autoencoder, fast_ica, fit, jacobian, ops, read_structure
from postgrad.thought.autoencoder import Autoencoder, Moments, spread
from postgrad.thought.baselines import bend, dependence, principal_directions, unfold

QUICK = AutoencoderConfig(
    num_thoughts=3, warmup_steps=5, ramp_steps=5, sparse_steps=5, refit_steps=5, penalty=0.1, batch_size=64
)


def laplace(samples: int, count: int, seed: int = 0) -> Tensor:
    """Independent thoughts of variance 1 [S, Z]."""
    uniforms = torch.rand(samples, count, generator=torch.Generator().manual_seed(seed)) - 0.5
    return -uniforms.sign() * (1 - 2 * uniforms.abs()).clamp(min=1e-6).log() / 2**0.5


def linear_states(samples: int = 700) -> Tensor:
    """[S, 10], from 3 thoughts, far from 0."""
    mixing = torch.randn(3, 10, generator=torch.Generator().manual_seed(1))
    return 100 + laplace(samples, 3) @ mixing


def test_blocks_give_what_one_pass_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    states = linear_states()
    whole = fit(states, (5, 5), QUICK)
    monkeypatch.setattr(autoencoder, "BLOCK_BYTES", 4 * 90 * 100)
    model = whole.autoencoder
    sizes = [len(block) for block in model.blocks(states)]
    assert len(sizes) > 5
    assert sum(sizes) == len(states)
    blocks = fit(states, (5, 5), QUICK)
    torch.testing.assert_close(blocks.autoencoder.mean, states.double().mean(0).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        blocks.autoencoder.deviation, states.double().std(0, correction=0).float(), rtol=1e-5, atol=0
    )
    assert blocks.explained == pytest.approx(whole.explained, abs=1e-4)
    for name, tensor in whole.autoencoder.state_dict().items():
        torch.testing.assert_close(blocks.autoencoder.state_dict()[name], tensor, rtol=1e-3, atol=1e-3)


def test_the_norm_has_the_statistics_of_all_states() -> None:
    states = linear_states()
    model = fit(states, (5, 5), QUICK).autoencoder
    raw = model.raw_thoughts(model.standardise(states)).detach()
    assert isinstance(model.norm, torch.nn.BatchNorm1d)
    assert model.norm.running_mean is not None
    assert model.norm.running_var is not None
    torch.testing.assert_close(model.norm.running_mean, raw.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.norm.running_var, raw.var(0), rtol=1e-4, atol=1e-5)


def test_explained_is_one_minus_error_over_variance() -> None:
    states = linear_states()
    model = fit(states, (5, 5), QUICK).autoencoder
    again = (model.decode(model.encode(states)) - states) / model.deviation
    seen = model.standardise(states)
    expected = 1 - again.square().mean() / (seen - seen.mean(0)).square().mean()
    assert model.explained(states) == pytest.approx(float(expected.detach()), abs=1e-5)


def test_half_precision_is_as_its_numbers_in_float32() -> None:
    states = linear_states().half()
    half, single = fit(states, (5, 5), QUICK), fit(states.float(), (5, 5), QUICK)
    assert half.autoencoder.fingerprint() == single.autoencoder.fingerprint()
    assert half.explained == single.explained
    structure = read_structure(half.autoencoder, states)
    torch.testing.assert_close(
        structure.jacobian_rms, half.autoencoder.jacobian_rms(states.float()), rtol=0, atol=0
    )


def test_states_are_never_held_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "BLOCK_BYTES", 2**18)
    states = linear_states(60_000).half()
    config = QUICK.model_copy(update={"start": "random", "jacobian_states": 50})
    with LiveBytes() as counted:
        fit(states, (5, 5), config)
    assert counted.largest < 2**20  # 60,000 × 10 in float32 would be 2.4 MB
    assert counted.peak < 2.4e6


def test_the_jacobian_is_read_from_so_many_states() -> None:
    states = linear_states()
    model = fit(states, (5, 5), QUICK.model_copy(update={"jacobian_states": 10})).autoencoder
    torch.testing.assert_close(model.jacobian_rms(states), model.jacobian_rms(spread(states, 10)))
    other = Autoencoder((5, 5), QUICK)
    other.load_state_dict(model.state_dict())
    assert not torch.equal(other.eval().jacobian_rms(states), model.jacobian_rms(states))


def test_moments_are_those_of_all_rows() -> None:
    rows = 1e4 + torch.randn(1000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments()
    for block in rows.split([1, 7, 500, 492]):
        moments.add(block)
    assert moments.count == 1000
    torch.testing.assert_close(moments.mean, rows.mean(0))
    torch.testing.assert_close(moments.squares / 999, rows.var(0))


def test_subspace_iteration_finds_the_principal_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(500, 80, generator=generator, dtype=torch.float64) * 0.9 ** torch.arange(80)
    states = (states - states.mean(0)) @ torch.linalg.qr(
        torch.randn(80, 80, generator=generator, dtype=torch.float64)
    )[0]
    values, vectors = principal_directions(states, 6)
    near_values, near = principal_directions(states, 6, generator, exact_size=1)
    torch.testing.assert_close(near_values, values, rtol=1e-6, atol=0)
    torch.testing.assert_close((near.T @ vectors).abs(), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-3)
    thin = states[:, :2] @ torch.randn(2, 80, generator=generator, dtype=torch.float64)
    assert [len(principal_directions(thin, 6, generator, exact_size=size)[0]) for size in (1, 100)] == [2, 2]


def test_a_bent_thought_takes_one_place() -> None:
    """Thought 0 is seen by its positive and by its negative part; 2 is weak: FastICA halves thought 0 and loses 2."""
    thoughts = laplace(6000, 3)
    up, down = F.relu(thoughts[:, :1]), F.relu(-thoughts[:, :1])
    weights = torch.tensor([1.0, 1.3, 0.8, 1.1])
    states = torch.cat([up * weights, down * weights, thoughts[:, 1:2] * weights, thoughts[:, 2:] * 0.5], 1)
    found = {
        "fast_ica": fast_ica(states, 3, torch.Generator().manual_seed(0)),
        "unfold": unfold(states, 3, torch.Generator().manual_seed(0)),
    }
    each = {
        name: ops.correlations(one.sources(states), thoughts).abs().max(0).values
        for name, one in found.items()
    }
    assert each["fast_ica"][2] < 0.2
    assert each["unfold"].min() > 0.97
    assert found["unfold"].num_iterations == 1
    sources = found["unfold"].sources(states)
    slope = torch.linalg.lstsq(sources - sources.mean(0), states - states.mean(0)).solution
    torch.testing.assert_close(found["unfold"].mixing.float(), slope.T, rtol=1e-3, atol=1e-3)


def test_independent_components_are_left_alone() -> None:
    states = linear_states(4000)
    plain, unfolded = (way(states, 3, torch.Generator().manual_seed(0)) for way in (fast_ica, unfold))
    assert unfolded.num_iterations == 0
    same = ops.correlations(unfolded.sources(states), plain.sources(states)).abs().max(0).values
    assert same.min() > 0.999
    z = laplace(4000, 2).double()
    assert bend(z[:, 0], z[:, 1])[0] < 0.05
    assert dependence(z)[0, 1] < 0.03
    assert len(unfold(states, 5, torch.Generator().manual_seed(0)).unmixing) == 3  # no more than there are


@pytest.mark.parametrize("max_bytes", [1, 2**25])
def test_weighted_entries_count_by_their_weights(max_bytes: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parts = [normal(3, 4).requires_grad_(), normal(4, 2).requires_grad_(), normal(5, 4).requires_grad_()]
    weights = normal(5, 2).abs()
    reference = (jacobian.decoder_jacobian(*parts).abs() * weights).sum() / (3 * 5)
    expected = torch.autograd.grad(reference, parts)
    every = torch.cartesian_prod(torch.arange(5), torch.arange(3))
    ways = (
        jacobian.l1_exact(*parts, max_bytes, weights),
        jacobian.l1_sampled(*parts, jacobian.Pairs(every[:, 0], every[:, 1]), weights),
    )
    for one in ways:
        torch.testing.assert_close(one, reference)
        for ours, theirs in zip(torch.autograd.grad(one, parts), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_noise_is_drawn_where_its_generator_is() -> None:
    """The generator is the processor's though the slopes are elsewhere (`meta` stands for CUDA)."""
    parts = [torch.empty(shape, device="meta") for shape in ((3, 4), (4, 2), (5, 4))]
    generator = torch.Generator().manual_seed(0)
    for backend in ("group", "sampled"):
        assert jacobian.penalty(backend, *parts, generator).device.type == "meta"


def test_states_that_are_all_the_same_are_refused_with_a_reason() -> None:
    with pytest.raises(DataError, match="All 50 states are the same: none of the 2 agents' vary"):
        fit(torch.ones(50, 10), (5, 5), QUICK)
