"""What agents thought and said, kept: states by model, prompt, turn and layer; a stopped run computes none of them twice.

AGENT-states/block-00000.safetensors    states of some prompts, their keys in the metadata
AGENT-turns.jsonl                       a line for each turn that was said
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from postgrad.core.errors import RunError
from postgrad.core.runfiles import LineFile, explain_os_error, replace_file
from postgrad.core.types import Prompt
from postgrad.thought.agents import Agent, Turn

BLOCK = 512
"""Prompts whose states, or turns, are written at once."""


class CachedAgent:
    """An agent that remembers. Everything else is the agent's own.

    Args:
        agent: any.
        folder: made if missing.

    Raises:
        RunError: it cannot be read or written.
    """

    def __init__(self, agent: Agent, folder: Path) -> None:
        self.agent = agent
        self.name, self.fingerprint = agent.name, agent.fingerprint
        self.state_width, self.embed_width, self.embed_norm = (
            agent.state_width,
            agent.embed_width,
            agent.embed_norm,
        )
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", agent.name)
        self._folder = folder / f"{name}-states"
        self._places: dict[str, tuple[Path, int]] = {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._turns = LineFile(folder / f"{name}-turns.jsonl")
            self._turns.trim_torn_line()
            said = self._turns.read()
        except OSError as error:
            raise RunError(explain_os_error(error, self._folder)) from error
        self._said = {row["key"]: Turn(row["text"], tuple(row["tokens"])) for row in said}
        for path in sorted(self._folder.glob("block-*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    keys = json.loads(file.metadata()["keys"])
            except (OSError, SafetensorError, ValueError, KeyError) as error:
                raise RunError(
                    f"{path} is damaged ({error}). Remove it: its states are computed again."
                ) from None
            self._places |= {key: (path, row) for row, key in enumerate(keys)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.agent, name)

    def states(
        self,
        prompts: Sequence[Prompt],
        turns: Sequence[Turn] | None = None,
        prefix_embeds: Tensor | None = None,
    ) -> Tensor:
        """As `Agent.states`."""
        keys = [
            self._key(
                "states",
                prompt,
                turns[i] if turns else None,
                None if prefix_embeds is None else prefix_embeds[i],
            )
            for i, prompt in enumerate(prompts)
        ]
        missing = [i for i, key in enumerate(keys) if key not in self._places]
        for start in range(0, len(missing), BLOCK):
            some = missing[start : start + BLOCK]
            found = self.agent.states(
                [prompts[i] for i in some],
                [turns[i] for i in some] if turns else None,
                None if prefix_embeds is None else prefix_embeds[some],
            )
            self._write([keys[i] for i in some], found)
        rows = torch.empty(len(keys), self.agent.state_width)
        by_path: dict[Path, list[int]] = {}
        for i, key in enumerate(keys):
            by_path.setdefault(self._places[key][0], []).append(i)
        for path, places in by_path.items():
            with safe_open(path, "pt") as file:
                rows[places] = file.get_tensor("states")[[self._places[keys[i]][1] for i in places]]
        return rows

    def generate(
        self,
        prompts: Sequence[Prompt],
        prefix_embeds: Tensor | None = None,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Turn]:
        """As `Agent.generate`."""
        how = f"{max_tokens} {temperature} {seed if temperature else ''}"
        keys = [
            self._key(how, prompt, None, None if prefix_embeds is None else prefix_embeds[i])
            for i, prompt in enumerate(prompts)
        ]
        missing = [i for i, key in enumerate(keys) if key not in self._said]
        for start in range(0, len(missing), BLOCK):
            some = missing[start : start + BLOCK]
            said = self.agent.generate(
                [prompts[i] for i in some],
                None if prefix_embeds is None else prefix_embeds[some],
                max_tokens=max_tokens, temperature=temperature, seed=seed,
            )  # fmt: skip
            self._said |= {keys[i]: turn for i, turn in zip(some, said, strict=True)}
            self._turns.append(
                [
                    {"key": keys[i], "text": turn.text, "tokens": list(turn.token_ids)}
                    for i, turn in zip(some, said, strict=True)
                ]
            )
        return [self._said[key] for key in keys]

    def _key(self, what: str, prompt: Prompt, turn: Turn | None, prefix: Tensor | None) -> str:
        asked = [dict(message) for message in prompt.messages] if prompt.messages else prompt.text
        digest = hashlib.sha256(json.dumps([self.fingerprint, what, asked, turn]).encode())
        if prefix is not None:
            digest.update(prefix.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def _write(self, keys: Sequence[str], states: Tensor) -> None:
        number = len(list(self._folder.glob("block-*.safetensors")))
        path = self._folder / f"block-{number:05d}.safetensors"
        try:
            replace_file(path, save({"states": states.contiguous()}, {"keys": json.dumps(list(keys))}))
        except OSError as error:
            raise RunError(explain_os_error(error, self._folder)) from error
        self._places |= {key: (path, row) for row, key in enumerate(keys)}
