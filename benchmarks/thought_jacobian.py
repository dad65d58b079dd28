"""‖J‖₁ of a decoder, forward and backward: `torch.func.jacrev` against ours; CPU seconds, and how far off an estimate is.

The decoder has one hidden layer: Z 128 thoughts, K 256 hidden units, H 768 states, batch 64. `sampled` is the default there:
each of the 768 rows once, at samples dealt evenly. Errors are of one update's estimate, relative to the exact value: of ‖J‖₁, and
of its gradient (by W₂, ‖estimate − exact‖/‖exact‖), which Adam then averages over updates.

    python benchmarks/thought_jacobian.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from _common import finish, machine, print_table
from postgrad.thought import jacobian

LEAK = 0.2


def main() -> None:
    """Seconds and errors of every way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds, 20 draws")
    parser.add_argument("--thoughts", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--states", type=int, default=768)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, help="default 5 (quick: 2)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds, draws = options.rounds or (2 if options.quick else 5), 20 if options.quick else 200
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight_in = (normal(options.hidden, options.thoughts) / options.thoughts**0.5).requires_grad_()
    weight_out = (normal(options.states, options.hidden) / options.hidden**0.5).requires_grad_()
    bias, thoughts = normal(options.hidden), normal(options.batch, options.thoughts)

    def slopes() -> Tensor:
        return torch.where(F.linear(thoughts, weight_in, bias) > 0, 1.0, LEAK)

    def by_jacrev() -> Tensor:
        def decode(one: Tensor) -> Tensor:
            return F.linear(F.leaky_relu(F.linear(one, weight_in, bias), LEAK), weight_out)

        whole = torch.func.vmap(torch.func.jacrev(decode))(thoughts)  # [S, H, Z]
        return whole.abs().sum() / (options.batch * options.states)

    def by(backend: jacobian.Backend) -> Callable[[], Tensor]:
        return lambda: jacobian.penalty(backend, slopes(), weight_in, weight_out, generator)

    ways: dict[str, Callable[[], Tensor]] = {
        "jacrev": by_jacrev,
        "exact": by("exact"),
        "sampled": by("sampled"),
        "group": by("group"),
        "path": by("path"),
    }
    sizes = options.batch, options.thoughts, options.hidden, options.states
    default = jacobian.choose_backend(*sizes, 2**25)
    values: dict[str, float] = {}
    gradients: dict[str, Tensor] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first round warms up
        for name, way in ways.items():
            weight_in.grad = weight_out.grad = None
            turns = 1 if name in ("jacrev", "exact") else 10
            started = time.process_time()
            for _ in range(turns):
                value = way()
                value.backward()
            spent = (time.process_time() - started) / turns
            if turn:
                seconds[name].append(spent)
            values[name] = float(value.detach())
            assert weight_out.grad is not None
            gradients[name] = weight_out.grad / turns
    estimates, errors = [], []
    for _ in range(draws):
        weight_in.grad = weight_out.grad = None
        value = by("sampled")()
        value.backward()
        estimates.append(float(value.detach()) / values["exact"] - 1)
        assert weight_out.grad is not None
        errors.append(float((weight_out.grad - gradients["exact"]).norm() / gradients["exact"].norm()))
    rows = []
    for name in ways:
        by_round = [a / b for a, b in zip(seconds["jacrev"], seconds[name], strict=True)]
        shown = name + (" (default)" if name == default else "")
        rows.append(
            [shown, 1e3 * statistics.median(seconds[name]), statistics.median(by_round), values[name]]
        )
    title = "‖J‖₁ forward and backward, Z {1}, K {2}, H {3}, batch {0}".format(*sizes)
    print_table(title, ["", "CPU ms", "× faster than jacrev", "value (one draw)"], rows)
    spread, bias_found = statistics.stdev(estimates), statistics.fmean(estimates)
    print(
        f"sampled: one estimate is within ±{spread:.2%} (1 sd over {draws} draws); mean of all "
        f"{bias_found:+.3%} ± {spread / draws**0.5:.3%}; gradient of W₂ off by {statistics.fmean(errors):.0%} in one draw"
    )
    by_round = [a / b for a, b in zip(seconds["jacrev"], seconds[default], strict=True)]
    finish(
        "thought_jacobian",
        statistics.median(seconds[default]),
        statistics.median(seconds["jacrev"]),
        "CPU seconds, forward and backward, default backend",
        statistics.median(by_round),
        (min(by_round), max(by_round)),
        peer_name="torch.func.jacrev",
        backend=default,
        seconds={name: statistics.median(found) for name, found in seconds.items()},
        estimate_sd=spread,
        estimate_bias=bias_found,
        gradient_error=statistics.fmean(errors),
        jacrev_agrees=abs(values["jacrev"] / values["exact"] - 1) < 1e-4,
        **machine(options.threads),
    )


if __name__ == "__main__":
    main()
