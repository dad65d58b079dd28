"""A task with many good answers, all known: "make 7 from two digits" is answered by 0+7, 1+6, …, 7+0, 7-0, 8-1 and 9-2.

Shared by `benchmarks/mara_many_answers.py` (which measures coverage against `good_set`) and by the verifier's worker process
(which loads `reward` from this file). An answer is *canonical*: digit, sign, digit, and nothing else but surrounding white
space, so that the good set is finite and no answer can be padded into a second one ("3 + 4", "03+4", "3+4=7" are wrong).

Prompts are targets × tags. The tag says nothing; it makes prompts that were never trained on for targets that were.
Demonstrations follow a skewed prior: one favourite per target, the other good answers rare, some wrong.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from postgrad.core.types import Prompt

TARGETS = range(14)
"""Each has 6 (target 13) to 11 (targets 0 to 9) good answers: 19 − target sums above 9, else 11."""
TAGS = "ABCDEFGHIJKL"
_ANSWER = re.compile(r"([0-9])([+-])([0-9])")
_PROMPT = re.compile(r"Card [A-Z]: make ([0-9]+) from two digits:")


@dataclass(frozen=True)
class Prior:
    """What demonstrations say.

    Attributes:
        favourite: share of the one favoured good answer of each target.
        wrong: share of expressions that do not reach the target.

    The remaining good answers share the rest evenly.
    """

    favourite: float = 0.6
    wrong: float = 0.2

    def __post_init__(self) -> None:
        if self.favourite <= 0 or self.wrong < 0 or not self.favourite + self.wrong < 1:
            raise ValueError(
                f"the shares must leave something for the rare good answers; received {self.favourite} + {self.wrong}"
            )


def evaluate_expression(text: str) -> int | None:
    """The value of a canonical answer; None of anything else.

    >>> evaluate_expression(" 9-2\\n"), evaluate_expression("2-9"), evaluate_expression("3 + 4"), evaluate_expression("3+4=7")
    (7, -7, None, None)
    """
    match = _ANSWER.fullmatch(text.strip())
    if match is None:
        return None
    left, right = int(match[1]), int(match[3])
    return left + right if match[2] == "+" else left - right


@cache
def good_set(target: int) -> tuple[str, ...]:
    """All canonical answers that reach the target, sums first, by their first digit.

    >>> good_set(13)
    ('4+9', '5+8', '6+7', '7+6', '8+5', '9+4')
    """
    sums = [f"{a}+{target - a}" for a in range(10) if 0 <= target - a <= 9]
    differences = [f"{a}-{a - target}" for a in range(10) if 0 <= a - target <= 9]
    return (*sums, *differences)


def prompt_text(tag: str, target: int) -> str:
    """What the model is asked.

    >>> prompt_text("C", 7)
    'Card C: make 7 from two digits:'
    """
    return f"Card {tag}: make {target} from two digits:"


def target_of(prompt: str) -> int:
    """The target that a prompt's text asks for. Raises ValueError on any other text."""
    match = _PROMPT.fullmatch(prompt.strip())
    if match is None:
        raise ValueError(f"not a prompt of this task: {prompt!r}")
    return int(match[1])


def reward(prompt: Prompt, completion: str) -> float:
    """1 for any member of the good set, else 0."""
    return float(evaluate_expression(completion) == target_of(prompt.content))


def prompts() -> list[str]:
    """All prompts: targets × tags."""
    return [prompt_text(tag, target) for target in TARGETS for tag in TAGS]


def favourite(target: int) -> str:
    """The good answer that the prior favours: in the middle of the sums, so no end of a pattern."""
    sums = [answer for answer in good_set(target) if "+" in answer]
    return sums[len(sums) // 2]


def prior(target: int, shares: Prior) -> dict[str, float]:
    """Probability of each good answer in the demonstrations; they sum to 1 − wrong.

    >>> {answer: round(p, 3) for answer, p in prior(13, Prior(0.7, 0.2)).items()}
    {'4+9': 0.02, '5+8': 0.02, '6+7': 0.02, '7+6': 0.7, '8+5': 0.02, '9+4': 0.02}
    """
    answers = good_set(target)
    rare = (1 - shares.wrong - shares.favourite) / (len(answers) - 1)
    return {answer: shares.favourite if answer == favourite(target) else rare for answer in answers}


def demonstrations(
    training: Iterable[str], each: int, shares: Prior, rng: random.Random
) -> list[tuple[str, str]]:
    """`each` (prompt, answer) pairs for every training prompt; wrong answers are uniform over what misses the target."""
    everything = [f"{a}{sign}{b}" for a in range(10) for sign in "+-" for b in range(10)]
    pairs: list[tuple[str, str]] = []
    for text in training:
        target = target_of(text)
        known = prior(target, shares)
        wrong = [answer for answer in everything if answer not in known]
        for _ in range(each):
            if rng.random() < shares.wrong:
                answer = rng.choice(wrong)
            else:
                (answer,) = rng.choices(list(known), weights=list(known.values()))
            pairs.append((text, answer))
    return pairs
