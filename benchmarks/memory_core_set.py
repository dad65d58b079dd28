"""Do the chosen rows hold the core set of a fact, and which tokens read them? (2510.15103)

The core set of a fact: the slots that all its sentences read, question included. For 100 new facts of the world of
memory_forgetting the rows that a first update would choose (by TF-IDF, by term frequency alone, by KL) are compared with it:
`held`, the share of the core set among the chosen rows; `background`, the share of the background's batches that read a chosen
row, on average. Then which tokens read the rows chosen by TF-IDF: of the weight that a token's look-ups put on any slot, the
share on chosen rows, by kind of token.

    python benchmarks/memory_core_set.py [--quick] [--seeds 5] [--out DIR] [--figure FILE.svg]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from _common import finish, machine, print_table, show_interval
from _people import Sizes, World
from postgrad.core.models import Model, load
from postgrad.memory import ops
from postgrad.memory.core_set import Reading, core_set, readings, share_of_rows
from postgrad.memory.data import Fact
from postgrad.memory.profiling import Profile, require_memory

BUDGETS = (8, 32, 128)
SHOWN = 4
"""Facts in the figure."""
KINDS = ("name", "word before the object", "object", "other words")


def kinds(words: Sequence[str], fact: Fact) -> list[str]:
    """Of the words of a fact's sentence or question; the end of a question is before the object, which is the answer."""
    name = fact.texts[0].split()[:2]
    following = [*words[1:], fact.answer]
    return [
        "name"
        if word in name
        else "object"
        if word == fact.answer
        else "word before the object"
        if after == fact.answer
        else "other words"
        for word, after in zip(words, following, strict=True)
    ]


class Study:
    """Of one seed's facts."""

    def __init__(self, world: World) -> None:
        self.model: Model = load(world.path, device="cpu")
        ((self.layer, layer),) = require_memory(self.model).items()
        self.slots = layer.config.num_slots
        self.profile = Profile.load(world.path, self.model)
        self.facts = world.new
        self.told = [readings(self.model, fact.texts) for fact in self.facts]
        self.asked = [readings(self.model, [fact.question or ""])[0] for fact in self.facts]

    def rows(self, told: Sequence[Reading], score: str, budget: int) -> Tensor:
        """What a first update would choose; the stop token's reads count, as in an edit."""
        counts = ops.access_counts(torch.cat([reading.slots[self.layer] for reading in told]), self.slots)
        batches, total = self.profile.batch_counts[self.layer], self.profile.num_batches
        scores = {
            "tf_idf": lambda: ops.tf_idf(counts, batches, total),
            "tf": lambda: ops.term_frequency(counts),
            "kl": lambda: ops.kl_score(counts, self.profile.counts[self.layer].float()),
        }[score]()
        return ops.choose_rows(scores, counts, budget)

    def held(self, score: str, budget: int) -> tuple[float, float]:
        """Share of core sets among the chosen rows; share of background batches that read a chosen row."""
        shares, used = [], []
        batches = self.profile.batch_counts[self.layer] / self.profile.num_batches
        for told, asked in zip(self.told, self.asked, strict=True):
            core = core_set([*told, asked], self.layer)
            rows = self.rows(told, score, budget)
            shares.append(float(torch.isin(core, rows).float().mean()))
            used.append(float(batches[rows].mean()))
        return sum(shares) / len(shares), sum(used) / len(used)

    def sizes(self) -> tuple[float, float]:
        """Slots that a fact's sentences read together, and of its core set."""
        read = [len(torch.cat([r.slots[self.layer].flatten() for r in told]).unique()) for told in self.told]
        core = [
            len(core_set([*told, asked], self.layer))
            for told, asked in zip(self.told, self.asked, strict=True)
        ]
        return sum(read) / len(read), sum(core) / len(core)

    def tokens(self, index: int, budget: int) -> list[tuple[list[str], list[float]]]:
        """Words and shares of a fact's sentences and question."""
        rows = {self.layer: self.rows(self.told[index], "tf_idf", budget)}
        return [(r.tokens, share_of_rows(r, rows)) for r in (*self.told[index], self.asked[index])]

    def by_kind(self, budget: int) -> dict[str, float]:
        """Mean share of chosen rows in what tokens read, by kind."""
        found: dict[str, list[float]] = {name: [] for name in KINDS}
        for index, fact in enumerate(self.facts):
            for words, shares in self.tokens(index, budget):
                known = [word.strip() for word in words if not word.startswith("<")]
                for kind, share in zip(kinds(known, fact), shares, strict=False):
                    found[kind].append(share)
        return {name: sum(values) / len(values) for name, values in found.items()}


def draw(study: Study, budget: int) -> str:
    """Sentences of a few facts, each word shaded by the share of chosen rows in what it reads."""
    height, size, lines = 26, 15, []
    y = 10
    for index in range(SHOWN):
        for words, shares in study.tokens(index, budget):
            x = 10.0
            for word, share in zip(words, shares, strict=True):
                if word.startswith("<"):
                    continue
                width = 9 * len(word.strip()) + 12
                lines.append(
                    f'<rect x="{x:g}" y="{y}" width="{width}" height="{height - 4}" rx="3" fill="#b9772b" '
                    f'fill-opacity="{share:.2f}"/>'
                    f'<text x="{x + width / 2:g}" y="{y + 16}" text-anchor="middle">{escape(word.strip())}</text>'
                )
                x += width + 3
            y += height
        y += 12
    style = f'font-family="monospace" font-size="{size}" fill="#1c1c1a"'
    page = f'<rect width="520" height="{y}" fill="#fcfbf8"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 520 {y}" {style}>{page}{"".join(lines)}</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, a quarter of the facts")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="keep the models here; memory_forgetting's --out will do")
    parser.add_argument("--figure", type=Path, help="write the picture of the first seed's facts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes, seeds = (Sizes(200, 25, 1200), 1) if options.quick else (Sizes(600, 100, 2500), options.seeds)
    with tempfile.TemporaryDirectory() as temporary:
        studies = [Study(World(options.out or Path(temporary), seed, sizes)) for seed in range(seeds)]
    read, core = zip(*(study.sizes() for study in studies), strict=True)
    print(
        f"\na fact's sentences read {show_interval(read)} different slots; its core set has {show_interval(core)}"
    )
    held: dict[str, Mapping[str, float]] = {}
    rows: list[list[object]] = []
    for score in ("tf_idf", "tf", "kl"):
        for budget in BUDGETS:
            shares, used = zip(*(study.held(score, budget) for study in studies), strict=True)
            rows.append([f"{score}, t = {budget}", show_interval(shares), show_interval(used)])
            held[f"{score} {budget}"] = {"held": sum(shares) / seeds, "background": sum(used) / seeds}
    print_table("Chosen rows and core sets", ["", "held", "background"], rows)
    found = [study.by_kind(32) for study in studies]
    by_kind = {name: [one[name] for one in found] for name in KINDS}
    print_table(
        "Share of chosen rows (TF-IDF, t = 32) in what tokens read",
        ["kind", "share"],
        [[name, show_interval(values)] for name, values in by_kind.items()],
    )
    if options.figure is not None:
        options.figure.write_text(draw(studies[0], 32), encoding="utf-8")
    ours, peer = held["tf_idf 32"]["background"], held["tf 32"]["background"]
    finish(
        "memory_core_set",
        ours,
        peer,
        "share of background batches that read a chosen row, t = 32; peer: term frequency alone",
        peer / max(ours, 1e-9),
        (None, None),
        slots_read=sum(read) / seeds,
        core_set=sum(core) / seeds,
        held=held,
        by_kind={name: sum(values) / seeds for name, values in by_kind.items()},
        machine=machine(1),
    )


if __name__ == "__main__":
    main()
