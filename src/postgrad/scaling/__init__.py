"""Where a run will end, from its first half: the sigmoid law of "The Art of Scaling Reinforcement Learning Compute for
LLMs" (ScaleRL, arXiv 2510.13786, §2 and §A.5), for the logs of any framework. Needs no torch.

Departures from the paper:
1. All four parameters are fitted by variable projection, R0 included; the paper grids A and C_mid and is given R0
   (`method = "grid"`).
2. Intervals on everything, by a bootstrap that keeps the autocorrelation of the residuals; the paper states ±0.02 on A.
3. The early regime is found from the data; the paper drops the first 1,500 GPU-hours (`exclude_below = 1500`).
4. Recipes are compared at the A that fits both logs best; the paper averages the two A.

Start at `ops.py` (the equations), then `solver.py` (the fit), `bootstrap.py` (intervals), `verdict.py` (what a log can tell).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from postgrad.scaling.config import ScalingConfig

if TYPE_CHECKING:
    from postgrad.scaling.api import backtest, compare, fit, plan
    from postgrad.scaling.callback import ForecastCallback
    from postgrad.scaling.curve import Curve
    from postgrad.scaling.fitting import Fit

__all__ = ["Curve", "Fit", "ForecastCallback", "ScalingConfig", "backtest", "compare", "fit", "plan"]

_HOMES = {"Curve": "curve", "Fit": "fitting", "ForecastCallback": "callback"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"postgrad.scaling.{_HOMES.get(name, 'api')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
