"""Figures of the room: what RL makes of a table of answers, and how diverse answers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from postgrad.core.figures import LINE_ROLES, Figure, Line
from postgrad.mara.explain import METHODS, NAMES, Explanation, optimal_policy, quote
from postgrad.mara.theory import Array

_ROLES = {"reverse": "b", "forward": "c", "mara": "a"}
_MAX_BARS = 60
_POINTS = 121
_BEYOND = 10.0
"""Curves go on to this many times the smallest and largest β."""


# -- explain -------------------------------------------------------------------------------------------------------


def explain_figures(found: Explanation) -> list[Figure]:
    """The distributions at the smallest β, P(rarest | good) and P(good) over β, and the crossover where there is one."""
    betas = _betas(found)
    curves = {
        method: np.array([optimal_policy(found.table, method, b, found.config.tau) for b in betas])
        for method in METHODS
    }
    good = found.good
    rewards = found.table.rewards[good]
    equal = rewards.min() == rewards.max() and good.sum() > 1
    flat = (
        " Good answers have equal rewards here, so ordinary RL cannot move it, whatever β." if equal else ""
    )
    figures = [
        distribution_figure(found),
        _over_beta(
            "rare_given_good",
            "The rarest good answer among the good ones, over β",
            f"P({quote(found.table.answers[found.rare])} | good) where training ends. Even would be "
            f"{100 / good.sum():.3g} %.{flat}",
            betas,
            {
                method: _ratio(policy[:, found.rare], policy[:, good].sum(1))
                for method, policy in curves.items()
            },
        ),
        _over_beta(
            "good_mass",
            "Good answers of any kind, over β",
            "P(good) where training ends: the larger β, the less of the reward is learned.",
            betas,
            {method: policy[:, good].sum(1) for method, policy in curves.items()},
        ),
    ]
    if found.crossover.beta is not None:
        figures.append(_crossover_figure(found, betas, curves["reverse"]))
    return figures


def _ratio(part: Array, whole: Array) -> Array:
    """NaN where a good mass has underflowed."""
    with np.errstate(invalid="ignore"):
        return part / whole


def _betas(found: Explanation) -> Array:
    given = [*found.config.beta, *([found.crossover.beta] if found.crossover.beta else [])]
    return np.geomspace(min(given) / _BEYOND, max(given) * _BEYOND, _POINTS)


def shown_answers(found: Explanation) -> list[int]:
    """Indices of the answers in a figure or table: all of few, else the good and the likeliest; by support, most first."""
    ref = found.table.ref
    chosen = np.lexsort((-ref, ~found.good))[:_MAX_BARS]
    return sorted((int(i) for i in chosen), key=lambda i: (-ref[i], i))


def distribution_figure(found: Explanation) -> Figure:
    """Probability of each answer: the reference as bars, what training makes of it as marks."""
    beta = min(found.config.beta)
    shown = shown_answers(found)
    columns: dict[str, list[float | None]] = {"answer": [float(n) for n in range(1, len(shown) + 1)]}
    columns["reference"] = [float(found.table.ref[i]) for i in shown]
    for method in METHODS:
        policy = found.find(method, beta).policy
        columns[NAMES[method]] = [float(policy[i]) for i in shown]
    lines = (
        Line("reference", "reference", style="bars", role="grid"),
        Line(NAMES["mara"], NAMES["mara"], style="scatter", role="a"),
        Line(NAMES["reverse"], NAMES["reverse"], style="scatter", role="b"),
        Line(NAMES["forward"], NAMES["forward"], style="hollow", role="c"),
    )
    names = "; ".join(f"{n} {quote(found.table.answers[i], 32)}" for n, i in enumerate(shown[:8], 1))
    more = f"; … of {len(found.table.answers)}" if len(found.table.answers) > 8 else ""
    return Figure(
        "distributions",
        f"Where training ends, β = {beta:g}",
        f"Probability of each answer, by support. {names}{more}.",
        columns,
        "answer",
        lines,
        x_label="answer",
        percent=True,
    )


def _over_beta(name: str, title: str, caption: str, betas: Array, values: Mapping[str, Array]) -> Figure:
    columns: dict[str, Any] = {"beta": betas.tolist()}
    columns |= {NAMES[method]: _plain(column) for method, column in values.items()}  # type: ignore[index]
    # Forward KL last and dashed: where curves coincide, as they do under equal rewards, the other shows through.
    order = [("mara", "line"), ("reverse", "line"), ("forward", "dashed")]
    lines = tuple(
        Line(NAMES[method], NAMES[method], style=style, role=_ROLES[method])  # type: ignore[index,arg-type]
        for method, style in order
    )
    return Figure(name, title, caption, columns, "beta", lines, x_label="β", percent=True, log_x=True)


def _plain(column: Array) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in column]


def _crossover_figure(found: Explanation, betas: Array, policies: Array) -> Figure:
    best, likeliest = found.crossover.best, found.crossover.likeliest
    columns: dict[str, Any] = {
        "beta": betas.tolist(),
        "best": _plain(policies[:, best]),
        "likeliest": _plain(policies[:, likeliest]),
    }
    return Figure(
        "crossover",
        "Best against likeliest answer under ordinary RL",
        f"They are equally likely at β* = {found.crossover.beta:.4g}.",
        columns,
        "beta",
        (
            Line("best", f"best: {quote(found.table.answers[best], 24)}", role="a"),
            Line("likeliest", f"likeliest: {quote(found.table.answers[likeliest], 24)}", role="b"),
        ),
        x_label="β",
        percent=True,
        log_x=True,
    )


# -- measure -------------------------------------------------------------------------------------------------------


def measure_figures(record: Mapping[str, Any]) -> list[Figure]:
    """pass@k over k, how often the most frequent answers come, and yield over answers, as far as there is data."""
    interval = f"{100 * record['confidence']:g} % interval"
    figures = [
        _curve_figure(
            record,
            "pass_at_k",
            "k",
            "pass@k",
            f"The chance that one of k answers is good, with its {interval} over prompts. Lines that cross mean: better with "
            "one try, worse with many.",
            x_label="k",
            percent=True,
        ),
        _curve_figure(
            record,
            "frequency",
            "rank",
            "How often the most frequent answers come",
            "Share of the answers to a prompt that its most frequent, second most frequent, … answer has; mean over prompts. "
            "Steep is collapsed, flat is diverse.",
            x_label="rank of the answer",
            percent=True,
        ),
        _curve_figure(
            record,
            "yield",
            "answers",
            "Yield",
            "Different good answers among the first n, in the order of the file.",
            x_label="answers",
        ),
    ]
    return [figure for figure in figures if figure is not None]


def _curve_figure(
    record: Mapping[str, Any], key: str, x: str, title: str, caption: str, **options: Any
) -> Figure | None:
    """All sides' curves; None where no side has one of at least two points."""
    sides = [side for side in record["sides"] if len(side["curves"][key]) > 1]
    if not sides:
        return None
    positions = sorted({point[x] for side in sides for point in side["curves"][key]})
    columns: dict[str, list[float | None]] = {x: positions}
    lines: list[Line] = []
    for index, side in enumerate(sides):
        points: Sequence[Mapping[str, float | None]] = side["curves"][key]
        at = {point[x]: point for point in points}
        pick: Callable[[str], list[float | None]] = lambda end, at=at: [  # noqa: E731
            at[position].get(end) if position in at else None for position in positions
        ]
        name = side["name"]
        middle = f"{name} value"  # a side may be called as the axis is
        columns[middle] = pick("value")
        band: tuple[str | None, str | None] = (None, None)
        if any(point.get("low") is not None for point in points):
            band = (f"{name} low", f"{name} high")
            columns |= {band[0]: pick("low"), band[1]: pick("high")}  # type: ignore[dict-item]
        label = name if len(record["sides"]) > 1 else ""
        style = "points" if len(points) <= 30 else "line"
        lines.append(Line(middle, label, *band, style=style, role=LINE_ROLES[index % len(LINE_ROLES)]))
    return Figure(key, title, caption, columns, x, tuple(lines), **options)
