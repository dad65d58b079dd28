"""Where the KL is put decides whether MARA (arXiv 2510.20817) finds both answers: categorical policies with a known optimum.

One prompt, 16 answers, two of them good; the reference gives these .60 and .02, and .38 to the rest evenly. P(rare | good)
should be ½. Table 1: Adam, every place of the KL and every deviation. Table 2: plain SGD, where the rare answer starves
before it is learnt, and the remedies: a quarter of each group from the reference, or from replay of good answers seen, with
and without importance weights; the deviation with and without a floor of β times 1 nat. All seeds and all β of a row are
trained at once; mean and 95 % interval over seeds. The peer is MARA's reward dropped into GRPO as it stands (k3 in the
loss, advantages divided by the rewards' deviation).

    python benchmarks/mara_tabular.py [--quick] [--seeds 64]
"""

from __future__ import annotations

import argparse
import math
import os
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from _common import finish, machine, print_table
from postgrad.mara import theory
from postgrad.mara.tabular import Settings, Trained, train

BETAS = (0.1, 0.01, 0.001)
REF = torch.cat([torch.tensor([0.6, 0.02]), torch.full((14,), 0.38 / 14)])
REWARDS = torch.tensor([1.0, 1.0, *[0.0] * 14])
OURS, PEER = "MARA, k1 in reward, / deviation of total", "MARA, k3 loss, / deviation of R̃"
ADAM: dict[str, Settings] = {
    "vanilla, k1 in reward": Settings(augment=False, deviation="none"),
    "MARA, k1 in reward": Settings(deviation="none"),
    OURS: Settings(),
    f"{OURS}, at least 1 nat": Settings(min_deviation=1.0),
    f"{OURS}, at least 1 nat, ¼ replay": Settings(min_deviation=1.0, replay=0.25, importance_power=0.0),
    "MARA, k1 in reward, / deviation of R̃": Settings(deviation="augmented"),
    "MARA, k2 loss": Settings(placement="k2_loss", deviation="none"),
    "MARA, k2 loss, / deviation of R̃": Settings(placement="k2_loss", deviation="augmented"),
    "MARA, k3 loss": Settings(placement="k3_loss", deviation="none"),
    "MARA, k3 loss, leave-one-out mean": Settings(placement="k3_loss", deviation="none", leave_one_out=True),
    PEER: Settings(placement="k3_loss", deviation="augmented"),
}
REMEDIES: dict[str, dict[str, Any]] = {
    "no remedy": {},
    "¼ reference, weighted": {"reference_fraction": 0.25},
    "¼ reference, unweighted": {"reference_fraction": 0.25, "importance_power": 0.0},
    "¼ replay, weighted": {"replay": 0.25},
    "¼ replay, roots of weights": {"replay": 0.25, "importance_power": 0.5},
    "¼ replay, unweighted": {"replay": 0.25, "importance_power": 0.0},
}

SCALINGS: dict[str, dict[str, Any]] = {
    "": {"deviation": "none"},
    ", / deviation of total": {"deviation": "total"},
    ", / deviation of total, at least 1 nat": {"deviation": "total", "min_deviation": 1.0},
}


def measure(settings: Settings, seeds: int, seed: int) -> Trained:
    """All β × seeds of one row; results are [β, seeds]."""
    beta = torch.tensor(BETAS).repeat_interleave(seeds)
    found = train(REF, REWARDS, beta, settings, torch.Generator().manual_seed(seed))
    shape = (len(BETAS), seeds)
    rest = (found.rare_given_good, found.good_mass, found.steps_to_uniform)
    return Trained(found.policy.view(*shape, -1), *(part.view(shape) for part in rest))


def with_interval(values: Tensor) -> str:
    """Mean ± half of the 95 % interval of the mean over the last axis."""
    half = 1.96 * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{float(values.mean()):.3f} ± {half:.3f}"


def at_the_optimum(settings: Settings, beta: float) -> float | None:
    """P(rare | good) of the closed form; None where scaling by group leaves no one objective."""
    if settings.deviation == "augmented":
        return None
    ref = REF.double().numpy() / float(REF.double().sum())
    rewards = REWARDS.numpy()
    if settings.augment:
        rewards = theory.mara_rewards(ref, rewards, beta, settings.tau)
    if settings.placement != "k1_reward" and not settings.leave_one_out:
        rewards = rewards * (
            1 - 1 / settings.group_size
        )  # the mean over all of the group holds the sample itself
    forward = settings.placement == "k3_loss"
    optimum = (theory.forward_kl_optimum if forward else theory.reverse_kl_optimum)(ref, rewards, beta)
    return float(optimum[1] / optimum[:2].sum())


def row_of(name: str, found: Trained, theory_says: float | None) -> list[object]:
    """One line of a table."""
    steps = [float(values.median()) for values in found.steps_to_uniform]
    return [
        name,
        *(with_interval(values) for values in found.rare_given_good),
        "–" if theory_says is None else f"{theory_says:.3f}",
        f"{float(found.good_mass.mean(-1).min()):.3f}",
        " / ".join("never" if math.isinf(step) else f"{step:.0f}" for step in steps),
    ]


def uniformity(found: Trained) -> Tensor:
    """2·min(P, 1 − P) per seed, the mean over β: 1 = both answers equally likely, 0 = one is lost."""
    share = found.rare_given_good
    return 2 * torch.minimum(share, 1 - share).mean(0)


def main() -> None:
    """Runs both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="8 seeds; 1,500 steps of Adam, 3,000 of SGD")
    parser.add_argument("--seeds", type=int, help="default 64")
    parser.add_argument("--seed", type=int, default=0, help="of the generator")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = options.seeds or (8 if options.quick else 64)
    adam_steps, sgd_steps = (1500, 3000) if options.quick else (4000, 10_000)
    started = time.perf_counter()
    betas = [f"β = {beta}" for beta in BETAS]
    header = ["P(rare | good)", *betas, "theory, β = 0.1", "lowest good mass", "median steps to uniform"]

    adam = {
        name: measure(
            Settings(**{**vars(settings), "steps": adam_steps, "learning_rate": 0.05}), seeds, options.seed
        )
        for name, settings in ADAM.items()
    }
    title = f"MARA with Adam, learning rate 0.05, {adam_steps:,} steps, G = 8, {seeds} seeds"
    print_table(
        title, header, [row_of(name, found, at_the_optimum(ADAM[name], 0.1)) for name, found in adam.items()]
    )

    sgd: dict[str, Trained] = {}
    for scaling, given in SCALINGS.items():
        for name, remedy in REMEDIES.items():
            settings = Settings(optimizer="sgd", learning_rate=0.3, steps=sgd_steps, **given, **remedy)
            sgd[f"k1 in reward{scaling}; {name}"] = measure(settings, seeds, options.seed)
    title = f"MARA with plain SGD, learning rate 0.3, {sgd_steps:,} steps, G = 8, {seeds} seeds"
    print_table(title, header, [row_of(name, found, 0.5) for name, found in sgd.items()])

    ours, peer = uniformity(adam[OURS]), uniformity(adam[PEER])
    shares = {
        name: {
            str(beta): float(values.mean()) for beta, values in zip(BETAS, found.rare_given_good, strict=True)
        }
        for name, found in {**adam, **{f"SGD: {name}": found for name, found in sgd.items()}}.items()
    }
    half = 1.96 * float(ours.std()) / math.sqrt(seeds)
    finish(
        "mara_tabular",
        float(ours.mean()),
        float(peer.mean()),
        "2·min(P, 1 − P) of P(rare | good), mean over β",
        float(ours.mean() / peer.mean()),
        (float(ours.mean()) - half, float(ours.mean()) + half),
        peer_name="MARA dropped into GRPO: k3 in the loss, advantages divided by the rewards' deviation",
        ratio_is="ours over peer; interval: 95 %, of ours over seeds",
        seeds=seeds,
        seconds=time.perf_counter() - started,
        rare_given_good=shares,
        **machine(1),
    )


if __name__ == "__main__":
    main()
