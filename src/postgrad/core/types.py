"""The nouns of the house: Prompt, Document, Sample, Group, Request, Verdict. (Model: `core.models`; Run: `core.run`.)

No room has a synonym for any of them. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

StopReason = Literal["stop", "length"]
"""`stop`: the model emitted a stop token. `length`: the token limit cut it off (a *truncated* sample)."""

VerdictStatus = Literal["ok", "error", "timeout", "non_finite"]


class Message(TypedDict):
    """One turn of a chat in the Hugging Face `messages` convention."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """What a model is asked. Exactly one of `text` and `messages` is given.

    Attributes:
        id: unique within a data set and stable across runs (a content hash unless the source has ids).
        text: plain text.
        messages: chat turns.
        answer: the reference answer, where the task has one.
        task: name of the task whose verifier judges the completion.
        metadata: whatever that verifier needs; JSON-serialisable.
    """

    id: str
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    answer: str | None = None
    task: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def content(self) -> str:
        """The prompt as one string (for hashing, logging and display)."""
        if self.messages is not None:
            return "\n".join(f"{m['role']}: {m['content']}" for m in self.messages)
        return self.text or ""


@dataclass(frozen=True)
class Document:
    """Training text."""

    id: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one completion.

    Attributes:
        score: the verifier's number, or None when it gave none (see `status`); never silently 0.
        status: `ok`, or why there is no score.
        detail: the error text, for the log.
        parts: where the score is a weighted mean, each part's score by its name.
        passing_score: what decides whether it passed, where that is not the score.
    """

    score: float | None
    status: VerdictStatus = "ok"
    detail: str = ""
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    passing_score: float | None = None


@dataclass(frozen=True)
class Request:
    """One completion to generate. A request that carries `tokens` is continued from them.

    Attributes:
        id: unique within a run; with `seed` it fixes every random number of the completion, so that a sample
            does not depend on which slot or batch it ran in.
        group_id: requests with the same `group_id` share their prompt tokens (their prefixes may differ).
        prompt_tokens: int [P].
        max_tokens: limit on the completion length, injected tokens included.
        seed: the run's seed.
        temperature: 0 = greedy.
        top_p, top_k: truncation of the sampling distribution (1.0 and 0 = off).
        interrupt_at: completion length at which `interrupt_tokens` are injected (None = never).
        interrupt_tokens: the injected phrase; masked out of the loss.
        interrupt_unless: no injection if this token has been emitted already (None = always inject).
        prefix_embeds: float32 [M, D], virtual tokens that precede the prompt, as the model's input embeddings would give
            them (scaled, where a model scales its own); None = no prefix. They count towards the engine's `max_length`.
        tokens, logps, versions, mask: the part generated so far, same length, all empty for a new request.
    """

    id: int
    group_id: int
    prompt_tokens: NDArray[np.int64]
    max_tokens: int
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    interrupt_at: int | None = None
    interrupt_tokens: tuple[int, ...] = ()
    interrupt_unless: int | None = None
    prefix_embeds: NDArray[np.float32] | None = None
    tokens: tuple[int, ...] = ()
    logps: tuple[float, ...] = ()
    versions: tuple[int, ...] = ()
    mask: tuple[bool, ...] = ()


@dataclass
class Sample:
    """One completion of one prompt. Arrays have length T, the number of completion tokens (stop token included).

    Attributes:
        request_id, group_id: of the `Request` that it answers.
        prompt_tokens: int64 [P].
        token_ids: int64 [T].
        loss_mask: bool [T]; False on injected tokens.
        behaviour_logp: float32 [T], natural log; of the sampling distribution at its temperature, before top-p/top-k
            truncation, under the weights that sampled the token. 0 on injected tokens.
        policy_version: int64 [T]; weights version that sampled each token.
        stop_reason: `stop` or `length`.
        interrupted: whether the phrase was injected.
        text: the decoded completion (filled by the caller that has the tokenizer).
        verdict: filled after verification.
        reward: what the algorithm uses; None until verified, and for a failed verification.
        weight: importance weight, how much it counts in means, deviations and the loss; not 1 only where its group was drawn
            from something else than the policy.
    """

    request_id: int
    group_id: int
    prompt_tokens: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    loss_mask: NDArray[np.bool_]
    behaviour_logp: NDArray[np.float32]
    policy_version: NDArray[np.int64]
    stop_reason: StopReason
    interrupted: bool = False
    text: str = ""
    verdict: Verdict | None = None
    reward: float | None = None
    weight: float = 1.0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass
class Group:
    """G samples of one prompt."""

    prompt: Prompt
    samples: list[Sample]

    @property
    def rewards(self) -> Sequence[float]:
        """Rewards of the samples that have one."""
        return [s.reward for s in self.samples if s.reward is not None]
