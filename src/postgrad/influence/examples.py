"""What the room asks of data: a loss for each example under the module's weights. `Texts` answers for a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from postgrad.core.data import encode_prompt
from postgrad.core.errors import DataError
from postgrad.core.models import Model
from postgrad.core.types import Prompt
from postgrad.influence.data import Example, parse_row


class Examples(Protocol):
    """Examples of one role (training, query) with their losses under the weights that the module has at the moment.

    Attributes:
        weights: float32 [N], how often each example counts in the mean training loss (1, or the copies merged into it).

    It may have `names`, (id, text) of each for display.
    """

    weights: Tensor

    def __len__(self) -> int: ...

    def losses(self, indices: Sequence[int]) -> Tensor:
        """One loss for each of these examples [B], differentiable in the module's weights."""
        ...

    def sampled_losses(self, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        """The same with targets drawn from the model itself: their gradients' second moment is the Fisher information."""
        ...

    def batches(self, size: int) -> list[list[int]]:
        """All indices once, in batches that suit a forward pass."""
        ...


def make_examples(rows: Sequence[Any], role: str) -> list[Example]:
    """Examples from texts, rows or examples (see `data.parse_row`); equal ones become one that counts as often.

    Raises:
        DataError: nothing there, an empty text or completion, an id twice with other content.
    """
    if not rows:
        raise DataError(f"There are no {role} examples. Give at least one text.")
    content: dict[object, Example] = {}
    ids: set[str] = set()
    for number, row in enumerate(rows, 1):
        one = row if isinstance(row, Example) else parse_row(row, f"{role} example {number}")
        if before := content.get(one.content):
            content[one.content] = replace(before, copies=before.copies + one.copies)
        elif one.id in ids:
            raise DataError(f"Two different {role} examples have the id {one.id!r}. Give each its own.")
        else:
            content[one.content] = one
            ids.add(one.id)
    return list(content.values())


class Texts:
    """Examples of a causal language model. The loss is summed over the tokens that count: of the completion, or of a text all
    but the first; a stop token follows. Padding and prompts have no loss.

    With a chat template a prompt is what the template makes of the turns before (a text is a user's turn), and the completion
    what it makes of the assistant's, up to a stop token.

    Attributes:
        examples: what they are.
        weights: copies of each, float32 [N].
        tokens: ids of each.
        starts: place of the first token that counts, of each.
        num_cut: examples that were longer than `max_tokens`.
    """

    def __init__(self, model: Model, examples: Sequence[Example], max_tokens: int) -> None:
        self.examples = list(examples)
        self.weights = torch.tensor([float(one.copies) for one in examples], device=model.device)
        self.tokens: list[list[int]] = []
        self.starts: list[int] = []
        self.num_cut = 0
        self._model = model
        limit = min(max_tokens, model.context_length or max_tokens)
        for one in examples:
            self._encode(one, limit)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def names(self) -> list[tuple[str, str]]:
        """(id, text) of each."""
        return [(one.id, one.text) for one in self.examples]

    @property
    def num_tokens(self) -> list[int]:
        """How many tokens of each count."""
        return [len(ids) - start for ids, start in zip(self.tokens, self.starts, strict=True)]

    @property
    def tokenizer(self) -> Any:
        """Of the model."""
        return self._model.tokenizer

    def losses(self, indices: Sequence[int]) -> Tensor:
        """Sum over each example's counted tokens, nats, float32 [B]."""
        values, counts = self.token_losses(indices)
        owner = torch.repeat_interleave(torch.arange(len(indices), device=values.device), counts)
        return values.new_zeros(len(indices)).index_add(0, owner, values)

    def sampled_losses(self, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        """As `losses`, of tokens drawn from the model's own predictions."""
        logits, _, counts = self._predict(indices)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        values = F.cross_entropy(logits, drawn, reduction="none")
        owner = torch.repeat_interleave(torch.arange(len(indices), device=values.device), counts)
        return values.new_zeros(len(indices)).index_add(0, owner, values)

    def token_losses(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Losses of the counted tokens, one example after the other [T], and how many each has [B]."""
        logits, targets, counts = self._predict(indices)
        return F.cross_entropy(logits, targets, reduction="none"), counts

    def batches(self, size: int) -> list[list[int]]:
        """By length, so that little is padding."""
        order = sorted(range(len(self)), key=lambda index: len(self.tokens[index]))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _encode(self, one: Example, limit: int) -> None:
        before, ids = _encode(self._model, one)
        start = len(before) or 1
        ids = before + ids
        self.num_cut += len(ids) > limit
        ids = ids[:limit]
        if len(ids) <= start:
            raise DataError(
                f"Example {one.id!r} has no token left to predict: its prompt takes {start} of {limit} tokens. "
                "Raise max_tokens, or shorten the prompt."
            )
        self.tokens.append(ids)
        self.starts.append(start)

    def _predict(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the counted tokens float32 [T, V], the tokens [T], and how many each example has [B]."""
        device = self._model.device
        rows = [self.tokens[index] for index in indices]
        width = max(map(len, rows))
        tokens = torch.full((len(rows), width), self._model.pad_token_id, dtype=torch.int64)
        counted = torch.zeros(len(rows), width, dtype=torch.bool)
        for number, (index, row) in enumerate(zip(indices, rows, strict=True)):
            tokens[number, : len(row)] = torch.tensor(row)
            counted[number, self.starts[index] : len(row)] = True
        tokens, counted = tokens.to(device), counted[:, 1:].to(device)
        logits = cast("Any", self._model.module)(input_ids=tokens, use_cache=False).logits[:, :-1]
        return logits[counted].float(), tokens[:, 1:][counted], counted.sum(1)


def _encode(model: Model, one: Example) -> tuple[list[int], list[int]]:
    """Tokens of the prompt (none of a text) and of what follows, with its stop token."""
    tokenizer = cast("Any", model.tokenizer)
    if one.prompt is None and one.messages is None:
        before, ids = [], list(tokenizer(one.completion, verbose=False)["input_ids"])
    else:
        prompt = Prompt(id=one.id, text=one.prompt if one.messages is None else None, messages=one.messages)
        before = [int(token) for token in encode_prompt(tokenizer, prompt)]
        ids = _answer_in_chat(model, prompt, before, one.completion)
        if ids is None:
            ids = list(tokenizer(one.completion, add_special_tokens=False, verbose=False)["input_ids"])
    stop = tokenizer.eos_token_id
    if isinstance(stop, int) and (not ids or ids[-1] not in model.stop_token_ids):
        ids.append(stop)
    return before, ids


def _answer_in_chat(model: Model, prompt: Prompt, before: list[int], completion: str) -> list[int] | None:
    """The template's tokens for the assistant's turn, to its stop token; None where there is no template, or one that changes the
    turns before when an answer follows."""
    tokenizer = cast("Any", model.tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [*(prompt.messages or ({"role": "user", "content": prompt.text or ""},))]
    turns.append({"role": "assistant", "content": completion})
    try:
        whole = list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))
    except Exception as error:  # jinja2.TemplateError and whatever a template's own code raises
        raise DataError(
            f"The chat template of the tokenizer refuses the answer of example {prompt.id!r}: {error}."
        ) from None
    if whole[: len(before)] != before or len(whole) == len(before):
        return None
    after = [int(token) for token in whole[len(before) :]]
    ends = [number for number, token in enumerate(after) if token in model.stop_token_ids]
    return after[: ends[0] + 1] if ends else after
