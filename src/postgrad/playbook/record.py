"""What is kept of a sample: a record in the log (no texts), a row of samples.jsonl (texts without secrets), sums for metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from postgrad.core.data import plain_text
from postgrad.engines.chat import Account
from postgrad.playbook.book import Delta
from postgrad.playbook.clean import redact
from postgrad.playbook.config import ROLES
from postgrad.playbook.study import Assignment, Study

_RECENT = 50


def is_sample(delta: Delta) -> bool:
    """Whether a delta was learned from a sample; others are validations, and what people did."""
    return delta.sample is not None and "validation" not in delta.sample


def record_of(sample: Assignment, study: Study, per_epoch: int) -> dict[str, Any]:
    """What the log keeps of a sample: enough for its metrics, no texts."""
    first = study.attempts[0] if study.attempts else None
    last = study.attempts[-1] if study.attempts else None
    return {
        "number": sample.number,
        "epoch": sample.number // per_epoch if per_epoch else 0,
        "prompt": sample.prompt.id,
        "correct": bool(first and first.passed),
        "judged": bool(first and first.feedback.score is not None),
        "correct_after": bool(last and last.passed),
        "score": first.feedback.score if first else None,
        "failed": study.failure is not None,
        "attempts": len(study.attempts),
        "problems": len(study.problems),
        "used": list(first.used) if first else [],
        "context_tokens": sample.tokens,
        "from_version": sample.book.version,
        "calls": {role: account.calls for role, account in study.account.items()},
        "accounts": {role: account.as_dict() for role, account in study.account.items()},
    }


def sample_row(sample: Assignment, study: Study, refused: Sequence[str]) -> dict[str, Any]:
    """For samples.jsonl: the texts, without secrets."""
    first = study.attempts[0] if study.attempts else None
    return {
        "prompt_id": sample.prompt.id,
        "task": sample.prompt.task,
        "prompt": redact(plain_text(sample.prompt)),
        "completion": redact(first.trace) if first else "",
        "answers": [redact(attempt.answer) for attempt in study.attempts],
        "feedback": [redact(attempt.feedback.text) for attempt in study.attempts],
        "reward": first.feedback.score if first else None,
        "reflections": study.reflections,
        "tags": dict(study.tags),
        "requested": [
            {
                key: redact(value) if isinstance(value, str) else value
                for key, value in item.model_dump().items()
                if value
            }
            for item in study.requested
        ],
        "refused": list(refused),
        "problems": [redact(problem) for problem in study.problems],
        "failure": redact(study.failure) if study.failure else None,
    }


class Totals:
    """Sums over samples, for metrics."""

    def __init__(self) -> None:
        self.count = self.correct = self.correct_after = self.failed = 0
        self.recent: deque[bool] = deque(maxlen=_RECENT)
        self.accounts: dict[str, Account] = dict.fromkeys(ROLES, Account())
        self.last: Mapping[str, Any] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """One more sample, as the log has it."""
        self.count += 1
        self.correct += record["correct"]
        self.correct_after += record["correct_after"]
        self.failed += record["failed"]
        self.recent.append(record["correct"])
        for role, account in record["accounts"].items():
            self.accounts[role] += Account(**account)
        self.last = record

    def add_validation(self, account: Mapping[str, Any]) -> None:
        """What a validation took, which is the Generator's."""
        self.accounts["generator"] += Account(**account)

    def row(self) -> dict[str, Any]:
        """Metrics after the last sample."""
        row: dict[str, Any] = {
            "learn/accuracy": self.correct / self.count,
            "learn/accuracy_recent": sum(self.recent) / len(self.recent),
            "learn/accuracy_after": self.correct_after / self.count,
            "learn/correct": float(self.last["correct"]),
            "learn/failed": self.failed,
            "learn/calls": sum(self.last["calls"].values()),
            "learn/problems": self.last["problems"],
        }
        cost = sum(self.accounts.values(), Account()).cost_usd
        if cost is not None:
            row["cost/usd"] = cost
        for role, account in self.accounts.items():
            row[f"cost/{role}_calls"] = account.calls
            row[f"cost/{role}_prompt_tokens"] = account.prompt_tokens
            row[f"cost/{role}_cached_tokens"] = account.cached_tokens
            row[f"cost/{role}_completion_tokens"] = account.completion_tokens
        return row
