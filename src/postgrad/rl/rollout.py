"""From prompts to groups with rewards: requests, interruption lengths, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from postgrad.core.data import decode_completion, encode_prompt
from postgrad.core.models.model import Model
from postgrad.core.protocols import Judge
from postgrad.core.types import Group, Prompt, Request, Sample
from postgrad.rl import ops
from postgrad.rl.config import AlgorithmConfig, LengthConfig


@dataclass(frozen=True)
class Rollout:
    """Turns prompts into requests and finished samples into judged groups.

    Attributes:
        model: its tokenizer encodes and decodes.
        length: limits and interruption.
        algorithm: sampling and reward options.
        seed: of the run.
        instruction: put before each prompt.
    """

    model: Model
    length: LengthConfig
    algorithm: AlgorithmConfig
    seed: int
    instruction: str = ""

    def encode(self, prompt: Prompt) -> np.ndarray:
        """Prompt tokens, int64 [P]."""
        return encode_prompt(self.model.tokenizer, prompt, self.instruction)

    def requests(
        self, prompt: Prompt, group_id: int, count: int, temperature: float | None = None
    ) -> list[Request]:
        """`count` requests of one prompt. Request ids are group_id·count + i: each fixes its own random numbers."""
        tokens = self.encode(prompt)
        phrase, unless = self._interruption()
        low = self.length.interrupt_min
        requests: list[Request] = []
        for index in range(count):
            request_id = group_id * count + index
            at = None
            if low is not None:
                chance = np.random.default_rng([self.seed, request_id, 1])
                at = int(chance.integers(low, self.length.interrupt_max + 1))
            requests.append(
                Request(
                    id=request_id,
                    group_id=group_id,
                    prompt_tokens=tokens,
                    max_tokens=self.length.max_completion_tokens,
                    seed=self.seed,
                    temperature=self.algorithm.temperature if temperature is None else temperature,
                    top_p=self.algorithm.top_p,
                    top_k=self.algorithm.top_k,
                    interrupt_at=at,
                    interrupt_tokens=phrase if at is not None else (),
                    interrupt_unless=unless,
                )
            )
        return requests

    def _interruption(self) -> tuple[tuple[int, ...], int | None]:
        encode = self.model.tokenizer.encode
        phrase = tuple(encode(self.length.interrupt_phrase, add_special_tokens=False))
        unless = (
            encode(self.length.interrupt_unless, add_special_tokens=False)
            if self.length.interrupt_unless
            else []
        )
        return phrase, unless[0] if len(unless) == 1 else None

    def decode(self, sample: Sample) -> str:
        """The text of a completion."""
        return decode_completion(self.model.tokenizer, sample.token_ids)

    def passed(self, sample: Sample) -> bool:
        """Whether the verifier's score reaches the success threshold; a sample without a score did not pass."""
        verdict = sample.verdict
        if verdict is None or verdict.score is None:
            return False
        score = verdict.score if verdict.passing_score is None else verdict.passing_score
        return score >= self.algorithm.success_threshold

    def judge(self, group: Group, judge: Judge, tickets: Sequence[int]) -> None:
        """Waits for the verdicts of a group and sets its rewards."""
        for sample, verdict in zip(group.samples, judge.collect(tickets), strict=True):
            sample.verdict = verdict
            if verdict.score is not None:
                signed = self.algorithm.reward == "signed"
                sample.reward = 2.0 * verdict.score - 1.0 if signed else verdict.score
                sample.reward += self.length_penalty(sample)

    def length_penalty(self, sample: Sample) -> float:
        """What is added to the reward of a judged sample for its length: ≤ 0, and 0 unless it passed."""
        over = self.length.penalty_tokens
        if over is None or not self.passed(sample):
            return 0.0
        penalty = ops.overlong_penalty(
            torch.tensor([sample.num_tokens]), self.length.max_completion_tokens, over
        )
        return float(penalty)
