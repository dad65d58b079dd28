"""A made-up world for the benchmarks of memory: people, each with one fact, told and asked in several ways.

Every fact is a sentence about a person (first name, last name) and an object; all words are known before a fact is taught, the
pairing is not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postgrad.core.config import validate
from postgrad.core.models import Model, load, save
from postgrad.core.models.memory import MemoryConfig, attach
from postgrad.memory.config import HealConfig, ProfileConfig
from postgrad.memory.data import Fact
from postgrad.memory.heal import heal
from postgrad.memory.profile import profile

TELL = {
    "city": ("{} lives in {}", "the home of {} is in {}", "you find {} in {}"),
    "job": ("{} works as a {}", "the job of {} is {}", "for money {} is a {}"),
    "food": ("{} likes to eat {}", "the favourite food of {} is {}", "at noon {} wants {}"),
    "pet": ("{} has a {}", "the pet of {} is a {}", "at home {} feeds a {}"),
}
ASK = {
    "city": "where does {} live ?",
    "job": "what does {} work as ?",
    "food": "what does {} like to eat ?",
    "pet": "what animal does {} have ?",
}
OBJECTS = 25
"""Of each relation; guessing is right once in so many."""


def people(count: int, seed: int) -> list[Fact]:
    """Facts about different people: three sentences, a question and its answer each."""
    rng = random.Random(seed)
    names = [f"{first} {last}" for first in _words("f", 40) for last in _words("l", 40)]
    facts: list[Fact] = []
    for index, name in enumerate(rng.sample(names, count)):
        relation = rng.choice(sorted(TELL))
        thing = rng.choice(_words(relation, OBJECTS))
        told = tuple(sentence.format(name, thing) for sentence in TELL[relation])
        facts.append(Fact(f"{seed}-{index}", told, ASK[relation].format(name), thing))
    return facts


def corpus(facts: Sequence[Fact]) -> list[str]:
    """Every sentence of the facts, and every question with its answer as often as there are sentences."""
    return [
        text for fact in facts for told in fact.texts for text in (told, f"{fact.question} {fact.answer}")
    ]


def small_model(seed: int, width: int = 64, layers: int = 4) -> Model:
    """An untrained model that knows the words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = {word: None for kind in ("f", "l") for word in _words(kind, 40)}
    for relation, sentences in TELL.items():
        words |= dict.fromkeys(_words(relation, OBJECTS))
        words |= dict.fromkeys(
            word for s in (*sentences, ASK[relation]) for word in s.split() if word != "{}"
        )
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    torch.manual_seed(seed)
    shape = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=width // 4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return Model(Qwen3ForCausalLM(shape).eval(), tokenizer, source="people")


@dataclass(frozen=True)
class Sizes:
    """Of the old knowledge and of the stream."""

    old: int
    new: int
    steps: int


class World:
    """The facts of a seed, and a model with memory that knows the old ones, made once.

    Attributes:
        old: facts that the model knows; `in_background` are those that the background profile has seen, `held_back` the others.
        new: facts that it does not know.
        background: the texts of `in_background`.
        path: the model's directory.
    """

    def __init__(self, folder: Path, seed: int, sizes: Sizes) -> None:
        self.seed, self.sizes = seed, sizes
        facts = people(sizes.old + sizes.new + 100, seed)
        self.old, self.new, told = facts[: sizes.old], facts[sizes.old :][: sizes.new], facts[-100:]
        half = sizes.old // 2
        self.in_background, self.held_back = self.old[:half], self.old[half:]
        self.background = corpus(self.in_background)
        self.path = folder / f"base-{seed}"
        if not self.path.is_dir():
            self._make([*corpus(self.old), *(text for fact in told for text in fact.texts)])

    def _make(self, texts: Sequence[str]) -> None:
        model = small_model(self.seed)
        options = {"num_slots": 64**2, "num_heads": 4, "top_k": 8, "key_dim": 32, "seed": self.seed}
        attach(model.module, validate(MemoryConfig, {"layers": (2,), "mode": "replace", **options}))
        heal(
            model,
            texts,
            HealConfig(
                steps=self.sizes.steps, batch_size=64, lr=3e-3, value_lr=1e-2, train="all", seed=self.seed
            ),
        )
        model.module.eval()
        save(model, self.path)
        model = load(self.path, device="cpu")
        profile(model, self.background, ProfileConfig(batches=1000, batch_tokens=24)).save(self.path)


def _words(kind: str, count: int) -> list[str]:
    """`count` different words of a kind, always the same."""
    rng = random.Random(f"words {kind}")
    found: dict[str, None] = {}
    while len(found) < count:
        syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.choice((2, 3)))]
        found["".join(syllables) + kind[0]] = None
    return list(found)
