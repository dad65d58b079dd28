"""Sampling as pure functions. Randomness comes in as one uniform number per token, so a sample is the same in any batch.

Shapes: B slots, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

_MASK = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Sampled(NamedTuple):
    """token: int64 [B]; logp: float32 [B], natural log of the untruncated distribution at its temperature."""

    token: Tensor
    logp: Tensor


def uniforms(seed: int, request_id: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """`count` uniforms in [0, 1) for each request, which depend on the seed, the request and the place alone.

    SplitMix64 (Steele, Lea, Flood 2014) as a hash of (seed, request, place): no state, so no order of drawing.

    Args:
        seed: any integer.
        request_id: int64 [N].
        count: T.

    Returns:
        float32 [N, T], multiples of 2⁻²⁴.

    >>> once, again = uniforms(0, np.array([7, 8]), 4), uniforms(0, np.array([8]), 2)
    >>> bool((once[1, :2] == again[0]).all())
    True
    """
    key = _mix(_mix(np.array([seed & _MASK], dtype=np.uint64)) + request_id.astype(np.uint64) * _GOLDEN)
    bits = _mix(key[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def request_seed(seed: int, request_id: int, place: int) -> int:
    """A seed in [0, 2⁶³) for an engine that has a generator of its own per request; the same hash as `uniforms`.

    Args:
        seed: of the run.
        request_id: of the request.
        place: completion tokens that it has already; a continued request draws other numbers than at its beginning.

    >>> request_seed(0, 7, 0) == request_seed(0, 7, 0), request_seed(0, 7, 0) == request_seed(0, 7, 1)
    (True, False)
    """
    key = _mix(np.array([seed & _MASK], dtype=np.uint64))
    for part in (request_id, place):
        key = _mix(key + np.array([part & _MASK], dtype=np.uint64) * _GOLDEN)
    return int(key[0] >> np.uint64(1))


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def greedy(logits: Float[Tensor, "B V"]) -> Sampled:
    """The most likely token and its log-prob at temperature 1.

    >>> greedy(torch.tensor([[0.0, 1.0]])).token.tolist()
    [1]
    """
    logits = logits.float()
    token = logits.argmax(-1)
    logp = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)
    return Sampled(token, logp)


def sample(
    logits: Float[Tensor, "B V"],
    uniform: Float[Tensor, " B"],
    temperature: Float[Tensor, " B"] | None = None,
) -> Sampled:
    """Inverse-CDF sampling: the token i with CDF(i−1) ≤ u < CDF(i).

    Args:
        logits: any dtype; computed in fp32.
        uniform: in [0, 1).
        temperature: > 0, or None for 1.

    >>> logits = torch.log(torch.tensor([[0.25, 0.75]]))
    >>> [sample(logits, torch.tensor([u])).token.item() for u in (0.2, 0.3)]
    [0, 1]
    """
    logits = logits.float()
    if temperature is not None:
        logits = logits / temperature[:, None]
    logps = logits.log_softmax(-1)
    cdf = logps.exp().cumsum(-1)
    # Strictly greater than the threshold, and scaled by the last entry: a token of probability 0 is never drawn.
    token = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True).clamp_(
        max=logits.shape[-1] - 1
    )
    return Sampled(token[:, 0], logps.gather(1, token)[:, 0])


def sample_truncated(
    logits: Float[Tensor, "B V"],
    uniform: Float[Tensor, " B"],
    temperature: Float[Tensor, " B"],
    top_p: Float[Tensor, " B"],
    top_k: Int[Tensor, " B"],
) -> Sampled:
    """`sample` among the `top_k` most likely tokens (0 = all) that make up the first `top_p` of the mass (1.0 = all).

    The most likely token is always kept. The log-prob is that of the distribution *before* truncation, so that an
    importance ratio against the trainer's full softmax is right.

    >>> logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    >>> one = torch.ones(1)
    >>> sample_truncated(logits, torch.tensor([0.99]), one, 0.6 * one, torch.tensor([0])).token.item()
    1
    """
    logps = (logits.float() / temperature[:, None]).log_softmax(-1)
    ranked, order = logps.sort(-1, descending=True)
    probs = ranked.exp()
    before = probs.cumsum(-1) - probs
    rank = torch.arange(logits.shape[-1], device=logits.device)
    keep = (before < top_p[:, None]) | (top_p[:, None] >= 1)
    keep &= (rank[None] < top_k[:, None]) | (top_k[:, None] <= 0)
    keep[:, 0] = True
    # Back in vocabulary order, so that a row without truncation draws the same token as `sample`.
    kept = torch.zeros_like(logps).scatter_(1, order, probs * keep)
    cdf = kept.cumsum(-1)
    token = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)
    token = torch.minimum(token, logits.shape[-1] - 1 - kept.flip(-1).gt(0).int().argmax(-1, keepdim=True))
    return Sampled(token[:, 0], logps.gather(1, token)[:, 0])
