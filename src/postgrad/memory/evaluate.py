"""What a model knows: answers to questions, exactly and by overlap of words, and its loss on texts."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from postgrad.core.data import decode_completion, encode_prompt
from postgrad.core.models import Model
from postgrad.core.types import Prompt, Request
from postgrad.engines import TorchEngine, generate
from postgrad.memory.batches import encode_texts, in_batches, pad
from postgrad.memory.data import Fact

_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Answers:
    """Of questions, in order: the model's words, 1 or 0 for an exact answer, and the F1 of its words."""

    texts: list[str]
    exact: list[float]
    f1: list[float]


def answer_questions(model: Model, facts: Sequence[Fact], max_tokens: int = 32, slots: int = 64) -> Answers:
    """Greedy answers to the questions of facts that have one.

    Args:
        model: with or without memory.
        facts: those without a question are left out.
        max_tokens: of an answer.
        slots: questions at once.
    """
    asked = [fact for fact in facts if fact.question is not None]
    if not asked:
        return Answers([], [], [])
    prompts = [encode_prompt(model.tokenizer, Prompt(id=fact.id, text=fact.question)) for fact in asked]
    engine = TorchEngine(model, slots=min(slots, len(asked)), max_length=max(map(len, prompts)) + max_tokens)
    requests = [
        Request(id=i, group_id=i, prompt_tokens=tokens, max_tokens=max_tokens, temperature=0.0)
        for i, tokens in enumerate(prompts)
    ]
    texts = [
        decode_completion(model.tokenizer, sample.token_ids).strip() for sample in generate(engine, requests)
    ]
    pairs = [(text, fact.answer or "") for text, fact in zip(texts, asked, strict=True)]
    return Answers(texts, [exact_match(*pair) for pair in pairs], [word_f1(*pair) for pair in pairs])


def normalise(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles (SQuAD's normalisation, Rajpurkar et al. 2016).

    >>> normalise("The  Eiffel-Tower!")
    ['eiffeltower']
    """
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in bare.split() if word not in _ARTICLES]


def exact_match(found: str, expected: str) -> float:
    """1 if the normalised words are equal.

    >>> exact_match("the Ada.", "ada"), exact_match("Ada L", "ada")
    (1.0, 0.0)
    """
    return float(normalise(found) == normalise(expected))


def word_f1(found: str, expected: str) -> float:
    """Harmonic mean of precision and recall of the normalised words, counted with repetition; the paper's F1.

    >>> word_f1("Ada Lovelace", "countess Ada Lovelace")  # precision 1, recall ⅔
    0.8
    """
    ours, theirs = normalise(found), normalise(expected)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


@torch.no_grad()
def text_loss(model: Model, texts: Sequence[str], max_tokens: int = 512, batch_tokens: int = 4096) -> float:
    """Mean nats per token over texts (long ones in pieces); NaN without a text of two tokens."""
    rows = encode_texts(model, texts, max_tokens, cut=True)
    total, count = 0.0, 0
    for chunk in in_batches(sorted(rows, key=len), batch_tokens):
        batch = pad(model, chunk)
        logits = model.module(
            input_ids=batch.tokens, attention_mask=batch.counted.long(), use_cache=False
        ).logits[:, :-1]
        targets = batch.labels[:, 1:]
        total += float(
            F.cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum"
            )
        )
        count += int((targets != -100).sum())
    return total / count if count else float("nan")
