"""Does `postgrad rl plan --measure` say beforehand what a run then does? Predicted and measured samples/s, generators beside the
trainer.

In each round: the plan in a process of its own with one thread, then the runs that it speaks of (`rl_async.measure`), one seed a
round. The ratio is predicted over measured samples/s of pipeline-k; 1 is best.

    python benchmarks/rl_plan.py [--quick] [--rounds 3] [--updates 48] [--generators 1] [--recipe embedded]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import finish, machine, print_table, ratios
from rl_async import measure


def predict(options: argparse.Namespace) -> dict[str, Any]:
    """What the command says, by schedule."""
    words = [
        sys.executable, "-m", "postgrad", "rl", "plan", options.recipe, "--measure", "--json",
        f"--engine.generators={options.generators}", f"--schedule.k={options.k}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return {row["mode"]: row for row in json.loads(done.stdout)["schedules"]}


def main() -> None:
    """Plan, then runs, round by round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1 round of 24 updates")
    parser.add_argument("--recipe", default="embedded")
    parser.add_argument("--rounds", type=int, help="default 3 (quick: 1)")
    parser.add_argument("--updates", type=int, help="a multiple of k; default 48 (quick: 24)")
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--generators", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else 3)
    options.updates = options.updates or (24 if options.quick else 48)
    modes = (f"pipeline-{options.k}", f"ppo-{options.k}")
    said: dict[str, list[float]] = {mode: [] for mode in modes}
    did: dict[str, list[float]] = {mode: [] for mode in modes}
    idle: dict[str, list[tuple[float, float, float, float]]] = {mode: [] for mode in modes}
    with tempfile.TemporaryDirectory(prefix="postgrad-bench-") as folder:
        for seed in range(rounds):
            plan = predict(options)
            for mode in modes:
                found = measure(Path(folder), seed, options, mode.split("-")[0], options.generators)
                row = plan[mode]
                said[mode].append(row["samples_per_s"])
                did[mode].append(found.samples_per_s)
                idle[mode].append(
                    (row["idle_generator"], found.idle_generator, row["idle_trainer"], found.idle_trainer)
                )
                print(
                    f"seed {seed} {mode}: {said[mode][-1]:.0f} predicted, {did[mode][-1]:.0f} measured",
                    flush=True,
                )
    print_table(
        f"Medians over {rounds} rounds: predicted, measured",
        ["schedule", "samples/s", "measured", "generators wait", "measured", "trainer waits", "measured"],
        [
            [
                mode,
                statistics.median(said[mode]),
                statistics.median(did[mode]),
                *(statistics.median(column) for column in zip(*idle[mode], strict=True)),
            ]
            for mode in modes
        ],
    )
    ratio, interval = ratios(said[modes[0]], did[modes[0]])
    finish(
        "rl_plan",
        statistics.median(said[modes[0]]),
        statistics.median(did[modes[0]]),
        "samples/s predicted (peer: measured)",
        ratio,
        interval,
        ppo_ratio=ratios(said[modes[1]], did[modes[1]])[0],
        rounds=rounds,
        updates=options.updates,
        generators=options.generators,
        **machine(options.threads),
    )


if __name__ == "__main__":
    main()
