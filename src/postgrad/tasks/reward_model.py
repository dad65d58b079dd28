"""A reward model as judge: a Hugging Face sequence classifier in this process."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import torch

from postgrad.core.data import plain_text
from postgrad.core.errors import ModelError
from postgrad.core.models.model import resolve_device, resolve_dtype
from postgrad.core.models.paths import locate
from postgrad.core.models.quiet import quiet_transformers
from postgrad.core.types import Prompt, Verdict
from postgrad.tasks.config import RewardModelConfig
from postgrad.tasks.judge import after_thinking, check_tickets, checked, reward_label
from postgrad.tasks.worker import describe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_UNLIMITED = 10**9
"""Tokenizers say 10³⁰ where they know no limit."""


class RewardModel:
    """Scores prompt and completion with a sequence classifier; a `core.protocols.Judge`.

    The texts that are collected together are scored together, sorted by length and padded to the right, never with others:
    so a verdict does not depend on what else is under way (padding moves it by rounding only). What does not work out is a
    verdict without a score: a text longer than `max_tokens`, a chat template that refuses the messages, no memory for a
    single text (`error`); NaN or an infinity (`non_finite`).

    Args:
        config: which model, and how.

    Raises:
        ModelError: no such model, or no sequence classifier with trained weights.
        ConfigError: several outputs and no label.
    """

    def __init__(self, config: RewardModelConfig) -> None:
        self._device = resolve_device(config.device)
        trust = config.trust_remote_code
        path, _ = locate(config.path, config.revision, trust_remote_code=trust)
        with quiet_transformers():
            self._tokenizer, self._module = _load(str(path), resolve_dtype(config.dtype, self._device), trust)
        self._config = config
        shape = cast("Any", self._module.config)
        self._label = reward_label(config, {int(i): str(name) for i, name in shape.id2label.items()})
        self._pad = shape.get_text_config().pad_token_id
        self._limit = config.max_tokens or _readable_tokens(self._tokenizer, shape)
        self._inputs = inspect.signature(self._module.forward).parameters
        cast("torch.nn.Module", self._module).to(self._device).eval()
        self._texts: dict[int, tuple[Prompt, str]] = {}
        self._numbers = count()

    def submit(self, prompt: Prompt, completion: str) -> int:
        """Keep the text until it is collected; returns a ticket."""
        ticket = next(self._numbers)
        self._texts[ticket] = prompt, completion
        return ticket

    def collect(self, tickets: Sequence[int]) -> list[Verdict]:
        """Score these tickets; their verdicts in the same order. Raises TaskError for a ticket that is not there."""
        check_tickets(tickets, dict(self._texts))
        verdicts: list[Verdict | None] = []
        places: dict[tuple[int, ...], list[int]] = {}
        for place, ticket in enumerate(tickets):
            outcome = self._tokens(*self._texts.pop(ticket))
            verdicts.append(outcome if isinstance(outcome, Verdict) else None)
            if not isinstance(outcome, Verdict):
                places.setdefault(tuple(outcome), []).append(place)
        distinct = sorted(places, key=lambda tokens: (len(tokens), tokens))
        for start in range(0, len(distinct), self._config.batch_size):
            batch = distinct[start : start + self._config.batch_size]
            for tokens, verdict in zip(batch, self._score(batch), strict=True):
                for place in places[tokens]:
                    verdicts[place] = verdict
        return [verdict for verdict in verdicts if verdict is not None]

    def _tokens(self, prompt: Prompt, completion: str) -> list[int] | Verdict:
        """What the model reads, or why it cannot."""
        try:
            ids = encode(self._tokenizer, prompt, after_thinking(completion))
        except Exception as error:  # jinja2.TemplateError and whatever a template's own code raises
            return Verdict(None, "error", f"the reward model's chat template refuses it: {describe(error)}")
        if not ids:
            return Verdict(None, "error", "the reward model's tokenizer makes no token of it")
        if len(ids) > self._limit:
            return Verdict(
                None,
                "error",
                f"prompt and completion have {len(ids)} tokens; the reward model {self._config.path} reads {self._limit}. "
                "Lower length.max_prompt_tokens or length.max_completion_tokens, or raise reward_model.max_tokens",
            )
        return ids

    def _score(self, batch: Sequence[tuple[int, ...]]) -> list[Verdict]:
        """Verdicts of a batch; one that fails is halved until a single text fails."""
        try:
            return [checked(value, f"the reward model {self._config.path}") for value in self._forward(batch)]
        except Exception as error:  # out of memory, mostly
            if len(batch) == 1:
                return [Verdict(None, "error", f"the reward model failed: {describe(error)}")]
        half = len(batch) // 2
        return self._score(batch[:half]) + self._score(batch[half:])

    @torch.inference_mode()
    def _forward(self, batch: Sequence[tuple[int, ...]]) -> list[float]:
        """The chosen output of each text."""
        width = max(map(len, batch))
        # Decoders score the last token that is not the pad; a model that names none is given one that no text holds.
        pad = (
            self._pad
            if self._pad is not None
            else min(set(range(width + 1)) - {t for row in batch for t in row}, default=0)
        )
        cast("Any", self._module.config).get_text_config().pad_token_id = pad
        ids = torch.full((len(batch), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        extra = {"use_cache": False} if "use_cache" in self._inputs else {}
        logits = self._module(
            input_ids=ids.to(self._device), attention_mask=mask.to(self._device), **extra
        ).logits.float()
        if self._config.output == "probability":
            logits = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(-1)
        return logits[:, self._label].tolist()


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: str) -> list[int]:
    """The tokens that a reward model reads.

    With a chat template the prompt's messages (a text is one user turn) and the completion as the assistant's turn;
    without one prompt, newline, completion, with the special tokens that the tokenizer adds.
    """
    if not getattr(tokenizer, "chat_template", None):
        return list(tokenizer(plain_text(prompt) + completion, verbose=False)["input_ids"])  # pyright: ignore[reportArgumentType]
    turns = [dict(turn) for turn in prompt.messages or ({"role": "user", "content": prompt.text or ""},)]
    turns.append({"role": "assistant", "content": completion})
    ids = tokenizer.apply_chat_template(
        cast("Any", turns), tokenize=True, add_generation_prompt=False, return_dict=False
    )
    return list(cast("list[int]", ids))


def _readable_tokens(tokenizer: PreTrainedTokenizerBase, shape: Any) -> int:
    positions = getattr(shape.get_text_config(), "max_position_embeddings", None) or _UNLIMITED
    return min(int(positions), int(min(tokenizer.model_max_length, _UNLIMITED)))


def _load(
    path: str, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and classifier; refuses weights that do not hold the classifier's head."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        module, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:  # OSError, ValueError, SafetensorError, size mismatches, import errors
        raise ModelError(
            f"The reward model {path} cannot be loaded as a sequence classifier ({describe(error).splitlines()[0]}). "
            "Valid: what AutoModelForSequenceClassification loads, with its tokenizer."
        ) from None
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise ModelError(
            f"{path} is no trained reward model: it lacks {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}, which "
            "would be random. A language model has no such head; give a model made for sequence classification."
        )
    return cast("PreTrainedTokenizerBase", tokenizer), cast("PreTrainedModel", module)
