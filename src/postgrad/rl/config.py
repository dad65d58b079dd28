"""Every choice of the ScaleRL recipe as a typed option. Defaults quote the paper (arXiv 2510.13786, §3-4, §A)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from postgrad.core.cluster import ClusterConfig
from postgrad.core.config import Config, Seed, deep_merge, nest, read_toml, validate
from postgrad.core.models import LoraConfig, ModelConfig
from postgrad.core.recipes import find_recipe
from postgrad.engines.config import EngineConfig
from postgrad.tasks.config import DataConfig


class AlgorithmConfig(Config):
    """What is optimised."""

    prompts_per_batch: int = Field(default=48, ge=1)
    """Groups in one training batch (paper: 48)."""
    samples_per_prompt: int = Field(default=16, ge=2)
    """Samples in a group, G (paper: 16)."""
    loss: Literal["cispo", "grpo", "dapo", "gspo", "reinforce"] = "cispo"
    """Off-policy correction of the policy gradient (paper §3.2: CISPO)."""
    cap: float = Field(default=5.0, gt=0)
    """ε of CISPO: the importance ratio is min(ρ, ε). The cap itself, not 1+ε (paper: 4, 5 and 8 are equivalent)."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """ε⁻ of grpo, dapo and gspo."""
    clip_high: float | None = Field(default=None, gt=0)
    """ε⁺ of grpo, dapo and gspo. None = 0.26 for dapo (asymmetric), 0.2 for the others."""
    aggregation: Literal["prompt", "sample", "token"] = "prompt"
    """Whose mean the loss is: prompts weigh the same (paper), samples do, or tokens do."""
    advantage_norm: Literal["batch", "group", "none"] = "batch"
    """Which standard deviation divides the centred rewards (paper: over the batch)."""
    baseline: Literal["group", "none"] = "group"
    """What is subtracted from a reward: the mean of its group (paper), or nothing. With `none`, advantage_norm "none", loss
    "reinforce" and a KL in the reward the gradient is REINVENT's."""
    covariance: Literal["none", "kl", "clip"] = "none"
    """Against falling entropy (arXiv 2505.22617): `kl`, the tokens of largest covariance of log-prob and advantage pay a KL
    to the generator; `clip`, random ones of large covariance give no gradient."""
    covariance_fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of the tokens that `covariance` acts on. None = 2e-3 (kl) or 2e-4 (clip), its paper's."""
    covariance_kl: float = Field(default=1.0, gt=0)
    """Coefficient of that KL, per token."""
    covariance_low: float = 1.0
    """`clip` draws from the tokens whose covariance is at least this …"""
    covariance_high: float = 5.0
    """… and at most this."""
    kl: Literal["none", "loss", "reward"] = "none"
    """Regularisation towards the model before training (paper: none). `reward`: the sum of `kl_estimator` over a sample's tokens,
    under the policy that sampled them, times `kl_coef` is taken from its reward, after the filters have looked at it. `loss`: the
    estimator is a term of each token, with the weights of `aggregation`, as in GRPO (no importance ratio on it)."""
    kl_coef: float = Field(default=1e-3, gt=0)
    """Coefficient of that KL (DeepSeek-R1: 0.001; GRPO's paper: 0.04)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """With d = log π − log π_ref: k1 = d, k2 = d²/2, k3 = exp(−d) − 1 + d. The gradient of the KL(π ‖ π_ref) itself comes from k1
    in the reward and, on-policy, from k2 in the loss; k3 in the loss (GRPO's) is close to it for small d only, and k1 in the loss
    has no gradient in expectation and is refused (arXiv 2510.01555)."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Entropy bonus: so many times the entropy of each trained token's distribution is added to the objective (paper: none)."""
    zero_variance: Literal["drop", "keep", "resample"] = "drop"
    """Groups whose rewards are all equal carry no gradient: leave them out of the batch statistics (paper), or `keep` them, or
    `resample`: generate further groups until the batch is full (DAPO's dynamic sampling, arXiv 2503.14476)."""
    resample_limit: int = Field(default=10, ge=0)
    """`resample`: most batches' worth of groups that are replaced for one update; after that the batch stays smaller."""
    history_threshold: float | None = Field(default=0.9, gt=0, le=1)
    """No-positive-resampling: a prompt whose pass rate ever reached this is not sampled again. None = off."""
    truncated: Literal["exclude", "keep"] = "exclude"
    """Samples cut off by the length limit are left out of the batch (paper) or trained on."""
    reward: Literal["signed", "raw"] = "signed"
    """`signed`: 2·score − 1, so that verifiable rewards are ±1 (paper). `raw`: the verifier's number."""
    success_threshold: float = 1.0
    """A sample passes when its score is at least this (pass rates, history, evaluation)."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the trainer's log-probs use the same one."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    fp32_head: bool = True
    """Logits in fp32 on both generator and trainer (paper §3.2)."""

    @property
    def truncates(self) -> bool:
        """Whether sampling leaves out tokens."""
        return self.top_p < 1 or self.top_k > 0

    @model_validator(mode="before")
    @classmethod
    def _none(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("history_threshold") in ("none", "off"):
            return {**data, "history_threshold": None}
        return data

    @model_validator(mode="after")
    def _comparable(self) -> AlgorithmConfig:
        if self.zero_variance == "resample" and self.baseline == "none":
            raise ValueError(
                'zero_variance = "resample" replaces groups whose rewards are all equal, but with baseline = "none" these do '
                'carry a gradient; set zero_variance = "drop", or baseline = "group"'
            )
        if self.kl == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                'kl_estimator "k1" in the loss has an expected gradient of zero: it regularises nothing; set kl_estimator = "k2" '
                '(the gradient of the KL), "k3" (GRPO), or kl = "reward"'
            )
        return self


class ScheduleConfig(Config):
    """Who waits for whom (paper §3.1)."""

    mode: Literal["pipeline", "ppo"] = "pipeline"
    """`pipeline`: generation goes on while the trainer works and takes new weights in mid-sequence.
    `ppo`: generate k batches, then k updates."""
    k: int = Field(default=8, ge=1)
    """Most versions that generation may lag behind (pipeline), or batches per phase (ppo). Paper: 8."""
    update_cost_steps: int = Field(default=16, ge=0)
    """Virtual duration of one update, in decode steps: how long the generator goes on with old weights."""


class LengthConfig(Config):
    """Prompt and completion lengths in tokens."""

    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Longer prompts are dropped and counted."""
    max_completion_tokens: int = Field(default=14336, ge=1)
    """Limit on the completion, injected tokens included (paper: 12k thinking + 2k answer)."""
    interrupt_min: int | None = Field(default=10240, ge=1)
    """Shortest length at which thinking is interrupted by `interrupt_phrase`. None = no interruptions."""
    interrupt_max: int = Field(default=12288, ge=1)
    """Longest such length; each sample draws its own, uniformly (paper: 10k to 12k)."""
    interrupt_phrase: str = (
        "Okay, time is up. Let me stop thinking and formulate a final answer now. </think>"
    )
    """Injected text; its tokens are masked out of the loss."""
    interrupt_unless: str = "</think>"
    """No interruption once this single token was emitted (thinking is over). Ignored if it is not one token."""
    penalty_tokens: int | None = Field(default=None, ge=1)
    """Overlong penalty, the paper's alternative to interruptions: a sample that passed loses up to 1, linearly, over the last so
    many tokens below `max_completion_tokens`: clip((max_completion_tokens − length)/penalty_tokens − 1, −1, 0) is added to its
    reward (DAPO, arXiv 2503.14476). None = no penalty. Independent of interruptions; set interrupt_min = "none" for it alone."""

    @model_validator(mode="after")
    def _ordered(self) -> LengthConfig:
        if self.interrupt_min is not None:
            if self.interrupt_min > self.interrupt_max:
                raise ValueError(
                    f"interrupt_min {self.interrupt_min} is above interrupt_max {self.interrupt_max}; swap them"
                )
            if self.interrupt_max >= self.max_completion_tokens:
                raise ValueError(
                    f"interrupt_max {self.interrupt_max} leaves no room for an answer below max_completion_tokens "
                    f'{self.max_completion_tokens}; lower it, or set interrupt_min = "none" for no interruptions'
                )
        if self.penalty_tokens is not None and self.penalty_tokens >= self.max_completion_tokens:
            raise ValueError(
                f"penalty_tokens {self.penalty_tokens} must be below max_completion_tokens {self.max_completion_tokens}, or "
                "every sample is too long; DAPO takes a fifth of the limit"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _none(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        off = [name for name in ("interrupt_min", "penalty_tokens") if data.get(name) in ("none", "off")]
        return {**data, **dict.fromkeys(off)}


class OptimizerConfig(Config):
    """AdamW (paper §A: lr 5e-7 constant after 100 warm-up steps, eps 1e-15, weight decay 0.01)."""

    lr: float = Field(default=5e-7, gt=0)
    """Learning rate after the warm-up, the highest."""
    warmup_steps: int = Field(default=100, ge=0)
    """Linear warm-up over so many updates; then `schedule`."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after the warm-up: constant (paper), or falling to `final_lr_fraction` of itself by the end
    of `steps`."""
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """Where `linear` and `cosine` end, as a share of `lr`; reached one update after the last."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-15, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Most tokens in one forward pass: the gradients of a batch are accumulated over as many as it takes. Changes memory and
    speed, never the loss."""
    gradient_checkpointing: bool = False
    """Compute the activations of each layer again in the backward pass instead of keeping them: less memory for about a third
    more time, the same loss and gradient."""


class EvalConfig(Config):
    """Held-out evaluation: mean@k with a 95 % interval clustered by prompt."""

    every: int = Field(default=100, ge=0)
    """Updates between evaluations; 0 = only before and after."""
    prompts: int = Field(default=1000, ge=1)
    """Held-out prompts used (paper: 1,000)."""
    samples_per_prompt: int = Field(default=16, ge=1)
    """k of mean@k (paper: 16)."""
    temperature: float = Field(default=1.0, ge=0)
    """0 = greedy."""


class RunConfig(Config):
    """Where and how often to write."""

    checkpoint_every: int = Field(default=50, ge=1)
    """Updates between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Latest checkpoints kept; older ones are removed."""
    log_samples: int = Field(default=4, ge=0)
    """Groups of each update of which samples are written to samples.jsonl."""
    samples_per_group: int = Field(default=1, ge=1)
    """Samples written of each such group, and of each group of an evaluation. Diversity needs several."""


class RLConfig(Config):
    """`postgrad rl train`."""

    seed: Seed = 0
    """Fixes prompt order, sampling and initialisation."""
    steps: int = Field(default=1000, ge=1)
    """Updates of the policy."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    length: LengthConfig = Field(default_factory=LengthConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    run: RunConfig = Field(default_factory=RunConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    lora: LoraConfig | None = None
    """Train a low-rank adapter instead of the weights (extra `peft`). None = all weights. A learning rate ten times that of full
    training is a fair start."""
    mara: dict[str, Any] = Field(default_factory=dict)
    """Options of the room mara, for the reward transform that is passed in (see docs/rooms/mara.md). Empty = none."""

    @model_validator(mode="before")
    @classmethod
    def _none(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("lora") in ("none", "off"):
            return {**data, "lora": None}
        return data

    @model_validator(mode="after")
    def _truncation_in_vllm(self) -> RLConfig:
        temperatures = {self.algorithm.temperature, self.eval.temperature} - {0.0, 1.0}
        if self.engine.kind == "vllm" and self.algorithm.truncates and temperatures:
            raise ValueError(
                f"vLLM gives the log-probs that training needs with top_p or top_k at temperature 1 (or 0) only, not at "
                f'{min(temperatures)}; set algorithm.top_p = 1 and top_k = 0, or both temperatures to 1, or engine.kind = "torch"'
            )
        return self


def make_config(
    data: Mapping[str, Any] | None = None,
    *,
    preset: Mapping[str, Any] | None = None,
    tasks: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> RLConfig:
    """Recipe data, then a preset, dotted overrides, and tasks by name (with the recipe's options for those it knows).

    Without recipe and model it is the shipped recipe `embedded`: the plain defaults are the paper's, for an 8B model.
    """
    nested = nest(overrides or {})
    if data is None:
        embedded = not nested.get("model", {}).get("path")
        data = read_toml(find_recipe("embedded")) if embedded else {}
    merged = deep_merge(deep_merge(data, preset or {}), nested)
    if tasks:
        known = {task["name"]: task for task in merged.get("data", {}).get("tasks", []) if "name" in task}
        merged = deep_merge(merged, {"data": {"tasks": [known.get(name, {"name": name}) for name in tasks]}})
    return validate(RLConfig, merged)
