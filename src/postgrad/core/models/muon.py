"""Muon in fp32: momentum, then the nearest orthogonal matrix by five Newton-Schulz steps (Jordan 2024).

On the embedded model it needs a third or less of AdamW's warm-start updates. `torch.optim.Muon` computes in bfloat16, which is
12 to 30 times slower than fp32 on a CPU; this one is fp32, and orthogonalises matrices of one shape together.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch is only partly typed)

from __future__ import annotations

from collections.abc import Iterable

import torch

_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """U·Vᵀ of each matrix U·S·Vᵀ, approximately: singular values end between about 0.7 and 1.2.

    Newton-Schulz, X ← a·X + b·(XXᵀ)X + c·(XXᵀ)²X with (a, b, c) = (3.4445, −4.7750, 2.0315), five times.

    Args:
        matrices: float [N, R, C].

    Returns:
        float [N, R, C].
    """
    transposed = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if transposed else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if transposed else x


class Muon:
    """W ← (1 − lr·λ)·W − lr·√max(1, R/C)·orthogonalise(g + μ·m) with m ← μ·m + g. For weight matrices only.

    Args:
        matrices: parameters [R, C]; embeddings, norms and biases belong to another optimiser.
        lr: step length, the spectral norm of an update; assign to it between steps for a schedule.
        momentum: μ.
        weight_decay: λ.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self._by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for matrix in matrices:
            self._by_shape.setdefault(matrix.shape, []).append(matrix)
        self._buffers = {
            shape: torch.zeros(len(group), *shape, device=group[0].device)
            for shape, group in self._by_shape.items()
        }

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients; every matrix must have one."""
        for shape, group in self._by_shape.items():
            gradients = torch.stack([matrix.grad.float() for matrix in group if matrix.grad is not None])
            buffer = self._buffers[shape].mul_(self.momentum).add_(gradients)
            updates = orthogonalise(gradients + self.momentum * buffer)
            scale = self.lr * max(1.0, shape[0] / shape[1]) ** 0.5
            for matrix, update in zip(group, updates, strict=True):
                matrix.mul_(1 - self.lr * self.weight_decay).add_(update.to(matrix.dtype), alpha=-scale)
