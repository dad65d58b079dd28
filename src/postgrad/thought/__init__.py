"""Agents that exchange latent thoughts: "Thought Communication in Multiagent Collaboration" (arXiv 2510.20733). An autoencoder
with a sparse Jacobian finds, in the states of several models, thoughts that are private to one or shared by some.

Of the paper there is so far what needs no language model: the autoencoder, its structure, the routing's equations.

Departures from the paper:
1. Thoughts are standardised in every batch, states once: otherwise larger thoughts make the penalty smaller for free.
2. λ is by default what a budget of reconstruction allows, because its best value depends on the states.
3. After the sparse part agents keep what they hold and are refitted under a lighter penalty, against the bias of L1.
4. Each agent has a decoder of its own with one hidden layer; what it does not hold is cut off exactly.
5. A large Jacobian's L1 is estimated from a few of its rows, without bias, in every update.
6. Routing can also be `broadcast`, `others` or `learned`: the paper's never delivers what another agent alone knows.

Start at `ops.py` (the equations), then `jacobian.py` (the penalty), `autoencoder.py` (training), `structure.py` (who holds what)
and `baselines.py` (FastICA).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from postgrad.thought.config import AutoencoderConfig

if TYPE_CHECKING:
    from postgrad.thought import jacobian, ops
    from postgrad.thought.autoencoder import Autoencoder, Fitted, fit
    from postgrad.thought.baselines import IndependentComponents, fast_ica
    from postgrad.thought.structure import Structure, read_structure

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "Fitted",
    "IndependentComponents",
    "Structure",
    "fast_ica",
    "fit",
    "jacobian",
    "ops",
    "read_structure",
]

_PLACES = {
    "Autoencoder": "autoencoder",
    "Fitted": "autoencoder",
    "IndependentComponents": "baselines",
    "Structure": "structure",
    "fast_ica": "baselines",
    "fit": "autoencoder",
    "read_structure": "structure",
}


def __getattr__(name: str) -> Any:
    if name in ("jacobian", "ops"):
        return import_module(f"postgrad.thought.{name}")
    if name in _PLACES:
        return getattr(import_module(f"postgrad.thought.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
