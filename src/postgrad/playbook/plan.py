"""What learning will take: calls, tokens and cost, between the best and the worst case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from postgrad.core.data import plain_text
from postgrad.engines.chat import Prices, estimate_tokens
from postgrad.playbook.config import ROLES, LearnConfig
from postgrad.playbook.learning import Work
from postgrad.playbook.roles import instructions
from postgrad.playbook.study import prices_of

_BULLET_TOKENS = 45
"""Of a bullet with its id and section, in the playbooks that the paper's authors published."""
_BULLETS_PER_SAMPLE = 1.5
_REPLY_TOKENS = 400


@dataclass(frozen=True)
class Case:
    """Sums over all samples.

    Attributes:
        calls: of all roles, validation included.
        prompt_tokens, completion_tokens: estimates.
        cost_usd: without the discount of a server's cache; None where a price is not known.
    """

    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


@dataclass(frozen=True)
class Plan:
    """Both ends.

    Attributes:
        samples, validations: how many of each.
        best, worst: every first answer is right; every answer is wrong in every round.
    """

    samples: int
    validations: int
    best: Case
    worst: Case

    def lines(self) -> list[str]:
        """For reading."""
        words = [f"samples             {self.samples}, {self.validations} held-out answers for validation"]
        for name, case in (("all right at first", self.best), ("all wrong to the end", self.worst)):
            cost = (
                "cost unknown: set price_prompt and price_completion"
                if case.cost_usd is None
                else f"{case.cost_usd:.2f} USD"
            )
            words.append(
                f"{name:<20}{case.calls} calls, {case.prompt_tokens / 1e6:.2f} M prompt tokens, "
                f"{case.completion_tokens / 1e6:.2f} M of replies; {cost}"
            )
        return words


def plan(config: LearnConfig, work: Work) -> Plan:
    """An estimate: bullets as long as the authors' published ones, 1.5 of them a sample until the budget is full."""
    samples = len(work.samples)
    every = config.validate_every or work.per_epoch
    validations = (-(-samples // every) + 1) * len(work.held_out)
    question = _mean([estimate_tokens(plain_text(prompt)) for _, prompt, _ in work.samples[:200]])
    told = {role: estimate_tokens(instructions(role)) for role in ROLES}
    full = min(config.budget_tokens, _BULLETS_PER_SAMPLE * _BULLET_TOKENS * samples)
    growing = max(full / (_BULLETS_PER_SAMPLE * _BULLET_TOKENS), 1)
    context = full * (1 - growing / samples / 2) if samples > growing else full / 2
    traces = any(trace is not None for _, _, trace in work.samples)
    generate = told["generator"] + context + question
    reflect = told["reflector"] + question + 2 * _REPLY_TOKENS
    curate = told["curator"] + context + question + _REPLY_TOKENS

    def case(rounds: int) -> Case:
        generated = 0 if traces else samples * (1 if rounds == 0 else 1 + rounds)
        calls = {
            "generator": generated + validations,
            "reflector": samples * max(rounds, 1),
            "curator": samples,
        }
        prompts = {"generator": generate, "reflector": reflect, "curator": curate}
        named = config.chat or all(getattr(config, role) for role in ROLES)
        prices, cost = prices_of(config) if named else {}, 0.0
        known = bool(prices)
        for role, count in calls.items():
            price = prices.get(role, Prices())
            known = known and price.prompt is not None and price.completion is not None
            cost += (
                count * (prompts[role] * (price.prompt or 0) + _REPLY_TOKENS * (price.completion or 0)) / 1e6
            )
        return Case(
            sum(calls.values()),
            round(sum(count * prompts[role] for role, count in calls.items())),
            sum(calls.values()) * _REPLY_TOKENS,
            cost if known else None,
        )

    return Plan(samples, validations, case(0), case(1 if traces else config.reflection_rounds))


def _mean(values: Sequence[int]) -> float:
    return sum(values) / max(len(values), 1)
