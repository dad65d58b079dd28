"""Messages of agents as text, whoever wrote them down: OpenAI's, Anthropic's and LangChain's forms, with calls and results."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_MESSAGE_CHARACTERS = 100_000
"""Of one message; of a longer one the beginning and the end."""
_MAX_DEPTH = 6
"""Of contents within contents."""

_ROLES = {
    "human": "user", "humanmessage": "user", "humanmessagechunk": "user", "user": "user",
    "ai": "assistant", "aimessage": "assistant", "aimessagechunk": "assistant", "assistant": "assistant",
    "model": "assistant",
    "system": "system", "systemmessage": "system", "systemmessagechunk": "system", "developer": "system",
    "tool": "tool", "toolmessage": "tool", "toolmessagechunk": "tool", "function": "tool", "functionmessage": "tool",
    "chat": "", "chatmessage": "",
}  # fmt: skip
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class FormError(ValueError):
    """Why something is no message."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message.

    Attributes:
        role: user, assistant, system or tool.
        said: its words alone, without thoughts, calls and results.
        text: all of it.
    """

    role: str
    said: str
    text: str


def is_message(value: Any) -> bool:
    """Whether an object looks like one message, in one of the forms."""
    if not isinstance(value, Mapping):
        return False
    if isinstance(value.get("role"), str):
        return "content" in value or "tool_calls" in value or "function_call" in value
    if value.get("lc") is not None and isinstance(value.get("kwargs"), Mapping):
        return True
    return _role_of(value.get("type")) is not None and (
        "content" in value or isinstance(value.get("data"), Mapping)
    )


def read_message(value: Any) -> Turn:
    """A message of any of the forms.

    Raises:
        FormError: none fits.

    >>> read_message({"type": "ai", "data": {"content": "", "tool_calls": [{"name": "add", "args": {"a": 1}}]}}).text
    'calls add({"a": 1})'
    >>> read_message({"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url"}]}).text
    'Hi\\n[image_url]'
    """
    if not isinstance(value, Mapping):
        raise FormError(f"a message is an object, not a {type(value).__name__}")
    kind, body = value.get("role") or value.get("type"), value
    if (
        isinstance(value.get("kwargs"), Mapping) and value.get("lc") is not None
    ):  # LangChain's serialised objects
        path = value.get("id")
        kind, body = (path[-1] if isinstance(path, list) and path else None), value["kwargs"]
    elif isinstance(value.get("data"), Mapping) and "content" not in value:  # messages_to_dict
        body = value["data"]
    role = _role_of(kind)
    if role == "":
        role = _role_of(body.get("role")) or "user"
    if role is None:
        raise FormError(f"a message of the unknown role {kind!r}; known are user, assistant, system and tool")
    parts = _Parts()
    parts.content(body.get("content"))
    parts.calls(body)
    if isinstance(body.get("refusal"), str):
        parts.say(body["refusal"])
    for name in ("reasoning_content", "reasoning"):
        if isinstance(body.get(name), str) and body[name].strip():
            parts.lines.insert(0, f"(thinks) {body[name]}")
            break
    name = body.get("name")
    head = f"{name}: " if role == "tool" and isinstance(name, str) else ""
    failed = "(error) " if role == "tool" and body.get("status") == "error" else ""
    return Turn(role, plain("\n".join(parts.said)), plain(head + failed + "\n".join(parts.lines)))


def _role_of(kind: object) -> str | None:
    return _ROLES.get(kind.lower()) if isinstance(kind, str) else None


class _Parts:
    """The parts of one message as lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.said: list[str] = []
        self.seen_calls: set[str] = set()

    def say(self, text: str) -> None:
        if text.strip():
            self.lines.append(text)
            self.said.append(text)

    def content(self, content: Any) -> None:
        if content is None:
            return
        if isinstance(content, str):
            self.say(content)
        elif isinstance(content, list):
            for part in content:
                self.part(part)
        elif isinstance(content, Mapping):
            self.part(content)
        else:
            raise FormError(f"a message's content is text or a list of parts, not a {type(content).__name__}")

    def part(self, part: Any) -> None:
        if isinstance(part, str):
            self.say(part)
            return
        if not isinstance(part, Mapping):
            raise FormError(f"a part of a message is an object, not a {type(part).__name__}")
        kind = part.get("type")
        if kind in ("thinking", "reasoning"):
            thought = part.get("thinking") or part.get("text") or part.get("reasoning") or part.get("summary")
            if thought:
                self.lines.append(f"(thinks) {flat(thought)}")
        elif kind in ("tool_use", "server_tool_use", "function_call", "tool_call"):
            self.call(
                part.get("name"), part.get("input", part.get("arguments", part.get("args"))), part.get("id")
            )
        elif kind in ("tool_result", "function_call_output") or (
            isinstance(kind, str) and kind.endswith("_tool_result")
        ):
            failed = "(error) " if part.get("is_error") else ""
            self.lines.append(f"result: {failed}{flat(part.get('content', part.get('output')))}")
        elif isinstance(part.get("text"), str):
            self.say(part["text"])
        elif isinstance(part.get("refusal"), str):
            self.say(part["refusal"])
        else:
            self.lines.append(f"[{str(kind or 'part without type')[:60]}]")

    def calls(self, body: Mapping[str, Any]) -> None:
        """Of the fields beside the content: OpenAI's and LangChain's `tool_calls`, the old `function_call`."""
        more = body.get("additional_kwargs")
        found = (
            body.get("tool_calls") or (more.get("tool_calls") if isinstance(more, Mapping) else None) or []
        )
        if not isinstance(found, list):
            raise FormError(f"tool_calls are a list, not a {type(found).__name__}")
        for call in [*found, *(body.get("invalid_tool_calls") or [])]:
            if not isinstance(call, Mapping):
                raise FormError(f"a tool call is an object, not a {type(call).__name__}")
            function = call.get("function")
            inner = function if isinstance(function, Mapping) else call
            self.call(inner.get("name"), inner.get("arguments", inner.get("args")), call.get("id"))
        old = body.get("function_call")
        if isinstance(old, Mapping):
            self.call(old.get("name"), old.get("arguments"), None)

    def call(self, name: object, arguments: object, id: object) -> None:
        if isinstance(id, str):
            if id in self.seen_calls:  # LangChain tells a call twice: as a part and as a field
                return
            self.seen_calls.add(id)
        given = arguments if isinstance(arguments, str) else "" if arguments is None else to_json(arguments)
        self.lines.append(f"calls {name if isinstance(name, str) and name else '(unnamed)'}({given})")


def flat(value: Any, depth: int = 0) -> str:
    """A result of a tool, or thoughts, as text: contents and lists of parts as their text, everything else as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if depth < _MAX_DEPTH:
        if isinstance(value, list) and any(isinstance(part, (str, Mapping)) for part in value):
            return "\n".join(flat(part, depth + 1) for part in value)
        if isinstance(value, Mapping):
            if isinstance(value.get("text"), str):
                return value["text"]
            if value.get("type") in ("text", "tool_result") and "content" in value:
                return flat(value["content"], depth + 1)
            if value.get("type") in ("image", "image_url", "input_image", "document", "audio", "file"):
                return f"[{value['type']}]"
    return to_json(value)


def to_json(value: object) -> str:
    """On one line."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return "[too deep]"


def plain(text: str, limit: int = MAX_MESSAGE_CHARACTERS) -> str:
    """Without colours of terminals, control characters and halves of surrogates; of a long text the beginning and the end."""
    text = _CONTROL.sub("", _ANSI.sub("", _joined(text).replace("\r\n", "\n").replace("\r", "\n"))).strip()
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n[… {len(text) - limit:,} characters left out …]\n{text[-(limit - limit // 2) :]}"


def _joined(text: str) -> str:
    """Pairs of surrogates, which JSON escapes may leave, become the characters they mean."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def transcript(turns: Sequence[Turn]) -> str:
    """A whole trace.

    >>> print(transcript([Turn("user", "2 + 2?", "2 + 2?"), Turn("assistant", "4", "4")]))
    [user] 2 + 2?
    [assistant] 4
    """
    return "\n".join(f"[{turn.role}] {turn.text}" for turn in turns)
