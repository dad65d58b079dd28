"""Prompts, requests and samples as JSON and back, exactly (floats by their shortest round-trip form)."""

from __future__ import annotations

from typing import Any

import numpy as np

from postgrad.core.types import Prompt, Request, Sample


def prompt_to_json(prompt: Prompt) -> dict[str, Any]:
    """All fields."""
    return {
        "id": prompt.id,
        "text": prompt.text,
        "messages": None if prompt.messages is None else [dict(message) for message in prompt.messages],
        "answer": prompt.answer,
        "task": prompt.task,
        "metadata": dict(prompt.metadata),
    }


def prompt_from_json(data: dict[str, Any]) -> Prompt:
    """What `prompt_to_json` wrote."""
    messages = None if data["messages"] is None else tuple(data["messages"])
    return Prompt(**{**data, "messages": messages})


def request_to_json(request: Request) -> dict[str, Any]:
    """All fields, the tokens generated so far included."""
    return {**request.__dict__, "prompt_tokens": request.prompt_tokens.tolist()}


def request_from_json(data: dict[str, Any]) -> Request:
    """What `request_to_json` wrote."""
    lists = ("interrupt_tokens", "tokens", "logps", "versions", "mask")
    fields = {**data, **{name: tuple(data[name]) for name in lists}}
    return Request(**{**fields, "prompt_tokens": np.array(data["prompt_tokens"], dtype=np.int64)})


_ARRAYS = {
    "prompt_tokens": np.int64,
    "token_ids": np.int64,
    "loss_mask": np.bool_,
    "behaviour_logp": np.float32,
    "policy_version": np.int64,
}


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """Without verdict and reward, which are asked for again."""
    plain = ("request_id", "group_id", "stop_reason", "interrupted", "text")
    data: dict[str, Any] = {name: getattr(sample, name) for name in plain}
    return data | {name: getattr(sample, name).tolist() for name in _ARRAYS}


def sample_from_json(data: dict[str, Any]) -> Sample:
    """What `sample_to_json` wrote."""
    return Sample(**{**data, **{name: np.array(data[name], dtype=dtype) for name, dtype in _ARRAYS.items()}})
