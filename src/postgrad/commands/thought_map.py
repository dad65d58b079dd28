"""Who holds what, as a drawing: agents × thoughts, shaded by the decoder's RMS Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from postgrad.core.report import Picture

PER_STRIP = 64
_CELL, _LINE, _LEFT, _GAP, _WIDTH = 13, 18, 110, 30, 950
_LABEL = 15


def thought_order(held: Sequence[Sequence[bool]], rms: Sequence[Sequence[float]]) -> list[int]:
    """Thoughts with those of the same holders together: shared by most first, then by who holds them, strongest first.

    >>> thought_order([[True, False], [True, True], [True, False]], [[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    [1, 2, 0]
    """

    def key(number: int) -> tuple[Any, ...]:
        row = held[number]
        return -sum(row), [not one for one in row], -max(rms[number]), number

    return sorted(range(len(held)), key=key)


def holders_map(
    names: Sequence[str], held: Sequence[Sequence[bool]], rms: Sequence[Sequence[float]]
) -> Picture:
    """The picture.

    Args:
        names: of the agents; the user's words, escaped here.
        held: [Z, A].
        rms: [Z, A].
    """
    order = thought_order(held, rms)
    largest = max((max(row) for row in rms), default=0.0) or 1.0
    strips = [order[start : start + PER_STRIP] for start in range(0, len(order), PER_STRIP)]
    width = min(_WIDTH, _LEFT + _CELL * min(PER_STRIP, max(48, len(order))) + 8)
    height = len(strips) * (len(names) * _LINE + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="11" fill="#4a4a46" '
        'font-family="system-ui, sans-serif">'
    ]
    for number, strip in enumerate(strips):
        top = number * (len(names) * _LINE + _GAP)
        parts += _strip(strip, top, names, held, rms, largest)
    parts.append("</svg>")
    columns: dict[str, list[Any]] = {"thought": order, "holders": [sum(held[j]) for j in order]}
    for place, name in enumerate(names):
        columns |= {
            f"rms {name}": [rms[j][place] for j in order],
            f"holds {name}": [held[j][place] for j in order],
        }
    caption = (
        "A row for each agent, a column for each thought, those first that most hold. The darker, the more an agent's state "
        "depends on the thought (RMS of the decoder's Jacobian); framed where it holds it. Numbers name every eighth thought."
    )
    return Picture("holders_map", "Who holds which thought", caption, "".join(parts), columns)


def _strip(
    thoughts: Sequence[int],
    top: int,
    names: Sequence[str],
    held: Sequence[Sequence[bool]],
    rms: Sequence[Sequence[float]],
    largest: float,
) -> list[str]:
    parts: list[str] = []
    for row, name in enumerate(names):
        y = top + row * _LINE
        label = name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…"
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>')
        for column, j in enumerate(thoughts):
            share = rms[j][row] / largest
            frame = ' stroke="#1d6a86" stroke-width="1"' if held[j][row] else ""
            hint = f"thought {j}, {name}: {rms[j][row]:.3g}{', held' if held[j][row] else ''}"
            parts.append(
                f'<rect x="{_LEFT + column * _CELL + 0.5}" y="{y + 0.5}" width="{_CELL - 2}" height="{_LINE - 3}" rx="1.5" '
                f'fill="#1d6a86" fill-opacity="{0.03 + 0.97 * share:.2f}"{frame}><title>{escape(hint)}</title></rect>'
            )
    y = top + len(names) * _LINE + 11
    parts += [
        f'<text x="{_LEFT + (column + 0.5) * _CELL}" y="{y}" text-anchor="middle" fill="#6a6963">{thoughts[column]}</text>'
        for column in range(0, len(thoughts), 8)
    ]
    return parts
