"""Decoders: one token for each slot, over a preallocated KV cache with its own position per slot.

`HFDecoder` runs the Hugging Face module itself (any attention-based causal LM); `fused.FusedDecoder` computes the Llama
family with fewer, larger operations. Both are checked against the plain forward pass when they are built.

Shapes: B slots, S cache length, C context (cache entries in use), N prefill rows, P prefill length, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from postgrad.core.errors import EngineError
from postgrad.core.models.head import fp32_head
from postgrad.core.models.masks import additive_mask, attention_layout
from postgrad.engines.torch_engine.prefix import put_prefixes


class Decoder(Protocol):
    """What the engine needs of a model."""

    module: PreTrainedModel

    def decode(self, token: Tensor, position: Tensor, context: int) -> Tensor:
        """token, position: int64 [n], the first n slots → logits [n, V]; writes the cache at `position`.

        `context` is an upper bound of `position + 1` known on the host.
        """
        ...

    def prefill(
        self, token: Tensor, row: Tensor, slot: Tensor, embeds: Sequence[Tensor | None] | None = None
    ) -> None:
        """token: int64 [N, P], right-padded. Writes the cache of row[i] of the batch into slot[i], positions 0..P−1.

        embeds: per row of the batch the input embeddings of its first M positions, [M, D], whatever `token` says there;
            None for a row without.
        """
        ...

    def copy(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copies the first `length` cache entries of slots `source` to slots `target`."""
        ...

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copies in new weights by `state_dict` name."""
        ...


class _SlotLayer(CacheLayerMixin):
    """One layer of the cache: keys and values [B, K, S, hd]; `update` writes one position per slot."""

    is_sliding = False

    def __init__(self, slots: int, length: int) -> None:
        super().__init__()
        self.slots, self.length = slots, length
        self.position = torch.zeros(0, dtype=torch.long)
        self.context = 0
        self.key_cache = self.value_cache = torch.zeros(0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def allocate(state: Tensor) -> Tensor:
            return state.new_zeros(self.slots, state.shape[1], self.length, state.shape[3])

        self.key_cache, self.value_cache = allocate(key_states), allocate(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        n = len(self.position)
        rows = torch.arange(n, device=key_states.device)
        self.key_cache[rows, :, self.position] = key_states[:, :, 0]
        self.value_cache[rows, :, self.position] = value_states[:, :, 0]
        return self.key_cache[:n, :, : self.context], self.value_cache[:n, :, : self.context]

    def write(self, slot: Tensor, keys: Tensor, values: Tensor) -> None:
        """keys, values: [N, K, P, hd], into positions 0..P−1 of the slots [N]."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.key_cache[slot, :, : keys.shape[2]] = keys
        self.value_cache[slot, :, : keys.shape[2]] = values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.context, 0

    def get_seq_length(self) -> int:
        return self.context

    def get_max_length(self) -> int:
        return self.length

    def get_max_cache_shape(self) -> int:
        return self.length


class HFDecoder:
    """Runs the Hugging Face module on a slot cache. Any causal LM whose layers are full or sliding attention."""

    def __init__(self, module: PreTrainedModel, slots: int, length: int, fp32_logits: bool) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        fp32_head(self.module, fp32_logits)
        if self.module.config._attn_implementation != "eager":
            self.module.set_attn_implementation("sdpa")
        self.layout = attention_layout(module.config)
        self.layers = [_SlotLayer(slots, length) for _ in range(self.layout.num_layers)]
        self.cache = Cache(layers=list(self.layers))
        self.device, self.dtype = module.device, module.dtype
        self._parameters = self.module.state_dict(keep_vars=True)

    @torch.inference_mode()
    def decode(self, token: Tensor, position: Tensor, context: int) -> Tensor:
        for layer in self.layers:
            layer.position, layer.context = position, context
        output = self.module(
            input_ids=token[:, None],
            position_ids=position[:, None],
            attention_mask=self._mask(position, context),
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def _mask(self, position: Tensor, context: int) -> Tensor | dict[str, Tensor]:
        distance = position[:, None] - torch.arange(context, device=position.device)
        distance = distance[:, None, None]  # [n, heads, query, key]
        return additive_mask(self.layout, distance >= 0, distance, self.dtype)

    @torch.inference_mode()
    def prefill(
        self, token: Tensor, row: Tensor, slot: Tensor, embeds: Sequence[Tensor | None] | None = None
    ) -> None:
        cache = DynamicCache()  # without a config every layer keeps all positions, sliding ones too
        inputs = {"input_ids": token}
        if embeds is not None:
            inputs = {"inputs_embeds": put_prefixes(self.module.get_input_embeddings()(token), embeds)}
        self.module(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        for index, layer in enumerate(self.layers):
            new: Any = cache.layers[index] if index < len(cache.layers) else None
            if new is None or new.keys is None:
                raise EngineError(
                    f"{type(self.module).__name__} shares KV caches between layers; this is not supported"
                )
            layer.write(slot, new.keys[row], new.values[row])

    @torch.inference_mode()
    def copy(self, source: Tensor, target: Tensor, length: int) -> None:
        for layer in self.layers:
            layer.write(target, layer.key_cache[source, :, :length], layer.value_cache[source, :, :length])

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.data.copy_(weights[name])


@torch.inference_mode()
def matches_forward(decoder: Decoder, module: PreTrainedModel) -> bool:
    """Whether prefill + decode give the logits of one plain forward pass, on a short random sequence."""
    generator = torch.Generator().manual_seed(0)
    token = torch.randint(0, module.config.get_text_config().vocab_size, (1, 6), generator=generator).to(
        module.device
    )
    was_training = module.training
    module.eval()
    expected = module(input_ids=token, use_cache=False).logits[0, -1].float()
    module.train(was_training)
    slot = torch.zeros(1, dtype=torch.long, device=module.device)
    decoder.prefill(token[:, :4], slot, slot)
    decoder.decode(token[:, 4], slot + 4, 5)
    logits = decoder.decode(token[:, 5], slot + 5, 6)[0].float()
    scale = float(expected.abs().max().clamp(min=1.0))
    tolerance = 2e-3 if module.dtype == torch.float32 else 0.05
    return bool(torch.isfinite(logits).all()) and float((logits - expected).abs().max()) <= tolerance * scale
