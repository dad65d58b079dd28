"""The room from Python: whatever the command line does, with the same names and defaults.

import postgrad as pg

fit = pg.scaling.fit("runs/first")                     # or a trainer_state.json, a .csv, a Run, (compute, reward)
fit.ceiling, fit.verdict
pg.scaling.compare("runs/a", "runs/b")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from postgrad.core.config import validate
from postgrad.core.errors import DataError
from postgrad.core.run import Run
from postgrad.scaling.axes import to_curve
from postgrad.scaling.backtesting import Backtest, backtest_curve
from postgrad.scaling.comparison import Comparison, compare_fits, shared_ceiling
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.curve import Curve
from postgrad.scaling.fitting import Fit, fit_curve
from postgrad.scaling.planning import Plan, plan_run
from postgrad.scaling.readers import read

Source = Curve | Fit | Run | Path | str | tuple[ArrayLike, ArrayLike]


def load_curve(source: Source, config: ScalingConfig) -> Curve:
    """The curve of a log: a path (see `readers`), a Run, (compute, reward) in logged order, or a Curve as it is.

    Raises:
        DataError: see `readers.read`, `axes.to_curve` and `Curve.from_points`.
    """
    if isinstance(source, Fit):
        return source.curve
    if isinstance(source, Curve):
        return source
    if isinstance(source, tuple):
        limits = config.limits if isinstance(config.limits, tuple) else (float("-inf"), float("inf"))
        return Curve.from_points(*source, limits=limits, segment=config.segment, max_points=config.max_points)
    return to_curve(read(source.path if isinstance(source, Run) else source), config)


def fit(source: Source, config: ScalingConfig | None = None, **options: Any) -> Fit:
    """Fits the sigmoid law to a log.

    Args:
        source: see `load_curve`.
        config: options; default: those of `ScalingConfig`.
        options: single ones, such as `exclude_below=1500` or `y="eval_reward"`.

    Returns:
        The fit: `.ceiling`, `.exponent`, `.midpoint`, `.initial` with intervals, `.status`, `.verdict`, `.predict(C)`.

    Raises:
        PostgradError: the log cannot be read, or holds too few points.
    """
    config = _configure(config, options)
    return fit_curve(load_curve(source, config), config)


def compare(
    *sources: Source, config: ScalingConfig | None = None, **options: Any
) -> tuple[list[Fit], list[Comparison]]:
    """Fits two or more logs and compares every pair.

    Returns:
        (fits in the order of the sources, comparisons of all pairs).

    Raises:
        DataError: fewer than two logs, or logs over different kinds of compute.
        PostgradError: as `fit`.
    """
    if len(sources) < 2:
        raise DataError("Give two or more logs to compare.")
    config = _configure(config, options)
    curves = [load_curve(source, config) for source in sources]
    units = {curve.axis.unit: curve for curve in curves}
    if len(units) > 1:
        (one, first), (other, second) = list(units.items())[:2]
        raise DataError(
            f"{first.name} counts compute in {one}, {second.name} in {other}: they cannot be compared. Choose an axis that both "
            "have with --x."
        )
    fits = fit_together(_distinct(curves), config)
    pairs = [(i, j) for i in range(len(fits)) for j in range(i + 1, len(fits))]
    return fits, [compare_fits(fits[i], fits[j]) for i, j in pairs]


def fit_together(curves: Sequence[Curve], config: ScalingConfig) -> list[Fit]:
    """Fits of several curves; with `share_ceiling` under the one A that fits all of them best, each weighted by its noise."""
    fits = [fit_curve(curve, config) for curve in curves]
    if not config.share_ceiling or len(fits) < 2:
        return fits
    together = config.model_copy(update={"ceiling": shared_ceiling(fits)})
    return [fit_curve(curve, together) for curve in curves]


def backtest(
    source: Source,
    config: ScalingConfig | None = None,
    *,
    shares: Sequence[float] = (0.1, 0.25, 0.5),
    **options: Any,
) -> list[Backtest]:
    """Fits the beginning of a log and scores the rest; see `backtesting.backtest_curve`."""
    config = _configure(config, options)
    return backtest_curve(load_curve(source, config), config, shares)


def plan(source: Source, config: ScalingConfig | None = None, **options: Any) -> Plan:
    """Where to stop and when to look again; see `planning.plan_run`."""
    return plan_run(fit(source, config, **options))


def _configure(config: ScalingConfig | None, options: dict[str, Any]) -> ScalingConfig:
    base = {} if config is None else config.model_dump()
    return validate(ScalingConfig, {**base, **options})


def _distinct(curves: Sequence[Curve]) -> list[Curve]:
    """Curves under names of their own."""
    from dataclasses import replace

    names = [curve.name for curve in curves]
    return [
        curve if names.count(curve.name) == 1 else replace(curve, name=f"{curve.name} ({index})")
        for index, curve in enumerate(curves, 1)
    ]
