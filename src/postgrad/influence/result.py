"""What a run of influence found, and whether it may be ranked."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from postgrad.core.errors import SamplingError
from postgrad.influence import ops
from postgrad.influence.config import InfluenceConfig
from postgrad.influence.sampler import Draws
from postgrad.influence.tokens import TokenView

BLOCK_BYTES = 2**24
"""Of losses in double precision that scores are made from at a time."""


class Ranked(NamedTuple):
    """A training example in a ranking: its `number` among them; `error` is the score's standard error, NaN if unknown."""

    number: int
    id: str
    text: str
    score: float
    error: float
    correlation: float


@dataclass
class Result:
    """Influence of training examples on queries. **score = +Cov(ℓ_train, ℓ_query): a positive one is a proponent, it
    lowers the query's loss** (the paper's BIF is its negative).

    Attributes:
        scores: [Q, N].
        errors: standard errors over chains [Q, N]; None of a method without draws.
        correlation: Pearson correlation of the losses [Q, N], for display; None likewise.
        diagnostics: `area/name` → number; see the glossary.
        problems: why rankings are withheld, each with what to change; empty = they are not.
        notes: what happened to the input.
        self_scores: of each training example on itself [N], what it would lose most by being left out: the variance of its loss.
        losses: of the training examples at the model's own weights [N].
        train, queries: (id, text) of each, where there are texts.
        draws: losses at the draws; None of a method without draws.
        tokens: scores of single tokens of queries and of training examples, which add up to `scores`: of methods with draws of
            losses all of them (`TokenScores`), else those of the ranking's ends (`along.ShownTokens`); None of bm25, without
            `tokens`, or where a note says why.
    """

    scores: Tensor
    errors: Tensor | None = None
    correlation: Tensor | None = None
    diagnostics: dict[str, float] = field(default_factory=dict[str, float])
    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    train: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    queries: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    self_scores: Tensor | None = None
    losses: Tensor | None = None
    draws: Draws | None = None
    tokens: TokenView | None = None

    @property
    def llc(self) -> ops.Interval | None:
        """Local learning coefficient of the sampled weights as λ holds them, with its 95 % interval (of the draws alone: not of a
        step that is too large, nor of places where no chain has been). None of a method without chains."""
        if "diagnostics/llc" not in self.diagnostics:
            return None
        return ops.Interval(
            *(self.diagnostics[f"diagnostics/{name}"] for name in ("llc", "llc_low", "llc_high"))
        )

    def proponents(self, query: int = 0, count: int = 10, *, anyway: bool = False) -> list[Ranked]:
        """Training examples with the highest scores, best first.

        Args:
            query: its index.
            count: how many.
            anyway: also when diagnostics failed.

        Raises:
            SamplingError: diagnostics failed; says which, and what to change.
        """
        return self._ranked(query, count, anyway, descending=True)

    def opponents(self, query: int = 0, count: int = 10, *, anyway: bool = False) -> list[Ranked]:
        """Training examples with the lowest scores, lowest first. As `proponents`."""
        return self._ranked(query, count, anyway, descending=False)

    def _ranked(self, query: int, count: int, anyway: bool, *, descending: bool) -> list[Ranked]:
        if self.problems and not anyway:
            raise SamplingError(withheld(self.problems))
        row = self.scores[query]
        order = row.argsort(descending=descending, stable=True)[:count].tolist()
        return [
            self._entry(query, index) for index in order if (row[index] > 0) == descending or row[index] == 0
        ]

    def _entry(self, query: int, index: int) -> Ranked:
        name, text = self.train[index] if self.train else (str(index), "")
        error = torch.nan if self.errors is None else float(self.errors[query, index])
        shown = torch.nan if self.correlation is None else float(self.correlation[query, index])
        return Ranked(index, name, text, float(self.scores[query, index]), error, shown)


def withheld(problems: list[str]) -> str:
    """The message in place of a ranking."""
    return "\n".join(
        ["Rankings are withheld, because the draws cannot be trusted:", *(f"  {p}" for p in problems)]
    )


class Scored(NamedTuple):
    """What draws say, made from blocks of training examples so that all their losses are never in memory at once.

    Attributes:
        scores, errors, correlation: [Q, N]; see `Result`.
        halves: scores by one half of the chains, or of the draws of a single chain, and by the other [2, Q, N].
        variance: of each training loss, mean over chains [N].
        mean_loss: of the training examples by their weights, at each draw [C, S], double.
        common_mode: see ops.
    """

    scores: Tensor
    errors: Tensor
    correlation: Tensor
    halves: Tensor
    variance: Tensor
    mean_loss: Tensor
    common_mode: float


def from_draws(draws: Draws, weights: Tensor) -> Scored:
    """Scores and what they are judged by; in double precision inside.

    Args:
        draws: their training losses may be a mapped file.
        weights: of the training examples [N].
    """
    query, count = draws.query.double(), len(weights)
    chains, steps, num_queries = query.shape
    pairs = query.new_zeros(5, num_queries, count, dtype=torch.float32)
    variance = query.new_zeros(count, dtype=torch.float32)
    mean, plain = query.new_zeros(chains, steps), query.new_zeros(chains, steps)
    share = (weights / weights.sum()).double()
    for part, train in _blocks(draws):
        mean += train @ share[part]
        plain += train.sum(2) / count
        per_chain = ops.chain_covariances(query, train)
        pairs[0, :, part], pairs[1, :, part] = ops.mean_and_error(per_chain)
        pairs[2, :, part] = ops.correlation(query, train)
        if chains < 2:
            half = steps // 2
            ends = (slice(None, half), slice(steps - half, None))
            per_chain = torch.cat([ops.chain_covariances(query[:, end], train[:, end]) for end in ends])
        middle = len(per_chain) // 2
        pairs[3, :, part], pairs[4, :, part] = per_chain[:middle].mean(0), per_chain[middle:].mean(0)
        variance[part] = train.var(1).mean(0).float()
    explained, total = query.new_zeros(()), query.new_zeros(())
    for _, train in _blocks(draws):
        of_part = ops.explained_variance(train, plain)
        explained, total = explained + of_part[0], total + of_part[1]
    common = float(explained / total) if total > 0 else 0.0
    return Scored(pairs[0], pairs[1], pairs[2], pairs[3:], variance, mean, common)


def _blocks(draws: Draws) -> Generator[tuple[slice, Tensor]]:
    """(which training examples, their losses in double precision [C, S, B])."""
    chains, steps, count = draws.train.shape
    width = max(1, BLOCK_BYTES // (8 * chains * (steps + draws.query.shape[2])))
    for start in range(0, count, width):
        part = slice(start, min(start + width, count))
        yield part, draws.train[:, :, part].to(draws.query.device).double()


def diagnose(
    draws: Draws, scored: Scored, loss_at_centre: float | None, num_tempered: float
) -> dict[str, float]:
    """What the draws themselves say about their quality. Worst over the mean training loss and every query's loss.

    Args:
        draws: of which `scored` was made.
        scored: by `from_draws`.
        loss_at_centre: mean training loss at w*; None = the draws are not of the posterior, and there is no LLC.
        num_tempered: nβ.
    """
    series = torch.cat([scored.mean_loss[..., None], draws.query.double()], -1)
    found = {
        "diagnostics/r_hat": float(ops.r_hat(series).max()),
        "diagnostics/ess": float(ops.effective_sample_size(series).min()),
        "diagnostics/drift": float(ops.drift(series).abs().max()),
        "diagnostics/common_mode": scored.common_mode,
        "diagnostics/distance": float(draws.distance.mean()),
    }
    if loss_at_centre is not None:
        found |= _learning_coefficient(scored.mean_loss, loss_at_centre, num_tempered)
    if scored.scores.shape[1] > 2:
        each = [ops.rank_stability(halves[:, None]) for halves in scored.halves.unbind(1)]
        found["diagnostics/stability"] = float(torch.cat(each).median())
    return found


def _learning_coefficient(mean: Tensor, loss_at_centre: float, num_tempered: float) -> dict[str, float]:
    """With its interval, from mean training losses [C, S]."""
    interval = ops.mean_interval(ops.local_learning_coefficient(mean, loss_at_centre, num_tempered))
    names = ("llc", "llc_low", "llc_high")
    return {f"diagnostics/{name}": value for name, value in zip(names, interval, strict=True)}


def find_problems(diagnostics: dict[str, float], config: InfluenceConfig) -> list[str]:
    """A sentence for each diagnostic that fails, with what to change.

    >>> find_problems({"diagnostics/ess": 12.0}, InfluenceConfig())
    ['ess is 12, below 100: raise draws, thin or chains.']
    """
    slow = "raise burn_in and thin, or damping, or use method langevin"
    rules = (
        ("r_hat", config.max_r_hat, True, f"the chains have not mixed: {slow}"),
        ("ess", config.min_ess, False, "raise draws, thin or chains"),
        ("drift", config.max_drift, True, f"losses still rise or fall with time: {slow}"),
        (
            "stability",
            config.min_agreement,
            False,
            "other chains would rank differently: raise draws or chains",
        ),
        (
            "agreement",
            config.min_agreement,
            False,
            "half the step ranks differently: lower step_size, raise draws",
        ),
    )
    found: list[str] = []
    for name, limit, above, advice in rules:
        value = diagnostics.get(f"diagnostics/{name}")
        if value is None or (value <= limit if above else value >= limit):  # NaN fails
            continue
        found.append(f"{name} is {value:.3g}, {'above' if above else 'below'} {limit:g}: {advice}.")
    return found
