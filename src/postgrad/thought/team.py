"""Team: agents, the autoencoder of their states and the adapter that tells them each other's thoughts.

One exchange (a round): every agent says its turn, or nothing; its state is taken; ẑ = f_e(H); each agent is given its own virtual
tokens, which stand before what it is asked next.

Shapes: S cases, A agents, H state dimensions of all agents, Z thoughts, M virtual tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from postgrad.core.config import validate
from postgrad.core.errors import ConfigError, DataError, ModelError
from postgrad.core.runfiles import explain_os_error, pretty_json, replace_file
from postgrad.core.types import Prompt
from postgrad.thought.adapter import Adapter
from postgrad.thought.agents import Agent, ModelAgent, Turn
from postgrad.thought.autoencoder import Autoencoder
from postgrad.thought.cases import Case
from postgrad.thought.config import TeamConfig
from postgrad.thought.structure import Structure, read_structure

FORMAT = 1

Messages = Callable[[Case, int, Sequence[Turn]], Prompt]
"""What agent number i is asked of a case where the others' turns [A] are told by text."""


class Round(NamedTuple):
    """What happened in an exchange.

    Attributes:
        turns: of each agent, at each case [A][S]; empty where nothing is said.
        states: H [S, H].
    """

    turns: list[list[Turn]]
    states: Tensor


class Team:
    """Agents that exchange thoughts.

    Args:
        agents: at least two; widths may differ.
        config: rounds, turns, states.
        messages: how turns are told by text; None = `config.message_template`.

    Attributes:
        autoencoder, adapter: None before `fit`.

    Raises:
        ConfigError: fewer than two agents, two of one name.
    """

    def __init__(
        self, agents: Sequence[Agent], config: TeamConfig | None = None, messages: Messages | None = None
    ) -> None:
        if len(agents) < 2:
            raise ConfigError(
                f"A team has at least two agents; received {len(agents)}. With one there is nobody to tell."
            )
        names = [agent.name for agent in agents]
        if len(set(names)) < len(names):
            raise ConfigError(f"Two agents have one name: {', '.join(names)}. Names must differ.")
        self.agents, self.config = list(agents), config or TeamConfig()
        self.messages = messages or self._from_template
        self.autoencoder: Autoencoder | None = None
        self.adapter: Adapter | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """State dimensions of each agent."""
        return tuple(agent.state_width for agent in self.agents)

    def check(self, cases: Sequence[Case]) -> None:
        """Raises DataError: no case, or one that is not for so many agents."""
        if not cases:
            raise DataError("There is no case.")
        for case in cases:
            if len(case.views) != len(self.agents) or len(case.questions) != len(self.agents):
                raise DataError(
                    f"Case {case.id!r} has {len(case.views)} views and {len(case.questions)} questions; the team has "
                    f"{len(self.agents)} agents."
                )

    # -- thinking --------------------------------------------------------------------------------------------------

    def listen(self, cases: Sequence[Case], prefixes: Sequence[Tensor] | None = None) -> Round:
        """Turns and states of one exchange, after what agents were told in the one before."""
        turns: list[list[Turn]] = []
        states: list[Tensor] = []
        for number, agent in enumerate(self.agents):
            views = [case.views[number] for case in cases]
            prefix = self._prefix(prefixes, number)
            said: list[Turn] = []
            if self.config.turn_tokens:
                said = agent.generate(views, prefix, max_tokens=self.config.turn_tokens)
            turns.append(said)
            states.append(agent.states(views, said or None, prefix))
        return Round(turns, torch.cat(states, 1))

    @torch.no_grad()
    def think(self, states: Tensor) -> Tensor:
        """ẑ [S, Z] of states [S, H]. Raises ModelError before `fit`, DataError for states that are not finite."""
        autoencoder, _ = self.fitted()
        if not bool(states.isfinite().all()):
            raise DataError("States have NaN or infinite entries: there is no thought to be read from them.")
        return autoencoder.encode(states)

    @torch.no_grad()
    def tell(self, thoughts: Tensor) -> list[Tensor]:
        """Virtual tokens of each agent [S, M, D_i]."""
        return self.fitted()[1](thoughts)

    def exchange(self, cases: Sequence[Case], rounds: int | None = None) -> tuple[list[Tensor], Round]:
        """(virtual tokens of each agent after the last round, that round)."""
        self.check(cases)
        heard = self.listen(cases)
        prefixes = self.tell(self.think(heard.states))
        for _ in range((rounds or self.config.rounds) - 1):
            heard = self.listen(cases, prefixes)
            prefixes = self.tell(self.think(heard.states))
        return prefixes, heard

    def answer(
        self,
        cases: Sequence[Case],
        prefixes: Sequence[Tensor] | None = None,
        turns: Sequence[Sequence[Turn]] | None = None,
    ) -> list[list[Turn]]:
        """What each agent answers [A][S].

        Args:
            prefixes: its virtual tokens; None = none.
            turns: told by text to all agents, or without `prefixes` being None to those alone that take no virtual tokens.
        """
        self.check(cases)
        answers: list[list[Turn]] = []
        for number, agent in enumerate(self.agents):
            by_text = turns is not None and (prefixes is None or not agent.embed_width)
            questions = [
                self.messages(case, number, [told[i] for told in turns])
                if by_text and turns
                else case.questions[number]
                for i, case in enumerate(cases)
            ]
            prefix = self._prefix(prefixes, number)
            answers.append(agent.generate(questions, prefix, max_tokens=self.config.answer_tokens))
        return answers

    def generate(self, cases: Sequence[Case]) -> list[list[Turn]]:
        """Exchanges thoughts and answers [A][S]."""
        prefixes, heard = self.exchange(cases)
        by_text = any(not agent.embed_width for agent in self.agents)
        return self.answer(cases, prefixes, heard.turns if by_text else None)

    def structure(self, states: Tensor, tolerance: float | None = None) -> Structure:
        """Who holds which thoughts, on these states."""
        return read_structure(self.fitted()[0], states, tolerance)

    def fitted(self) -> tuple[Autoencoder, Adapter]:
        """(autoencoder, adapter). Raises ModelError before `fit`."""
        if self.autoencoder is None or self.adapter is None:
            raise ModelError(
                "This team has not learned to exchange thoughts yet. Call fit, or Team.from_pretrained."
            )
        return self.autoencoder, self.adapter

    def _prefix(self, prefixes: Sequence[Tensor] | None, number: int) -> Tensor | None:
        return prefixes[number] if prefixes is not None and self.agents[number].embed_width else None

    def _from_template(self, case: Case, number: int, turns: Sequence[Turn]) -> Prompt:
        told = [
            f"{agent.name}: {turn.text.strip()}"
            for place, (agent, turn) in enumerate(zip(self.agents, turns, strict=True))
            if place != number
        ]
        question = case.questions[number]
        fill = {"{messages}": "\n".join(told), "{prompt}": question.content}

        def filled(prompt: str) -> str:
            text = self.config.message_template.replace("{prompt}", "\0").replace(
                "{messages}", fill["{messages}"]
            )
            return text.replace("\0", prompt)

        if question.messages is None:
            return Prompt(id=question.id, text=filled(fill["{prompt}"]))
        *before, last = question.messages
        return Prompt(
            id=question.id, messages=(*before, {"role": last["role"], "content": filled(last["content"])})
        )

    # -- as files --------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes autoencoder, adapter and `team.json`; the models stay where they are, named by their fingerprints.

        Raises:
            ModelError: not fitted, or it cannot be written.
        """
        folder = Path(folder)
        autoencoder, adapter = self.fitted()
        autoencoder.save(folder)
        adapter.save(folder, autoencoder.fingerprint())
        about = {
            "format": FORMAT,
            "agents": [{"name": agent.name, "fingerprint": agent.fingerprint} for agent in self.agents],
            "config": self.config.model_dump(mode="json"),
        }
        try:
            replace_file(folder / "team.json", pretty_json(about))
        except OSError as error:
            raise ModelError(f"The team was not written. {explain_os_error(error, folder)}") from error

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, agents: Sequence[Agent] | None = None, messages: Messages | None = None
    ) -> Team:
        """Reads what `save_pretrained` wrote.

        Args:
            agents: None = loaded from where the config says.

        Raises:
            ModelError: missing or damaged files; models that are not those it was fitted to.
        """
        folder = Path(folder)
        config, known = read_about(folder)
        team = cls(make_agents(config) if agents is None else agents, config, messages)
        found = [(agent.name, agent.fingerprint) for agent in team.agents]
        if len(found) != len(known):
            raise ModelError(f"{folder} is a team of {len(known)} agents; received {len(found)}.")
        for (name, expected), (_, own) in zip(known, found, strict=True):
            if expected != own:
                raise ModelError(
                    f"{folder}: {name} was model {expected} when the team was fitted, and is {own} now (weights, tokenizer or "
                    "where states are read). Thoughts of one model mean nothing to another: give the same, or fit again."
                )
        team.autoencoder = Autoencoder.load(folder)
        team.adapter = Adapter.load(folder, team.autoencoder.fingerprint())
        return team


def read_about(folder: Path) -> tuple[TeamConfig, list[tuple[str, str]]]:
    """Config, and names and fingerprints of the agents, of a team that was saved. Raises ModelError: it cannot be read."""
    try:
        about = cast("dict[str, Any]", json.loads((folder / "team.json").read_bytes()))
        config = validate(TeamConfig, about["config"])
        return config, [(str(one["name"]), str(one["fingerprint"])) for one in about["agents"]]
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise ModelError(f"There is no team that can be read in {folder}: {error}") from error


def make_agents(config: TeamConfig) -> list[Agent]:
    """The agents of a config; those with the same model share its weights.

    Raises:
        ConfigError: no agent.
        ModelError, MissingExtraError: as `load`, `ModelAgent`, `make_chat`.
    """
    if not config.agents:
        raise ConfigError("A team needs agents: at least two [[agents]] with a model.")
    from postgrad.core.models.model import load

    loaded: dict[tuple[object, ...], Any] = {}
    agents: list[Agent] = []
    for name, one in zip(config.names, config.agents, strict=True):
        key = (one.model, one.revision, one.device, one.dtype)
        if key not in loaded:
            loaded[key] = load(
                one.model, device=one.device, dtype=one.dtype, revision=one.revision,
                trust_remote_code=one.trust_remote_code,
            )  # fmt: skip
        agent = ModelAgent(loaded[key], config.states, name, config.batch_tokens)
        if one.chat is not None:
            from postgrad.thought.served import ServedAgent

            agents.append(ServedAgent(one.chat, agent))
        else:
            agents.append(agent)
    return agents
