"""The verifier of files with prompt and answer: the same string, or the same mathematics (math-verify)."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from postgrad.core.types import Prompt
from postgrad.tasks.answer import extract_answer
from postgrad.tasks.extras import require

_PURPOSE = "Judging answers with math-verify"
_DELIMITER = re.compile(r"\$|\\boxed|\\\(|\\\[")
_UNITS = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{[^{}]*\}")
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|cm|mm|km|kg"
_WORD = re.compile(rf"(?<![\\A-Za-z])(?!(?:{_FUNCTIONS})(?![A-Za-z]))[A-Za-z]{{2,}}")
_MAX_BARE_CHARACTERS = 400


def is_bare_math(text: str) -> bool:
    r"""Whether `text` is a formula without delimiters around it, and without words.

    math-verify looks for formulas between delimiters; in bare text it finds numbers only, and reads `2\pi` as
    2. Words must not be taken for formulas: `Paris` would be the product of its letters, and equal to
    `Pairs`.

    >>> [is_bare_math(text) for text in ("2\\pi", "x + 1", "5\\text{ cm}", "Paris", "$2$", "so it is 3")]
    [True, True, True, False, False, False]
    """
    text = text.strip()
    if not text or "\n" in text or len(text) > _MAX_BARE_CHARACTERS or _DELIMITER.search(text):
        return False
    return _WORD.search(_UNITS.sub("", text)) is None


def normalise(text: str) -> str:
    """Lower case, single blanks, no final full stop; for answers that are no mathematics.

    >>> normalise("  New   York. ")
    'new york'
    """
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


class MathVerifier:
    r"""1.0 if the answer in the completion equals `Prompt.answer`, else 0.0.

    In this order: the same string; the same mathematics, when the reference is a formula (delimited by $…$ or
    \boxed, or bare as by `is_bare_math`); the same string up to case and white space, when it is not. The
    reference is strict on purpose: `Section 3` is not matched by `3`.

    math-verify bounds its own time with `signal.alarm`, which fails or silently gives 0 outside the main
    thread; that is switched off, and `VerifierPool` bounds the time instead. An answer that math-verify fails
    to parse or to compare is a wrong answer: 0.0.

    Raises:
        MissingExtraError: math-verify is not installed (extra `envs`).
    """

    def __init__(self) -> None:
        library = require("math_verify", package="math-verify", extra="envs", purpose=_PURPOSE)
        logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off
        self._library = library
        self._seed = require("sympy.core.random", package="sympy", extra="envs", purpose=_PURPOSE).seed
        self._parse_reference = lru_cache(maxsize=1024)(self._parse_reference_uncached)

    def __call__(self, prompt: Prompt, completion: str) -> float:
        if prompt.answer is None:
            raise ValueError(f"prompt {prompt.id} has no answer to compare with")
        given, reference = extract_answer(completion), prompt.answer.strip()
        if given == reference:
            return 1.0
        self._seed(0)  # sympy decides some equalities at random points
        expected = self._parse_reference(reference)
        if not expected:
            return float(normalise(given) == normalise(reference))
        return float(self._library.verify(expected, self._parse_given(given), timeout_seconds=None))

    def _parse_reference_uncached(self, text: str) -> list[Any]:
        if _DELIMITER.search(text):
            return self._parse(text)
        return self._parse_bare(text) if is_bare_math(text) else []

    def _parse_given(self, text: str) -> list[Any]:
        return (self._parse_bare(text) if is_bare_math(text) else []) or self._parse(text)

    def _parse_bare(self, text: str) -> list[Any]:
        return self._parse(f"\\boxed{{{text}}}")

    def _parse(self, text: str) -> list[Any]:
        return self._library.parse(text, parsing_timeout=None, fallback_mode="no_fallback")
