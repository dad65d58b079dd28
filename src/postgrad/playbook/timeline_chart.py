"""Curves of a playbook's growth, as SVG that a page can hold: three panels over the same deltas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from postgrad.playbook.timeline_data import WINDOW, History, Point

_LEFT, _RIGHT, _TOP, _GAP, _BOTTOM = 1, 52, 22, 40, 26
_MAX_POINTS = 600
"""Of a curve; a longer one is thinned."""


def chart(history: History, width: int, panel_height: int) -> str:
    """Bullets, tokens and, where samples were judged, accuracy over deltas; with marks and rollbacks.

    The element has data-x0 and data-x1, between which deltas 0 to N lie, and a line of the class `cursor`.
    """
    points = history.points
    panels: list[tuple[str, Callable[[Point], float | None], bool]] = [
        ("Bullets", lambda point: point.bullets, False),
        ("Tokens shown", lambda point: point.tokens, False),
    ]
    if any(point.accuracy is not None for point in points):
        panels.append((f"First answers right, of the last {WINDOW}", lambda point: point.accuracy, True))
    x0, x1 = _LEFT, width - _RIGHT
    height = _TOP + len(panels) * panel_height + (len(panels) - 1) * _GAP + _BOTTOM
    last = max(len(points) - 1, 1)

    def x_of(version: float) -> float:
        return x0 + (x1 - x0) * version / last

    bottom = height - _BOTTOM
    parts = [_events(history, x_of, _TOP, bottom)]
    for number, (title, value, is_share) in enumerate(panels):
        top = _TOP + number * (panel_height + _GAP)
        values = [value(point) for point in points]
        waits = [float(point.waiting) for point in points] if number == 0 else []
        parts.append(_panel(title, values, waits, x_of, (x0, x1, top, panel_height), is_share))
    parts += [
        f'<text class="tick" x="{x_of(version):.1f}" y="{height - 8}" text-anchor="{anchor}">{words}</text>'
        for version, anchor, words in _ticks(last, narrow=width < 500)
    ]
    parts.append(f'<line class="cursor" x1="{x1}" x2="{x1}" y1="{_TOP}" y2="{bottom}"/>')
    return (
        f'<svg class="growth" viewBox="0 0 {width} {height}" role="img" aria-label="{_label(history)}" '
        f'data-x0="{x0}" data-x1="{x1}">{"".join(parts)}</svg>'
    )


def _panel(
    title: str,
    values: Sequence[float | None],
    waits: Sequence[float],
    x_of: Callable[[float], float],
    box: tuple[int, int, int, int],
    is_share: bool,
) -> str:
    x0, x1, top, height = box
    known = [value for value in values if value is not None]
    most = 1.0 if is_share else nice(max(known, default=1.0))
    bottom = top + height

    def y_of(value: float) -> float:
        return bottom - height * value / most

    parts = [f'<text class="title" x="{x0}" y="{top - 8}">{escape(title)}</text>']
    for share in (0.0, 0.5, 1.0):
        y = y_of(share * most)
        words = f"{100 * share:.0f} %" if is_share else f"{share * most:,.0f}"
        parts.append(f'<line class="grid" x1="{x0}" x2="{x1}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if share or not is_share:
            parts.append(f'<text class="tick" x="{x1 + 8}" y="{y + 4:.1f}">{words}</text>')
        elif is_share:
            parts.append(f'<text class="tick" x="{x1 + 8}" y="{y + 4:.1f}">0</text>')
    path = _path(values, x_of, y_of, steps=not is_share)
    if not is_share and path:
        parts.append(f'<path class="area" d="{path}V{bottom}H{x0:.1f}Z"/>')
    if any(waits):
        parts.append(f'<path class="waits" d="{_path(waits, x_of, y_of, steps=True)}V{bottom}H{x0:.1f}Z"/>')
    if path:
        parts.append(f'<path class="curve{" share" if is_share else ""}" d="{path}"/>')
    return "".join(parts)


def _path(
    values: Sequence[float | None],
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
    *,
    steps: bool,
) -> str:
    stride = max(1, math.ceil(len(values) / _MAX_POINTS))
    chosen = [i for i in range(0, len(values), stride) if values[i] is not None]
    if values and values[-1] is not None and (not chosen or chosen[-1] != len(values) - 1):
        chosen.append(len(values) - 1)
    parts: list[str] = []
    for index in chosen:
        value = values[index]
        assert value is not None
        x, y = x_of(index), y_of(value)
        if not parts:
            parts.append(f"M{x:.1f} {y:.1f}")
        else:
            parts.append(f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}")
    return "".join(parts)


def _events(history: History, x_of: Callable[[float], float], top: int, bottom: int) -> str:
    """Vertical lines: where marks stand and where it was rolled back, with what was taken back shaded."""
    parts: list[str] = []
    for number, version in history.rollbacks:
        left, right = x_of(version), x_of(number)
        title = f"<title>delta {number}: rolled back to version {version}</title>"
        parts.append(
            f'<g class="back"><rect x="{left:.1f}" width="{right - left:.1f}" y="{top}" height="{bottom - top}"/>'
            f'<line x1="{right:.1f}" x2="{right:.1f}" y1="{top}" y2="{bottom}"/>{title}</g>'
        )
    for name, version, score in history.marks:
        x = x_of(version)
        words = f"{name}: version {version}" + ("" if score is None else f", score {score:.4g}")
        parts.append(
            f'<g class="mark-line"><line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
            f'<circle cx="{x:.1f}" cy="{bottom}" r="4"/><title>{escape(words)}</title></g>'
        )
    return "".join(parts)


def _ticks(last: int, *, narrow: bool) -> list[tuple[int, str, str]]:
    parts = 2 if narrow else 4
    found = sorted({round(last * part / parts) for part in range(parts + 1)})
    return [
        (version, "start" if version == 0 else "end" if version == last else "middle",
         f"delta {version}" if version in (0, last) and not (narrow and version == 0) else f"{version}")
        for version in found
    ]  # fmt: skip


def nice(value: float) -> float:
    """The next round number from a value.

    >>> nice(57), nice(4100), nice(0)
    (60, 5000, 1)
    """
    if value <= 0:
        return 1
    unit = 10 ** math.floor(math.log10(value))
    return next(int(step * unit) or 1 for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * unit >= value)


def _label(history: History) -> str:
    first, last = history.points[0], history.points[-1]
    return (
        f"Over {len(history.steps)} deltas the playbook went from {first.bullets} to {last.bullets} bullets and "
        f"to {last.tokens} tokens."
    )
