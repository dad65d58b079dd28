"""Do the 95 % intervals of `postgrad scaling` hold the truth 95 % of the time?

Curves with the parameters of every row of the paper's Table 1 (ScaleRL, arXiv 2510.13786), 44 evaluations, σ = 0.004,
with white noise and with noise that remembers (ρ = 0.5), each fitted as `postgrad scaling fit` does by default.
Counted, per parameter: how often the interval holds the truth (an open end holds everything on its side), the same for
the forecast of the law at twice the log and for one new evaluation there, and how often A is within the paper's ±0.02.
The peer is the delta method, estimate ± 1.96 standard errors of white noise, as `curve_fit`'s covariance would give it.

    python benchmarks/scaling_calibration.py [--quick] [--curves 128]
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from _common import finish, machine, print_table
from postgrad.scaling.bootstrap import Estimate
from postgrad.scaling.fitting import Fit, Law, fit_curve
from postgrad.scaling.ops import law_jacobian
from scaling_curves import SIGMA, TABLE_1, curve_of, last_compute

PARAMETERS = ("ceiling", "exponent", "midpoint", "initial")


class Case(NamedTuple):
    """One row of Table 1 under one kind of noise."""

    name: str
    rho: float
    seed: int
    share: float = 1.0


def holds(estimate: Estimate, truth: float) -> bool:
    """Whether the interval holds the truth."""
    return (estimate.low is None or estimate.low <= truth) and (
        estimate.high is None or truth <= estimate.high
    )


def run(case: Case) -> Counter[str]:
    """One curve: what held."""
    truth = TABLE_1[case.name]
    generator = np.random.default_rng([case.seed, list(TABLE_1).index(case.name), int(100 * case.rho)])
    curve = curve_of(truth, generator, rho=case.rho, share=case.share)
    found = fit_curve(curve)
    count: Counter[str] = Counter({"curves": 1, found.status: 1})
    for name in PARAMETERS:
        count[name] += holds(getattr(found, name), getattr(truth, name))
    ahead = 2 * last_compute(truth)
    forecast = found.predict(ahead)
    count["law ahead"] += holds(forecast.reward, float(truth(ahead)))
    count["new evaluation"] += holds(forecast.evaluation, float(truth(ahead)) + SIGMA * generator.normal())
    count["A within 0.02"] += abs(found.law.ceiling - truth.ceiling) <= 0.02
    count["delta method"] += _delta_method_holds(found, truth)
    return count


def _delta_method_holds(found: Fit, truth: Law) -> bool:
    law, points = found.law, found.points
    jacobian = law_jacobian(points.compute, law.ceiling, law.exponent, law.midpoint, law.initial)
    variance = found.sum_squares / (len(points) - 4) * np.linalg.pinv(jacobian.T @ jacobian)[1, 1]
    error = float(np.sqrt(variance))
    return abs(law.ceiling - truth.ceiling) <= 1.96 * error


def main() -> None:
    """Runs all curves and prints the shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="16 curves per row")
    parser.add_argument("--curves", type=int, help="per row and noise; default 128")
    parser.add_argument("--seed", type=int, default=0, help="of the first curve")
    options = parser.parse_args()
    per_row = options.curves or (16 if options.quick else 128)
    columns = [*PARAMETERS, "law ahead", "new evaluation", "delta method", "A within 0.02", "identified"]
    totals: dict[float, Counter[str]] = {}
    with ProcessPoolExecutor() as pool:
        for rho in (0.0, 0.5):
            rows: list[list[object]] = []
            total: Counter[str] = Counter()
            for name in TABLE_1:
                cases = [Case(name, rho, options.seed + seed) for seed in range(per_row)]
                found = sum(pool.map(run, cases, chunksize=4), Counter[str]())
                total += found
                rows.append([name, per_row, *(found[column] / per_row for column in columns)])
            size = total["curves"]
            rows.append(["all", size, *(total[column] / size for column in columns)])
            print_table(
                f"Share of 95 % intervals that hold the truth, noise with ρ = {rho}",
                ["row", "curves", *columns],
                rows,
            )
            totals[rho] = total
    shares = {
        f"rho {rho}": {column: total[column] / total["curves"] for column in columns}
        for rho, total in totals.items()
    }
    rates, peers = ([part[key] for part in shares.values()] for key in ("ceiling", "delta method"))
    off, peer_off = (float(np.mean([abs(rate - 0.95) for rate in found])) for found in (rates, peers))
    size = totals[0.0]["curves"]
    spread = 1.96 * (rates[0] * (1 - rates[0]) / size) ** 0.5
    finish(
        "scaling_calibration",
        rates[0],
        peers[0],
        "coverage of the 95 % interval of A, white noise",
        peer_off / max(off, 1 / size),
        (rates[0] - spread, rates[0] + spread),
        peer_name="delta method, white noise assumed",
        ratio_is="mean distance from 0.95 over both kinds of noise, delta method over ours; interval: of our coverage",
        curves_per_noise=size,
        coverage=shares,
        **machine(1),
    )


if __name__ == "__main__":
    main()
