"""‖J‖₁ of a decoder with one hidden layer, without ever calling `jacrev`.

The decoder is ĥ = W₂·φ(W₁ẑ + b₁) + b₂, so J = W₂·diag(φ'(a))·W₁ at a sample whose hidden inputs are a. Everything here takes
W₁ = `weight_in`, W₂ = `weight_out` and φ'(a) = `slopes`, and is differentiable in all three. The penalty is

    ℓ₁ = (1/(S·H)) Σ_s Σ_i Σ_j |J_s,ij|,

the mean over samples and decoder outputs of the row sums: what the paper's λ‖J‖₁ is beside a squared error per dimension.

| backend | gives | multiply-adds, forward |
|---|---|---|
| `exact` | ℓ₁ | S·H·K·Z |
| `sampled` | unbiased ℓ₁ (and gradient) from P pairs of row and sample | P·K·Z |
| `group` | unbiased Σ_j √H·‖J_s,·j‖₂/H of the rows given (≥ ℓ₁), from one vector product a sample | S·K·(H + Z) |
| `path` | Σ_k mean_s|φ'|·Σ_i|W₂|·Σ_j|W₁|/H ≥ ℓ₁ | K·(S + H + Z) |

A Gaussian product J·v does not estimate ℓ₁: E|v·J_·j| = √(2/π)·‖J_·j‖₂, which is the group norm.

Shapes: S samples, Z thoughts, K hidden units, H decoder outputs, P pairs.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Backend = Literal["exact", "sampled", "group", "path"]


class Pairs(NamedTuple):
    """Which entries of [S, H] are looked at: rows of the decoder [P] and samples [P]."""

    rows: Tensor
    samples: Tensor


def decoder_jacobian(
    slopes: Float[Tensor, "S K"], weight_in: Float[Tensor, "K Z"], weight_out: Float[Tensor, "H K"]
) -> Float[Tensor, "S H Z"]:
    """J of every sample, whole: S·H·Z numbers, for small decoders and for tests.

    >>> one = decoder_jacobian(torch.tensor([[1.0, 0.5]]), torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0, -3.0]]))
    >>> one.tolist()  # 1·1·2 − 3·0.5·4
    [[[-4.0]]]
    """
    return weight_out @ (slopes[:, :, None] * weight_in)


def l1_exact(
    slopes: Float[Tensor, "S K"],
    weight_in: Float[Tensor, "K Z"],
    weight_out: Float[Tensor, "H K"],
    max_bytes: int = 2**25,
    entry_weights: Float[Tensor, "H Z"] | None = None,
) -> Float[Tensor, ""]:
    """ℓ₁, in blocks of samples; the backward pass is done in the same blocks, so that no block is kept. First order only.

    Args:
        max_bytes: of one block, about.
        entry_weights: |J_s,ij| counts this often; constants. None = once.

    >>> l1_exact(torch.tensor([[1.0, 0.5]]), torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0, -3.0]])).item()
    4.0
    """
    return _ExactL1.apply(slopes, weight_in, weight_out, max_bytes, entry_weights)  # pyright: ignore[reportReturnType]


class _ExactL1(torch.autograd.Function):
    """All products are [H, K]·[K, s·Z] or its transposes: one large matmul a block."""

    @staticmethod
    def forward(
        ctx: Any,
        slopes: Tensor,
        weight_in: Tensor,
        weight_out: Tensor,
        max_bytes: int,
        entry_weights: Tensor | None,
    ) -> Tensor:
        samples, hidden = slopes.shape
        outputs, thoughts = len(weight_out), weight_in.shape[1]
        with_grad = any(ctx.needs_input_grad[:3])
        block = max(1, max_bytes // (slopes.element_size() * thoughts * (2 * hidden + 2 * outputs)))
        total = slopes.new_zeros(())
        grad_slopes = torch.zeros_like(slopes)
        grad_in, grad_out = torch.zeros_like(weight_in), torch.zeros_like(weight_out)
        for start in range(0, samples, block):
            part = slopes[start : start + block]
            scaled = (part.T[:, :, None] * weight_in[:, None, :]).flatten(1)  # [K, s·Z]
            jacobian = weight_out @ scaled  # [H, s·Z]
            weights = None if entry_weights is None else entry_weights.repeat(1, len(part))  # [H, s·Z]
            total += (jacobian.abs() if weights is None else jacobian.abs() * weights).sum()
            if not with_grad:
                continue
            sign = jacobian.sign_() if weights is None else jacobian.sign_().mul_(weights)
            grad_out += sign @ scaled.T
            back = (weight_out.T @ sign).view(hidden, len(part), thoughts)
            grad_slopes[start : start + block] = torch.einsum("ksz,kz->sk", back, weight_in)
            grad_in += torch.einsum("ksz,sk->kz", back, part)
        scale = 1 / (samples * outputs)
        ctx.save_for_backward(grad_slopes.mul_(scale), grad_in.mul_(scale), grad_out.mul_(scale))
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_slopes, grad_in, grad_out = ctx.saved_tensors
        return upstream * grad_slopes, upstream * grad_in, upstream * grad_out, None, None


def draw_pairs(
    num_pairs: int, num_samples: int, num_rows: int, generator: torch.Generator | None = None
) -> Pairs:
    """Pairs (row, sample), each uniform over all; rows come up as equally often as P allows, and so do samples.

    Both are independent random permutations, one after another and cut at P: a Latin design, which is unbiased because every pair
    has the same chance, and has less variance than independent draws.

    >>> pairs = draw_pairs(4, 2, 4, torch.Generator().manual_seed(0))
    >>> sorted(pairs.rows.tolist()), sorted(pairs.samples.tolist())
    ([0, 1, 2, 3], [0, 0, 1, 1])
    """
    device = generator.device if generator is not None else None

    def even(count: int) -> Tensor:
        turns = math.ceil(num_pairs / count)
        draws = [torch.randperm(count, generator=generator, device=device) for _ in range(turns)]
        return torch.cat(draws)[:num_pairs]

    rows, samples = even(num_rows), even(num_samples)
    # the permutations of one side may be in step with those of the other: shuffling breaks it
    return Pairs(rows, samples[torch.randperm(num_pairs, generator=generator, device=device)])


def l1_sampled(
    slopes: Float[Tensor, "S K"],
    weight_in: Float[Tensor, "K Z"],
    weight_out: Float[Tensor, "H K"],
    pairs: Pairs,
    entry_weights: Float[Tensor, "H Z"] | None = None,
) -> Float[Tensor, ""]:
    """(1/P) Σ over pairs of Σ_j w_ij·|J_s,ij|: E = ℓ₁, and the expectation of its gradient is ℓ₁'s, where pairs are uniform.

    W₂ is sliced before the product, so all pairs are one [P, K]·[K, Z]. No `entry_weights` = 1.

    >>> every = Pairs(torch.tensor([0]), torch.tensor([0]))
    >>> l1_sampled(torch.tensor([[1.0, 0.5]]), torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0, -3.0]]), every).item()
    4.0
    """
    left = weight_out.index_select(0, pairs.rows) * slopes.index_select(0, pairs.samples)
    size = (left @ weight_in).abs()
    if entry_weights is not None:
        size = size * entry_weights.index_select(0, pairs.rows)
    return size.sum() / len(pairs.rows)


def group_norm(
    slopes: Float[Tensor, "S K"],
    weight_in: Float[Tensor, "K Z"],
    weight_out: Float[Tensor, "H K"],
    noise: Float[Tensor, "S H"],
) -> Float[Tensor, ""]:
    """√(π/2)·|vᵀJ_s| summed over thoughts, times √H/H, mean over samples: with v ~ N(0, I) its expectation is the group lasso
    mean_s Σ_j √H·‖J_s,·j‖₂/H of these H rows (one agent's), which is at least their ℓ₁ and equal to it where |J| is even.

    Args:
        noise: v, standard normal, of every sample its own.

    >>> v = torch.tensor([[2.0]])
    >>> one = group_norm(torch.tensor([[1.0, 0.5]]), torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0, -3.0]]), v)
    >>> round(one.item(), 4)  # √(π/2)·|2·(−4)|
    10.0265
    """
    product = ((noise @ weight_out) * slopes) @ weight_in
    return product.abs().sum() * (math.sqrt(math.pi / 2 / len(weight_out)) / len(slopes))


def path_bound(
    slopes: Float[Tensor, "S K"], weight_in: Float[Tensor, "K Z"], weight_out: Float[Tensor, "H K"]
) -> Float[Tensor, ""]:
    """Σ_k mean_s|φ'_sk|·Σ_i|W₂_ik|·Σ_j|W₁_kj|/H: all paths by their absolute weights, at least ℓ₁ (triangle inequality).

    >>> path_bound(torch.tensor([[1.0, 0.5]]), torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0, -3.0]])).item()  # 2 + 6
    8.0
    """
    paths = weight_out.abs().sum(0) * weight_in.abs().sum(1)
    return (slopes.abs().mean(0) * paths).sum() / len(weight_out)


def exact_bytes(num_samples: int, num_thoughts: int, num_hidden: int, num_outputs: int) -> int:
    """Memory of all of J and of what it is made from, in float32.

    >>> exact_bytes(64, 128, 256, 768)  # 4·64·128·(2·256 + 2·768)
    67108864
    """
    return 4 * num_samples * num_thoughts * 2 * (num_hidden + num_outputs)


def choose_backend(
    num_samples: int, num_thoughts: int, num_hidden: int, num_outputs: int, max_bytes: int
) -> Backend:
    """`exact` where J of a whole batch fits in `max_bytes`, `sampled` where it does not.

    >>> choose_backend(64, 17, 64, 24, 2**25), choose_backend(64, 128, 256, 768, 2**25)
    ('exact', 'sampled')
    """
    fits = exact_bytes(num_samples, num_thoughts, num_hidden, num_outputs) <= max_bytes
    return "exact" if fits else "sampled"


def penalty(
    backend: Backend,
    slopes: Float[Tensor, "S K"],
    weight_in: Float[Tensor, "K Z"],
    weight_out: Float[Tensor, "H K"],
    generator: torch.Generator | None = None,
    num_pairs: int | None = None,
    max_bytes: int = 2**25,
    entry_weights: Float[Tensor, "H Z"] | None = None,
) -> Float[Tensor, ""]:
    """ℓ₁, its estimate, or a bound of it, by the backend's name.

    Args:
        generator: of noise and pairs, which are drawn on its device and moved.
        entry_weights: of `exact` and `sampled`; the others know no entries and leave it out.
        num_pairs: of `sampled`; None = every row once, the largest saving at which an update sees all rows: 1/S of the work.
    """
    if backend == "exact":
        return l1_exact(slopes, weight_in, weight_out, max_bytes, entry_weights)
    if backend == "path":
        return path_bound(slopes, weight_in, weight_out)
    if backend == "group":
        device = slopes.device if generator is None else generator.device
        noise = torch.randn(
            len(slopes), len(weight_out), generator=generator, device=device, dtype=slopes.dtype
        )
        return group_norm(slopes, weight_in, weight_out, noise.to(slopes.device))
    pairs = draw_pairs(num_pairs or len(weight_out), len(slopes), len(weight_out), generator)
    pairs = Pairs(*(index.to(slopes.device) for index in pairs))
    return l1_sampled(slopes, weight_in, weight_out, pairs, entry_weights)


def adaptive_weights(jacobian_rms: Float[Tensor, "H Z"], tolerance: float) -> Float[Tensor, "H Z"]:
    """w_ij = t/(t + r_ij), r = |J| as a share of its row's largest: a reweighted ℓ₁ (Candès, Wakin & Boyd 2008) hardly touches
    what stands out of its row and keeps pressing on what does not. 1 where J is 0.

    >>> adaptive_weights(torch.tensor([[4.0, 1.0, 0.0]]), 0.25)[0].tolist()  # 0.25/1.25, 0.25/0.5, 1
    [0.20000000298023224, 0.5, 1.0]
    """
    largest = jacobian_rms.max(1, keepdim=True).values.clamp(min=torch.finfo(jacobian_rms.dtype).tiny)
    return tolerance / (tolerance + jacobian_rms / largest)


def squared_mean(
    slopes: Float[Tensor, "S K"],
    weight_in: Float[Tensor, "K Z"],
    weight_out: Float[Tensor, "H K"],
    max_bytes: int = 2**25,
) -> Float[Tensor, "H Z"]:
    """mean_s J_s,ij², in blocks of samples: its root says which outputs depend on which thoughts.

    >>> one = squared_mean(torch.tensor([[1.0, 0.5], [1.0, 0.0]]), torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0, -3.0]]))
    >>> one.tolist()  # (16 + 4)/2
    [[10.0]]
    """
    samples, thoughts = len(slopes), weight_in.shape[1]
    total = weight_out.new_zeros(len(weight_out), thoughts)
    block = max(1, max_bytes // (slopes.element_size() * thoughts * (slopes.shape[1] + len(weight_out))))
    for part in slopes.split(block):
        total += decoder_jacobian(part, weight_in, weight_out).square_().sum(0)
    return total / samples
