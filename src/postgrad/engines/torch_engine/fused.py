"""The Llama family (Llama, Mistral, Qwen2, Qwen3) in few large operations, for fp32 decoding.

Assumptions: RMSNorm before attention and MLP, rotary embeddings that do not depend on the sequence length, grouped
query attention over the full context, SwiGLU. What is folded into the weights when they are loaded:

- the RMSNorm weights g into the projection that follows, the final one into the head; with c = √(D·eps) the norm is
  x/hypot(‖x‖, c)·√D·g, so the projection holds W·√D·diag(g) and the norm itself is three operations;
- q, k, v into one matrix, gate and up into one;
- rotation signs, the softmax scale and Qwen3's q/k norm weights (with their √hd) into per-position tables.

Keys are kept transposed, [B, K, hd, S], which makes the product with a single query a plain row-times-matrix.

In exact arithmetic this is the same function; in fp32 it differs from the module by rounding (~1e-6 of the logits).
Per token and layer it reads every weight once: 2·(parameters) FLOP per slot, and B·2·K·C·hd cache entries.

Shapes: B slots, D width, H query heads, K key-value heads, hd head size, C context, S cache length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from postgrad.core.models.memory import memory_config
from postgrad.engines.torch_engine.prefix import put_prefixes

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")


def supports(module: PreTrainedModel) -> bool:
    """Whether the fused decoder computes this module."""
    config = module.config
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in SUPPORTED
        and memory_config(module) is None
        and module.dtype == torch.float32
        and set(layer_types) == {"full_attention"}
        and (config.model_type != "mistral" or config.sliding_window is None)
        and rope.get("rope_type", "default") in ("default", "linear", "llama3", "yarn")
        and getattr(config, "hidden_act", "silu") == "silu"
    )


class _Layer:
    """Fused weights and the KV cache of one layer."""

    def __init__(self, block: Any, slots: int, length: int, shape: tuple[int, int, int]) -> None:
        heads, kv_heads, head_dim = shape
        self.block = block
        weight = block.self_attn.q_proj.weight
        self.qkv = weight.new_empty((heads + 2 * kv_heads) * head_dim, weight.shape[1])
        self.qkv_bias = self.qkv.new_empty(len(self.qkv)) if block.self_attn.q_proj.bias is not None else None
        self.out = torch.empty_like(block.self_attn.o_proj.weight).t().contiguous()
        self.gate_up = weight.new_empty(2 * block.mlp.gate_proj.weight.shape[0], weight.shape[1])
        self.down = torch.empty_like(block.mlp.down_proj.weight).t().contiguous()
        self.cos = weight.new_empty(length, heads + kv_heads, head_dim)
        self.sin = torch.empty_like(self.cos)
        self.keys = weight.new_zeros(slots, kv_heads, head_dim, length)
        self.values = weight.new_zeros(slots, kv_heads, length, head_dim)


class FusedDecoder:
    """See the module docstring; the interface is `decoder.Decoder`."""

    def __init__(self, module: PreTrainedModel, slots: int, length: int, *, compile: bool = False) -> None:
        config = module.config
        self.module = module
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.length = length
        self.width = config.hidden_size
        self.floor, self.head_floor = (
            torch.tensor((size * config.rms_norm_eps) ** 0.5, device=module.device)
            for size in (self.width, self.head_dim)
        )
        model: Any = module.model
        shape = (self.heads, self.kv_heads, self.head_dim)
        with torch.inference_mode():
            self.layers = [_Layer(block, slots, length, shape) for block in model.layers]
            self.embedding = torch.empty_like(model.embed_tokens.weight)
            head: Any = module.get_output_embeddings()
            self.head = torch.empty_like(head.weight)
            self._rope = self._rope_tables(model.rotary_emb)
        self._prefix = "model."
        self._run = torch.compile(self._forward, dynamic=False) if compile else self._forward
        self.static = compile
        self.load(module.state_dict())

    def _rope_tables(self, rotary: Any) -> tuple[Tensor, Tensor]:
        """cos, and sin with the sign of rotate_half in it; [S, hd] each."""
        device = self.module.device
        position = torch.arange(self.length, device=device)[None]
        cos, sin = rotary(torch.zeros(1, 1, 1, device=device), position)
        half = self.head_dim // 2
        sign = torch.cat([-torch.ones(half, device=device), torch.ones(half, device=device)])
        return cos[0].float(), sin[0].float() * sign

    @torch.inference_mode()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        def get(name: str) -> Tensor:
            return weights[self._prefix + name]

        root = self.width**0.5
        self.embedding.copy_(get("embed_tokens.weight"))
        head = weights.get("lm_head.weight", get("embed_tokens.weight"))
        self.head.copy_(head * (root * get("norm.weight")))
        for index, layer in enumerate(self.layers):
            name = f"layers.{index}."
            before = root * get(name + "input_layernorm.weight")
            after = root * get(name + "post_attention_layernorm.weight")
            parts = [name + f"self_attn.{part}_proj" for part in "qkv"]
            torch.cat([get(part + ".weight") * before for part in parts], out=layer.qkv)
            if layer.qkv_bias is not None:
                torch.cat([get(part + ".bias") for part in parts], out=layer.qkv_bias)
            layer.out.copy_(get(name + "self_attn.o_proj.weight").t())
            torch.cat(
                [get(name + f"mlp.{part}_proj.weight") * after for part in ("gate", "up")], out=layer.gate_up
            )
            layer.down.copy_(get(name + "mlp.down_proj.weight").t())
            self._load_tables(layer, weights, self._prefix + name + "self_attn.")

    def _load_tables(self, layer: _Layer, weights: Mapping[str, Tensor], name: str) -> None:
        """Rotary tables per head with the q/k norm weights and the softmax scale 1/√hd in them."""
        self.has_qk_norm = name + "q_norm.weight" in weights
        root = self.head_dim**0.5 if self.has_qk_norm else 1.0
        cos, sin = self._rope
        half = self.head_dim // 2
        ones = torch.ones(self.head_dim, device=cos.device)
        for heads, which, scale in (
            (slice(0, self.heads), "q_norm.weight", root * self.head_dim**-0.5),
            (slice(self.heads, None), "k_norm.weight", root),
        ):
            gain = weights.get(name + which, ones) * scale
            layer.cos[:, heads] = (cos * gain)[:, None]
            layer.sin[:, heads] = (sin * gain.roll(half))[:, None]

    @torch.inference_mode()
    def decode(self, token: Tensor, position: Tensor, context: int) -> Tensor:
        return self._run(token, position, self.length if self.static else context)

    @staticmethod
    def _norm(x: Tensor, floor: Tensor) -> Tensor:
        """x/√(‖x‖² + D·eps): RMSNorm without its factor √D, which is in the weights. `floor` = √(D·eps)."""
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)

    def _rotate(self, qk: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.has_qk_norm:
            qk = self._norm(qk, self.head_floor)
        return qk * cos + qk.roll(self.head_dim // 2, -1) * sin

    def _forward(self, token: Tensor, position: Tensor, context: int) -> Tensor:
        n, heads, kv_heads, hd = len(token), self.heads, self.kv_heads, self.head_dim
        rows = torch.arange(n, device=token.device)
        hidden = torch.arange(context, device=token.device)[None] > position[:, None]
        mask = torch.zeros(n, context, device=token.device).masked_fill_(hidden, float("-inf"))[:, None, None]
        x = F.embedding(token, self.embedding)
        for layer in self.layers:
            qkv = F.linear(self._norm(x, self.floor), layer.qkv, layer.qkv_bias)
            qkv = qkv.view(n, heads + 2 * kv_heads, hd)
            qk = self._rotate(qkv[:, : heads + kv_heads], layer.cos[position], layer.sin[position])
            layer.keys[rows, :, :, position] = qk[:, heads:]
            layer.values[rows, :, position] = qkv[:, heads + kv_heads :]
            query = qk[:, :heads].view(n, kv_heads, heads // kv_heads, hd)
            scores = torch.matmul(query, layer.keys[:n, :, :, :context]) + mask
            mixed = torch.matmul(scores.softmax(-1), layer.values[:n, :, :context]).view(n, heads * hd)
            x = torch.addmm(x, mixed, layer.out)
            gate, up = F.linear(self._norm(x, self.floor), layer.gate_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate) * up, layer.down)
        return F.linear(self._norm(x, self.floor), self.head)

    @torch.inference_mode()
    def prefill(
        self, token: Tensor, row: Tensor, slot: Tensor, embeds: Sequence[Tensor | None] | None = None
    ) -> None:
        count, length = token.shape
        heads, kv_heads, hd = self.heads, self.kv_heads, self.head_dim
        x = F.embedding(token, self.embedding)
        if embeds is not None:
            x = put_prefixes(x, embeds)
        for index, layer in enumerate(self.layers):
            qkv = F.linear(self._norm(x, self.floor), layer.qkv, layer.qkv_bias)
            qkv = qkv.view(count, length, heads + 2 * kv_heads, hd)
            qk = self._rotate(qkv[:, :, : heads + kv_heads], layer.cos[:length], layer.sin[:length])
            query, key, value = (
                part.transpose(1, 2)
                for part in (qk[:, :, :heads], qk[:, :, heads:], qkv[:, :, heads + kv_heads :])
            )
            layer.keys[slot, :, :, :length] = key.transpose(2, 3).contiguous()[row]
            layer.values[slot, :, :length] = value[row]
            if index == len(self.layers) - 1:
                return  # the last layer's output is not needed: decoding starts from the last prompt token
            mixed = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=1.0, enable_gqa=True
            )
            x = x + mixed.transpose(1, 2).reshape(count, length, heads * hd) @ layer.out
            gate, up = F.linear(self._norm(x, self.floor), layer.gate_up).chunk(2, -1)
            x = x + (F.silu(gate) * up) @ layer.down

    @torch.inference_mode()
    def copy(self, source: Tensor, target: Tensor, length: int) -> None:
        for layer in self.layers:
            layer.keys[target, :, :, :length] = layer.keys[source, :, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]
