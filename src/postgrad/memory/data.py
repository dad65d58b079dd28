"""What is to be learned: facts with paraphrases and questions, or documents; and background text.

Facts are rows of a JSONL file: `text` (or `statement`), and optionally `paraphrases` (a list of texts), `question` and `answer`,
`id`.
Documents are rows with `text` and nothing else, the text files of a directory, or one text file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postgrad.core.errors import DataError

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")


@dataclass(frozen=True)
class Fact:
    """Something to learn.

    Attributes:
        id: given, or a hash of the text.
        texts: statement and paraphrases; a document has one.
        question, answer: how it is asked for; None of a document.
    """

    id: str
    texts: tuple[str, ...]
    question: str | None = None
    answer: str | None = None


def read_facts(path: Path) -> list[Fact]:
    """Facts or documents from a JSONL file, a text file or a directory of text files.

    Raises:
        DataError: nothing there, a row without text, a question without answer, an id twice with other content.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES)
        if not files:
            raise DataError(f"{path} holds no text files ({', '.join(TEXT_SUFFIXES)}).")
        found = [_document(file, path) for file in files]
    elif path.suffix in TEXT_SUFFIXES:
        found = [_document(path, path.parent)]
    elif path.is_file():
        found = [_fact(row, f"{path}, line {line}") for line, row in _rows(path)]
    else:
        raise DataError(f"No file or directory {path} (looked in {Path.cwd()}).")
    if not found:
        raise DataError(f"{path} is empty: there is nothing to learn.")
    unique: dict[str, Fact] = {}
    for fact in found:
        if unique.setdefault(fact.id, fact) != fact:
            raise DataError(f"{path}: two different facts have the id {fact.id!r}. Give each its own.")
    return list(unique.values())


def _document(path: Path, root: Path) -> Fact:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path} as text: {error}") from None
    if not text.strip():
        raise DataError(f"{path} is empty.")
    return Fact(str(path.relative_to(root)), (text,))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f'{path}, line {number} is no object such as {{"text": "…"}}.')
            yield number, row


def _fact(row: dict[str, Any], place: str) -> Fact:
    text = row.get("text", row.get("statement"))
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            f'{place}: no text. A row needs "text" (or "statement"); its columns are {", ".join(row) or "none"}.'
        )
    paraphrases = row.get("paraphrases") or []
    if not isinstance(paraphrases, list) or not all(isinstance(p, str) and p.strip() for p in paraphrases):
        raise DataError(f"{place}: paraphrases are a list of texts (received {str(paraphrases)[:60]}).")
    question, answer = row.get("question"), row.get("answer")
    if (question is None) != (answer is None):
        raise DataError(
            f"{place}: a question needs an answer, and an answer its question; only one is given."
        )
    for name, value in (("question", question), ("answer", answer)):
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise DataError(f"{place}: the {name} is no text (received {value!r}).")
    texts = tuple(dict.fromkeys((text, *paraphrases)))
    name = row.get("id")
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return Fact(str(name) if name is not None else digest, texts, question, answer)


def read_questions(path: Path) -> list[Fact]:
    """The rows of a JSONL file that have `question` and `answer`; a `text` is not needed.

    Raises:
        DataError: no file, a question without an answer, or no question at all.
    """
    if not path.is_file():
        raise DataError(f"No file {path} (looked in {Path.cwd()}).")
    rows = [(line, row) for line, row in _rows(path) if "question" in row or "answer" in row]
    if not rows:
        raise DataError(f'{path} has no questions: rows need "question" and "answer".')
    return [_fact({"text": row.get("question"), **row}, f"{path}, line {line}") for line, row in rows]


def read_texts(path: Path) -> list[str]:
    """Background: every text of `read_facts`, paraphrases too."""
    return [text for fact in read_facts(path) for text in fact.texts]


def contradictions(facts: Sequence[Fact]) -> list[tuple[str, list[str]]]:
    """(question, its different answers) of questions that are answered in more than one way.

    >>> a, b = Fact("1", ("x",), "Who?", "Ada"), Fact("2", ("y",), "who? ", "Bob")
    >>> contradictions([a, b])
    [('Who?', ['Ada', 'Bob'])]
    """
    answers: dict[str, tuple[str, dict[str, str]]] = {}
    for fact in facts:
        if fact.question is not None and fact.answer is not None:
            key = " ".join(fact.question.lower().split())
            _, known = answers.setdefault(key, (fact.question, {}))
            known.setdefault(" ".join(fact.answer.lower().split()), fact.answer)
    return [(question, list(known.values())) for question, known in answers.values() if len(known) > 1]
