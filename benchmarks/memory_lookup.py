"""Finding the best k of N keys: product keys (1907.05242) against all keys, the same answer.

Ours compares a query with A + B half keys (A·B = N) and the few pairs that can win; the peer with all N. Timed per token and
head, since the peer cannot hold the scores of as many tokens at once. FLOP per token and head: (A + B)·d against 2·N·d.

    python benchmarks/memory_lookup.py [--quick] [--slots 1048576] [--key-dim 256] [--k 32]
"""

from __future__ import annotations

import argparse

import torch

from _common import finish, interleave, machine, print_table, ratios
from postgrad.core.models.memory.ops import flat_lookup, half_sizes, product_lookup


def main() -> None:
    """Checks that both find the same, then times them in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds, 65,536 keys")
    parser.add_argument("--slots", type=int, help="N, default 1,048,576 (quick: 65,536)")
    parser.add_argument("--key-dim", type=int, default=256)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=4096, help="of ours; the peer gets 16")
    parser.add_argument("--rounds", type=int, help="default 5 (quick: 2)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    slots = options.slots or (2**16 if options.quick else 2**20)
    first, second = half_sizes(slots)
    half = options.key_dim // 2
    generator = torch.Generator().manual_seed(0)
    halves = [torch.randn(options.tokens, 1, half, generator=generator) for _ in range(2)]
    keys = [torch.randn(1, size, half, generator=generator) for size in (first, second)]
    every = torch.cat(
        [
            keys[0].unsqueeze(2).expand(-1, -1, second, -1).reshape(1, slots, half),
            keys[1].unsqueeze(1).expand(-1, first, -1, -1).reshape(1, slots, half),
        ],
        -1,
    )
    few = [part[:16] for part in halves]
    ours, theirs = product_lookup(*few, *keys, options.k), flat_lookup(torch.cat(few, -1), every, options.k)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-3)

    def product() -> int:
        product_lookup(*halves, *keys, options.k)
        return options.tokens

    def exhaustive() -> int:
        flat_lookup(torch.cat(few, -1), every, options.k)
        return len(few[0])

    rates = interleave(
        {"product": product, "exhaustive": exhaustive}, options.rounds or (2 if options.quick else 5)
    )
    ratio, interval = ratios(rates["product"], rates["exhaustive"])
    median = {name: sorted(found)[len(found) // 2] for name, found in rates.items()}
    rows = [[name, 1e6 / value, value] for name, value in median.items()]
    print_table(f"Best {options.k} of {slots:,} keys", ["", "µs per token and head", "tokens/s"], rows)
    finish(
        "memory_lookup",
        median["product"],
        median["exhaustive"],
        "tokens/s, one head",
        ratio,
        interval,
        peer_name="scores of all keys",
        slots=slots,
        flop_ratio=2 * slots * options.key_dim / ((first + second) * options.key_dim),
        **machine(options.threads),
    )


if __name__ == "__main__":
    main()
