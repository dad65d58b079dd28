"""Figures of a report: data first (its CSV), then an SVG that reads well on light and on dark paper.

A room describes a figure as columns and lines; matplotlib (extra `report`) draws it, with CSS variables as
colours.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, NamedTuple

from postgrad.core.errors import MissingExtraError

Column = Sequence[float | None]

PALETTE: dict[str, tuple[str, str, str]] = {
    # role: (the colour matplotlib is given, on light paper, on dark paper)
    "ink": ("#0a0b01", "#4a4a46", "#b9b8b2"),
    "grid": ("#0a0b02", "#e4e2dc", "#33332f"),
    "a": ("#0a0b03", "#1d6a86", "#6fc0dc"),
    "b": ("#0a0b04", "#b9772b", "#e0a862"),
    "c": ("#0a0b05", "#7a5195", "#c09bdc"),
    "d": ("#0a0b06", "#4f7f3a", "#97c77f"),
    "e": ("#0a0b07", "#a8433c", "#e58f86"),
    "f": ("#0a0b08", "#6b6b63", "#a9a89f"),
}
LINE_ROLES = ("a", "b", "c", "d", "e", "f")
Style = Literal["line", "points", "bars", "dashed", "scatter", "hollow"]


class Interval(NamedTuple):
    """A value with the ends of its 95 % interval (equal to it when there is none)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Headline:
    """One of the numbers at the top of a report.

    Attributes:
        label: what it is.
        value: the number, formatted; empty when `before` and `after` say it.
        detail: a few words below.
        before, after: shares in 0 to 1, drawn on a common axis.
    """

    label: str
    value: str = ""
    detail: str = ""
    before: Interval | None = None
    after: Interval | None = None


@dataclass(frozen=True)
class Line:
    """One line (or row of points, or of bars) of a figure.

    Attributes:
        y: column of the values.
        label: in the legend; no legend for a single line without one.
        low, high: columns of a band around it.
        style: `line`, `points` (line with markers), `bars`, `dashed`, `scatter` (markers only) or `hollow` (open markers).
        smooth: draw the values faintly and their moving mean on top.
        role: colour, a key of PALETTE; empty = the next one of LINE_ROLES.
    """

    y: str
    label: str = ""
    low: str | None = None
    high: str | None = None
    style: Style = "line"
    smooth: bool = False
    role: str = ""


@dataclass(frozen=True)
class Figure:
    """Columns of equal length and the lines to draw from them.

    Attributes:
        name: file stem of the SVG and the CSV.
        title: above the figure.
        caption: below it.
        columns: all data; None where there is no value.
        x: column on the horizontal axis.
        lines: what is drawn.
        x_label, y_label: of the axes; empty for none.
        percent: values are shares, shown as percentages.
        log_x: logarithmic horizontal axis.
        shaded: part of the horizontal axis behind which the paper is darker.
    """

    name: str
    title: str
    caption: str
    columns: Mapping[str, Column]
    x: str
    lines: tuple[Line, ...]
    x_label: str = ""
    y_label: str = ""
    percent: bool = False
    log_x: bool = False
    shaded: tuple[float, float] | None = None


def to_csv(figure: Figure) -> str:
    """All columns, also those not drawn; an empty cell for None."""
    return columns_csv(figure.columns)


def columns_csv(columns: Mapping[str, Sequence[Any]]) -> str:
    """Columns of equal length as CSV; an empty cell for None."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(
        ["" if cell is None else cell for cell in row] for row in zip(*columns.values(), strict=True)
    )
    return out.getvalue()


def require_matplotlib() -> None:
    """Raises MissingExtraError when figures cannot be drawn."""
    try:
        import_module("matplotlib")
    except ImportError:
        raise MissingExtraError("matplotlib", "report", "Drawing figures") from None


def to_svg(figure: Figure, width: float, height: float, *, variant: str = "") -> str:
    """An `<svg>` element, the same for the same data. `width` and `height` in CSS pixels.

    Args:
        figure: what to draw.
        width, height: of the view box; the page may scale it.
        variant: makes the ids unique when a page holds the same figure twice.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    given = {role: colours[0] for role, colours in PALETTE.items()}
    svg = _save(figure, width, height, given, format="svg", metadata=_NO_METADATA, salt=figure.name + variant)
    return _clean(svg.decode(), figure, variant)


def to_png(figure: Figure, width: float, height: float, *, scale: float = 2.0) -> bytes:
    """A PNG on white paper, `width`·`scale` by `height`·`scale` pixels. Raises MissingExtraError as `to_svg`."""
    light = {role: colours[1] for role, colours in PALETTE.items()}
    return _save(figure, width, height, light, format="png", dpi=72 * scale, facecolor="white")


_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def _save(
    figure: Figure, width: float, height: float, colours: Mapping[str, str], *, salt: str = "", **options: Any
) -> bytes:
    require_matplotlib()
    mpl: Any = import_module("matplotlib")
    canvas_type: Any = import_module("matplotlib.figure").Figure
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.size": 11.5,
        "axes.edgecolor": colours["grid"],
        "axes.labelcolor": colours["ink"],
        "xtick.color": colours["ink"],
        "ytick.color": colours["ink"],
        "text.color": colours["ink"],
        "axes.linewidth": 1.0,
        "path.simplify_threshold": 0.5,
    }
    with mpl.rc_context(style):
        canvas = canvas_type(figsize=(width / 72, height / 72), layout="constrained")
        canvas.patch.set_alpha(0)
        axes = canvas.add_subplot()
        _draw(axes, figure, colours, small=height < 200, narrow=width < 500)
        out = io.BytesIO()
        canvas.savefig(out, **options)
    return out.getvalue()


def _draw(axes: Any, figure: Figure, colours: Mapping[str, str], *, small: bool, narrow: bool) -> None:
    ticker: Any = import_module("matplotlib.ticker")
    xs = figure.columns[figure.x]
    if figure.shaded is not None:
        axes.axvspan(*figure.shaded, color=colours["grid"], alpha=0.45, linewidth=0)
    for role, line in zip(LINE_ROLES * (len(figure.lines) // 4 + 1), figure.lines, strict=False):
        _draw_line(axes, figure, line, xs, colours[line.role or role], small=small)
    axes.patch.set_alpha(0)
    axes.grid(axis="y", color=colours["grid"], linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5, labelsize=10 if small else 11.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    if figure.log_x:
        axes.set_xscale("log")
    else:
        whole = all(float(x).is_integer() for x in numbers_in(xs))
        locator = ticker.MaxNLocator(4 if narrow else 8, integer=whole, steps=[1, 2, 2.5, 5, 10])
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(_number_tick))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(3 if small else 6))
    if figure.percent:
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(_percent_tick))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(max(high, low + 0.01), 1.02))
    else:
        formatter = ticker.ScalarFormatter(useMathText=False)
        formatter.set_powerlimits((-4, 6))
        axes.yaxis.set_major_formatter(formatter)
        axes.yaxis.get_offset_text().set_fontsize(10)
    axes.margins(x=0.02)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    labels = [line.label for line in figure.lines if line.label]
    if labels:
        across = (2 if len(labels) > 3 and max(map(len, labels)) < 14 else 1) if narrow else 6
        axes.legend(
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=across if sum(map(len, labels)) < 90 or narrow else 3,
            handlelength=1.4,
            columnspacing=1.6,
        )


def numbers_in(column: Column) -> list[float]:
    """The numbers of a column.

    >>> numbers_in([1, None, 2.5])
    [1, 2.5]
    """
    return [x for x in column if x is not None]


def _number_tick(value: float, _: int | None = None) -> str:
    """A number of a linear axis: thousands apart, powers of ten above ten million.

    >>> _number_tick(12500.0), _number_tick(0.25), _number_tick(1.5e19), _number_tick(0.0)
    ('12,500', '0.25', '1.5e19', '0')
    """
    return f"{value:.4g}".replace("e+", "e") if abs(value) >= 1e7 else f"{value:,.6g}"


def _percent_tick(share: float, _: int | None = None) -> str:
    return f"{100 * share:.4g} %"


def _draw_line(axes: Any, figure: Figure, line: Line, xs: Column, colour: str, *, small: bool) -> None:
    points = [
        (x, y, low, high)
        for x, y, low, high in zip(
            xs,
            figure.columns[line.y],
            figure.columns[line.low or line.y],
            figure.columns[line.high or line.y],
            strict=True,
        )
        if x is not None and y is not None
    ]
    x = [point[0] for point in points]
    y = [point[1] for point in points]
    if line.style == "bars":
        axes.bar(x, y, color=colour, width=0.72, label=line.label)
        return
    if line.low is not None and line.high is not None:
        low = [point[1] if point[2] is None else point[2] for point in points]
        high = [point[1] if point[3] is None else point[3] for point in points]
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    width = 1.5 if small else 2.0
    options: dict[str, Any] = {"linewidth": width, "solid_capstyle": "round"}
    if line.style == "dashed":
        options["linestyle"] = (0, (4, 3))
    elif line.style != "line":
        options |= {"marker": "o", "markersize": 3 if small else 4.5}
    if line.style in ("scatter", "hollow"):
        options["linestyle"] = "none"
    if line.style == "hollow":
        options |= {"markerfacecolor": "none", "markeredgewidth": 1.0}
    window = len(y) // 25 | 1
    if line.smooth and window >= 3:
        axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.8)
        y = moving_mean(y, window)
    axes.plot(x, y, color=colour, label=line.label, **options)


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over an odd window, which shrinks at the ends.

    >>> moving_mean([0.0, 3.0, 6.0, 3.0], 3)
    [1.5, 3.0, 4.0, 4.5]
    """
    half = window // 2
    means: list[float] = []
    for index in range(len(values)):
        part = values[max(0, index - half) : index + half + 1]
        means.append(sum(part) / len(part))
    return means


def _clean(svg: str, figure: Figure, variant: str) -> str:
    """The bare element: colours and font as CSS variables, unique ids, no metadata, an accessible name."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    for role, (given, light, _) in PALETTE.items():
        svg = svg.replace(given, f"var(--fig-{role}, {light})")
    svg = re.sub(r'font: ([\d.]+px) [^;"]+', r"font: \1 var(--fig-font, system-ui, sans-serif)", svg)
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", f"f-{figure.name}{variant}-")
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    svg = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]+\")[^>]*>", _svg_tag(figure), svg, count=1)
    return re.sub(r"\n\s*", "\n", svg).strip()


def _svg_tag(figure: Figure) -> str:
    name = html.escape(figure.title or figure.name, quote=True).replace("\\", "\\\\")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        rf'\1 role="img" aria-label="{name}">'
    )


def standalone(svg: str) -> str:
    """The SVG as a file of its own, which follows the reader's light or dark preference."""

    def variables(column: Literal[1, 2]) -> str:
        return "".join(f"--fig-{role}:{colours[column]};" for role, colours in PALETTE.items())

    style = f"<style>svg{{{variables(1)}}}@media (prefers-color-scheme:dark){{svg{{{variables(2)}}}}}</style>"
    head, close, rest = svg.partition(">")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}{close}{style}{rest}\n'


def format_number(value: Any, *, percent: bool = False) -> str:
    """A metric for reading: at most four significant digits, thousands apart.

    >>> format_number(0.41666, percent=True), format_number(1234567), format_number(5e-7), format_number(None)
    ('41.7 %', '1,234,567', '5e-07', '–')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    if percent:
        return f"{100 * value:.1f} %"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1_000 <= abs(value) < 1e9 else f"{value:.4g}"
