"""How near to the model's own speed? Draws and gradients of influence beside bare passes over the same texts (2509.26544).

A Qwen3-type model, 64 training texts and 16 queries of 64 random tokens each. The floor of a Laplace draw is a forward pass over
both roles, of a Langevin step forward and backward over the training texts, of a draw of `stein` forward and backward over both.
Rates are tokens per second, in turn, the median of several rounds; the ratio is rate ÷ that of the bare passes in the same round.

    python benchmarks/influence_speed.py [--quick] [--rounds 5] [--device cpu]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from _common import finish, interleave, machine, print_table, ratios
from _people import small_model
from postgrad.core.models import Model
from postgrad.influence.config import InfluenceConfig
from postgrad.influence.data import Example
from postgrad.influence.ekfac import LayerBasis, fit
from postgrad.influence.examples import Texts
from postgrad.influence.layers import find_layers
from postgrad.influence.sampler import Chain, Posterior
from postgrad.influence.stein import SteinChain
from postgrad.influence.weights import borrowed, choose_parameters

LENGTH = 64


def make(width: int, layers: int, device: str) -> Model:
    """An untrained model with the words of the made-up people."""
    tokenizer = small_model(0).tokenizer
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        head_dim=32,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
    )
    return Model(Qwen3ForCausalLM(config).to(device).eval(), tokenizer, source="speed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small model, few texts, two rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    width, layers, num_train, num_queries = (64, 2, 32, 8) if options.quick else (128, 4, 64, 16)
    model = make(width, layers, options.device)
    module = model.module
    words = sorted(model.tokenizer.get_vocab())
    rng = random.Random(0)
    texts = [
        Example(str(n), " ".join(rng.choices(words, k=LENGTH - 1))) for n in range(num_train + num_queries)
    ]
    train, queries = (Texts(model, some, LENGTH) for some in (texts[:num_train], texts[num_train:]))
    tokens = [sum(len(ids) for ids in role.tokens) for role in (train, queries)]
    chosen = choose_parameters(module, "")
    config = InfluenceConfig(method="laplace", beta=100.0, damping=0.1, draws=10_000)

    def bare(roles: tuple[Texts, ...], *, backward: bool) -> Callable[[], int]:
        def case() -> int:
            for role in roles:
                for batch in role.batches(config.batch_size):
                    with torch.inference_mode(not backward):
                        losses = role.losses(batch)
                    if backward:
                        torch.autograd.grad(losses.sum(), parameters)
            return sum(len(ids) for role in roles for ids in role.tokens)

        return case

    with borrowed(module, chosen) as parameters:
        basis = LayerBasis(find_layers(module, chosen), parameters)
        fit(basis, parameters, train, config.batch_size, torch.Generator(basis.device).manual_seed(0))

        def posterior(method: Any) -> Posterior:
            return Posterior(parameters, train, basis, config.model_copy(update={"method": method}))

        laplace = Chain(posterior("laplace"), queries, 1.0, 0)
        langevin = Chain(
            Posterior(
                parameters, train, basis, config.model_copy(update={"method": "langevin", "burn_in": 10**9})
            ),
            queries, 0.01, 0,
        )  # fmt: skip
        chain = SteinChain(posterior("stein"), basis, parameters, 2, 0)

        def stein() -> int:
            chain.scores(queries, lambda _: None)
            return 2 * (sum(tokens) + tokens[0])  # each draw: curvature, queries and scores

        cases = {
            "forward, both roles": bare((train, queries), backward=False),
            "laplace, a draw": lambda: (laplace.advance(), sum(tokens))[1],
            "forward and backward, training": bare((train,), backward=True),
            "langevin, a step": lambda: (langevin.advance(), tokens[0])[1],
            "forward and backward, both roles": bare((train, queries), backward=True),
            "stein, two draws": stein,
        }
        rates = interleave(cases, 2 if options.quick else options.rounds)
    names = list(cases)
    rows: list[list[object]] = []
    found: dict[str, tuple[float, tuple[float, float]]] = {}
    for floor, ours in zip(names[::2], names[1::2], strict=True):
        found[ours] = ratios(rates[ours], rates[floor])
        for name in (floor, ours):
            median = sorted(rates[name])[len(rates[name]) // 2]
            rows.append([name, median, found[ours][0] if name == ours else None])
    print_table(f"{basis.size:,} weights sampled; tokens per second", ["", "rate", "÷ bare passes"], rows)
    first = names[1]
    finish(
        "influence_speed",
        sorted(rates[first])[len(rates[first]) // 2],
        sorted(rates[names[0]])[len(rates[names[0]]) // 2],
        "tokens/s of a Laplace draw; peer: forward only",
        *found[first],
        ratios={name: ratio for name, (ratio, _) in found.items()},
        machine=machine(options.threads),
    )


if __name__ == "__main__":
    main()
