"""Options of the generation engines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from postgrad.core.config import Config


class VllmConfig(Config):
    """What is vLLM's own (extra `vllm`); the rest of `EngineConfig` holds for both engines."""

    gpu_memory_utilization: float = Field(default=0.4, gt=0, le=1)
    """Share of the device's memory for weights and KV cache; the trainer on the same device needs the rest."""
    kv_cache_gb: float | None = Field(default=None, gt=0)
    """GB of the KV cache, instead of what `gpu_memory_utilization` leaves for it."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Devices that share one copy of the model. Above 1 (not tried on GPUs yet), new weights go to them through a folder."""
    enforce_eager: bool = False
    """No torch.compile and no CUDA graphs: starts sooner, generates slower."""
    check_tolerance: float | None = Field(default=None, gt=0)
    """Most mean difference, in nats per token, between vLLM's log-probs of the probe and those of a plain forward pass
    of the same weights. None = 0.01 in float32, 0.15 below."""


class EngineConfig(Config):
    """Continuous batching over a fixed number of slots, by the house's own engine or by vLLM."""

    kind: Literal["torch", "vllm"] = "torch"
    """`torch`: any causal LM, on CPU and GPU, exact resume. `vllm`: large models on GPUs; needs the extra `vllm`."""
    slots: int = Field(default=64, ge=1)
    """Sequences generated at the same time, by each generator."""
    generators: int = Field(default=0, ge=0)
    """Processes that generate while the trainer works; they take new weights in mid-sequence, and one that dies is replaced. 0 =
    the trainer's own process generates, in turn with training, on a virtual clock: reproducible to the bit."""
    generator_devices: tuple[str, ...] = ()
    """Of the generators, in turn, such as cuda:1,cuda:2. Empty = the GPUs that the trainer is not on, if there are any, else its
    device."""
    generator_threads: int = Field(default=1, ge=1)
    """Of each generator. The trainer gets the other cores, unless OMP_NUM_THREADS says how many."""
    lockstep: bool = False
    """Generators wait for the virtual clock: slow, and the same to the bit as without generators. For checking."""
    compile: bool = False
    """torch.compile of the decode step (torch engine; Llama family in fp32). Costs 20 to 60 s once per machine and shape."""
    prefill_tokens: int = Field(default=4096, ge=1)
    """Most prompt tokens computed in one prefill."""
    vllm: VllmConfig = Field(default_factory=VllmConfig)

    @field_validator("generator_devices", mode="before")
    @classmethod
    def _devices(cls, value: object) -> object:
        return tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else value
