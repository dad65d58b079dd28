"""A journal of replies: a killed run pays for no call twice, and a recorded run is replayed without a model.

One JSON line per reply, on the disk before the caller has it. A call is known by its key, role, messages, schema and the
model's settings; of messages and schemas only hashes are kept unless asked for. Failed calls are not recorded: they are
asked again.

Redaction. What is stored must not hold secrets, and a run that resumes must go on as the first one would have. Both hold
because a live reply is redacted *before the caller has it*: nobody ever sees a text that the journal does not have. (If only
the stored copy were redacted, the resumed run would build other prompts than the first run, and pay for them again.)
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from postgrad.core.errors import ChatError, ConfigError
from postgrad.core.runfiles import LineFile, sync_directory, to_plain
from postgrad.engines.chat.tokens import make_counter
from postgrad.engines.chat.types import Call, Chat, FinishReason, Reply

Mode = Literal["resume", "replay"]
_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens")
_EXCERPT_CHARACTERS = 60


class Journal:
    """A `Chat` around another one.

    Args:
        chat: who answers what is not recorded; None in mode `replay`.
        path: the file; made if it is not there (mode `resume`).
        mode: `resume` answers recorded calls from the file and appends the others. `replay` is a cassette: a call that is
            not recorded is a ChatError that names the nearest one and what differs, and the file is not touched.
        settings: what decides the replies besides the call, such as `ChatConfig.settings`. Default: the chat's own.
            None without a chat = recorded replies are taken whatever their settings.
        redact: applied to replies (and stored prompts) before anybody has them; see above.
        keep_prompts: store the messages too, redacted. Larger, but readable, and a replay that fails shows the difference.
        tokenizer: counts tokens where there is no chat (see `ChatConfig.tokenizer`).

    Raises:
        ConfigError: an unknown mode, or no chat in mode `resume`.
        ChatError: no file in mode `replay`, or a line that is no reply.
        RunError: a damaged line.
        ModelError: a tokenizer that cannot be read.
    """

    def __init__(
        self,
        chat: Chat | None,
        path: str | Path,
        mode: Mode = "resume",
        *,
        settings: Mapping[str, Any] | None = None,
        redact: Callable[[str], str] | None = None,
        keep_prompts: bool = False,
        tokenizer: str | None = None,
    ) -> None:
        if mode not in get_args(Mode) or (chat is None and mode == "resume"):
            raise ConfigError(
                f"A journal in mode {mode!r} without a model that answers. Valid: resume (with a chat), replay."
                if chat is None
                else f"Unknown mode of a journal: {mode!r}. Valid: {', '.join(get_args(Mode))}."
            )
        self.path = Path(path).expanduser()
        self._chat, self._mode = chat, mode
        self._redact, self._keep_prompts = redact, keep_prompts
        settings = settings if settings is not None else getattr(chat, "settings", None)
        self._settings = (
            None if settings is None else {name: _hash(value) for name, value in settings.items()}
        )
        self._count = make_counter(tokenizer) if chat is None else chat.count_tokens
        self._file = LineFile(self.path)
        if mode == "resume":
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file.trim_torn_line()
        elif not self.path.exists():
            raise ChatError(f"No journal at {self.path} to replay. Record one with mode = 'resume'.")
        rows = [_Row.read(row, f"{self.path}, line {n}") for n, row in enumerate(self._file.read(), start=1)]
        self._rows = {self._place(row): row for row in rows}

    def __len__(self) -> int:
        """Calls that are recorded."""
        return len(self._rows)

    async def complete(self, call: Call) -> Reply:
        """The recorded reply, or the chat's. Raises ChatError as the chat does, and in mode `replay` for an unknown call."""
        asked = _Row.of(call, self._settings or {})
        known = self._rows.get(self._place(asked))
        if known is not None:
            return replace(known.reply, replayed=True)
        if self._chat is None or self._mode == "replay":
            raise ChatError(self._unknown(asked, call))
        reply = await self._chat.complete(call)
        if self._redact is not None:
            reply = replace(reply, text=self._redact(reply.text))
        row = replace(asked, reply=reply)
        if self._keep_prompts:
            row = replace(row, prompt=self._stored(call))
        self._append(row)
        try:
            await asyncio.to_thread(self._file.sync)
        except OSError as error:
            raise self._unwritable(error) from None
        return reply

    def count_tokens(self, text: str) -> int:
        """As the chat's."""
        return self._count(text)

    async def close(self) -> None:
        """Closes the file and the chat."""
        self._file.close()
        if self._chat is not None:
            await self._chat.close()

    def _append(self, row: _Row) -> None:
        """Written at once, so that only a crash of the machine can lose it before the sync that follows."""
        new = not self.path.exists()
        try:
            self._file.append([row.written()])
            if new:
                sync_directory(self.path.parent)
        except OSError as error:
            raise self._unwritable(error) from None
        self._rows[self._place(row)] = row

    def _unwritable(self, error: OSError) -> ChatError:
        return ChatError(
            f"The journal {self.path} cannot be written: {error.strerror}. Its calls up to here are kept; make room and resume."
        )

    def _place(self, row: _Row) -> str:
        """What a row is found by."""
        return _hash(
            [row.key, row.role, row.messages, row.schema, None if self._settings is None else row.settings]
        )

    def _stored(self, call: Call) -> list[dict[str, str]]:
        hide = self._redact or (lambda text: text)
        return [{"role": message["role"], "content": hide(message["content"])} for message in call.messages]

    def _unknown(self, asked: _Row, call: Call) -> str:
        """What to say of a call that is not recorded."""
        said = f"No reply to call {asked.key!r} ({asked.role}) is recorded in {self.path}"
        if not self._rows:
            return f"{said}, which is empty. Record one with mode = 'resume'."
        rows = list(self._rows.values())
        same = [row for row in rows if row.key == asked.key]
        if not same:
            (nearest, *_) = difflib.get_close_matches(asked.key, {row.key: 1 for row in rows}, 1, 0.0) or [
                rows[-1].key
            ]
            return (
                f"{said}: no call has this key; the nearest is {nearest!r}, of {len(rows)} in all. {_EXITS}"
            )
        differences = [self._differences(row, asked, call) for row in same]
        fewest = min(differences, key=len)
        return f"{said} as it is asked now; what is recorded under the key {asked.key!r} differs in {'; '.join(fewest)}. {_EXITS}"

    def _differences(self, row: _Row, asked: _Row, call: Call) -> list[str]:
        found: list[str] = []
        if row.role != asked.role:
            found.append(f"role ({row.role!r} then, {asked.role!r} now)")
        if len(row.messages) != len(asked.messages):
            found.append(f"the number of messages ({len(row.messages)} then, {len(asked.messages)} now)")
        for place, (then, now) in enumerate(zip(row.messages, asked.messages, strict=False)):
            if then != now:
                excerpt = ""
                if row.prompt is not None:
                    excerpt = _excerpt(row.prompt[place]["content"], self._stored(call)[place]["content"])
                found.append(f"message {place + 1} of {len(asked.messages)}{excerpt}")
                break
        if row.schema != asked.schema:
            found.append("schema")
        if self._settings is not None:
            names = sorted({*row.settings, *asked.settings})
            changed = [name for name in names if row.settings.get(name) != asked.settings.get(name)]
            found += [f"the model's settings ({', '.join(changed)})"] if changed else []
        return found


_EXITS = "Record it anew (mode = 'resume' with a model), or undo what changed the call."


@dataclass(frozen=True)
class _Row:
    """One line: what was asked, in hashes, and the reply."""

    key: str
    role: str
    messages: tuple[str, ...]
    schema: str
    settings: Mapping[str, str]
    reply: Reply
    prompt: Sequence[Mapping[str, str]] | None = None

    @classmethod
    def of(cls, call: Call, settings: Mapping[str, str]) -> _Row:
        messages = tuple(_hash([message["role"], message["content"]]) for message in call.messages)
        return cls(call.key, call.role, messages, _hash(call.schema), settings, Reply(""))

    @classmethod
    def read(cls, row: Mapping[str, Any], where: str) -> _Row:
        """Raises ChatError for a line that is no reply."""
        try:
            reply = row["reply"]
            usable = (
                all(isinstance(row[name], str) for name in ("key", "role", "schema"))
                and all(isinstance(part, str) for part in row["messages"])
                and isinstance(row["settings"], dict)
                and isinstance(reply["text"], str)
                and reply["finish_reason"] in get_args(FinishReason)
                and all(reply[name] is None or isinstance(reply[name], int) for name in _COUNTS)
            )
            if not usable:
                raise TypeError("a value of the wrong type")
            return cls(
                row["key"],
                row["role"],
                tuple(row["messages"]),
                row["schema"],
                cast("dict[str, str]", row["settings"]),
                Reply(
                    text=reply["text"],
                    prompt_tokens=reply["prompt_tokens"],
                    cached_tokens=reply["cached_tokens"],
                    completion_tokens=reply["completion_tokens"],
                    seconds=float(reply["seconds"]),
                    finish_reason=reply["finish_reason"],
                ),
                row.get("prompt"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ChatError(
                f"{where} is no reply of a journal ({type(error).__name__}: {error}). Is this the right file? Delete the "
                "line to go on."
            ) from None

    def written(self) -> dict[str, Any]:
        """The line."""
        reply = {name: value for name, value in vars(self.reply).items() if name != "replayed"}
        row: dict[str, Any] = {
            "key": self.key,
            "role": self.role,
            "messages": list(self.messages),
            "schema": self.schema,
            "settings": dict(self.settings),
            "reply": reply,
        }
        return row if self.prompt is None else {**row, "prompt": list(self.prompt)}


def _hash(value: Any) -> str:
    """Of canonical JSON: the order of keys in objects does not matter.

    >>> _hash({"a": 1, "b": 2}) == _hash({"b": 2, "a": 1})
    True
    """
    text = json.dumps(to_plain(value)[0], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _excerpt(then: str, now: str) -> str:
    """Where two texts part."""
    place = next(
        (n for n, (a, b) in enumerate(zip(then, now, strict=False)) if a != b), min(len(then), len(now))
    )
    cut = slice(max(0, place - 10), place + _EXCERPT_CHARACTERS)
    return f" from character {place} on ({then[cut]!r} then, {now[cut]!r} now)"
