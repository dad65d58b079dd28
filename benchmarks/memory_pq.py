"""Finding the best k of N flat keys: product quantisation against all keys; how much it finds and how long it takes.

Three kinds of keys and queries, all queries normed as in the layer: `random`, keys as they are at first and Gaussian queries;
`near a key`, the same keys and queries that are one of them plus noise, whose other k − 1 best are as hard as random ones;
`clusters`, keys around 1,024 centres, as far from them as the centres are from each other, and queries likewise near a key. Timed
per token and head, the codes being there already; the JSON has the default setting on random keys.

    python benchmarks/memory_pq.py [--quick] [--slots 65536] [--key-dim 256] [--k 32]
"""

from __future__ import annotations

import argparse
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from _common import finish, interleave, machine, print_table, ratios
from postgrad.core.models.memory.config import MemoryConfig
from postgrad.core.models.memory.ops import flat_lookup
from postgrad.core.models.memory.pq import build, pq_lookup, recall_at_k

DEFAULT = MemoryConfig(layers=(0,))
SETTINGS = [(1.0, 64), (1.0, 128), (1.0, 256), (1.0, 512), (1 / 16, 256), (1 / 64, 256)]
"""(share of cells, candidates)."""


def sets(slots: int, dim: int, tokens: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Keys [1, N, d] and queries [T, 1, d] by kind."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def near(keys: Tensor, noise: float) -> Tensor:
        return keys[torch.randint(0, slots, (tokens,), generator=generator)] + noise * normal(tokens, dim)

    first = (2 * torch.rand(slots, dim, generator=generator) - 1) / math.sqrt(dim)
    clusters = normal(1024, dim)[torch.randint(0, 1024, (slots,), generator=generator)] + normal(slots, dim)
    made = {
        "random": (first, normal(tokens, dim)),
        "near a key": (first, near(first, float(first.std()))),
        "clusters": (clusters, near(clusters, 1.0)),
    }
    return {name: (keys[None], F.layer_norm(query, (dim,))[:, None]) for name, (keys, query) in made.items()}


def main() -> None:
    """Recall and speed of each setting on each kind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds, 4,096 keys")
    parser.add_argument("--slots", type=int, help="N, default 65,536 (quick: 4,096)")
    parser.add_argument("--key-dim", type=int, default=256)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--subvectors", type=int, default=DEFAULT.pq_subvectors)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, help="default 5 (quick: 2)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    slots = options.slots or (2**12 if options.quick else 2**16)
    rounds = options.rounds or (2 if options.quick else 5)
    rows: list[list[object]] = []
    results: dict[str, dict[str, float]] = {}
    headline = (0.0, 0.0, 0.0, (0.0, 0.0))
    build_s, built = 0.0, {}
    for kind, (keys, query) in sets(slots, options.key_dim, options.tokens).items():
        if keys.data_ptr() not in built:
            started = time.perf_counter()
            generator = torch.Generator().manual_seed(0)
            built[keys.data_ptr()] = [build(keys[0], options.subvectors, DEFAULT.pq_codes, generator)]
            build_s = time.perf_counter() - started
        codes = built[keys.data_ptr()]

        def run(setting: tuple[float, int] | None, query: Tensor = query, keys: Tensor = keys, codes=codes):
            if setting is None:
                for block in query.split(
                    64
                ):  # as pq's blocks: the scores of all tokens would not fit at large N
                    flat_lookup(block, keys, options.k)
            else:
                pq_lookup(query, keys, codes, options.k, *setting)
            return len(query)

        exact = flat_lookup(query, keys, options.k).slots
        names = {"all keys": None, **{f"{share:.3g}, {m}": (share, m) for share, m in SETTINGS}}
        rates = interleave({name: lambda s=s: run(s) for name, s in names.items()}, rounds)
        for name, setting in names.items():
            ratio, interval = ratios(rates[name], rates["all keys"])
            median = sorted(rates[name])[rounds // 2]
            recall = 1.0
            if setting is not None:
                found = pq_lookup(query, keys, codes, options.k, *setting)
                recall = float(recall_at_k(found.slots, exact))
            rows.append([f"{kind}: {name}", recall, 1e6 / median, ratio])
            results.setdefault(kind, {})[name] = recall
            if kind == "random" and setting == (DEFAULT.pq_share, DEFAULT.pq_candidates):
                headline = (median, sorted(rates["all keys"])[rounds // 2], ratio, interval)
    print_table(
        f"Best {options.k} of {slots:,} keys of width {options.key_dim}; share of cells, candidates",
        ["", "recall", "µs per token and head", "÷ all keys' rate"],
        rows,
    )
    print(f"codes of one head: {build_s:.1f} s")
    cells = 2 * math.isqrt(slots)
    table = cells + DEFAULT.pq_codes + DEFAULT.pq_candidates
    work = 2 * table * options.key_dim + slots * (options.subvectors + 1)
    ours, peer, ratio, interval = headline
    finish(
        "memory_pq",
        ours,
        peer,
        "tokens/s, one head, default setting on random keys",
        ratio,
        interval,
        peer_name="scores of all keys",
        slots=slots,
        subvectors=options.subvectors,
        recall=results,
        build_s=build_s,
        flop_ratio=2 * slots * options.key_dim / work,
        **machine(options.threads),
    )


if __name__ == "__main__":
    main()
