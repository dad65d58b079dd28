"""Options of the room influence. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from postgrad.core.config import Config, Seed

Method = Literal["stein", "langevin", "sgld", "rmsprop", "laplace", "ekfac", "gradient", "bm25"]
SAMPLED: tuple[Method, ...] = ("langevin", "sgld", "rmsprop", "laplace")
"""Methods whose scores are covariances over draws."""
DRAWN: tuple[Method, ...] = ("stein", *SAMPLED)
"""Methods with chains of draws."""


class _Default(NamedTuple):
    """What a method takes where nothing is given; damping None = measured."""

    damping: float | None
    radius: float
    draws: int


_CHAINS = _Default(damping=0.1, radius=0.5, draws=200)
_AT_WEIGHTS = _Default(damping=1e-3, radius=0.5, draws=0)
_DEFAULTS: Mapping[Method, _Default] = {
    "stein": _Default(damping=None, radius=0.8, draws=4),
    **dict.fromkeys(SAMPLED, _CHAINS),
    **dict.fromkeys(("ekfac", "gradient", "bm25"), _AT_WEIGHTS),
}


class InfluenceConfig(Config):
    """`postgrad influence run`."""

    method: Method = "stein"
    """`stein`: mean gradients over a few draws; `langevin`: chains with a frozen EK-FAC preconditioner; `sgld`, `rmsprop`: the
    paper's; `laplace`: independent draws by the same factors; or a baseline at the weights themselves: `ekfac`, `gradient` (dot
    products), `bm25` (words alone)."""
    damping: float | None = Field(default=None, gt=0)
    """λ = γ/(nβ): how strongly draws are held to the weights, in units of the curvature of the mean loss. None = measured, by
    `damping_share` (stein), 0.001 (ekfac), 0.1 (chains, laplace)."""
    damping_share: float = Field(default=0.25, gt=0)
    """Of stein without damping: λ = share·‖∇L‖/‖w‖. With share 1 it is about the pull towards 0 under which the weights would
    stay, ∇L + λw = 0: the further from a minimum training has ended, the more damping."""
    beta: float | None = Field(default=None, gt=0)
    """β, inverse temperature; nβ multiplies the mean loss. None = such that draws stay within `radius`."""
    radius: float | None = Field(default=None, gt=0)
    """Without beta: how far draws may be from the weights, as a share of their norm, where the data hold nothing. To leading
    order β scales all scores alike; far away the losses are no longer those of this model. None = 0.8 (stein), 0.5."""
    chains: int = Field(default=4, ge=1)
    """C, independent chains (stein: sets of draws); standard errors need two, and are better with more."""
    draws: int | None = Field(default=None, ge=2)
    """Draws that are kept of each chain; even with stein, which takes them in pairs. None = 4 (stein), 200."""
    max_draws: int = Field(default=0, ge=0)
    """Above `draws`: go on in rounds, each time to twice as many draws, until ess reaches `min_ess` and stability
    `min_agreement`, up to this many. 0 = `draws` are all. Of methods with draws of losses (langevin, sgld, rmsprop, laplace);
    refused where there is none."""
    burn_in: int = Field(default=100, ge=0)
    """Steps before the first draw."""
    thin: int = Field(default=5, ge=1)
    """Steps from draw to draw."""
    step_size: float | None = Field(default=None, gt=0)
    """Step in units of the largest stable curvature (4 is the limit); of `rmsprop` βε. None = 1, or 1e-4
    (rmsprop)."""
    rmsprop_stability: float = Field(default=0.1, gt=0)
    """ε_r of `rmsprop`: weights without a gradient move by at most 1/ε_r times the step."""
    parameters: str = ""
    """Regular expression that the names of the sampled weights contain. Empty = the linear layers inside the model, without
    the output head."""
    gradient_examples: int = Field(default=0, ge=0)
    """Training examples in the gradient of one step; 0 = all, which has no gradient noise."""
    batch_size: int = Field(default=32, ge=1)
    """Examples in one forward pass; no result depends on it but by rounding."""
    max_tokens: int = Field(default=512, ge=2)
    """Of one text; what is longer is cut, and counted."""
    checkpoint_weights: Literal["equal", "learning_rate"] = "equal"
    """Of several checkpoints the scores are averaged: all alike, or by the learning rate times the steps that a checkpoint stands
    for, as `CheckpointCallback` wrote them down (TracIn, with method gradient)."""
    text_column: str = "text"
    """Column of a text."""
    prompt_column: str = "prompt"
    """Column of a prompt: text or chat messages."""
    answer_column: str = "completion"
    """Column of what follows the prompt. A row without it may have the whole chat in `messages`."""
    split: str = "train"
    """Split of a `datasets` source."""
    answer_tokens: int = Field(default=64, ge=1)
    """Of an answer that the model is to give first (`--prompt`)."""
    tokens: bool = True
    """Score single tokens too. Methods with draws of losses: all, of queries and of training examples, in 8·(T_q·N + Q·T_n) bytes
    for each chain and three more, T_q and T_n all their tokens; above 2 GiB they are left out, with a note. Stein, ekfac,
    gradient: of each query and of the first and last `token_examples` of its ranking, up to 30,000 tokens."""
    token_examples: int = Field(default=10, ge=1)
    """Training examples at each end of a ranking whose tokens are scored (stein, ekfac, gradient)."""
    self_scores: bool = False
    """Score training examples on themselves too; methods with draws of losses (langevin, sgld, rmsprop, laplace) always do."""
    check_step: bool = True
    """Run the chains once more with half the step, and require that the scores agree."""
    max_r_hat: float = Field(default=1.1, gt=1)
    """Rankings are withheld above this R̂ of a loss (training mean or a query's)."""
    min_ess: float = Field(default=100.0, ge=0)
    """Rankings are withheld below this effective number of draws, all chains together."""
    max_drift: float = Field(default=0.4, gt=0, le=1)
    """Rankings are withheld above this correlation of a loss with time."""
    min_agreement: float = Field(default=0.5, ge=-1, le=1)
    """Rankings are withheld below this rank correlation, median over queries, with as many other chains (judged by two halves of
    them) or with half the step."""
    seed: Seed = 0
    """Of the noise. Chain c has its own generator."""

    @property
    def chosen_damping(self) -> float:
        """`damping`, or the method's default; of `stein` where it is given or was measured."""
        found = _DEFAULTS[self.method].damping if self.damping is None else self.damping
        assert found is not None, "measure_damping comes first"
        return found

    @property
    def measures_damping(self) -> bool:
        """Whether damping is found from the model and its training examples."""
        return self.damping is None and _DEFAULTS[self.method].damping is None

    @property
    def chosen_radius(self) -> float:
        """`radius`, or the method's default."""
        return _DEFAULTS[self.method].radius if self.radius is None else self.radius

    @property
    def num_draws(self) -> int:
        """`draws`, or the method's default."""
        return _DEFAULTS[self.method].draws if self.draws is None else self.draws

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if "stein" in self._used() and self.draws is not None and self.draws % 2:
            raise ValueError(
                f"method stein takes draws in pairs: give an even number (received {self.draws})"
            )
        return self

    @model_validator(mode="after")
    def _rounds(self) -> Self:
        if self.max_draws and not set(self._used()) & set(SAMPLED):
            raise ValueError(
                f"max_draws has no effect with method {', '.join(self._used())}: give draws, "
                f"or one of {', '.join(SAMPLED)} (received max_draws {self.max_draws})"
            )
        return self

    def _used(self) -> tuple[Method, ...]:
        """Methods that this is for."""
        return (self.method,)

    @property
    def most_draws(self) -> int:
        """Draws of each chain if it takes all rounds."""
        return max(self.num_draws, self.max_draws)

    @property
    def relative_step(self) -> float:
        """`step_size`, or the method's default."""
        if self.step_size is not None:
            return self.step_size
        return 1e-4 if self.method == "rmsprop" else 1.0


class RetrainConfig(InfluenceConfig):
    """Influence, and how a model is trained again without some of its examples."""

    retrain_epochs: int = Field(default=3, ge=1)
    """Passes over the examples that are kept."""
    retrain_batch_size: int = Field(default=16, ge=1)
    """Examples in one update."""
    retrain_lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate (AdamW); it rises over the first 5 % of the updates and falls to 0 in a straight line."""
    retrain_weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW."""
    retrain_seeds: int = Field(default=2, ge=1)
    """Trainings of each choice of examples, with other orders; their losses are averaged."""


class ValidateConfig(RetrainConfig):
    """`postgrad influence validate`."""

    methods: tuple[Method, ...] = Field(default=("stein", "ekfac", "gradient", "bm25"), min_length=1)
    """Which are judged, joined by commas."""
    subsets: int = Field(default=50, ge=4)
    """M, random parts of the training examples on which a model is trained."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Of the training examples in each part."""
    resamples: int = Field(default=1000, ge=100)
    """Of the bootstrap over parts that gives the intervals."""

    def _used(self) -> tuple[Method, ...]:
        return self.methods

    @field_validator("methods", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value


class PruneConfig(RetrainConfig):
    """`postgrad influence prune`."""

    remove: tuple[float, ...] = Field(default=(0.05, 0.1, 0.2), min_length=1)
    """Shares of the training examples that are left out, joined by commas."""
    draws_at_random: int = Field(default=5, ge=2)
    """Random choices of as many examples, which the others are compared with."""

    @field_validator("remove", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, (int, float)):
            return (value,)
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("remove")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < share < 1 for share in value):
            raise ValueError("each is a share between 0 and 1, such as 0.05,0.1")
        return value
