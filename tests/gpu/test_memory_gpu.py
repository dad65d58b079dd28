"""A memory on a GPU: Triton's kernels against the CPU's operations, an edit against the CPU's. Skipped by name without one."""

from __future__ import annotations

import pytest
import torch
from tests.rooms.rl.conftest import VOCAB, build

from postgrad.core.models.memory import MemoryConfig, attach, ops
from postgrad.memory.batches import TokenBatch
from postgrad.memory.config import LearnConfig
from postgrad.memory.profiling import Profile
from postgrad.memory.sparse import Learned, SparseLearner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_tensors_on_a_gpu_are_read_by_the_kernels() -> None:
    pytest.importorskip("triton")
    from postgrad.core.models.memory import kernels

    assert ops._kernels(torch.zeros(1, device="cuda")) is kernels
    assert ops._kernels(torch.zeros(1, device="cuda", dtype=torch.float64)) is None
    assert ops._kernels(torch.zeros(1)) is None


@pytest.mark.parametrize("width", [1, 33, 130, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_and_its_gradients_equal_those_of_the_cpu(width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    values = torch.randn(500, width, generator=generator).to(dtype)
    slots = torch.randint(0, 400, (97, 128), generator=generator)
    weights = torch.rand(97, 128, generator=generator).softmax(-1)
    gradient = torch.randn(97, width, generator=generator).to(dtype)
    rows = torch.randperm(500, generator=generator)[:150].sort().values
    results = []
    for device in ("cpu", "cuda"):
        # On the CPU in fp32 in any case: there, bf16 is rounded more often.
        table = values.to(device, torch.float32 if device == "cpu" else dtype)
        slope = gradient.to(device, table.dtype)
        active = table[rows.to(device)].requires_grad_()
        factors = weights.to(device, copy=True).requires_grad_()
        y = ops.read_selected(active, table, slots.to(device), factors, rows.to(device))
        y.backward(slope)
        dense = table.clone().requires_grad_()
        ops.read(dense, slots.to(device), weights.to(device)).backward(slope)
        results.append([y.detach(), active.grad, factors.grad, dense.grad])
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    for expected, found in zip(*results, strict=True):
        assert expected is not None
        assert found is not None
        torch.testing.assert_close(
            found.float().cpu(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
        )


def test_the_same_input_gives_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(300, 257, generator=generator).cuda()
    slots = torch.randint(0, 300, (512, 64), generator=generator).cuda()
    weights = torch.rand(512, 64, generator=generator).cuda()
    rows = torch.arange(0, 300, 3, device="cuda")
    results = []
    for _ in range(2):
        active, factors = values[rows].requires_grad_(), weights.clone().requires_grad_()
        y = ops.read_selected(active, values, slots, factors, rows)
        y.square().sum().backward()
        results.append([y.detach(), active.grad, factors.grad])
    for first, second in zip(*results, strict=True):
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)


def test_an_edit_equals_that_of_the_cpu() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    expected, found = edit("cpu"), edit("cuda")
    assert found.losses == pytest.approx(expected.losses, rel=1e-3)
    assert found.losses[-1] < found.losses[0]
    for name, change in found.patch.changes.items():
        other = expected.patch.changes[name]
        assert torch.equal(change.rows, other.rows)
        torch.testing.assert_close(change.new, other.new, rtol=1e-3, atol=1e-4)


def edit(device: str) -> Learned:
    """Three updates of a small model with memory."""
    model = build()
    attach(
        model.module, MemoryConfig(layers=(0, 1), num_slots=400, num_heads=2, top_k=4, key_dim=16, scale=1.0)
    )
    model.module.to(device=device)  # type: ignore[call-overload]
    tokens = torch.randint(3, VOCAB, (4, 12), generator=torch.Generator().manual_seed(0)).to(device)
    batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    config = LearnConfig(score="tf", budget=20, updates=3, lr=1.0)
    return SparseLearner(model, Profile.empty(model), config).learn(batch)
