"""From a config to an engine: in this process, or generators beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from postgrad.core.cluster import ClusterConfig, connect
from postgrad.core.errors import EngineError, is_out_of_memory
from postgrad.core.models.model import Model
from postgrad.core.protocols import Engine
from postgrad.engines.config import EngineConfig
from postgrad.engines.remote.fleet import Fleet
from postgrad.engines.remote.process import Processes
from postgrad.engines.remote.ray import RayActors
from postgrad.engines.remote.worker import Build
from postgrad.engines.torch_engine.engine import TorchEngine
from postgrad.engines.vllm_engine.engine import VllmEngine


def build_engine(
    model: Model, config: EngineConfig, *, max_length: int, fp32_head: bool, truncated: bool = False
) -> Engine:
    """One engine in this process, with a copy of the model's weights.

    Args:
        max_length: most tokens of prompt and completion together.
        fp32_head: logits in fp32.
        truncated: requests may have top-p or top-k.

    Raises:
        EngineError: no room for its cache.
    """
    try:
        return _build(model, config, max_length, fp32_head, truncated)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise EngineError(
            f"A KV cache for {config.slots:,} sequences of {max_length:,} tokens does not fit into memory. Lower engine.slots, "
            "length.max_completion_tokens or length.max_prompt_tokens."
        ) from error


def _build(
    model: Model, config: EngineConfig, max_length: int, fp32_head: bool, truncated: bool
) -> TorchEngine | VllmEngine:
    if config.kind == "vllm":
        return VllmEngine(
            model,
            slots=config.slots,
            max_length=max_length,
            fp32_head=fp32_head,
            prefill_tokens=config.prefill_tokens,
            truncated=truncated,
            options=config.vllm,
        )
    return TorchEngine(
        model,
        slots=config.slots,
        max_length=max_length,
        fp32_head=fp32_head,
        compile=config.compile,
        prefill_tokens=config.prefill_tokens,
    )


@contextmanager
def open_fleet(
    model: Model,
    config: EngineConfig,
    note: Callable[[str], None],
    cluster: ClusterConfig | None = None,
    **options: Any,
) -> Generator[Fleet]:
    """`config.generators` processes, or actors of a cluster (at least one), with an engine each, ended with the context;
    `options` are those of `build_engine`.

    On a CPU the trainer's threads are the cores that generators leave, unless OMP_NUM_THREADS says how many.
    """
    build = partial(build_engine, config=config, **options)
    devices = config.generator_devices or _other_devices(model.device)
    address = None if cluster is None else cluster.address
    with ExitStack() as stack:
        if cluster is not None and address is not None:
            source = _actors(model, build, config, cluster, address)
        else:
            source = Processes(model, build, devices, config.generator_threads, lockstep=config.lockstep)
        count = max(1, config.generators)
        fleet = stack.enter_context(Fleet(source, count, note, lockstep=config.lockstep))
        beside = model.device.type == "cpu" and address in (None, "local")
        if beside and "OMP_NUM_THREADS" not in os.environ:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            torch.set_num_threads(max(1, cores - count * config.generator_threads))
        yield fleet


def _actors(
    model: Model, build: Build, config: EngineConfig, cluster: ClusterConfig, address: str
) -> RayActors:
    gpus = cluster.generator_gpus
    if gpus is None:
        gpus = 1.0 if model.device.type == "cuda" else 0.0
    return RayActors(
        connect(address), address, model, build, config.generator_threads, gpus, lockstep=config.lockstep
    )


def _other_devices(device: torch.device) -> tuple[str, ...]:
    """GPUs without the trainer, or its device."""
    if device.type != "cuda":
        return (str(device),)
    own = device.index or 0
    others = tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()) if index != own)
    return others or (str(device),)
