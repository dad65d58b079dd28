"""Several rewards for one task: the weighted mean of their scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from postgrad.core.protocols import Judge
from postgrad.core.types import Prompt, Verdict
from postgrad.tasks.config import RewardPart
from postgrad.tasks.judge import check_tickets


def weighted_verdict(parts: Sequence[RewardPart], verdicts: Sequence[Verdict]) -> Verdict:
    """Σ w·score / Σ w of the parts, with each part's score by its name.

    Where one part has no score there is none: its status and the name of the part say why.

    >>> part = RewardPart(verifier=True, weight=3.0), RewardPart(reward="m:f", weight=1.0)
    >>> weighted_verdict(part, [Verdict(1.0), Verdict(0.2)]).score
    0.8
    """
    for part, verdict in zip(parts, verdicts, strict=True):
        if verdict.score is None:
            return Verdict(None, verdict.status, f"{part.label}: {verdict.detail}")
    scores = {part.label: verdict.score or 0.0 for part, verdict in zip(parts, verdicts, strict=True)}
    total = sum(part.weight for part in parts)
    score = sum(part.weight * scores[part.label] for part in parts) / total
    decisive = next((scores[part.label] for part in parts if part.passes), None)
    return Verdict(score, parts=scores, passing_score=decisive)


class WeightedJudge:
    """Asks the judge of each part; a `core.protocols.Judge`.

    Args:
        parts: (a part of the reward, who judges it).
    """

    def __init__(self, parts: Sequence[tuple[RewardPart, Judge]]) -> None:
        self._parts = [part for part, _ in parts]
        self._judges = [judge for _, judge in parts]
        self._tickets: dict[int, list[int]] = {}
        self._numbers = count()

    def submit(self, prompt: Prompt, completion: str) -> int:
        """As `Judge.submit`, to all."""
        ticket = next(self._numbers)
        self._tickets[ticket] = [judge.submit(prompt, completion) for judge in self._judges]
        return ticket

    def collect(self, tickets: Sequence[int]) -> list[Verdict]:
        """As `Judge.collect`: each judge is asked once for all of its tickets."""
        check_tickets(tickets, self._tickets)
        inner = [self._tickets.pop(ticket) for ticket in tickets]
        columns = [judge.collect([row[place] for row in inner]) for place, judge in enumerate(self._judges)]
        return [weighted_verdict(self._parts, verdicts) for verdicts in zip(*columns, strict=True)]
