"""Options of a chat with a language model: behind a server, or a local one. Imports neither torch nor openai."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from postgrad.core.config import Config

Structured = Literal["auto", "json_schema", "json_object", "text"]

_CHANGE_REPLIES = (
    "model",
    "path",
    "temperature",
    "max_tokens",
    "structured",
    "options",
    "seed",
)
_LOCAL_OPTIONS = {"top_p", "top_k"}


class ChatConfig(Config):
    """A language model to talk to: `base_url` and `model` for a server (extra `llm`), or `path` for a local one."""

    base_url: str | None = Field(default=None, pattern=r"^https?://")
    """Where the server is, such as http://127.0.0.1:11434/v1 or https://api.openai.com/v1: anything that speaks OpenAI's
    chat completions."""
    model: str | None = Field(default=None, min_length=1)
    """The model's name there."""
    path: str | None = Field(default=None, min_length=1)
    """Instead of a server: a local Hugging Face model (a directory, a run or a hub name), run by our torch engine."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key (never the key itself). None = the server wants none."""
    temperature: float | None = Field(default=0.0, ge=0)
    """0 = greedy. None = not sent, for models that refuse it (a local model then samples at 1)."""
    max_tokens: int | None = Field(default=2048, ge=1)
    """Most tokens of a reply; room for thinking where the model thinks. None = not sent (a local model then takes 2048)."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds for one request, first to last byte; then it is tried again."""
    retries: int = Field(default=4, ge=0)
    """Further tries after a timeout, a lost connection, a broken reply or a server's error (408, 409, 429, 5xx), with
    growing pauses."""
    concurrency: int = Field(default=8, ge=1)
    """Requests at a time; slots of the engine for a local model."""
    structured: Structured = "auto"
    """How a JSON schema is asked for: `json_schema` and `json_object` are the server's response formats, `text` only says
    it in the prompt. `auto` = json_schema, then the next one once the server answers 400 or 422 to it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request, such as {chat_template_kwargs = {enable_thinking = false}}. A local model takes top_p
    and top_k."""
    tokenizer: str | None = None
    """A tokenizer.json, or a directory with one, of the server's model: token counts are then exact, else estimated."""
    context_tokens: int | None = Field(default=None, ge=1)
    """The context that the server gives the model, where it is known: a longer prompt is refused before it is sent. For a
    local model: a limit below its own context."""
    check_truncation: bool = True
    """Stop when the server reports far fewer prompt tokens than were sent, which means that it cut the prompt silently."""
    price_prompt: float | None = Field(default=None, ge=0)
    """USD per million prompt tokens. None = unknown, and so is the cost."""
    price_cached: float | None = Field(default=None, ge=0)
    """USD per million prompt tokens that the server had in its cache. None = as `price_prompt`."""
    price_completion: float | None = Field(default=None, ge=0)
    """USD per million tokens of replies."""
    seed: int | None = 0
    """With the key of a call it gives the seed of the reply. None = none is sent, for servers that refuse it (a local model
    then takes 0)."""
    device: str = "auto"
    """Of a local model: auto, cpu, cuda, cuda:N."""

    @model_validator(mode="after")
    def _usable(self) -> ChatConfig:
        if (self.path is None) == (self.base_url is None and self.model is None):
            raise ValueError(
                "give one of path (a local model) and base_url with model (a server); "
                f"received {'both' if self.path is not None else 'neither'}"
            )
        if self.path is None and (self.base_url is None or self.model is None):
            missing = "base_url" if self.base_url is None else "model"
            raise ValueError(f"a server needs base_url and model; {missing} is missing")
        if self.path is not None and not _LOCAL_OPTIONS.issuperset(self.options):
            unknown = sorted(set(self.options) - _LOCAL_OPTIONS)
            raise ValueError(
                f"options of a local model are {', '.join(sorted(_LOCAL_OPTIONS))}; received {unknown}"
            )
        if self.base_url is not None:
            _check_url(self.base_url)
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError(
                "api_key_env is the name of an environment variable, such as OPENAI_API_KEY, not a key"
            )
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the replies, for journals: not where the server is, nor prices, patience and keys."""
        names = _CHANGE_REPLIES if self.path is None else (*_CHANGE_REPLIES, "context_tokens")
        return self.model_dump(mode="json", include=set(names))


def _check_url(url: str) -> None:
    """Raises ValueError for an address that holds a password, without showing it."""
    try:
        parts = urlsplit(url)
        usable, secret = bool(parts.hostname), parts.password is not None or parts.username is not None
        _ = parts.port
    except ValueError:
        usable, secret = False, False
    if not usable:
        raise ValueError("base_url is no address; it looks like http://127.0.0.1:8000/v1")
    if secret:
        raise ValueError("base_url must not hold a user name or password; use api_key_env")
