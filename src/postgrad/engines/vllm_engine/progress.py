"""What has been generated of one request, token by token: whose weights, which log-prob, own or injected. Needs no vLLM.

vLLM sees a completion as one or more *legs*: a leg's prompt is the request's prompt and all that came before, and it ends at
a stop token, at the length limit, or where the interruption phrase is due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from postgrad.core.types import Request, Sample, StopReason


@dataclass
class Progress:
    """The state of one request.

    Attributes:
        request: as it was submitted; what it carried is taken into the four lists.
        epoch: of the engine when its first leg began; legs of one epoch may share cached blocks.
        tokens, logps, versions, mask: the completion so far, as in `Request`.
        stop_reason: why it ended; None while it goes on.
    """

    request: Request
    epoch: int = -1
    tokens: list[int] = field(default_factory=list[int])
    logps: list[float] = field(default_factory=list[float])
    versions: list[int] = field(default_factory=list[int])
    mask: list[bool] = field(default_factory=list[bool])
    stop_reason: StopReason | None = None

    def __post_init__(self) -> None:
        self.tokens += self.request.tokens
        self.logps += self.request.logps
        self.versions += self.request.versions
        self.mask += self.request.mask

    @property
    def remaining(self) -> int:
        """Tokens up to the length limit."""
        return self.request.max_tokens - len(self.tokens)

    def absorb(self, tokens: Sequence[int], logps: Sequence[float], version: int, *, stopped: bool) -> None:
        """Appends what one engine step sampled, all of it under the weights `version`.

        Args:
            tokens: usually one; none for a step that only read a part of the prompt.
            logps: of those tokens.
            version: the weights that were in force during the step.
            stopped: the last of them is a stop token.

        >>> progress = Progress(Request(id=0, group_id=0, prompt_tokens=np.array([7]), max_tokens=3))
        >>> progress.absorb([5], [-0.5], version=0, stopped=False)
        >>> progress.absorb([6], [-0.25], version=1, stopped=True)
        >>> progress.versions, progress.stop_reason
        ([0, 1], 'stop')
        """
        self.tokens += tokens
        self.logps += logps
        self.versions += [version] * len(tokens)
        self.mask += [True] * len(tokens)
        if stopped:
            self.stop_reason = "stop"
        elif self.remaining <= 0:
            self.stop_reason = "length"

    def inject(self, version: int, stop_token_ids: Sequence[int]) -> bool:
        """Appends what is due of the interruption phrase, masked out; returns whether there was any.

        Nothing is due before `interrupt_at`, after the phrase, in a completion that has ended, or once
        `interrupt_unless` was emitted. A phrase with a stop token ends the completion there.
        """
        request, at = self.request, self.request.interrupt_at
        if at is None or self.stop_reason is not None or len(self.tokens) < at:
            return False
        if request.interrupt_unless is not None and self._has_emitted(request.interrupt_unless):
            return False
        due = list(request.interrupt_tokens[len(self.tokens) - at :])[: self.remaining]
        ends = next((i + 1 for i, token in enumerate(due) if token in stop_token_ids), None)
        due = due[:ends]
        self.tokens += due
        self.logps += [0.0] * len(due)
        self.versions += [version] * len(due)
        self.mask += [False] * len(due)
        if ends is not None or self.remaining <= 0:
            self.stop_reason = "length"
        return bool(due)

    def _has_emitted(self, token: int) -> bool:
        return any(own and token == seen for seen, own in zip(self.tokens, self.mask, strict=True))

    def partial(self) -> Request:
        """The request with what it has so far, to be continued elsewhere."""
        return replace(
            self.request,
            tokens=tuple(self.tokens),
            logps=tuple(self.logps),
            versions=tuple(self.versions),
            mask=tuple(self.mask),
        )

    def sample(self) -> Sample:
        """The finished completion."""
        assert self.stop_reason is not None
        return Sample(
            request_id=self.request.id,
            group_id=self.request.group_id,
            prompt_tokens=self.request.prompt_tokens,
            token_ids=np.array(self.tokens, dtype=np.int64),
            loss_mask=np.array(self.mask, dtype=np.bool_),
            behaviour_logp=np.array(self.logps, dtype=np.float32),
            policy_version=np.array(self.versions, dtype=np.int64),
            stop_reason=self.stop_reason,
            interrupted=not all(self.mask),
        )
