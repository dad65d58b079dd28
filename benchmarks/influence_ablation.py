"""What each hyper-parameter of influence is worth: one at a time, on digits with a tenth of the labels wrong (2509.26544).

Around `stein` (λ = .003) and preconditioned Langevin chains (β = 1), each setting is multiplied by factors while the others
stay; LDS is that of influence_lds. The last table has chains with other preconditioners and as many steps.

    python benchmarks/influence_ablation.py [--quick] [--seeds 3] [--out DIR] [--figure NAME.svg]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from _common import finish, machine, print_table, show_interval
from influence_lds import Board, digits
from postgrad.core.errors import SamplingError
from postgrad.core.figures import Figure, Line, standalone, to_svg
from postgrad.influence.api import run

STEIN: Mapping[str, Any] = {"method": "stein", "damping": 3e-3, "radius": 0.8, "draws": 4}
LANGEVIN: Mapping[str, Any] = {
    "method": "langevin",
    "damping": 0.1,
    "beta": 1.0,
    "step_size": 1.0,
    "gradient_examples": 1000,
    "draws": 400,
    "thin": 2,
}
FACTORS: Mapping[str, tuple[Mapping[str, Any], str, tuple[float, ...]]] = {
    "stein, λ": (STEIN, "damping", (1 / 30, 1 / 10, 1 / 3, 3, 10, 30)),
    "stein, radius": (STEIN, "radius", (1 / 4, 1 / 2, 1.5, 2)),
    "stein, draws": (STEIN, "draws", (1 / 2, 2, 4)),
    "langevin, λ": (LANGEVIN, "damping", (1 / 3, 3, 10)),
    "langevin, nβ": (LANGEVIN, "beta", (1 / 10, 1 / 3, 3, 10, 100)),
    "langevin, ε": (LANGEVIN, "step_size", (1 / 10, 1 / 3, 2, 3)),
    "langevin, batch": (LANGEVIN, "gradient_examples", (1 / 20, 1 / 4)),
    "langevin, draws": (LANGEVIN, "draws", (1 / 8, 1 / 2, 4)),
}
PRECONDITIONERS: Mapping[str, Mapping[str, Any]] = {
    "EK-FAC, frozen": LANGEVIN,
    "none (SGLD)": {**LANGEVIN, "method": "sgld"},
    "RMSprop": {**LANGEVIN, "method": "rmsprop", "step_size": 1e-4},
}


def measure(board: Board, options: Mapping[str, Any]) -> float | None:
    """LDS; None where a chain diverged."""
    count = options.get("gradient_examples")
    own = {**options, "gradient_examples": round(count)} if count else dict(options)
    try:
        found = run(
            board.module, board.train, board.queries, check_step=False, tokens=False, **board.options, **own
        )
    except SamplingError:
        return None
    return board.judge(found.scores.double())["lds"]


def _shown(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    lost = f" ({len(values) - len(known)} diverged)" if len(known) < len(values) else ""
    return (show_interval(known) if known else "diverged") + (lost if known else "")


def draw(summary: Mapping[str, Mapping[str, float | None]], path: Path) -> None:
    """LDS against the factors, one figure for each method (`NAME-stein.svg`, …), so that no colour stands for two settings."""
    for method in dict.fromkeys(name.partition(",")[0] for name in summary):
        own = {name: one for name, one in summary.items() if name.startswith(f"{method},")}
        points = sorted(
            (float(factor), name, mean) for name, one in own.items() for factor, mean in one.items()
        )
        columns: dict[str, list[float | None]] = {"factor": [factor for factor, _, _ in points]}
        columns |= {other: [mean if name == other else None for _, name, mean in points] for other in own}
        lines = tuple(Line(name, name, style="points") for name in own)
        figure = Figure(
            f"ablation-{method}",
            "",
            "",
            columns,
            "factor",
            lines,
            x_label="value ÷ default",
            y_label="LDS",
            log_x=True,
        )
        place = path.with_name(f"{path.stem}-{method}.svg")
        place.write_text(standalone(to_svg(figure, 720, 380)), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one model, few halves, stein alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keep the ground truth here")
    parser.add_argument(
        "--figure", type=Path, help="draw LDS against the factors: NAME-stein.svg, NAME-langevin.svg"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    factors = {n: one for n, one in FACTORS.items() if not options.quick or one[0] is STEIN}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        boards = [
            digits(folder, seed, 0.1, options.quick) for seed in range(1 if options.quick else options.seeds)
        ]
    base = {
        id(one): [measure(board, one) for board in boards]
        for one in {id(f[0]): f[0] for f in factors.values()}.values()
    }
    rows: list[list[object]] = []
    summary: dict[str, dict[str, float | None]] = {}
    for name, (settings, key, multiples) in factors.items():
        found = {1.0: base[id(settings)]}
        for factor in multiples:
            value = settings[key] * factor
            changed = {**settings, key: round(value) if key in ("draws", "gradient_examples") else value}
            found[factor] = [measure(board, changed) for board in boards]
            print(f"{name} × {factor:.3g}: {_shown(found[factor])}", flush=True)
        for factor, values in sorted(found.items()):
            rows.append([f"{name} × {factor:.3g}", settings[key] * factor, _shown(values)])
            known = [value for value in values if value is not None]
            mean = sum(known) / len(known) if len(known) == len(values) else None
            summary.setdefault(name, {})[f"{factor:.3g}"] = mean
    print_table(f"LDS, means over {len(boards)} models", ["", "value", "LDS"], rows)
    if not options.quick:
        table = [
            [name, _shown([measure(board, one) for board in boards])] for name, one in PRECONDITIONERS.items()
        ]
        print_table("Chains of 4 × 400 draws, two steps apart", ["preconditioner", "LDS"], table)
    if options.figure is not None:
        draw(summary, options.figure)
    best = max(value for one in summary.values() for value in one.values() if value is not None)
    default = summary["stein, λ"]["1"]
    assert default is not None
    finish(
        "influence_ablation",
        default,
        best,
        "LDS of stein at λ = .003; peer: the best of all settings tried",
        default / best,
        (None, None),
        settings=summary,
        machine=machine(1),
    )


if __name__ == "__main__":
    main()
