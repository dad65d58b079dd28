"""Which prompts, which verifier, which split."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from postgrad.core.config import Config, Seed

_PLACEHOLDERS = ("prompt", "completion", "answer")

_CREATIVE_WRITING = """\
Below are a request and a reply to it. Judge the reply as an editor of creative writing would: whether it does what was
asked, its originality, its style, and that it is sound from beginning to end.

=== Request ===
{prompt}

=== Reply ===
{completion}

=== End ===
Rate the reply from 1 (worthless) to 10 (outstanding). Answer with one number and nothing else."""


class RewardModelConfig(Config):
    """A reward model: a Hugging Face sequence classifier that reads prompt and completion and gives a number.

    It reads the chat template of its own tokenizer with the completion as the assistant's turn, or without a template
    prompt, newline, completion; of a completion that thinks, what follows `</think>`. `data.instruction` is not shown to it.
    """

    path: str = Field(min_length=1)
    """Directory with config.json, safetensors and tokenizer, or a hub name."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    device: str = "auto"
    """`auto` (the first GPU, else the CPU), `cpu`, `cuda`, `cuda:N`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: float32 on a CPU, bfloat16 elsewhere."""
    batch_size: int = Field(default=16, ge=1)
    """Most texts in one forward pass; the samples of one group are scored together."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest text, prompt and completion together. A longer one is not cut but gets no score (status `error`).
    None = what the model can read."""
    label: int | None = Field(default=None, ge=0)
    """Which output is the reward; needed when there are several."""
    output: Literal["logit", "probability"] = "logit"
    """The reward is the output as it is, or its sigmoid (one output) or softmax (several)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


class JudgeConfig(Config):
    """A language model as judge, behind any server that speaks OpenAI's chat completions (extra `llm`)."""

    base_url: str = Field(pattern=r"^https?://")
    """Where the server is, such as http://127.0.0.1:8000/v1 or https://api.openai.com/v1."""
    model: str = Field(min_length=1)
    """Its name there."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key (never the key itself). None = the server wants none."""
    template: str = _CREATIVE_WRITING
    """What the judge is asked: {completion} and, where wanted, {prompt} and {answer} are filled in. It should ask for a
    number. Other braces stay as they are."""
    pattern: str = r"(-?\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*\d+)?"
    """Regular expression; the (first group of the) last match in the reply, after any `</think>`, is the score."""
    minimum: float = 1.0
    """A number below is no score (status `error`)."""
    maximum: float = 10.0
    """Nor is one above."""
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=512, ge=1)
    """Most tokens of the reply; room for thinking where the judge thinks."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request, such as {chat_template_kwargs = {enable_thinking = false}}."""
    concurrency: int = Field(default=8, ge=1)
    """Requests at a time."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds for one request; then it is tried again, and after the last try the verdict is `timeout`."""
    retries: int = Field(default=2, ge=0)
    """Further tries after a timeout, a lost connection or a server's error (408, 409, 429, 5xx), with growing pauses."""

    @model_validator(mode="after")
    def _usable(self) -> JudgeConfig:
        if "{completion}" not in self.template:
            raise ValueError(
                f"template must hold {{completion}}, or the judge does not see it; it may also hold "
                f"{' and '.join(f'{{{name}}}' for name in _PLACEHOLDERS if name != 'completion')}"
            )
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"pattern is no regular expression: {error} (received {self.pattern!r})"
            ) from None
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum:g} is not below maximum {self.maximum:g}; swap them")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError(
                "api_key_env is the name of an environment variable, such as OPENAI_API_KEY, not a key"
            )
        return self


class RewardPart(Config):
    """One of several rewards of a task: exactly one of verifier, reward, reward_model and judge."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]+$")
    """What its metric is called. None = `verifier`, `reward_model`, `judge`, or the name of the function."""
    weight: float = Field(default=1.0, gt=0)
    """Its share in the score, which is the weighted mean."""
    verifier: bool = False
    """The source's own verifier: that of the reasoning-gym data set, or math-verify against the answer."""
    reward: str | None = None
    """A function, as `reward` of a task."""
    reward_model: RewardModelConfig | None = None
    """As of a task."""
    judge: JudgeConfig | None = None
    """As of a task."""
    passes: bool = False
    """This part alone decides whether a sample passes (`algorithm.success_threshold`), not the weighted score."""

    @property
    def label(self) -> str:
        """Its name, given or not."""
        if self.name is not None:
            return self.name
        if self.reward is not None:
            return self.reward.rpartition(":")[2]
        return "verifier" if self.verifier else "judge" if self.judge is not None else "reward_model"

    @field_validator("reward_model", mode="before")
    @classmethod
    def _path(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> RewardPart:
        given = [name for name in ("reward", "reward_model", "judge") if getattr(self, name) is not None]
        given += ["verifier"] * self.verifier
        if len(given) != 1:
            raise ValueError(
                f"a part of rewards has {' and '.join(given) or 'nothing that judges'}; give exactly one of verifier = true, "
                "reward, reward_model and judge"
            )
        return self


class TaskConfig(Config):
    """One source of prompts. `name` is a reasoning-gym data set, or any label when `path` is given."""

    name: str
    """Name of a reasoning-gym data set (`chain_sum`, `gcd`, …), or a label of your own when `path` is given."""
    dataset: str | None = None
    """reasoning-gym data set, where it is not the name: so one data set can be in the mix twice, easy and hard."""
    path: str | None = None
    """JSONL, JSON, CSV or Parquet file, a directory saved by `datasets`, or a hub data set name with prompt and answer. Or
    a function that gives such rows, `module:function` or `file.py:function`, called with size, seed and `options`."""
    reward: str | None = None
    """`module:function` or `path/to/file.py:function`, called as reward(prompt, completion) -> float. Default: the data
    set's own verifier (reasoning-gym), or math-verify against the answer (files)."""
    reward_model: RewardModelConfig | None = None
    """Instead of a verifier: a reward model, a path or a table (see `RewardModelConfig`). Files then need no answers."""
    judge: JudgeConfig | None = None
    """Instead of a verifier: a language model behind a server, by `base_url` and `model` (see `JudgeConfig`)."""
    rewards: tuple[RewardPart, ...] = ()
    """Several of these instead, as a list of tables, each with a weight (see `RewardPart`): the score is their weighted mean. A
    sample that one of them gives no score has none."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the reasoning-gym data set, such as {min_terms = 2, max_terms = 3}; for a hub data set also `name`,
    `revision`, `data_dir`, `data_files` of `datasets.load_dataset`."""
    size: int = Field(default=2000, ge=1)
    """How many prompts to generate (reasoning-gym) or read at most (files)."""
    weight: float = Field(default=1.0, gt=0)
    """Share of this task in the prompt stream, relative to the other tasks."""
    seed: Seed = 0
    """Seed of the reasoning-gym generator, or of the function in `path`."""
    partial_credit: bool = False
    """Use reasoning-gym's fractional scores. Off: 1 for a score of exactly 1.0, else 0 (its scorers give partial
    credit to substrings)."""
    prompt_column: str = "prompt"
    """Column that holds the prompt text or the chat messages."""
    answer_column: str = "answer"
    """Column that holds the reference answer."""
    first_turn: bool = False
    """Of a chat, only its first user turn is the prompt: for logs of whole conversations, such as WildChat."""
    split: str = "train"
    """Split of a `datasets` source."""

    @field_validator("reward_model", mode="before")
    @classmethod
    def _path(cls, value: object) -> object:
        """A path stands for a reward model with default options."""
        return {"path": value} if isinstance(value, str) else value

    @property
    def judged(self) -> bool:
        """Whether a reward model, a judge or several rewards judge, not one verifier."""
        return self.reward_model is not None or self.judge is not None or bool(self.rewards)

    @property
    def functions(self) -> tuple[str, ...]:
        """The reward functions that it names."""
        return tuple(part.reward for part in (self, *self.rewards) if part.reward is not None)

    @property
    def needs_answers(self) -> bool:
        """Whether the source's own verifier is used."""
        if self.rewards:
            return any(part.verifier for part in self.rewards)
        return self.reward is None and not self.judged

    def with_part(self, part: RewardPart) -> TaskConfig:
        """The task with this one of its rewards alone."""
        update = {
            "rewards": (),
            "reward": part.reward,
            "reward_model": part.reward_model,
            "judge": part.judge,
        }
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _one_reward(self) -> TaskConfig:
        given = [name for name in ("reward", "reward_model", "judge") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"task {self.name!r} has {' and '.join(given)}; give one of reward, reward_model and judge, or none for the "
                "verifier of the source"
            )
        if self.rewards and given:
            raise ValueError(f"task {self.name!r} has rewards and {given[0]}; put the latter into rewards")
        labels = [part.label for part in self.rewards]
        if len(set(labels)) < len(labels):
            raise ValueError(
                f"two parts of the rewards of task {self.name!r} have one name ({labels}); name them"
            )
        if sum(part.passes for part in self.rewards) > 1:
            raise ValueError(
                f"several parts of the rewards of task {self.name!r} have passes = true; one decides"
            )
        return self


class DataConfig(Config):
    """Prompts, verifiers and the held-out split."""

    tasks: tuple[TaskConfig, ...] = ()
    """The sources, mixed by weight."""
    holdout_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts kept for evaluation, chosen by a hash of their content: never trained on, in any run. 0 = nothing is
    held out and evaluation draws on the training prompts, for sampling without a question: it has one prompt."""
    verify_workers: int = Field(default=1, ge=1)
    """Worker processes that run verifiers."""
    verify_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds one verdict may take before its worker is replaced and the sample is counted as a timeout."""
    instruction: str = ""
    """Text put before each prompt (a system message for chat models), for example to ask for <answer> tags."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        """A name, or a list with names in it, stands for tasks with default options."""
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            return value
        return tuple({"name": item.strip()} if isinstance(item, str) else item for item in items)
