"""Leave out what influence says is harmful, train again, and measure: the intervention (2509.26544 leaves it open).

The language-model board of influence_lds (`_planted.py`): 270 texts about 60 people, 30 of which tell something false. Of the
texts 10, 20 or 30 are left out, those with the lowest scores summed over the 60 questions, and the model is trained again from
its base; beside it as many at random (five choices), the false ones themselves ("oracle"), and those with the highest scores.
Reported is the mean loss of the true answers, two trainings each, and how many of those left out were false.

    python benchmarks/influence_prune.py [--quick] [--seeds 3] [--out DIR]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import _planted
from _common import finish, machine, print_table, show_interval
from postgrad.influence.api import run
from postgrad.influence.config import RetrainConfig
from postgrad.influence.data import Example
from postgrad.influence.problem import TextProblem

METHODS = ("stein", "ekfac", "gradient", "bm25")
COUNTS = (10, 20, 30)
RANDOM = 5


def rows_of(some: list[dict[str, str]]) -> list[Example]:
    """Examples of planted rows."""
    return [Example(row["id"], row.get("completion") or row["text"], row.get("prompt")) for row in some]


def measure(
    folder: Path, seed: int, counts: tuple[int, ...], trainings: int
) -> dict[str, tuple[float, float]]:
    """(mean loss after training without them, share of them that were false) by choice."""
    planted = _planted.plant(seed)
    config = RetrainConfig(**_planted.RETRAIN, max_tokens=64, seed=seed, batch_size=64)
    train, queries = rows_of(planted.train), rows_of(planted.queries)
    problem = TextProblem(_planted.base(folder, seed), train, queries, config, device="cpu")
    is_false = torch.tensor([any(one.id in ids for ids in planted.false) for one in train])
    generator = torch.Generator().manual_seed(seed)
    orders: dict[str, list[Tensor]] = {}
    for method in METHODS:
        scores = run(
            problem.module, problem.train, problem.queries, method=method, batch_size=64, tokens=False
        ).scores
        order = scores.double().sum(0).argsort(stable=True)
        orders[method] = [order]
        if method == "stein":
            orders["stein, highest"] = [order.flip(0)]
    orders["oracle"] = [is_false.float().argsort(descending=True, stable=True)]
    orders["random"] = [torch.randperm(len(train), generator=generator) for _ in range(RANDOM)]

    def loss(left_out: Tensor) -> float:
        keep = torch.ones(len(train), dtype=torch.bool)
        keep[left_out] = False
        indices = keep.nonzero()[:, 0].tolist()
        values = [float(problem.retrain(indices, seed + 1 + turn).mean()) for turn in range(trainings)]
        return sum(values) / len(values)

    found = {"all kept": (loss(torch.tensor([], dtype=torch.int64)), 0.0)}
    for name, some in orders.items():
        for count in counts:
            losses = [loss(order[:count]) for order in some]
            wrong = [float(is_false[order[:count]].float().mean()) for order in some]
            found[f"{name}, {count}"] = (sum(losses) / len(losses), sum(wrong) / len(wrong))
            print(f"seed {seed}, {name}, {count}: loss {found[f'{name}, {count}'][0]:.3f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, one number, one training each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keep the base models here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts, trainings = (COUNTS[-1:], 1) if options.quick else (COUNTS, 2)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        seeds = range(1 if options.quick else options.seeds)
        found = [measure(folder, seed, counts, trainings) for seed in seeds]
    rows = [
        [name, show_interval([one[name][0] for one in found]), show_interval([one[name][1] for one in found])]
        for name in found[0]
    ]
    print_table(
        f"Means over {len(found)} worlds", ["left out", "loss of true answers", "false among them"], rows
    )
    most = counts[-1]
    ours, peer, random = (
        [one[f"{name}, {most}"][0] for one in found] for name in ("stein", "ekfac", "random")
    )
    gained = [(r - o) / (r - p) for o, p, r in zip(ours, peer, random, strict=True)]
    finish(
        "influence_prune",
        sum(ours) / len(ours),
        sum(peer) / len(peer),
        f"loss of true answers without the {most} lowest texts; peer: EK-FAC; ratio: of what is gained over random choices",
        sum(gained) / len(gained),
        (min(gained), max(gained)),
        losses={name: sum(one[name][0] for one in found) / len(found) for name in found[0]},
        machine=machine(1),
    )


if __name__ == "__main__":
    main()
