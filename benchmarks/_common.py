"""What the benchmarks share: interleaved rounds, tables, the JSON line, peers' environments."""

from __future__ import annotations

import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

Case = Callable[[], int]
"""One measurement: does the work and returns how many units (tokens, samples) it made."""


def interleave(
    cases: Mapping[str, Case], rounds: int, synchronize: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Units per second of every case, one value a round; within a round each case runs once, in rotating order.

    Interleaving spreads what else the machine does over all cases alike, so ratios within a round stay fair.
    """
    names = list(cases)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            synchronize()
            started = time.perf_counter()
            units = cases[name]()
            synchronize()
            rates[name].append(units / (time.perf_counter() - started))
    return rates


def ratios(ours: Sequence[float], peer: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Median and (lowest, highest) of the ratios ours/peer, round by round.

    >>> ratios([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])
    (3.0, (2.0, 4.0))
    """
    by_round = [a / b for a, b in zip(ours, peer, strict=True)]
    return statistics.median(by_round), (min(by_round), max(by_round))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of the 95 % interval by Student's t); the width of one value is NaN.

    >>> mean, half = mean_interval([1.0, 2.0, 3.0])  # 4.3027·1/√3
    >>> mean, round(half, 4)
    (2.0, 2.4841)
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, float("nan")
    from scipy import stats  # which not every peer's environment has

    error = statistics.stdev(values) / len(values) ** 0.5
    return mean, float(stats.t.ppf(0.975, len(values) - 1)) * error


def show_interval(values: Sequence[float]) -> str:
    """Mean ± half width of its 95 % interval; the mean alone of one value.

    >>> show_interval([1.0, 2.0, 3.0]), show_interval([0.5])
    ('2.000 ± 2.484', '0.500')
    """
    mean, half = mean_interval(values)
    return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} ± {half:.3f}"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table: the first column left-aligned, the others right-aligned."""
    cells = [list(header), *[[show(value) for value in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    print(f"\n{title}")
    for index, row in enumerate(cells):
        first = row[0].ljust(widths[0])
        print("  ".join([first, *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]))
        if index == 0:
            print("  ".join("-" * width for width in widths))
    sys.stdout.flush()


def show(value: object) -> str:
    """A cell: four significant digits for numbers, thousands separated, an en dash for nothing.

    >>> show(12345.6), show(0.12345), show(None)
    ('12,346', '0.1235', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def finish(
    benchmark: str,
    ours: float | None,
    peer: float | None,
    unit: str,
    ratio: float | None,
    interval: Sequence[float | None],
    **further: Any,
) -> None:
    """Prints the result as one JSON object; call it last."""
    result = {
        "benchmark": benchmark,
        "ours": _rounded(ours),
        "peer": _rounded(peer),
        "unit": unit,
        "ratio": _rounded(ratio),
        "interval": [_rounded(value) for value in interval],
        **{key: _rounded(value) for key, value in further.items()},
    }
    print()
    print(json.dumps(result, ensure_ascii=False, allow_nan=False))


def _rounded(value: Any) -> Any:
    """Five significant digits, all the way down; None for what is not finite, such as an interval of one value."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def peer_python(name: str) -> Path:
    """The interpreter of a peer's environment, made by `make bench-NAME`; it may be absent."""
    return ROOT / f".venv-{name}" / "bin" / "python"


def require_peer(name: str, what: str) -> Path:
    """`peer_python`, or a message that names the make target, and exit status 2."""
    python = peer_python(name)
    if not python.is_file():
        print(
            f"{what} is measured in an environment of its own, and .venv-{name} is not there. "
            f"Make it with: make bench-{name}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return python


def machine(threads: int) -> dict[str, Any]:
    """Where the numbers come from: processor, threads, versions."""
    import torch
    import transformers

    return {
        "processor": _processor(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
