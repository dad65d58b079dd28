"""The memory's Triton kernels against a dense computation, the CPU's operations and autograd.

They run on a CUDA device, or in Triton's interpreter on the CPU: TRITON_INTERPRET=1 pytest tests/ops/test_memory_kernels.py
"""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.rooms.rl.conftest import build

pytest.importorskip("triton")

from postgrad.core.models.memory import MemoryConfig, attach, kernels, ops
from postgrad.memory.batches import TokenBatch
from postgrad.memory.config import LearnConfig
from postgrad.memory.profiling import Profile
from postgrad.memory.sparse import Learned, SparseLearner

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="needs a CUDA device or TRITON_INTERPRET=1"
)


class Case(NamedTuple):
    """A table, what is read of it, the gradient of what was read, rows that are taught."""

    values: torch.Tensor
    slots: torch.Tensor
    weights: torch.Tensor
    gradient: torch.Tensor
    rows: torch.Tensor


def case(
    seed: int, tokens: int = 5, per_token: int = 7, width: int = 33, dtype: torch.dtype = torch.float32
) -> Case:
    """Of 12 slots the last 3 are never read; few slots, so a token reads some twice, and rows have many readers."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(12, width, generator=generator).to(dtype)
    slots = torch.randint(0, 9, (tokens, per_token), generator=generator)
    weights = torch.rand(tokens, per_token, generator=generator)
    gradient = torch.randn(tokens, width, generator=generator).to(dtype)
    count = int(torch.randint(1, 13, (1,), generator=generator))
    rows = torch.randperm(12, generator=generator)[:count].sort().values
    return Case(*(tensor.to(DEVICE) for tensor in (values, slots, weights, gradient, rows)))


def dense(found: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is read, and by autograd its gradients in the whole table and in the weights, in fp64."""
    values = found.values.double().requires_grad_()
    weights = found.weights.double().requires_grad_()
    y = (values[found.slots] * weights.unsqueeze(-1)).sum(1)
    y.backward(found.gradient.double())
    assert values.grad is not None
    assert weights.grad is not None
    return y.detach(), values.grad, weights.grad


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To the rounding of a sum in fp32, and in bf16 to one rounding of the result, which the interpreter cuts off."""
    exact = found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), expected, rtol=1e-5 if exact else 2**-7, atol=1e-5 if exact else 1e-4
    )


widths = st.sampled_from([1, 2, 33, 130, 256, 300])
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 35), widths, dtypes, st.integers(0, 10**6))
@example(
    3, 35, 300, torch.float32, 0
)  # more than one tile of columns, and more slots than are read at a time
@example(3, 35, 300, torch.bfloat16, 1)
@example(1, 1, 1, torch.float32, 2)
def test_reading_and_its_gradients_equal_dense_autograd(
    tokens: int, per_token: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    values, slots, weights, gradient, rows = given_case = case(seed, tokens, per_token, width, dtype)
    y, in_values, in_weights = dense(given_case)
    read = kernels.read(values, slots, weights)
    selected = kernels.selected_gradient(gradient, slots, weights, rows)
    scores = kernels.weights_gradient(gradient, values, slots)
    assert read.dtype == selected.dtype == scores.dtype == dtype
    near(read, y)
    near(selected, in_values[rows])
    near(scores, in_weights)
    assert not selected[rows >= 9].any()  # never read


@settings(max_examples=10, deadline=None)
@given(widths, st.integers(0, 10**6))
def test_the_kernels_equal_the_operations_of_the_cpu(width: int, seed: int) -> None:
    given_case = case(seed, width=width)
    values, slots, weights, gradient, rows = given_case
    on_cpu = Case(*(tensor.cpu() for tensor in given_case))
    for found, expected in [
        (kernels.read(values, slots, weights), ops.read(on_cpu.values, on_cpu.slots, on_cpu.weights)),
        (
            kernels.selected_gradient(gradient, slots, weights, rows),
            ops.selected_gradient(on_cpu.gradient, on_cpu.slots, on_cpu.weights, on_cpu.rows),
        ),
        (
            kernels.weights_gradient(gradient, values, slots),
            ops.weights_gradient(on_cpu.gradient, on_cpu.values, on_cpu.slots),
        ),
    ]:
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_a_row_with_many_readers_is_summed_in_fp32() -> None:
    """4,097 gradients of 1 and one of 2⁻⁷, all in bf16: a sum in bf16 would stop at 256."""
    gradient = torch.ones(4098, 1, dtype=torch.bfloat16, device=DEVICE)
    gradient[-1] = 2**-7
    slots = torch.zeros(4098, 1, dtype=torch.int64, device=DEVICE)
    weights = torch.ones(4098, 1, device=DEVICE)
    found = kernels.selected_gradient(gradient, slots, weights, torch.tensor([0], device=DEVICE))
    assert found.item() == 4096  # 4,097.0078 in bf16


def test_the_same_input_gives_the_same_bits() -> None:
    values, slots, weights, gradient, rows = case(0, tokens=40)
    for _ in range(2):
        assert torch.equal(kernels.read(values, slots, weights), kernels.read(values, slots, weights))
        first, second = (kernels.selected_gradient(gradient, slots, weights, rows) for _ in range(2))
        assert torch.equal(first, second)


def test_layouts_that_are_not_contiguous_are_read_where_they_are() -> None:
    values, slots, weights, gradient, rows = case(1, tokens=6, per_token=6)
    turned = values.T.contiguous().T
    expanded = gradient[:1].expand_as(gradient)  # what the backward of a sum gives
    same = torch.testing.assert_close
    same(kernels.read(turned, slots.T, weights.T), ops_read(values, slots.T, weights.T))
    same(
        kernels.weights_gradient(expanded, turned, slots.T),
        kernels.weights_gradient(expanded.contiguous(), values, slots.T.contiguous()),
    )
    same(
        kernels.selected_gradient(expanded, slots.T, weights.T, rows),
        kernels.selected_gradient(expanded.contiguous(), slots.T.contiguous(), weights.T.contiguous(), rows),
    )


def ops_read(values: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (values[slots] * weights.unsqueeze(-1)).sum(1)


@pytest.mark.parametrize(("tokens", "per_token"), [(0, 3), (3, 0)])
def test_nothing_read_gives_nothing(tokens: int, per_token: int) -> None:
    values, slots, weights, gradient, rows = case(2, tokens, per_token)
    assert kernels.read(values, slots, weights).tolist() == [[0.0] * 33] * tokens
    assert kernels.weights_gradient(gradient, values, slots).shape == (tokens, per_token)
    selected = kernels.selected_gradient(gradient, slots, weights, rows)
    assert selected.tolist() == [[0.0] * 33] * len(rows)


# -- through `ops` ---------------------------------------------------------------------------------------------------


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ops` uses the kernels here, whatever the device."""
    monkeypatch.setattr(ops, "_kernels", lambda _: kernels)


@pytest.mark.usefixtures("dispatched")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ops_are_differentiable_by_the_kernels(dtype: torch.dtype) -> None:
    given_case = case(3, tokens=6, width=20, dtype=dtype)
    values, slots, weights, gradient, rows = given_case
    y, in_values, in_weights = dense(given_case)
    table, factors = values.clone().requires_grad_(), weights.clone().requires_grad_()
    found = ops.read(table, slots, factors)
    found.backward(gradient)
    near(found.detach(), y)
    active, others = values[rows].clone().requires_grad_(), weights.clone().requires_grad_()
    found = ops.read_selected(active, values, slots, others, rows)
    found.backward(gradient)
    near(found.detach(), y)
    assert table.grad is not None
    assert factors.grad is not None
    assert active.grad is not None
    assert others.grad is not None
    near(table.grad, in_values)
    near(active.grad, in_values[rows])
    for scores in (factors.grad, others.grad):
        assert scores.dtype == torch.float32
        near(scores.to(dtype), in_weights)


@pytest.mark.usefixtures("dispatched")
def test_only_what_is_wanted_is_differentiated() -> None:
    values, slots, weights, gradient, _ = case(4)
    table = values.clone().requires_grad_()
    ops.read(table, slots, weights).backward(gradient)
    factors = weights.clone().requires_grad_()
    ops.read(values, slots, factors).backward(gradient)
    assert table.grad is not None
    assert factors.grad is not None
    assert values.grad is None
    assert weights.grad is None
    assert not ops.read(values, slots, weights).requires_grad


def edit() -> Learned:
    """Three updates of a small model with memory."""
    model = build()
    attach(
        model.module, MemoryConfig(layers=(0, 1), num_slots=100, num_heads=2, top_k=4, key_dim=8, scale=1.0)
    )
    model.module.to(device=DEVICE)  # type: ignore[call-overload]
    tokens = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    config = LearnConfig(score="tf", budget=10, updates=3, lr=1.0)
    return SparseLearner(model, Profile.empty(model), config).learn(batch)


def test_a_whole_edit_by_the_kernels_is_the_one_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_kernels", lambda _: None)
    expected = edit()
    monkeypatch.setattr(ops, "_kernels", lambda _: kernels)
    found = edit()
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    assert found.losses[-1] < found.losses[0]
    assert found.patch.changes.keys() == expected.patch.changes.keys()
    for name, change in found.patch.changes.items():
        other = expected.patch.changes[name]
        assert torch.equal(change.rows, other.rows)
        torch.testing.assert_close(change.new, other.new, rtol=1e-4, atol=1e-5)
