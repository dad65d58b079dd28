"""The arms of `benchmarks/mara_many_answers.py`: what each changes in the config of all, what was tried, what is best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from postgrad.core.config import deep_merge
from postgrad.mara.config import MaraConfig

Change = dict[str, Any]
GROUP: Change = {"algorithm": {"advantage_norm": "group"}}


def mara(method: str, beta: float, **options: Any) -> Change:
    """A table [mara]."""
    table = {"method": method, "beta": beta, **options}
    MaraConfig.model_validate(table)
    return {"mara": table}


def covariance(kind: str, **options: Any) -> Change:
    """KL-Cov or Clip-Cov, without a table [mara]."""
    return {
        "algorithm": {"covariance": kind, **{f"covariance_{key}": value for key, value in options.items()}}
    }


def both_norms(changes: Sequence[Change]) -> list[Change]:
    """Each with the deviation of the batch and with that of the group."""
    return [deep_merge(change, norm) for change in changes for norm in ({}, GROUP)]


OURS, PEER = "MARA", "KL as MARA's"
GRID: dict[str, list[Change]] = {
    "no KL": both_norms([{}]),
    "KL": both_norms([mara("none", beta) for beta in (0.1, 0.3, 1.0)]),
    "MARA, no replay": both_norms([mara("mara", beta) for beta in (0.03, 0.1, 0.3)]),
    "MARA": both_norms([mara("mara", beta, replay=5) for beta in (0.03, 0.1, 0.3)]),
    "entropy bonus": both_norms([mara("entropy_bonus", 0.0, coefficient=c) for c in (0.03, 0.1, 0.3)]),
    "rank penalty": both_norms([mara("unlikeliness", 0.0, coefficient=c) for c in (0.25, 0.9)]),
    "smoothing": both_norms([mara("differential_smoothing", 0.0, coefficient=c) for c in (0.1, 0.3)]),
    "pass@k": both_norms([mara("pass_at_k", 0.0, k=k) for k in (4, 8)]),
    "FlowRL": [
        deep_merge(change, {"algorithm": {"aggregation": "sample"}})
        for change in both_norms([mara("flow_rl", 0.0, coefficient=c) for c in (1.0, 3.0, 15.0)])
    ],
    "KL-Cov": both_norms([covariance("kl", fraction=fraction) for fraction in (0.002, 0.05)]),
    "Clip-Cov": both_norms([covariance("clip", fraction=0.0002), covariance("clip", fraction=0.05, low=0.1)]),
    "diversity filter": both_norms([mara("diversity_filter", 0.0, bucket=b) for b in (3, 10)]),
}
SEARCH_SEED, LEVEL = 100, 0.9
BEST = {
    "no KL": 0,
    "KL": 4,
    "MARA, no replay": 5,
    "MARA": 5,
    "entropy bonus": 3,
    "rank penalty": 3,
    "smoothing": 3,
    "pass@k": 0,
    "FlowRL": 1,
    "KL-Cov": 0,
    "Clip-Cov": 3,
    "diversity filter": 3,
}
"""Which of its settings `--search` found best for each arm."""
ARMS: dict[str, Change] = {name: GRID[name][index] for name, index in BEST.items()}
ARMS[PEER] = deep_merge(ARMS[OURS], {"mara": {"method": "none", "replay": 0}})
