"""Where the answer stands in a completion."""

from __future__ import annotations

_OPEN, _CLOSE = "<answer>", "</answer>"


def extract_answer(completion: str) -> str:
    r"""The part of `completion` that a verifier judges, without surrounding white space.

    1. Text after the last `</think>`, if there is one (before it the model was thinking).
    2. Of that, the content of the last complete `<answer>…</answer>`, if there is one.

    A LaTeX `\boxed{…}` stays as it is: math-verify reads it.

    >>> extract_answer("<think>1? <answer>1</answer></think> so <answer> 42 </answer>.")
    '42'
    >>> extract_answer("<answer>1</answer> no, <answer>2</answer>")
    '2'
    >>> extract_answer("I think <answer> is <answer>7</answer>")
    '7'
    >>> extract_answer("  42\n")
    '42'
    >>> extract_answer("<think>still thinking about <answer>5</answer></think>")
    ''
    """
    text = completion.rpartition("</think>")[2]
    end = text.rfind(_CLOSE)
    start = text.rfind(_OPEN, 0, end) if end >= 0 else -1
    if start >= 0:
        text = text[start + len(_OPEN) : end]
    return text.strip()
