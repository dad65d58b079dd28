"""Continuous batching: B slots decode in lockstep, each at its own position; a finished slot is refilled at once.

One step is one forward pass of one token for every running slot. The prompt is computed once per group: later samples
of the group copy the cache of an earlier one. A prefix of embeddings stands before it as virtual tokens (`prefix.py`).
Every token's log-prob and weights version are recorded as it is sampled, and `load_weights` may come between any two
steps; running sequences keep their (then stale) cache.

Sampling draws on one uniform number per token that depends on (seed, request id, token index) alone, so a sample does
not depend on the slot, the batch or what else is running.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from postgrad.core.errors import EngineError
from postgrad.core.models.model import Model
from postgrad.core.types import Request, Sample
from postgrad.engines import ops
from postgrad.engines.torch_engine import fused
from postgrad.engines.torch_engine.decoder import Decoder, HFDecoder, matches_forward
from postgrad.engines.torch_engine.prefix import (
    check_prefix,
    context_key,
    context_tokens,
    num_virtual,
    prefix_tensor,
)

_CONTEXT_STEP = 16
"""Attention reads the cache up to the longest running sequence, rounded up to this many positions."""


def make_decoder(
    model: Model,
    slots: int,
    length: int,
    *,
    fp32_head: bool,
    compile: bool,
    kind: Literal["auto", "hf"] = "auto",
) -> Decoder:
    """The fastest decoder that reproduces the model's forward pass. Raises EngineError if none does."""
    module = model.module
    if kind == "auto" and fused.supports(module):
        decoder = fused.FusedDecoder(module, slots, length)
        if matches_forward(decoder, module):
            return fused.FusedDecoder(module, slots, length, compile=True) if compile else decoder
    decoder = HFDecoder(module, slots, length, fp32_head)
    refusal = (
        f"The torch engine cannot run {type(module).__name__} with a KV cache per slot (models with ALiBi or a recurrent "
        "state are of this kind)"
    )
    try:
        same = matches_forward(decoder, module)
    except (
        TypeError,
        ValueError,
        RuntimeError,
        AttributeError,
    ) as error:  # raised inside the model's own code
        raise EngineError(f"{refusal}: {type(error).__name__}: {error}") from error
    if not same:
        raise EngineError(f"{refusal}: its logits differ from those of a plain forward pass.")
    return decoder


class TorchEngine:
    """`core.protocols.Engine` for any attention-based Hugging Face causal LM.

    Args:
        model: its weights are copied; later changes come in by `load_weights` only.
        slots: B, sequences in parallel.
        max_length: S, most tokens of prefix + prompt + completion; the KV cache is allocated once, for B·S tokens.
        fp32_head: logits in fp32 whatever the model's dtype (ScaleRL §3.2).
        compile: torch.compile of the decode step where the architecture supports it.
        prefill_tokens: most prefix and prompt tokens in one prefill.
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int,
        max_length: int,
        fp32_head: bool = True,
        compile: bool = False,
        prefill_tokens: int = 4096,
        decoder: Literal["auto", "hf"] = "auto",
    ) -> None:
        if model.context_length and max_length > model.context_length:
            raise EngineError(
                f"max_length {max_length} is above the model's context of {model.context_length} tokens; "
                "lower length.max_prompt_tokens or length.max_completion_tokens"
            )
        self.decoder = make_decoder(
            model, slots, max_length, fp32_head=fp32_head, compile=compile, kind=decoder
        )
        self.slots, self.max_length, self.prefill_tokens = slots, max_length, prefill_tokens
        self.version = 0
        self.num_decoded_tokens = 0
        self.num_prefill_tokens = 0
        self._static = compile and isinstance(self.decoder, fused.FusedDecoder)
        self._queue: deque[Request] = deque()
        self._running: list[Request | None] = [None] * slots
        # slot -> (`context_key`, version) of the prefix and prompt in its cache
        self._cached: dict[int, tuple[tuple[int, int], int]] = {}
        device = model.device
        self._device = device
        self._stop = torch.tensor(model.stop_token_ids, device=device)

        def table(dtype: torch.dtype, fill: float = 0) -> Tensor:
            return torch.full((slots, max_length + 1), fill, dtype=dtype, device=device)

        def column(dtype: torch.dtype, fill: float = 0) -> Tensor:
            return torch.full((slots,), fill, dtype=dtype, device=device)

        # Tables are indexed by absolute position: entry p belongs to the token at p.
        self._token, self._forced = table(torch.long), table(torch.long, -1)
        self._logp, self._uniform = table(torch.float32), table(torch.float32)
        self._version = table(torch.long)
        self._position = column(torch.long)  # of the last known token
        self._last = column(torch.long)  # position at which the length limit is reached
        self._active, self._quiet = (
            column(torch.bool),
            column(torch.bool),
        )  # quiet: interruption no longer possible
        self._unless = column(torch.long, -1)
        self._temperature, self._top_p = column(torch.float32, 1), column(torch.float32, 1)
        self._top_k = column(torch.long)
        self._rows = torch.arange(slots, device=device)
        self._plan()

    # -- the four methods of the protocol ------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> None:
        for request in requests:
            check_prefix(request, self.decoder.module)
            virtual, prompt = num_virtual(request), len(request.prompt_tokens)
            if (
                prompt < 1
                or request.max_tokens < 1
                or virtual + prompt + request.max_tokens > self.max_length
            ):
                prefix = f"{virtual} prefix embeddings + " if virtual else ""
                raise EngineError(
                    f"Request {request.id}: {prefix}{prompt} prompt tokens + {request.max_tokens} completion tokens; the engine "
                    f"takes 1 to {self.max_length} in all, with at least one token of prompt and of completion."
                )
            if len(request.tokens) >= request.max_tokens:
                raise EngineError(
                    f"Request {request.id} already has its {request.max_tokens} completion tokens."
                )
        self._queue.extend(requests)

    @torch.inference_mode()
    def step(self) -> list[Sample]:
        self._admit()
        n = self._num_rows()
        if n == 0:
            return []
        position = self._position[:n]
        token = self._token[:n].gather(1, position[:, None])[:, 0]
        context = min(
            self.max_length,
            (int(self._host_position[:n].max()) + _CONTEXT_STEP) // _CONTEXT_STEP * _CONTEXT_STEP,
        )
        logits = self.decoder.decode(token, position, context)
        following = position + 1
        sampled = self._sample(logits, following)
        self._position[:n] = torch.where(self._active[:n], following, position)
        self._host_position[:n] += self._host_active[:n]
        rows = self._rows[:n]
        self._token[rows, following] = sampled.token
        self._logp[rows, following] = sampled.logp
        self._version[rows, following] = self.version
        stopped = torch.isin(sampled.token, self._stop)
        done = (stopped | (following >= self._last[:n])) & self._active[:n]
        self.num_decoded_tokens += int(self._host_active[:n].sum())
        finished = done.nonzero()[:, 0]
        if len(finished) == 0:
            return []
        return self._finish(finished.tolist(), stopped[finished].tolist())

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        self.decoder.load(weights)
        self.version = version

    def snapshot(self) -> list[Request]:
        taken = [self._partial(slot) for slot in range(self.slots) if self._running[slot] is not None]
        taken += self._queue
        self._queue.clear()
        for slot in range(self.slots):
            self._running[slot] = None
        self._active.fill_(False)
        self._cached.clear()
        self._plan()
        return taken

    # -- counts --------------------------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return int(self._host_active.sum())

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    # -- sampling ------------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Which sampling path the running requests need; recomputed when the set of running requests changes."""
        running = [request for request in self._running if request is not None]
        self._host_active = np.array([request is not None for request in self._running])
        self._host_position = np.where(self._host_active, self._position.cpu().numpy(), 0)
        self._all_greedy = all(request.temperature == 0 for request in running)
        self._any_greedy = any(request.temperature == 0 for request in running)
        self._any_truncated = any(request.top_p < 1 or request.top_k > 0 for request in running)
        self._all_unit = all(request.temperature == 1 for request in running)
        self._any_forced = any(request.interrupt_at is not None for request in running)

    def _num_rows(self) -> int:
        """Slots that take part in this step: up to the last running one (all of them under torch.compile)."""
        running = np.flatnonzero(self._host_active)
        if len(running) == 0:
            return 0
        return self.slots if self._static else int(running[-1]) + 1

    def _sample(self, logits: Tensor, following: Tensor) -> ops.Sampled:
        n = len(logits)
        if self._all_greedy:
            sampled = ops.greedy(logits)
        else:
            uniform = self._uniform[:n].gather(1, following[:, None])[:, 0]
            temperature = self._temperature[:n]
            if self._any_truncated:
                sampled = ops.sample_truncated(logits, uniform, temperature, self._top_p[:n], self._top_k[:n])
            else:
                sampled = ops.sample(logits, uniform, None if self._all_unit else temperature)
            if self._any_greedy:
                best, is_greedy = ops.greedy(logits), self._greedy[:n]
                sampled = ops.Sampled(
                    torch.where(is_greedy, best.token, sampled.token),
                    torch.where(is_greedy, best.logp, sampled.logp),
                )
        return self._force(sampled, following) if self._any_forced else sampled

    def _force(self, sampled: ops.Sampled, following: Tensor) -> ops.Sampled:
        """Replaces the token by the injected phrase where one is due; remembers where it no longer is."""
        n = len(following)
        forced = self._forced[:n].gather(1, following[:, None])[:, 0]
        use = (forced >= 0) & ~self._quiet[:n]
        token = torch.where(use, forced, sampled.token)
        self._quiet[:n] |= ~use & (token == self._unless[:n])
        keep = ~use
        # What was not injected must not be read as injected when the sample is built.
        self._forced[:n].scatter_(1, following[:, None], torch.where(use, forced, -1)[:, None])
        return ops.Sampled(token, sampled.logp * keep)

    # -- slots ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        free = [slot for slot in range(self.slots) if self._running[slot] is None]
        if not self._queue or not free:
            if free and not self._static:
                self._compact()
            return
        admitted = [(slot, self._queue.popleft()) for slot in free[: len(self._queue)]]
        self._fill_caches(admitted)
        self._place(admitted)
        self._plan()

    def _place(self, admitted: Sequence[tuple[int, Request]]) -> None:
        """Writes the state of the admitted requests, one assignment per table."""
        count, width = len(admitted), self.max_length + 1
        token, version = np.zeros((2, count, width), dtype=np.int64)
        forced = np.full((count, width), -1, dtype=np.int64)
        logp = np.zeros((count, width), dtype=np.float32)
        column = np.zeros((4, count), dtype=np.int64)
        longest = max(request.max_tokens for _, request in admitted)
        drawn: dict[int, np.ndarray] = {}
        for seed in {request.seed for _, request in admitted}:
            drawn[seed] = ops.uniforms(seed, np.array([request.id for _, request in admitted]), longest)
        uniform = np.zeros((count, width), dtype=np.float32)
        for row, (_, request) in enumerate(admitted):
            context, made = context_tokens(request), len(request.tokens)
            prompt = len(context)
            end, limit = prompt + made, prompt + request.max_tokens
            token[row, :prompt] = context
            uniform[row, prompt:limit] = drawn[request.seed][row, : request.max_tokens]
            if made:
                token[row, prompt:end] = request.tokens
                logp[row, prompt:end] = request.logps
                version[row, prompt:end] = request.versions
                forced[row, prompt:end] = np.where(request.mask, -1, request.tokens)
            if request.interrupt_at is not None:
                start = prompt + request.interrupt_at
                phrase = np.array(request.interrupt_tokens, dtype=np.int64)[: max(0, limit - start)]
                plan = np.concatenate([np.full(start, -1), phrase])
                forced[row, end : len(plan)] = plan[end:]
            quiet = any(
                m and token == request.interrupt_unless
                for token, m in zip(request.tokens, request.mask, strict=True)
            )
            unless = -1 if request.interrupt_unless is None else request.interrupt_unless
            column[:, row] = end - 1, limit - 1, quiet, unless
        slot = torch.tensor([slot for slot, _ in admitted], device=self._device)
        tables = (self._token, self._version, self._forced, self._logp, self._uniform)
        for table, values in zip(tables, (token, version, forced, logp, uniform), strict=True):
            table[slot] = torch.from_numpy(values).to(self._device)
        for target, values in zip(
            (self._position, self._last, self._quiet, self._unless), column, strict=True
        ):
            target[slot] = torch.from_numpy(values).to(device=self._device, dtype=target.dtype)
        options = [(request.temperature or 1.0, request.top_p, request.top_k) for _, request in admitted]
        for target, values in zip(
            (self._temperature, self._top_p, self._top_k), zip(*options, strict=True), strict=True
        ):
            target[slot] = torch.tensor(values, device=self._device, dtype=target.dtype)
        self._active[slot] = True
        for place, request in admitted:
            self._running[place] = request

    @property
    def _greedy(self) -> Tensor:
        flags = [request is not None and request.temperature == 0 for request in self._running]
        return torch.tensor(flags, device=self._device)

    def _fill_caches(self, admitted: Sequence[tuple[int, Request]]) -> None:
        """Computes or copies the cache of everything before each request's last known token."""
        fresh: dict[tuple[tuple[int, int], int], _Entry] = {}
        copies: list[tuple[int, int, int]] = []
        keys = [context_key(request) for _, request in admitted]
        for (slot, request), key in zip(admitted, keys, strict=True):
            if request.tokens or self._cached.get(slot) != (key, self.version):
                self._cached.pop(
                    slot, None
                )  # overwritten below; a prompt of the same group stays where it is
        holder = {key: slot for slot, (key, version) in self._cached.items() if version == self.version}
        for (slot, request), key in zip(admitted, keys, strict=True):
            known = np.concatenate([context_tokens(request), np.array(request.tokens, dtype=np.int64)])[:-1]
            entry = _Entry(known, request.prefix_embeds, [])
            if request.tokens:
                fresh.setdefault((key, request.id), entry).slots.append(slot)
                continue
            if key not in holder:
                fresh.setdefault((key, -1), entry).slots.append(slot)
            elif slot not in self._cached:
                copies.append((holder[key], slot, len(known)))
            self._cached[slot] = (key, self.version)
        for source, target, length in copies:
            index = torch.tensor([source, target], device=self._device)
            self.decoder.copy(index[:1], index[1:], length)
        entries = sorted(
            (entry for entry in fresh.values() if len(entry.known)), key=lambda entry: len(entry.known)
        )
        for batch in _batches(entries, self.prefill_tokens):
            self._prefill(batch)

    def _prefill(self, batch: Sequence[_Entry]) -> None:
        longest = max(len(entry.known) for entry in batch)
        token = np.zeros((len(batch), longest), dtype=np.int64)
        for row, entry in enumerate(batch):
            token[row, : len(entry.known)] = entry.known
        pairs = [(row, slot) for row, entry in enumerate(batch) for slot in entry.slots]
        index = torch.tensor(pairs, device=self._device)
        embeds = None
        if any(entry.embeds is not None for entry in batch):
            embeds = [prefix_tensor(entry.embeds) for entry in batch]
        self.decoder.prefill(torch.from_numpy(token).to(self._device), index[:, 0], index[:, 1], embeds)
        self.num_prefill_tokens += sum(len(entry.known) for entry in batch)

    def _compact(self) -> None:
        """When at most half of the rows in use are running, move the last ones into the gaps (fewer rows a step)."""
        running = np.flatnonzero(self._host_active)
        if len(running) == 0 or 2 * len(running) > running[-1] + 1:
            return
        gaps = [slot for slot in range(len(running)) if not self._host_active[slot]]
        movers = [int(slot) for slot in running if slot >= len(running)]
        source, target = (torch.tensor(x, device=self._device) for x in (movers, gaps))
        self.decoder.copy(source, target, int(self._host_position[running].max()) + 1)
        for table in (
            self._token, self._forced, self._logp, self._uniform, self._version, self._position, self._last,
            self._quiet, self._unless, self._temperature, self._top_p, self._top_k, self._active,
        ):  # fmt: skip
            table[target] = table[source]
        self._active[source] = False
        for old, new in zip(movers, gaps, strict=True):
            self._running[new], self._running[old] = self._running[old], None
        self._cached.clear()
        self._plan()

    def _partial(self, slot: int) -> Request:
        """The request of a slot with what it has generated so far."""
        request = self._running[slot]
        assert request is not None
        start, end = _start(request), int(self._position[slot]) + 1
        return replace(
            request,
            tokens=tuple(self._token[slot, start:end].tolist()),
            logps=tuple(self._logp[slot, start:end].tolist()),
            versions=tuple(self._version[slot, start:end].tolist()),
            mask=tuple((self._forced[slot, start:end] < 0).tolist()),
        )

    def _finish(self, slots: Sequence[int], stopped: Sequence[bool]) -> list[Sample]:
        """Takes the finished sequences out; one gather per table for all of them."""
        index = torch.tensor(slots, device=self._device)
        ends = (self._position[index] + 1).tolist()
        width = max(ends)
        token, forced, logp, version = (
            table[index, :width].cpu().numpy()
            for table in (self._token, self._forced, self._logp, self._version)
        )
        samples: list[Sample] = []
        for row, (slot, end) in enumerate(zip(slots, ends, strict=True)):
            request = self._running[slot]
            assert request is not None
            own = slice(_start(request), end)
            mask = forced[row, own] < 0
            samples.append(
                Sample(
                    request_id=request.id,
                    group_id=request.group_id,
                    prompt_tokens=request.prompt_tokens,
                    token_ids=token[row, own].copy(),
                    loss_mask=mask,
                    behaviour_logp=logp[row, own].copy(),
                    policy_version=version[row, own].copy(),
                    stop_reason="stop" if stopped[row] and mask[-1] else "length",
                    interrupted=not mask.all(),
                )
            )
            self._running[slot] = None
        self._active[index] = False
        self._host_active[slots] = False
        self._host_position[slots] = 0
        return samples


class _Entry(NamedTuple):
    """One row of a prefill: the tokens, the embeddings of the first of them, the slots that get its cache."""

    known: np.ndarray
    embeds: np.ndarray | None
    slots: list[int]


def _start(request: Request) -> int:
    """Position of the first completion token."""
    return num_virtual(request) + len(request.prompt_tokens)


def _batches(entries: Sequence[_Entry], max_tokens: int) -> list[list[_Entry]]:
    """Consecutive entries whose padded size stays within `max_tokens` (one entry at least)."""
    batches: list[list[_Entry]] = []
    for entry in entries:
        if (
            batches
            and max(len(row.known) for row in (entry, *batches[-1])) * (len(batches[-1]) + 1) <= max_tokens
        ):
            batches[-1].append(entry)
        else:
            batches.append([entry])
    return batches


def generate(engine: TorchEngine, requests: Sequence[Request]) -> list[Sample]:
    """All samples of `requests`, in their order. The engine must be idle."""
    if engine.num_running or engine.num_queued:
        raise EngineError(
            "generate() needs an idle engine; take the running requests out with snapshot() first."
        )
    engine.submit(requests)
    samples: dict[int, Sample] = {}
    while len(samples) < len(requests):
        for sample in engine.step():
            samples[sample.request_id] = sample
    return [samples[request.id] for request in requests]
