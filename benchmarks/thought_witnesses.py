"""Is a thought worth more than a word? Noisy witnesses (`_witnesses.py`): three agents, evidence of their own, one culprit.

Agents are frozen language models of 0.15 M weights that were trained on words alone. The state of each is taken at the end of
what it saw; then it is asked who it was. Bayes' rule gives every ceiling exactly: for one agent alone, for one that is told the
best guesses of the others, and with all evidence. An exchange is one message from all to each, one virtual token long, so its
ceiling is that of all evidence; the bar is to come within .02 of it and to be surely above the text.

Arms that learn: `broadcast`, `others`, `learned` and `paper` routing, taught by labels; `broadcast` taught by the oracle's and by
the text's probabilities; and the paper's own setting (its routing and its reference, what an agent would have said alone). All
have one autoencoder and as many updates. Controls, text, vote and raw states learn nothing. Each seed has a model and cases of
its own.

    python benchmarks/thought_witnesses.py [--quick] [--seeds 5] [--widths 64 64 64] [--arms NAME …] [--folder DIR]

Models of different widths (`--widths 48 64 96`) are three models, each trained from its own seed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import _witnesses as world
from _common import finish, machine, mean_interval, print_table
from postgrad.core.config import nest, validate
from postgrad.core.models import Model
from postgrad.core.models.embedded import cache_root
from postgrad.core.types import Prompt
from postgrad.thought.agents import ModelAgent, Turn
from postgrad.thought.autoencoder import Autoencoder
from postgrad.thought.cases import Case
from postgrad.thought.config import PAPER, TeamConfig
from postgrad.thought.evaluation import WAYS, Evaluation, evaluate
from postgrad.thought.learning import learn
from postgrad.thought.team import Team

ARMS: Mapping[str, Mapping[str, object]] = {
    "broadcast, labels": {},
    "broadcast, oracle": {"adapter.reference": "oracle"},
    "broadcast, text": {"adapter.reference": "text"},
    "others, labels": {"adapter.routing": "others"},
    "learned, labels": {"adapter.routing": "learned"},
    "paper's routing, labels": {"adapter.routing": "paper"},
    "the paper's": PAPER,
}
MAIN = "broadcast, labels"
NUM_TRAIN, NUM_TEST = 6_000, 2_000
SETTINGS: Mapping[str, object] = {
    "answer_tokens": 2,
    "autoencoder.num_thoughts": 48,
    "autoencoder.backend": "sampled",
    "autoencoder.warmup_steps": 200,
    "autoencoder.ramp_steps": 200,
    "autoencoder.sparse_steps": 600,
    "autoencoder.refit_steps": 500,
    "adapter.steps": 500,
    "adapter.batch_size": 64,
    "adapter.lr": 2e-3,
    "adapter.checkpoint_every": 250,
}


def as_cases(witnessed: Sequence[world.Case]) -> list[Case]:
    """Cases of the room."""
    return [
        Case.of_texts(
            case.id,
            [world.view(case, agent) for agent in range(world.NUM_AGENTS)],
            world.answer(case),
            whole=world.view_all(case),
        )
        for case in witnessed
    ]


def tell(witnessed: Sequence[world.Case]) -> Any:
    """Turns as text, the way these models have learned to read it."""
    by_id = {case.id: case for case in witnessed}

    def messages(case: Case, agent: int, turns: Sequence[Turn]) -> Prompt:
        said = [turn.text.strip() for number, turn in enumerate(turns) if number != agent]
        return Prompt(id=f"{case.id}/{agent}/told", text=world.view_with_text(by_id[case.id], agent, said))

    return messages


def team_of(
    models: Sequence[Model], settings: Mapping[str, object], witnessed: Sequence[world.Case], seed: int
) -> Team:
    """A team of these models that has learned nothing yet."""
    config = validate(TeamConfig, nest({**SETTINGS, "seed": seed, "autoencoder.seed": seed, **settings}))
    agents = [ModelAgent(model, config.states, f"witness {number}") for number, model in enumerate(models, 1)]
    return Team(agents, config, tell(witnessed))


def one_seed(
    models: Sequence[Model], seed: int, quick: bool, extra: Mapping[str, object], chosen: Sequence[str]
) -> dict[str, Evaluation]:
    """The arms that were chosen, on the same cases."""
    count = 1500 if quick else NUM_TRAIN
    train, test = world.cases(count, 100 + seed), world.cases(400 if quick else NUM_TEST, 10_000 + seed)
    found: dict[str, Evaluation] = {}
    kept: Autoencoder | None = None
    for arm, settings in ARMS.items():
        if arm not in chosen:
            continue
        begun = time.process_time()
        settings = {**extra, **settings, **({"adapter.steps": 200} if quick else {})}
        team = team_of(models, settings, [*train, *test], seed)
        team.autoencoder = kept
        learned = learn(team, as_cases(train))
        kept = team.autoencoder
        ways = WAYS if arm == MAIN else ("thoughts", "shuffled")
        found[arm] = evaluate(team, as_cases(test), ways)
        print(
            f"seed {seed}, {arm}: {found[arm].rows['thoughts'].accuracy.mean:.4f} (shuffled "
            f"{found[arm].rows['shuffled'].accuracy.mean:.4f}); held by 0 … A: {learned.structure.histogram()}, "
            f"R² {learned.explained:.3f}, {time.process_time() - begun:.0f} CPU s",
            flush=True,
        )
    return found


def main() -> None:
    """Every arm and control on every seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1 seed, fewer cases and updates")
    parser.add_argument("--seeds", type=int)
    parser.add_argument(
        "--widths",
        type=int,
        nargs=3,
        default=(64, 64, 64),
        help="of the agents' models; equal ones are one model",
    )
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=tuple(ARMS),
        help="besides the main one; all, or with --quick the paper's",
    )
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
    chosen = {MAIN, *(options.arms or (["the paper's"] if options.quick else ARMS))}
    widths = tuple(options.widths)
    found: dict[str, list[float]] = {}
    gains: list[float] = []
    for seed in range(seeds):
        models = world.models(options.folder, seed, widths, shared=len(set(widths)) == 1)
        arms = one_seed(models, seed, options.quick, extra, sorted(chosen))
        for arm, evaluation in arms.items():
            found.setdefault(f"thoughts: {arm}", []).append(evaluation.rows["thoughts"].accuracy.mean)
            found.setdefault(f"shuffled: {arm}", []).append(evaluation.rows["shuffled"].accuracy.mean)
        rows = arms[MAIN].rows
        for way in WAYS:
            if way not in ("thoughts", "shuffled"):
                found.setdefault(f"control: {way}", []).append(rows[way].accuracy.mean)
        gains.append(rows["thoughts"].accuracy.mean - rows["text"].accuracy.mean)
    exact = world.ceilings()
    table = [[name, *(f"{number:.3f}" for number in mean_interval(values))] for name, values in found.items()]
    table += [[f"Bayes: {name}", f"{value:.3f}", ""] for name, value in exact._asdict().items()]
    print_table(
        f"Noisy witnesses, accuracy over {seeds} seeds (mean, half width of 95 %)",
        ["way", "accuracy", "±"],
        table,
    )
    ours = found[f"thoughts: {MAIN}"]
    text = found["control: text"]
    ratio = [a / b for a, b in zip(ours, text, strict=True)]
    gain = mean_interval(gains)
    finish(
        "thought_witnesses",
        sum(ours) / len(ours),
        sum(text) / len(text),
        "accuracy, thoughts and one-token text",
        sum(ours) / sum(text),
        (min(ratio), max(ratio)),
        peer_name="one-token text",
        seeds=seeds,
        widths=list(widths),
        gain_over_text=gain,
        below_ceiling=exact.everything - sum(ours) / len(ours),
        bars_reached={
            "within .02 of all evidence": exact.everything - sum(ours) / len(ours) <= 0.02,
            "above text": gain[0] - gain[1] > 0,
        },
        mean={name: mean_interval(values) for name, values in found.items()},
        **machine(1),
    )


if __name__ == "__main__":
    main()
