"""Fits as JSON and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from postgrad.core.errors import DataError
from postgrad.core.runfiles import to_plain
from postgrad.scaling.backtesting import Backtest
from postgrad.scaling.bootstrap import Estimate, show
from postgrad.scaling.comparison import Comparison
from postgrad.scaling.curve import Axis, Curve
from postgrad.scaling.fitting import Fit, Prediction
from postgrad.scaling.planning import Plan

Rows = list[tuple[str, ...]]


def span(estimate: Estimate, percent: str = "") -> str:
    """An interval in words.

    >>> span(Estimate(0.61, 0.59, None), "95 %")
    '95 %: 0.59 to open'
    """
    low, high = ("open" if end is None else show(end) for end in (estimate.low, estimate.high))
    return f"{percent}{': ' if percent else ''}{low} to {high}"


def plain(record: Any) -> Any:
    """A record as strict JSON, which knows no NaN and no infinity: they become null.

    >>> plain({"compute": np.array([1.0, np.inf]), "name": "a"})
    {'compute': [1.0, None], 'name': 'a'}
    """
    return to_plain(record)[0]


def curve_record(curve: Curve) -> dict[str, Any]:
    """All of a curve."""
    return {
        "name": curve.name,
        "x": curve.axis.key,
        "unit": curve.axis.unit,
        "y": curve.reward_key,
        "limits": [None if np.isinf(end) else end for end in curve.limits],
        "compute": curve.compute.tolist(),
        "reward": curve.reward.tolist(),
        "elapsed_s": None if curve.elapsed_s is None else curve.elapsed_s.tolist(),
        "notes": list(curve.notes),
    }


def curve_from_record(record: Mapping[str, Any]) -> Curve:
    """The inverse of `curve_record`. Raises DataError."""
    try:
        low, high = record["limits"]
        elapsed = record["elapsed_s"]
        return Curve(
            record["name"],
            np.array(record["compute"], float),
            np.array(record["reward"], float),
            Axis(record["x"], record["unit"]),
            record["y"],
            (-np.inf if low is None else low, np.inf if high is None else high),
            None if elapsed is None else np.array(elapsed, float),
            tuple(record["notes"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"This is no curve of `postgrad scaling` ({type(error).__name__}: {error})."
        ) from None


def fit_record(found: Fit) -> dict[str, Any]:
    """What `fit.json` holds."""
    points = found.points
    return {
        "name": found.name,
        "status": found.status,
        "verdict": found.verdict,
        "cautions": list(found.cautions),
        "ceiling": found.ceiling._asdict(),
        "exponent": found.exponent._asdict(),
        "midpoint": found.midpoint._asdict(),
        "initial": found.initial._asdict(),
        "tail": found.tail,
        "compute_to_share": {str(found.config.share): found.compute_to_share(found.config.share)._asdict()},
        "noise": {key: getattr(found.noise, key) for key in ("sigma", "rho", "num_effective")},
        "rmse": float(np.sqrt(np.mean(found.residuals**2))),
        "window": {
            "first": float(points.compute[0]),
            "last": float(points.compute[-1]),
            "num_points": len(points),
            "num_left_out": int((~found.fitted).sum()),
        },
        "rivals": [rival._asdict() for rival in found.rivals],
        "curve": curve_record(found.curve),
        "fitted": found.fitted.tolist(),
    }


def fit_table(found: Fit) -> Rows:
    """(what, value with interval) of a fit."""
    unit, percent = found.curve.axis.unit, f"{100 * found.config.share:g} %"
    rows: Rows = [
        ("A, ceiling", found.ceiling.show()),
        ("B, exponent", found.exponent.show()),
        (f"C_mid, midpoint ({unit})", found.midpoint.show()),
        ("R0, initial", found.initial.show()),
    ]
    if found.status == "identified":
        rows.append((f"{percent} of A at ({unit})", found.compute_to_share(found.config.share).show()))
    rows.append(("σ of one evaluation", show(found.noise.sigma, 2)))
    rows.append(("points fitted", f"{len(found.points)} of {len(found.curve)}"))
    return rows


def rival_table(found: Fit) -> Rows:
    """(family, parameters, RMSE, ΔAICc, weight, ceiling), best first."""
    best = found.rivals[0].aicc
    return [
        (
            rival.name,
            str(rival.num_parameters),
            show(rival.rmse, 3),
            f"{rival.aicc - best:.1f}" if np.isfinite(rival.aicc - best) else "–",
            f"{rival.weight:.2f}",
            "none" if rival.ceiling is None else show(rival.ceiling),
        )
        for rival in found.rivals
    ]


RIVAL_HEADER = ("curve", "parameters", "RMSE", "ΔAICc", "weight", "ceiling")


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """One row of `predict --json`."""
    return {
        "compute": prediction.compute,
        "reward": prediction.reward._asdict(),
        "evaluation": prediction.evaluation._asdict(),
    }


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """One pair of `comparison.json`."""
    record = comparison._asdict()
    record["laws"] = None if comparison.laws is None else [law._asdict() for law in comparison.laws]
    return {key: value._asdict() if isinstance(value, Estimate) else value for key, value in record.items()}


def backtest_record(test: Backtest) -> dict[str, Any]:
    """One beginning of `backtest.json`."""
    record = test._asdict()
    record.pop("fit")
    record["ceiling"] = None if test.ceiling is None else test.ceiling._asdict()
    record["coverage"] = {str(level): value for level, value in test.coverage.items()}
    return record


BACKTEST_HEADER = (
    "fitted",
    "points",
    "status",
    "A",
    "RMSE ahead",
    "bias",
    "if it stayed",
    "in 95 %",
    "in 50 %",
)


def backtest_table(tests: Sequence[Backtest]) -> Rows:
    """One row per beginning."""
    return [
        (
            f"{100 * test.share:g} %",
            f"{test.num_fitted} + {test.num_scored}",
            test.status,
            _ceiling(test),
            *("–" if value is None else show(value, 2) for value in (test.rmse, test.bias, test.rmse_last)),
            *(f"{100 * test.coverage[level]:.0f} %" if test.coverage else "–" for level in (0.95, 0.5)),
        )
        for test in tests
    ]


def _ceiling(test: Backtest) -> str:
    if test.ceiling is None or test.status not in ("identified", "open"):
        return "–"
    if test.status == "open":
        return "open" if test.ceiling.low is None else f"≥ {show(test.ceiling.low)}"
    return test.ceiling.show()


def plan_record(plan: Plan) -> dict[str, Any]:
    """What `plan --json` prints."""
    record = plan._asdict()
    record["gain_of_doubling"] = plan.gain_of_doubling._asdict()
    record["shares"] = {str(share): value._asdict() for share, value in plan.shares.items()}
    record["advice"] = list(plan.advice)
    return record
