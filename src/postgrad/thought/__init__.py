"""Agents that exchange latent thoughts: "Thought Communication in Multiagent Collaboration" (arXiv 2510.20733). An autoencoder
with a sparse Jacobian finds, in the states of several models, thoughts that are private to one or shared by some.

Departures from the paper:
1. Thoughts are standardised in every batch, states once: otherwise larger thoughts make the penalty smaller for free.
2. λ is by default what a budget of reconstruction allows, because its best value depends on the states.
3. After the sparse part agents keep what they hold and are refitted under a penalty that spares large entries, for L1's bias.
4. Each agent has a decoder of its own with one hidden layer; what it does not hold is cut off exactly.
5. A large Jacobian's L1 is estimated from a few of its rows, without bias, in every update.
6. Routing is `broadcast` by default: the paper's never delivers what another agent alone knows.
7. The adapter learns the answers of the data by default, or what an agent would say that was told all: the paper's reference,
   what it would say alone, rewards not listening. All of the paper's choices at once: `config.PAPER`, `--paper`.

Start at `ops.py` (the equations), then `jacobian.py` (the penalty), `autoencoder.py` (its training), `structure.py` (who holds
what), `team.py` (an exchange), `learning.py` (adapter and all), `evaluation.py` (the controls).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from postgrad.thought.config import AdapterConfig, AgentConfig, AutoencoderConfig, StatesConfig, TeamConfig

if TYPE_CHECKING:
    from postgrad.thought import jacobian, ops
    from postgrad.thought.adapter import Adapter
    from postgrad.thought.agents import Agent, ModelAgent, Turn
    from postgrad.thought.autoencoder import Autoencoder, Fitted, fit
    from postgrad.thought.baselines import IndependentComponents, fast_ica
    from postgrad.thought.cases import Case, read_cases
    from postgrad.thought.evaluation import Evaluation, evaluate
    from postgrad.thought.learning import Learned, learn
    from postgrad.thought.structure import Structure, read_structure
    from postgrad.thought.team import Team, make_agents

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Agent",
    "AgentConfig",
    "Autoencoder",
    "AutoencoderConfig",
    "Case",
    "Evaluation",
    "Fitted",
    "IndependentComponents",
    "Learned",
    "ModelAgent",
    "StatesConfig",
    "Structure",
    "Team",
    "TeamConfig",
    "Turn",
    "evaluate",
    "fast_ica",
    "fit",
    "jacobian",
    "learn",
    "make_agents",
    "ops",
    "read_cases",
    "read_structure",
]

_PLACES = {
    "Adapter": "adapter",
    "Agent": "agents",
    "Autoencoder": "autoencoder",
    "Case": "cases",
    "Evaluation": "evaluation",
    "Fitted": "autoencoder",
    "IndependentComponents": "baselines",
    "Learned": "learning",
    "ModelAgent": "agents",
    "Structure": "structure",
    "Team": "team",
    "Turn": "agents",
    "evaluate": "evaluation",
    "fast_ica": "baselines",
    "fit": "autoencoder",
    "learn": "learning",
    "make_agents": "team",
    "read_cases": "cases",
    "read_structure": "structure",
}


def __getattr__(name: str) -> Any:
    if name in ("jacobian", "ops"):
        return import_module(f"postgrad.thought.{name}")
    if name in _PLACES:
        return getattr(import_module(f"postgrad.thought.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
