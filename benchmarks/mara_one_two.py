"""The 1-2 task (arXiv 2510.20817, §5) in small: both "1" and "2" are right, the model before training says "1" far more often.

A 0.1 M parameter model is warm-started on demonstrations of which 77 % say 1, 6 % say 2 and the rest something wrong.
Then the same updates of the ordinary `postgrad.rl` path, with the same KL to the reference: vanilla (`method =
"none"`), whose optimum keeps the reference's ratio, P(2 | good) = 0.06/0.83 = 0.07, and MARA, whose optimum is 0.5.
Paired seeds: both arms of a seed start from the same weights and see the same prompts. Measured on held-out prompts
at the end; the course comes from the training samples.

The distance is |P(2 | good) − ½|; the ratio is vanilla's mean distance over MARA's (taken at its resolution of one
sample, where MARA is nearer).

    python benchmarks/mara_one_two.py [--quick] [--seeds 5] [--beta 0.1]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

import postgrad as pg
from _common import finish, machine, print_table
from postgrad.rl.api import evaluate_model
from postgrad.rl.config import RLConfig, make_config

PRIOR = {"1": 0.77, "2": 0.06, "3": 0.05, "4": 0.04, "5": 0.03, "6": 0.02, "7": 0.01, "8": 0.01, "9": 0.01}
REWARD = '''"""Both 1 and 2 are right."""


def reward(prompt, completion):
    return float(completion.strip() in ("1", "2"))
'''
WINDOW = 10
"""Updates over which P(2 | good) is averaged in the course."""


def make_task(folder: Path, count: int = 600) -> dict[str, Any]:
    """Prompts that differ in a number only; the answers of the demonstrations follow the prior."""
    rng = random.Random(0)
    answers = rng.choices(list(PRIOR), weights=list(PRIOR.values()), k=count)
    rows = [{"prompt": f"Case {i:03d}. Say 1 or 2:", "answer": answer} for i, answer in enumerate(answers)]
    path = folder / "one_two.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "one_two.py").write_text(REWARD, encoding="utf-8")
    return {"name": "one_two", "path": str(path), "reward": f"{folder / 'one_two.py'}:reward"}


def make(
    task: dict[str, Any], seed: int, steps: int, options: argparse.Namespace, *, method: str
) -> RLConfig:
    """One arm."""
    return make_config(
        {
            "seed": seed,
            "steps": steps,
            "data": {"tasks": [task], "holdout_fraction": 0.1},
            "model": {
                "device": "cpu",
                "embedded": {
                    "hidden_size": 64,
                    "num_layers": 2,
                    "intermediate_size": 128,
                    "steps": 200,
                    "seed": seed,
                },
            },
            "algorithm": {"prompts_per_batch": 16, "samples_per_prompt": 16, "history_threshold": None},
            "schedule": {"k": 2, "update_cost_steps": 2},
            "length": {"max_prompt_tokens": 64, "max_completion_tokens": 6, "interrupt_min": None},
            "optimizer": {"lr": options.lr, "warmup_steps": 5, "micro_batch_tokens": 4096},
            "engine": {"slots": 128},
            "eval": {"every": 0, "prompts": 50, "samples_per_prompt": 1},
            "run": {"checkpoint_every": steps, "log_samples": 16},
            "mara": {"beta": options.beta, "method": method},
        }
    )


def shares(answers: list[str]) -> tuple[float, float]:
    """(P(2 | good), good mass)."""
    count = Counter(answer.strip() for answer in answers)
    good = count["1"] + count["2"]
    return (count["2"] / good if good else float("nan")), good / max(1, len(answers))


def run_arm(config: RLConfig, out: Path) -> dict[str, Any]:
    """Trains, then samples 32 answers to each of 50 held-out prompts."""
    run = pg.rl.train(config=config, out=out, quiet=True, transform=pg.mara.transform)
    checkpoint = run.checkpoints()[-1][1]
    data = config.model_dump()
    data["model"]["path"], data["eval"]["samples_per_prompt"] = str(checkpoint), 32
    evaluation = evaluate_model(make_config(data))
    rare, mass = shares([sample.text for group in evaluation.groups for sample in group.samples])
    course: list[float] = []
    rows = [row for row in run.samples() if row.get("phase") == "train"]
    for last in range(WINDOW, config.steps + 1):
        window = [row["completion"] for row in rows if last - WINDOW < row["step"] <= last]
        course.append(shares(window)[0])
    seconds = [row["time/step_s"] for row in run.metrics() if row["step"]]
    return {"rare": rare, "mass": mass, "uniform_at": settled(course), "step_s": float(np.median(seconds))}


def settled(course: list[float], goal: float = 0.4) -> float:
    """The first update from which the windows' P(2 | good) stays at or above the goal; inf if it does not."""
    below = [index for index, value in enumerate(course) if not value >= goal]
    first = below[-1] + 1 if below else 0
    return float("inf") if first >= len(course) else first + WINDOW


def interval(values: list[float]) -> str:
    """Mean and 95 % interval over seeds (normal)."""
    error = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {error:.3f}"


def main() -> None:
    """Runs all seeds of both arms and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two seeds, fewer updates")
    parser.add_argument("--seeds", type=int, help="default 5 (quick: 2)")
    parser.add_argument("--steps", type=int, help="default 200 (quick: 60)")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=5e-4)
    options = parser.parse_args()
    seeds = options.seeds or (2 if options.quick else 5)
    steps = options.steps or (60 if options.quick else 200)
    torch.set_num_threads(1)
    arms: dict[str, list[dict[str, Any]]] = {"vanilla": [], "MARA": []}
    with tempfile.TemporaryDirectory(prefix="postgrad-bench-") as name:
        task = make_task(Path(name))
        for seed in range(seeds):
            for arm, found in arms.items():
                config = make(task, seed, steps, options, method="mara" if arm == "MARA" else "none")
                found.append(run_arm(config, Path(name) / f"{arm}-{seed}"))
                print(f"{arm:>8} seed {seed}: {found[-1]}", flush=True)
    rows = [
        [
            arm,
            interval([item["rare"] for item in found]),
            interval([item["mass"] for item in found]),
            ", ".join(f"{item['uniform_at']:.0f}" for item in found),
            float(np.median([item["step_s"] for item in found])),
        ]
        for arm, found in arms.items()
    ]
    header = [
        "",
        "P(2 | good), ideal 0.5",
        "P(good)",
        f"updates to uniform, by seed (of {steps})",
        "s per update",
    ]
    print_table(f"1-2 task, beta {options.beta}, {seeds} seeds", header, rows)
    far = {arm: float(np.mean([abs(item["rare"] - 0.5) for item in found])) for arm, found in arms.items()}
    resolution = 1 / 1600
    by_seed = [
        abs(v["rare"] - 0.5) / max(abs(m["rare"] - 0.5), resolution)
        for v, m in zip(arms["vanilla"], arms["MARA"], strict=True)
    ]
    finish(
        "mara_one_two",
        far["MARA"],
        far["vanilla"],
        "distance of P(2 | good) from 1/2",
        far["vanilla"] / max(far["MARA"], resolution),
        (min(by_seed), max(by_seed)),
        peer_name="the same RL with the same KL, without MARA",
        seeds=seeds,
        steps=steps,
        beta=options.beta,
        arms=arms_record(arms),
        **machine(1),
    )


def arms_record(arms: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """All seeds, infinity as null."""
    return {
        arm: [{key: value if np.isfinite(value) else None for key, value in item.items()} for item in found]
        for arm, found in arms.items()
    }


if __name__ == "__main__":
    main()
