"""Tasks from files, from `datasets` sources and from functions: a column of prompts and a column of answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from postgrad.core.errors import ConfigError, DataError, TaskError, nearest
from postgrad.core.protocols import Verifier
from postgrad.core.types import Message, Prompt
from postgrad.tasks.config import TaskConfig
from postgrad.tasks.function import load_function
from postgrad.tasks.maths import MathVerifier
from postgrad.tasks.readers import read_rows
from postgrad.tasks.split import prompt_id


class FileTask:
    """Prompts and answers from a file (JSONL, JSON, CSV, Parquet), a `datasets` source or a function, as a Task.

    The prompt column holds text, or a chat as a list of `{"role", "content"}` that does not end with the
    assistant (`first_turn` takes the first user turn of any chat). Without a reward of your own the answer
    column is required, and `MathVerifier` judges; of an answer in the GSM8K convention the part after `####`
    is kept. With a reward function, a reward model or a judge the answer is optional and kept as it is; a
    function also sees the other columns as the prompt's metadata (values that JSON does not know, as text).

    Rows that ask the same have the same id (`postgrad.tasks.split` drops all but the first) and are several demonstrations.

    Args:
        config: `path` is required; `size` rows are read at most.

    Raises:
        ConfigError: no path.
        TaskError: the reward cannot be loaded.
        MissingExtraError: math-verify is not installed and no reward is given.
    """

    def __init__(self, config: TaskConfig) -> None:
        if config.path is None:
            raise ConfigError(f"Task {config.name!r} has no path.")
        self._config = config
        self._path = config.path
        self._verifier: Verifier | None = None
        functions = [load_function(spec) for spec in config.functions]
        if config.needs_answers:
            self._verifier = MathVerifier()
        elif not config.judged:
            self._verifier = functions[0]
        self._prompts: tuple[Prompt, ...] | None = None
        self._answers: dict[str, list[str]] = {}

    @property
    def name(self) -> str:
        return self._config.name

    def prompts(self) -> Sequence[Prompt]:
        """All prompts, read at the first call.

        Raises:
            DataError: an empty or unreadable source, a missing column, an unusable prompt or a missing
                answer; names the file and the line (or row).
        """
        if self._prompts is None:
            config = self._config
            rows = read_rows(self._path, config.split, config.size, config.options, config.seed)
            prompts = tuple(self._prompt(place, row) for place, row in rows)
            if not prompts:
                raise DataError(f"{self._path} is empty: it holds no prompt.")
            for prompt in prompts:
                if prompt.answer:
                    self._answers.setdefault(prompt.id, []).append(prompt.answer)
            self._prompts = prompts
        return self._prompts

    def _prompt(self, place: str, row: Mapping[str, Any]) -> Prompt:
        config = self._config
        value = _cell(row, config.prompt_column, "prompt", place)
        text, messages = _prompt_cell(_first_user_turn(value, place) if config.first_turn else value, place)
        answer, metadata = self._answer(place, row), {}
        if config.functions:
            used = (config.prompt_column, config.answer_column)
            others = {key: value for key, value in row.items() if key not in used}
            metadata = json.loads(json.dumps(others, default=str))
        bare = Prompt(id="", text=text, messages=messages)
        return Prompt(prompt_id(self.name, bare), text, messages, answer, self.name, metadata)

    def _answer(self, place: str, row: Mapping[str, Any]) -> str | None:
        column = self._config.answer_column
        if not self._config.needs_answers:
            return None if row.get(column) is None else _as_text(row[column])
        value = _cell(row, column, "answer", place)
        answer = "" if value is None else _as_text(value).rpartition("####")[2].strip()
        if not answer:
            raise DataError(
                f"{place}: the answer in column {column!r} is empty, and math-verify has nothing to compare "
                "with. Fill it in, or give a reward function (module:function)."
            )
        return answer

    def verifier(self) -> Verifier:
        """Raises TaskError where a reward model, a judge or several rewards judge."""
        if self._verifier is None or self._config.judged:
            raise TaskError(f"Task {self.name!r} has no verifier: `tasks.make_judge` has its judge.")
        return self._verifier

    def demonstrations(self, prompt: Prompt) -> Sequence[str]:
        """The reference answers of all rows that ask the same, in order, for supervised warm-start."""
        return self._answers.get(prompt.id, [])


def _cell(row: Mapping[str, Any], column: str, noun: str, place: str) -> Any:
    if column not in row:
        columns = ", ".join(map(repr, row)) or "none"
        hint = nearest(column, row) if row else ""
        hint = f" {hint}" if hint.startswith("Did you mean") else ""
        raise DataError(
            f"{place}: no {noun} column {column!r}; the columns are {columns}.{hint} "
            f"Name the right one with {noun}_column."
        )
    return row[column]


def _as_text(value: object) -> str:
    """Numbers and truth values as Python writes them; lists and objects as JSON."""
    if isinstance(value, (list, dict)):
        return json.dumps(value, default=str)
    return str(value)


def _prompt_cell(value: object, place: str) -> tuple[str | None, tuple[Message, ...] | None]:
    """(text, None) or (None, messages)."""
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{place}: the prompt is empty.")
        return value, None
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{place}: the prompt is a {type(value).__name__}; expected text, or a list of chat messages "
            'such as [{"role": "user", "content": "2 + 2?"}].'
        )
    messages = tuple(_message(turn, place) for turn in value)
    if messages[-1]["role"] == "assistant":
        raise DataError(f"{place}: the chat ends with the assistant; a prompt ends before the answer.")
    return None, messages


def _first_user_turn(value: object, place: str) -> object:
    """Of a chat the content of its first user turn; anything else as it is."""
    if not isinstance(value, list) or not value:
        return value
    for turn in value:
        message = _message(turn, place)
        if message["role"] == "user":
            return message["content"]
    raise DataError(f"{place}: the chat has no user turn.")


def _message(turn: object, place: str) -> Message:
    if isinstance(turn, dict):
        role, content = turn.get("role"), turn.get("content")
        if isinstance(role, str) and isinstance(content, str):
            return {"role": role, "content": content}
    raise DataError(f"{place}: a chat message needs a role and a text content (received {str(turn)[:80]}).")
