"""What decode steps, updates and weights cost: by the data sheet of a GPU, or measured on this machine.

By the data sheet (a roofline, Williams, Waterman & Patterson 2009) for P parameters and n running sequences: a decode step takes
the longer of 2·P·n FLOP and the reading of all weights and n·context entries of the KV cache; an update takes 6·P FLOP a token,
8·P where activations are computed again. The shares of the peak that are reached are assumed, not measured: `DECODE_SHARE`,
`TRAIN_SHARE`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from postgrad.core.models import load_shape, load_skeleton
from postgrad.core.models.masks import attention_layout
from postgrad.core.models.model import resolve_device, resolve_dtype
from postgrad.core.types import Group, Sample
from postgrad.rl.config import RLConfig
from postgrad.rl.simulate import Costs

DECODE_SHARE = 0.6
"""Of the memory bandwidth that decoding reaches, and of the FLOP rate where that bounds it."""
TRAIN_SHARE = 0.4
"""Of the FLOP rate that training reaches."""
LINK = 25e9
"""Bytes a second at which new weights reach a generator."""


class Hardware(NamedTuple):
    """Of a GPU, by its data sheet: dense bf16 FLOP/s, bytes/s, bytes."""

    flops: float
    bandwidth: float
    memory: float


HARDWARE = {
    "a100": Hardware(312e12, 2.04e12, 80e9),
    "h100": Hardware(989e12, 3.35e12, 80e9),
    "h200": Hardware(989e12, 4.8e12, 141e9),
    "b200": Hardware(2250e12, 8.0e12, 180e9),
}


class Shape(NamedTuple):
    """A model, counted.

    Attributes:
        num_parameters: P.
        itemsize: bytes of a weight.
        kv_bytes: of one token in the KV cache.
        num_layers, width, vocab_size: of the network.
    """

    num_parameters: int
    itemsize: int
    kv_bytes: int
    num_layers: int
    width: int
    vocab_size: int


class Memory(NamedTuple):
    """Bytes on one GPU of each kind.

    Attributes:
        trainer: its share of weights, gradients and AdamW's state; activations, mask and logits of one micro-batch.
        generator: weights, and the KV cache of all slots at their longest.
    """

    trainer: float
    generator: float


def read_shape(config: RLConfig, *, on_gpu: bool) -> Shape:
    """Of the config's model, from its config.json alone; in bf16 on a GPU unless the config says otherwise."""
    module = load_shape(config.model.path) if config.model.path else load_skeleton(config.model)
    text: Any = module.config.get_text_config()
    device = torch.device("cuda") if on_gpu else resolve_device(config.model.device)
    itemsize = resolve_dtype(config.model.dtype, device).itemsize
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    layers = attention_layout(module.config).num_layers
    count = sum(parameter.numel() for parameter in module.parameters())
    kv_bytes = 2 * layers * heads * head_dim * itemsize
    return Shape(count, itemsize, kv_bytes, layers, int(text.hidden_size), int(text.vocab_size))


def memory(config: RLConfig, shape: Shape, num_trainers: int) -> Memory:
    """A first guess. Activations are 34 bytes a token, layer and unit of width in bf16 (Korthikanti et al. 2022,
    arXiv 2205.05198, eq. 2, without the attention matrix), a layer at a time where they are computed again."""
    tokens = config.optimizer.micro_batch_tokens
    state = shape.num_parameters * (2 * shape.itemsize + (8 if shape.itemsize == 4 else 12)) / num_trainers
    layer = 17 * shape.itemsize * tokens * shape.width
    again = config.optimizer.gradient_checkpointing
    activations = (
        layer + shape.itemsize * shape.num_layers * tokens * shape.width
        if again
        else layer * shape.num_layers
    )
    mask, logits = shape.itemsize * tokens**2, 8 * tokens * shape.vocab_size
    length = config.length.max_prompt_tokens + config.length.max_completion_tokens
    cache = shape.kv_bytes * config.engine.slots * length
    return Memory(state + activations + mask + logits, shape.num_parameters * shape.itemsize + cache)


def by_data_sheet(
    config: RLConfig,
    shape: Shape,
    hardware: Hardware,
    lengths: Sequence[int],
    prompt_tokens: int,
    num_trainers: int,
) -> Costs:
    """Costs of a generator of one GPU and of `num_trainers` trainers.

    Args:
        lengths: of completions.
        prompt_tokens: of one prompt.
    """
    context = prompt_tokens + float(np.mean(lengths)) / 2
    weights = shape.num_parameters * shape.itemsize
    group = config.algorithm.samples_per_prompt * float(np.mean(lengths))
    per_token = (8 if config.optimizer.gradient_checkpointing else 6) * shape.num_parameters
    train_rate = TRAIN_SHARE * hardware.flops * num_trainers

    def decode_s(count: int) -> float:
        compute = 2.0 * shape.num_parameters * count / hardware.flops
        reading = (weights + count * context * shape.kv_bytes) / hardware.bandwidth
        return max(compute, reading) / DECODE_SHARE

    return Costs(
        decode_s=decode_s,
        prefill_s=2.0 * shape.num_parameters * prompt_tokens / (TRAIN_SHARE * hardware.flops),
        update_s=lambda tokens: per_token * tokens * (1 + prompt_tokens / group) / train_rate,
        transfer_s=weights / LINK,
    )


class MeasuredCosts(NamedTuple):
    """Costs on this machine, and the completion lengths that were seen."""

    costs: Costs
    lengths: list[int]


def measure(config: RLConfig) -> MeasuredCosts:
    """Generates and trains on two batches of the real prompts with the real model, in this process; the model is thrown away.

    A decode step is taken to cost a + b·n for n running sequences, by least squares over the steps of the second batch. Threads
    are those of this process: give it as many as a generator, or the trainer, will have.
    """
    from postgrad.rl.api import load_model, make_engine, make_judge, prepare, read_data
    from postgrad.rl.learner import Learner
    from postgrad.rl.rollout import Rollout

    data = read_data(config)
    model = load_model(config, data)
    with make_judge(config.data) as judge:
        parts = prepare(model, config, data, lambda text: None)
        bench = _Bench(
            config,
            make_engine(model, config, parts.longest_prompt),
            Rollout(model, config.length, config.algorithm, config.seed, config.data.instruction),
            Learner(model, config.algorithm, config.optimizer, config.seed, None, config.steps),
            judge,
            parts.stream,
        )
        bench.batch(0)  # the first of everything takes longer
        timed = bench.batch(1)
    slope, base = 0.0, float(np.mean(timed.step_s))
    if len(set(timed.counts)) > 1:
        slope, base = (float(value) for value in np.polyfit(timed.counts, timed.step_s, 1))
    slope, base = max(0.0, slope), max(base, 0.1 * float(np.mean(timed.step_s)))
    per_token = timed.update_s / sum(timed.lengths)
    costs = Costs(
        lambda count: base + slope * count, 0.0, lambda tokens: per_token * tokens, timed.transfer_s
    )
    return MeasuredCosts(costs, timed.lengths)


class _Timed(NamedTuple):
    """Of one batch: running sequences of each decode step and its seconds, seconds of update and new weights, lengths."""

    counts: list[int]
    step_s: list[float]
    update_s: float
    transfer_s: float
    lengths: list[int]


class _Bench(NamedTuple):
    config: RLConfig
    engine: Any
    rollout: Any
    learner: Any
    judge: Any
    stream: Any

    def batch(self, number: int) -> _Timed:
        """Generates, judges, trains on and spreads the weights of one batch."""
        algorithm = self.config.algorithm
        prompts = [self.stream.next() for _ in range(algorithm.prompts_per_batch)]
        first = number * len(prompts)
        for index, prompt in enumerate(prompts):
            self.engine.submit(self.rollout.requests(prompt, first + index, algorithm.samples_per_prompt))
        finished: dict[int, list[Sample]] = {first + index: [] for index in range(len(prompts))}
        counts, step_s = list[int](), list[float]()
        left = len(prompts) * algorithm.samples_per_prompt
        while left:
            counts.append(min(self.config.engine.slots, left))
            started = time.perf_counter()
            samples = self.engine.step()
            step_s.append(time.perf_counter() - started)
            left -= len(samples)
            for sample in samples:
                sample.text = self.rollout.decode(sample)
                finished[sample.group_id].append(sample)
        groups = [Group(prompt, finished[first + index]) for index, prompt in enumerate(prompts)]
        for group in groups:
            tickets = [self.judge.submit(group.prompt, sample.text) for sample in group.samples]
            self.rollout.judge(group, self.judge, tickets)
        started = time.perf_counter()
        self.learner.update(groups)
        updated = time.perf_counter()
        self.engine.load_weights(self.learner.weights(), number + 1)
        ended = time.perf_counter()
        lengths = [sample.num_tokens for group in groups for sample in group.samples]
        return _Timed(counts, step_s, updated - started, ended - updated, lengths)
