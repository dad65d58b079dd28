"""The paper's fitting protocol (ScaleRL, arXiv 2510.13786, §A.5): a grid over A and C_mid, SciPy's `curve_fit` for B.

For each pair on the grid, B alone is fitted by least squares with `curve_fit` as it comes; the pair with the smallest sum of
squared residuals wins. R0 is given, not fitted. It is here to be compared with; `solver` does the same in a thousandth of
the time, without a grid's resolution.

The grid is quoted from the paper's §A.5: A in {0.450, 0.455, …, 0.800}, C_mid at 100 linearly separated values in
[100, 40000].
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from postgrad.core.errors import MissingExtraError
from postgrad.scaling.ops import Array, sigmoid_law

CEILINGS = np.round(np.arange(0.450, 0.8001, 0.005), 3)
MIDPOINTS = np.linspace(100.0, 40000.0, 100)


class GridFit(NamedTuple):
    """What the grid found.

    Attributes:
        ceiling, exponent, midpoint, initial: A, B, C_mid, R0.
        sum_squares: of the residuals.
        on_edge: A or C_mid is the first or last of its grid, so the best may lie outside.
    """

    ceiling: float
    exponent: float
    midpoint: float
    initial: float
    sum_squares: float
    on_edge: bool


def grid_fit(
    compute: Array,
    reward: Array,
    initial: float,
    *,
    ceilings: Array = CEILINGS,
    midpoints: Array = MIDPOINTS,
) -> GridFit:
    """The paper's fit of one curve.

    Args:
        compute: C, [n], in the unit of `midpoints` (the paper: GPU-hours).
        reward: [n].
        initial: R0.
        ceilings: grid of A.
        midpoints: grid of C_mid.

    Returns:
        The pair with the smallest sum of squares, and its B.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    try:
        curve_fit: Any = import_module("scipy.optimize").curve_fit
    except ImportError:
        raise MissingExtraError("scipy", "scaling", "The paper's grid procedure") from None
    best = GridFit(np.nan, np.nan, np.nan, initial, np.inf, False)
    with warnings.catch_warnings():
        # "Covariance could not be estimated": of B alone, at hopeless pairs; the covariance is not used.
        warnings.simplefilter("ignore")
        for ceiling in ceilings:
            for midpoint in midpoints:
                law = _law_of_exponent(float(ceiling), float(midpoint), initial)
                try:
                    (exponent,), _ = curve_fit(law, compute, reward)
                except RuntimeError:  # no B converges at this pair
                    continue
                residual = reward - law(compute, exponent)
                sum_squares = float(residual @ residual)
                if sum_squares < best.sum_squares:
                    edge = ceiling in (ceilings[0], ceilings[-1]) or midpoint in (midpoints[0], midpoints[-1])
                    best = GridFit(
                        float(ceiling), float(exponent), float(midpoint), initial, sum_squares, bool(edge)
                    )
    return best


def _law_of_exponent(ceiling: float, midpoint: float, initial: float) -> Callable[[Array, float], Array]:
    def law(compute: Array, exponent: float) -> Array:
        return sigmoid_law(compute, ceiling, exponent, midpoint, initial)

    return law
