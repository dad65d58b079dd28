"""`core.protocols.Engine` by vLLM: its continuous batching, paged cache and kernels, one scheduler iteration per `step`.

- **Versions.** A step hands out exactly the tokens sampled in it, so they carry the version in force (`progress.py`).
- **Weights** go in between two steps, by vLLM's own `reload_weights`. Running sequences keep their cache, then stale; their
  blocks are never found by new ones, since a block is shared only among requests of one *epoch* (vLLM's cache salt), and
  every load and every snapshot begins a new one. A request is handed to vLLM only when a slot is free, so none waits
  there across a load.
- **Check.** vLLM starts with random weights and is given scrambled ones, then the model's; a probe compares its log-probs
  with a plain forward pass. Every later load sends the probe along with the next step.
- **Interruption.** The sequence is taken out and put in again with the phrase at its end; its own blocks are found again.

Sampling draws on vLLM's generator per request, seeded by (seed, request id, tokens so far): the same request gives the same
sample as long as its logits are the same, which vLLM does not promise in other batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from postgrad.core.errors import EngineError
from postgrad.core.models.memory import memory_layers
from postgrad.core.models.model import Model
from postgrad.core.types import Request, Sample
from postgrad.engines import ops
from postgrad.engines.config import VllmConfig
from postgrad.engines.vllm_engine import probe
from postgrad.engines.vllm_engine.backend import Leg, Output, VllmBackend
from postgrad.engines.vllm_engine.progress import Progress


class Backend(Protocol):
    """What the engine asks of vLLM; see `backend.VllmBackend`."""

    def add(self, leg: Leg) -> None: ...

    def step(self) -> list[Output]: ...

    def abort(self, names: Sequence[str]) -> None: ...

    def load(
        self, weights: Mapping[str, Tensor], change: Callable[[Tensor], Tensor] | None = None
    ) -> None: ...

    def close(self) -> None: ...


class VllmEngine:
    """`core.protocols.Engine` for any causal LM that vLLM knows. One per process: making another closes it.

    Args:
        model: its weights are copied; later changes come in by `load_weights` only. Its architecture computes the probe.
        slots: sequences in parallel.
        max_length: most tokens of prompt + completion.
        fp32_head: logits in fp32 whatever the model's dtype (ScaleRL §3.2).
        prefill_tokens: most tokens in one step, prompts included.
        truncated: requests may have top-p or top-k, and then temperature 1 or 0. Without, any temperature.
        options: vLLM's own.
        backend: in place of vLLM (for tests).

    Raises:
        MissingExtraError: vLLM is not installed.
        EngineError: vLLM cannot run the model, or computes something else with its weights.
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int,
        max_length: int,
        fp32_head: bool = True,
        prefill_tokens: int = 4096,
        truncated: bool = False,
        options: VllmConfig | None = None,
        backend: Backend | None = None,
    ) -> None:
        if model.context_length and max_length > model.context_length:
            raise EngineError(
                f"max_length {max_length} is above the model's context of {model.context_length} tokens; "
                "lower length.max_prompt_tokens or length.max_completion_tokens"
            )
        if memory_layers(model.module):
            raise EngineError('vLLM cannot run a model with memory layers; set engine.kind = "torch".')
        options = options or VllmConfig()
        self.slots, self.max_length, self.truncated = slots, max_length, truncated
        self.version = 0
        self.num_decoded_tokens = 0
        self._module = model.module
        self._stop = model.stop_token_ids
        self._tolerance = options.check_tolerance or probe.default_tolerance(model.dtype)
        vocab_size = model.module.config.get_text_config().vocab_size
        self._probe = probe.probe_tokens(vocab_size, model.context_length)
        self._expected: NDArray[np.float32] | None = None  # log-probs of the probe that is not back yet
        self._probe_leg = ""
        self._queue: deque[Progress] = deque()
        self._running: dict[str, Progress] = {}  # by name of the leg, oldest first
        self._epoch = 0
        self._num_legs = 0
        self._backend: Backend = backend or VllmBackend(
            model,
            slots=slots + 1,  # one for the probe
            max_length=max(max_length, len(self._probe) + 1),
            fp32_head=fp32_head,
            prefill_tokens=prefill_tokens,
            raw_logps=truncated,
            options=options,
        )
        weights = model.module.state_dict()
        self._backend.load(weights, probe.scrambled)
        self.load_weights(weights, 0)

    # -- the four methods of the protocol ------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._check(request)
        self._queue.extend(Progress(request) for request in requests)

    def step(self) -> list[Sample]:
        finished = self._admit()
        if not self._running:
            return finished
        self._send_probe()
        for output in self._backend.step():
            if output.name == self._probe_leg:
                self._read_probe(output)
            elif output.name in self._running:
                finished += self._advance(output)
        return finished

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """As in the protocol; the probe comes back at once in an idle engine, else with the next step.

        Raises:
            EngineError: vLLM computes something else with these weights; here, or in the next `step`.
        """
        self._drop_probe()
        self._backend.load(weights)
        self.version = version
        self._epoch += 1
        self._expected = probe.forward_logps(self._module, weights, self._probe)
        if not self._running:
            self._send_probe()
            while self._expected is not None:
                for output in self._backend.step():
                    self._read_probe(output)

    def snapshot(self) -> list[Request]:
        self._backend.abort([*self._running])
        taken = [progress.partial() for progress in (*self._running.values(), *self._queue)]
        self._running.clear()
        self._queue.clear()
        self._epoch += 1
        return taken

    def close(self) -> None:
        """Gives back vLLM's memory; the engine cannot be used any more."""
        self._running.clear()
        self._queue.clear()
        self._backend.close()

    # -- counts --------------------------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    # -- requests ------------------------------------------------------------------------------------------------

    def _check(self, request: Request) -> None:
        """Raises EngineError for a request that vLLM would not do justice to."""
        prompt = len(request.prompt_tokens)
        if prompt < 1 or request.max_tokens < 1 or prompt + request.max_tokens > self.max_length:
            raise EngineError(
                f"Request {request.id}: {prompt} prompt tokens + {request.max_tokens} completion tokens; the engine "
                f"takes 1 to {self.max_length} in all, with at least one token of prompt and of completion."
            )
        if len(request.tokens) >= request.max_tokens:
            raise EngineError(f"Request {request.id} already has its {request.max_tokens} completion tokens.")
        if request.prefix_embeds is not None:
            raise EngineError(
                f'Request {request.id} has prefix_embeds, which the vLLM engine does not take; set engine.kind = "torch".'
            )
        if request.temperature == 0:
            return
        if (request.top_p < 1 or request.top_k > 0) and not self.truncated:
            raise EngineError(
                f"Request {request.id} has top_p {request.top_p}, top_k {request.top_k}: without truncated = True vLLM's "
                "log-probs would be those of the truncated distribution. Make the engine with it, or use top_p 1, top_k 0."
            )
        if self.truncated and request.temperature != 1:
            raise EngineError(
                f"Request {request.id} has temperature {request.temperature}: with truncated = True vLLM's log-probs are those "
                'of temperature 1. Use 1 or 0, or engine.kind = "torch".'
            )

    def _admit(self) -> list[Sample]:
        """Fills the free slots; returns the samples that need no further token."""
        finished: list[Sample] = []
        while self._queue and len(self._running) < self.slots:
            progress = self._queue.popleft()
            progress.epoch = self._epoch
            progress.inject(self.version, self._stop)
            finished += self._go_on(progress)
        return finished

    def _go_on(self, progress: Progress) -> list[Sample]:
        """Begins a new leg, unless the completion has ended."""
        if progress.stop_reason is not None:
            return [progress.sample()]
        request = progress.request
        leg = Leg(
            name=self._new_name(),
            tokens=np.concatenate([request.prompt_tokens, np.array(progress.tokens, dtype=np.int64)]),
            max_tokens=progress.remaining,
            seed=ops.request_seed(request.seed, request.id, len(progress.tokens)),
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            salt=str(progress.epoch),
        )
        self._running[leg.name] = progress
        self._backend.add(leg)
        return []

    def _advance(self, output: Output) -> list[Sample]:
        """Takes in what a step gave a sequence; returns the sample if that was all."""
        progress = self._running[output.name]
        progress.absorb(output.tokens, output.logps, self.version, stopped=output.stopped)
        self.num_decoded_tokens += len(output.tokens)
        if progress.stop_reason is not None:
            if not output.finished:
                self._backend.abort([output.name])
            del self._running[output.name]
            return [progress.sample()]
        if progress.inject(self.version, self._stop):
            self._backend.abort([output.name])
            del self._running[output.name]
            return self._go_on(progress)
        if output.finished:
            raise EngineError(
                f"vLLM ended request {progress.request.id} after {len(progress.tokens)} of {progress.request.max_tokens} tokens."
            )
        return []

    def _new_name(self) -> str:
        self._num_legs += 1
        return str(self._num_legs)

    # -- the probe -----------------------------------------------------------------------------------------------

    def _send_probe(self) -> None:
        if self._expected is None or self._probe_leg:
            return
        self._probe_leg = self._new_name()
        self._backend.add(Leg(self._probe_leg, self._probe, 1, 0, 0.0, 1.0, 0, str(self._epoch), probe=True))

    def _drop_probe(self) -> None:
        if self._probe_leg:
            self._backend.abort([self._probe_leg])
        self._probe_leg, self._expected = "", None

    def _read_probe(self, output: Output) -> None:
        if output.prompt_logps is None or self._expected is None:
            if output.finished:
                raise EngineError("vLLM gave no log-probs of the probe, so its weights cannot be checked.")
            return
        found = probe.distance(output.prompt_logps, self._expected)
        self._probe_leg, self._expected = "", None
        if found > self._tolerance:
            raise EngineError(
                f"vLLM does not compute with the weights of version {self.version}: its log-probs of {len(self._probe)} probe "
                f"tokens are {found:.3g} nats per token away from those of a plain forward pass; rounding is at most "
                f"{self._tolerance:g}. Training on its samples would be wrong without a sign of it. Try "
                'engine.vllm.enforce_eager = true or model.dtype = "bfloat16"; engine.kind = "torch" always works. If the '
                "difference is rounding after all, raise engine.vllm.check_tolerance."
            )
