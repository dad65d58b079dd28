"""Options of `playbook learn`. Imports neither torch nor openai."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from postgrad.core.config import Config, Seed, deep_merge, validate
from postgrad.core.errors import ConfigError
from postgrad.engines.chat.config import ChatConfig
from postgrad.tasks.config import DataConfig

ROLES = ("generator", "reflector", "curator")


class LearnConfig(Config):
    """How a playbook is grown (2510.04618, sections 3 and 4)."""

    data: DataConfig = DataConfig()
    """Tasks and who judges their answers, as for `rl train`."""
    environment: str | None = None
    """`module:function` or `file.py:function` that judges an answer by trying it, called as environment(prompt, answer); it
    gives a score, (score, feedback) or {"score", "feedback"}. Instead of the task's verifier."""
    agent: str | None = None
    """`module:function` or `file.py:function` that works on a task in its own way, called as agent(question, playbook, ask) with
    ask(messages) -> text; it gives its answer, or a dict with answer, trace, and score and feedback where it has them."""
    chat: dict[str, Any] = Field(default_factory=dict)
    """The language model of all roles: base_url and model of a server, or path of a local one; api_key_env, temperature,
    max_tokens, timeout_s, retries, concurrency, structured, tokenizer, context_tokens, price_prompt, price_cached,
    price_completion, seed, options (see `engines.chat.ChatConfig`)."""
    generator: dict[str, Any] = Field(default_factory=dict)
    """What is different for the Generator."""
    reflector: dict[str, Any] = Field(default_factory=dict)
    """What is different for the Reflector."""
    curator: dict[str, Any] = Field(default_factory=dict)
    """What is different for the Curator."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Files with other instructions for a role: {generator = "FILE"}."""
    reply: Literal["json", "text"] = "json"
    """What a Generator returns: `json`, or free `text` that cites ids in brackets and ends with <answer>…</answer>."""
    about: str = ""
    """What a Curator is told about these tasks."""
    mode: Literal["offline", "online"] = "offline"
    """`offline`: several epochs, the best version on held-out prompts is kept. `online`: each prompt once, answered before
    anything is learned from it."""
    epochs: int = Field(default=5, ge=1)
    """Passes over the prompts (offline)."""
    num_samples: int = Field(default=0, ge=0)
    """Prompts of one epoch; 0 = all."""
    reflection_rounds: int = Field(default=5, ge=1)
    """Most times that a wrong answer is reflected on and given again."""
    labels: bool = True
    """Whether the Reflector sees the right answer. Off: the feedback of the environment alone."""
    pass_score: float = 1.0
    """A score of at least this is a right answer."""
    budget_tokens: int = Field(default=16_384, ge=64)
    """Most tokens of the playbook in a prompt."""
    retrieved_tokens: int = Field(default=0, ge=0)
    """Of the budget, for bullets that are chosen by the question. 0 = the whole playbook stands in every prompt, and what does
    not fit is retired; else it may grow beyond the budget."""
    window: int = Field(default=12, ge=1)
    """A sample starts from the playbook as it was `window` samples before it, so that so many can be worked on at a time. It
    changes the result; 1 = each sample sees all that was learned before it, as in the paper. Half as many again as workers keep
    these busy while a sample that takes long is waited for."""
    workers: int = Field(default=8, ge=1)
    """Samples that are worked on at a time, at most `window`. It changes the time only."""
    refine: Literal["proactive", "lazy", "off"] = "proactive"
    """When lines that look alike are shown to the Curator: after each sample, or only once the budget is reached. Exact copies
    are dropped in both; `off`: nothing is done."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """Cosine from which two lines look alike. None = that of the embedder."""
    embedder: str = "hashed"
    """`hashed` (character n-grams, nothing to download), or a sentence-transformers model by path (extra `embed`)."""
    max_adds: int = Field(default=5, ge=1)
    """Most bullets that one sample may add."""
    max_characters: int = Field(default=2000, ge=40)
    """Of one bullet; longer ones are refused."""
    quarantine: Literal["off", "validation", "approve"] = "off"
    """New bullets are not shown to the Generator before held-out prompts are answered no worse with them (`validation`), or a
    person approves them (`approve`)."""
    validation_samples: int = Field(default=50, ge=0)
    """Held-out prompts on which versions are compared (offline); 0 = the last version is kept."""
    validate_every: int = Field(default=0, ge=0)
    """Samples between two validations; 0 = at the end of each epoch."""
    repairs: int = Field(default=2, ge=0)
    """Times that a reply which does not follow its schema is asked for again."""
    max_failures: int = Field(default=8, ge=1)
    """Samples in a row without a reply after which learning stops; they are tried again on --resume."""
    seed: Seed = 0
    """Of the order of prompts."""

    def role(self, name: str) -> ChatConfig:
        """The language model of a role.

        Raises:
            ConfigError: a key that it does not have, or a value that cannot be.
        """
        try:
            return validate(ChatConfig, deep_merge(self.chat, getattr(self, name)))
        except ConfigError as error:
            table = name if getattr(self, name) else "chat"
            raise ConfigError(f"{table}: {error}") from None

    @model_validator(mode="after")
    def _usable(self) -> LearnConfig:
        if self.chat or any(getattr(self, name) for name in ROLES):
            for name in ROLES:
                self.role(name)
        if self.retrieved_tokens >= self.budget_tokens:
            raise ValueError(
                f"retrieved_tokens ({self.retrieved_tokens}) must be below budget_tokens ({self.budget_tokens})"
            )
        unknown = sorted(set(self.prompts) - set(ROLES))
        if unknown:
            raise ValueError(f"prompts are for {', '.join(ROLES)}; received {', '.join(unknown)}")
        if self.quarantine == "validation" and (self.mode == "online" or not self.validation_samples):
            raise ValueError("quarantine = validation needs mode = offline and validation_samples above 0")
        return self
