"""One step of sparse memory finetuning on its value table (arXiv 2510.15103): read, gradient of t rows, SGD.

Ours reads by `embedding_bag` and takes the gradient of the chosen rows alone (`core/models/memory/ops.py`). The peers do what is
usual: a dense gradient of the table, masked to the chosen rows, and a dense SGD step; and a mask in the forward pass (the
paper's listing as known at second hand, its text was not at hand),
values·mask + (values − values·mask).detach(), which builds tensors of the table's size in the forward pass already. All three
change the same rows by the same amounts (checked here before anything is timed).

The floor: the values that are read once in the forward pass, T·M·D, at the bandwidth of a plain copy measured in the same run.

    python benchmarks/memory_step.py [--quick] [--slots 1048576] [--width 256] [--tokens 4096] [--budget 500]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from _common import finish, interleave, machine, print_table, ratios
from postgrad.core.models.memory.ops import read_selected

LR = 0.1
READS = 128
"""M: four heads of 32 slots (paper)."""


class Table:
    """Values, what one batch reads of them, and the rows that may change."""

    def __init__(self, slots: int, width: int, tokens: int, budget: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.values = torch.randn(slots, width, generator=generator)
        self.slots = torch.randint(0, slots, (tokens, READS), generator=generator)
        self.slots[:, : READS // 4] %= 4 * budget  # some slots are read by many tokens
        self.weights = torch.rand(tokens, READS, generator=generator).softmax(-1)
        self.rows = (torch.randperm(4 * budget, generator=generator)[:budget]).sort().values
        self.target = torch.randn(tokens, width, generator=generator)

    def loss(self, y: Tensor) -> Tensor:
        """Anything whose gradient is dense in y."""
        return (y - self.target).square().sum()


def ours(table: Table) -> None:
    """The compact gradient."""
    active = table.values[table.rows].requires_grad_()
    table.loss(read_selected(active, table.values, table.slots, table.weights, table.rows)).backward()
    assert active.grad is not None
    table.values.index_add_(0, table.rows, active.grad, alpha=-LR)


def dense_and_mask(table: Table) -> None:
    """The dense gradient, masked."""
    values = table.values.requires_grad_()
    y = F.embedding_bag(table.slots, values, per_sample_weights=table.weights, mode="sum")
    table.loss(y).backward()
    with torch.no_grad():
        assert values.grad is not None
        mask = torch.zeros(len(values), 1)
        mask[table.rows] = 1
        values.grad.mul_(mask)
        values.sub_(values.grad, alpha=LR)
    values.grad = None
    table.values = values.detach()


def papers_listing(table: Table) -> None:
    """The mask in the forward pass."""
    values = table.values.requires_grad_()
    mask = torch.zeros(len(values), 1)
    mask[table.rows] = 1
    masked = values * mask + values.detach() - (values * mask).detach()
    y = F.embedding_bag(table.slots, masked, per_sample_weights=table.weights, mode="sum")
    table.loss(y).backward()
    with torch.no_grad():
        assert values.grad is not None
        values.sub_(values.grad, alpha=LR)
    values.grad = None
    table.values = values.detach()


CASES: dict[str, Callable[[Table], None]] = {
    "ours": ours,
    "dense and mask": dense_and_mask,
    "the paper's listing": papers_listing,
}


def check() -> None:
    """All cases do the same to a small table."""
    after: list[Tensor] = []
    for case in CASES.values():
        table = Table(2000, 8, 64, 50)
        case(table)
        after.append(table.values)
    for other in after[1:]:
        torch.testing.assert_close(after[0], other, rtol=1e-4, atol=1e-5)


def copy_bandwidth() -> float:
    """Bytes read and written per second by a plain copy of 256 MB."""
    source = torch.ones(64 * 2**20)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        best = max(best, 2 * source.numel() * 4 / (time.perf_counter() - started))
    return best


def main() -> None:
    """Times the cases in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds, a table of 131,072 slots")
    parser.add_argument("--slots", type=int, help="N, default 1,048,576 (quick: 131,072)")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--budget", type=int, default=500)
    parser.add_argument("--rounds", type=int, help="default 5 (quick: 2)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    check()
    slots = options.slots or (2**17 if options.quick else 2**20)
    table = Table(slots, options.width, options.tokens, options.budget)

    def one(case: Callable[[Table], None]) -> Callable[[], int]:
        def run() -> int:
            case(table)
            return 1

        return run

    cases = {name: one(case) for name, case in CASES.items()}
    for run in cases.values():
        run()
    rates = interleave(cases, options.rounds or (2 if options.quick else 5))
    read_bytes = options.tokens * READS * options.width * 4
    floor = read_bytes / copy_bandwidth()
    rows = []
    for name, found in rates.items():
        seconds = sorted(1 / rate for rate in found)
        ratio, (low, high) = ratios(rates["ours"], found)
        rows.append(
            [
                name,
                1000 * seconds[len(seconds) // 2],
                f"{ratio:.1f} [{low:.1f}, {high:.1f}]",
                floor / seconds[0],
            ]
        )
    title = f"One step, N = {slots:,}, D = {options.width}, T = {options.tokens}, M = {READS}, t = {options.budget}"
    print_table(title, ["", "ms", "ours is faster by", "share of the floor"], rows)
    ratio, interval = ratios(rates["ours"], rates["dense and mask"])
    listing, listing_interval = ratios(rates["ours"], rates["the paper's listing"])
    median = {name: 1 / sorted(found)[len(found) // 2] for name, found in rates.items()}
    finish(
        "memory_step",
        median["ours"],
        median["dense and mask"],
        "s per step",
        ratio,
        interval,
        peer_name="dense gradient, masked",
        listing={"s": median["the paper's listing"], "ratio": listing, "interval": listing_interval},
        floor_s=floor,
        **machine(options.threads),
    )


if __name__ == "__main__":
    main()
