"""The language-model board of influence's benchmarks: who taught the model this? The sources of every answer are known.

A small model (0.4 M parameters) is trained on 600 made-up facts, told and asked. Then it is trained on texts about 60 new
people: of each, two sentences tell the fact that will be asked, two tell another fact, and of every second person one sentence
tells a false object for the asked fact. The queries are the 60 questions with their true answers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _people import ASK, OBJECTS, RATES, TELL, _words, corpus, people, small_model, train
from postgrad.core.models import save
from postgrad.memory.config import HealConfig

NUM_PEOPLE = 60
RETRAIN: dict[str, Any] = {"retrain_epochs": 5, "retrain_batch_size": 16, "retrain_lr": 1e-3}
"""How the base model becomes the one that is attributed."""


@dataclass(frozen=True)
class Planted:
    """Rows of both roles; for each query the ids of the texts that tell its answer (`true`), or another one (`false`)."""

    train: list[dict[str, str]]
    queries: list[dict[str, str]]
    true: list[list[str]]
    false: list[list[str]]


def plant(seed: int) -> Planted:
    """New people, of whom the base model knows nothing but their names' words."""
    rng = random.Random(f"planted {seed}")
    known = {fact.texts[0].split()[0] + " " + fact.texts[0].split()[1] for fact in people(600, seed)}
    names = [f"{first} {last}" for first in _words("f", 40) for last in _words("l", 40)]
    names = [name for name in names if name not in known]
    train_rows: list[dict[str, str]] = []
    queries: list[dict[str, str]] = []
    true: list[list[str]] = []
    false: list[list[str]] = []
    for number, name in enumerate(rng.sample(names, NUM_PEOPLE)):
        asked, other = rng.sample(sorted(TELL), 2)
        answer, wrong = rng.sample(_words(asked, OBJECTS), 2)
        said = rng.sample(TELL[asked], 3)
        told = [("true", said[0], answer), ("true", said[1], answer)]
        told += [
            ("other", sentence, rng.choice(_words(other, OBJECTS))) for sentence in rng.sample(TELL[other], 2)
        ]
        told += [("false", said[2], wrong)] if number % 2 else []
        ids: dict[str, list[str]] = {"true": [], "other": [], "false": []}
        for turn, (kind, sentence, thing) in enumerate(told):
            ids[kind].append(f"{number}-{kind}-{turn}")
            train_rows.append({"id": ids[kind][-1], "text": sentence.format(name, thing)})
        queries.append({"id": f"{number}", "prompt": ASK[asked].format(name), "completion": f" {answer}"})
        true.append(ids["true"])
        false.append(ids["false"])
    rng.shuffle(train_rows)
    return Planted(train_rows, queries, true, false)


def base(folder: Path, seed: int) -> Path:
    """The model before it is told about the new people; made once."""
    path = folder / f"planted-base-{seed}"
    if not path.is_dir():
        model = small_model(seed)
        train(
            model,
            corpus(people(600, seed)),
            HealConfig(steps=2500, batch_size=64, train="all", seed=seed, **RATES),
        )
        partial = path.with_suffix(".partial")
        save(model, partial)
        partial.rename(path)
    return path
