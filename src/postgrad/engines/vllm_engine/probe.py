"""Does vLLM compute with the weights it was given? A few tokens, through vLLM and through a plain forward pass of them.

An update in place can go wrong without an error: a kernel that keeps a repacked copy of the old weights, a tensor whose
name vLLM does not know. A policy then learns from samples of another one.

Shapes: L probe tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray as Array
from torch import Tensor
from transformers import PreTrainedModel

LENGTH = 16
"""Most tokens of the probe: enough to tell other weights from rounding, too few to cost anything."""


def probe_tokens(vocab_size: int, context_length: int | None = None) -> Int64[Array, " L"]:
    """Ids from all over the vocabulary, always the same ones; one less than the context if that is short."""
    length = LENGTH if context_length is None else min(LENGTH, context_length - 1)
    return np.random.default_rng(0).integers(0, vocab_size, length)


@torch.no_grad()
def forward_logps(
    module: PreTrainedModel, weights: Mapping[str, Tensor], tokens: Int64[Array, " L"]
) -> Float32[Array, " L-1"]:
    """Log-probs of tokens 1 … L−1, each given those before it, by the module's forward pass with `weights` in place of its own.

    Args:
        module: gives the computation; its own weights are neither read, where `weights` has them, nor changed.
        weights: by `state_dict` name; taken to the module's device.
        tokens: ids.
    """
    device = module.device
    own = (
        *module.named_parameters(),
        *module.named_buffers(),
    )  # of tied ones the first, which stands for the others
    placed = {name: weights[name].detach().to(device) for name, _ in own if name in weights}
    ids = torch.from_numpy(tokens).to(device)[None]
    was_training = module.training
    module.eval()
    try:
        output = torch.func.functional_call(
            module, placed, args=(), kwargs={"input_ids": ids, "use_cache": False}
        )
    finally:
        module.train(was_training)
    logps = output.logits[0, :-1].float().log_softmax(-1)
    return logps.gather(1, ids[0, 1:, None])[:, 0].cpu().numpy()


def distance(ours: Float32[Array, " L-1"], theirs: Float32[Array, " L-1"]) -> float:
    """Mean absolute difference in nats per token; infinite if one of them is not a number.

    >>> distance(np.array([-1.0, -2.0]), np.array([-1.5, -2.0]))
    0.25
    """
    difference = np.abs(ours - theirs)
    return float(difference.mean()) if np.isfinite(difference).all() else float("inf")


def default_tolerance(dtype: torch.dtype) -> float:
    """Rounding alone gives 1e-6 nats per token in float32 and some hundredths in bfloat16; other weights give 1 and more."""
    return 0.01 if dtype == torch.float32 else 0.15


def scrambled(tensor: Tensor) -> Tensor:
    """Other weights of the same shape: upside down, so that a tensor which an update leaves out shows in the log-probs.

    >>> scrambled(torch.tensor([1.0, 2.0])).tolist()
    [2.0, 1.0]
    """
    return tensor.flip(0) if tensor.ndim else tensor
