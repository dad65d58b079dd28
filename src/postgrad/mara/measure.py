"""How diverse are the answers of a run or a file? The metrics of `diversity`, per prompt, with intervals over prompts.

Start at `measure`. A metric is computed per prompt and averaged, every prompt weighing the same; its interval is the
percentile bootstrap over prompts. Counts over all answers of a side (yield, oracle burden, molecules) have none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from postgrad.mara import diversity
from postgrad.mara.answers import Answer, Group, Side
from postgrad.mara.config import MeasureConfig
from postgrad.mara.semantics import Models, semantic_metrics, semantic_notes

PER_PROMPT: dict[str, str] = {
    "unique_fraction": "different answers / answers",
    "answer_entropy": "answer entropy, nats",
    "ead": "EAD",
    "self_bleu": "self-BLEU",
    "semantic_diversity": "semantic diversity",
    "distinct": "distinct (classes per prompt)",
    "utility": "utility",
    "pass_at_1": "pass@1",
    "pass_at_k": "pass@k",
    "distinct_good": "different good answers per prompt",
    "coverage": "coverage of the good set",
    "kl_to_uniform": "KL to uniform, nats",
}
"""Metric of one prompt → its name in tables."""
OVERALL: dict[str, str] = {
    "yield": "yield (different good answers)",
    "oracle_burden": "oracle burden",
    "valid_fraction": "valid molecules",
    "internal_diversity": "IntDiv1",
    "circles": "#Circles",
    "vendi": "Vendi score",
}
"""Metric of a whole side → its name in tables."""
_BLEU_ORDER = 4
_BLEU_SMOOTHING = 0.1
_MAX_K = 64
_MAX_RANK = 20
_MAX_CURVE = 200


class Estimate(NamedTuple):
    """A mean over prompts with its interval; None where there is nothing to say."""

    value: float | None
    low: float | None
    high: float | None


def measure(sides: Sequence[Side], config: MeasureConfig, models: Models | None = None) -> dict[str, Any]:
    """Everything about all sides, as plain values that are written as measure.json and drawn; `models` compare meanings.

    Keys: `k` (None without verdicts), `vocabulary`, `sides` (each with name, path, counts, `metrics` of
    {value, low, high}, `curves`, `molecules` to draw), `differences` (side − first side, over prompts that both have), `notes`.

    >>> from postgrad.mara.answers import _side
    >>> said = [(("", ""), Answer(word, word, True, word != "c", None, None)) for word in "aabc"]
    >>> record = measure([_side("x", __import__("pathlib").Path("x"), said, [])], MeasureConfig())
    >>> record["sides"][0]["metrics"]["unique_fraction"]["value"], record["sides"][0]["metrics"]["pass_at_1"]["value"]
    (0.75, 0.75)
    """
    k = config.k or _common_k(sides)
    models = models or Models()
    meanings = semantic_metrics(sides, config, models)
    tables = [
        {g.prompt_id: {**prompt_metrics(g, k, config), **mine.get(g.prompt_id, {})} for g in side.groups}
        for side, mine in zip(sides, meanings, strict=True)
    ]
    notes = [note for side in sides for note in side.notes] + _notes(sides, tables, k, config)
    notes += semantic_notes(sides, config, models)
    return {
        "k": k,
        "vocabulary": config.vocabulary,
        "confidence": config.confidence,
        "oracle_target": config.oracle_target,
        "sides": [
            {
                "name": side.name,
                "path": str(side.path),
                "num_prompts": len(side.groups),
                "num_answers": side.num_answers,
                "metrics": {**_means(table, config), **overall_metrics(side, config)},
                "curves": _curves(side, k, config),
                "molecules": _drawn(side) if config.molecules else [],
            }
            for side, table in zip(sides, tables, strict=True)
        ],
        "differences": _differences(sides, tables, config),
        "notes": notes,
    }


# -- one prompt ----------------------------------------------------------------------------------------------------


def prompt_metrics(group: Group, k: int | None, config: MeasureConfig) -> dict[str, float]:
    """The metrics of `PER_PROMPT`; NaN where a prompt says nothing about one.

    One answer has no diversity: those of answers are NaN below two. Answers without a verdict are left out of pass@k.
    """
    keys = [answer.key for answer in group.answers]
    texts = [answer.text for answer in group.answers]
    judged = [answer.good for answer in group.answers if answer.good is not None]
    several = len(keys) > 1
    values = dict.fromkeys(PER_PROMPT, math.nan)
    if several:
        values["unique_fraction"] = diversity.unique_fraction(keys)
        values["answer_entropy"] = diversity.answer_entropy(keys)
        values["ead"] = diversity.expectation_adjusted_distinct(texts, config.vocabulary)
        values["self_bleu"] = self_bleu(texts)
    if judged:
        values["pass_at_1"] = sum(judged) / len(judged)
        values["distinct_good"] = float(len({answer.key for answer in group.answers if answer.good}))
        if k is not None and len(judged) >= k:
            values["pass_at_k"] = diversity.pass_at_k(len(judged), sum(judged), k)
    if group.good is not None:
        values["coverage"] = diversity.coverage(keys, group.good)
        values["kl_to_uniform"] = diversity.kl_to_uniform(keys, group.good)
    return values


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU-4 of each text against all others, with n-grams no longer than the text itself; NaN below two texts.

    `diversity.bleu` with `max_order=min(4, words of the text)`, in time linear in the texts: an n-gram is clipped by its
    greatest count in another text, which is the greatest or second greatest of all. (`diversity.self_bleu` smooths the
    orders that a short text does not have, so equal one-word answers score 0.18 there.)

    >>> self_bleu(["a", "a"]), self_bleu(["a b c d e", "a b c d e"]), self_bleu(["a", "b"])
    (1.0, 1.0, 0.0)
    """
    words = [text.split() for text in texts]
    if len(words) < 2:
        return math.nan
    scores = np.zeros(len(words))  # log precisions, then BLEU
    for order in range(1, _BLEU_ORDER + 1):
        counts = [Counter(zip(*(mine[i:] for i in range(order)), strict=False)) for mine in words]
        top: dict[tuple[str, ...], tuple[int, int]] = {}
        for counted in counts:
            for gram, count in counted.items():
                first, second = top.get(gram, (0, 0))
                top[gram] = (count, first) if count > first else (first, max(count, second))
        for i, counted in enumerate(counts):
            if len(words[i]) >= order:
                clipped = (
                    min(n, top[gram][1] if n == top[gram][0] else top[gram][0]) for gram, n in counted.items()
                )
                matched = sum(clipped)
                if order == 1 and not matched:
                    scores[i] = -math.inf
                precision = (matched or _BLEU_SMOOTHING) / counted.total()
                scores[i] += math.log(precision) / min(_BLEU_ORDER, len(words[i]))
    lengths = Counter(map(len, words))
    penalties = [_log_brevity(len(mine), lengths) for mine in words]
    return float(np.exp(scores + penalties).mean())


def _log_brevity(length: int, lengths: Counter[int]) -> float:
    """log of BLEU's brevity penalty against the closest length among the *other* texts; −inf of no words."""
    if not length:
        return -math.inf
    others = (other for other, count in lengths.items() if count > (other == length))
    closest = min((abs(other - length), other) for other in others)[1]
    return min(0.0, 1 - closest / length)


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items, evenly spread.

    >>> spread("abcdef", 3)
    ['a', 'c', 'e']
    """
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _common_k(sides: Sequence[Side]) -> int | None:
    """The fewest judged answers that any prompt has, over those that have one; at most 64."""
    counts = [sum(a.good is not None for a in group.answers) for side in sides for group in side.groups]
    return min((count for count in [*counts, _MAX_K] if count), default=None) if any(counts) else None


# -- over prompts --------------------------------------------------------------------------------------------------


def bootstrap_mean(values: Sequence[float], config: MeasureConfig) -> Estimate:
    """Mean of the numbers among `values`, and its percentile interval over draws of prompts.

    Fewer than two numbers have no interval.

    >>> bootstrap_mean([1.0, math.nan, 1.0], MeasureConfig())
    Estimate(value=1.0, low=1.0, high=1.0)
    """
    numbers = np.array([value for value in values if not math.isnan(value)])
    if not numbers.size:
        return Estimate(None, None, None)
    mean = float(numbers.mean())
    if numbers.size < 2:
        return Estimate(mean, None, None)
    generator = np.random.default_rng(config.seed)
    means = np.empty(config.bootstrap)
    for draw in range(config.bootstrap):
        means[draw] = numbers[generator.integers(0, numbers.size, numbers.size)].mean()
    tail = (1 - config.confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Estimate(mean, float(low), float(high))


def _means(table: Mapping[str, Mapping[str, float]], config: MeasureConfig) -> dict[str, dict[str, Any]]:
    return {
        metric: bootstrap_mean([row[metric] for row in table.values()], config)._asdict()
        for metric in PER_PROMPT
    }


def _differences(
    sides: Sequence[Side], tables: Sequence[Mapping[str, Mapping[str, float]]], config: MeasureConfig
) -> list[dict[str, Any]]:
    """Each later side against the first, prompt by prompt; none where fewer than two prompts are in both."""
    found: list[dict[str, Any]] = []
    for side, table in zip(sides[1:], tables[1:], strict=True):
        shared = [identity for identity in table if identity in tables[0]]
        if len(shared) < 2:
            continue
        metrics = {
            metric: bootstrap_mean([table[i][metric] - tables[0][i][metric] for i in shared], config)
            for metric in PER_PROMPT
        }
        found.append(
            {
                "side": side.name,
                "against": sides[0].name,
                "num_prompts": len(shared),
                "metrics": {
                    key: value._asdict() for key, value in metrics.items() if value.value is not None
                },
            }
        )
    return [difference for difference in found if difference["metrics"]]


# -- a whole side --------------------------------------------------------------------------------------------------


def overall_metrics(side: Side, config: MeasureConfig) -> dict[str, dict[str, Any]]:
    """The metrics of `OVERALL`, in the order of the file; equal answers to different prompts are different answers."""
    values: dict[str, float | None] = dict.fromkeys(OVERALL)
    judged = [(i, a) for i, a in side.order if a.good is not None and a.value is not None]
    if judged:
        pairs = [(i, answer.key) for i, answer in judged]
        goods = [float(bool(answer.good)) for _, answer in judged]
        values["yield"] = diversity.yield_at(pairs, goods, 1.0)
        values["oracle_burden"] = diversity.oracle_burden(pairs, goods, 1.0, config.oracle_target)
    if config.molecules:
        values |= _molecule_metrics([answer for _, answer in side.order], config)
    return {key: Estimate(value, None, None)._asdict() for key, value in values.items()}


def counted_molecules(answers: Sequence[Answer]) -> list[str]:
    """The different valid molecules, in order; only the good ones where verdicts are known."""
    judged = any(answer.good is not None for answer in answers)
    return list(
        dict.fromkeys(answer.key for answer in answers if answer.valid and (answer.good or not judged))
    )


def _molecule_metrics(answers: Sequence[Answer], config: MeasureConfig) -> dict[str, float | None]:
    from postgrad.mara import molecules

    smiles = counted_molecules(answers)
    found: dict[str, float | None] = {"valid_fraction": sum(a.valid for a in answers) / len(answers)}
    found["circles"] = molecules.circles(smiles, config.circle_distance)
    if smiles:
        similarity = molecules.tanimoto(spread(smiles, config.max_molecules))
        found["vendi"] = diversity.vendi_score(similarity)
        found["internal_diversity"] = diversity.internal_diversity(similarity)
    return found


def _drawn(side: Side) -> list[dict[str, Any]]:
    """The molecules of a side's picture with the greatest reward that each had."""
    from postgrad.mara.pictures import choose

    answers = [answer for _, answer in side.order]
    best: dict[str, float | None] = dict.fromkeys(counted_molecules(answers))
    for answer in answers:
        if answer.key in best and answer.value is not None:
            best[answer.key] = max(answer.value, best[answer.key] or -math.inf)
    return [drawn._asdict() for drawn in choose(best)]


# -- curves --------------------------------------------------------------------------------------------------------


def _curves(side: Side, k: int | None, config: MeasureConfig) -> dict[str, list[dict[str, float | None]]]:
    """Points of the figures: pass@k over k, the shares of the r-th most frequent answers, yield over answers."""
    return {
        "pass_at_k": _pass_curve(side, k, config),
        "frequency": _frequency_curve(side.groups),
        "yield": _yield_curve(side),
    }


def _pass_curve(side: Side, k: int | None, config: MeasureConfig) -> list[dict[str, float | None]]:
    if k is None:
        return []
    counts = [[a.good for a in group.answers if a.good is not None] for group in side.groups]
    points: list[dict[str, float | None]] = []
    for size in ladder(k):
        values = [diversity.pass_at_k(len(c), sum(c), size) for c in counts if len(c) >= k]
        points.append({"k": size, **bootstrap_mean(values, config)._asdict()})
    return points


def ladder(top: int) -> list[int]:
    """1 to `top`, thinned to a few per doubling.

    >>> ladder(5), ladder(40)
    ([1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 40])
    """
    if top <= 8:
        return list(range(1, top + 1))
    steps = [2 ** (i / 2) for i in range(2 * top.bit_length())]
    return sorted({*(math.floor(s + 0.5) for s in steps if s <= top), 3, top})


def _frequency_curve(groups: Sequence[Group]) -> list[dict[str, float | None]]:
    """Mean share of the answers that the r-th most frequent one has; 0 where a prompt has fewer different ones."""
    rows = [
        [n / len(group.answers) for _, n in Counter(a.key for a in group.answers).most_common(_MAX_RANK)]
        for group in groups
        if len(group.answers) > 1
    ]
    longest = max(map(len, rows), default=0)
    return [
        {"rank": r + 1, "value": sum(row[r] if r < len(row) else 0.0 for row in rows) / len(rows)}
        for r in range(longest)
    ]


def _yield_curve(side: Side) -> list[dict[str, float | None]]:
    """Different good answers among the first n, where the file spans at least three steps."""
    if len({answer.step for _, answer in side.order}) < 3 or not any(a.good for _, a in side.order):
        return []
    seen: set[tuple[int, str]] = set()
    points: list[dict[str, float | None]] = [{"answers": 0, "value": 0}]
    stride = max(1, math.ceil(len(side.order) / _MAX_CURVE))
    for count, (i, answer) in enumerate(side.order, 1):
        if answer.good:
            seen.add((i, answer.key))
        if count % stride == 0 or count == len(side.order):
            points.append({"answers": count, "value": len(seen)})
    return points


# -- notes ---------------------------------------------------------------------------------------------------------


def _notes(
    sides: Sequence[Side],
    tables: Sequence[Mapping[str, Mapping[str, float]]],
    k: int | None,
    config: MeasureConfig,
) -> list[str]:
    notes: list[str] = []
    for side, table in zip(sides, tables, strict=True):
        sizes = [len(group.answers) for group in side.groups]
        single = sizes.count(1)
        if single:
            notes.append(
                f"{side.name}: {single} of {len(sizes)} prompts have one answer, which says nothing about diversity; they are "
                "left out of it."
            )
        notes += _verdict_notes(side, table, k)
        if config.molecules and len(counted_molecules([a for _, a in side.order])) > config.max_molecules:
            notes.append(
                f"{side.name}: Vendi and IntDiv1 compare {config.max_molecules} molecules (--max-molecules)."
            )
    short = [side.name for side in sides if _median_words(side) < 5]
    if short:
        notes.append(
            f"{', '.join(short)}: most answers have fewer than 5 words; EAD and self-BLEU count runs of words and say little."
        )
    spans = {side.name: sorted({len(group.answers) for group in side.groups}) for side in sides}
    if len({size for sizes in spans.values() for size in sizes}) > 1:
        words = ", ".join(f"{name} {_span(sizes)}" for name, sizes in spans.items())
        notes.append(
            f"Answers per prompt differ ({words}), and all metrics but pass@k and KL to uniform depend on them: compare with "
            "--samples N."
        )
    return notes


def _verdict_notes(side: Side, table: Mapping[str, Mapping[str, float]], k: int | None) -> list[str]:
    answers = [answer for _, answer in side.order]
    notes: list[str] = []
    unknown = sum(answer.good is None for answer in answers)
    if unknown == len(answers):
        return [f"{side.name}: no answer has a verdict or a reward, so nothing is said about good ones."]
    if unknown:
        notes.append(f"{side.name}: {unknown} answers without a verdict count in diversity, not in pass@k.")
    values = [answer.value for answer in answers if answer.value is not None]
    if values and not any(answer.good for answer in answers):
        notes.append(f"{side.name}: no answer is good; the greatest reward is {max(values):g}. See --tau.")
    short = sum(math.isnan(row["pass_at_k"]) for row in table.values())
    if short and k is not None:
        notes.append(
            f"{side.name}: {short} prompts with fewer than {k} judged answers are left out of pass@{k}."
        )
    return notes


def _median_words(side: Side) -> int:
    lengths = sorted(len(answer.text.split()) for _, answer in side.order)
    return lengths[len(lengths) // 2]


def _span(sizes: Sequence[int]) -> str:
    return f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
