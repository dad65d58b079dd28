"""Options of MARA inside reinforcement learning: the table `[mara]` of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from postgrad.core.config import Config, Seed

Method = Literal[
    "mara",
    "none",
    "entropy_bonus",
    "unlikeliness",
    "differential_smoothing",
    "pass_at_k",
    "flow_rl",
    "diversity_filter",
]

DEFAULT_COEFFICIENTS = {
    "entropy_bonus": 0.01,
    "unlikeliness": 0.25,
    "differential_smoothing": 0.01,
    "flow_rl": 15.0,
}
"""Of the rivals. Those of the rank penalty and of FlowRL are their papers'; the others say nothing that fits every reward
scale: search them."""


class MaraConfig(Config):
    """Mode Anchored Reward Augmentation (arXiv 2510.20817) with the KL to the reference that it needs, or a rival of it."""

    method: Method = "mara"
    """`mara`; `none`: the KL alone, ordinary KL-regularised RL; or a rival, by its paper (see `mara.ops`)."""
    beta: float = Field(ge=0)
    """Coefficient of the KL to the reference, as k1 inside the reward, and of the augmentation (paper: 0.001 to 0.1). Rivals
    may do without a KL: 0."""
    coefficient: float | None = Field(default=None, gt=0)
    """Strength of a rival; None = 0.01 (entropy_bonus, differential_smoothing), 0.25 (unlikeliness) or 15 (flow_rl)."""
    k: int = Field(default=4, ge=1)
    """Of pass_at_k: subsets of this size are rewarded if any of their samples passes."""
    bucket: int = Field(default=25, ge=1)
    """Of diversity_filter: a good answer is rewarded this many times, then never again (REINVENT: 25)."""
    tau: float | None = None
    """A sample is good when its reward is at least this. None = the reward of a pass (1 with signed rewards)."""
    percentile: float | None = Field(default=None, ge=0, le=100)
    """Instead of `tau`: the percentile of the group's rewards, for rewards without a verifier (paper: 90)."""
    answers: Literal["tokens", "text", "smiles"] = "tokens"
    """What shall be equally likely, and what the filter counts: token sequences (paper), texts apart from white space, or
    molecules (extra chem). Sequences of one answer are lifted by their joint probability, as far as the group shows them."""
    anchor: Literal["group", "stored"] = "group"
    """What good samples are lifted to: the reference's favourite among the good samples of the group (paper), or of all
    that this prompt ever had; a stored anchor needs no reference pass for the group's good samples."""
    max_bonus: float | None = Field(default=None, gt=0)
    """Bound on the lift of one sample, in units of reward; None = none. Where it bites, uniformity is given up."""
    min_deviation: float = Field(default=1.0, ge=0)
    """Advantages are not divided by less than beta times this, in nats: where all samples are good, what is left of their
    differences is noise. 0 = always to unit deviation."""
    replay: int = Field(default=0, ge=0)
    """Good answers seen before that join each group, so that rare ones do not starve. Prompts must come up again for it; a
    quarter of the group is a good number."""
    replay_power: float = Field(default=0.0, ge=0, le=1)
    """Of the importance weights of a group with replayed answers: 1 = it counts as drawn from the policy, which lifts rare
    answers no more than before, only with less noise; 0 = all alike, the same optimum and the shortest way."""
    replay_size: int = Field(default=64, ge=1)
    """Good answers remembered per prompt; the one not seen for longest is forgotten first."""
    cache: int = Field(default=200_000, ge=0)
    """Reference log-probs remembered, by prompt and completion; 0 = none."""

    @model_validator(mode="after")
    def _possible(self) -> MaraConfig:
        if self.beta == 0 and self.method in ("mara", "none"):
            raise ValueError(
                "beta = 0 makes MARA inert: without a KL there is no optimum to shape. Give beta above 0 (the paper's "
                "range is 0.001 to 0.1), or leave the table [mara] out"
            )
        if self.beta and self.method == "flow_rl":
            raise ValueError(
                "flow_rl has its own KL to the reference, of weight 1 against coefficient times the reward; give beta = 0"
            )
        if self.tau is not None and self.percentile is not None:
            raise ValueError("give tau or percentile, not both: each says which samples are good")
        if self.method not in DEFAULT_COEFFICIENTS and self.coefficient is not None:
            raise ValueError(
                f"coefficient is the strength of {', '.join(DEFAULT_COEFFICIENTS)}; method = {self.method!r} has none"
            )
        if self.replay and self.method not in ("mara", "none"):
            raise ValueError(
                f"replay lifts rare good answers for mara (or none); method = {self.method!r} judges a group by its own "
                "samples; give replay = 0"
            )
        if self.anchor == "stored" and self.percentile is not None:
            raise ValueError(
                'a stored anchor was good under another group\'s percentile; use anchor = "group" with percentile'
            )
        if self.anchor == "stored" and self.answers != "tokens":
            raise ValueError(
                "a stored anchor spares the reference the good samples, whose joint probability answers = "
                f'"{self.answers}" needs; use anchor = "group"'
            )
        return self


def _numbers(name: str, value: object) -> object:
    """`0.01,0.1,1` or one number as a list of numbers."""
    if isinstance(value, str):
        try:
            return [float(part) for part in value.split(",")]
        except ValueError:
            raise ValueError(
                f"{name} takes numbers joined by commas, such as 0.01,0.1,1; not {value!r}"
            ) from None
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else value


class ExplainConfig(Config):
    """`postgrad mara explain`."""

    beta: tuple[float, ...] = Field(default=(0.01, 0.1, 1.0), min_length=1)
    """Coefficients of the KL to the reference, joined by commas."""
    tau: float = 1.0
    """An answer is good when its reward is at least this."""
    log: bool = False
    """The column ref holds log-probabilities. Without it they are recognised by none of them being above 0."""
    seed: Seed = 0
    """Of the run; nothing here is drawn by chance."""

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: object) -> object:
        if isinstance(data, dict) and "beta" in data:
            return {**data, "beta": _numbers("beta", data["beta"])}
        return data

    @model_validator(mode="after")
    def _positive(self) -> ExplainConfig:
        for beta in self.beta:
            if not 1e-9 <= beta <= 1e9:
                raise ValueError(f"every beta must be positive (1e-9 to 1e9), not {beta:g}")
        if len(set(self.beta)) < len(self.beta):
            raise ValueError(f"the same beta is given twice: {', '.join(f'{b:g}' for b in self.beta)}")
        return self


NOVELTY_THRESHOLDS = (-7.71875, -6.28125, -6.0, -5.71875, -5.5, -5.0, -4.375, -3.4375, -2.046875)
"""Of raw rewards, for utilities 1 to 10 (novelty-bench, src/score.py)."""


class MeasureConfig(Config):
    """`postgrad mara measure`."""

    answers: Literal["canonical", "text"] = "canonical"
    """What makes two answers the same: equal text (`text`), or equal apart from white space (`canonical`)."""
    tau: float | None = None
    """An answer is good when its score or reward is at least this. none: its `correct`, or where that is missing, 1."""
    k: int | None = Field(default=None, ge=1)
    """Of pass@k. none: the fewest judged answers that any prompt has, at most 64."""
    samples: int | None = Field(default=None, ge=1)
    """Use the first so many answers of each prompt, and leave out prompts with fewer: the metrics depend on that number."""
    phases: tuple[str, ...] = ("before", "after", "train")
    """Parts of a run to compare, joined by commas; further ones are eval and whatever `phase` says."""
    vocabulary: int = Field(default=50257, ge=1)
    """Words that EAD draws from, a constant so that files can be compared (GPT-2's number of tokens)."""
    oracle_target: int = Field(default=100, ge=1)
    """Different good answers that the oracle burden counts up to."""
    molecules: bool = False
    """The answers are SMILES: compare their canonical form, and measure Vendi, IntDiv1 and #Circles (extra chem)."""
    circle_distance: float = Field(default=0.75, gt=0, lt=1)
    """Tanimoto distance above which molecules count separately in #Circles."""
    max_molecules: int = Field(default=2000, ge=2)
    """Vendi and IntDiv1 compare at most so many molecules, evenly spread: memory grows with their square."""
    embedder: str | None = None
    """Directory or hub name of a sentence encoder, for semantic diversity: mean cosine distance of the answers to a prompt."""
    partition: str | None = None
    """Directory or hub name of a classifier that says whether two answers do the same for a reader, for distinct and
    utility (NoveltyBench: yimingzhang/deberta-v3-large-generation-similarity)."""
    partition_tokenizer: str | None = None
    """Where the classifier's tokenizer is, if not with it (NoveltyBench: microsoft/deberta-v3-large)."""
    partition_threshold: float = Field(default=0.102, ge=0, lt=1)
    """Two answers are the same when their chance of it is above this (NoveltyBench: 0.102)."""
    partition_label: int = Field(default=1, ge=0)
    """The classifier's output that says the same."""
    partition_tokens: int = Field(default=128, ge=1)
    """Tokens of each answer that the classifier reads (NoveltyBench: 128)."""
    utility_thresholds: tuple[float, ...] = NOVELTY_THRESHOLDS
    """Rewards at which an answer's utility goes up by one, from 1; joined by commas. The default is NoveltyBench's and fits
    its reward model, Skywork-Reward-Gemma-2-27B-v0.2. none: the reward is the utility, as for a judge's 1 to 10."""
    device: str = "auto"
    """Of embedder and classifier: auto, cpu, cuda, cuda:N."""
    batch_size: int = Field(default=32, ge=1)
    """Texts or pairs in one forward pass."""
    bootstrap: int = Field(default=1000, ge=100)
    """Draws of prompts behind every interval."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of all intervals."""
    seed: Seed = 0
    """Of the bootstrap."""

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("phases"), str):
            data = {**data, "phases": [part.strip() for part in data["phases"].split(",") if part.strip()]}
        if isinstance(data, dict) and "utility_thresholds" in data:
            given = data["utility_thresholds"]
            data = {
                **data,
                "utility_thresholds": []
                if given in ("none", None)
                else _numbers("utility_thresholds", given),
            }
        return data

    @model_validator(mode="after")
    def _increasing(self) -> MeasureConfig:
        if list(self.utility_thresholds) != sorted(set(self.utility_thresholds)):
            raise ValueError(f"utility_thresholds must increase; received {self.utility_thresholds}")
        return self
