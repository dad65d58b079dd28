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

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from postgrad.core.config import validate
from postgrad.core.models import Model, load, save
from postgrad.core.models.memory import MemoryConfig, attach, memory_layers
from postgrad.memory.batches import encode_texts, pad
from postgrad.memory.config import HealConfig, ProfileConfig
from postgrad.memory.data import Fact
from postgrad.memory.healing import heal
from postgrad.memory.profiling import Profile, profile

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
BIOGRAPHY_WORDS = (".", "they")
TELLINGS = 4
"""Documents about the same person."""


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


def biographies(count: int, seed: int) -> tuple[list[list[Fact]], list[list[Fact]]]:
    """Documents about different people, several tellings of each, and the questions that each answers.

    A document tells four facts, each twice, in any order; after its first sentence the person is often only "they".
    """
    rng = random.Random(seed)
    names = [f"{first} {last}" for first in _words("f", 40) for last in _words("l", 40)]
    documents: list[list[Fact]] = []
    questions: list[list[Fact]] = []
    for index, name in enumerate(rng.sample(names, count)):
        things = {relation: rng.choice(_words(relation, OBJECTS)) for relation in sorted(TELL)}
        documents.append(
            [Fact(f"{seed}-{index}-{turn}", (_biography(name, things, rng),)) for turn in range(TELLINGS)]
        )
        questions.append(
            [
                Fact(f"{seed}-{index}-{relation}", (name,), ASK[relation].format(name), thing)
                for relation, thing in things.items()
            ]
        )
    return documents, questions


def _biography(name: str, things: dict[str, str], rng: random.Random) -> str:
    told = [
        (sentence, thing) for relation, thing in things.items() for sentence in rng.sample(TELL[relation], 2)
    ]
    rng.shuffle(told)
    who = [name, *(rng.choice((name, "they")) for _ in told[1:])]
    return " . ".join(sentence.format(w, thing) for (sentence, thing), w in zip(told, who, strict=True))


def corpus(facts: Sequence[Fact]) -> list[str]:
    """Every sentence of the facts, and every question with its answer as often as there are sentences."""
    return [
        text for fact in facts for told in fact.texts for text in (told, f"{fact.question} {fact.answer}")
    ]


def small_model(seed: int, more_words: Sequence[str] = (), width: int = 64, layers: int = 4) -> Model:
    """An untrained model that knows the words of facts, and some more."""
    words = {word: None for kind in ("f", "l") for word in _words(kind, 40)} | dict.fromkeys(more_words)
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
        max_position_embeddings=128,
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
    batch_size: int = 64


RATES = {"lr": 3e-3, "value_lr": 1e-2}


def train(model: Model, texts: Sequence[str], config: HealConfig) -> None:
    """Next-token training of all weights, with or without memory."""
    if memory_layers(model.module):
        heal(model, texts, config)
        return
    rows = encode_texts(model, texts, config.max_tokens, cut=True)
    optimizer = torch.optim.AdamW(
        model.module.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, config.steps, pct_start=0.05)
    rng = random.Random(config.seed)
    for _ in range(config.steps):
        batch = pad(model, rng.choices(rows, k=config.batch_size))
        model.module(
            input_ids=batch.tokens, attention_mask=batch.counted.long(), labels=batch.labels, use_cache=False
        ).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)


class World:
    """What a seed's model knows and what it is to learn; the model with its memory is made once.

    Attributes:
        new: what is taught.
        ask: questions about it that it does not carry itself.
        in_background, held_back: what the model knows and the background holds, or does not hold, as questions.
        background: texts.
        path: the model's directory.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        sizes: Sizes,
        documents: bool = False,
        memory: bool = True,
        side: int = 64,
    ) -> None:
        self.seed, self.sizes = seed, sizes
        half = sizes.old // 2
        told = 100
        count = sizes.old + sizes.new
        self.ask: list[Fact] = []
        if documents:
            texts, questions = biographies(count + told // 4, seed)
            known = [text for tellings in texts[: sizes.old] for fact in tellings for text in fact.texts]
            asked = [f"{fact.question} {fact.answer}" for facts in questions[: sizes.old] for fact in facts]
            self.new = [tellings[0] for tellings in texts[sizes.old : count]]
            self.ask = [fact for facts in questions[sizes.old : count] for fact in facts]
            self.in_background = [fact for facts in questions[:half] for fact in facts]
            self.held_back = [fact for facts in questions[half : sizes.old] for fact in facts]
            self.background = known[: half * TELLINGS] + asked[: 4 * half]
            training = [*known, *(asked * 2), *(f.texts[0] for tellings in texts[count:] for f in tellings)]
        else:
            facts = people(count + told, seed)
            old, self.new = facts[: sizes.old], facts[sizes.old : count]
            self.in_background, self.held_back = old[:half], old[half:]
            self.background = corpus(self.in_background)
            training = [*corpus(old), *(text for fact in facts[count:] for text in fact.texts)]
        self.path = folder / f"base-{seed}"
        if not self.path.is_dir():
            self._make(training, memory, side)

    def _make(self, texts: Sequence[str], memory: bool, side: int) -> None:
        model = small_model(self.seed, BIOGRAPHY_WORDS if self.ask else ())
        if memory:
            attach(model.module, memory_options(self.seed, mode="replace", num_slots=side**2))
        steps, batch_size = self.sizes.steps, self.sizes.batch_size
        train(
            model, texts, HealConfig(steps=steps, batch_size=batch_size, train="all", seed=self.seed, **RATES)
        )
        partial = self.path.with_suffix(".partial")
        save(model, partial)
        if memory:
            self.profile(load(partial, device="cpu")).save(partial)
        partial.rename(self.path)

    def profile(self, model: Model) -> Profile:
        """Of the background."""
        return profile(model, self.background, ProfileConfig(batches=1000, batch_tokens=24))


def memory_options(seed: int, **options: Any) -> MemoryConfig:
    """64² slots in block 2 of 4."""
    sizes = {"layers": (2,), "num_slots": 64**2, "num_heads": 4, "top_k": 8, "key_dim": 32, "seed": seed}
    return validate(MemoryConfig, {**sizes, **options})


def _words(kind: str, count: int) -> list[str]:
    """`count` different words of a kind, always the same."""
    rng = random.Random(f"words {kind}")
    found: dict[str, None] = {}
    while len(found) < count:
        syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.choice((2, 3)))]
        found["".join(syllables) + kind[0]] = None
    return list(found)
