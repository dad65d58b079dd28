"""Molecules (arXiv 2510.20817, §6): does MARA find more good ones than REINVENT with the same KL, for the same oracle calls?

The recipe `molecules`: a small model (0.16 M parameters) learns SMILES from 50,000 molecules of a grammar; then, from the same
prior and the same seed, each arm trains with REINVENT's gradient, of (log π_ref + σR − log π_θ)² with σ = 1/beta: 64 molecules an
update, all from the present policy, every one a call of the oracle. The arms differ in ARMS alone. SYNTH is
QED·σ(2(4 − SA))·[HBD < 4], AMIDE the same where there is an amide, else 0.

Counted over all molecules of a run: Yield (different ones with R at least 0.80, 0.85), OB100 (calls until 100 such; none if that
never happens: said how often it does), IntDiv1 and #Circles of the different good ones; at the end mean reward. Differences
are taken seed by seed; intervals are 95 %, Student's t over seeds. All seeds share one prior, so they speak of it alone.

How lr, beta and what is good were chosen: with seeds 100 to 102, none of which is reported; 63 updates, Yield at 0.80 by seed.

    SYNTH
    lr      beta    REINVENT         MARA, tau 0.8   tau 0.7     percentile 75   90
    5e-4    0.01    266
    7e-4    0.01    401, 359
    1e-3    0.01    514, 376, 397    416, 253                    473, 484
    1e-3    0.02    520, 204, 354    440, 249        525, 507    596, 602, 662   408, 527
    1e-3    0.05    312, 265         371, 475
    2e-3    0.005   139
    2e-3    0.01    96
    4e-3    0.01    32
    AMIDE
    1e-3    0.01    465, 261
    1e-3    0.02    501, 288                              729, 260    589             559, 571

So REINVENT has 0.01 (on AMIDE 0.02, the second peer, is no worse) and MARA 0.02 with PERCENTILES. With the threshold that Yield
counts by (tau 0.8, an arm of RIVALS) MARA does not help on SYNTH: the prior has 3 % such molecules, two in a batch, so there is
little to even out. Three quarters of AMIDE's first batches have reward 0, so from the 75th percentile all of them are good.
REINVENT is also shown with MARA's own KL: MARA alone is what differs there.

    python benchmarks/mara_chemistry.py [--quick] [--jobs 2] [--out runs.jsonl]     # started again, it goes on from runs.jsonl
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import postgrad as pg
from _common import finish, machine, print_table, show
from postgrad.core.config import deep_merge, read_toml
from postgrad.core.recipes import find_recipe
from postgrad.mara import diversity, molecules
from postgrad.rl.api import load_model, read_data
from postgrad.rl.config import RLConfig, make_config

PERCENTILES = {"synth": 75.0, "amide": 90.0}
"""Task → from which percentile of a batch's rewards a molecule is good, for the arms with MARA that do not say it themselves."""
TASKS = tuple(PERCENTILES)
# -- the arms: the table [mara] of each; add further ones here ------------------------------------------------------------
ARMS: dict[str, dict[str, Any]] = {
    "REINVENT": {"method": "none", "beta": 0.01},
    "REINVENT, KL of MARA": {"method": "none", "beta": 0.02},
    "MARA": {"method": "mara", "beta": 0.02, "answers": "smiles"},
}
RIVALS: dict[str, dict[str, Any]] = {
    "diversity filter": {"method": "diversity_filter", "beta": 0.01, "bucket": 1, "answers": "smiles"},
    "MARA + replay": {**ARMS["MARA"], "replay": 16},
    "MARA, tau 0.8": {"method": "mara", "beta": 0.02, "tau": 0.8, "answers": "smiles"},
}
OURS, PEERS = "MARA", ("REINVENT", "REINVENT, KL of MARA")
"""The first peer has its own best settings, the second those of MARA."""
# -------------------------------------------------------------------------------------------------------------------------
BATCH = 64
THRESHOLDS = (0.8, 0.85)
LAST = 5
"""Updates at the end whose molecules tell what the policy has become."""

METRICS: dict[str, tuple[str, int]] = {
    "yield_80": ("Yield at 0.80", 1),
    "yield_85": ("Yield at 0.85", 1),
    "ob100_80": ("OB100 at 0.80", -1),
    "ob100_85": ("OB100 at 0.85", -1),
    "int_div_80": ("IntDiv1 of the good (0.80)", 1),
    "circles_80": ("#Circles of the good (0.80)", 1),
    "reward_end": (f"mean reward, last {LAST} updates", 1),
    "valid": ("valid molecules", 1),
    "unique": ("different / valid molecules", 1),
}
"""Metric → its name, and which direction is better."""


# -- one run --------------------------------------------------------------------------------------------------------------


def make(options: argparse.Namespace, spec: Mapping[str, Any]) -> RLConfig:
    """The config of one run: the recipe `molecules`, from the prior's weights, with what the command line and the arm say."""
    change = {
        "seed": spec["seed"],
        "steps": options.steps,
        "model": {"path": options.prior, "device": "cpu"},
        "optimizer": {"lr": options.lr},
        "eval": {"every": 0, "samples_per_prompt": 1},
        "run": {"checkpoint_every": options.steps, "keep_checkpoints": 1},
    }
    recipe = read_toml(find_recipe("molecules"))
    (task,) = recipe["data"]["tasks"]
    # The prior has seen the grammar; training needs the one prompt only.
    task |= {"size": 1, "reward": f"postgrad.mara.chemistry:{spec['task']}"}
    recipe.pop("mara")
    return make_config(
        deep_merge(deep_merge(recipe, change), {"mara": table(options, spec["task"], spec["arm"])})
    )


def table(options: argparse.Namespace, task: str, arm: str) -> dict[str, Any]:
    """The table [mara] of an arm, with what `--mara` changes."""
    found = {**(ARMS | RIVALS)[arm], **options.mara}
    if found["method"] == "mara" and not {"tau", "percentile"} & found.keys():
        found["percentile"] = PERCENTILES[task]
    return found


def run_one(options: argparse.Namespace, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Trains and measures one run by its own samples."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="postgrad-bench-") as name:
        run = pg.rl.train(
            config=make(options, spec), out=Path(name) / "run", quiet=True, transform=pg.mara.transform
        )
        rows = [row for row in run.samples() if row["phase"] == "train"]
        seconds = [row["time/step_s"] for row in run.metrics() if row["step"]]
    settings = settings_of(options, spec["task"], spec["arm"])
    return {**spec, "settings": settings, **measure(rows), "step_s": float(np.median(seconds))}


def measure(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """METRICS of the samples of a run in order; a molecule counts once, in canonical form, and what is none as it was said."""
    said = [row["completion"].strip() for row in rows]
    forms = [molecules.canonical(text) for text in said]
    names = [text if form is None else form for text, form in zip(said, forms, strict=True)]
    rewards = [float(row["score"] or 0.0) for row in rows]
    valid = [form for form in forms if form is not None]
    found: dict[str, Any] = {}
    for threshold in THRESHOLDS:
        label = f"{100 * threshold:.0f}"
        found[f"yield_{label}"] = diversity.yield_at(names, rewards, threshold)
        found[f"ob100_{label}"] = diversity.oracle_burden(names, rewards, threshold, 100)
    pairs = zip(names, rewards, strict=True)
    good = list(dict.fromkeys(name for name, reward in pairs if reward >= THRESHOLDS[0]))
    found["int_div_80"] = diversity.internal_diversity(molecules.tanimoto(good)) if good else None
    found["circles_80"] = molecules.circles(good)
    found["reward_end"] = float(np.mean(rewards[-LAST * BATCH :]))
    found["valid"] = len(valid) / len(rows)
    found["unique"] = len(set(valid)) / max(1, len(valid))
    steps = sorted({row["step"] for row in rows})
    found["reward_course"] = [
        round(float(np.mean([r for r, row in zip(rewards, rows, strict=True) if row["step"] == step])), 4)
        for step in steps[:: max(1, len(steps) // 10)]
    ]
    return found


def settings_of(options: argparse.Namespace, task: str, arm: str) -> dict[str, Any]:
    """What a run depends on beside task and seed; the prior is the recipe's unless `--prior` is given."""
    return {"steps": options.steps, "lr": options.lr, "mara": table(options, task, arm)}


# -- all runs -------------------------------------------------------------------------------------------------------------


def specs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Seed by seed, so that an interrupted benchmark has whole pairs."""
    for seed in options.seeds:
        for task in options.tasks:
            for arm in options.arms:
                yield {"task": task, "arm": arm, "seed": seed}


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of all runs: those in `--out` with the same settings, and the others, which are appended to it."""
    wanted = list(specs(options))
    earlier = [row for row in read_results(options.out) if row["arm"] in options.arms]
    done = [row for row in earlier if row["settings"] == settings_of(options, row["task"], row["arm"])]
    finished = {identity(row): row for row in done}
    missing = [spec for spec in wanted if identity(spec) not in finished]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are in {options.out}", flush=True)
    # A fresh process each: torch's threads do not survive a fork.
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        under_way = [pool.submit(run_one, options, spec) for spec in missing]
        for future in as_completed(under_way):
            row = future.result()
            finished[identity(row)] = row
            if options.out is not None:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            print(brief(row), flush=True)
    return [finished[identity(spec)] for spec in wanted]


def read_results(path: Path | None) -> list[dict[str, Any]]:
    """Rows of an earlier benchmark; a last line that was cut off is left out."""
    rows: list[dict[str, Any]] = []
    if path is not None and path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                print(f"{path}: a line that was cut off is left out")
    return rows


def identity(row: Mapping[str, Any]) -> tuple[str, str, int]:
    """Which run it is."""
    return row["task"], row["arm"], row["seed"]


def brief(row: Mapping[str, Any]) -> str:
    """A line for progress."""
    values = ", ".join(f"{key} {show(row[key])}" for key in METRICS)
    return f"{row['task']} {row['arm']} seed {row['seed']}: {values}, {row['step_s']:.2f} s per update"


# -- arms against each other ----------------------------------------------------------------------------------------------


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, half width of the 95 % interval by Student's t); one value has none.

    >>> mean, half = mean_interval([1.0, 2.0, 3.0])  # 4.3027·1/√3
    >>> mean, round(half, 4)
    (2.0, 2.4841)
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, float(stats.t.ppf(0.975, len(values) - 1)) * error


def verdict(mean: float, half: float | None, better: int) -> str:
    """What an interval of the difference says.

    >>> verdict(3.0, 1.0, 1), verdict(3.0, 1.0, -1), verdict(3.0, 4.0, 1)
    ('better', 'worse', 'null')
    """
    if half is None:
        return "–"
    if abs(mean) <= half:
        return "null"
    return "better" if mean * better > 0 else "worse"


def compare(
    ours: Sequence[Mapping[str, Any]], peer: Sequence[Mapping[str, Any]], metric: str
) -> dict[str, Any]:
    """Both means with intervals, and the difference seed by seed; seeds where one has no value are left out and counted."""
    pairs = [(a[metric], b[metric]) for a, b in zip(ours, peer, strict=True)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    found: dict[str, Any] = {
        "ours_reached": sum(a is not None for a, _ in pairs),
        "peer_reached": sum(b is not None for _, b in pairs),
        "pairs": len(known),
    }
    if known:
        mean, half = mean_interval([a - b for a, b in known])
        found |= {
            "ours": mean_interval([a for a, _ in known]),
            "peer": mean_interval([b for _, b in known]),
            "difference": (mean, half),
            "verdict": verdict(mean, half, METRICS[metric][1]),
        }
    return found


def task_table(task: str, peer: str, compared: Mapping[str, Mapping[str, Any]], seeds: int) -> None:
    """One row for each metric."""
    rows: list[list[str]] = []
    for metric, (label, _) in METRICS.items():
        found = compared[metric]
        reached = "" if found["pairs"] == seeds else f"{found['peer_reached']}, {found['ours_reached']}"
        cells = [plus_minus(found.get(key)) for key in ("peer", "ours", "difference")]
        rows.append([label, *cells, found.get("verdict", "–"), reached])
    header = ["", peer, OURS, "difference", "says", f"seeds of {seeds} with a value"]
    print_table(f"{task.upper()}: {OURS} against {peer}, mean ± 95 % over seeds, paired", header, rows)


def plus_minus(pair: tuple[float, float | None] | None) -> str:
    """`12.3 ± 0.4`."""
    return "–" if pair is None else f"{show(pair[0])} ± {show(pair[1])}"


def report(results: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
    """Tables and the JSON line."""

    def of(task: str, arm: str) -> list[Mapping[str, Any]]:
        return [row for row in results if (row["task"], row["arm"]) == (task, arm)]

    tables: dict[str, dict[str, Any]] = {}
    for task in options.tasks:
        for arm in options.arms:
            if OURS in options.arms and arm != OURS:
                compared = {metric: compare(of(task, OURS), of(task, arm), metric) for metric in METRICS}
                tables[f"{task}: {OURS} against {arm}"] = compared
                task_table(task, arm, compared, len(options.seeds))
    peer_arm = next((arm for arm in PEERS if arm in options.arms), None)
    if peer_arm is None or OURS not in options.arms:
        return
    headline = options.tasks[0]
    ours, peer = ([row["yield_80"] for row in of(headline, arm)] for arm in (OURS, peer_arm))
    ratio, half = mean_interval([a / max(1, b) for a, b in zip(ours, peer, strict=True)])
    finish(
        "mara_chemistry",
        float(np.mean(ours)),
        float(np.mean(peer)),
        f"different molecules of {headline.upper()} ≥ 0.80 in {options.steps * BATCH:,} oracle calls",
        ratio,
        (None, None) if half is None else (ratio - half, ratio + half),
        peer_name=peer_arm,
        seeds=len(options.seeds),
        settings={
            f"{task}: {arm}": settings_of(options, task, arm)
            for task in options.tasks
            for arm in options.arms
        },
        tables=tables,
        runs=[{key: value for key, value in row.items() if key != "settings"} for row in results],
        **machine(1),
    )


def prior() -> str:
    """The directory of the pre-trained model; built once, some three minutes."""
    recipe = read_toml(find_recipe("molecules"))
    recipe.pop("mara")
    config = make_config(deep_merge(recipe, {"model": {"device": "cpu"}}))

    def progress(step: int, steps: int, loss: float) -> None:
        if step % 200 == 0:
            print(f"prior: {step}/{steps} updates, loss {loss:.3f}", flush=True)

    model = load_model(config, read_data(config), progress)
    print(f"prior: {model.num_parameters:,} parameters", flush=True)
    return str(model.source)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three seeds, 20 updates")
    parser.add_argument("--seeds", type=int, help="how many; default 30 (quick: 3)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help=f"updates of {BATCH} oracle calls; default 63 (quick: 20)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS | RIVALS), default=list(ARMS))
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--mara", type=json.loads, default={}, help="JSON: changes the table [mara] of all arms"
    )
    parser.add_argument("--prior", help="directory of a model of SMILES; default: the recipe's, built once")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread")
    parser.add_argument(
        "--out", type=Path, help="JSONL of finished runs: written, and read when started again"
    )
    options = parser.parse_args()
    count = options.seeds or (3 if options.quick else 30)
    options.seeds = list(range(options.first_seed, options.first_seed + count))
    options.steps = options.steps or (20 if options.quick else 63)
    return options


def main() -> None:
    """Runs what is missing and prints the tables."""
    options = parse()
    torch.set_num_threads(1)
    options.prior = options.prior or prior()
    report(run_all(options), options)


if __name__ == "__main__":
    main()
