"""Learning one fact, end to end: sparse memory finetuning beside full finetuning and LoRA (peft) of the same model.

A model with random weights (speed does not depend on them) and one memory in the place of its middle MLP learns batches of
paraphrases: forward, loss, backward, update, by the room's own learners (`SparseLearner`, `Rival`), as often per fact as
`--updates` says. Interleaved rounds. Sparse finetuning differentiates the blocks from the memory on, with all weights frozen but
the chosen rows, and computes what comes before once per fact.

Its floor in matrix products, relative to full finetuning of the same model (forward 1, backward 2): with L blocks, the memory in
block m, U updates and the head counted as a block of its own size, ((m / U) + 2 (L - m)) / 3 L.

    python benchmarks/memory_edit.py [--quick] [--width 512] [--layers 8] [--slots 262144] [--updates 8] [--rounds 5]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from _common import finish, interleave, machine, print_table, ratios
from _people import small_model
from postgrad.core.config import validate
from postgrad.core.models import Model
from postgrad.core.models.memory import MemoryConfig, attach
from postgrad.memory.batches import TokenBatch
from postgrad.memory.config import LearnConfig
from postgrad.memory.profiling import Profile
from postgrad.memory.rivals import Rival
from postgrad.memory.sparse import SparseLearner

VOCABULARY = 8192
PARAPHRASES, LENGTH = 16, 32


def make_model(options: argparse.Namespace) -> Model:
    """Random weights."""
    torch.manual_seed(0)
    width = options.width
    shape = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=options.layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        head_dim=64,
        tie_word_embeddings=True,
    )
    model = Model(Qwen3ForCausalLM(shape).eval(), small_model(0).tokenizer, source="random")
    place = options.layers // 2
    memory = {"layers": (place,), "mode": "replace", "num_slots": options.slots, "top_k": 32}
    attach(model.module, validate(MemoryConfig, memory))
    return model


def learner(method: str, options: argparse.Namespace) -> Callable[[TokenBatch], object]:
    """`learn` of a fresh model's learner."""
    model = make_model(options)
    sparse = {"score": "tf", "lr": 1.0} if method == "sparse" else {}
    config = validate(LearnConfig, {"method": method, "updates": options.updates, **sparse})
    if method == "sparse":
        return SparseLearner(model, Profile.empty(model), config).learn
    return Rival(model, config).learn


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small model, two rounds")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--slots", type=int, default=512**2)
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.quick:
        options.width, options.layers, options.slots, options.rounds = 128, 4, 128**2, 2
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (PARAPHRASES, LENGTH), generator=generator)
    batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))

    learners = {method: learner(method, options) for method in ("sparse", "full", "lora")}

    def case(method: str) -> Callable[[], int]:
        def run() -> int:
            learners[method](batch)
            return 1

        return run

    cases = {method: case(method) for method in learners}
    for warm_up in cases.values():
        warm_up()
    rates = interleave(cases, options.rounds)
    place, blocks = options.layers // 2, options.layers
    floor = (place / options.updates + 2 * (blocks - place)) / (3 * blocks)
    rows = []
    compared = {method: ratios(rates["sparse"], rates[method]) for method in cases}
    for method, speeds in rates.items():
        ratio, (low, high) = compared[method]
        seconds = sorted(1 / speed for speed in speeds)[len(speeds) // 2]
        rows.append([method, seconds, f"{ratio:.2f} [{low:.2f}, {high:.2f}]"])
    print_table("One fact", ["method", "seconds", "sparse is faster by"], rows)
    against_full = compared["full"][0]
    print(f"\nfloor of matrix products: {floor:.2f} of full finetuning's, so {1 / floor:.2f} times faster")
    finish(
        "memory_edit",
        sorted(rates["sparse"])[len(rates["sparse"]) // 2],
        sorted(rates["full"])[len(rates["full"]) // 2],
        "facts per second; peer: full finetuning",
        against_full,
        compared["full"][1],
        lora={"ratio": compared["lora"][0], "interval": compared["lora"][1]},
        floor=1 / floor,
        machine=machine(torch.get_num_threads()),
    )


if __name__ == "__main__":
    main()
