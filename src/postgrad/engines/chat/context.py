"""Did the server read the whole prompt? Some cut one that is too long and say nothing: the reply is then worthless.

What they do report is the number of prompt tokens. With the model's tokenizer it is compared with our own count. Without it
our count is an estimate that may be off by half, so nothing is judged until smaller calls have shown how the two relate.
A second sign needs no count: prompts of clearly different lengths that are all reported as equally long.
"""

from __future__ import annotations

import statistics
from collections import deque

_MIN_TOKENS = 256
"""Shorter prompts are not judged."""
_LEAST_SHARE = 0.7
"""Of our count that a server must report."""
_LEAST_SHARE_ESTIMATED = 0.6
_MIN_OBSERVATIONS = 3
_SMALLER = 0.8
"""Calls below this share of a call's length say what is to be expected of it."""
_SPREAD = 1.25
"""Longest against shortest of the prompts that are reported as equally long."""
_REMEMBERED = 256

HOW_TO_RAISE = (
    "Raise the server's context: OLLAMA_CONTEXT_LENGTH or num_ctx for Ollama, -c (--ctx-size) for llama.cpp, "
    "--max-model-len for vLLM, the context length of the loaded model for LM Studio; or send less."
)


class ContextWatch:
    """Remembers reported and own counts of one server, and says when they do not fit.

    Args:
        exact: our own counts are the tokenizer's.
    """

    def __init__(self, *, exact: bool) -> None:
        self._exact = exact
        self._seen: dict[str, deque[tuple[int, int]]] = {}

    def judge(self, role: str, own: int, reported: int | None, cached: int | None = None) -> str | None:
        """What is wrong with a call's count, or None. A call that passes is remembered.

        Args:
            role: calls of one role resemble each other, so they are compared with each other first.
            own: tokens that we count in the messages, without the chat template's.
            reported: the server's prompt tokens; None and 0 say nothing.
            cached: those that it had in its cache; added where it does not count them as prompt tokens.

        >>> watch = ContextWatch(exact=True)
        >>> watch.judge("generator", 1000, 1012)
        >>> watch.judge("generator", 6000, 4096)
        'the server read 4096 prompt tokens of the 6000 that were sent'
        """
        if not reported or own < _MIN_TOKENS:
            return None
        read = reported if reported >= (cached or 0) else reported + (cached or 0)
        expected = own if self._exact else self._expected(role, own)
        if expected is not None and read < expected * (
            _LEAST_SHARE if self._exact else _LEAST_SHARE_ESTIMATED
        ):
            about = "the" if self._exact else "about"
            return f"the server read {read} prompt tokens of {about} {round(expected)} that were sent"
        mine = self._seen.setdefault(role, deque(maxlen=_REMEMBERED))
        if not self._exact and (stuck := _stuck([*mine, (own, read)], read)):
            return stuck
        mine.append((own, read))
        return None

    def _expected(self, role: str, own: int) -> float | None:
        """Tokens that smaller calls let us expect, of the same role if it has enough of them; None before that."""
        everything = [pair for pairs in self._seen.values() for pair in pairs]
        for pairs in (self._seen.get(role, ()), everything):
            ratios = [read / count for count, read in pairs if count <= _SMALLER * own]
            if len(ratios) >= _MIN_OBSERVATIONS:
                # Above 1 there is text in the prompt that we did not send (a template, a schema): no reason to expect more.
                return own * min(1.0, statistics.median(ratios))
        return None


def _stuck(pairs: list[tuple[int, int]], read: int) -> str | None:
    """Several prompts of different length, all reported as `read` tokens, and none as more."""
    same = [own for own, reported in pairs if reported == read]
    if read < _MIN_TOKENS or len(same) < _MIN_OBSERVATIONS or max(same) < _SPREAD * min(same):
        return None
    if any(reported > read for _, reported in pairs):
        return None
    return f"the server reports {read} prompt tokens for each of {len(same)} prompts of about {min(same)} to {max(same)} tokens"
