"""Small models with random weights, written to directories: a policy, reward models, an encoder, a pair classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from postgrad.core.models.phrases import build_tokenizer

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """Bytes and four special tokens."""
    made = build_tokenizer(["a poem about rain"], 264, 128)
    if chat:
        made.chat_template = CHAT_TEMPLATE
    return made


def reward_model(folder: Path, kind: str = "qwen3", *, chat: bool = False, **changes: Any) -> Path:
    """A sequence classifier with one output (`num_labels` for more)."""
    torch.manual_seed(changes.pop("seed", 0))
    vocabulary = tokenizer(chat=chat)
    sizes = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
    }
    if kind == "qwen3":
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3}
        options = {"max_position_embeddings": 512, "num_labels": 1, "pad_token_id": None, **changes}
        module: Any = Qwen3ForSequenceClassification(Qwen3Config(**sizes, **heads, **options))
    else:
        options = {"num_attention_heads": 4, "num_labels": 1, "initializer_range": 0.3, **changes}
        module = BertForSequenceClassification(BertConfig(**sizes, **options))
    module.save_pretrained(folder)
    vocabulary.save_pretrained(folder)
    return folder


def encoder(folder: Path) -> Path:
    """A BERT without a head."""
    torch.manual_seed(1)
    vocabulary = tokenizer()
    sizes = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
    }
    config = BertConfig(
        **sizes, num_attention_heads=4, initializer_range=0.3, pad_token_id=vocabulary.pad_token_id
    )
    BertModel(config).save_pretrained(folder)
    vocabulary.save_pretrained(folder)
    return folder
