"""Reinforcement learning to a held-out pass rate: `postgrad rl train` against TRL's GRPOTrainer, both on the CPU.

Both start from the same warm-started checkpoint of the embedded model and see the same training prompts in the same order,
the same verifiers, group size, batch, AdamW settings and length limits; `peers/trl_grpo.py` lists them. Each runs in a
process of its own with the same number of threads, one after the other, seed by seed; with more than one, ours gives one of
them to a generator beside the trainer (`--generators 0`: both in turn, with all threads). The clock covers generation,
verification and training; it stands still during evaluation (the same function on both sides; nothing else is generated
meanwhile), and neither imports, model loading nor checkpoints count (start-up is reported separately).

- seconds to target: when the held-out pass rate, interpolated linearly between evaluations, first reaches the target. The
  target is `--target`, or 60 % of our way: initial + 0.6·(final − initial), medians over seeds. A run that ends before
  counts as its whole clock, and the ratio is then a lower bound (`"lower_bound": true`).
- samples/s: all samples over all seconds, without the first updates (the pipeline fills, caches warm).

TRL runs until its clock is `--budget` times ours or it has passed our final pass rate. Its speed settings and learning rate
are options; `--sweep` measures the speed settings and takes the fastest for the comparison, then tries ½, 1, 2 and 4 times
the recipe's lr on both sides alike, each side keeping the one with the highest held-out pass rate after half the updates.
Without it TRL gets one forward pass over the whole batch, one update per generation phase and the recipe's lr. What was
used is part of the result.

    python benchmarks/rl_vs_trl.py [--quick] [--sweep] [--seeds 3] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from _common import ROOT, finish, machine, print_table, require_peer

PEER_SCRIPT = Path(__file__).parent / "peers" / "trl_grpo.py"


class RunFailedError(SystemExit):
    """One side ended with an error; the message has the end of what it said."""


class Point(NamedTuple):
    """One evaluation."""

    seconds: float
    pass_rate: float


@dataclass
class Outcome:
    """One run of one side."""

    points: list[Point]
    step_s: list[float]
    samples_per_update: int
    wall_s: float

    @property
    def elapsed(self) -> float:
        return sum(self.step_s)

    def samples_per_s(self, skip: int) -> float:
        """Throughput without the first `skip` updates (fewer in a short run)."""
        kept = self.step_s[min(skip, len(self.step_s) // 2) :]
        return self.samples_per_update * len(kept) / sum(kept)

    def seconds_to(self, target: float) -> float | None:
        """First crossing of the target, interpolated; None if there is none."""
        before: Point | None = None
        for point in self.points:
            if point.pass_rate >= target:
                if before is None:
                    return point.seconds
                share = (target - before.pass_rate) / (point.pass_rate - before.pass_rate)
                return before.seconds + share * (point.seconds - before.seconds)
            before = point
        return None


@dataclass(frozen=True)
class Setting:
    """TRL's speed knobs; see `peers/trl_grpo.py`."""

    per_device: int
    updates_per_generation: int = 1
    attention: str = "sdpa"
    continuous_batching: bool = False
    judge: str = "inline"

    def words(self) -> list[str]:
        """As command line options."""
        words = [
            f"--per-device={self.per_device}",
            f"--updates-per-generation={self.updates_per_generation}",
        ]
        words += [f"--attention={self.attention}", f"--judge={self.judge}"]
        return [*words, "--continuous-batching"] if self.continuous_batching else words


class Bench:
    """Checkpoint, configs and the two commands."""

    def __init__(self, options: argparse.Namespace, folder: Path, peer: Path) -> None:
        self.options, self.folder, self.peer = options, folder, peer
        self.environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.config = self._prepare()

    def _prepare(self) -> Any:
        """Warm-starts (or takes from the cache) the model, saves it, and resolves the config on top of it."""
        from postgrad.commands.rl_train import resolve_config
        from postgrad.core.models.model import save
        from postgrad.core.recipes import find_recipe
        from postgrad.rl.api import load_model, read_data

        recipe = find_recipe(self.options.recipe)
        config = resolve_config(recipe, {"model.device": "cpu"}, ())
        print("Warm start of the model (cached after the first time) …", flush=True)
        model = load_model(config, read_data(config))
        checkpoint = self.folder / "checkpoint"
        checkpoint.mkdir()
        save(model, checkpoint)
        updates = self.options.updates
        overrides = {
            "model.path": str(checkpoint),
            "model.device": "cpu",
            "steps": updates,
            "eval.every": self.options.eval_every or max(1, updates // 10),
            "run.checkpoint_every": updates + 1,
            "engine.generators": self.options.generators,
        }
        return resolve_config(recipe, overrides, ())

    def config_file(self, seed: int) -> Path:
        """The resolved config of one seed."""
        path = self.folder / f"config-{seed}.json"
        path.write_text(json.dumps(self.config.model_dump(mode="json") | {"seed": seed}), encoding="utf-8")
        return path

    def ours(self, seed: int, lr: float, *, name: str = "ours", **limits: int) -> Outcome:
        """One `postgrad rl train`; `limits` are further options (`steps`, `eval__every`)."""
        out = self.folder / f"{name}-{lr}-{seed}"
        words = [
            sys.executable,
            "-m",
            "postgrad",
            "rl",
            "train",
            str(self.config_file(seed)),
            "--out",
            str(out),
            f"--optimizer.lr={lr}",
            *(f"--{key.replace('__', '.')}={value}" for key, value in limits.items()),
        ]
        started = time.perf_counter()
        self._call(words, self.options.threads - self.options.generators)
        wall_s = time.perf_counter() - started
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
        points = [
            Point(row.get("time/elapsed_s", 0.0), row["eval/pass_rate"])
            for row in rows
            if row.get("eval/pass_rate") is not None
        ]
        algorithm = self.config.algorithm
        samples = algorithm.prompts_per_batch * algorithm.samples_per_prompt
        return Outcome(points, [row["time/step_s"] for row in rows if row["step"]], samples, wall_s)

    def trl(self, seed: int, setting: Setting, lr: float, *, name: str = "trl", **limits: float) -> Outcome:
        """One run of TRL; raises RunFailedError if the setting does not work."""
        out = self.folder / f"{name}-{seed}.json"
        words = [str(self.peer), str(PEER_SCRIPT), str(self.config_file(seed)), str(out), f"--lr={lr}"]
        words += [f"--threads={self.options.threads}", *setting.words()]
        words += [f"--{key.replace('_', '-')}={value}" for key, value in limits.items()]
        started = time.perf_counter()
        self._call(words, self.options.threads)
        wall_s = time.perf_counter() - started
        data = json.loads(out.read_text("utf-8"))
        self._check_fingerprint(data)
        points = [Point(item["seconds"], item["pass_rate"]) for item in data["evaluations"]]
        return Outcome(points, data["step_s"], data["num_samples_per_update"], wall_s)

    def _check_fingerprint(self, data: dict[str, Any]) -> None:
        """The held-out prompts of the other process are the same tokens as ours."""
        import hashlib

        from postgrad.core.data import encode_prompt
        from postgrad.core.models import load
        from postgrad.rl.api import read_data
        from postgrad.rl.evaluate import choose_prompts

        if not hasattr(self, "_fingerprint"):
            tokenizer = load(self.config.model.path, device="cpu").tokenizer
            digest = hashlib.blake2b(digest_size=8)
            prompts = choose_prompts(read_data(self.config).split.held_out, self.config.eval.prompts)
            for prompt in prompts:
                tokens = encode_prompt(tokenizer, prompt, self.config.data.instruction)
                if len(tokens) <= self.config.length.max_prompt_tokens:
                    digest.update(tokens.tobytes() + b"|")
            self._fingerprint = digest.hexdigest()
        if data["held_out_fingerprint"] != self._fingerprint:
            raise SystemExit(
                "The two environments evaluate on different prompts; the comparison would be void."
            )

    def _call(self, words: Sequence[str], threads: int) -> None:
        log = None if self.options.verbose else subprocess.DEVNULL
        try:
            done = subprocess.run(
                words,
                env=self.environment | {"OMP_NUM_THREADS": str(threads)},
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=self.options.timeout_s,
            )
        except subprocess.TimeoutExpired:
            raise RunFailedError(f"{' '.join(words[:3])} … took over {self.options.timeout_s} s") from None
        if self.options.verbose:
            print(done.stderr, file=sys.stderr)
        if done.returncode:
            tail = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise RunFailedError(f"{' '.join(words[:3])} … ended with status {done.returncode}:\n{tail}")


def candidates(batch: int) -> list[Setting]:
    """What `--sweep` tries: rows per forward pass, generation phases, attention, continuous batching, judge."""
    pieces = [batch // division for division in (1, 4, 8) if batch % division == 0]
    return [
        *[Setting(piece) for piece in pieces],
        Setting(batch, attention="eager"),
        Setting(batch, judge="pool"),
        Setting(batch, updates_per_generation=8),
        Setting(batch, continuous_batching=True),
    ]


def sweep_speed(bench: Bench, batch: int) -> Setting:
    """TRL's fastest setting by samples/s over a few updates."""
    rows: list[list[object]] = []
    best: tuple[float, Setting] | None = None
    for setting in candidates(batch):
        words, updates = " ".join(setting.words()), max(6, 2 * setting.updates_per_generation)
        try:
            run = bench.trl(0, setting, bench.config.optimizer.lr, name="sweep", updates=updates)
        except RunFailedError as error:
            rows.append([words, None, str(error).splitlines()[-1][:60]])
            continue
        rate = run.samples_per_s(setting.updates_per_generation)
        rows.append([words, rate, ""])
        print(f"TRL {words}: {rate:.0f} samples/s", flush=True)
        if best is None or rate > best[0]:
            best = (rate, setting)
    print_table("TRL's settings", ["setting", "samples/s", "trouble"], rows)
    if best is None:
        raise SystemExit("No setting of TRL works here; see the table.")
    return best[1]


def sweep_lr(bench: Bench, setting: Setting, updates: int) -> tuple[float, float]:
    """Each side's best of ½, 1, 2 and 4 times the recipe's lr: highest held-out pass rate after `updates` updates."""
    rows: list[list[object]] = []
    ours: dict[float, float] = {}
    trl: dict[float, float] = {}
    for factor in (0.5, 1.0, 2.0, 4.0):
        lr = factor * bench.config.optimizer.lr
        mine = bench.ours(0, lr, name="lr", steps=updates, eval__every=updates)
        other = bench.trl(0, setting, lr, name="lr", updates=updates, eval_every=updates)
        ours[lr], trl[lr] = mine.points[-1].pass_rate, other.points[-1].pass_rate
        rows.append([lr, ours[lr], trl[lr]])
    print_table(f"Held-out pass rate after {updates} updates", ["lr", "postgrad", "TRL"], rows)
    return max(ours, key=lambda lr: ours[lr]), max(trl, key=lambda lr: trl[lr])


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, few updates")
    parser.add_argument("--recipe", default="embedded")
    parser.add_argument("--seeds", type=int, help="default 3 (quick: 1)")
    parser.add_argument("--updates", type=int, help="of ours; default 100 (quick: 20)")
    parser.add_argument(
        "--eval-every", type=int, default=0, help="updates between evaluations; default a tenth"
    )
    parser.add_argument("--target", type=float, help="held-out pass rate; default 60 %% of our way")
    parser.add_argument("--budget", type=float, help="TRL's clock over ours, at most; default 4 (quick: 3)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--generators", type=int, help="beside our trainer, of one thread each; default 1, 0 with one thread"
    )
    parser.add_argument("--sweep", action="store_true", help="search TRL's settings and both sides' lr first")
    parser.add_argument("--lr", type=float, help="ours; default: the recipe's")
    parser.add_argument("--trl-per-device", type=int, default=0, help="rows per forward pass; 0 = default")
    parser.add_argument("--trl-updates-per-generation", type=int, default=1)
    parser.add_argument("--trl-attention", default="sdpa", choices=("sdpa", "eager"))
    parser.add_argument("--trl-lr", type=float, help="default: the recipe's")
    parser.add_argument(
        "--timeout-s", type=float, default=1200, help="most seconds of one run of either side"
    )
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    if options.generators is None:
        options.generators = min(1, options.threads - 1)
    options.seeds = options.seeds or (1 if options.quick else 3)
    options.updates = options.updates or (20 if options.quick else 100)
    options.budget = options.budget or (3.0 if options.quick else 4.0)
    return options


def compare(
    bench: Bench, setting: Setting, lr: tuple[float, float], options: argparse.Namespace
) -> tuple[list[Outcome], list[Outcome]]:
    """Ours and TRL, seed by seed, at (our, their) learning rate."""
    ours: list[Outcome] = []
    trl: list[Outcome] = []
    for seed in range(options.seeds):
        ours.append(bench.ours(seed, lr[0]))
        _report("ours", seed, ours[-1])
        limits = {
            "updates": 10 * options.updates,
            "eval_every": bench.config.eval.every,
            "budget_s": options.budget * ours[-1].elapsed,
            "stop_at": max(run.points[-1].pass_rate for run in ours),
        }
        trl.append(bench.trl(seed, setting, lr[1], **limits))
        _report("TRL", seed, trl[-1])
    return ours, trl


def _report(name: str, seed: int, run: Outcome) -> None:
    first, last = run.points[0], run.points[-1]
    print(
        f"{name:>5} seed {seed}: held-out {first.pass_rate:.3f} -> {last.pass_rate:.3f} in {run.elapsed:.1f} s, "
        f"{len(run.step_s)} updates ({run.wall_s:.0f} s with start-up and evaluation)",
        flush=True,
    )


def choose_target(ours: Sequence[Outcome], asked: float | None) -> float:
    """`--target`, or 60 % of our way."""
    if asked is not None:
        return asked
    first = statistics.median(run.points[0].pass_rate for run in ours)
    last = statistics.median(run.points[-1].pass_rate for run in ours)
    return first + 0.6 * (last - first)


def main() -> None:
    """Runs the comparison and prints it."""
    options = parse()
    peer = require_peer("trl", "TRL")
    with tempfile.TemporaryDirectory(prefix="postgrad-bench-") as folder:
        bench = Bench(options, Path(folder), peer)
        algorithm = bench.config.algorithm
        batch = algorithm.prompts_per_batch * algorithm.samples_per_prompt
        setting = Setting(
            options.trl_per_device or batch, options.trl_updates_per_generation, options.trl_attention
        )
        found = bench.config.optimizer.lr, bench.config.optimizer.lr
        if options.sweep:
            setting = sweep_speed(bench, batch)
            found = sweep_lr(bench, setting, options.updates // 2)
        lr = options.lr or found[0], options.trl_lr or found[1]
        ours, trl = compare(bench, setting, lr, options)
        result = summarise(bench, ours, trl, setting, lr)
    finish("rl_vs_trl", **result, **machine(options.threads))


def summarise(
    bench: Bench, ours: Sequence[Outcome], trl: Sequence[Outcome], setting: Setting, lr: tuple[float, float]
) -> dict[str, Any]:
    """Prints the table; returns the fields of the result."""
    target = choose_target(ours, bench.options.target)
    skip = bench.config.schedule.k + 1
    rows: list[list[object]] = []
    by_seed: list[tuple[float, float]] = []
    reached = {"ours": 0, "trl": 0}
    for seed, (mine, other) in enumerate(zip(ours, trl, strict=True)):
        pair = mine.seconds_to(target), other.seconds_to(target)
        reached["ours"] += pair[0] is not None
        reached["trl"] += pair[1] is not None
        seconds = tuple(
            max(1e-3, found if found is not None else run.elapsed)
            for found, run in zip(pair, (mine, other), strict=True)
        )
        by_seed.append((seconds[0], seconds[1]))
        rows += [
            [name, seed, run.samples_per_s(skip), _seconds(found, run), run.points[-1].pass_rate, run.wall_s]
            for name, run, found in (("postgrad", mine, pair[0]), ("TRL", other, pair[1]))
        ]
    header = ["trainer", "seed", "samples/s", f"s to {target:.3f}", "last held-out", "wall s"]
    print_table("Same checkpoint, prompts and rewards", header, rows)
    quotients = [peer / mine for mine, peer in by_seed]
    rates = {name: [run.samples_per_s(skip) for run in runs] for name, runs in (("ours", ours), ("trl", trl))}
    return {
        "ours": statistics.median(mine for mine, _ in by_seed),
        "peer": statistics.median(peer for _, peer in by_seed),
        "unit": "s to target",
        "ratio": statistics.median(quotients),
        "interval": (min(quotients), max(quotients)),
        "peer_name": "TRL GRPOTrainer",
        "target": target,
        "initial": ours[0].points[0].pass_rate,
        "seeds": len(ours),
        "reached": reached,
        "lower_bound": reached["trl"] < len(trl) and reached["ours"] == len(ours),
        "samples_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "samples_per_s_ratio": statistics.median(rates["ours"]) / statistics.median(rates["trl"]),
        "final": {
            "ours": statistics.median(run.points[-1].pass_rate for run in ours),
            "trl": statistics.median(run.points[-1].pass_rate for run in trl),
        },
        "wall_s": {
            "ours": statistics.median(run.wall_s for run in ours),
            "trl": statistics.median(run.wall_s for run in trl),
        },
        "lr": {"ours": lr[0], "trl": lr[1]},
        "trl_settings": vars(setting),
    }


def _seconds(found: float | None, run: Outcome) -> str:
    return f"{found:.1f}" if found is not None else f"> {run.elapsed:.1f}"


if __name__ == "__main__":
    main()
