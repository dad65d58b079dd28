"""vLLM itself: the only file that knows its API. Everything is called from one thread, between vLLM's own steps.

The engine core lives in this process, so a step is one scheduler iteration and weights go in by reference. Async scheduling
is off: with it a step would hand out tokens that were sampled before the weights changed.
"""

from __future__ import annotations

import importlib
import os
import random
import tempfile
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from postgrad.core.errors import EngineError, MissingExtraError
from postgrad.core.models.model import Model
from postgrad.engines.config import VllmConfig

_live: weakref.ref[Any] | None = None
"""The core of the one engine: vLLM's state, groups of `torch.distributed` among it, belongs to the process."""


class Leg(NamedTuple):
    """One vLLM request.

    Attributes:
        name: unique among those in vLLM.
        tokens: int64, prompt and what has been generated.
        max_tokens: most tokens to add.
        seed: of the leg's own generator.
        temperature, top_p, top_k: as in `Request`.
        salt: only legs of the same salt share cached blocks.
        probe: return the log-probs of `tokens`.
    """

    name: str
    tokens: NDArray[np.int64]
    max_tokens: int
    seed: int
    temperature: float
    top_p: float
    top_k: int
    salt: str
    probe: bool = False


class Output(NamedTuple):
    """What one step gave a leg.

    Attributes:
        name: of the leg.
        tokens, logps: sampled in this step.
        finished: the leg has left vLLM …
        stopped: … since its last token is a stop token.
        prompt_logps: float32 [L − 1] for a probe, else None.
    """

    name: str
    tokens: list[int]
    logps: list[float]
    finished: bool
    stopped: bool
    prompt_logps: NDArray[np.float32] | None = None


class VllmBackend:
    """vLLM's engine with the architecture of `model` and random weights: call `load` before anything else.

    Args:
        model: gives architecture, dtype and stop tokens.
        slots: most legs at once.
        max_length: most tokens of a leg, in all.
        fp32_head: logits in fp32 whatever the dtype.
        prefill_tokens: most tokens in one step.
        raw_logps: log-probs at temperature 1 before truncation, instead of those that tokens were drawn by.
        options: vLLM's own.

    Raises:
        MissingExtraError: vLLM is not installed.
        EngineError: vLLM cannot run the model, or not here.
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int,
        max_length: int,
        fp32_head: bool,
        prefill_tokens: int,
        raw_logps: bool,
        options: VllmConfig,
    ) -> None:
        self._vllm = _import_vllm()
        _close_live()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise EngineError(
                "vLLM takes the process group of torch.distributed for itself, and this process has one already. "
                "Make the engine in a process of its own."
            )
        self._module = model.module
        self._stop = list(model.stop_token_ids)
        self._workers = options.tensor_parallel_size
        arguments = {
            "skip_tokenizer_init": True,
            "load_format": "dummy",
            "generation_config": "vllm",
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": max_length,
            "max_num_seqs": slots,
            "max_num_batched_tokens": max(prefill_tokens, slots),
            "enable_chunked_prefill": True,
            "enable_prefix_caching": True,
            "async_scheduling": False,
            "logprobs_mode": "raw_logprobs" if raw_logps else "processed_logprobs",
            "hf_overrides": {"head_dtype": "float32"} if fp32_head else {},
            "disable_log_stats": True,
            "tensor_parallel_size": self._workers,
            "distributed_executor_backend": "uni" if self._workers == 1 else "mp",
            "gpu_memory_utilization": options.gpu_memory_utilization,
            "enforce_eager": options.enforce_eager,
        }
        if options.kv_cache_gb is not None:
            arguments["kv_cache_memory_bytes"] = int(options.kv_cache_gb * 1e9)
        with _undisturbed(), tempfile.TemporaryDirectory(prefix="postgrad-") as folder:
            _write_config(model.module, Path(folder))
            try:
                self._engine: Any = _start(folder, arguments, one_worker=self._workers == 1)
            except Exception as error:  # raised inside vLLM: of any kind, from any of its parts
                line = (str(error).strip().splitlines() or [""])[0]
                raise EngineError(
                    f"vLLM cannot run {type(model.module).__name__} here: {type(error).__name__}: {line}\n"
                    'Check engine.vllm, or set engine.kind = "torch".'
                ) from error

        _set_live(self._engine.engine_core)

    def close(self) -> None:
        """Gives back vLLM's memory; may be repeated."""
        self._engine.engine_core.shutdown()
        if _is_live(self._engine.engine_core):
            _set_live(None)

    def _check_open(self) -> None:
        if not _is_live(self._engine.engine_core):
            raise EngineError(
                "This vLLM engine was closed, by close() or when another one was made: vLLM keeps one per process."
            )

    def add(self, leg: Leg) -> None:
        """Queues a leg."""
        self._check_open()
        greedy = leg.temperature == 0
        output_kind = importlib.import_module("vllm.sampling_params").RequestOutputKind
        params = self._vllm.SamplingParams(
            max_tokens=leg.max_tokens,
            temperature=leg.temperature,
            top_p=1.0 if greedy else leg.top_p,
            top_k=0 if greedy else leg.top_k,
            seed=leg.seed,
            stop_token_ids=self._stop,
            ignore_eos=True,  # `stop_token_ids` has it
            logprobs=0,
            prompt_logprobs=0 if leg.probe else None,
            detokenize=False,
            output_kind=output_kind.DELTA,
        )
        prompt = {"prompt_token_ids": leg.tokens.tolist(), "cache_salt": leg.salt}
        with _quiet():
            self._engine.add_request(leg.name, prompt, params)

    def step(self) -> list[Output]:
        """One scheduler iteration."""
        self._check_open()
        with _quiet():
            return [_read(output) for output in self._engine.step()]

    def abort(self, names: Sequence[str]) -> None:
        """Takes legs out."""
        self._check_open()
        self._engine.abort_request(list(names))

    def load(self, weights: Mapping[str, Tensor], change: Callable[[Tensor], Tensor] | None = None) -> None:
        """Replaces all weights in place by vLLM's `reload_weights`; legs go on, with the cache they have.

        Args:
            weights: by `state_dict` name.
            change: applied to each tensor on its way.
        """
        self._check_open()
        named = revert_weight_conversion(self._module, dict(weights))
        changed = ((name, change(tensor) if change else tensor.detach()) for name, tensor in named.items())
        with _quiet():
            if self._workers == 1:
                self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": changed})
                return
            with tempfile.TemporaryDirectory(prefix="postgrad-") as folder:
                path = _write_weights(changed, Path(folder))
                self._engine.collective_rpc(load_from_file, args=(str(path),))


def load_from_file(worker: Any, path: str) -> None:
    """Runs in each worker of a model that is shared by several devices."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        worker.reload_weights(weights_iterator=((name, file.get_tensor(name)) for name in file.keys()))  # noqa: SIM118


def _set_live(core: Any) -> None:
    global _live
    _live = None if core is None else weakref.ref(core)


def _is_live(core: Any) -> bool:
    return _live is not None and _live() is core


def _close_live() -> None:
    """Also one that nobody holds any more, before the garbage collector does so in the middle of the next one's life."""
    core = None if _live is None else _live()
    if core is not None:
        core.shutdown()
        _set_live(None)


def _import_vllm() -> Any:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        with _quiet():
            return importlib.import_module("vllm")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "vllm":
            raise MissingExtraError("vllm", "vllm", 'engine.kind = "vllm"') from None
        raise


def _start(folder: str, arguments: dict[str, Any], *, one_worker: bool) -> Any:
    """vLLM's engine with its core in this process."""
    arg_utils = importlib.import_module("vllm.engine.arg_utils")
    llm_engine = importlib.import_module("vllm.v1.engine.llm_engine")
    executor = importlib.import_module("vllm.v1.executor")
    config = arg_utils.EngineArgs(model=folder, **arguments).create_engine_config()
    kind = executor.Executor.get_class(config)
    if one_worker:  # on a CPU vLLM would put even a single worker into a process of its own
        kind = importlib.import_module("vllm.v1.executor.uniproc_executor").UniProcExecutor
    return llm_engine.LLMEngine(config, kind, log_stats=False, multiprocess_mode=False)


def _read(output: Any) -> Output:
    [completion] = output.outputs
    if completion.finish_reason not in (None, "stop", "length", "abort"):
        raise EngineError(
            f"vLLM ended a sequence by {completion.finish_reason!r} ({completion.stop_reason}); its log has the cause "
            "(set VLLM_LOGGING_LEVEL=INFO)."
        )
    tokens = list(completion.token_ids)
    logps: list[float] = [
        entry[token].logprob for entry, token in zip(completion.logprobs or (), tokens, strict=True)
    ]
    prompt_logps = None
    if output.prompt_logprobs:
        ids = output.prompt_token_ids[1:]
        pairs = zip(output.prompt_logprobs[1:], ids, strict=True)
        prompt_logps = np.array([entry[token].logprob for entry, token in pairs], dtype=np.float32)
    return Output(
        name=output.request_id,
        tokens=tokens,
        logps=logps,
        finished=output.finished,
        stopped=completion.finish_reason == "stop",
        prompt_logps=prompt_logps,
    )


def _write_config(module: PreTrainedModel, folder: Path) -> None:
    config: Any = module.config
    before = config.architectures
    config.architectures = [type(module).__name__]
    try:
        config.save_pretrained(folder)
    finally:
        config.architectures = before


def _write_weights(weights: Iterator[tuple[str, Tensor]], folder: Path) -> Path:
    """One safetensors file; of tensors that are tied, the first."""
    from safetensors.torch import save_file

    kept: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in weights:
        if tensor.data_ptr() not in places:
            kept[name] = tensor.contiguous()
            places.add(tensor.data_ptr())
    path = folder / "weights.safetensors"
    save_file(kept, path)
    return path


@contextmanager
def _quiet() -> Generator[None]:
    """Warnings of vLLM are about its own code; what matters is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _undisturbed() -> Generator[None]:
    """vLLM seeds the global generators when it starts; afterwards they are as they were."""
    states = random.getstate(), np.random.get_state()
    with _quiet(), torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
