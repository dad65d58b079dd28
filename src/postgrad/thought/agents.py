"""Agents: whatever has states and can go on from virtual tokens. Here those made of Hugging Face causal LMs.

`Agent` has two methods, so a model that is served elsewhere can join. `TrainableAgent` has what an adapter is trained through.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch and transformers are only partly typed)

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from postgrad.core.data import decode_completion, encode_prompt
from postgrad.core.errors import EngineError, ModelError
from postgrad.core.models.head import captured_hidden
from postgrad.core.models.memory.attach import find_blocks
from postgrad.core.models.memory.patch import fingerprint
from postgrad.core.models.model import Model
from postgrad.core.types import Prompt, Request
from postgrad.engines.torch_engine.engine import TorchEngine, generate
from postgrad.thought.config import StatesConfig

Tokens = NDArray[np.int64]


class Turn(NamedTuple):
    """What an agent said: the text, and its tokens where they are known."""

    text: str
    token_ids: tuple[int, ...] = ()


class Agent(Protocol):
    """Somebody who thinks and can be told.

    Attributes:
        name: how it is called.
        state_width: H of its states.
        embed_width: D of virtual tokens; 0 = it takes none and is told by text.
        embed_norm: mean norm of its token embeddings.
        fingerprint: names its weights and how its states are read.
    """

    @property
    def name(self) -> str: ...

    @property
    def state_width(self) -> int: ...

    @property
    def embed_width(self) -> int: ...

    @property
    def embed_norm(self) -> float: ...

    @property
    def fingerprint(self) -> str: ...

    def states(
        self,
        prompts: Sequence[Prompt],
        turns: Sequence[Turn] | None = None,
        prefix_embeds: Tensor | None = None,
    ) -> Tensor:
        """States at the end of prompts, and of turns that follow them: float32 [S, H], on the CPU.

        Args:
            prefix_embeds: virtual tokens before them [S, M, D].
        """
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        prefix_embeds: Tensor | None = None,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Turn]:
        """What follows each prompt, after virtual tokens [S, M, D] if given."""
        ...


class TrainableAgent(Agent, Protocol):
    """An agent that gradients go through, to its virtual tokens."""

    @property
    def embedding(self) -> Tensor:
        """Of its tokens [V, D]."""
        ...

    def answer_tokens(self, text: str) -> Tokens:
        """An answer as the agent would say it, with its stop token."""
        ...

    def answer_logits(
        self, prompts: Sequence[Prompt], answers: Sequence[Tokens], prefix_embeds: Tensor | None = None
    ) -> Tensor:
        """Logits at the tokens of all answers, one after another: [ΣT, V] float32. Differentiable in `prefix_embeds`."""
        ...


class ModelAgent:
    """A Hugging Face causal LM as an agent. Its weights are frozen.

    Args:
        model: loaded; agents may share it.
        states: where its states are read.
        name: how it is called.
        batch_tokens: most tokens in one forward pass, padding included.

    Raises:
        ModelError: an embedding in every layer, which virtual tokens have not; no list of blocks where `states.layer` < 1.
    """

    def __init__(
        self, model: Model, states: StatesConfig | None = None, name: str = "agent", batch_tokens: int = 8192
    ) -> None:
        self.model, self.where, self.name, self.batch_tokens = (
            model,
            states or StatesConfig(),
            name,
            batch_tokens,
        )
        text = cast("Any", model.module.config).get_text_config()
        if getattr(text, "hidden_size_per_layer_input", 0):
            raise ModelError(
                f"{name}: {type(model.module).__name__} looks up an embedding of each token in every layer. Virtual tokens have "
                "none, so it cannot be told thoughts. Use a model without per-layer embeddings."
            )
        cast("nn.Module", model.module).requires_grad_(False).eval()
        self._width = int(text.hidden_size)
        self._block: nn.Module | None = None
        depth = int(text.num_hidden_layers)
        layer = max(1, round(self.where.layer * depth))
        if layer < depth:
            self._block = find_blocks(model.module)[layer - 1]
        self.embed_norm = float(self.embedding.float().norm(dim=1).mean())

    @property
    def embedding(self) -> Tensor:
        """Of its tokens [V, D]."""
        return cast("nn.Embedding", self.model.module.get_input_embeddings()).weight

    @property
    def embed_width(self) -> int:
        """D."""
        return self.embedding.shape[1]

    @property
    def state_width(self) -> int:
        """H: the model's width for each of `states.tokens`."""
        return self._width * (1 if self.where.mean else self.where.tokens)

    @property
    def fingerprint(self) -> str:
        """Names weights, tokenizer and `states`."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(fingerprint(self.model.module).encode())
        digest.update(repr(sorted(self.model.tokenizer.get_vocab().items())).encode())
        digest.update(self.where.model_dump_json().encode())
        return digest.hexdigest()[:16]

    # -- states ----------------------------------------------------------------------------------------------------

    def tokens(self, prompt: Prompt, turn: Turn | None = None) -> tuple[Tokens, int]:
        """(tokens of a prompt and the turn that follows it, how many of them are the turn's)."""
        asked = encode_prompt(self.model.tokenizer, prompt)
        if turn is None:
            return asked, 0
        said = turn.token_ids or self._plain(turn.text)
        return np.concatenate([asked, np.asarray(said, dtype=np.int64)]), len(said)

    @torch.no_grad()
    def states(
        self,
        prompts: Sequence[Prompt],
        turns: Sequence[Turn] | None = None,
        prefix_embeds: Tensor | None = None,
    ) -> Tensor:
        """As `Agent.states`. Raises ModelError for states that are not finite."""
        rows = [self.tokens(prompt, turns[i] if turns else None) for i, prompt in enumerate(prompts)]
        found = torch.zeros(len(rows), self.state_width)
        for batch in self._batches([row for row, _ in rows], prefix_embeds):
            hidden = self._hidden([rows[i][0] for i in batch], _take(prefix_embeds, batch))
            start = hidden.shape[1] - max(len(rows[i][0]) for i in batch)
            for place, i in enumerate(batch):
                tokens, said = rows[i]
                own = hidden[place, start : start + len(tokens)].float()
                found[i] = self._read(own, said).cpu()
        if not bool(found.isfinite().all()):
            bad = (~found.isfinite().all(1)).nonzero().squeeze(-1).tolist()
            raise ModelError(
                f"{self.name}: {len(bad)} of {len(found)} states have NaN or infinite entries, the first at prompt "
                f"{prompts[bad[0]].id!r}. Load the model in float32, or leave these prompts out."
            )
        return found

    def _read(self, states: Tensor, said: int) -> Tensor:
        """The state that stands for a sequence, of all its states [T, H]."""
        last = states[-self.where.tokens :]
        if self.where.mean:
            return (last if self.where.tokens > 1 else states[-said:] if said else states).mean(0)
        missing = self.where.tokens - len(last)
        return torch.cat([last.new_zeros(missing * last.shape[1]), last.flatten()])

    def _hidden(self, rows: Sequence[Tokens], prefix: Tensor | None) -> Tensor:
        """States of the layer that is read [S, M + T, H], of sequences padded on the right."""
        embeds, mask = self._embed(rows, prefix)
        trunk = cast("Any", self.model.module.base_model)
        if self._block is None:
            return trunk(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        with _stopped_after(self._block) as kept:
            trunk(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
        return kept[0]

    def _embed(self, rows: Sequence[Tokens], prefix: Tensor | None) -> tuple[Tensor, Tensor]:
        """(embeddings [S, M + T, D], attention mask) of sequences padded on the right after their virtual tokens."""
        width = max(len(row) for row in rows)
        tokens = np.full((len(rows), width), self.model.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for place, row in enumerate(rows):
            tokens[place, : len(row)], mask[place, : len(row)] = row, 1
        device = self.model.device
        embeds = cast("nn.Module", self.model.module.get_input_embeddings())(
            torch.from_numpy(tokens).to(device)
        )
        seen = torch.from_numpy(mask).to(device)
        if prefix is None:
            return embeds, seen
        check_prefix(prefix, (len(rows), self.embed_width), self.name)
        front = prefix.to(device=device, dtype=embeds.dtype)
        return torch.cat([front, embeds], 1), torch.cat([seen.new_ones(front.shape[:2]), seen], 1)

    def _batches(self, rows: Sequence[Tokens], prefix: Tensor | None) -> Generator[list[int]]:
        """Numbers of sequences of about the same length, `batch_tokens` at a time."""
        extra = 0 if prefix is None else prefix.shape[1]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        batch: list[int] = []
        for i in order:
            if batch and (len(batch) + 1) * (len(rows[i]) + extra) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    # -- words -----------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Prompt],
        prefix_embeds: Tensor | None = None,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Turn]:
        """As `Agent.generate`, by continuous batching. A model that the engine cannot run goes through its own `generate`."""
        if prefix_embeds is not None:
            check_prefix(prefix_embeds, (len(prompts), self.embed_width), self.name)
        asked = [encode_prompt(self.model.tokenizer, prompt) for prompt in prompts]
        prefix = None if prefix_embeds is None else prefix_embeds.detach().float().cpu().numpy()
        requests = [
            Request(
                id=i, group_id=i, prompt_tokens=row, max_tokens=max_tokens, seed=seed, temperature=temperature,
                prefix_embeds=None if prefix is None else prefix[i],
            )
            for i, row in enumerate(asked)
        ]  # fmt: skip
        extra = 0 if prefix is None else prefix.shape[1]
        engine = _engine(self.model, max(map(len, asked)) + extra + max_tokens)
        said = (
            self._generate_padded(asked, prefix_embeds, max_tokens, temperature, seed)
            if engine is None
            else [sample.token_ids.tolist() for sample in generate(engine, requests)]
        )
        return [Turn(decode_completion(self.model.tokenizer, row), tuple(row)) for row in said]

    @torch.no_grad()
    def _generate_padded(
        self, asked: Sequence[Tokens], prefix: Tensor | None, max_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        """By the model's own `generate`, padded on the left: virtual tokens stand directly before the prompt."""
        said: list[list[int]] = [[] for _ in asked]
        options: dict[str, Any] = {"do_sample": False}
        if temperature:
            options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            torch.manual_seed(seed)
        for batch in self._batches(asked, prefix):
            embeds, mask = self._embed([asked[i] for i in batch], _take(prefix, batch))
            lengths = mask.sum(1)
            for place, length in enumerate(lengths.tolist()):  # from the right to the left
                embeds[place], mask[place] = embeds[place].roll(-int(length), 0), mask[place].flip(0)
            found = cast("Any", self.model.module).generate(
                inputs_embeds=embeds, attention_mask=mask, max_new_tokens=max_tokens,
                pad_token_id=self.model.pad_token_id, eos_token_id=list(self.model.stop_token_ids), **options,
            )  # fmt: skip
            for place, i in enumerate(batch):
                said[i] = _up_to_stop(found[place].tolist(), self.model.stop_token_ids)
        return said

    # -- training --------------------------------------------------------------------------------------------------

    def answer_tokens(self, text: str) -> Tokens:
        """As `TrainableAgent.answer_tokens`."""
        return np.asarray([*self._plain(text), self.model.stop_token_ids[0]], dtype=np.int64)

    def answer_logits(
        self, prompts: Sequence[Prompt], answers: Sequence[Tokens], prefix_embeds: Tensor | None = None
    ) -> Tensor:
        """As `TrainableAgent.answer_logits`; the head runs at answers alone."""
        asked = [encode_prompt(self.model.tokenizer, prompt) for prompt in prompts]
        rows = [np.concatenate(pair)[:-1] for pair in zip(asked, answers, strict=True)]
        embeds, mask = self._embed(rows, prefix_embeds)
        start = embeds.shape[1] - max(map(len, rows))
        with captured_hidden(self.model.module) as inputs:
            self.model.module(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
        places = [
            start + len(prompt) - 1 + torch.arange(len(answer))
            for prompt, answer in zip(asked, answers, strict=True)
        ]
        row = torch.repeat_interleave(
            torch.arange(len(rows)), torch.tensor([len(answer) for answer in answers])
        )
        hidden = inputs[0][row.to(embeds.device), torch.cat(places).to(embeds.device)]
        return cast("Callable[[Tensor], Tensor]", self.model.module.get_output_embeddings())(hidden).float()

    def _plain(self, text: str) -> list[int]:
        return cast(
            "list[int]", self.model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        )


def check_prefix(prefix: Tensor, sizes: tuple[int, int], name: str) -> None:
    """Raises ModelError for virtual tokens that are not [S, M, D], or not finite."""
    if prefix.ndim != 3 or (prefix.shape[0], prefix.shape[2]) != sizes:
        raise ModelError(
            f"{name}: virtual tokens are [{sizes[0]}, M, {sizes[1]}] (prompts, vectors, width of token embeddings); received "
            f"{list(prefix.shape)}."
        )
    if not bool(prefix.isfinite().all()):
        raise ModelError(
            f"{name}: virtual tokens have NaN or infinite entries. Check the adapter that made them."
        )


def _take(prefix: Tensor | None, batch: Sequence[int]) -> Tensor | None:
    return None if prefix is None else prefix[list(batch)]


def _up_to_stop(tokens: Sequence[int], stops: Sequence[int]) -> list[int]:
    """Tokens up to the first that stops, it included."""
    for place, token in enumerate(tokens):
        if token in stops:
            return list(tokens[: place + 1])
    return list(tokens)


class _Enough(Exception):  # noqa: N818  (no error)
    """The layer that was wanted is there."""


@contextmanager
def _stopped_after(block: nn.Module) -> Generator[list[Tensor]]:
    """Within it a forward pass ends after this block, whose output is appended to the list."""
    kept: list[Tensor] = []

    def stop(module: nn.Module, inputs: object, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)
        raise _Enough

    handle = block.register_forward_hook(stop)
    try:
        yield kept
    except _Enough:
        pass
    finally:
        handle.remove()


_engines: weakref.WeakKeyDictionary[Any, tuple[int, TorchEngine | None]] = weakref.WeakKeyDictionary()
_SLOTS = 64


def _engine(model: Model, length: int) -> TorchEngine | None:
    """The engine of a model, made anew where it is too short; None for a model that it cannot run."""
    known = _engines.get(model.module)
    if known is None or (known[1] is not None and known[0] < length):
        size = 64 * -(-length // 64)
        if model.context_length:
            size = max(length, min(size, model.context_length))
        try:
            made = TorchEngine(model, slots=_SLOTS, max_length=size, fp32_head=False)
        except EngineError:
            if model.context_length and length > model.context_length:
                raise
            made = None
        _engines[model.module] = known = size, made
    return known[1]
