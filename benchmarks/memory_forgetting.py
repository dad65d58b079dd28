"""What is lost when facts are learned: sparse memory finetuning beside full finetuning, LoRA, replay and EWC (2510.15103).

A small model (0.5 M parameters, a memory of 64² slots in the place of one of four MLPs) is trained on 600 made-up facts, told
in three sentences each and asked; it knows them all. Then a stream of 100 new facts is taught, one after the other, each from its
three sentences alone, and all are *asked*. `learned`: their questions answered exactly at the end of the stream. `kept`: the
questions of 300 old facts, which are not in the background. (The other 300 old facts are: TF-IDF counts their accesses, replay
rehearses them, EWC takes their Fisher information.) With `--stream documents` it is trained on 150 people's lives of four facts
each, and taught 25 more lives, each as one text.

Every method runs all settings of a grid on seeds of their own. Those on its front there (no other setting is better in learned
and kept) run on the seeds that are reported: so nothing is chosen by what is reported. "kept at learned >= x" is the setting
that on the search's seeds kept the most of those that learned at least x there; what it learned on the reported seeds stands
beside it. Intervals are 95 %, Student's t over seeds.

    python benchmarks/memory_forgetting.py [--stream documents] [--quick] [--seeds 5] [--jobs 2] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from _common import finish, machine, print_table, show_interval
from _people import Sizes, World
from postgrad.core.config import validate
from postgrad.core.figures import Figure, Line, standalone, to_svg
from postgrad.core.models import load
from postgrad.memory.compare import front, trial
from postgrad.memory.config import LearnConfig
from postgrad.memory.evaluate import answer_questions
from postgrad.memory.learning import Probes

SIZES = {"facts": Sizes(600, 100, 2500), "documents": Sizes(150, 25, 1500, 32)}
QUICK = {"facts": Sizes(200, 25, 1200), "documents": Sizes(40, 8, 1000, 32)}
BUDGETS = {"facts": (32, 128), "documents": (128, 512)}
SEARCH_SEEDS = {"facts": (100, 101), "documents": (100,)}
UPDATES = {"facts": (2, 8), "documents": (8,)}
LEVELS = (0.2, 0.35, 0.5, 0.65)
"""Of `learned`, where `kept` is compared."""
HEADLINE_LEVEL = 0.5
LEAST_LEARNED = 0.15
"""Settings that learned less on the search's seeds are not measured further, but for a method's last."""


def _grid(options: Mapping[str, Any], **axes: Sequence[Any]) -> list[dict[str, Any]]:
    found = [dict(options)]
    for name, values in axes.items():
        found = [{**one, name: value} for one in found for value in values]
    return found


def make_grid(budgets: Sequence[int], updates: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """All settings that are tried, by method."""
    rates, sgd_rates = (3e-5, 1e-4, 3e-4, 1e-3), (1, 2, 5, 10, 20)
    chosen = {"budget": budgets, "updates": updates, "lr": sgd_rates}
    return {
        "sparse": _grid({}, **chosen),
        "sparse, AdamW": _grid({"optimizer": "adamw"}, **{**chosen, "lr": (0.01, 0.03, 0.1, 0.3)}),
        "sparse, TF only": _grid({"score": "tf"}, **chosen),
        "sparse, KL": _grid({"score": "kl"}, **chosen),
        "sparse, all accessed": _grid({"score": "all"}, updates=updates, lr=sgd_rates),
        "full": _grid({"method": "full"}, updates=updates, lr=rates),
        "full, SGD": _grid(
            {"method": "full", "optimizer": "sgd"}, updates=updates, lr=(0.01, 0.03, 0.1, 0.3, 1.0)
        ),
        "LoRA": _grid({"method": "lora"}, lora_rank=(4, 16), updates=updates, lr=(1e-4, 3e-4, 1e-3, 3e-3)),
        "replay": _grid({"method": "replay"}, replay_fraction=(0.5, 0.8), updates=updates, lr=(*rates, 3e-3)),
        "replay, SGD": _grid(
            {"method": "replay", "optimizer": "sgd"},
            replay_fraction=(0.5, 0.8),
            updates=updates,
            lr=(0.1, 0.3, 1.0),
        ),
        "EWC": _grid({"method": "ewc"}, ewc_strength=(1e2, 1e4, 1e6), updates=updates, lr=rates),
    }


DRAWN = ("sparse", "full", "LoRA", "replay", "EWC", "sparse, all accessed")
RIVALS = ("full", "full, SGD", "LoRA", "replay", "replay, SGD", "EWC")


def stream(world: World, options: Mapping[str, Any]) -> dict[str, Any]:
    """One stream; a row of results."""
    model = load(world.path, device="cpu")
    config = validate(LearnConfig, {"max_tokens": 128, **options, "seed": world.seed})
    probes = Probes(keep=tuple(world.held_back), ask=tuple(world.ask), answer_tokens=3)
    found = trial(model, world.path, world.new, config, probes, world.background)
    rehearsed = answer_questions(model, world.in_background, 3).exact
    return {
        "learned": found.learned,
        "kept": found.kept,
        "kept_background": sum(rehearsed) / len(rehearsed),
        "seconds": found.seconds,
    }


class Job(NamedTuple):
    """A stream that is to be measured."""

    world: tuple[Path, int, Sizes, bool]
    method: str
    options: dict[str, Any]

    @property
    def key(self) -> tuple[int, str, str]:
        """(seed, method, setting)."""
        return self.world[1], self.method, json.dumps(self.options)


def work(job: Job) -> dict[str, Any]:
    """In a process of its own."""
    torch.set_num_threads(1)
    row = stream(World(*job.world), job.options)
    return {"seed": job.world[1], "method": job.method, "options": job.options, **row}


def make_world(world: tuple[Path, int, Sizes, bool]) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    World(*world)


class Results:
    """Rows by (seed, method, setting), in a file, so that a run goes on where it stopped."""

    def __init__(self, folder: Path, sizes: Sizes, documents: bool, processes: int) -> None:
        self.folder, self.sizes, self.documents = folder, sizes, documents
        self.path = folder / "results.jsonl"
        self.rows: dict[tuple[int, str, str], dict[str, Any]] = {}
        self.pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                self._keep(json.loads(line))

    def _keep(self, row: dict[str, Any]) -> None:
        self.rows[row["seed"], row["method"], json.dumps(row["options"])] = row

    def measure(self, settings: Mapping[str, Sequence[dict[str, Any]]], seeds: Sequence[int]) -> None:
        """Every setting on every seed, where it is not known yet."""
        worlds = [(self.folder, seed, self.sizes, self.documents) for seed in seeds]
        list(self.pool.map(make_world, worlds))
        jobs = [
            Job(world, method, options)
            for method, some in settings.items()
            for options in some
            for world in worlds
        ]
        jobs = [job for job in jobs if job.key not in self.rows]
        for number, row in enumerate(self.pool.map(work, jobs), 1):
            self._keep(row)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            shown = ", ".join(f"{name} {value}" for name, value in row["options"].items() if name != "method")
            print(
                f"{number}/{len(jobs)} seed {row['seed']}, {row['method']}, {shown}: learned {row['learned']:.2f}, "
                f"kept {row['kept']:.2f}",
                flush=True,
            )

    def get(self, seed: int, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """A measured row."""
        return self.rows[seed, method, json.dumps(options)]

    def mean(self, seeds: Sequence[int], method: str, options: Mapping[str, Any]) -> tuple[float, float]:
        """(learned, kept) over seeds."""
        rows = [self.get(seed, method, options) for seed in seeds]
        return sum(r["learned"] for r in rows) / len(rows), sum(r["kept"] for r in rows) / len(rows)


def fronts(
    results: Results, grid: Mapping[str, Sequence[dict[str, Any]]], seeds: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """The settings of each method that no other beats on the search's seeds, by what they learned."""
    found: dict[str, list[dict[str, Any]]] = {}
    for method, settings in grid.items():
        points = {results.mean(seeds, method, options): options for options in reversed(settings)}
        best = front(points)
        found[method] = [points[point] for point in best if point[0] >= LEAST_LEARNED] or [points[best[-1]]]
    return found


def choose(
    results: Results, method: str, settings: Sequence[dict[str, Any]], seeds: Sequence[int], level: float
) -> dict[str, Any] | None:
    """The setting that keeps the most of those that learn at least `level`, on the search's seeds."""
    reached = [(results.mean(seeds, method, s), s) for s in settings]
    reached = [(point, setting) for point, setting in reached if point[0] >= level]
    return max(reached, key=lambda pair: pair[0][1])[1] if reached else None


def draw(
    results: Results, chosen: Mapping[str, Sequence[dict[str, Any]]], seeds: Sequence[int], path: Path
) -> None:
    """Kept against learned: means over the reported seeds of the settings on each method's front."""
    columns: dict[str, list[float | None]] = {"learned": [], **{method: [] for method in DRAWN}}
    for method in DRAWN:
        for learned, kept in sorted(
            results.mean(seeds, method, options) for options in chosen.get(method, [])
        ):
            columns["learned"].append(learned)
            for name in DRAWN:
                columns[name].append(kept if name == method else None)
    figure = Figure(
        "memory_forgetting",
        "",
        "",
        columns,
        "learned",
        tuple(Line(name, name, style="points") for name in DRAWN if name in chosen),
        x_label="new facts learned",
        y_label="old facts kept",
        percent=True,
    )
    path.write_text(standalone(to_svg(figure, 720, 340)), encoding="utf-8")


def report(
    results: Results, chosen: Mapping[str, list[dict[str, Any]]], search: Sequence[int], seeds: Sequence[int]
) -> None:
    """The tables and the JSON line."""
    rows: list[list[object]] = []
    for method, settings in chosen.items():
        for options in settings:
            found = [results.get(seed, method, options) for seed in seeds]
            shown = ", ".join(
                f"{name} {value:g}" for name, value in options.items() if isinstance(value, (int, float))
            )
            columns = [
                show_interval([row[key] for row in found]) for key in ("learned", "kept", "kept_background")
            ]
            rows.append([method, shown, *columns, sum(row["seconds"] for row in found) / len(found)])
    header = ["method", "setting", "learned", "kept", "kept (background)", "seconds"]
    print_table(f"Settings on each method's front, {len(seeds)} seeds", header, rows)
    at: dict[str, dict[str, Any]] = {}
    for level in LEVELS:
        table: list[list[object]] = []
        at[str(level)] = {}
        for method, settings in chosen.items():
            options = choose(results, method, settings, search, level)
            if options is None:
                table.append([method, None, None, None])
                continue
            found = [results.get(seed, method, options) for seed in seeds]
            table.append(
                [
                    method,
                    *(show_interval([row[key] for row in found]) for key in ("learned", "kept")),
                    show_interval([1 - row["kept"] for row in found]),
                ]
            )
            at[str(level)][method] = [row["kept"] for row in found]
        print_table(f"At learned >= {level}", ["method", "learned", "kept", "forgotten"], table)
    level = str(HEADLINE_LEVEL)
    ours = at[level].get("sparse")
    rival = max((n for n in at[level] if n in RIVALS), key=lambda n: sum(at[level][n]), default=None)
    summary = {
        name: {method: sum(kept) / len(kept) for method, kept in methods.items()}
        for name, methods in at.items()
    }
    ratio, ends = None, (None, None)
    if ours and rival:
        lost, theirs = [1 - k for k in ours], [1 - k for k in at[level][rival]]
        ratio = sum(theirs) / sum(lost)
        by_seed = sorted(t / max(o, 1e-9) for t, o in zip(theirs, lost, strict=True))
        ends = (by_seed[0], by_seed[-1])
    finish(
        "memory_forgetting",
        sum(1 - k for k in ours) / len(ours) if ours else None,
        sum(1 - k for k in at[level][rival]) / len(at[level][rival]) if rival else None,
        f"share of old facts forgotten at learned >= {level}; peer: {rival}",
        ratio,
        ends,
        kept_at_learned=summary,
        seeds=list(seeds),
        machine=machine(torch.get_num_threads()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="one seed each, a quarter of the facts, three settings"
    )
    parser.add_argument("--stream", choices=list(SIZES), default="facts")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--out", type=Path, help="keep results here, and take up those that are there")
    parser.add_argument("--figure", type=Path, help="draw kept against learned into this SVG")
    parser.add_argument("--methods", help="joined by semicolons; default all")
    options = parser.parse_args()
    grid = make_grid(BUDGETS[options.stream], UPDATES[options.stream])
    if options.methods:
        grid = {method: grid[method] for method in options.methods.split(";")}
    sizes, search, seeds = SIZES[options.stream], SEARCH_SEEDS[options.stream], tuple(range(options.seeds))
    if options.quick:
        sizes, search, seeds = QUICK[options.stream], search[:1], (0,)
        grid = {name: settings[:: max(1, len(settings) // 3)] for name, settings in grid.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = Results(folder, sizes, options.stream == "documents", options.jobs)
        results.measure(grid, search)
        chosen = fronts(results, grid, search)
        results.measure(chosen, seeds)
        if options.figure is not None:
            draw(results, chosen, seeds, options.figure)
        report(results, chosen, search, seeds)


if __name__ == "__main__":
    main()
