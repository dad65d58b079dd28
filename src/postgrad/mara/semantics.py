"""Diversity of meaning: embeddings, classes of answers that do the same for a reader, and what the classes are worth.

The models are passed in (`encoders.py` has them), so nothing here imports torch. Each distinct text is embedded once; of each
class only the founder is compared with later answers, as NoveltyBench does (arXiv 2504.05228), and equal texts never are.

Source: https://github.com/novelty-bench/novelty-bench, src/partition.py and src/score.py. Answers of at most five words are
compared by their words, others by a classifier at a threshold of 0.102; a raw reward becomes a utility from 1 to 10 by nine
thresholds, and utilities are averaged with weights 0.8^i, later members of a class counting 0.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from postgrad.mara import diversity
from postgrad.mara.answers import Answer, Side
from postgrad.mara.config import MeasureConfig

Pair = tuple[str, str]
_SHORT_WORDS = 5


class Models(NamedTuple):
    """What answers are compared with; None = that metric is left out.

    Attributes:
        embed: N texts → [N, D].
        same: N pairs of answers → the chance of each that they do the same for a reader.
    """

    embed: diversity.Embedder | None = None
    same: Callable[[Sequence[Pair]], Sequence[float]] | None = None


def semantic_metrics(
    sides: Sequence[Side], config: MeasureConfig, models: Models
) -> list[dict[str, dict[str, float]]]:
    """For each side prompt id → `semantic_diversity`, `distinct` and `utility`; NaN below two answers or without rewards."""
    groups = [(i, group) for i, side in enumerate(sides) for group in side.groups if len(group.answers) > 1]
    texts = [[answer.text for answer in group.answers] for _, group in groups]
    found: list[dict[str, dict[str, float]]] = [{} for _ in sides]
    if models.embed is not None:
        embed = _remembering(models.embed, texts)
        for (i, group), mine in zip(groups, texts, strict=True):
            values = found[i].setdefault(group.prompt_id, {})
            values["semantic_diversity"] = diversity.semantic_diversity(mine, embed)
    if models.same is not None:
        classes = partition_all(texts, models.same, config.partition_threshold)
        for (i, group), mine in zip(groups, classes, strict=True):
            values = found[i].setdefault(group.prompt_id, {})
            values["distinct"] = float(len(set(mine)))
            values["utility"] = _utility(group.answers, mine, config.utility_thresholds)
    return found


def semantic_notes(sides: Sequence[Side], config: MeasureConfig, models: Models) -> list[str]:
    """What a reader of the utility must know."""
    if models.same is None:
        return []
    rewarded = [side.name for side in sides if any(answer.value is not None for _, answer in side.order)]
    if not rewarded:
        return ["The answers have no score or reward, so there is no utility."]
    if config.utility_thresholds == MeasureConfig().utility_thresholds:
        return [
            "Utility takes the rewards for those of NoveltyBench's reward model (Skywork-Reward-Gemma-2-27B-v0.2). For rewards "
            "of another, or a judge's 1 to 10, see --utility-thresholds."
        ]
    return []


def _remembering(embed: diversity.Embedder, texts: Iterable[Sequence[str]]) -> diversity.Embedder:
    """An embedder that knows all `texts` already."""
    distinct = list(dict.fromkeys(text for group in texts for text in group))
    rows = np.asarray(embed(distinct), float) if distinct else np.zeros((0, 1))
    if rows.ndim != 2 or len(rows) != len(distinct):
        raise ValueError(
            f"the embedder must give one row per text, [{len(distinct)}, D]; received {rows.shape}"
        )
    place = {text: i for i, text in enumerate(distinct)}

    def look_up(asked: list[str]) -> ArrayLike:
        return rows[[place[text] for text in asked]]

    return look_up


# -- classes -------------------------------------------------------------------------------------------------------


def short_answers_same(first: str, second: str) -> bool | None:
    """Whether two answers of at most five words share at least half of the words of the longer; None for longer ones.

    >>> short_answers_same("A red fox", "the red fox"), short_answers_same("Paris", "Rome")
    (True, False)
    >>> short_answers_same("one two three four five six", "one")
    """
    words = [text.strip().lower().split() for text in (first, second)]
    longest = max(map(len, words))
    return 2 * len(set(words[0]) & set(words[1])) >= longest if longest <= _SHORT_WORDS else None


def partition_all(
    groups: Sequence[Sequence[str]], same: Callable[[Sequence[Pair]], Sequence[float]], threshold: float
) -> list[list[int]]:
    """`diversity.partition` of every group, with all pairs of a round asked for in one call.

    In each round the first answer without a class founds one, and every later one that is the same as it joins. A pair that
    was asked for, in either order, is not asked for again.

    Args:
        groups: texts, group by group.
        same: N pairs → the chance that the two are the same; called with (founder, later answer).
        threshold: above it they are.

    Returns:
        The class of each text, numbered by their founders' order.

    >>> partition_all([["Paris", "Rome", "paris"], ["a"]], lambda pairs: [0.0] * len(pairs), 0.5)
    [[0, 1, 0], [0]]
    """
    classes = [[-1] * len(texts) for texts in groups]
    known: dict[frozenset[str], bool] = {}
    for number in range(max(map(len, groups), default=0)):
        asked: list[tuple[int, int, int]] = []
        for i, mine in enumerate(classes):
            if -1 in mine:
                founder = mine.index(-1)
                mine[founder] = number
                asked += [(i, founder, j) for j in range(founder + 1, len(mine)) if mine[j] == -1]
        pairs = [(groups[i][founder], groups[i][j]) for i, founder, j in asked]
        _judge(pairs, same, threshold, known)
        for (i, _, j), pair in zip(asked, pairs, strict=True):
            if known[frozenset(pair)]:
                classes[i][j] = number
    return classes


def _judge(
    pairs: Sequence[Pair],
    same: Callable[[Sequence[Pair]], Sequence[float]],
    threshold: float,
    known: dict[frozenset[str], bool],
) -> None:
    """Fill in `known` for all pairs: equal texts, short ones by their words, the others by the classifier."""
    unclear: dict[frozenset[str], Pair] = {}
    for pair in pairs:
        key = frozenset(pair)
        if key in known or key in unclear:
            continue
        answer = True if len(key) == 1 else short_answers_same(*pair)
        if answer is None:
            unclear[key] = pair
        else:
            known[key] = answer
    scores = same(list(unclear.values())) if unclear else []
    known |= {key: score > threshold for key, score in zip(unclear, scores, strict=True)}


# -- worth ---------------------------------------------------------------------------------------------------------


def utility_of(reward: float, thresholds: Sequence[float]) -> float:
    """1 plus the number of thresholds below the reward; without thresholds the reward as it is.

    >>> utility_of(-7.0, (-7.71875, -6.28125)), utility_of(-6.28125, (-7.71875, -6.28125)), utility_of(8.5, ())
    (2.0, 2.0, 8.5)
    """
    return float(bisect_left(thresholds, reward) + 1) if thresholds else reward


def _utility(answers: Sequence[Answer], classes: Sequence[int], thresholds: Sequence[float]) -> float:
    """NoveltyBench's utility of one prompt; NaN where the founder of a class has no reward."""
    seen: set[int] = set()
    utilities: list[float] = []
    for answer, kind in zip(answers, classes, strict=True):
        if answer.value is None and kind not in seen:
            return math.nan
        utilities.append(0.0 if answer.value is None else utility_of(answer.value, thresholds))
        seen.add(kind)
    return diversity.novelty_utility(classes, utilities)
