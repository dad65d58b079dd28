"""How much can thoughts say? The split ledger (`_ledger.py`): three agents, four facts each, a query after the messages are made.

Nothing can be inferred: what an agent is not told it can only guess, so accuracy measures how much of the others' 24 bits comes
through. The adapter makes m virtual tokens of all thoughts and does not know the query. By m, and at the largest m by bits: each
thought is rounded to one of 2^b levels when the team is asked, not when it learns. Beside them exact ceilings: of an agent that
is told so many facts of each of the others by words, and of any message at all of so many bits.

Controls as in `thought_witnesses.py`; `text` tells one fact of each of the others, chosen before the query.

    python benchmarks/thought_ledger.py [--quick] [--seeds 5] [--vectors 1 2 4 8] [--folder DIR]
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import _ledger as world
from _common import finish, machine, mean_interval, print_table
from postgrad.core.config import nest, validate
from postgrad.core.models import Model
from postgrad.core.models.embedded import cache_root
from postgrad.core.types import Prompt
from postgrad.thought.agents import ModelAgent, Turn
from postgrad.thought.autoencoder import Autoencoder
from postgrad.thought.cases import Case
from postgrad.thought.config import TeamConfig
from postgrad.thought.evaluation import WAYS, Evaluation, evaluate
from postgrad.thought.learning import learn
from postgrad.thought.team import Team

VECTORS = (1, 2, 4, 8)
BITS = (1, 2, 3, 4, 8)
NUM_TRAIN, NUM_TEST = 12_000, 2_000
SETTINGS: Mapping[str, object] = {
    "answer_tokens": 2,
    "autoencoder.num_thoughts": 128,
    "autoencoder.budget": 0.05,
    "autoencoder.backend": "sampled",
    "autoencoder.warmup_steps": 300,
    "autoencoder.ramp_steps": 200,
    "autoencoder.sparse_steps": 500,
    "autoencoder.refit_steps": 500,
    "adapter.steps": 1000,
    "adapter.batch_size": 64,
    "adapter.hidden": 512,
    "adapter.lr": 2e-3,
    "adapter.checkpoint_every": 250,
}


def as_cases(dealt: Sequence[world.Case], seed: int) -> list[Case]:
    """Cases of the room; every agent is asked for a key that another holds or itself, drawn evenly."""
    rng = random.Random(f"queries {seed}")
    cases: list[Case] = []
    for case in dealt:
        key = rng.choice(world.KEYS)
        agents = range(world.NUM_AGENTS)
        cases.append(
            Case.of_texts(
                f"{case.id}/{key}",
                [world.view(case, agent) for agent in agents],
                world.answer(case, key),
                [world.ask(case, agent, key) for agent in agents],
                world.ask_all(case, key),
            )
        )
    return cases


def tell(dealt: Sequence[world.Case]) -> Any:
    """One fact of each of the others, chosen by the case alone, in the words that these models have learned to read."""
    by_id = {case.id: case for case in dealt}

    def messages(case: Case, agent: int, turns: Sequence[Turn]) -> Prompt:
        name, key = case.id.split("/")
        rng = random.Random(f"told {name}")
        facts = [rng.choice(ledger) for ledger in by_id[name].ledgers]
        said = [fact for number, fact in enumerate(facts) if number != agent]
        return Prompt(id=f"{case.id}/{agent}/told", text=world.ask_with_text(by_id[name], agent, key, said))

    return messages


def read_from(team: Team, dealt: Sequence[world.Case], seed: int) -> str:
    """How many of the first agent's facts a linear probe reads from the states of all, and from the thoughts."""
    some, ledgers = dealt[:8000], [case.ledgers[0] for case in dealt[:8000]]
    states = team.listen(as_cases(some, seed + 1)).states
    num_fit = len(some) * 3 // 4
    return ", ".join(
        f"{name} {world.facts_read(found, ledgers, num_fit):.2f}, with noise {world.facts_read(found, ledgers, num_fit, 0.5):.2f}"
        for name, found in (("states", states), ("thoughts", team.think(states)))
    )


def one_seed(
    models: Sequence[Model], seed: int, vectors: Sequence[int], quick: bool, extra: Mapping[str, object]
) -> tuple[dict[int, Evaluation], dict[int, float]]:
    """(all ways by m, accuracy by bits at the largest m) on the same cases and thoughts."""
    dealt, fresh = (
        world.cases(1500 if quick else NUM_TRAIN, 100 + seed),
        world.cases(400 if quick else NUM_TEST, 10_000 + seed),
    )
    test = as_cases(fresh, seed)
    found: dict[int, Evaluation] = {}
    by_bits: dict[int, float] = {}
    kept: Autoencoder | None = None
    for count in vectors:
        begun = time.process_time()
        settings = {**SETTINGS, **extra, "seed": seed, "autoencoder.seed": seed, "adapter.num_vectors": count}
        config = validate(TeamConfig, nest({**settings, **({"adapter.steps": 200} if quick else {})}))
        agents = [
            ModelAgent(model, config.states, f"holder {number}") for number, model in enumerate(models, 1)
        ]
        team = Team(agents, config, tell([*dealt, *fresh]))
        team.autoencoder = kept
        learned = learn(team, as_cases(dealt, seed + 1))
        if kept is None:
            print(
                f"seed {seed}, facts of {world.NUM_FACTS} read from {read_from(team, dealt, seed)}",
                flush=True,
            )
        kept = team.autoencoder
        last = count == max(vectors)
        found[count] = evaluate(team, test, WAYS if last else ("thoughts", "shuffled"))
        if last:
            for bits in BITS:
                by_bits[bits] = evaluate(team, test, ["thoughts"], bits=bits).rows["thoughts"].accuracy.mean
        print(
            f"seed {seed}, m = {count}: {found[count].rows['thoughts'].accuracy.mean:.4f} (shuffled "
            f"{found[count].rows['shuffled'].accuracy.mean:.4f}); held by 0 … A: {learned.structure.histogram()}, "
            f"R² {learned.explained:.3f}, loss {learned.loss:.3f}, {time.process_time() - begun:.0f} CPU s",
            flush=True,
        )
    return found, by_bits


def main() -> None:
    """Every m, every number of bits, every control on every seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1 seed, fewer cases and updates")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--vectors", type=int, nargs="+", default=VECTORS)
    parser.add_argument("--folder", type=Path, default=cache_root() / "worlds", help="of the trained models")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings, such as adapter.lr=0.003"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = options.seeds or (1 if options.quick else 5)
    extra = {
        key: float(value) if "." in value or "e" in value else int(value)
        for key, value in (word.split("=") for word in options.set)
    }
    rows: dict[str, list[float]] = {}
    for seed in range(seeds):
        found, by_bits = one_seed(
            world.models(options.folder, seed, shared=True), seed, options.vectors, options.quick, extra
        )
        for count, evaluation in found.items():
            rows.setdefault(f"thoughts, m = {count}", []).append(evaluation.rows["thoughts"].accuracy.mean)
            rows.setdefault(f"shuffled, m = {count}", []).append(evaluation.rows["shuffled"].accuracy.mean)
        largest = max(found)
        for bits, accuracy in by_bits.items():
            rows.setdefault(f"thoughts, m = {largest}, {bits} bits a thought", []).append(accuracy)
        for way in WAYS:
            if way not in ("thoughts", "shuffled"):
                rows.setdefault(f"control: {way}", []).append(found[largest].rows[way].accuracy.mean)
    table = [[name, *(f"{number:.3f}" for number in mean_interval(values))] for name, values in rows.items()]
    told = range(world.NUM_FACTS + 1)
    table += [
        [f"ceiling: {facts} facts of each told", f"{world.text_ceiling(facts):.3f}", ""] for facts in told
    ]
    table += [
        [f"bound: {bits} bits from each", f"{world.rate_bound(bits):.3f}", ""] for bits in (1, 2, 4, 8, 12)
    ]
    print_table(
        f"Split ledger, accuracy over {seeds} seeds (mean, half width of 95 %)",
        ["way", "accuracy", "±"],
        table,
    )
    ours, text = rows[f"thoughts, m = {max(options.vectors)}"], rows["control: text"]
    ratio = [a / b for a, b in zip(ours, text, strict=True)]
    finish(
        "thought_ledger",
        sum(ours) / len(ours),
        sum(text) / len(text),
        "accuracy, thoughts and one fact of each as text",
        sum(ours) / sum(text),
        (min(ratio), max(ratio)),
        peer_name="one fact of each as text",
        seeds=seeds,
        vectors=list(options.vectors),
        mean={name: mean_interval(values) for name, values in rows.items()},
        **machine(1),
    )


if __name__ == "__main__":
    main()
