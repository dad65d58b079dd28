"""Which training data made the model say this: "Bayesian Influence Functions for Hessian-Free Data Attribution" (2509.26544).
Weights are sampled around those of the model; training examples whose losses move with a query's loss influenced it.

Departures from the paper:
1. Scores are +Cov = −BIF, so that a proponent is positive.
2. The default method, `stein`, takes from a few draws the means of gradients and curvature that a covariance's leading part is
   made of (Stein's identity), in place of covariances themselves.
3. The default chains have a frozen EK-FAC preconditioner (2308.03296) and average the noise of consecutive steps (1203.5428), so
   that their law has no step-size error where it is Gaussian; the paper's chains are `method = "sgld"` and `"rmsprop"`.
4. The damping λ = γ/(nβ) is given, or of `stein` measured, not γ; β is by default what keeps draws near the weights, and a step
   is in units of the largest curvature, which is measured.
5. Rankings are withheld when R̂, ESS, drift, stability or agreement with half the step fail.

Start at `ops.py` (the equations), then `stein.py`, `sampler.py`, `layers.py` and `ekfac.py`, `data.py` and `examples.py` (what a
loss is), `api.py`, `result.py`; `callback.py`, `checkpoints.py`, `multi.py` are for several checkpoints of one training,
`problem.py`, `validate.py`, `pruning.py` for training again.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from postgrad.influence.config import InfluenceConfig

if TYPE_CHECKING:
    from postgrad.influence import ops
    from postgrad.influence.api import answer, run
    from postgrad.influence.callback import CheckpointCallback
    from postgrad.influence.data import Example, read_examples
    from postgrad.influence.examples import Examples
    from postgrad.influence.mislabeled import signals
    from postgrad.influence.multi import CheckpointsResult, run_checkpoints
    from postgrad.influence.problem import Problem, TextProblem, finetune
    from postgrad.influence.pruning import prune
    from postgrad.influence.result import Result
    from postgrad.influence.validate import Retrained, judge, make_subsets

__all__ = [
    "CheckpointCallback",
    "CheckpointsResult",
    "Example",
    "Examples",
    "InfluenceConfig",
    "Problem",
    "Result",
    "Retrained",
    "TextProblem",
    "answer",
    "finetune",
    "judge",
    "make_subsets",
    "ops",
    "prune",
    "read_examples",
    "run",
    "run_checkpoints",
    "signals",
]

_PLACES = {
    "CheckpointCallback": "callback",
    "CheckpointsResult": "multi",
    "Example": "data",
    "Examples": "examples",
    "Problem": "problem",
    "Result": "result",
    "Retrained": "validate",
    "TextProblem": "problem",
    "answer": "api",
    "finetune": "problem",
    "judge": "validate",
    "make_subsets": "validate",
    "prune": "pruning",
    "read_examples": "data",
    "run": "api",
    "run_checkpoints": "multi",
    "signals": "mislabeled",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("postgrad.influence.ops")
    if name in _PLACES:
        return getattr(import_module(f"postgrad.influence.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
