"""How good the forecast would have been: fit the beginning of a log, score the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from postgrad.core.errors import DataError
from postgrad.scaling.bootstrap import Estimate
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.curve import Curve
from postgrad.scaling.fitting import Fit, fit_curve
from postgrad.scaling.ops import Array

LEVELS = (0.5, 0.8, 0.95)


class Backtest(NamedTuple):
    """One beginning.

    Attributes:
        share: of the log's compute that was fitted.
        num_fitted, num_scored: points.
        status: of the fit, or "too few points".
        ceiling: as forecast from the beginning; None without a fit.
        rmse: of the forecast on the rest.
        bias: mean of forecast minus evaluation on the rest.
        rmse_last: of the forecast that the reward stays at the mean of the last three fitted points.
        coverage: level → share of the later evaluations inside the interval of that level.
        verdict: of the fit, or why there is none.
        fit: the fit, or None.
    """

    share: float
    num_fitted: int
    num_scored: int
    status: str
    ceiling: Estimate | None
    rmse: float | None
    bias: float | None
    rmse_last: float | None
    coverage: dict[float, float]
    verdict: str
    fit: Fit | None


def backtest_curve(
    curve: Curve, config: ScalingConfig, shares: Sequence[float] = (0.1, 0.25, 0.5)
) -> list[Backtest]:
    """Fits the first `shares` of a curve's compute and scores each fit on the rest.

    Args:
        curve: complete.
        config: options; `exclude_above` is what this sets.
        shares: of the compute between the first and the last point, each in (0, 1).

    Raises:
        DataError: a share outside (0, 1).
    """
    bad = [share for share in shares if not 0 < share < 1]
    if bad:
        raise DataError(f"A backtest fits a share of the log between 0 and 1, not {bad[0]:g}.")
    return [_one(curve, config, share) for share in shares]


def _one(curve: Curve, config: ScalingConfig, share: float) -> Backtest:
    border = curve.compute[0] + share * (curve.compute[-1] - curve.compute[0])
    seen, rest = curve.upto(float(border)), curve.select(curve.compute > border)
    try:
        found = fit_curve(curve, config.model_copy(update={"exclude_above": float(border)}))
    except DataError as error:
        nothing = (None, None, None, None)
        return Backtest(share, len(seen), len(rest), "too few points", *nothing, {}, str(error), None)
    error = found.law(rest.compute) - rest.reward
    stay = seen.reward[-3:].mean() - rest.reward
    return Backtest(
        share,
        int(found.fitted.sum()),
        len(rest),
        found.status,
        found.ceiling,
        float(np.sqrt(np.mean(error**2))),
        float(error.mean()),
        float(np.sqrt(np.mean(stay**2))),
        {level: coverage(found, rest.compute, rest.reward, level) for level in LEVELS},
        found.verdict,
        found,
    )


def coverage(found: Fit, compute: Array, reward: Array, level: float) -> float:
    """Share of evaluations inside the interval that one new evaluation should fall in with probability `level`."""
    draws = found.draws.law(compute) + found.draws.noise[:, None]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return float(np.mean((reward >= low) & (reward <= high)))
