"""ScaleRL's leave-one-out (arXiv 2510.13786, §4) on the recipe `embedded`: every choice reverted in turn, over the same seeds.

Beside ours stand the paper's slopes B, of an 8B model. The ratio is B of the full recipe over B with DAPO's loss, both under
one shared ceiling (paper: 2.01 / 1.77 = 1.14), without a value where the curves do not tell B. Above 1: the full one is faster.
"ours" and "peer" are these two slopes of ours. The interval is left open: two slopes of mean curves say nothing of seeds.

    python benchmarks/rl_leave_one_out.py [--quick] [--seeds 5] [--jobs 1] [--out DIR]

--quick: three axes, 40 updates. With --out it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import postgrad as pg
from _common import finish, machine, print_table
from postgrad.commands.rl_ablate import read_laws
from postgrad.core.statistics import Interval

PAPER_SLOPES = {"full": 2.01, "loss": 1.77}
QUICK: dict[str, Any] = {"steps": 40, "eval__every": 4}
QUICK_AXES = ("loss", "off-policy", "advantage")


def show(found: Interval) -> str:
    """Mean and 95 % interval over seeds; the mean alone of one seed."""
    if math.isnan(found.mean):
        return "–"
    return f"{found.mean:.3f}" + ("" if math.isnan(found.low) else f" [{found.low:.3f}, {found.high:.3f}]")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch) / "leave-one-out"
        if (out / "run.json").is_file():
            found = pg.rl.ablate(out=out, resume=True, jobs=options.jobs)
        else:
            found = pg.rl.ablate(
                axes=QUICK_AXES if options.quick else (),
                seeds=options.seeds,
                jobs=options.jobs,
                out=out,
                **(QUICK if options.quick else {}),
            )
    laws = read_laws(found)
    slopes = {name: None if law.exponent is None else law.exponent.value for name, law in laws.items()}
    print_table(
        f"Leave-one-out on the recipe embedded, {len(found.arms[0].scores)} seeds, 95 % intervals",
        ("arm", "held-out pass rate", "difference", "samples/s", "B, shared A", "paper's B"),
        [
            (
                arm.name,
                show(arm.score),
                show(arm.difference),
                arm.samples_per_s,
                "cannot be read off" if slopes[arm.name] is None else slopes[arm.name],
                PAPER_SLOPES.get(arm.name),
            )
            for arm in found.arms
        ],
    )
    full, dapo = slopes.get("full"), slopes.get("loss")
    finish(
        "rl_leave_one_out",
        full,
        dapo,
        "B at a shared A",
        None if full is None or dapo is None else full / dapo,
        (None, None),
        paper=PAPER_SLOPES,
        pass_rates={arm.name: list(arm.score) for arm in found.arms},
        differences={arm.name: list(arm.difference) for arm in found.arms[1:]},
        machine=machine(1),
    )


if __name__ == "__main__":
    main()
