"""A thousand facts, one after the other: does the model collapse? (2510.15103)

The world of memory_forgetting: a small model that knows 500 facts is taught 1,000 new ones, each an edit of its own, and asked
every 100 edits: the last 100 facts that it was taught (`recent`), all so far (`learned`), 250 old facts that are not in the
background (`kept`), and the loss on background text. Settings are those that memory_forgetting chose on other seeds for
"learned >= 0.5" in streams of 100 (full finetuning never got there: those with which it learned most), so nothing was tuned for a
longer stream; and for sparse once more with steps of two fifths.

For sparse memory finetuning all thousand patches are then rolled back, latest first, and the table is compared bit by bit.

    python benchmarks/memory_stream.py [--quick] [--seeds 3] [--side 64] [--out DIR]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from _common import finish, machine, print_table
from _people import Sizes, World
from postgrad.core.config import validate
from postgrad.core.models import Model, load
from postgrad.core.models.memory.patch import Patch, apply_patch, tables
from postgrad.memory.batches import encode_texts, pad
from postgrad.memory.config import LearnConfig
from postgrad.memory.data import Fact
from postgrad.memory.evaluate import answer_questions, text_loss
from postgrad.memory.profiling import Profile
from postgrad.memory.rivals import Rival
from postgrad.memory.sparse import SparseLearner

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "sparse": {"budget": 32, "updates": 8, "lr": 5.0},
    "sparse, smaller steps": {"budget": 32, "updates": 8, "lr": 2.0},
    "full": {"method": "full", "updates": 8, "lr": 1e-4},
    "replay": {"method": "replay", "replay_fraction": 0.8, "updates": 8, "lr": 3e-4},
}


def share(model: Model, facts: Sequence[Fact]) -> float:
    """Of questions, answered exactly."""
    found = answer_questions(model, facts, 3).exact
    return sum(found) / len(found)


def run(world: World, method: str, every: int) -> tuple[list[dict[str, float]], bool | None]:
    """The course of a stream; for sparse, whether rolling everything back gives the same bits."""
    model = load(world.path, device="cpu")
    config = validate(LearnConfig, {"max_tokens": 64, **SETTINGS[method], "seed": world.seed})
    sparse = (
        SparseLearner(model, Profile.load(world.path, model), config) if config.method == "sparse" else None
    )
    rival = None if sparse else Rival(model, config, world.background)
    before = {name: table.detach().clone() for name, table in tables(model.module).items()}
    patches: list[Patch] = []
    course: list[dict[str, float]] = []
    for number, fact in enumerate(world.new, 1):
        batch = pad(model, encode_texts(model, fact.texts, 64, cut=False))
        if sparse is not None:
            patches.append(sparse.learn(batch).patch)
        elif rival is not None:
            rival.learn(batch)
        if number % every == 0:
            row = {
                "edits": float(number),
                "recent": share(model, world.new[number - every : number]),
                "learned": share(model, world.new[:number]),
                "kept": share(model, world.held_back),
                "loss": text_loss(model, world.background[:500]),
            }
            course.append(row)
            print(f"seed {world.seed}, {method}:", {k: round(v, 3) for k, v in row.items()}, flush=True)
    if not patches:
        return course, None
    for patch in reversed(patches):
        apply_patch(model.module, patch, undo=True)
    same = all(table.equal(before[name]) for name, table in tables(model.module).items())
    return course, same


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, 40 edits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", type=int, default=64, help="the memory has side² slots")
    parser.add_argument("--out", type=Path, help="keep the models here")
    parser.add_argument("--methods", default=";".join(SETTINGS), help="joined by semicolons")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes, seeds, every = Sizes(500, 1000, 2500), range(options.seeds), 100
    if options.quick:
        sizes, seeds, every = Sizes(200, 40, 1200), range(1), 20
    courses: dict[str, list[list[dict[str, float]]]] = {method: [] for method in options.methods.split(";")}
    exact: list[bool] = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in seeds:
            world = World(options.out or Path(temporary), seed, sizes, side=options.side)
            for method in courses:
                course, same = run(world, method, every)
                courses[method].append(course)
                exact += [] if same is None else [same]
    keys = ("recent", "learned", "kept", "loss")
    rows: list[list[object]] = []
    for method, some in courses.items():
        for index, point in enumerate(some[0]):
            means = [sum(course[index][key] for course in some) / len(some) for key in keys]
            rows.append([f"{method}, {point['edits']:.0f} edits", *means])
    print_table(f"Means over {len(seeds)} seeds", ["", *keys], rows)
    print(f"\nrolled back, the table has its old bits: {sum(exact)} of {len(exact)} seeds")
    last = {method: [course[-1] for course in some] for method, some in courses.items()}
    ours, peers = ([row["kept"] for row in last.get(method, ())] for method in ("sparse", "full"))
    finish(
        "memory_stream",
        sum(ours) / len(ours) if ours else None,
        sum(peers) / len(peers) if peers else None,
        "share of old facts kept after the stream; peer: full finetuning",
        None,
        (min(ours), max(ours)) if ours else (None, None),
        last=last,
        num_slots=options.side**2,
        rolled_back_exactly=all(exact),
        machine=machine(1),
    )


if __name__ == "__main__":
    main()
