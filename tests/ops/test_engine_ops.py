"""Sampling: values by hand, the textbook way as reference, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.engines import ops


def reference(
    logits: np.ndarray, uniform: float, temperature: float, top_p: float, top_k: int
) -> tuple[int, float]:
    """One row, written out: rank, cut, renormalise, walk the CDF in vocabulary order."""
    scaled = logits.astype(np.float64) / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = sorted(range(len(probs)), key=lambda i: -probs[i])
    kept, mass = [], 0.0
    for rank, token in enumerate(order):
        if kept and ((top_k and rank >= top_k) or (top_p < 1 and mass >= top_p)):
            break
        kept.append(token)
        mass += probs[token]
    total, below = sum(probs[i] for i in kept), 0.0
    for token in sorted(kept):
        below += probs[token] / total
        if uniform < below:
            return token, float(np.log(probs[token]))
    return max(kept), float(np.log(probs[max(kept)]))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10_000), st.floats(0, 0.999), st.sampled_from([0.5, 1.0, 1.7]), st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([0, 1, 3, 100]),
)  # fmt: skip
def test_truncated_sampling_equals_the_textbook(
    seed: int, uniform: float, temperature: float, top_p: float, top_k: int
) -> None:
    logits = np.random.default_rng(seed).normal(size=12).astype(np.float32) * 2
    token, logp = reference(logits, uniform, temperature, top_p, top_k)
    row = torch.from_numpy(logits)[None]
    got = ops.sample_truncated(
        row,
        torch.tensor([uniform]),
        torch.tensor([temperature]),
        torch.tensor([top_p]),
        torch.tensor([top_k]),
    )
    if int(got.token) != token:  # fp32 against fp64 at a step of the CDF: only next to it
        nudged = {reference(logits, uniform + d, temperature, top_p, top_k)[0] for d in (-1e-5, 1e-5)}
        assert int(got.token) in nudged
    else:
        assert float(got.logp) == pytest.approx(logp, abs=1e-4)


def test_without_truncation_both_functions_draw_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 30, generator=generator)
    uniform = torch.rand(200, generator=generator)
    temperature = torch.rand(200, generator=generator) + 0.5
    plain = ops.sample(logits, uniform, temperature)
    cut = ops.sample_truncated(
        logits, uniform, temperature, torch.ones(200), torch.zeros(200, dtype=torch.long)
    )
    assert torch.equal(plain.token, cut.token)
    torch.testing.assert_close(plain.logp, cut.logp)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_impossible_tokens_are_never_drawn(uniform: float) -> None:
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]])
    one = torch.ones(1)
    for sampled in (
        ops.sample(logits, torch.tensor([uniform])),
        ops.sample_truncated(logits, torch.tensor([uniform]), one, one, torch.tensor([0])),
    ):
        assert int(sampled.token) in (1, 2)
        assert float(sampled.logp) == pytest.approx(np.log(0.5))


def test_rows_are_independent_and_logits_may_shift() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(50, 20, generator=generator)
    uniform = torch.rand(50, generator=generator)
    order = torch.randperm(50, generator=generator)
    together = ops.sample(logits, uniform)
    assert torch.equal(ops.sample(logits[order], uniform[order]).token, together.token[order])
    shifted = ops.sample(logits + 5 * torch.randn(50, 1, generator=generator), uniform)
    torch.testing.assert_close(shifted.logp, together.logp, rtol=1e-4, atol=1e-5)


def test_greedy_is_the_mode_with_its_log_prob() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]))
    best = ops.greedy(logits + 3)
    assert best.token.tolist() == [1, 0]
    assert best.logp.exp().tolist() == pytest.approx([0.5, 0.6])


def test_uniforms_are_uniform_and_depend_on_every_key() -> None:
    values = ops.uniforms(0, np.arange(2000), 100)
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.bincount((values * 64).astype(int).ravel(), minlength=64)
    assert ((counts - 3125) ** 2 / 3125).sum() < 63 + 5 * (2 * 63) ** 0.5  # chi-square
    neighbours = [
        (values[:, 1:], values[:, :-1]),
        (values[1:], values[:-1]),
        (values, ops.uniforms(1, np.arange(2000), 100)),
    ]
    for one, other in neighbours:  # places, requests, seeds
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.01
