"""Look-ups against the exhaustive one, reading against a loop, the compact gradient against autograd's dense one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.core.models.memory import ops


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(0, 10**6),
)
def test_product_equals_the_exhaustive_lookup_over_all_pairs(
    first: int, second: int, k: int, heads: int, dim: int, seed: int
) -> None:
    k = min(k, first * second)
    generator = torch.Generator().manual_seed(seed)
    halves = [torch.randn(3, heads, d, generator=generator, dtype=torch.float64) for d in (dim, dim + 1)]
    keys = [
        torch.randn(heads, n, d, generator=generator, dtype=torch.float64)
        for n, d in ((first, dim), (second, dim + 1))
    ]
    found = ops.product_lookup(*halves, *keys, k)
    pairs = torch.cat(
        [
            keys[0].unsqueeze(2).expand(-1, -1, second, -1).flatten(1, 2),
            keys[1].unsqueeze(1).expand(-1, first, -1, -1).flatten(1, 2),
        ],
        -1,
    )
    oracle = ops.flat_lookup(torch.cat(halves, -1), pairs, k)
    torch.testing.assert_close(found.scores, oracle.scores)
    assert torch.equal(found.slots, oracle.slots)


def test_half_sizes_multiply_to_any_number_of_slots() -> None:
    for size in range(1, 400):
        first, second = ops.half_sizes(size)
        assert first * second == size
        assert first <= second
        assert not any(size % n == 0 for n in range(first + 1, int(size**0.5) + 1))
    with pytest.raises(ValueError, match="at least one slot"):
        ops.half_sizes(0)


def case(
    seed: int, tokens: int = 9, slots: int = 20, per_token: int = 6, width: int = 4
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(slots, width, generator=generator, dtype=torch.float64)
    where = torch.randint(0, slots, (tokens, per_token), generator=generator)  # heads may meet in a slot
    weights = torch.rand(tokens, per_token, generator=generator, dtype=torch.float64)
    gradient = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    return values, where, weights, gradient


@pytest.mark.parametrize("seed", range(5))
def test_read_and_its_selected_gradient_equal_a_loop_and_autograd(seed: int) -> None:
    values, slots, weights, gradient = case(seed)
    loop = torch.stack(
        [
            sum((w * values[i] for i, w in zip(s, t, strict=True)), torch.zeros(4))
            for s, t in zip(slots, weights, strict=True)
        ]
    )
    torch.testing.assert_close(ops.read(values, slots, weights), loop)
    dense = values.clone().requires_grad_()
    (dense[slots] * weights.unsqueeze(-1)).sum(1).backward(gradient)
    assert dense.grad is not None
    for rows in (torch.arange(20), torch.tensor([0, 3, 7, 19]), torch.tensor([5])):
        found = ops.selected_gradient(gradient, slots, weights, rows)
        torch.testing.assert_close(found, dense.grad[rows])  # the paper's mask of the dense gradient


def test_rows_that_nothing_read_have_no_gradient() -> None:
    _, slots, weights, gradient = case(1)
    slots = slots % 10
    assert ops.selected_gradient(gradient, slots, weights, torch.tensor([12, 15])).tolist() == [[0.0] * 4] * 2


def test_the_gradient_goes_to_the_selected_rows_and_to_the_weights() -> None:
    values, slots, weights, gradient = case(2)
    rows = torch.tensor([1, 4, 9])
    active, given_weights = values[rows].clone().requires_grad_(), weights.clone().requires_grad_()
    ops.read_selected(active, values, slots, given_weights, rows).backward(gradient)
    dense, dense_weights = values.clone().requires_grad_(), weights.clone().requires_grad_()
    (dense[slots] * dense_weights.unsqueeze(-1)).sum(1).backward(gradient)
    assert dense.grad is not None
    torch.testing.assert_close(active.grad, dense.grad[rows])
    torch.testing.assert_close(given_weights.grad, dense_weights.grad)


def test_a_step_allocates_nothing_of_the_size_of_the_table() -> None:
    """2,000,000 slots of 8 would be 64 MB; the largest tensor made in forward and backward is far below."""
    slots_count, width = 2_000_000, 8
    values = torch.zeros(slots_count, width)
    slots = torch.randint(0, slots_count, (64, 32), generator=torch.Generator().manual_seed(0))
    weights = torch.rand(64, 32)
    rows = slots.flatten()[:500].unique()
    active = values[rows].requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        ops.read_selected(active, values, slots, weights, rows).square().sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert active.grad is not None
    assert active.grad.shape == (len(rows), width)
    assert largest < values.numel() * values.element_size() / 10


def test_a_look_up_in_inference_mode_does_not_spoil_a_later_one_with_gradients() -> None:
    """The ranks of candidates are kept from call to call; k = 13 is used nowhere else."""
    queries = [torch.randn(3, 1, 2, requires_grad=True) for _ in range(2)]
    keys = torch.randn(1, 5, 2)
    with torch.inference_mode():
        ops.product_lookup(queries[0], queries[1], keys, keys, 13)
    ops.product_lookup(queries[0], queries[1], keys, keys, 13).scores.sum().backward()
    assert all(query.grad is not None for query in queries)


def test_the_gradient_in_the_weights_copies_a_few_tokens_values_at_a_time() -> None:
    """All of them, 768·128·256, would be 100 MB; what is in use at once stays below 64 MB, and every result is right."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(100, 256, generator=generator)
    slots = torch.randint(0, 100, (768, 128), generator=generator)
    gradient = torch.randn(768, 256, generator=generator)
    with torch.profiler.profile(profile_memory=True) as profile:
        found = ops.weights_gradient(gradient, values, slots)
    used, peak = 0, 0
    for event in sorted(profile.events(), key=lambda event: event.time_range.start):
        used += event.self_cpu_memory_usage  # below 0 where memory is given back
        peak = max(peak, used)
    assert 2**24 < peak < 64e6  # the copy is seen, and it is not of all
    torch.testing.assert_close(found, (gradient @ values.T).gather(1, slots), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_the_gradient_in_the_weights_is_the_same_in_any_pieces(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, slots, _, gradient = case(3, tokens=tokens)
    whole = ops.weights_gradient(gradient, values, slots)
    assert whole.shape == slots.shape
    for size in (1, 400, 10**9):
        monkeypatch.setattr(ops, "_COPIED_BYTES", size)
        torch.testing.assert_close(ops.weights_gradient(gradient, values, slots), whole)


def test_fp32_weights_of_bf16_values_have_an_fp32_gradient() -> None:
    values, slots, weights, gradient = case(4)
    rows = torch.tensor([2, 3])
    active = values[rows].bfloat16().requires_grad_()
    given = weights.float().requires_grad_()
    ops.read_selected(active, values.bfloat16(), slots, given, rows).backward(gradient.bfloat16())
    assert given.grad is not None
    assert given.grad.dtype == torch.float32
    expected = torch.einsum("td,tmd->tm", gradient, values[slots]).float()
    torch.testing.assert_close(given.grad, expected, rtol=0.02, atol=0.05)
