"""Prefix embeddings: virtual tokens before the prompt, e.g. the latent thoughts of another agent.

The engine keeps one placeholder id for each of them, so that its tables stay indexed by absolute position; only the
prefill puts the embeddings in their place. They need no position of their own: decoding starts from a real token.

Shapes: M virtual tokens, P prompt length, D width of the input embeddings, N prefill rows, L prefill length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from postgrad.core.errors import EngineError
from postgrad.core.types import Request

_PLACEHOLDER = 0
"""Any id of the vocabulary: its embedding is replaced before the model reads it."""


def num_virtual(request: Request) -> int:
    """M, the number of virtual tokens."""
    return 0 if request.prefix_embeds is None else len(request.prefix_embeds)


def context_tokens(request: Request) -> NDArray[np.int64]:
    """int64 [M + P]: the placeholders, then the prompt; what precedes the completion."""
    return np.concatenate([np.full(num_virtual(request), _PLACEHOLDER), request.prompt_tokens])


def context_key(request: Request) -> tuple[int, int]:
    """Equal for requests that can share the cache of their context: the group, and a hash of the prefix's values."""
    embeds = request.prefix_embeds
    return request.group_id, 0 if embeds is None else hash(embeds.tobytes())


def prefix_tensor(embeds: NDArray[np.float32] | None) -> Tensor | None:
    """A copy [M, D] as a tensor; the array may be a view of any strides."""
    return None if embeds is None else torch.from_numpy(embeds.copy())


def put_prefixes(x: Tensor, embeds: Sequence[Tensor | None]) -> Tensor:
    """Overwrites x [N, L, D] in place: the first M positions of row i become embeds[i] [M, D]; M may differ between rows.

    >>> put_prefixes(torch.zeros(2, 3, 1), [torch.ones(2, 1), None])[..., 0].tolist()
    [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    for row, own in zip(x, embeds, strict=True):
        if own is not None:
            row[: len(own)] = own.to(x)
    return x


def check_prefix(request: Request, module: PreTrainedModel) -> None:
    """Raises EngineError if `module` cannot take the prefix of `request`."""
    embeds = request.prefix_embeds
    if embeds is None:
        return
    per_layer = getattr(module.config.get_text_config(), "hidden_size_per_layer_input", None)
    if per_layer:
        raise EngineError(
            f"Request {request.id} has prefix_embeds, which {type(module).__name__} cannot take: each of its layers has input "
            f"embeddings of its own ({per_layer} wide), and a virtual token has none for them. Use a model without them, or "
            "prefix_embeds=None."
        )
    embedding: Any = module.get_input_embeddings()
    width = embedding.weight.shape[1]
    valid = f"valid is a NumPy array float32 [M, {width}], as wide as the input embeddings of {type(module).__name__}"
    if embeds.dtype != np.float32 or embeds.ndim != 2 or embeds.shape[1] != width:
        raise EngineError(
            f"Request {request.id}: prefix_embeds is {embeds.dtype} {list(embeds.shape)}; {valid}."
        )
    bad = int((~torch.from_numpy(embeds.copy()).to(module.dtype).isfinite()).sum())
    if bad:
        raise EngineError(
            f"Request {request.id}: {bad} of the {embeds.size} values of prefix_embeds are not finite in the model's "
            f"{module.dtype}; {valid}, all of it finite. Look at what computed them."
        )
