"""What the room asks of data: a loss for each example under the module's weights. `Texts` answers for a causal language model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from postgrad.core.data import encode_prompt
from postgrad.core.errors import DataError
from postgrad.core.models import Model
from postgrad.core.types import Prompt


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


@dataclass(frozen=True)
class Example:
    """A text, or a prompt with what follows it; only the latter has a loss then.

    Attributes:
        id: given, or a hash of the content.
        completion: what is predicted.
        prompt: what stands before, or None.
        copies: how many equal rows were merged into it.
    """

    id: str
    completion: str
    prompt: str | None = None
    copies: int = 1

    @property
    def text(self) -> str:
        """Prompt and completion, for display."""
        return self.completion if self.prompt is None else f"{self.prompt}\n{self.completion}"


def make_examples(rows: Sequence[Any], role: str) -> list[Example]:
    """Examples from texts, `{"text": …}` or `{"prompt": …, "completion": …}` rows; equal ones become one that counts as often.

    Raises:
        DataError: nothing there, an empty text or completion, an id twice with other content.
    """
    if not rows:
        raise DataError(f"There are no {role} examples. Give at least one text.")
    content: dict[tuple[str | None, str], Example] = {}
    ids: dict[str, tuple[str | None, str]] = {}
    for number, row in enumerate(rows, 1):
        one = row if isinstance(row, Example) else _example(row, f"{role} example {number}")
        key = (one.prompt, one.completion)
        if key in content:
            before = content[key]
            content[key] = Example(before.id, one.completion, one.prompt, before.copies + one.copies)
        elif one.id in ids:
            raise DataError(f"Two different {role} examples have the id {one.id!r}. Give each its own.")
        else:
            content[key], ids[one.id] = one, key
    return list(content.values())


def _example(row: Any, place: str) -> Example:
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise DataError(
            f'{place} is no text and no row such as {{"text": "…"}} (received {str(row)[:60]!r}).'
        )
    data = cast("dict[str, Any]", row)
    prompt = data.get("prompt")
    field = "text" if prompt is None else "completion"
    value = data.get(field)
    if not isinstance(value, str) or not value.strip():
        columns = ", ".join(data) or "none"
        raise DataError(
            f"{place}: the {field} is empty or missing, so it has no loss (columns: {columns}). "
            'Valid: {"text": "…"} or {"prompt": "…", "completion": "…"}.'
        )
    if prompt is not None and not isinstance(prompt, str):
        raise DataError(f"{place}: the prompt is no text (received {str(prompt)[:60]!r}).")
    digest = hashlib.blake2b(f"{prompt}\0{value}".encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return Example(str(data["id"]) if "id" in data else digest, value, prompt)


class Texts:
    """Examples of a causal language model. The loss is summed over the tokens that count: of the completion, or of a text all
    but the first; a stop token follows. Padding and prompts have no loss.

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
        model = self._model
        ids = [
            int(token) for token in cast("Any", model.tokenizer)(one.completion, verbose=False)["input_ids"]
        ]
        stop = model.tokenizer.eos_token_id
        if isinstance(stop, int) and (not ids or ids[-1] != stop):
            ids.append(stop)
        start = 1
        if one.prompt is not None:
            before = [
                int(token) for token in encode_prompt(model.tokenizer, Prompt(id=one.id, text=one.prompt))
            ]
            start, ids = len(before), before + ids
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
