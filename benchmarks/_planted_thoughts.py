"""States of three agents that are made of known thoughts, and how much of them was found."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from postgrad.thought import ops
from postgrad.thought.structure import support_of

NUM_AGENTS = 3
WIDTH = 24 / 17
"""State dimensions of an agent for each thought."""
SHARES = (9 / 17, 6 / 17)
"""Of thoughts that one agent holds, and two; all hold the rest."""
UNITS = 4
"""Hidden units that make one state dimension."""
LEAK = 0.4
MOST = 4
"""Thoughts on which a state dimension depends, at most."""


class Planted(NamedTuple):
    """Thoughts [S, Z] and states [S, H] to fit on, others to score on, and which depend on which: [H, Z], [Z, A]."""

    thoughts: Tensor
    states: Tensor
    thoughts_score: Tensor
    states_score: Tensor
    support: Tensor
    held: Tensor
    widths: tuple[int, ...]


def plant(num_thoughts: int, seed: int, num_fit: int = 10_000, num_score: int = 4_000) -> Planted:
    """Laplace thoughts, mixed by a leaky MLP for each state dimension, which sees 1 to 4 of its agent's, dealt evenly."""
    generator = torch.Generator().manual_seed(1000 * num_thoughts + seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    private, pairs = (round(share * num_thoughts) for share in SHARES)
    held = torch.zeros(num_thoughts, NUM_AGENTS, dtype=torch.bool)
    for thought in range(num_thoughts):
        count = 1 if thought < private else 2 if thought < private + pairs else NUM_AGENTS
        first = thought % NUM_AGENTS  # private thoughts are spread evenly
        held[thought, [(first + k) % NUM_AGENTS for k in range(count)]] = True
    width = round(WIDTH * num_thoughts)
    parts: list[Tensor] = []
    for agent in range(NUM_AGENTS):
        own = held[:, agent].nonzero().squeeze(-1)
        part = torch.zeros(width, num_thoughts, dtype=torch.bool)
        counts = [1 + row % min(MOST, len(own)) for row in range(width)]
        turns = -(-sum(counts) // len(own))
        deal = torch.cat([own[uniform(len(own)).argsort()] for _ in range(turns)]).split(
            [*counts, turns * len(own) - sum(counts)]
        )
        for row in range(width):
            part[row, deal[row]] = True
        parts.append(part)
    support = torch.cat(parts)
    into = torch.randn(len(support), UNITS, num_thoughts, generator=generator) * support[:, None]
    bias = torch.randn(len(support), UNITS, generator=generator) * 0.5
    out = torch.randn(len(support), UNITS, generator=generator)
    uniforms = uniform(num_fit + num_score, num_thoughts).clamp(1e-6, 1 - 1e-6) - 0.5
    thoughts = -uniforms.sign() * (1 - 2 * uniforms.abs()).log() / 2**0.5
    hidden = torch.einsum("sz,huz->shu", thoughts, into) + bias
    states = (F.leaky_relu(hidden, LEAK) * out).sum(-1)
    states, thoughts = states.split([num_fit, num_score]), thoughts.split([num_fit, num_score])
    return Planted(thoughts[0], states[0], thoughts[1], states[1], support, held, (width,) * NUM_AGENTS)


class Score(NamedTuple):
    """How much was found: of thoughts (MCC, R² of blocks), of B by entries and by agents."""

    mcc: float
    block_r2: float
    support_f1: float
    agent_f1: float


def score(
    planted: Planted,
    found_fit: Tensor,
    found_score: Tensor,
    jacobian_rms: Tensor,
    held: Tensor,
    tolerance: float,
) -> Score:
    """Thoughts that were found [S, Z] and the Jacobian [H, Z] against those planted."""
    matched = ops.mean_correlation(found_fit, planted.thoughts, found_score, planted.thoughts_score)
    order = matched.assignment
    blocks: list[Tensor] = []
    for pattern in planted.held.unique(dim=0):
        block = (planted.held == pattern).all(1)
        found = order[block]
        blocks.append(
            ops.block_r2(
                found_fit[:, found],
                planted.thoughts[:, block],
                found_score[:, found],
                planted.thoughts_score[:, block],
            )
        )
    support = support_of(jacobian_rms, tolerance)[:, order]
    return Score(
        float(matched.mcc),
        float(torch.cat(blocks).mean()),
        float(ops.f1(support, planted.support)),
        float(ops.f1(held[order], planted.held)),
    )
