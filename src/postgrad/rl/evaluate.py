"""Held-out evaluation: mean@k with an interval clustered by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from postgrad.core.protocols import Engine, Judge
from postgrad.core.statistics import clustered_rate
from postgrad.core.types import Group, Prompt, Sample
from postgrad.rl.rollout import Rollout

_SEED_OFFSET = 1_000_003
"""Evaluations draw other random numbers than training, and the same ones every time (less noise between them)."""


@dataclass
class Evaluation:
    """Judged groups, one per prompt, and the metrics of `eval/…`."""

    groups: list[Group]
    metrics: dict[str, float] = field(default_factory=dict[str, float])


def choose_prompts(held_out: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` prompts, tasks in equal shares as far as they have prompts; the same ones for the same input."""
    by_task: dict[str, list[Prompt]] = {}
    for prompt in sorted(held_out, key=lambda prompt: prompt.id):
        by_task.setdefault(prompt.task, []).append(prompt)
    chosen: list[Prompt] = []
    position = 0
    while len(chosen) < count and any(position < len(prompts) for prompts in by_task.values()):
        chosen += [prompts[position] for prompts in by_task.values() if position < len(prompts)]
        position += 1
    return chosen[:count]


def evaluate(
    engine: Engine,
    rollout: Rollout,
    judge: Judge,
    prompts: Sequence[Prompt],
    samples_per_prompt: int,
    temperature: float,
) -> Evaluation:
    """Generates k samples for each prompt with the engine's present weights. The engine must be idle.

    A sample whose verification failed counts as not passed.
    """
    away = replace(rollout, seed=rollout.seed + _SEED_OFFSET)
    for index, prompt in enumerate(prompts):
        engine.submit(away.requests(prompt, index, samples_per_prompt, temperature=temperature))
    finished: dict[int, Sample] = {}
    tickets: dict[int, int] = {}
    while len(finished) < len(prompts) * samples_per_prompt:
        for sample in engine.step():
            sample.text = rollout.decode(sample)
            finished[sample.request_id] = sample
            tickets[sample.request_id] = judge.submit(prompts[sample.group_id], sample.text)
    groups: list[Group] = []
    for index, prompt in enumerate(prompts):
        ids = range(index * samples_per_prompt, (index + 1) * samples_per_prompt)
        group = Group(prompt, [finished[i] for i in ids])
        rollout.judge(group, judge, [tickets[i] for i in ids])
        groups.append(group)
    return Evaluation(groups, _metrics(groups, rollout))


def _metrics(groups: Sequence[Group], rollout: Rollout) -> dict[str, float]:
    metrics: dict[str, float] = {}
    tasks = sorted({group.prompt.task for group in groups})
    for prefix, task in [("eval", None), *((f"eval/{task}", task) for task in tasks)]:
        chosen = [group for group in groups if task is None or group.prompt.task == task]
        rate = clustered_rate([[rollout.passed(sample) for sample in group.samples] for group in chosen])
        metrics[f"{prefix}/pass_rate"] = rate.mean
        metrics[f"{prefix}/pass_rate_low"] = rate.low
        metrics[f"{prefix}/pass_rate_high"] = rate.high
        rewards = [reward for group in chosen for reward in group.rewards]
        if rewards:
            metrics[f"{prefix}/reward_mean"] = sum(rewards) / len(rewards)
    samples = [sample for group in groups for sample in group.samples]
    metrics["eval/verify_failed_fraction"] = sum(sample.reward is None for sample in samples) / len(samples)
    metrics["eval/completion_tokens_mean"] = sum(sample.num_tokens for sample in samples) / len(samples)
    metrics["eval/truncated_fraction"] = sum(sample.stop_reason == "length" for sample in samples) / len(
        samples
    )
    return metrics
