"""`postgrad scaling predict`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any

from postgrad.core.config import validate
from postgrad.core.console import print_rows
from postgrad.core.errors import ConfigError
from postgrad.scaling.api import fit
from postgrad.scaling.bootstrap import Estimate, show
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.fitting import Fit
from postgrad.scaling.records import fit_record, plain, prediction_record, span


def main(
    log: Path, at: Sequence[float], reach: Sequence[float], options: Mapping[str, Any], *, json_output: bool
) -> int:
    """Prints the law's forecasts; see `postgrad scaling predict --help`."""
    found = fit(log, validate(ScalingConfig, options))
    if not all(0 < compute < inf for compute in at):
        raise ConfigError(f"--at takes compute above 0, in {found.curve.axis.unit}.")
    last = float(found.curve.compute[-1])
    predictions = [found.predict(compute) for compute in at or (2 * last, 4 * last)]
    share = found.config.share
    reached = {f"{100 * share:g} % of A": found.compute_to_share(share)}
    reached |= {show(reward): found.compute_to_reward(reward) for reward in reach}
    if json_output:
        record = fit_record(found)
        keep = ("name", "status", "verdict", "cautions", "ceiling")
        result = {key: record[key] for key in keep}
        result["predictions"] = [prediction_record(prediction) for prediction in predictions]
        result["compute_to_reach"] = {key: estimate._asdict() for key, estimate in reached.items()}
        print(json.dumps(plain(result), indent=2))
        return 0
    unit, percent = found.curve.axis.unit, f"{100 * found.config.confidence:g} %"
    print(f"{found.name}: {found.verdict}")
    for words in (*found.curve.notes, *found.cautions):
        print(f"  note: {words}")
    if found.status not in ("identified", "open"):
        return 0
    rows = [(show(p.compute, 4), p.reward.show(), span(p.evaluation)) for p in predictions]
    print_rows((unit, f"{found.curve.reward_key}, {percent} interval", "one evaluation"), rows)
    if found.status == "identified":
        print_rows(
            ("to reach", unit, *_cost_header(found)),
            [(name, _reached(estimate), *_cost(found, estimate)) for name, estimate in reached.items()],
        )
    return 0


def _reached(estimate: Estimate) -> str:
    return estimate.show() if isfinite(estimate.value) else "out of reach"


def _cost_header(found: Fit) -> tuple[str, ...]:
    hours = ("hours from the start",) if found.seconds_per_compute() is not None else ()
    return (*hours, *(("cost",) if found.config.price is not None else ()))


def _cost(found: Fit, estimate: Estimate) -> tuple[str, ...]:
    """Hours and money of that much compute."""
    if not isfinite(estimate.value):
        return tuple("–" for _ in _cost_header(found))
    cells: list[str] = []
    seconds = found.seconds_per_compute()
    if seconds is not None and found.curve.elapsed_s is not None:
        ahead = estimate.value - float(found.curve.compute[-1])
        clock = float(found.curve.elapsed_s[-1])
        cells.append(show(max(0.0, clock + ahead * seconds) / 3600) if ahead > 0 else "reached")
    if found.config.price is not None:
        price = found.config.price
        ends = (None if end is None else end * price for end in (estimate.low, estimate.high))
        cells.append(f"{found.config.currency}{Estimate(estimate.value * price, *ends).show()}")
    return tuple(cells)
