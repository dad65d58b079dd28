"""What a run of influence found, and whether it may be ranked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from postgrad.core.errors import SamplingError
from postgrad.influence import ops
from postgrad.influence.config import InfluenceConfig
from postgrad.influence.sampler import Draws
from postgrad.influence.tokens import TokenView


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


def from_draws(draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(covariance of each chain [C, Q, N], scores, standard errors, correlation [Q, N]), in double precision inside."""
    query, train = draws.query.double(), draws.train.double()
    per_chain = ops.chain_covariances(query, train)
    scores, errors = ops.mean_and_error(per_chain)
    return per_chain, scores.float(), errors.float(), ops.correlation(query, train).float()


def diagnose(
    draws: Draws, weights: Tensor, loss_at_centre: float | None, num_tempered: float, per_chain: Tensor
) -> dict[str, float]:
    """What the draws themselves say about their quality. Worst over the mean training loss and every query's loss.

    Args:
        loss_at_centre: mean training loss at w*; None = the draws are not of the posterior, and there is no LLC.
    """
    train = draws.train.double()
    share = (weights / weights.sum()).double()
    mean = (train * share).sum(-1, keepdim=True)
    series = torch.cat([mean, draws.query.double()], -1)
    chains, steps = mean.shape[:2]
    if chains < 2:  # its two halves stand for two chains
        half = steps // 2
        halves = torch.cat([draws.query[:, :half], draws.query[:, -half:]]).double()
        per_chain = ops.chain_covariances(halves, torch.cat([train[:, :half], train[:, -half:]]))
    found = {
        "diagnostics/r_hat": float(ops.r_hat(series).max()),
        "diagnostics/ess": float(ops.effective_sample_size(series).min()),
        "diagnostics/drift": float(ops.drift(series).abs().max()),
        "diagnostics/common_mode": float(ops.common_mode(train)),
        "diagnostics/distance": float(draws.distance.mean()),
    }
    if loss_at_centre is not None:
        found |= _learning_coefficient(mean[..., 0], loss_at_centre, num_tempered)
    if train.shape[-1] > 2:
        found["diagnostics/stability"] = float(ops.rank_stability(per_chain).median())
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
