"""Samples per second of pipeline-8 over ppo-8, with generators beside the trainer, and how much each side waits.

The same recipe, checkpoint and prompts; each run in a process of its own, interleaved over rounds, one seed a round. The trainer
has one thread, each generator another. In `ppo` mode k batches are generated before k updates, so one side always waits; in
`pipeline` mode both work, and a batch may be up to k versions old. Evaluations and checkpoints do not count. `in turn` is one
process that does both by turns, with all the threads. Idle fractions are means over updates, weighted by their time.

    python benchmarks/rl_async.py [--quick] [--rounds 5] [--updates 48] [--generators 1] [--recipe embedded]
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
from typing import NamedTuple

from _common import finish, machine, print_table, ratios


class Measured(NamedTuple):
    """Of one run: throughput, waiting, lag in versions, held-out pass rate at the end."""

    samples_per_s: float
    idle_generator: float
    idle_trainer: float
    staleness: float
    pass_rate: float


def measure(folder: Path, seed: int, options: argparse.Namespace, mode: str, generators: int) -> Measured:
    """One `postgrad rl train`."""
    out = folder / f"{mode}-{generators}-{seed}"
    words = [
        sys.executable, "-m", "postgrad", "rl", "train", options.recipe, "--out", str(out), f"--seed={seed}",
        f"--steps={options.updates}", "--eval.every=0", f"--run.checkpoint_every={options.updates + 1}",
        f"--schedule.mode={mode}", f"--schedule.k={options.k}", f"--engine.generators={generators}",
    ]  # fmt: skip
    threads = str(1 if generators else options.threads)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    config = json.loads((out / "config.json").read_text("utf-8"))["algorithm"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    kept = [row for row in rows if row["step"] > options.k]  # whole phases; the pipeline is full
    seconds = [row["time/step_s"] for row in kept]

    def mean(key: str) -> float:
        return sum(row[key] * s for row, s in zip(kept, seconds, strict=True)) / sum(seconds)

    samples = config["prompts_per_batch"] * config["samples_per_prompt"] * len(kept)
    return Measured(
        samples / sum(seconds),
        mean("idle/generator_fraction"),
        mean("idle/trainer_fraction"),
        mean("staleness/mean"),
        rows[-1]["eval/pass_rate"],
    )


def main() -> None:
    """All ways in each round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of 24 updates")
    parser.add_argument("--recipe", default="embedded")
    parser.add_argument("--rounds", type=int, help="default 5 (quick: 2)")
    parser.add_argument("--updates", type=int, help="a multiple of k; default 48 (quick: 24)")
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--generators", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of `in turn`")
    options = parser.parse_args()
    rounds = options.rounds or (2 if options.quick else 5)
    options.updates = options.updates or (24 if options.quick else 48)
    ways = {
        f"pipeline-{options.k}": ("pipeline", options.generators),
        f"ppo-{options.k}": ("ppo", options.generators),
        f"pipeline-{options.k} in turn": ("pipeline", 0),
    }
    found: dict[str, list[Measured]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(prefix="postgrad-bench-") as folder:
        for seed in range(rounds):
            names = list(ways)
            for name in names[seed % len(names) :] + names[: seed % len(names)]:
                found[name].append(measure(Path(folder), seed, options, *ways[name]))
                print(f"seed {seed} {name}: {found[name][-1].samples_per_s:.0f} samples/s", flush=True)
    print_table(
        f"{options.generators} generator(s) beside the trainer, medians over {rounds} rounds",
        ["", "samples/s", "generators wait", "trainer waits", "mean lag", "held-out pass rate"],
        [
            [name, *(statistics.median(column) for column in zip(*runs, strict=True))]
            for name, runs in found.items()
        ],
    )
    pipeline, ppo, turn = ([run.samples_per_s for run in runs] for runs in found.values())
    ratio, interval = ratios(pipeline, ppo)
    finish(
        "rl_async",
        statistics.median(pipeline),
        statistics.median(ppo),
        "samples/s",
        ratio,
        interval,
        peer_name=f"ppo-{options.k}",
        over_in_turn=ratios(pipeline, turn)[0],
        idle={
            name: {
                "generators": statistics.median(run.idle_generator for run in runs),
                "trainer": statistics.median(run.idle_trainer for run in runs),
            }
            for name, runs in found.items()
        },
        rounds=rounds,
        updates=options.updates,
        generators=options.generators,
        **machine(options.threads),
    )


if __name__ == "__main__":
    main()
