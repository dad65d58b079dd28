"""Are the thoughts found that were planted? Ours, without a penalty from the same first weights or random ones, FastICA, and
FastICA in which no thought takes two places (`baselines.unfold`, the first weights of ours).

Laplace thoughts, three agents, a leaky MLP for each state dimension that sees 1 to 4 of its agent's thoughts
(`_planted_thoughts.py`). MCC: assignment made on 10,000 samples, scored on 4,000 others. B: support of the Jacobian by entries
(|J| > 0.07 of the row's largest) and by agents (> 0.1 of the largest). R²: linear, by blocks of thoughts with the same agents.

    python benchmarks/thought_identifiability.py [--quick] [--dims 8 16 32 64] [--seeds 5] [--budget 0.02]

λ, the number of updates and the tolerance of an entry were chosen on seeds 100 to 103, which are not reported.
"""

from __future__ import annotations

import argparse
import time

import torch

from _common import finish, machine, mean_interval, print_table, show_interval
from _planted_thoughts import Planted, Score, plant, score
from postgrad.thought import ops
from postgrad.thought.autoencoder import fit
from postgrad.thought.baselines import fast_ica, unfold
from postgrad.thought.config import AutoencoderConfig
from postgrad.thought.structure import read_structure

WAYS = ("ours", "same start, no penalty", "no penalty", "unfolded FastICA", "FastICA")
BARS = Score(0.95, float("nan"), 0.95, float("nan"))
ENTRY_TOLERANCE = 0.07


def by_autoencoder(planted: Planted, config: AutoencoderConfig) -> Score:
    """Fits, and scores what was found."""
    model = fit(planted.states, planted.widths, config).autoencoder
    structure = read_structure(model, planted.states[:2000])
    with torch.no_grad():
        found = model.encode(planted.states), model.encode(planted.states_score)
    return score(planted, *found, structure.jacobian_rms, structure.held, ENTRY_TOLERANCE)


def by_ica(planted: Planted, way: str, seed: int, tolerance: float) -> Score:
    """FastICA; its mixing matrix, by standardised states, is the Jacobian."""
    run = unfold if way == "unfolded FastICA" else fast_ica
    standardised = (planted.states - planted.states.mean(0)) / planted.states.std(0)
    score_states = (planted.states_score - planted.states.mean(0)) / planted.states.std(0)
    ica = run(standardised, planted.thoughts.shape[1], torch.Generator().manual_seed(seed))
    jacobian = ica.mixing.abs().float()
    agents = torch.repeat_interleave(torch.arange(len(planted.widths)), torch.tensor(planted.widths))
    held = ops.binarise(ops.agent_rms(jacobian, agents, len(planted.widths)), tolerance)
    found = ica.sources(standardised), ica.sources(score_states)
    return score(planted, *found, jacobian, held, ENTRY_TOLERANCE)


def main() -> None:
    """Every way on every dimension and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="dimension 8, 2 seeds, 300 updates")
    parser.add_argument("--dims", type=int, nargs="+", help="default 8 16 32 64 (quick: 8)")
    parser.add_argument("--seeds", type=int, help="default 5 (quick: 2)")
    parser.add_argument("--start", choices=("ica", "random"), default="ica")
    parser.add_argument("--penalty", type=float, default=0.05)
    parser.add_argument("--budget", type=float, help="find λ by this budget of reconstruction instead")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dims = options.dims or ([8] if options.quick else [8, 16, 32, 64])
    seeds = options.seeds or (2 if options.quick else 5)
    steps = (100, 200, 100) if options.quick else (100, 700, 1200)
    penalty = options.penalty if options.budget is None else None
    found: dict[tuple[int, str], list[Score]] = {}
    for dim in dims:
        for seed in range(seeds):
            planted = plant(dim, seed)
            ours = AutoencoderConfig(
                num_thoughts=dim, seed=seed, start=options.start, backend="sampled",
                penalty=penalty, budget=options.budget or 0.15,
                warmup_steps=0, ramp_steps=steps[0], sparse_steps=steps[1], refit_steps=steps[2],
            )  # fmt: skip
            free = ours.model_copy(
                update={
                    "penalty": 0.0,
                    "start": "random",
                    "sparse_steps": steps[1] + steps[2],
                    "refit_steps": 0,
                }
            )
            configs = {
                "ours": ours,
                "same start, no penalty": free.model_copy(update={"start": ours.start}),
                "no penalty": free,
            }
            for way in options.ways:
                started = time.process_time()
                config = configs.get(way)
                one = (
                    by_autoencoder(planted, config) if config else by_ica(planted, way, seed, ours.tolerance)
                )
                found.setdefault((dim, way), []).append(one)
                shown = ", ".join(f"{name} {value:.3f}" for name, value in one._asdict().items())
                print(
                    f"{dim} seed {seed} {way}: {shown} ({time.process_time() - started:.0f} CPU s)",
                    flush=True,
                )
    rows = [
        [f"{dim}: {way}", *(show_interval(list(values)) for values in zip(*scores, strict=True))]
        for (dim, way), scores in found.items()
    ]
    print_table(
        f"Planted thoughts found, mean ± 95 % over {seeds} seeds; bars: MCC 0.95, B F1 0.95",
        ["thoughts", "MCC", "block R²", "B F1", "agents' B F1"],
        rows,
    )
    mean = {
        f"{dim} {way}": {
            name: mean_interval(values)[0]
            for name, values in zip(Score._fields, zip(*scores, strict=True), strict=True)
        }
        for (dim, way), scores in found.items()
    }  # fmt: skip
    ours = [one.mcc for (_, way), scores in found.items() if way == "ours" for one in scores]
    peer = [one.mcc for (_, way), scores in found.items() if way == "FastICA" for one in scores]
    by_fit = [a / b for a, b in zip(ours, peer, strict=True)]
    finish(
        "thought_identifiability",
        sum(ours) / len(ours),
        sum(peer) / len(peer),
        "MCC out of sample, mean over dimensions and seeds",
        sum(ours) / sum(peer),
        (min(by_fit), max(by_fit)),
        peer_name="FastICA",
        seeds=seeds,
        dims=dims,
        penalty=options.penalty if options.budget is None else f"by a budget of {options.budget}",
        start=options.start,
        mean=mean,
        bars_reached={
            str(dim): mean[f"{dim} ours"]["mcc"] >= BARS.mcc
            and mean[f"{dim} ours"]["support_f1"] >= BARS.support_f1
            for dim in dims
        },
        **machine(options.threads),
    )


if __name__ == "__main__":
    main()
