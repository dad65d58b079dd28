"""What MARA adds to an update of `postgrad rl train`: seconds in the reward transform over the seconds of the rest of the update.

Two ends of the range, each in one run of the ordinary path:

- covered: the 1-2 task (`mara_one_two.py`) with stored anchors, where nearly every sample is good and every prompt has its
  anchor after one visit: good samples need no reference pass, the few wrong ones do;
- uncovered: the shipped recipe `embedded` (prompts hardly ever seen twice), anchors by group and no memory of log-probs: every
  sample gets a forward pass under the reference.

    python benchmarks/mara_step_overhead.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

import postgrad as pg
from _common import finish, machine, print_table
from mara_one_two import make, make_task
from postgrad.core.config import read_toml
from postgrad.core.recipes import find_recipe
from postgrad.core.run import Run
from postgrad.rl.config import RLConfig, make_config


def uncovered(steps: int) -> RLConfig:
    """The recipe `embedded` with a KL and MARA."""
    overrides: dict[str, Any] = {
        "steps": steps,
        "eval.every": 0,
        "eval.prompts": 20,
        "run.checkpoint_every": steps,
        "mara.beta": 0.01,
        "mara.cache": 0,
    }
    return make_config(read_toml(find_recipe("embedded")), overrides=overrides)


def shares(run: Run, skip: int) -> tuple[list[float], float, float]:
    """(overhead of each update, median share of samples with a reference pass, median seconds of an update)."""
    rows = [row for row in run.metrics() if row["step"] > skip]
    overhead = [row["time/transform_s"] / (row["time/step_s"] - row["time/transform_s"]) for row in rows]
    scored = statistics.median(row["mara/reference_scored_fraction"] for row in rows)
    return overhead, scored, statistics.median(row["time/step_s"] for row in rows)


def main() -> None:
    """Runs both and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer updates")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=5e-4)
    options = parser.parse_args()
    steps = 40 if options.quick else 120
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="postgrad-bench-") as name:
        folder = Path(name)
        data = make(make_task(folder), 0, steps, options, {}).model_dump()
        data["mara"]["anchor"] = "stored"
        data["model"]["embedded"] = {"steps": 200}  # the recipe's architecture, 0.8 M parameters
        data["algorithm"]["prompts_per_batch"] = 48
        runs = {
            "covered": (make_config(data), steps // 2),
            "uncovered": (uncovered(12 if options.quick else 30), 4),
        }
        found = {
            key: shares(
                pg.rl.train(config=config, out=folder / key, quiet=True, transform=pg.mara.transform), skip
            )
            for key, (config, skip) in runs.items()
        }
    rows = [
        [key, statistics.median(overhead), min(overhead), max(overhead), scored, seconds]
        for key, (overhead, scored, seconds) in found.items()
    ]
    header = ["", "overhead", "lowest", "highest", "reference passes per sample", "s per update"]
    print_table("MARA's share of an update", header, rows)
    covered, rest = (statistics.median(found[key][0]) for key in ("covered", "uncovered"))
    finish(
        "mara_step_overhead",
        covered,
        rest,
        "seconds of the transform per second of the rest of an update",
        rest / covered,
        (covered, rest),
        peer_name="the same without stored anchors and without memory",
        overhead={"covered": covered, "uncovered": rest},
        reference_passes={key: scored for key, (_, scored, _) in found.items()},
        **machine(1),
    )


if __name__ == "__main__":
    main()
