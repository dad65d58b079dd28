"""Which background tells TF-IDF what to leave alone? An ablation of sparse memory finetuning (2510.15103).

The stream of memory_forgetting (100 new facts after 600 old ones; `kept` are questions of the 300 old facts that only the third
of these backgrounds holds), with the profile made of: half of the old facts, as in memory_forgetting; a twentieth of that; all
old facts; sentences of random words; nothing (term frequency alone). t = 32, 8 updates; means ± 95 % (Student's t) over seeds.

    python benchmarks/memory_background.py [--quick] [--seeds 5] [--out DIR]
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from _common import finish, machine, print_table, show_interval
from _people import Sizes, World, corpus
from postgrad.core.config import validate
from postgrad.core.models import Model, load
from postgrad.memory.batches import encode_texts, pad
from postgrad.memory.config import LearnConfig, ProfileConfig
from postgrad.memory.data import Fact
from postgrad.memory.evaluate import answer_questions
from postgrad.memory.profiling import Profile, profile
from postgrad.memory.sparse import SparseLearner

BACKGROUNDS = ("half of the old facts", "a twentieth of that", "all old facts", "random words", "none")
LEARNING_RATES = (5.0, 10.0)


def texts_of(world: World, name: str) -> list[str]:
    """The texts of a background."""
    rng = random.Random(world.seed)
    if name == "all old facts":
        return world.background + corpus(world.held_back)
    if name == "random words":
        words = sorted({word for text in world.background for word in text.split()})
        return [" ".join(rng.choices(words, k=7)) for _ in world.background]
    if name == "a twentieth of that":
        return rng.sample(world.background, len(world.background) // 20)
    return world.background


def share(model: Model, facts: Sequence[Fact]) -> float:
    """Of questions, answered exactly."""
    found = answer_questions(model, facts, 3).exact
    return sum(found) / len(found)


def run(world: World, name: str, rate: float) -> tuple[float, float]:
    """(learned, kept) of a stream."""
    model = load(world.path, device="cpu")
    found = (
        Profile.empty(model)
        if name == "none"
        else profile(model, texts_of(world, name), ProfileConfig(batches=1000, batch_tokens=24))
    )
    options = {"budget": 32, "updates": 8, "lr": rate, "score": "tf" if name == "none" else "tf_idf"}
    learner = SparseLearner(model, found, validate(LearnConfig, options))
    for fact in world.new:
        learner.learn(pad(model, encode_texts(model, fact.texts, 64, cut=False)))
    return share(model, world.new), share(model, world.held_back)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, a third of the facts")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="keep the models here; memory_forgetting's --out will do")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes, seeds = (Sizes(200, 25, 1200), 1) if options.quick else (Sizes(600, 100, 2500), options.seeds)
    rows: list[list[object]] = []
    kept_by_name: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        worlds = [World(options.out or Path(temporary), seed, sizes) for seed in range(seeds)]
        for name in BACKGROUNDS:
            for rate in LEARNING_RATES:
                learned, kept = zip(*(run(world, name, rate) for world in worlds), strict=True)
                rows.append([name, rate, show_interval(learned), show_interval(kept)])
                kept_by_name[f"{name}, lr {rate:g}"] = list(kept)
                print(*rows[-1], sep=", ", flush=True)
    print_table(f"{seeds} seeds", ["background", "lr", "learned", "kept"], rows)
    means = {name: sum(kept) / len(kept) for name, kept in kept_by_name.items()}
    ours, peer = (means[f"{name}, lr 5"] for name in (BACKGROUNDS[0], "none"))
    finish(
        "memory_background",
        ours,
        peer,
        "share of old facts kept, lr 5; peer: no background",
        ours / peer,
        (None, None),
        kept=means,
        machine=machine(1),
    )


if __name__ == "__main__":
    main()
