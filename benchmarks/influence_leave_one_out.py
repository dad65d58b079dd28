"""Ground truth without noise: leaving out each example of a convex model, exactly (2509.26544 asks for it; 1703.04730 did it).

Logistic regression (10 classes, 650 weights, ridge) on 200 of scikit-learn's digits, a tenth of the labels wrong, trained to its
minimum by L-BFGS, and again without each single example. Compared are the changes of 50 queries' losses with each method's
scores: Spearman's correlation over examples, mean over queries; and the slope of the change on score·β, which is 1 where a
score is the derivative by an example's weight. λ is the ridge itself, draws are cold (β = 1,000), so that both laws agree.
"exact" is the influence function with the dense Hessian.

    python benchmarks/influence_leave_one_out.py [--quick] [--seeds 3]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _common import finish, machine, print_table, show_interval
from _digits import Digits, make_board
from postgrad.influence import ops
from postgrad.influence.api import run

RIDGE, BETA = 0.01, 1000.0
METHODS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "ekfac": {},
    "stein": {},
    "laplace": {"draws": 4000},
    "langevin": {"draws": 4000, "thin": 2, "burn_in": 100},
}


def fit(images: Tensor, labels: Tensor, weights: Tensor, start: nn.Linear | None = None) -> nn.Linear:
    """Minimum of Σ weight·loss/Σ all + ridge/2·‖w‖², in double precision."""
    torch.manual_seed(0)
    module = nn.Linear(images.shape[1], 10).double()
    if start is not None:
        module.load_state_dict(start.state_dict())
    else:
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    optimizer = torch.optim.LBFGS(
        module.parameters(),
        max_iter=500,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = F.cross_entropy(module(images), labels, reduction="none")
        loss = (weights * losses).sum() / len(images)
        norm = torch.stack([parameter.square().sum() for parameter in module.parameters()]).sum()
        loss = loss + RIDGE / 2 * norm
        loss.backward()
        return loss

    optimizer.step(closure)
    return module


def measure(seed: int, num_train: int, num_queries: int) -> dict[str, tuple[float, float, float]]:
    """(rank correlation, slope, seconds) of each method."""
    board = make_board(0.1, seed)
    images, labels = board.images[:num_train].double(), board.labels[:num_train]
    query_images, query_labels = board.query_images[:num_queries].double(), board.query_labels[:num_queries]
    ones = torch.ones(num_train, dtype=torch.float64)
    module = fit(images, labels, ones)

    def losses(one: nn.Linear) -> Tensor:
        with torch.no_grad():
            return F.cross_entropy(one(query_images), query_labels, reduction="none")

    before = losses(module)
    changes = torch.empty(num_queries, num_train, dtype=torch.float64)
    for left_out in range(num_train):
        weights = ones.clone()
        weights[left_out] = 0
        changes[:, left_out] = losses(fit(images, labels, weights, module)) - before
    single = module.float()
    train = Digits(single, images.float(), labels)
    queries = Digits(single, query_images.float(), query_labels)
    started = time.monotonic()
    scores = exact(single.double(), images, labels, query_images, query_labels)
    found = {"exact": _compare(scores, changes, time.monotonic() - started)}
    single = single.float()
    for method, options in METHODS.items():
        started = time.monotonic()
        result = run(
            single, train, queries, method=method, damping=RIDGE, beta=BETA, parameters=".", batch_size=1000,
            check_step=False, tokens=False, **options,
        )  # fmt: skip
        seconds = time.monotonic() - started
        scores = result.scores.double() * (1.0 if method == "gradient" else BETA)
        found[method] = _compare(scores, changes, seconds)
    return found


def _compare(scores: Tensor, changes: Tensor, seconds: float) -> tuple[float, float, float]:
    slope = float((scores * changes).sum() / scores.square().sum())
    return float(ops.spearman(scores, changes).mean()), slope, seconds


def exact(
    module: nn.Linear, images: Tensor, labels: Tensor, query_images: Tensor, query_labels: Tensor
) -> Tensor:
    """∇ℓ_jᵀ(H + λ)⁻¹∇ℓ_i/N with the dense Hessian of the mean loss [Q, N]."""

    def inputs(some: Tensor) -> Tensor:
        return torch.cat([some, torch.ones_like(some[:, :1])], 1)

    def gradients(some: Tensor, own: Tensor) -> Tensor:
        residual = module(some).softmax(-1) - F.one_hot(own, 10)
        return torch.einsum("nc,ni->nci", residual, inputs(some)).flatten(1)

    with torch.no_grad():
        shares, read = module(images).softmax(-1), inputs(images)
        inner = torch.diag_embed(shares) - shares[:, :, None] * shares[:, None, :]
        hessian = torch.einsum("ncd,ni,nj->cidj", inner, read, read) / len(images)
        size = read.shape[1] * 10
        damped = hessian.reshape(size, size) + RIDGE * torch.eye(size, dtype=read.dtype)
        solved = torch.linalg.solve(damped, gradients(images, labels).T)
        return gradients(query_images, query_labels) @ solved / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, 40 examples")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = (40, 20) if options.quick else (200, 50)
    found = [measure(seed, *sizes) for seed in range(1 if options.quick else options.seeds)]
    rows = [
        [method, *(show_interval([one[method][part] for one in found]) for part in range(3))]
        for method in ("exact", *METHODS)
    ]
    print_table(
        f"Leaving out each of {sizes[0]} examples, {len(found)} sets",
        ["method", "rank correlation", "slope", "seconds"],
        rows,
    )
    ours, peer = ([one[method][0] for one in found] for method in ("langevin", "ekfac"))
    finish(
        "influence_leave_one_out",
        sum(ours) / len(ours),
        sum(peer) / len(peer),
        "rank correlation with exact leave-one-out, Langevin chains; peer: EK-FAC",
        sum(ours) / sum(peer),
        (
            min(a / b for a, b in zip(ours, peer, strict=True)),
            max(a / b for a, b in zip(ours, peer, strict=True)),
        ),
        machine=machine(1),
    )


if __name__ == "__main__":
    main()
