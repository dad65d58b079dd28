"""A small language model that does what its context tells it: trained here, on nothing but the room's prompts with rules made up
anew for each example, so that its weights hold no rule and its accuracy is what the playbook in its prompt is worth.

Asked for a word, it gives the number that a line tells; a word that no line tells it answers with "?". Of two lines with the
same id the later one counts, and a withdrawn line none, as in the room's prompts. So that seconds of training are enough, a rule
("zeb counts 4") is one token of its vocabulary: the model has to find the line that is about a word, not to put words together.
It does not cite lines.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from _student import WORDINGS, Rules
from postgrad.core.models import Model, load, save
from postgrad.core.types import Prompt
from postgrad.playbook.study import Feedback

TOLD = "Answer with what the playbook tells."
MAX_IDS = 400
LENGTH = 1024
VALUES = range(10)


def make_tokenizer(rules: Rules) -> PreTrainedTokenizerFast:
    """Whole words, ids as single tokens, and a rule ("zeb counts 4") as one."""
    texts = [TOLD, "Playbook: (The playbook is still empty.) Task: Task Add up: ?", "withdrawn"]
    texts += [wording.format(word="", value="") for wording in WORDINGS]
    cut = pre_tokenizers.Split(Regex(r"[a-z]+ counts \d+|[^\s.,;:]+|[.,;:]"), "removed", invert=True)
    words = {piece: None for text in texts for piece, _ in cut.pre_tokenize_str(text)}
    words |= dict.fromkeys(
        [*rules.values, *map(str, VALUES), *(f"[calc-{n:05d}]" for n in range(1, MAX_IDS))]
    )
    words |= dict.fromkeys(f"{word} counts {value}" for word in rules.values for value in VALUES)
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = cut
    special: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def example(rules: Rules, rng: random.Random, most: int, questions: int) -> list[tuple[str, str]]:
    """(prompt, reply) pairs that follow each other: a playbook with made-up numbers, then questions about it."""
    words = rng.sample(sorted(rules.values), min(rng.randint(1, most), len(rules.values)))
    number, lines = rng.randrange(1, MAX_IDS - 2 * most), []
    told: dict[str, tuple[str, int]] = {}
    for word in words:
        number += rng.choice((1, 1, 1, 2))
        told[word] = (f"[calc-{number:05d}]", rng.choice(VALUES))
        lines.append(_line(word, *told[word], rng))
    for word in rng.sample(words, len(words) // 8):
        told[word] = (told[word][0], rng.choice(VALUES))
        lines.append(_line(word, *told[word], rng))
    lines += [f"{told.pop(word)[0]} withdrawn" for word in rng.sample(words, len(words) // 10)]
    asked = [
        rng.choice(words) if rng.random() < 0.85 else rng.choice(sorted(rules.values))
        for _ in range(questions)
    ]
    replies = [str(told[word][1]) if word in told else "?" for word in asked]
    prompts = [f"Add up: {word}" for word in asked]
    head = f"Task:\nTask {rng.randrange(99)}-{rng.randrange(999)}."
    prompts[0] = "\n".join([TOLD, "", "Playbook:", *lines, f"{head} {prompts[0]}"])
    return list(zip(prompts, replies, strict=True))


def _line(word: str, id: str, value: int, rng: random.Random) -> str:
    return f"{id} {rng.choice(WORDINGS).format(word=word, value=value)}"


def train_reader(
    rules: Rules, seed: int, steps: int, *, most: int = 24, width: int = 64, layers: int = 2
) -> Model:
    """A model that reads; the playbooks grow when it reads what it has. Prints its loss now and then."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(rules)
    shape = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=width // 4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    module = Qwen3ForCausalLM(shape)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.03)
    rng = random.Random(f"reader {seed}")
    size, mean = 3, 0.0
    for step in range(steps):
        rows = [_encode(tokenizer, example(rules, rng, size, 12)) for _ in range(16)]
        longest = max(len(tokens) for tokens, _ in rows)
        tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
        labels = torch.tensor([marks + [-100] * (longest - len(marks)) for _, marks in rows])
        logits = module(input_ids=tokens, attention_mask=(tokens != 0).long(), use_cache=False).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        right = float((logits[:, :-1].argmax(-1) == labels[:, 1:])[labels[:, 1:] != -100].float().mean())
        mean = 0.9 * mean + 0.1 * right
        if mean > 0.95 and size < most:
            size, mean = min(size + 3, most), 0.0
        if step % 100 == 0 or step == steps - 1:
            print(
                f"reader, seed {seed}, step {step}: {size} lines, loss {loss:.3f}, tokens right {right:.3f}",
                flush=True,
            )
    return Model(module.eval(), tokenizer, source="reader")


def _encode(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    tokens: list[int] = []
    labels: list[int] = []
    for prompt, reply in pairs:
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        said = [*tokenizer(reply, add_special_tokens=False)["input_ids"], 1]
        tokens += [*asked, *said]
        labels += [*([-100] * len(asked)), *said]
    return tokens, labels


def reader(folder: Path, rules: Rules, seed: int, steps: int) -> Path:
    """The directory of the model, trained if it is not there."""
    path = folder / f"reader-{seed}-{steps}"
    if not path.is_dir():
        save(train_reader(rules, seed, steps), path)
    load(path, device="cpu")
    return path


async def judge(prompt: Prompt, answer: str) -> Feedback:
    """Whether the last number of the answer is right."""
    numbers = re.findall(r"\b\d+\b", re.sub(r"\[[^\]]*\]", "", answer))
    return Feedback(float(bool(numbers) and numbers[-1] == prompt.answer), f"expected {prompt.answer}")
