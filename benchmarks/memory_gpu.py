"""A memory on a GPU: reading by Triton kernels (`core/models/memory/kernels.py`), its gradients, a whole layer and a whole step.

The yardstick is a plain copy on the same device in the same run, bytes read and written per second. Reading gathers T·M·D values,
once each (M = H·k = 128 slots of every token); at least 70 % of the copy's bytes per second are asked of it. The peers are what
torch has: `F.embedding_bag` for reading and for the gradient in the weights; for the gradient of t rows, and for the step, the
dense gradient of the table masked to these rows. All are compared on a small table before anything is timed.

Slots are drawn evenly from the table, but a quarter of each token's from 4·t of them, so that chosen rows have many readers.
The layer chooses its slots itself, by random keys; its bytes are those of the values alone.

    python benchmarks/memory_gpu.py [--quick] [--slots 1048576] [--width 1024] [--tokens 4096] [--budget 500]

Needs a CUDA device and Triton, and without them says so and exits with 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from _common import finish, interleave, machine, print_table, ratios
from postgrad.core.models.memory import MemoryConfig, MemoryLayer, kernels
from postgrad.core.models.memory.ops import read_selected

LR = 0.1
HEADS, TOP_K = 4, 32
READS = HEADS * TOP_K
"""M (paper: four heads of 32 slots)."""
ASKED = 0.7
"""Share of the copy's bytes per second that reading should reach."""
COPIED_BYTES = 2**30


class Sizes(NamedTuple):
    """N, D, T, t."""

    slots: int
    width: int
    tokens: int
    budget: int


class Work:
    """A table in bf16, what one batch reads of it, the gradient of what was read, and the rows that may change."""

    def __init__(self, sizes: Sizes, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
        generator = torch.Generator(device).manual_seed(0)
        options = {"generator": generator, "device": device}
        slots, width, tokens, budget = sizes
        self.values = torch.randn(slots, width, dtype=dtype, **options)
        self.slots = torch.randint(0, slots, (tokens, READS), **options)
        self.slots[:, : READS // 4] %= 4 * budget
        self.weights = torch.rand(tokens, READS, **options).softmax(-1)
        self.gradient = torch.randn(tokens, width, dtype=dtype, **options)
        self.rows = torch.randperm(4 * budget, **options)[:budget].sort().values
        self.mask = torch.zeros(slots, 1, dtype=dtype, device=device)
        self.mask[self.rows] = 1


def bags(work: Work, values: Tensor, weights: Tensor) -> Tensor:
    """What is read, by torch's own operation."""
    return F.embedding_bag(work.slots, values, per_sample_weights=weights.to(values.dtype), mode="sum")


def read(work: Work) -> Tensor:
    """Reading by the kernel."""
    return kernels.read(work.values, work.slots, work.weights)


def read_by_bags(work: Work) -> Tensor:
    """Reading by embedding_bag."""
    return bags(work, work.values, work.weights)


def weights_gradient(work: Work) -> Tensor:
    """The gradient in the weights by the kernel."""
    return kernels.weights_gradient(work.gradient, work.values, work.slots)


def read_and_weights_gradient(work: Work) -> Tensor:
    """Reading and the gradient in the weights by the kernels, as the peer cannot do one without the other."""
    read(work)
    return weights_gradient(work)


def read_and_weights_gradient_by_bags(work: Work) -> Tensor:
    """Reading and the gradient in the weights by embedding_bag."""
    weights = work.weights.detach().requires_grad_()
    return torch.autograd.grad(bags(work, work.values, weights), weights, work.gradient)[0]


def rows_gradient(work: Work) -> Tensor:
    """The gradient of the chosen rows by the kernel."""
    return kernels.selected_gradient(work.gradient, work.slots, work.weights, work.rows)


def read_and_rows_gradient(work: Work) -> Tensor:
    """Reading and the gradient of the chosen rows by the kernels."""
    read(work)
    return rows_gradient(work)


def read_and_dense_gradient(work: Work) -> Tensor:
    """Reading, and the gradient of the whole table, masked, of which the chosen rows are returned."""
    values = work.values.detach().requires_grad_()
    dense = torch.autograd.grad(bags(work, values, work.weights), values, work.gradient)[0]
    return dense.mul_(work.mask)[work.rows]


def step(work: Work) -> Tensor:
    """Reading, both gradients, SGD on the chosen rows."""
    active = work.values[work.rows].requires_grad_()
    weights = work.weights.detach().requires_grad_()
    y = read_selected(active, work.values, work.slots, weights, work.rows)
    y.backward(work.gradient)
    assert active.grad is not None
    work.values.index_add_(0, work.rows, active.grad, alpha=-LR)
    return work.values


def dense_step(work: Work) -> Tensor:
    """The same by the dense gradient, masked, and SGD on the whole table."""
    values, weights = work.values.detach().requires_grad_(), work.weights.detach().requires_grad_()
    bags(work, values, weights).backward(work.gradient)
    assert values.grad is not None
    work.values.sub_(values.grad.mul_(work.mask), alpha=LR)
    return work.values


PAIRS: list[tuple[str, Callable[[Work], Tensor], str, Callable[[Work], Tensor]]] = [
    ("read", read, "read: embedding_bag", read_by_bags),
    (
        "read, gradient in the weights",
        read_and_weights_gradient,
        "read, gradient in the weights: embedding_bag",
        read_and_weights_gradient_by_bags,
    ),
    (
        "read, gradient of t rows",
        read_and_rows_gradient,
        "read, dense gradient, masked",
        read_and_dense_gradient,
    ),
    ("step on t rows", step, "step by the dense gradient, masked", dense_step),
]


def check(device: torch.device) -> None:
    """Ours and the peer's do the same, in fp32 on a small table."""
    sizes = Sizes(2000, 33, 64, 50)
    for _, ours, _, peer in PAIRS:
        found, expected = (case(Work(sizes, device, torch.float32)) for case in (ours, peer))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def memory_layer(sizes: Sizes, device: torch.device) -> MemoryLayer:
    """A whole layer in bf16, with product keys."""
    config = MemoryConfig(layers=(0,), mode="replace", num_slots=sizes.slots, num_heads=HEADS, top_k=TOP_K)
    with device:
        layer = MemoryLayer(config, sizes.width).to(torch.bfloat16)
    layer.reset(torch.Generator(device).manual_seed(0))
    return layer.requires_grad_(False)


def measure(sizes: Sizes, device: torch.device, rounds: int, repeats: int) -> dict[str, list[float]]:
    """Calls per second of everything, round by round; each measurement is `repeats` calls."""
    work, layer = Work(sizes, device), memory_layer(sizes, device)
    x = torch.randn(sizes.tokens, sizes.width, device=device, dtype=torch.bfloat16)
    source = torch.ones(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)

    def often(call: Callable[[], object]) -> Callable[[], int]:
        def run() -> int:
            for _ in range(repeats):
                call()
            return repeats

        return run

    cases = {"copy": often(lambda: target.copy_(source)), "layer": often(lambda: layer(x))}
    cases["gradient in the weights"] = often(lambda: weights_gradient(work))
    cases["gradient of t rows"] = often(lambda: rows_gradient(work))
    for name, ours, peer_name, peer in PAIRS:
        cases[name] = often(lambda call=ours: call(work))
        cases[peer_name] = often(lambda call=peer: call(work))
    for run in cases.values():
        run()  # compiles the kernels
    return interleave(cases, rounds, torch.cuda.synchronize)


def report(sizes: Sizes, rates: Mapping[str, list[float]], device_name: str) -> None:
    """The tables and the JSON line."""
    read_bytes = sizes.tokens * READS * sizes.width * 2
    median = {name: sorted(found)[len(found) // 2] for name, found in rates.items()}
    copied = 2 * COPIED_BYTES * median["copy"]
    gathers = ["read", "read: embedding_bag", "gradient in the weights", "layer"]
    rows: list[list[object]] = [["copy", 1000 / median["copy"], copied / 1e9, 1.0]]
    for name in gathers:
        speed = read_bytes * median[name]
        rows.append([name, 1000 / median[name], speed / 1e9, speed / copied])
    title = (
        f"{device_name}, bf16, N = {sizes.slots:,}, D = {sizes.width}, T = {sizes.tokens}, M = {READS}, "
        f"t = {sizes.budget}"
    )
    print_table(title, ["", "ms", "GB/s", "share of the copy"], rows)
    rows = [["gradient of t rows", 1000 / median["gradient of t rows"], None, None]]
    compared: dict[str, object] = {}
    for name, _, peer_name, _ in PAIRS:
        ratio, (low, high) = ratios(rates[name], rates[peer_name])
        shown = f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
        rows.append([name, 1000 / median[name], 1000 / median[peer_name], shown])
        compared[name] = {
            "s": 1 / median[name],
            "peer": peer_name,
            "peer_s": 1 / median[peer_name],
            "ratio": ratio,
            "interval": [low, high],
        }
    print_table("Against torch's operations", ["", "ms", "peer, ms", "ours is faster by"], rows)
    share = read_bytes * median["read"] / copied
    print(f"\nReading reaches {share:.0%} of the copy's bytes per second; asked: {ASKED:.0%}.")
    ratio, interval = ratios(rates["read"], rates["read: embedding_bag"])
    finish(
        "memory_gpu",
        read_bytes * median["read"],
        read_bytes * median["read: embedding_bag"],
        "bytes/s",
        ratio,
        interval,
        peer_name="F.embedding_bag",
        copy_bytes_per_s=copied,
        share_of_copy=share,
        asked_share=ASKED,
        layer_bytes_per_s=read_bytes * median["layer"],
        weights_gradient_bytes_per_s=read_bytes * median["gradient in the weights"],
        rows_gradient_s=1 / median["gradient of t rows"],
        compared=compared,
        **sizes._asdict(),
        device=device_name,
        **machine(torch.get_num_threads()),
    )


def main() -> None:
    """Times everything in turn on the current CUDA device."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds, a table of 131,072 slots")
    parser.add_argument("--slots", type=int, help="N, default 1,048,576 (quick: 131,072)")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--budget", type=int, default=500)
    parser.add_argument("--rounds", type=int, help="default 7 (quick: 3)")
    parser.add_argument("--repeats", type=int, default=10, help="calls in one measurement")
    options = parser.parse_args()
    if not torch.cuda.is_available() or not kernels.available():
        missing = "Triton with a C compiler" if torch.cuda.is_available() else "CUDA device"
        print(f"The memory's kernels are measured on a GPU, and here is no {missing}.", file=sys.stderr)
        raise SystemExit(2)
    device = torch.device("cuda")
    check(device)
    slots = options.slots or (2**17 if options.quick else 2**20)
    sizes = Sizes(slots, options.width, options.tokens, options.budget)
    rates = measure(sizes, device, options.rounds or (3 if options.quick else 7), options.repeats)
    report(sizes, rates, torch.cuda.get_device_name(device))


if __name__ == "__main__":
    main()
