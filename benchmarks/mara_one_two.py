"""The 1-2 task (arXiv 2510.20817, §5) in small: both "1" and "2" are right, the model before training says "1" far more often.

A 0.1 M parameter model is warm-started on demonstrations of which 77 % say 1, 6 % say 2 and the rest something wrong.
Then the same updates of the ordinary `postgrad.rl` path, with the same KL to the reference: vanilla (`method =
"none"`), whose optimum keeps the reference's ratio, P(2 | good) = 0.06/0.83 = 0.07, and MARA, whose optimum is 0.5; MARA also
as recommended in docs/rooms/mara.md, with each group's own deviation and a quarter of the group replayed. Paired seeds: all
arms of a seed start from the same weights and see the same prompts. Measured on held-out prompts at the end; the course
comes from the training samples.

The distance is |P(2 | good) − ½|, and ½ for a run that lost all good answers; the ratio is vanilla's mean distance over that
of MARA with replay (taken at the resolution of one sample, where MARA is nearer), its interval a bootstrap over seeds.

    python benchmarks/mara_one_two.py [--quick] [--seeds 10] [--beta 0.1] [--figure FILE.svg]
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
from postgrad.core.config import deep_merge
from postgrad.core.figures import Figure, Line, standalone, to_svg
from postgrad.rl.api import evaluate_model
from postgrad.rl.config import RLConfig, make_config

PRIOR = {"1": 0.77, "2": 0.06, "3": 0.05, "4": 0.04, "5": 0.03, "6": 0.02, "7": 0.01, "8": 0.01, "9": 0.01}
REWARD = '''"""Both 1 and 2 are right."""


def reward(prompt, completion):
    return float(completion.strip() in ("1", "2"))
'''
WINDOW = 10
"""Updates over which P(2 | good) is averaged in the course."""
RESOLUTION = 1 / 1600
"""One sample of those that P(2 | good) is measured on."""


def make_task(folder: Path, count: int = 600) -> dict[str, Any]:
    """Prompts that differ in a number only; the answers of the demonstrations follow the prior."""
    rng = random.Random(0)
    answers = rng.choices(list(PRIOR), weights=list(PRIOR.values()), k=count)
    rows = [{"prompt": f"Case {i:03d}. Say 1 or 2:", "answer": answer} for i, answer in enumerate(answers)]
    path = folder / "one_two.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "one_two.py").write_text(REWARD, encoding="utf-8")
    return {"name": "one_two", "path": str(path), "reward": f"{folder / 'one_two.py'}:reward"}


ARMS: dict[str, dict[str, Any]] = {
    "vanilla": {"mara": {"method": "none"}},
    "MARA": {},
    "MARA, replay": {"mara": {"replay": 4}, "algorithm": {"advantage_norm": "group"}},
}
OURS, PEER = "MARA, replay", "vanilla"


def make(
    task: dict[str, Any], seed: int, steps: int, options: argparse.Namespace, change: dict[str, Any]
) -> RLConfig:
    """One arm."""
    return make_config(
        deep_merge(
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
                "algorithm": {
                    "prompts_per_batch": 16,
                    "samples_per_prompt": 16,
                    "history_threshold": None,
                    "truncated": "keep",
                },
                "schedule": {"k": 2, "update_cost_steps": 2},
                "length": {"max_prompt_tokens": 64, "max_completion_tokens": 6, "interrupt_min": None},
                "optimizer": {"lr": options.lr, "warmup_steps": 5, "micro_batch_tokens": 4096},
                "engine": {"slots": 128},
                "eval": {"every": 0, "prompts": 50, "samples_per_prompt": 1},
                "run": {"checkpoint_every": steps, "log_samples": 16},
                "mara": {"beta": options.beta},
            },
            change,
        )
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
    rows = [row for row in run.samples() if row.get("phase") == "train"]
    windows = [
        shares([row["completion"] for row in rows if last - WINDOW < row["step"] <= last])
        for last in range(WINDOW, config.steps + 1)
    ]
    seconds = [row["time/step_s"] for row in run.metrics() if row["step"]]
    course = [share for share, _ in windows]
    return {
        "rare": rare,
        "mass": mass,
        "uniform_at": settled(course),
        "step_s": float(np.median(seconds)),
        "course": course,
    }


def settled(course: list[float], goal: float = 0.4) -> float:
    """The first update from which the windows' P(2 | good) stays at or above the goal; inf if it does not."""
    below = [index for index, value in enumerate(course) if not value >= goal]
    first = below[-1] + 1 if below else 0
    return float("inf") if first >= len(course) else first + WINDOW


def interval(values: list[float]) -> str:
    """Mean and 95 % interval over seeds (normal)."""
    error = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {error:.3f}"


def distance(found: dict[str, Any]) -> float:
    """|P(2 | good) − ½|; ½ without good answers."""
    return abs(found["rare"] - 0.5) if np.isfinite(found["rare"]) else 0.5


def bootstrap_ratio(ours: list[float], peer: list[float], draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of mean(peer)/mean(ours), seeds drawn in pairs."""
    index = np.random.default_rng(0).integers(0, len(ours), (draws, len(ours)))
    means = np.asarray(peer)[index].mean(1) / np.maximum(np.asarray(ours)[index].mean(1), RESOLUTION)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def draw(arms: dict[str, list[dict[str, Any]]], steps: int, path: Path) -> None:
    """The course of P(2 | good): mean over seeds, band from the lowest to the highest."""
    columns: dict[str, list[float | None]] = {"update": [float(x) for x in range(WINDOW, steps + 1)]}
    for arm, found in arms.items():
        table = np.array([run["course"] for run in found])
        for name, column in (("", table.mean(0)), (" low", table.min(0)), (" high", table.max(0))):
            columns[arm + name] = [float(x) if np.isfinite(x) else None for x in column]
    columns["uniform"] = [0.5] * len(columns["update"])
    lines = [Line(arm, arm, f"{arm} low", f"{arm} high") for arm in arms]
    figure = Figure(
        "one-two",
        "Share of the rare answer among the good ones",
        f"Mean of {len(arms[OURS])} seeds, lowest to highest shaded, over windows of {WINDOW} updates.",
        columns,
        "update",
        (*lines, Line("uniform", "uniform", style="dashed", role="ink")),
        x_label="updates",
        y_label="P(2 | good)",
    )
    path.write_text(standalone(to_svg(figure, 720, 320)), encoding="utf-8")


def main() -> None:
    """Runs all seeds of all arms and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two seeds, fewer updates")
    parser.add_argument("--seeds", type=int, help="default 10 (quick: 2)")
    parser.add_argument("--steps", type=int, help="default 150 (quick: 60)")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--figure", type=Path, help="draw the course into this SVG")
    options = parser.parse_args()
    seeds = options.seeds or (2 if options.quick else 10)
    steps = options.steps or (60 if options.quick else 150)
    torch.set_num_threads(1)
    arms: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory(prefix="postgrad-bench-") as name:
        task = make_task(Path(name))
        for seed in range(seeds):
            for arm, found in arms.items():
                config = make(task, seed, steps, options, ARMS[arm])
                found.append(run_arm(config, Path(name) / f"{arm}-{seed}"))
                shown = {key: value for key, value in found[-1].items() if key != "course"}
                print(f"{arm:>12} seed {seed}: {shown}", flush=True)
    far = {arm: [distance(item) for item in found] for arm, found in arms.items()}
    rows = [
        [
            arm,
            interval([item["rare"] for item in found]),
            interval([item["mass"] for item in found]),
            interval(far[arm]),
            ", ".join(f"{item['uniform_at']:.0f}" for item in found),
            float(np.median([item["step_s"] for item in found])),
        ]
        for arm, found in arms.items()
    ]
    header = [
        "",
        "P(2 | good), ideal 0.5",
        "P(good)",
        "distance from 0.5",
        f"updates to uniform, by seed (of {steps})",
        "s per update",
    ]
    print_table(f"1-2 task, beta {options.beta}, {seeds} seeds", header, rows)
    if options.figure:
        draw(arms, steps, options.figure)
    means = {arm: float(np.mean(values)) for arm, values in far.items()}
    finish(
        "mara_one_two",
        means[OURS],
        means[PEER],
        "distance of P(2 | good) from 1/2",
        means[PEER] / max(means[OURS], RESOLUTION),
        bootstrap_ratio(far[OURS], far[PEER]),
        peer_name="the same RL with the same KL, without MARA",
        seeds=seeds,
        steps=steps,
        beta=options.beta,
        distance=means,
        arms=arms_record(arms),
        **machine(1),
    )


def arms_record(arms: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """All seeds, infinity as null, without the courses."""
    return {
        arm: [
            {key: value if np.isfinite(value) else None for key, value in item.items() if key != "course"}
            for item in found
        ]
        for arm, found in arms.items()
    }


if __name__ == "__main__":
    main()
