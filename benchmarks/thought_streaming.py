"""Does the autoencoder train at the paper's size in little memory? 3 agents of width 4,096, 1,024 thoughts, on the processor.

States are random, of half precision, in a memory-mapped file. One `fit` with a few updates in each part, for the peak of the
process's memory (`ru_maxrss`, which counts the pages of the file that were read); then updates alone, for their time beside the
floor: their multiply-adds at the speed of a large float32 product on the same threads. `--start ica` makes the first weights by
`unfold`, which takes long at this size.

    python benchmarks/thought_streaming.py [--quick] [--start ica]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from _common import finish, machine, print_table
from postgrad.thought import ops
from postgrad.thought.autoencoder import Autoencoder, fit, spread
from postgrad.thought.config import AutoencoderConfig


def peak_gb() -> float:
    """Largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median wall-clock seconds of some rounds, after one that is not counted."""
    work()
    found: list[float] = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def mapped_states(path: Path, samples: int, width: int) -> Tensor:
    """Correlated random states [S, H] of half precision in a memory-mapped file, written in blocks."""
    states = torch.from_file(str(path), shared=True, size=samples * width, dtype=torch.float16)
    states = states.view(samples, width)
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(256, width, generator=generator) / 16
    for block in states.split(256):
        block.copy_(torch.randn(len(block), 256, generator=generator).pow(3) @ mixing)
    return states


def update_flops(model: Autoencoder, batch: int) -> float:
    """Of one update with the sampled penalty, 2 a multiply-add: weights 6 a state (4 where states are the input, whose gradient
    nobody needs), and every row of every agent once for the Jacobian, forward and twice backward."""
    first = model.encode_in.numel() + model.encode_skip.numel()
    later = model.encode_out.numel() + model.decode_in.numel() + sum(out.numel() for out in model.decode_out)
    config = model.config
    return (
        batch * (4 * first + 6 * later) + 6 * sum(model.widths) * config.decoder_units * config.num_thoughts
    )


def main() -> None:
    """One fit, a few updates, the floor."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="3 agents of width 512, 128 thoughts")
    parser.add_argument("--width", type=int, help="of each of 3 agents; default 4096 (quick: 512)")
    parser.add_argument("--thoughts", type=int, help="default 1024 (quick: 128)")
    parser.add_argument("--samples", type=int, help="states; default 8192 (quick: 2048)")
    parser.add_argument("--start", choices=("ica", "random"), default="random")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    width, thoughts = options.width or (512 if options.quick else 4096), options.thoughts
    thoughts = thoughts or (128 if options.quick else 1024)
    samples = options.samples or (2048 if options.quick else 8192)
    config = AutoencoderConfig(
        num_thoughts=thoughts, start=options.start, penalty=0.05, backend="sampled", jacobian_states=8,
        warmup_steps=1, ramp_steps=1, sparse_steps=1, refit_steps=2,
    )  # fmt: skip
    before = peak_gb()
    with tempfile.TemporaryDirectory() as folder:
        states = mapped_states(Path(folder) / "states", samples, 3 * width)
        started = time.perf_counter()
        model = fit(states, [width] * 3, config).autoencoder
        fitted_s, peak = time.perf_counter() - started, peak_gb()
        seen = model.standardise(spread(states, config.batch_size).float())
    parameters = sum(one.numel() for one in model.parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(1)
    model.train()

    def update() -> None:
        error, l1 = model.losses(seen, generator)
        optimizer.zero_grad()
        ops.autoencoder_loss(error, l1, 0.05).backward()
        optimizer.step()

    square = torch.randn(2048, 2048, generator=generator)
    rate = 2 * 2048**3 / seconds(lambda: square @ square, 5)
    update_s = seconds(update, 3)
    floor_s = update_flops(model, len(seen)) / rate
    print_table(
        f"{3 * width} states × {thoughts} thoughts, {samples} samples, batch {len(seen)}, start {options.start}",
        ["", "value"],
        [
            ["parameters", parameters],
            ["peak memory, GB", peak],
            ["  before there were states, GB", before],
            ["  weights, gradients, Adam, GB", 16 * parameters / 1e9],
            ["  states as one float32 tensor, GB", 4 * samples * 3 * width / 1e9],
            ["the whole fit with 5 updates, s", fitted_s],
            ["one update, s", update_s],
            ["floor of one update, s", floor_s],
            ["a large product, GFLOP/s", rate / 1e9],
        ],
    )
    finish(
        "thought_streaming",
        update_s,
        floor_s,
        "seconds an update (peer: the floor by multiply-adds)",
        floor_s / update_s,
        (None, None),
        peak_gb=peak,
        fit_s=fitted_s,
        parameters=parameters,
        states=3 * width,
        thoughts=thoughts,
        samples=samples,
        start=options.start,
        **machine(options.threads),
    )


if __name__ == "__main__":
    main()
