"""Wrong labels that a plain loss does not find (2509.26544 leaves such an intervention open).

Three sets of 1,000 digits: a tenth of the labels wrong at random; the same, learned by heart (400 epochs without weight decay,
so that the loss of wrong and right labels is nearly 0); and three fifths of the fours called nines throughout, which a network
learns as a rule. Signals are those of `postgrad influence mislabeled`: an example's loss, its score on itself, and minus its mean
score on 200 queries with true labels. Area under the ROC curve, chance is ½.

    python benchmarks/influence_mislabeled.py [--quick] [--seeds 5]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch

from _common import finish, machine, print_table, show_interval
from _digits import Board, make_board, trained
from postgrad.influence.api import run
from postgrad.influence.mislabeled import areas, signals

SETS: dict[str, dict[str, Any]] = {
    "at random": {},
    "at random, by heart": {"epochs": 400, "weight_decay": 0.0},
    "fours called nines": {},
}
METHODS = ("stein", "ekfac", "gradient")
SHARE = 0.6


def board_of(name: str, seed: int) -> Board:
    """Images with their wrong labels."""
    if name != "fours called nines":
        return make_board(0.1, seed)
    board = make_board(0.0, seed)
    generator = torch.Generator().manual_seed(seed)
    wrong = (board.labels == 4) & (torch.rand(len(board.labels), generator=generator) < SHARE)
    return replace(board, labels=torch.where(wrong, 9, board.labels), wrong=wrong)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, the first set")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[list[object]] = []
    summary: dict[str, dict[str, float]] = {}
    for name, training in list(SETS.items())[: 1 if options.quick else None]:
        found: dict[str, list[float]] = {}
        for seed in range(1 if options.quick else options.seeds):
            board = board_of(name, seed)
            module = trained(board, seed, **training)
            train, queries = board.examples(module)
            for method in METHODS:
                result = run(
                    module, train, queries, method=method, batch_size=1000, parameters=".", self_scores=True
                )
                known = areas(signals(result, with_queries=True), board.wrong.tolist())
                for signal, area in known.items():
                    key = signal if signal == "loss" else f"{signal}, {method}"
                    found.setdefault(key, []).append(area)
                found["loss"] = found["loss"][: seed + 1]
        summary[name] = {key: sum(values) / len(values) for key, values in found.items()}
        rows += [[f"{name}: {key}", show_interval(values)] for key, values in sorted(found.items())]
    print_table("Area under the ROC curve", ["set: signal", "area"], rows)
    hardest = list(summary)[-1]
    ours, peer = summary[hardest]["opponents, stein"], summary[hardest]["loss"]
    finish(
        "influence_mislabeled",
        ours,
        peer,
        f"area under the ROC curve, {hardest}; peer: the loss",
        ours / peer,
        (None, None),
        areas=summary,
        machine=machine(1),
    )


if __name__ == "__main__":
    main()
