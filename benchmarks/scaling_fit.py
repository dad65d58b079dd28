"""One fit of the sigmoid law: variable projection against the paper's grid (ScaleRL, arXiv 2510.13786, §A.5).

The paper's protocol: for each A in 0.450, 0.455, …, 0.800 and each of 100 C_mid,
SciPy's `curve_fit` fits B; the smallest sum of squares wins; R0 is given. Ours searches B and C_mid with A in closed
form, given the same R0, and must end at an equal or lower sum of squares. Curves: the rows of the paper's Table 1, each
with 44 evaluations and noise of σ = 0.004. Both are point estimates of the same model in one process, one thread; the
last columns say what the whole of `postgrad scaling fit` takes (R0 fitted, early regime searched, 1,000 bootstrap
curves, five rival families).

    python benchmarks/scaling_fit.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from _common import finish, machine, print_table
from postgrad.scaling.bootstrap import show
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.fitting import Law, fit_curve, reward_limits, solve_law, theta_bounds
from postgrad.scaling.grid import grid_fit
from scaling_curves import INITIAL, SIGMA, TABLE_1, curve_of


def best_of(work, times: int) -> float:
    """Median seconds."""
    spent: list[float] = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the first two rows of Table 1 only")
    options = parser.parse_args()
    config = ScalingConfig(initial=INITIAL)
    rows: list[list[object]] = []
    speed: list[float] = []
    ours_s: list[float] = []
    grid_s: list[float] = []
    excess: list[float] = []
    for name, truth in list(TABLE_1.items())[: 2 if options.quick else None]:
        curve = curve_of(truth, np.random.default_rng(0))
        limits, bounds = reward_limits(curve, config), theta_bounds(curve.compute)
        started = time.perf_counter()
        peer = grid_fit(curve.compute, curve.reward, INITIAL)
        grid_s.append(time.perf_counter() - started)
        ours_s.append(best_of(lambda c=curve, b=bounds, x=limits: solve_law(c, config, b, x), 20))
        law, sse = solve_law(curve, config, bounds, limits)
        whole_s = best_of(lambda c=curve: fit_curve(c).ceiling, 3)
        speed.append(grid_s[-1] / ours_s[-1])
        excess.append(sse / peer.sum_squares)
        rows.append(
            [
                name,
                _show(truth),
                _show(law),
                _show(peer),
                grid_s[-1],
                ours_s[-1],
                speed[-1],
                excess[-1],
                whole_s,
            ]
        )
    header = [
        "row",
        "A, B, C_mid",
        "ours",
        "grid",
        "grid s",
        "ours s",
        "ratio",
        "SSE ours/grid",
        "whole fit s",
    ]
    print_table(f"44 evaluations, σ = {SIGMA}, R0 = {INITIAL} given", header, rows)
    if max(excess) > 1 + 1e-9:
        raise SystemExit(f"A sum of squares is above the grid's: {max(excess)}")
    finish(
        "scaling_fit",
        statistics.median(ours_s),
        statistics.median(grid_s),
        "s per fit",
        statistics.median(speed),
        (min(speed), max(speed)),
        peer_name="the paper's grid with scipy.optimize.curve_fit",
        sum_squares_ratio=(min(excess), max(excess)),
        **machine(1),
    )


def _show(law: Law | object) -> str:
    return ", ".join(show(getattr(law, key), 4) for key in ("ceiling", "exponent", "midpoint"))


if __name__ == "__main__":
    main()
