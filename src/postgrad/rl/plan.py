"""What a run will take, before it starts: parameters, memory, and a lower bound on time."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from postgrad.core.models import load_skeleton
from postgrad.core.models.lora import count_lora
from postgrad.core.models.masks import attention_layout
from postgrad.core.models.model import resolve_device, resolve_dtype
from postgrad.rl.config import RLConfig

_GIB = 2**30


class Plan(NamedTuple):
    """Counts in bytes, FLOP and seconds.

    Attributes:
        num_parameters: of the policy, its adapter included.
        weights_bytes, engine_bytes, gradient_bytes, optimizer_bytes: policy, the engine's copy, gradients, AdamW's moments
            (and fp32 masters of bf16 weights).
        kv_cache_bytes: slots · (max prompt + max completion) tokens.
        logits_bytes: fp32 logits of one micro-batch, forward and backward.
        flops_per_update: 2·N per generated token, 4·N and 2 per parameter that changes per trained token, every
            completion at its longest.
        matmul_flops: measured rate of a matrix product on this device, FLOP/s.
    """

    num_parameters: int
    weights_bytes: int
    engine_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    kv_cache_bytes: int
    logits_bytes: int
    flops_per_update: float
    matmul_flops: float

    @property
    def memory_bytes(self) -> int:
        """Sum of the parts (activations of the layers are not counted)."""
        return sum(value for name, value in self._asdict().items() if name.endswith("_bytes"))

    def lines(self, steps: int) -> list[str]:
        """For people."""
        seconds = self.flops_per_update / self.matmul_flops
        parts = {
            "weights": self.weights_bytes,
            "engine copy": self.engine_bytes,
            "gradients": self.gradient_bytes,
            "AdamW": self.optimizer_bytes,
            "KV cache": self.kv_cache_bytes,
            "logits": self.logits_bytes,
        }
        shown = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in parts.items())
        return [
            f"parameters          {self.num_parameters:,}",
            f"memory, at least    {self.memory_bytes / _GIB:.2f} GiB: {shown}",
            f"compute per update  {self.flops_per_update:.2e} FLOP if every completion has its full length",
            f"matrix products     {self.matmul_flops / 1e9:,.0f} GFLOP/s measured here",
            f"time                {seconds:.2f} s an update, {seconds * steps / 60:.1f} min for {steps} updates at that rate; "
            "expect several times that for small models, less for short completions",
        ]


def make_plan(config: RLConfig) -> Plan:
    """Builds the model's shape without its weights and measures one matrix product (under a second)."""
    device = resolve_device(config.model.device)
    dtype = resolve_dtype(config.model.dtype, device)
    module = load_skeleton(config.model)
    text = module.config.get_text_config()
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    size = dtype.itemsize
    num_trained, gradient_bytes = num_parameters, num_parameters * size
    optimizer_bytes = num_parameters * (8 if size == 4 else 12)
    if config.lora is not None:  # the adapter is fp32
        num_trained = count_lora(module, config.lora)
        num_parameters += num_trained
        gradient_bytes, optimizer_bytes = 4 * num_trained, 8 * num_trained
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    layers = attention_layout(module.config).num_layers
    length = config.length.max_prompt_tokens + config.length.max_completion_tokens
    context = getattr(text, "max_position_embeddings", None) or length
    tokens = (
        config.algorithm.prompts_per_batch
        * config.algorithm.samples_per_prompt
        * config.length.max_completion_tokens
    )
    return Plan(
        num_parameters=num_parameters,
        weights_bytes=num_parameters * size,
        engine_bytes=num_parameters * size,
        gradient_bytes=gradient_bytes,
        optimizer_bytes=optimizer_bytes,
        kv_cache_bytes=2 * layers * heads * head_dim * config.engine.slots * min(length, context) * size,
        logits_bytes=2 * 4 * config.optimizer.micro_batch_tokens * text.vocab_size,
        flops_per_update=(6.0 * num_parameters + 2.0 * num_trained) * tokens,
        matmul_flops=_matmul_rate(device, dtype),
    )


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        product = a @ a
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best
