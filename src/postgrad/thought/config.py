"""Options of the room thought. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from pydantic import Field, field_validator, model_validator

from postgrad.core.config import Config, Seed
from postgrad.engines.chat.config import ChatConfig
from postgrad.tasks.config import DataConfig

Activation = Literal["leaky_relu", "gelu", "silu", "tanh"]
Routing = Literal["paper", "broadcast", "others", "learned"]
Reference = Literal["labels", "oracle", "text", "self"]


class AutoencoderConfig(Config):
    """Which thoughts there are: the autoencoder over the states of all agents."""

    num_thoughts: int = Field(default=1024, ge=1)
    """n_z, latent coordinates (paper: 1,024)."""
    encoder_hidden: int | None = Field(default=None, ge=1)
    """Hidden units of the encoder. None = 4 n_z, at least 64."""
    decoder_hidden: int | None = Field(default=None, ge=1)
    """Hidden units of the decoder, for each agent. None = 2 n_z, at least 64."""
    activation: Activation = "leaky_relu"
    """Of both hidden layers."""
    start: Literal["ica", "random"] = "ica"
    """First weights: those of FastICA without bent duplicates, which are linear, or random ones."""
    warmup_steps: int = Field(default=500, ge=0)
    """Updates before there is a penalty."""
    ramp_steps: int = Field(default=500, ge=0)
    """Updates in which the penalty grows from 0 to its weight."""
    sparse_steps: int = Field(default=1500, ge=0)
    """Updates with the whole penalty."""
    refit_steps: int = Field(default=1500, ge=0)
    """Updates after it, in which agents keep the thoughts they held, and large entries of the Jacobian are spared the penalty."""
    batch_size: int = Field(default=256, ge=2)
    """States in one update."""
    lr: float = Field(default=2e-3, gt=0)
    """Peak learning rate of Adam, one cycle in each of the two parts."""
    penalty: float | None = Field(default=None, ge=0)
    """λ, weight of the Jacobian's L1 beside the error per dimension of standardised states. None = what `budget` allows."""
    budget: float = Field(default=0.15, gt=0, lt=1)
    """Where λ is not given: share of the explained variance that the penalty may cost while it is whole."""
    refit_share: float = Field(default=2.0, ge=0)
    """λ in the refit on entries of the Jacobian that are 0, as a share of λ before it; on a row's largest, a tenth."""
    tolerance: float = Field(default=0.1, ge=0, lt=1)
    """An agent holds a thought where its RMS Jacobian is above this share of the largest one."""
    backend: Literal["auto", "exact", "sampled", "group", "path"] = "auto"
    """How the penalty is taken; `auto` = exact where a batch's Jacobians fit in `jacobian_bytes`, else sampled."""
    jacobian_bytes: int = Field(default=2**25, ge=1)
    """Memory for Jacobians."""
    jacobian_states: int = Field(default=2000, ge=1)
    """States, evenly spread, of which the Jacobian's RMS is taken when it is read."""
    standardise: bool = True
    """Thoughts have mean 0 and variance 1 in a batch. Without it the decoder's Jacobian shrinks for free as thoughts grow."""
    seed: Seed = 0
    """Of initial weights, batches and sampled Jacobians."""

    @model_validator(mode="after")
    def _some_steps(self) -> AutoencoderConfig:
        if self.warmup_steps + self.ramp_steps + self.sparse_steps < 1:
            raise ValueError("warmup_steps, ramp_steps and sparse_steps are all 0: there is nothing to train")
        return self

    @property
    def encoder_units(self) -> int:
        """`encoder_hidden`, or its default."""
        return self.encoder_hidden or max(64, 4 * self.num_thoughts)

    @property
    def decoder_units(self) -> int:
        """`decoder_hidden`, or its default."""
        return self.decoder_hidden or max(64, 2 * self.num_thoughts)


class AgentConfig(Config):
    """One agent of a team."""

    model: str = Field(min_length=1)
    """Directory, run or hub name of a causal language model. Agents with the same one share its weights. Of an agent behind a
    server: the local model that reads for it, whose states stand for its thoughts."""
    name: str = ""
    """How it is called in messages and tables. Empty = `agent 1`, `agent 2`, …"""
    chat: ChatConfig | None = None
    """Where the agent is a model behind a server: it is told by text, because it takes no embeddings."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    device: str = "auto"
    """`auto` (the first GPU, else the CPU), `cpu`, `cuda`, `cuda:N`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights. `auto`: float32 on a CPU, else bfloat16."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for sources that you trust."""


class StatesConfig(Config):
    """Which state of a model stands for what it thinks."""

    layer: float = Field(default=1.0, gt=0, le=1)
    """Which block's output, as a share of the depth; 1 = the last one, after its norm (the paper's). An early block saves the
    computation of all later ones."""
    tokens: int = Field(default=1, ge=1)
    """States of the last so many tokens, side by side (paper: 1, the final token of the turn). A shorter
    turn has zeros before it."""
    mean: bool = False
    """The mean over those tokens (over all tokens of the turn where `tokens` is 1) in place of them."""


class AdapterConfig(Config):
    """How thoughts become virtual tokens, and what that is trained on. The language models stay as they are."""

    num_vectors: int = Field(default=1, ge=1)
    """m, virtual tokens before an agent's own (paper: 1)."""
    hidden: int = Field(default=256, ge=1)
    """Hidden units of the adapter g, one for each agent."""
    routing: Routing = "broadcast"
    """Which thoughts an agent is given. `paper`: those it holds itself, so never what another alone knows; `broadcast`: all that
    anybody holds; `others`: those that somebody else holds; `learned`: all, each with a weight of its own."""
    alpha_weights: tuple[float, ...] | None = None
    """w_α of thoughts that 0, 1, …, A agents hold, by hand. None = learned, from 1."""
    reference: Reference = "labels"
    """What an agent is to say. `labels`: the answer of the data; `oracle`: what it would say if it saw what all see; `text`:
    what it would say if the others' turns were told to it; `self` (the paper's): what it would say alone, which rewards not
    listening."""
    teach: Literal["reference", "own"] = "reference"
    """Whose words the loss is taken on: the reference's, or what the agent itself says with its present prefix (the paper's)."""
    soft: bool = True
    """With `oracle` and `text`: learn all probabilities of the agent that was told, not its words alone."""
    similarity: float = Field(default=1.0, ge=0)
    """Weight of 1 − cos between mean token embeddings of what is said and of the reference (paper: 1)."""
    likelihood: float = Field(default=1.0, ge=0)
    """Weight of −log p of the words (paper: 1)."""
    steps: int = Field(default=1000, ge=1)
    """Updates."""
    batch_size: int = Field(default=32, ge=1)
    """Cases in one update."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW: linear warm-up over 5 % of the steps, then cosine to a tenth."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of the weight matrices."""
    noise: float = Field(default=0.0, ge=0)
    """Deviation of noise on thoughts in training, whose own deviation is 1: against learning cases by heart."""
    start_norm: float = Field(default=0.1, gt=0)
    """Norm of prefix vectors at first, in mean norms of token embeddings. Exactly 0 would have no gradient in some models."""
    max_norm: float = Field(default=2.0, gt=0)
    """Longest prefix vector, in the same unit: very long ones give NaN."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Longest gradient."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Updates between checkpoints."""

    @model_validator(mode="after")
    def _some_loss(self) -> AdapterConfig:
        if self.similarity + self.likelihood == 0:
            raise ValueError("similarity and likelihood are both 0: there is nothing to train on")
        if self.start_norm > self.max_norm:
            raise ValueError(f"start_norm {self.start_norm:g} is above max_norm {self.max_norm:g}")
        return self


class TeamConfig(Config):
    """A team: its agents, what they are asked, and how they come to understand each other."""

    agents: tuple[AgentConfig, ...] = ()
    """At least two. A word stands for a model."""
    cases: str | None = None
    """JSONL file of cases to learn from: `prompt` for all, or `views`, what each agent sees, by its number or its name; `answer`;
    `questions`, where an agent is asked something else than what its state is taken at; `whole`, all that is known."""
    eval_cases: str | None = None
    """The same to measure on. None = a share of `cases` (`data.holdout_fraction`)."""
    data: DataConfig = DataConfig()
    """Tasks in place of `cases`: all agents are asked the same, and the task's verifier judges. Answers to `cases` are right
    where they are the same text but for spaces."""
    rounds: int = Field(default=1, ge=1)
    """Exchanges of thoughts before the answer."""
    turn_tokens: int = Field(default=0, ge=0)
    """Most tokens that an agent says before its state is taken; 0 = none, the state is that of what it was asked."""
    answer_tokens: int = Field(default=32, ge=1)
    """Most tokens of an answer."""
    message_template: str = "{prompt}\n\nThe others said:\n{messages}\n"
    """What an agent is asked where it is told by text. A line of {messages} is `NAME: TURN`."""
    states: StatesConfig = StatesConfig()
    """Where a model's state is read."""
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    """Which thoughts there are."""
    adapter: AdapterConfig = AdapterConfig()
    """How they are told."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Most tokens, padding included, in one forward pass."""
    seed: Seed = 0
    """Of initial weights, batches, sampled turns and controls."""

    @field_validator("agents", mode="before")
    @classmethod
    def _models(cls, value: object) -> object:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            return value
        found = cast("list[object] | tuple[object, ...]", items)
        return tuple({"model": item.strip()} if isinstance(item, str) else item for item in found)

    @model_validator(mode="after")
    def _fits(self) -> TeamConfig:
        if len(self.agents) == 1:
            raise ValueError(
                "a team has at least two agents; with one there is nobody to exchange thoughts with"
            )
        weights = self.adapter.alpha_weights
        if weights is not None and self.agents and len(weights) != len(self.agents) + 1:
            raise ValueError(
                f"adapter.alpha_weights has {len(weights)} entries; {len(self.agents)} agents need one for each of 0 to "
                f"{len(self.agents)} holders"
            )
        for place in ("{prompt}", "{messages}"):
            if place not in self.message_template:
                raise ValueError(f"message_template must hold {place}")
        if self.turn_tokens == 0 and any(agent.chat for agent in self.agents):
            raise ValueError(
                "an agent behind a server is told the others' turns, so turn_tokens must not be 0"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of the agents."""
        return tuple(agent.name or f"agent {number}" for number, agent in enumerate(self.agents, 1))


PAPER: Mapping[str, object] = {
    "adapter.reference": "self",
    "adapter.routing": "paper",
    "adapter.teach": "own",
    "adapter.num_vectors": 1,
    "states.layer": 1.0,
    "states.tokens": 1,
}
"""Overrides that make a team the paper's."""
