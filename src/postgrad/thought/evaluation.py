"""Does a team understand each other, or only do its virtual tokens look as if? Answers by thoughts beside all controls.

| way | what an agent is given | if thoughts are real |
|---|---|---|
| `thoughts` | its virtual tokens | |
| `alone` | nothing | lower |
| `zero`, `random` | vectors of zeros; of random directions, as long as the real ones | no better than `alone` |
| `shuffled` | the virtual tokens of another case | no better than `alone` |
| `own` | thoughts read from its own state, all others' at their mean | lower |
| `vote` | the answer that most agents gave alone (the first of them in a tie) | lower |
| `text` | the others' turns as text (their answers, where they say no turn) | |
| `raw` | the others' last states as they are, mapped linearly to its embeddings | |
| `whole` | all that is known: the ceiling | higher |

An answer that cannot be read is wrong and stays in the denominator.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from postgrad.core.errors import ConfigError
from postgrad.core.statistics import Interval, clustered_rate, paired_difference
from postgrad.thought import ops
from postgrad.thought.agents import ModelAgent, Turn
from postgrad.thought.cases import Case, Grader, grade_exact
from postgrad.thought.config import StatesConfig
from postgrad.thought.team import Round, Team

Way = Literal["thoughts", "alone", "zero", "random", "shuffled", "own", "vote", "text", "raw", "whole"]
WAYS: tuple[Way, ...] = get_args(Way)


class Row(NamedTuple):
    """One way of telling.

    Attributes:
        way: its name.
        answers: of each agent at each case [A][S]; of `vote` one row.
        right: the same.
        accuracy: mean over agents and cases, 95 % interval with cases as the unit of chance.
        positions: tokens, real or virtual, that an agent is given, mean.
        bits: of what it is told, mean: 32 for each thought or state, or as many as it is
            quantised to; 8 for each byte of text.
    """

    way: Way
    answers: list[list[str]]
    right: list[list[bool]]
    accuracy: Interval
    positions: float
    bits: float


class Evaluation(NamedTuple):
    """Attributes:
    rows: by way.
    warnings: what speaks against the thoughts.
    seconds_per_case: of reading thoughts and telling them, without the language models.
    flops_per_case: the same, counted.
    """

    rows: dict[str, Row]
    warnings: list[str]
    seconds_per_case: float
    flops_per_case: int

    def gain(self, way: Way, over: Way) -> Interval:
        """Difference of accuracies, paired by case and agent, 95 % interval with cases as the unit of chance: Newcombe's of all
        pairs, widened by how much alike the pairs of a case are."""
        first, second = (self._by_agent(self.rows[name].right) for name in (way, over))
        found = paired_difference(list(zip(itertools.chain(*first), itertools.chain(*second), strict=True)))
        agents = len(first)
        each = torch.tensor(first, dtype=torch.float64) - torch.tensor(second, dtype=torch.float64)
        apart, alike = float(each.var(correction=0)) / agents, float(each.mean(0).var(correction=0))
        wider = math.sqrt(min(agents, max(1.0, alike / apart)) if apart else agents)
        low, high = wider * (found.mean - found.low), wider * (found.high - found.mean)
        return Interval(found.mean, max(-1.0, found.mean - low), min(1.0, found.mean + high))

    def _by_agent(self, right: list[list[bool]]) -> list[list[bool]]:
        """A row for each agent, also of an answer that they gave together."""
        agents = max(len(row.right) for row in self.rows.values())
        return right * agents if len(right) == 1 else right


def evaluate(
    team: Team,
    cases: Sequence[Case],
    ways: Sequence[Way] = WAYS,
    grader: Grader = grade_exact,
    *,
    bits: int | None = None,
    without: Sequence[int] = (),
) -> Evaluation:
    """Asks all cases in all ways.

    Args:
        bits: of each thought that is told; None = as it is.
        without: numbers of thoughts that are set to 0 before they are told.

    Raises:
        ConfigError: a way that this team has not, such as `whole` where cases have none.
        DataError, ModelError: as `Team.exchange`.
    """
    for way in ways:
        if way not in WAYS:
            raise ConfigError(f"Unknown way {way!r}. Valid: {', '.join(WAYS)}.")
    prefixes, heard, seconds = _told(team, cases, bits, without)
    alone = team.answer(cases)
    rows: dict[str, Row] = {}
    for way in ways:
        if way == "whole" and any(case.whole is None for case in cases):
            continue
        answers = _answers(team, cases, way, prefixes, heard, alone)
        right = [grader(cases, row) for row in answers]
        accuracy = clustered_rate(list(zip(*right, strict=True)))
        rows[way] = Row(way, answers, right, accuracy, *_budget(team, cases, way, heard, alone, bits))
    return Evaluation(rows, _warnings(team, heard, rows), seconds / len(cases), _flops(team))


def _told(
    team: Team, cases: Sequence[Case], bits: int | None, without: Sequence[int]
) -> tuple[list[Tensor], Round, float]:
    """Virtual tokens after the last round, that round, and how long thinking took."""
    team.check(cases)
    prefixes: list[Tensor] | None = None
    heard = Round([], torch.empty(0))
    seconds = 0.0
    for _ in range(team.config.rounds):
        heard = team.listen(cases, prefixes)
        begun = time.perf_counter()
        thoughts = team.think(heard.states)
        if without:
            thoughts[:, list(without)] = 0
        if bits is not None:
            thoughts = ops.quantise(thoughts, bits)
        prefixes = team.tell(thoughts)
        seconds += time.perf_counter() - begun
    return prefixes or [], heard, seconds


def _answers(
    team: Team,
    cases: Sequence[Case],
    way: Way,
    prefixes: Sequence[Tensor],
    heard: Round,
    alone: list[list[Turn]],
) -> list[list[str]]:
    turns = heard.turns if team.config.turn_tokens else alone
    if way == "vote":
        return [_vote([[turn.text for turn in row] for row in alone])]
    if way == "alone":
        found = alone
    elif way == "text":
        found = team.answer(cases, None, turns)
    elif way == "whole":
        found = [
            agent.generate([cast("Any", case.whole) for case in cases], max_tokens=team.config.answer_tokens)
            for agent in team.agents
        ]
    else:
        by_text = any(not agent.embed_width for agent in team.agents)
        found = team.answer(
            cases,
            _control(team, cases, way, prefixes, heard),
            turns if by_text and way == "thoughts" else None,
        )
    return [[turn.text for turn in row] for row in found]


def _control(
    team: Team, cases: Sequence[Case], way: Way, prefixes: Sequence[Tensor], heard: Round
) -> list[Tensor]:
    """What agents are given in place of their virtual tokens."""
    generator = torch.Generator().manual_seed(team.config.seed)
    if way == "zero":
        return [torch.zeros_like(prefix) for prefix in prefixes]
    if way == "random":
        noise = [torch.randn(prefix.shape, generator=generator).to(prefix) for prefix in prefixes]
        lengths = [prefix.norm(dim=-1, keepdim=True) for prefix in prefixes]
        return [
            n / n.norm(dim=-1, keepdim=True).clamp(min=1e-12) * length
            for n, length in zip(noise, lengths, strict=True)
        ]
    if way == "shuffled":
        order = torch.randperm(len(cases), generator=generator)
        other = torch.empty_like(order)
        other[order] = order.roll(1)  # one cycle: nobody keeps its own
        return [prefix[other] for prefix in prefixes]
    if way == "own":
        return [_own(team, heard.states, number) for number in range(len(team.agents))]
    if way == "raw":
        return _raw(team, cases, heard)
    return list(prefixes)


def _own(team: Team, states: Tensor, number: int) -> Tensor:
    """Virtual tokens of an agent when all other agents' states are at their mean."""
    autoencoder, _ = team.fitted()
    mine = (autoencoder.agent_rows == number).to(states.device)
    return team.tell(team.think(torch.where(mine, states, autoencoder.mean.to(states))))[number]


def _raw(team: Team, cases: Sequence[Case], heard: Round) -> list[Tensor]:
    """Each agent's last states, mapped to the embeddings of each other agent by the words that both know."""
    agents = [_local(agent) for agent in team.agents]
    states: list[Tensor] = []
    for number, agent in enumerate(agents):
        plain = ModelAgent(agent.model, StatesConfig(), agent.name, agent.batch_tokens)
        turns = heard.turns[number] or None
        states.append(plain.states([case.views[number] for case in cases], turns))
    told: list[Tensor] = []
    for receiver in agents:
        own = receiver.model.tokenizer.get_vocab()
        parts: list[Tensor] = []
        for sender, state in zip(agents, states, strict=True):
            if sender is receiver:
                continue
            theirs = sender.model.tokenizer.get_vocab()
            shared = sorted(set(own) & set(theirs))
            head = cast("Any", sender.model.module.get_output_embeddings()).weight
            w = ops.realignment(
                head[[theirs[word] for word in shared]].detach().cpu(),
                receiver.embedding[[own[word] for word in shared]].detach().cpu(),
            )
            vector = state @ w
            parts.append(vector / vector.norm(dim=-1, keepdim=True).clamp(min=1e-12) * receiver.embed_norm)
        told.append(torch.stack(parts, 1))
    return told


def _local(agent: Any) -> ModelAgent:
    found = getattr(agent, "agent", agent)
    if not isinstance(found, ModelAgent):
        raise ConfigError(f"The way `raw` needs local models; {agent.name} is none. Leave it out.")
    return found


def _vote(answers: Sequence[Sequence[str]]) -> list[str]:
    """The answer that most agents gave, the first of them in a tie.

    >>> _vote([["a", "x"], ["b", "y"], ["b", "z"]])
    ['b', 'x']
    """
    return [Counter(given).most_common(1)[0][0] for given in zip(*answers, strict=True)]


def _budget(
    team: Team, cases: Sequence[Case], way: Way, heard: Round, alone: list[list[Turn]], bits: int | None
) -> tuple[float, float]:
    """(positions, bits) that an agent is given, mean over agents."""
    config, others = team.config, len(team.agents) - 1
    if way in ("alone", "vote", "whole"):
        return 0.0, 0.0
    if way == "raw":
        return float(others), 32.0 * sum(team.widths) * others / len(team.agents)
    if way == "text":
        said = [turn for row in (heard.turns if config.turn_tokens else alone) for turn in row]
        tokens = sum(len(turn.token_ids) for turn in said) / len(said)
        return tokens * others, 8.0 * others * sum(len(turn.text.encode()) for turn in said) / len(said)
    positions = float(config.adapter.num_vectors)
    if way in ("zero", "random"):
        return positions, 0.0
    return positions, float((bits or 32) * config.autoencoder.num_thoughts)


def _flops(team: Team) -> int:
    """2·(multiply-adds) of encoder and adapter for one case."""
    config, states = team.config, sum(team.widths)
    units, thoughts = config.autoencoder.encoder_units, config.autoencoder.num_thoughts
    encoder = states * units + units * thoughts + states * thoughts
    adapter = sum(
        config.adapter.hidden * (thoughts + config.adapter.num_vectors * agent.embed_width)
        for agent in team.agents
    )
    return 2 * (encoder + adapter)


def _warnings(team: Team, heard: Round, rows: dict[str, Row]) -> list[str]:
    found = team.structure(heard.states).warnings()
    if "thoughts" in rows:
        real = rows["thoughts"].accuracy.mean
        for way in ("shuffled", "random", "zero", "own"):
            if way in rows and rows[way].accuracy.mean >= real:
                found.append(
                    f"{way} virtual tokens are as good as the real ones ({rows[way].accuracy.mean:.3f} and {real:.3f}): what "
                    "agents are told does not depend on what the others thought."
                )
    return found
