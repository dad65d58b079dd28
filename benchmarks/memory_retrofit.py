"""A memory for a model that was trained without: what it costs in perplexity, and what can be taught then (2510.15103).

The world of memory_forgetting, but its model is trained as an ordinary one (all four MLPs, no memory). Then it gets a memory of
64² slots in block 2: beside the MLP (additive, scale 0.01 or 1), as it comes or trained for some updates on the background alone,
or in the place of the MLP and trained. Perplexity is that of the texts of old facts which are not in the background. Then the
stream of 100 new facts is taught, with the learning rate that was best on another seed (100) by the mean of learned and kept.

    python benchmarks/memory_retrofit.py [--quick] [--seeds 5] [--out DIR]
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from _common import finish, machine, print_table, show_interval
from _people import RATES, Sizes, World, corpus, memory_options
from postgrad.core.config import validate
from postgrad.core.models import load, save
from postgrad.core.models.memory import attach
from postgrad.memory.compare import Trial, trial
from postgrad.memory.config import HealConfig, LearnConfig
from postgrad.memory.evaluate import text_loss
from postgrad.memory.healing import heal
from postgrad.memory.learning import Probes

SEARCH_SEED = 100
LEARNING_RATES = (2.0, 10.0, 50.0, 250.0, 1000.0)
VARIANTS: Mapping[str, tuple[dict[str, Any], int]] = {
    "additive, scale 0.01, as it comes": ({"mode": "additive", "scale": 0.01}, 0),
    "additive, scale 1, 500 updates": ({"mode": "additive", "scale": 1.0}, 500),
    "replace, 500 updates": ({"mode": "replace"}, 500),
    "replace, 2000 updates": ({"mode": "replace"}, 2000),
}
"""(options of the memory, updates of its training)."""


class Retrofit:
    """A model that was given a memory, and its perplexity before and after."""

    def __init__(self, world: World, variant: str) -> None:
        options, steps = VARIANTS[variant]
        self.world = world
        texts = corpus(world.held_back)
        self.path = world.path.with_name(f"{world.path.name}-{variant.replace(' ', '_')}")
        model = load(world.path, device="cpu")
        self.before = math.exp(text_loss(model, texts))
        attach(model.module, memory_options(world.seed, **options))
        if steps:
            heal(model, world.background, HealConfig(steps=steps, batch_size=64, seed=world.seed, **RATES))
        self.after = math.exp(text_loss(model, texts))
        if not self.path.is_dir():
            save(model, self.path)
            world.profile(model).save(self.path)

    def teach(self, rate: float) -> Trial:
        """The stream of new facts."""
        config = validate(LearnConfig, {"budget": 32, "updates": 8, "lr": rate, "max_tokens": 64})
        probes = Probes(keep=tuple(self.world.held_back), answer_tokens=3)
        return trial(load(self.path, device="cpu"), self.path, self.world.new, config, probes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, a third of the facts")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="keep the models here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes, seeds = (
        (Sizes(200, 25, 1200), [0]) if options.quick else (Sizes(600, 100, 2500), list(range(options.seeds)))
    )
    rows: list[list[object]] = []
    summary: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        worlds = {seed: World(folder, seed, sizes, memory=False) for seed in (SEARCH_SEED, *seeds)}
        for variant in VARIANTS:
            tried = {rate: Retrofit(worlds[SEARCH_SEED], variant).teach(rate) for rate in LEARNING_RATES}
            rate = max(tried, key=lambda rate: sum(tried[rate].point))
            made = [Retrofit(worlds[seed], variant) for seed in seeds]
            found = [one.teach(rate) for one in made]
            columns = {
                "perplexity before": [one.before for one in made],
                "after": [one.after for one in made],
                "learned": [one.learned for one in found],
                "kept": [one.kept for one in found],
            }
            rows.append([variant, *(show_interval(values) for values in columns.values()), rate])
            summary[variant] = {name: sum(values) / len(values) for name, values in columns.items()} | {
                "lr": rate
            }
            print(variant, summary[variant], flush=True)
    print_table(
        f"Means over {len(seeds)} seeds",
        ["memory", "perplexity before", "after", "learned", "kept", "lr"],
        rows,
    )
    best = max(summary.values(), key=lambda one: one["learned"] + one["kept"])
    finish(
        "memory_retrofit",
        best["after"],
        best["perplexity before"],
        "perplexity of old facts with the memory; peer: without",
        best["perplexity before"] / best["after"],
        (None, None),
        variants=summary,
        seeds=seeds,
        machine=machine(1),
    )


if __name__ == "__main__":
    main()
