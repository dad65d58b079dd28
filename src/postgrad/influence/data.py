"""Examples from rows: of lists, data sets (`datasets`), JSONL, JSON, CSV, Parquet and text files, folders. Imports no torch."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from postgrad.core.errors import ConfigError, DataError, nearest
from postgrad.core.types import Message
from postgrad.influence.config import InfluenceConfig
from postgrad.tasks.readers import read_rows

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")
_TABLE_SUFFIXES = (".arrow", ".csv", ".json", ".jsonl", ".parquet")
_VALID = 'Valid: {"text": "…"}, {"prompt": "…", "completion": "…"} or {"messages": [{"role": "…", "content": "…"}, …]}.'


@dataclass(frozen=True)
class Example:
    """A text, or a prompt with what follows it; only the latter has a loss then.

    Attributes:
        id: given, or a hash of the content.
        completion: what is predicted.
        prompt: what stands before, or None.
        copies: how many equal rows were merged into it.
        messages: instead of a prompt, the turns before; the completion is the assistant's turn then.
    """

    id: str
    completion: str
    prompt: str | None = None
    copies: int = 1
    messages: tuple[Message, ...] | None = None

    @property
    def text(self) -> str:
        """All of it, for display."""
        if self.messages is not None:
            lines = [f"{turn['role']}: {turn['content']}" for turn in self.messages]
            return "\n".join([*lines, f"assistant: {self.completion}"])
        return self.completion if self.prompt is None else f"{self.prompt}\n{self.completion}"

    @property
    def content(self) -> tuple[object, ...]:
        """What makes two examples the same."""
        turns = tuple((turn["role"], turn["content"]) for turn in self.messages or ())
        return self.prompt, self.completion, turns


def read_examples(path: Path | str, config: InfluenceConfig | None = None) -> list[Example]:
    """Examples with an id each: that of the row, else `FILE:LINE`; a text file is one example with its name as id.

    Args:
        path: a .jsonl, .json, .csv, .parquet or text file; a directory saved by `Dataset.save_to_disk`, of tables that `datasets`
            reads, or of text files.
        config: names of the columns, and the split of a `datasets` directory.

    Raises:
        DataError: nothing there, or a row that is no example; names file and line.
        MissingExtraError: Parquet or a `datasets` directory without the extra `data`.
    """
    path, config = Path(path), config or InfluenceConfig()
    if not path.exists():
        raise DataError(f"No file or directory {path} (looked in {Path.cwd()}).")
    if path.is_dir() and not _is_data_set(path):
        files = _text_files(path)
        if not files:
            raise DataError(f"{path} holds no text files ({', '.join(TEXT_SUFFIXES)}) and no data set.")
        return [
            parse_row({"id": str(file.relative_to(path)), "text": _read(file)}, str(file)) for file in files
        ]
    if path.suffix in TEXT_SUFFIXES:
        return [parse_row({"id": path.name, "text": _read(path)}, str(path))]
    found = [
        parse_row(row, place, config, default_id=path.name + place.removeprefix(str(path)))
        for place, row in read_rows(str(path), config.split, sys.maxsize, {})
    ]
    if not found:
        raise DataError(f"{path} is empty: there is nothing to attribute.")
    return found


def parse_given(given: Any, role: str, config: InfluenceConfig) -> list[Example] | None:
    """What `run` is given for a role, as examples; None where it has losses of its own.

    Args:
        given: a path, or texts, rows or examples in anything that can be gone through, such as a `datasets.Dataset`; of a
            `DatasetDict` the split of the config is taken.
        role: for messages.
        config: names of the columns.

    Raises:
        ConfigError: it is none of these, or has no such split.
        DataError: a row that is no example.
    """
    if hasattr(given, "losses"):
        return None
    if isinstance(given, Path):
        return read_examples(given, config)
    if isinstance(given, Mapping):  # a DatasetDict is one
        if config.split not in given:
            raise ConfigError(
                f"The {role} examples have no split {config.split!r}. {nearest(config.split, map(str, given))}"
            )
        given = given[config.split]
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ConfigError(
            f"The {role} examples are a list of texts or rows, a data set, a Path, or Examples (received {given!r:.60})."
        )
    listed = isinstance(given, Sequence)
    return [
        row
        if isinstance(row, Example)
        else parse_row(
            row,
            f"{role} example {number}",
            config,
            default_id=None if listed else f"{role}[{number - 1}]",
        )
        for number, row in enumerate(given, 1)
    ]


def parse_row(
    row: Any, place: str, config: InfluenceConfig | None = None, *, default_id: str | None = None
) -> Example:
    """The example in a text or a row of columns; empty cells are as good as absent.

    With a prompt and a completion, these; else of a chat (`messages`) the assistant's last turn after those before it; else the
    text. A prompt may be a chat too, and a completion a chat of one turn.

    Args:
        row: a text, or columns by name.
        place: where it stands, for messages.
        config: names of the columns.
        default_id: of a row without a column `id`; None = a hash of its content.

    Raises:
        DataError: no such columns, an empty text or completion, a chat without the assistant.

    >>> parse_row({"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}, "row 1").text
    'user: 2 + 2?\\nassistant: 4'
    """
    config = config or InfluenceConfig()
    if isinstance(row, str):
        row = {config.text_column: row}
    if not isinstance(row, Mapping):
        raise DataError(f"{place} is no text and no row (received {str(row)[:60]!r}). {_VALID}")
    cells = {str(key): value for key, value in cast("Mapping[Any, Any]", row).items() if value is not None}
    prompt, completion = cells.get(config.prompt_column), cells.get(config.answer_column)
    messages: tuple[Message, ...] | None = None
    field = config.answer_column
    if "messages" in cells and (prompt is None or completion is None):
        messages, completion = _split_chat(_turns(cells["messages"], place), place)
        prompt, field = None, "messages"
    elif prompt is None:
        field = config.text_column
        completion = cells.get(field)
    elif not isinstance(prompt, str):
        prompt, messages = None, _turns(prompt, place)
    if isinstance(completion, (list, tuple)):
        turns = _turns(completion, place)
        completion = turns[0]["content"] if len(turns) == 1 else None
    if not isinstance(completion, str) or not completion.strip():
        raise DataError(
            f"{place}: the {field} is empty or missing, so it has no loss (columns: {', '.join(cells) or 'none'}). {_VALID} "
            "Other columns are named with text_column, prompt_column and answer_column."
        )
    one = Example("", completion, prompt, messages=messages)
    name = cells.get("id", default_id)
    digest = hashlib.blake2b(repr(one.content).encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return Example(digest if name is None else str(name), completion, prompt, messages=messages)


def _turns(value: object, place: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(
            f"{place}: the prompt is no text and the chat no list of messages (received {str(value)[:60]!r}). {_VALID}"
        )
    found: list[Message] = []
    for turn in value:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(
                f"{place}: a message needs a role and a text content (received {str(turn)[:80]!r})."
            )
        found.append({"role": role, "content": content})
    return tuple(found)


def _split_chat(turns: tuple[Message, ...], place: str) -> tuple[tuple[Message, ...], str]:
    """The turns before the assistant's last one, and that. What follows has no part in its loss."""
    last = max((number for number, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
    if last == 0:
        roles = ", ".join(turn["role"] for turn in turns) or "none"
        raise DataError(
            f"{place}: the chat has no turn of the assistant that answers something (roles: {roles})."
        )
    return turns[:last], turns[last]["content"]


def _is_data_set(folder: Path) -> bool:
    """Saved by `datasets`, or tables and no texts but for the README that goes with them."""
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return True
    tables = any(file.suffix in _TABLE_SUFFIXES for file in folder.rglob("*"))
    return tables and all(file.name.lower() == "readme.md" for file in _text_files(folder))


def _text_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix in TEXT_SUFFIXES)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path} as text: {error}") from None
