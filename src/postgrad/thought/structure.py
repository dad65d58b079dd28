"""Who holds which thought: read from the decoder's Jacobian, and how much the answer hangs on the tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from postgrad.thought import ops
from postgrad.thought.autoencoder import Autoencoder


class StabilityPoint(NamedTuple):
    """The structure at another tolerance.

    Attributes:
        tolerance: the one tried.
        num_held: pairs of thought and agent.
        agreement: with the structure at its own tolerance: pairs in both over pairs in either (1 where there is none).
        histogram: thoughts that 0, 1, …, A agents hold.
    """

    tolerance: float
    num_held: int
    agreement: float
    histogram: tuple[int, ...]


class Structure(NamedTuple):
    """Which agents hold which thoughts.

    Attributes:
        jacobian_rms: root mean square over samples of J [H, Z].
        agent_rms: the same over each agent's rows as well [Z, A].
        tolerance: an agent holds a thought where `agent_rms` exceeds this share of its largest entry.
        held: [Z, A].
    """

    jacobian_rms: Tensor
    agent_rms: Tensor
    tolerance: float
    held: Tensor

    @property
    def alpha(self) -> Tensor:
        """Agents that hold each thought [Z]."""
        return ops.alpha(self.held)

    @property
    def support(self) -> Tensor:
        """B by entries [H, Z]: RMS J above the tolerance's share of its largest entry."""
        return ops.binarise(self.jacobian_rms, self.tolerance)

    def private(self, agent: int) -> list[int]:
        """Thoughts that this agent alone holds."""
        return (self.held[:, agent] & (self.alpha == 1)).nonzero().squeeze(-1).tolist()

    def shared(self, *agents: int) -> list[int]:
        """Thoughts that at least these agents hold together; with no agent named, those of any two."""
        if not agents:
            return (self.alpha >= 2).nonzero().squeeze(-1).tolist()
        return self.held[:, list(agents)].all(1).nonzero().squeeze(-1).tolist()

    def histogram(self) -> tuple[int, ...]:
        """Thoughts that 0, 1, …, A agents hold."""
        return tuple(ops.alpha_histogram(self.held).tolist())

    def stability(
        self, tolerances: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
    ) -> list[StabilityPoint]:
        """The structure at other tolerances. One that the data have, not the tolerance, hardly changes around its own."""
        points: list[StabilityPoint] = []
        for tolerance in tolerances:
            held = ops.binarise(self.agent_rms, tolerance)
            either = int((held | self.held).sum())
            both = int((held & self.held).sum())
            histogram = tuple(ops.alpha_histogram(held).tolist())
            agreement = both / either if either else 1.0
            points.append(StabilityPoint(tolerance, int(held.sum()), agreement, histogram))
        return points

    def warnings(self) -> list[str]:
        """What makes the structure worthless: nothing shared, everything shared, dead thoughts."""
        counts = self.histogram()
        alive = sum(counts[1:])
        agents = len(counts) - 1
        found: list[str] = []
        if alive and agents > 1 and counts[1] == alive:
            found.append(
                "No thought is shared (α = 1 for all): agents have nothing to tell each other by it."
            )
        if alive and agents > 1 and counts[agents] == alive:
            found.append(
                f"All agents hold every thought (α = {agents} for all): the penalty selects nothing."
            )
        if counts[0]:
            found.append(f"{counts[0]} of {sum(counts)} thoughts are held by nobody.")
        return found


def read_structure(autoencoder: Autoencoder, states: Tensor, tolerance: float | None = None) -> Structure:
    """The structure that a fitted autoencoder has on these states [S, H].

    Args:
        tolerance: None = the config's.
    """
    tolerance = autoencoder.config.tolerance if tolerance is None else tolerance
    rms = autoencoder.jacobian_rms(states)
    by_agent = ops.agent_rms(rms, autoencoder.agent_rows, len(autoencoder.widths))
    return Structure(rms, by_agent, tolerance, ops.binarise(by_agent, tolerance))


def support_of(jacobian_rms: Tensor, tolerance: float) -> Tensor:
    """B by entries, each against the largest of its own row: outputs that vary little keep what they depend on.

    >>> support_of(torch.tensor([[10.0, 0.5], [0.1, 0.05]]), 0.1).tolist()
    [[True, False], [True, True]]
    """
    largest = jacobian_rms.max(1, keepdim=True).values
    return jacobian_rms > tolerance * largest.clamp(min=torch.finfo(jacobian_rms.dtype).tiny)
