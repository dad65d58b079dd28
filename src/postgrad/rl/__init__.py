"""Reinforcement learning with verifiable rewards, after "The Art of Scaling Reinforcement Learning Compute for LLMs"
(ScaleRL, arXiv 2510.13786): an asynchronous recipe whose every choice is an option, with the paper's as defaults.

Departures from the paper:
1. Staleness is bounded by admission and oldest-first batches (AReaL, arXiv 2505.24298); no sample is discarded for age.
2. A sample whose verification failed (timeout, exception, NaN) is left out and counted; the paper does not say.
3. Group means and the batch deviation are taken over the samples that are trained on (truncated ones excluded first).

Start at `ops.py` (the equations), then `learner.py` (one update), `scheduler.py` (who waits for whom), `trainer.py` (the loop).
`ablation.py` says which of the choices matter.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from postgrad.rl.config import RLConfig

if TYPE_CHECKING:
    from postgrad.rl.ablation import leave_one_out
    from postgrad.rl.ablation_runs import ablate
    from postgrad.rl.api import evaluate_model, train

__all__ = ["RLConfig", "ablate", "evaluate_model", "leave_one_out", "train"]
_MODULES = {
    "ablate": "ablation_runs",
    "evaluate_model": "api",
    "leave_one_out": "ablation",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"postgrad.rl.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
