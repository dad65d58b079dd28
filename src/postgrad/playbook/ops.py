"""What is measured of a playbook's prompts, as pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def shared_prefix_fraction(texts: Sequence[str]) -> float:
    """Share of characters that a prefix cache keeps from one prompt to the next.

    Of the second and later prompts: length of the beginning that each has in common with the one before it, over its length,
    both summed. 0 for fewer than two prompts.

    >>> shared_prefix_fraction(["abcd", "abce", "abcefg"])
    0.7
    """
    pairs = list(itertools.pairwise(texts))
    total = sum(len(after) for _, after in pairs)
    return sum(shared_prefix(before, after) for before, after in pairs) / total if total else 0.0


def shared_prefix(first: str, second: str) -> int:
    """Length of the beginning that two texts have in common, by bisection of slices.

    >>> shared_prefix("abcd", "abxd"), shared_prefix("", "a"), shared_prefix("ab", "abc")
    (2, 0, 2)
    """
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return low


def calls_bound(correct: bool, rounds: int) -> int:
    """The most calls that one sample may take: 3 if the first answer is right, else 2 R + 2 (reflect and answer again, R times).

    >>> calls_bound(True, 5), calls_bound(False, 5)
    (3, 12)
    """
    return 3 if correct else 2 * rounds + 2
