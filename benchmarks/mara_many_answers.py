"""Many good answers, all known (arXiv 2510.20817): does reinforcement learning keep each of them alive?

"Card C: make 7 from two digits:" has eleven good answers; `peers/many_answers_task.py` enumerates them. A small model (0.1 M
parameters) is warm-started on demonstrations that favour one answer, show the others rarely, and are wrong at times. Then the
ordinary `postgrad.rl` path trains it, with arms that differ in ARMS alone. Paired seeds: the arms of a seed start from the same
weights and see the same prompts, for the same number of updates. The paper's claim: with the KL to the reference the optimum
keeps the reference's favourites; MARA's optimum is uniform over the good set.

Every few updates the checkpoint answers each held-out prompt 64 times (temperature 1): coverage (share of the good set that
appears at least once), mean@1, pass@8, unique good answers. Good mass and KL to uniform are exact: the probabilities of all
good answers, by teacher forcing. Held-out prompts ask for targets that were trained on, under tags that were not. Intervals are
95 %, Student's t over seeds.

At equal mean reward: per seed, the level is the lowest of the arms' highest mean@1 in the course, of those arms that ever have
0.9, and an arm's coverage is taken at its first evaluation at or above it. This favours the arms that are quick to reach it: they
have had the least time to collapse. The ratio is MARA's such coverage over that of the same RL with the same KL ("KL as
MARA's"), seed by seed.

Every arm has its best settings of GRID, found by `--search` on a seed of its own (100): of the settings with a mean@1 of at
least 0.9 at the end, the one with the highest coverage at the end; without any, the one with the highest mean@1.

    python benchmarks/mara_many_answers.py [--quick] [--seeds 5] [--steps 150] [--lr 1e-3] [--jobs 1] [--out DIR]
    python benchmarks/mara_many_answers.py --search
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import postgrad as pg
from _common import finish, machine, mean_interval, print_table
from peers.many_answers_arms import ARMS, GRID, LEVEL, OURS, PEER, SEARCH_SEED, Change
from peers.many_answers_task import Prior, demonstrations, good_set, prompts, target_of
from postgrad.core.config import deep_merge
from postgrad.core.models import embedded_model, load
from postgrad.core.models.model import Model
from postgrad.core.models.packing import row_logps, rows
from postgrad.core.protocols import Judge
from postgrad.core.types import Group, Prompt, Sample
from postgrad.mara.diversity import coverage, mean_over_groups, pass_at_k
from postgrad.rl.api import fitting, make_engine, read_data
from postgrad.rl.config import RLConfig, make_config
from postgrad.rl.evaluate import choose_prompts, evaluate
from postgrad.rl.rollout import Rollout
from postgrad.tasks import VerifierPool

SAMPLES = 64
"""Completions per held-out prompt and evaluation."""
PRIOR = Prior(favourite=0.6, wrong=0.2)
PER_PROMPT = 100
"""Demonstrations of each training prompt."""
EMBEDDED = {"hidden_size": 64, "num_layers": 2, "intermediate_size": 128, "steps": 400}
FIXED_LEVELS = (0.9, 0.95)
"""Of mean@1, where coverage is compared as well."""
NEAR_UNIFORM = 0.5
"""Nats from uniform over the good set below which an arm has arrived."""
REWARD_FILE = Path(__file__).resolve().parent / "peers" / "many_answers_task.py"


@dataclass(frozen=True)
class Point:
    """One evaluation; means over held-out prompts.

    Attributes:
        step: updates before it.
        pass_rate: mean@1.
        coverage: share of the good set among the samples.
        unique: different good answers among the samples.
        pass_at_8: unbiased.
        good_mass: exact probability of the good set.
        kl_uniform: exact KL(π(· | good) ‖ uniform over the good set), nats.
    """

    step: int
    pass_rate: float
    coverage: float
    unique: float
    pass_at_8: float
    good_mass: float
    kl_uniform: float


# -- measuring -----------------------------------------------------------------------------------------------------------


def measure(step: int, groups: Sequence[Group], probabilities: Sequence[Sequence[float]]) -> Point:
    """A Point from judged groups and the exact probabilities of each prompt's good answers (in `good_set` order)."""
    found = [[sample.text.strip() for sample in group.samples] for group in groups]
    good = [set(good_set(target_of(group.prompt.content))) for group in groups]
    correct = [sum(text in known for text in texts) for texts, known in zip(found, good, strict=True)]
    pairs = list(zip(found, good, strict=True))
    exact = [np.asarray(values) for values in probabilities]
    return Point(
        step=step,
        pass_rate=float(np.mean([n / len(texts) for n, texts in zip(correct, found, strict=True)])),
        coverage=float(np.mean([coverage(texts, known) for texts, known in pairs])),
        unique=float(np.mean([len(known.intersection(texts)) for texts, known in pairs])),
        pass_at_8=float(np.mean([pass_at_k(len(t), n, 8) for n, t in zip(correct, found, strict=True)])),
        good_mass=float(np.mean([values.sum() for values in exact])),
        kl_uniform=mean_over_groups(kl_of_probabilities, [values.tolist() for values in exact]),
    )


def kl_of_probabilities(probabilities: Sequence[float]) -> float:
    """KL(p/Σp ‖ uniform) in nats of positive numbers.

    >>> round(kl_of_probabilities([0.2, 0.2]), 6), round(kl_of_probabilities([0.3, 0.1]), 4)  # ¾·log 1.5 + ¼·log ½
    (0.0, 0.1308)
    """
    shares = np.asarray(probabilities, float) / np.sum(probabilities)
    inside = shares[shares > 0]
    return float((inside * np.log(inside * len(shares))).sum())


def answer_probabilities(model: Model, rollout: Rollout, held_out: Sequence[Prompt]) -> list[list[float]]:
    """π(y, stop | x) of each good answer y of each prompt, by teacher forcing."""
    samples: list[Sample] = []
    for index, prompt in enumerate(held_out):
        for answer in good_set(target_of(prompt.content)):
            tokens = model.tokenizer.encode(answer, add_special_tokens=False)
            ids = np.asarray([*tokens, model.tokenizer.eos_token_id], np.int64)
            samples.append(
                Sample(
                    request_id=len(samples),
                    group_id=index,
                    prompt_tokens=rollout.encode(prompt),
                    token_ids=ids,
                    loss_mask=np.ones(len(ids), bool),
                    behaviour_logp=np.zeros(len(ids), np.float32),
                    policy_version=np.zeros(len(ids), np.int64),
                    stop_reason="stop",
                )
            )
    logps = torch.empty(sum(sample.num_tokens for sample in samples))
    with torch.no_grad():
        for row in rows(samples, 1024):
            logps[row.place] = row_logps(model, row).logp
    sums = iter(part.double().sum().exp().item() for part in logps.split([s.num_tokens for s in samples]))
    return [[next(sums) for _ in good_set(target_of(prompt.content))] for prompt in held_out]


def evaluate_at(step: int, model: Model, config: RLConfig, held_out: Sequence[Prompt], judge: Judge) -> Point:
    """Samples and measures one set of weights on the held-out prompts."""
    rollout = Rollout(model, config.length, config.algorithm, config.seed, config.data.instruction)
    fit, longest = fitting(held_out, rollout, print)
    found = evaluate(make_engine(model, config, longest), rollout, judge, fit, SAMPLES, 1.0)
    return measure(step, found.groups, answer_probabilities(model, rollout, fit))


# -- one arm -------------------------------------------------------------------------------------------------------------


def write_prompts(folder: Path) -> None:
    """The prompts as a file."""
    text = "".join(json.dumps({"prompt": text}) + "\n" for text in prompts())
    (folder / "prompts.jsonl").write_text(text, encoding="utf-8")


def make_task(folder: Path) -> dict[str, Any]:
    """The prompts in that file, judged by `peers/many_answers_task.py`."""
    path = folder / "prompts.jsonl"
    return {"name": "many_answers", "path": str(path), "reward": f"{REWARD_FILE}:reward"}


def make(task: Mapping[str, Any], seed: int, options: argparse.Namespace, arm: Mapping[str, Any]) -> RLConfig:
    """The config of one arm."""
    shared = {
        "seed": seed,
        "steps": options.steps,
        "data": {"tasks": [task], "holdout_fraction": 0.2},
        "model": {"device": "cpu", "embedded": {**EMBEDDED, "seed": seed}},
        "algorithm": {
            "prompts_per_batch": 12,
            "samples_per_prompt": 16,
            "history_threshold": None,
            "truncated": "keep",
        },
        "schedule": {"k": 2, "update_cost_steps": 2},
        "length": {"max_prompt_tokens": 48, "max_completion_tokens": 6, "interrupt_min": None},
        "optimizer": {"lr": options.lr, "warmup_steps": 5, "micro_batch_tokens": 4096},
        "engine": {"slots": 256},
        "eval": {"every": 0, "prompts": 200, "samples_per_prompt": 1},
        "run": {"checkpoint_every": options.every, "keep_checkpoints": options.steps, "log_samples": 0},
    }
    return make_config(deep_merge(shared, arm))


def warm_start(config: RLConfig, training: Sequence[Prompt], cache: Path) -> Model:
    """The model before training: on demonstrations of the training prompts, by the prior."""
    rng = random.Random(config.seed)
    pairs = demonstrations([prompt.content for prompt in training], PER_PROMPT, PRIOR, rng)
    return embedded_model(pairs, config.model.embedded, device="cpu", cache_dir=cache)


def run_arm(config: RLConfig, source: str, out: Path, judge: Judge, first: Point) -> dict[str, Any]:
    """Trains from the weights at `source`, then evaluates all checkpoints: {"course", "step_s"}."""
    config = make_config(deep_merge(config.model_dump(), {"model": {"path": source}}))
    transform = pg.mara.transform if config.mara else None
    run = pg.rl.train(config=config, out=out, quiet=True, transform=transform)
    held_out = held_out_prompts(config)
    course = [first]
    for step, folder in sorted(run.checkpoints()):
        course.append(evaluate_at(step, load(folder, device="cpu"), config, held_out, judge))
    seconds = [row["time/step_s"] for row in run.metrics() if row["step"]]
    return {"course": course, "step_s": float(np.median(seconds))}


def held_out_prompts(config: RLConfig) -> list[Prompt]:
    """Those that no run trains on."""
    return choose_prompts(read_data(config).split.held_out, config.eval.prompts)


@dataclass(frozen=True)
class Job:
    """One arm of one seed; its result lies in `folder/results` once it is there."""

    label: str
    change: Change
    seed: int
    options: argparse.Namespace
    folder: Path

    @property
    def result(self) -> Path:
        """Where it is written, by what was asked."""
        asked = json.dumps([self.change, self.seed, self.options.steps, self.options.every, self.options.lr])
        return self.folder / "results" / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"


def work(job: Job) -> dict[str, Any]:
    """Runs a job, unless its result is there: {"course", "step_s"}."""
    if not job.result.is_file():
        torch.set_num_threads(1)
        config = make(make_task(job.folder), job.seed, job.options, job.change)
        with VerifierPool(config.data.tasks, 1, config.data.verify_timeout_s) as judge:
            model = warm_start(config, read_data(config).split.train, job.folder / "models")
            first = evaluate_at(0, model, config, held_out_prompts(config), judge)
            with tempfile.TemporaryDirectory(dir=job.folder) as out:
                found = run_arm(config, str(model.source), Path(out) / "run", judge, first)
        found["course"] = [asdict(point) for point in found["course"]]
        job.result.parent.mkdir(exist_ok=True)
        partial = job.result.with_suffix(".tmp")
        partial.write_text(json.dumps({"label": job.label, "seed": job.seed, **found}), encoding="utf-8")
        partial.rename(job.result)
    found = json.loads(job.result.read_text(encoding="utf-8"))
    course = [Point(**point) for point in found["course"]]
    print(f"{job.label:>16} seed {job.seed}: {brief(course[-1])}", flush=True)
    return {"course": course, "step_s": found["step_s"]}


def run_all(jobs: Sequence[Job], processes: int) -> list[dict[str, Any]]:
    """All results, in order."""
    if processes == 1:
        return [work(job) for job in jobs]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, jobs))


def brief(point: Point) -> str:
    """A line for progress."""
    return ", ".join(f"{key} {value:.3f}" for key, value in asdict(point).items() if key != "step")


# -- arms against each other ---------------------------------------------------------------------------------------------


def equal_level(courses: Sequence[Sequence[Point]]) -> float:
    """The highest mean@1 that every course reaches at some time after the start, of those that ever reach LEVEL."""
    highest = [max(point.pass_rate for point in course[1:]) for course in courses]
    return min((value for value in highest if value >= LEVEL), default=min(highest))


def at_level(course: Sequence[Point], level: float) -> Point | None:
    """The first evaluation after the start whose mean@1 is at or above the level; None if there is none."""
    return next((point for point in course[1:] if point.pass_rate >= level), None)


def settled(course: Sequence[Point]) -> float | None:
    """Updates to uniform: the first evaluation from which KL to uniform stays at or below NEAR_UNIFORM; None if it does not."""
    below = [point.kl_uniform <= NEAR_UNIFORM for point in course]
    first = len(below) - below[::-1].index(False) if False in below else 0
    return float(course[first].step) if first < len(course) else None


def cell(values: Sequence[float | None]) -> str:
    """Mean ± 95 %; seeds without a value are counted."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean, half = mean_interval(known)
    missing = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return f"{mean:.3f} ± {half:.3f}{missing}"


def attribute_cell(points: Sequence[Point | None], key: str) -> str:
    """`cell` of one measure."""
    return cell([None if point is None else getattr(point, key) for point in points])


def final_table(arms: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """After all updates."""
    header = [
        "",
        "coverage",
        "KL to uniform, nats",
        "mean@1",
        "pass@8",
        "unique",
        "good mass",
        f"updates to {NEAR_UNIFORM} nats",
        "s per update",
    ]
    keys = ["coverage", "kl_uniform", "pass_rate", "pass_at_8", "unique", "good_mass"]
    start = [found["course"][0] for found in next(iter(arms.values()))]
    table: list[list[object]] = [
        ["before", *(cell([getattr(p, key) for p in start]) for key in keys), None, None]
    ]
    for arm, runs in arms.items():
        last = [found["course"][-1] for found in runs]
        seconds = float(np.median([found["step_s"] for found in runs]))
        steps = cell([settled(found["course"]) for found in runs])
        table.append([arm, *(cell([getattr(p, key) for p in last]) for key in keys), steps, seconds])
    print_table(f"After training, held-out prompts, {SAMPLES} samples each", header, table)


def level_table(arms: Mapping[str, Sequence[dict[str, Any]]], levels: Sequence[float]) -> None:
    """At equal mean reward."""
    table: list[list[object]] = []
    for arm, runs in arms.items():
        points = [at_level(found["course"], level) for found, level in zip(runs, levels, strict=True)]
        reached = [[at_level(found["course"], fixed) for found in runs] for fixed in FIXED_LEVELS]
        table.append(
            [
                arm,
                *(attribute_cell(points, key) for key in ("coverage", "kl_uniform", "step")),
                *(attribute_cell(found, "coverage") for found in reached),
            ]
        )
    shown = ", ".join(f"{level:.3f}" for level in levels)
    header = ["", "coverage", "KL to uniform, nats", "updates", *(f"coverage at {x}" for x in FIXED_LEVELS)]
    print_table(
        f"At equal mean@1 (by seed {shown}), and where mean@1 first reaches fixed levels", header, table
    )


def course_table(arms: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Coverage / mean@1 over updates, means over seeds."""
    steps = [point.step for point in next(iter(arms.values()))[0]["course"]]
    chosen = range(0, len(steps), -(-len(steps) // 6))
    table = [
        [
            arm,
            *(
                f"{np.mean([run['course'][i].coverage for run in runs]):.2f}"
                f"/{np.mean([run['course'][i].pass_rate for run in runs]):.3f}"
                for i in chosen
            ),
        ]
        for arm, runs in arms.items()
    ]
    print_table("Coverage/mean@1 after so many updates", ["", *(str(steps[i]) for i in chosen)], table)


def search(options: argparse.Namespace, folder: Path) -> None:
    """All of GRID on one seed, and which settings are best."""
    jobs = [
        Job(name, change, SEARCH_SEED, options, folder)
        for name, changes in GRID.items()
        for change in changes
    ]
    found = run_all(jobs, options.jobs)
    table: list[list[object]] = []
    for name in GRID:
        mine = [
            (job.change, run["course"][-1]) for job, run in zip(jobs, found, strict=True) if job.label == name
        ]
        able = [last for _, last in mine if last.pass_rate >= LEVEL]
        best = max(able, key=lambda point: point.coverage, default=None) or max(
            (last for _, last in mine), key=lambda point: point.pass_rate
        )
        for change, last in mine:
            mark = "*" if last is best else ""
            table.append(
                [f"{name} {json.dumps(change)}", last.coverage, last.pass_rate, last.kl_uniform, mark]
            )
    header = ["", "coverage", "mean@1", "KL to uniform", "best"]
    print_table(f"After {options.steps} updates, seed {SEARCH_SEED}", header, table)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two seeds, 40 updates")
    parser.add_argument("--seeds", type=int, help="default 5 (quick: 2)")
    parser.add_argument("--steps", type=int, help="default 150 (quick: 40)")
    parser.add_argument("--every", type=int, default=10, help="updates between evaluations")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--out", type=Path, help="keep results here, and take up those that are there")
    parser.add_argument("--search", action="store_true", help="try the settings of every arm on another seed")
    options = parser.parse_args()
    options.seeds = options.seeds or (2 if options.quick else 5)
    options.steps = options.steps or (40 if options.quick else 150)
    return options


def main() -> None:
    """Runs all seeds of all arms and prints the tables."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="postgrad-bench-") as name:
        folder = (options.out or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        write_prompts(folder)
        if options.search:
            search(options, folder)
            return
        jobs = [
            Job(arm, change, seed, options, folder)
            for seed in range(options.seeds)
            for arm, change in ARMS.items()
        ]
        found = run_all(jobs, options.jobs)
    arms = {arm: [run for job, run in zip(jobs, found, strict=True) if job.label == arm] for arm in ARMS}
    levels = [equal_level([runs[seed]["course"] for runs in arms.values()]) for seed in range(options.seeds)]
    print(f"\nlr {options.lr:g}, {options.seeds} seeds, mean ± 95 %")
    final_table(arms)
    level_table(arms, levels)
    course_table(arms)
    report(arms, levels, options)


def report(
    arms: Mapping[str, Sequence[dict[str, Any]]], levels: Sequence[float], options: argparse.Namespace
) -> None:
    """The JSON line."""
    covered = {
        arm: [required(run["course"], level).coverage for run, level in zip(arms[arm], levels, strict=True)]
        for arm in (OURS, PEER)
    }
    by_seed = [ours / peer for ours, peer in zip(covered[OURS], covered[PEER], strict=True)]
    ratio, half = mean_interval(by_seed)
    finish(
        "mara_many_answers",
        float(np.mean(covered[OURS])),
        float(np.mean(covered[PEER])),
        "coverage of the good set at equal mean@1",
        ratio,
        (ratio - half, ratio + half) if len(by_seed) > 1 else (None, None),
        peer_name="the same RL with the same KL, without MARA and replay",
        seeds=options.seeds,
        steps=options.steps,
        lr=options.lr,
        settings=ARMS,
        levels=levels,
        ratio_by_seed=by_seed,
        arms={
            arm: [
                {"step_s": run["step_s"], "course": [asdict(point) for point in run["course"]]}
                for run in runs
            ]
            for arm, runs in arms.items()
        },
        **machine(1),
    )


def required(course: Sequence[Point], level: float) -> Point:
    """`at_level` where `equal_level` says that it exists."""
    point = at_level(course, level)
    if point is None:
        raise ValueError(f"no evaluation reaches mean@1 = {level}")
    return point


if __name__ == "__main__":
    main()
