"""RL that finds all good answers: "KL-Regularized RL is Designed to Mode Collapse" (arXiv 2510.20817), whose Mode Anchored
Reward Augmentation (MARA) changes the reward of good samples so that the optimum is uniform over them.

Departures from the paper:
1. The anchor is searched per prompt, among the good samples of the prompt's own group; equal reference log-probs are
   settled by the higher reward, so that the order of samples cannot matter.
2. The KL is always k1 inside the reward, and the *total* is centred and scaled (`ops.centre_and_scale`): of the usual
   estimators only this one keeps its optimum when advantages are scaled (`benchmarks/mara_tabular.py`).
3. β = 0 leaves the rewards as they are; the formula would still replace every good reward by the anchor's.
4. Rare answers starve before they are lifted: replay of good answers (`replay.py`) cures it. Advantages are divided by no
   less than β times 1 nat (`MaraConfig.min_deviation`), so that noise is not blown up where all samples are good.
5. Instead of token sequences, texts or molecules can be made equally likely (`MaraConfig.answers`, `ops.joint_logps`).

Start at `ops.py` (the equations and the rivals), then `rewards.py` (what `rl` receives), `theory.py` (closed forms),
`tabular.py` (does training reach them?), `diversity.py` and `molecules.py` (what to measure).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from postgrad.mara.config import MaraConfig

if TYPE_CHECKING:
    from postgrad.mara import diversity, molecules, ops, tabular, theory
    from postgrad.mara.rewards import transform

__all__ = ["MaraConfig", "diversity", "molecules", "ops", "tabular", "theory", "transform"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        if name == "transform":
            return import_module("postgrad.mara.rewards").transform
        return import_module(f"postgrad.mara.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
