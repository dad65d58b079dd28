"""The split ledger: a world in which nothing can be inferred and everything must be told, before it is known what will be asked.

Twelve keys (letters) have one of V = 8 values each (digits), uniform and independent. They are dealt anew in every case to A = 3
agents, F = 4 to each, so that a message cannot rely on who holds what. A query, any of the twelve keys, is revealed to the
receiver after the messages were made: a message that helps must hold as much of its sender's F·log₂ V = 12 bits as it can.

A fact is one word ("c5"), so that a small model can look it up after minutes of training; a value alone ("5") is an answer.

**What the state holds.** A message is made from the state at the last word of `view`, which a model has no reason to fill with
all F facts. Here it has one, the ordinary one of a language model, its next word: the mixture has recitals in which the closing
word "all" is followed by the ledger's facts *in random order*. The best prediction at "all" is then an even chance for each of
the F facts, so that all of them stand in the last state. (In the order of the keys only the first would have to: the next ones
can be read from the context when their turn comes.) `readable` measures with a linear probe how many facts can be read from the
state at that word, layer by layer. The models have only ever seen words: no embedding but those of the vocabulary.

`python benchmarks/_ledger.py [--folder DIR] [--seed N]` prints the ceilings, what the models reach, and what their states hold.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch

from _witnesses import encode, replies, small, trained
from postgrad.core.models import Model
from postgrad.core.models.embedded import cache_root
from postgrad.core.types import Prompt
from postgrad.thought.agents import ModelAgent

NUM_AGENTS = 3
KEYS = tuple("abcdefghijkl")
VALUES = tuple("01234567")
NUM_FACTS = len(KEYS) // NUM_AGENTS
"""Of each agent."""
WORDS = ("held", "told", ".", "?", "all", *KEYS, *VALUES, *(key + value for key in KEYS for value in VALUES))


class Case(NamedTuple):
    """Ledgers of the agents, [A][F] words such as "c5", in the order in which they are written; and the value of every key."""

    id: str
    ledgers: tuple[tuple[str, ...], ...]
    values: Mapping[str, str]


class Ceilings(NamedTuple):
    """Share of right answers of the best receiver. `single`: F/K + (1 − F/K)/V from its own ledger; `everything`: from all."""

    single: float
    everything: float


def cases(num: int, seed: int) -> list[Case]:
    """Independent cases; the same `seed` gives the same ones. Queries are for the caller to draw."""
    rng = random.Random(f"ledger {seed}")
    return [_case(rng, f"{seed}-{index}") for index in range(num)]


def _case(rng: random.Random, id: str = "") -> Case:
    dealt = rng.sample(KEYS, len(KEYS))
    values = {key: rng.choice(VALUES) for key in dealt}
    words = [key + values[key] for key in dealt]
    ledgers = tuple(tuple(words[a * NUM_FACTS : (a + 1) * NUM_FACTS]) for a in range(NUM_AGENTS))
    return Case(id, ledgers, values)


# --- texts ------------------------------------------------------------------------------------------------------------------


def view(case: Case, agent: int) -> str:
    """An agent's ledger, with the closing word at which its state is read: "held c5 a2 k7 f1 . all"."""
    return f"{_held(case, agent)} . all"


def ask(case: Case, agent: int, key: str) -> str:
    """What the receiver sees, with the query: "held c5 a2 k7 f1 . b ?"."""
    return f"{_held(case, agent)} . {key} ?"


def ask_with_text(case: Case, agent: int, key: str, messages: Sequence[str]) -> str:
    """As `ask`, after words from the others' recitals: "told b3 h0 . held c5 a2 k7 f1 . b ?"."""
    return f"told {' '.join(messages)} . {ask(case, agent, key)}"


def ask_all(case: Case, key: str) -> str:
    """All ledgers and the query: "held … . held … . held … . b ?"."""
    return f"{' . '.join(_held(case, agent) for agent in range(NUM_AGENTS))} . {key} ?"


def answer(case: Case, key: str) -> str:
    """One token, the next one after each of the questions."""
    return case.values[key]


def _held(case: Case, agent: int) -> str:
    return f"held {' '.join(case.ledgers[agent])}"


# --- ceilings ---------------------------------------------------------------------------------------------------------------


def ceilings() -> Ceilings:
    """From the receiver's own facts (F + (K − F)/V)/K = (4 + 8/8)/12 = .4167, and from all, 1."""
    return Ceilings(text_ceiling(0), 1.0)


def text_ceiling(num_facts: int) -> float:
    """Share of right answers of a receiver that is told so many facts by each of the others, and guesses the rest.

    >>> round(text_ceiling(0), 4), round(text_ceiling(1), 4), text_ceiling(4)  # (4 + 8/8)/12, (6 + 6/8)/12
    (0.4167, 0.5625, 1.0)
    """
    known = NUM_FACTS + (NUM_AGENTS - 1) * num_facts
    return (known + (len(KEYS) - known) / len(VALUES)) / len(KEYS)


def rate_bound(num_bits: float) -> float:
    """No receiver has a higher share of right answers when each of the others' messages has at most so many bits.

    The error D of guessing a uniform symbol out of V from R bits obeys R ≥ log₂ V − h(D) − D·log₂(V − 1), h the binary entropy,
    for 0 ≤ D ≤ 1 − 1/V: the rate-distortion function of a uniform source under Hamming distortion (Cover & Thomas, Elements of
    Information Theory, 2nd ed., problem 10.5; Fano's inequality with equality). By its converse F symbols need F times that, at
    any block length, so the bound is (F + (A − 1)·F·(1 − D(b/F)))/K. It gives the receiver for free who holds which key, and
    lets messages be coded over many cases: a message about one case stays below it.

    >>> round(rate_bound(0), 4), rate_bound(12)
    (0.4167, 1.0)
    """
    bits, size = num_bits / NUM_FACTS, len(VALUES)

    def rate(error: float) -> float:
        entropy = -sum(p * math.log2(p) for p in (error, 1 - error) if p > 0)
        return math.log2(size) - entropy - error * math.log2(size - 1)

    if bits >= math.log2(size):
        return 1.0
    low, high = 0.0, 1 - 1 / size
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rate(middle) > bits else (low, middle)
    return (NUM_FACTS + (NUM_AGENTS - 1) * NUM_FACTS * (1 - high)) / len(KEYS)


# --- models -----------------------------------------------------------------------------------------------------------------


def draw(rng: random.Random, num: int) -> list[tuple[str, str]]:
    """In turn: a recital in random order, a question about one's own ledger, with some facts told, and about all ledgers."""
    pairs: list[tuple[str, str]] = []
    for index in range(num):
        case, agent, key = _case(rng), rng.randrange(NUM_AGENTS), rng.choice(KEYS)
        if index % 4 == 0:
            recital = rng.sample(case.ledgers[agent], NUM_FACTS)
            pairs.append((view(case, agent), " ".join(recital)))
            continue
        others = [fact for i, ledger in enumerate(case.ledgers) if i != agent for fact in ledger]
        told = rng.sample(others, rng.randint(1, len(others)))
        texts = (ask(case, agent, key), ask_with_text(case, agent, key, told), ask_all(case, key))
        pairs.append((texts[index % 4 - 1], answer(case, key)))
    return pairs


def models(
    folder: Path,
    seed: int,
    widths: Sequence[int] = (64, 64, 64),
    *,
    shared: bool = False,
    steps: int = 1000,
    layers: int = 3,
) -> list[Model]:
    """An agent's model for each width, from `folder` or made now; with `shared`, one model that all agents are."""
    made: list[Model] = []
    for agent, width in enumerate(widths):
        config = small(width, layers, steps, 256, NUM_AGENTS * seed + agent)
        made.append(made[0] if shared and made else trained(folder, WORDS, draw, config))
    return made


def accuracies(model: Model, fresh: Sequence[Case], seed: int = 0) -> dict[str, tuple[float, float]]:
    """(share of right answers, its ceiling) by kind of question, one random query a case; the receiver is the first agent.

    `own` and `told` ask only what the receiver holds, or was told (one fact by each of the others); the others ask anything.
    """
    rng = random.Random(f"queries {seed}")
    asked: dict[str, list[tuple[str, str]]] = {
        "single": [],
        "own": [],
        "text": [],
        "told": [],
        "everything": [],
    }
    for case in fresh:
        key, mine = rng.choice(KEYS), rng.choice(case.ledgers[0])
        told = [rng.choice(ledger) for ledger in case.ledgers[1:]]
        heard = rng.choice(told)
        asked["single"].append((ask(case, 0, key), answer(case, key)))
        asked["own"].append((ask(case, 0, mine[0]), mine[1]))
        asked["text"].append((ask_with_text(case, 0, key, told), answer(case, key)))
        asked["told"].append((ask_with_text(case, 0, heard[0], told), heard[1]))
        asked["everything"].append((ask_all(case, key), answer(case, key)))
    best = {"single": text_ceiling(0), "text": text_ceiling(1)}
    reached: dict[str, tuple[float, float]] = {}
    for kind, pairs in asked.items():
        said = replies(model, [prompt for prompt, _ in pairs])
        right = [word == reply for word, (_, reply) in zip(said, pairs, strict=True)]
        reached[kind] = (float(np.mean(right)), best.get(kind, 1.0))
    return reached


@torch.inference_mode()
def last_states(model: Model, texts: Sequence[str]) -> torch.Tensor:
    """States at the last word of texts of one length, float [L + 1, S, D]: embedding, each layer; the last is normed."""
    tokens, _ = encode(model, [(text, "<eos>") for text in texts])
    states = model.module(input_ids=tokens, output_hidden_states=True).hidden_states
    return torch.stack([state[:, -1] for state in states])


def readable(
    model: Model, noise: float = 0.0, num_fit: int = 6000, num_score: int = 2000, seed: int = 0
) -> list[float]:
    """How many of the F facts a linear probe reads from the last state of `view`, for each of the L + 1 states."""
    seen = cases(num_fit + num_score, 20_000 + seed)
    states = last_states(model, [view(case, 0) for case in seen])
    ledgers = [case.ledgers[0] for case in seen]
    return [facts_read(state, ledgers, num_fit, noise, seed) for state in states]


def facts_read(
    states: torch.Tensor,
    ledgers: Sequence[tuple[str, ...]],
    num_fit: int,
    noise: float = 0.0,
    seed: int = 0,
) -> float:
    """How many of the F facts of each ledger a linear probe reads from states, or thoughts [S, D]; fitted to the first ones.

    The probe is a ridge regression (penalty 1e-3 of the mean square) of the indicators of all 96 facts on the state; the value
    read for a held key is the one with the highest prediction. From nothing it would read F/V = .5 facts. Without noise it reads
    the faintest trace; `noise` adds white noise with that share of the states' standard deviation (all dimensions together).
    """
    index = torch.tensor(
        [[KEYS.index(fact[0]) * len(VALUES) + int(fact[1]) for fact in ledger] for ledger in ledgers]
    )  # [S, F]
    wanted = torch.zeros(len(index), len(KEYS) * len(VALUES), dtype=torch.float64).scatter_(1, index, 1.0)
    state = states.double()
    spread = (state[:num_fit] - state[:num_fit].mean(0)).square().mean().sqrt()
    generator = torch.Generator().manual_seed(seed)
    state = state + noise * spread * torch.randn(state.shape, generator=generator, dtype=torch.float64)
    x = torch.cat([state - state[:num_fit].mean(0), torch.ones(len(state), 1, dtype=torch.float64)], 1)
    fit = x[:num_fit]
    gram = fit.T @ fit
    gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    guess = x[num_fit:] @ torch.linalg.solve(gram, fit.T @ wanted[:num_fit])
    values = guess.view(-1, len(KEYS), len(VALUES)).argmax(-1)  # [S, K]
    held = index[num_fit:]
    right = values.gather(1, held // len(VALUES)) == held % len(VALUES)
    return float(right.double().sum(1).mean())


@torch.inference_mode()
def by_hand(model: Model, fresh: Sequence[Case], num_vectors: int, seed: int = 0) -> float:
    """Share of right answers of the first agent whose virtual tokens are made by hand, not learned: the others' eight facts in
    order, their embeddings summed in groups, one group a token. What an adapter could do that does no more than read and write.
    """
    rng = random.Random(f"queries {seed}")
    vocabulary = model.tokenizer.get_vocab()
    embedding = cast("torch.nn.Embedding", model.module.get_input_embeddings()).weight
    told = [[vocabulary[fact] for ledger in case.ledgers[1:] for fact in ledger] for case in fresh]
    prefix = embedding[torch.tensor(told)].unflatten(1, (num_vectors, -1)).sum(2)  # [S, M, D]
    keys = [rng.choice(KEYS) for _ in fresh]
    prompts = [Prompt(id=case.id, text=ask(case, 0, key)) for case, key in zip(fresh, keys, strict=True)]
    said = ModelAgent(model).generate(prompts, prefix, max_tokens=1)
    right = [
        turn.text.strip() == answer(case, key) for turn, case, key in zip(said, fresh, keys, strict=True)
    ]
    return float(np.mean(right))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="The ceilings of the split ledger, and what the models reach."
    )
    parser.add_argument("--folder", type=Path, default=cache_root() / "worlds", help="of the trained models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared", action="store_true", help="one model that all agents are")
    given = parser.parse_args()
    print(
        "bits of each message, bound: "
        + ", ".join(f"{b} {rate_bound(b):.4f}" for b in (0, 1, 2, 4, 6, 8, 10, 12))
    )
    print(
        "facts told by each, ceiling: "
        + ", ".join(f"{m} {text_ceiling(m):.4f}" for m in range(NUM_FACTS + 1))
    )
    fresh = cases(4000, 10_000 + given.seed)
    made = models(given.folder, given.seed, shared=given.shared)
    for agent, model in enumerate(made[:1] if given.shared else made):
        for kind, (right, ceiling) in accuracies(model, fresh).items():
            print(f"agent {agent}, {kind}: {right:.4f} right (ceiling {ceiling:.4f})")
        for noise in (0.0, 0.5, 1.0):
            found = ", ".join(f"{count:.2f}" for count in readable(model, noise))
            print(
                f"agent {agent}, noise {noise}: facts of {NUM_FACTS} read from embedding and layers: {found}"
            )
        hand = ", ".join(f"{count} {by_hand(model, fresh[:1000], count):.3f}" for count in (1, 2, 4, 8))
        print(f"agent {agent}, right with virtual tokens made by hand, by their number: {hand}")


if __name__ == "__main__":
    main()
