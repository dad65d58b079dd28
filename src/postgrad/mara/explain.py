"""What KL-regularised RL will do to a table of answers, before any training: the closed forms of `theory` in words.

Source: "KL-Regularized RL is Designed to Mode Collapse" (arXiv 2510.20817). Start at `explain`. A *table* is a list of
answers with π_ref and the reward of each; an *optimum* is where training ends under one objective and one β.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from postgrad.core.errors import DataError
from postgrad.mara.config import ExplainConfig
from postgrad.mara.readers import Row, number, read_rows, require_columns
from postgrad.mara.theory import (
    Array,
    crossover_beta,
    forward_kl_optimum,
    mara_optimum,
    reverse_kl_optimum,
)

Method = Literal["reference", "reverse", "forward", "mara"]
NAMES: dict[Method, str] = {
    "reference": "reference",
    "reverse": "ordinary RL",
    "forward": "forward KL",
    "mara": "MARA",
}
"""As they are called in tables and figures."""
METHODS: tuple[Method, ...] = ("reverse", "forward", "mara")
_COLUMNS = ("answer", "ref", "reward")


@dataclass(frozen=True)
class AnswerTable:
    """Answers of one prompt.

    Attributes:
        name: of the table.
        answers: all different [V].
        ref: π_ref, sums to 1 [V].
        rewards: [V].
        notes: what was done to the file, in words.
    """

    name: str
    answers: tuple[str, ...]
    ref: Array
    rewards: Array
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Optimum:
    """Where training ends.

    Attributes:
        method: the objective; `reference` is no training at all.
        beta: its coefficient; None for the reference.
        policy: probability of each answer [V].
        good_mass: P(good).
        rare_given_good: P(rarest good answer | good); 1/number of good ones is even.
        frequent_given_good: P(likeliest good answer of the reference | good).
        entropy: of the policy, nats.
    """

    method: Method
    beta: float | None
    policy: Array
    good_mass: float
    rare_given_good: float
    frequent_given_good: float
    entropy: float


@dataclass(frozen=True)
class Crossover:
    """β* between the answer with the greatest reward and the one with the greatest support.

    Attributes:
        best, likeliest: indices of the two answers.
        beta: below it ordinary RL prefers `best`, above it `likeliest`; None when they are one and the same, or their
            rewards are equal.
    """

    best: int
    likeliest: int
    beta: float | None


@dataclass(frozen=True)
class Explanation:
    """All that is said about a table.

    Attributes:
        table, config: what was asked.
        good: R ≥ τ and in the support of the reference [V].
        rare, frequent: indices of the good answers with least and most support.
        reference: of the table itself.
        optima: for every β, one of each of `METHODS`.
        crossover: see there.
        sentence: what will happen, in words.
        notes: about the file and the answers.
    """

    table: AnswerTable
    config: ExplainConfig
    good: np.ndarray
    rare: int
    frequent: int
    reference: Optimum
    optima: tuple[Optimum, ...]
    crossover: Crossover
    sentence: str
    notes: tuple[str, ...]

    def find(self, method: Method, beta: float) -> Optimum:
        """The optimum of that method at one of the config's β."""
        return next(found for found in self.optima if found.method == method and found.beta == beta)


def explain(table: AnswerTable, config: ExplainConfig | None = None) -> Explanation:
    """What ordinary RL, forward KL and MARA make of a table.

    Raises:
        DataError: no answer in the support of the reference is good.

    >>> found = explain(two_modes(), ExplainConfig(beta=(0.1,)))
    >>> round(found.find("reverse", 0.1).rare_given_good, 6)  # .02/.62, whatever β
    0.032258
    >>> round(found.find("mara", 0.1).rare_given_good, 6)
    0.5
    """
    config = config or ExplainConfig()
    good = (table.rewards >= config.tau) & (table.ref > 0)
    if not good.any():
        top = float(table.rewards[table.ref > 0].max())
        raise DataError(
            f"{table.name}: no answer of the reference has a reward of at least tau = {config.tau:g}; the greatest is "
            f"{top:g}. Give --tau."
        )
    rare = int(np.where(good, table.ref, math.inf).argmin())
    frequent = int(np.where(good, table.ref, -1.0).argmax())
    marks = (good, rare, frequent)
    optima = tuple(_optimum(table, config, method, beta, marks) for beta in config.beta for method in METHODS)
    found = Explanation(
        table,
        config,
        good,
        rare,
        frequent,
        _describe("reference", None, table.ref, marks),
        optima,
        find_crossover(table),
        "",
        (*table.notes, *_notes(table, config)),
    )
    return replace(found, sentence=_sentence(found))


def optimal_policy(table: AnswerTable, method: Method, beta: float, tau: float) -> Array:
    """Closed form of an objective's optimum [V]; MARA with the reverse KL, as the paper derives it."""
    if method == "reverse":
        return reverse_kl_optimum(table.ref, table.rewards, beta)
    if method == "forward":
        return forward_kl_optimum(table.ref, table.rewards, beta)
    return mara_optimum(table.ref, table.rewards, beta, tau)


def find_crossover(table: AnswerTable) -> Crossover:
    """β* of the best and the likeliest answer; of equals the likelier, or the better, is taken.

    >>> find_crossover(AnswerTable("t", ("a", "b"), np.array([0.8, 0.2]), np.array([0.0, 1.0]))).beta  # 1/log 4
    0.7213475204444817
    """
    order = np.lexsort((table.ref, np.where(table.ref > 0, table.rewards, -math.inf)))
    best = int(order[-1])
    likeliest = int(np.lexsort((table.rewards, table.ref))[-1])
    ref, rewards = table.ref, table.rewards
    if rewards[best] == rewards[likeliest]:
        return Crossover(best, likeliest, None)
    beta = crossover_beta(
        float(ref[likeliest]), float(ref[best]), float(rewards[likeliest]), float(rewards[best])
    )
    return Crossover(best, likeliest, beta)


def _optimum(
    table: AnswerTable, config: ExplainConfig, method: Method, beta: float, marks: tuple[np.ndarray, int, int]
) -> Optimum:
    return _describe(method, beta, optimal_policy(table, method, beta, config.tau), marks)


def _describe(
    method: Method, beta: float | None, policy: Array, marks: tuple[np.ndarray, int, int]
) -> Optimum:
    good, rare, frequent = marks
    mass = float(policy[good].sum())
    positive = policy[policy > 0]
    # A good mass can underflow at an extreme β; what share the rare answer has of it is then unknown.
    share = (float(policy[rare] / mass), float(policy[frequent] / mass)) if mass > 0 else (math.nan, math.nan)
    return Optimum(method, beta, policy, mass, *share, float(-(positive * np.log(positive)).sum()) + 0.0)


# -- words ---------------------------------------------------------------------------------------------------------


def share(value: float) -> str:
    """A probability for reading.

    >>> share(0.5), share(0.96774), share(0.0002), share(0.9999), share(1.0), share(0.0)
    ('50 %', '96.8 %', '< 0.1 %', '> 99.9 %', '100 %', '0 %')
    """
    if math.isnan(value):
        return "–"
    if 0 < value < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= value < 1 - 1e-12 else f"{100 * value:.3g} %"


def quote(answer: str, limit: int = 40) -> str:
    """An answer in one short line.

    >>> quote("a\\nb"), quote("x" * 50, 10)
    ('“a b”', '“xxxxxxxxx…”')
    """
    text = " ".join(answer.split())
    return f"“{text if len(text) <= limit else text[: limit - 1] + '…'}”"


def _sentence(found: Explanation) -> str:
    beta = min(found.config.beta)
    ordinary, augmented = found.find("reverse", beta), found.find("mara", beta)
    answers, count = found.table.answers, int(found.good.sum())
    frequent, rare = quote(answers[found.frequent]), quote(answers[found.rare])
    start = f"Ordinary RL at β = {beta:g} gives"
    if count == 1:
        return (
            f"{start} the only good answer, {frequent}, {share(float(ordinary.policy[found.frequent]))}; MARA the same: "
            "where one answer is good there is nothing to spread."
        )
    even = f"MARA gives each of the {count} good ones {share(float(augmented.policy[found.rare]))}."
    rewards = found.table.rewards[found.good]
    if rewards.min() == rewards.max():
        odds = found.table.ref[found.frequent] / found.table.ref[found.rare]
        return (
            f"{start} the likeliest good answer, {frequent}, {share(float(ordinary.policy[found.frequent]))}, and its odds "
            f"against the rarest, {rare}, stay the reference's {odds:.3g} : 1 whatever β you choose; {even}"
        )
    top = int(np.where(found.good, ordinary.policy, -1.0).argmax())
    low = int(np.where(found.good, ordinary.policy, 2.0).argmin())
    return (
        f"{start} the good answer {quote(answers[top])} {share(float(ordinary.policy[top]))} and {quote(answers[low])} "
        f"{share(float(ordinary.policy[low]))}, because every difference in reward is multiplied by 1/β; {even}"
    )


def crossover_words(found: Explanation) -> str:
    """What β* says about this table."""
    best, likeliest = (
        quote(found.table.answers[i]) for i in (found.crossover.best, found.crossover.likeliest)
    )
    if found.crossover.beta is None:
        return (
            f"No crossover: the likeliest answer, {likeliest}, has the greatest reward too, so ordinary RL prefers it at "
            "every β."
        )
    return (
        f"Crossover β* = {found.crossover.beta:.4g}: below it ordinary RL prefers the best answer, {best}, above it the "
        f"likeliest, {likeliest}."
    )


def _notes(table: AnswerTable, config: ExplainConfig) -> list[str]:
    lost = int(((table.rewards >= config.tau) & (table.ref == 0)).sum())
    if not lost:
        return []
    return [
        f"{lost} good answer{'s have' if lost > 1 else ' has'} no support under the reference: no KL-regularised objective "
        "reaches what the reference never gives."
    ]


# -- tables --------------------------------------------------------------------------------------------------------


def two_modes() -> AnswerTable:
    """Two good answers, one frequent and one rare, and the rest: the example of the paper's argument, with the numbers
    of `benchmarks/mara_tabular.py`."""
    return AnswerTable(
        "two-modes",
        ("frequent good answer", "rare good answer", "wrong answers"),
        np.array([0.6, 0.02, 0.38]),
        np.array([1.0, 1.0, 0.0]),
    )


def read_table(path: Path, config: ExplainConfig) -> AnswerTable:
    """A table from a .csv, .tsv or .jsonl with the columns answer, ref and reward.

    `ref` is taken for log-probabilities when `config.log` says so, or when none is above 0.

    Raises:
        DataError: what is wrong, with file and line.
    """
    rows = read_rows(path)
    require_columns(rows, _COLUMNS, path)
    answers = _answers(rows, path)
    rewards = np.array([_finite(row, "reward", path) for row in rows])
    raw = np.array([_ref(row, path) for row in rows])
    logs = config.log or bool((raw <= 0).all())
    if logs and not config.log and not raw.any():
        raise DataError(
            f"{path}: every ref is 0. Give probabilities, or log-probabilities with --log if 0 is what they are."
        )
    notes: list[str] = []
    if logs:
        _refuse(rows, raw > 1e-6, raw, path, "a log-probability above 0 (without --log: probabilities)")
        top = raw.max()
        if not np.isfinite(top):
            raise DataError(
                f"{path}: every ref is −inf: no answer has any support. Give log-probabilities under the reference."
            )
        total = float(top + np.log(np.exp(raw - top).sum()))
        ref = np.exp(raw - total)
        notes.append("ref was read as log-probabilities.")
        if np.any((ref == 0) & np.isfinite(raw)):
            notes.append("Answers more than e^−745 below the likeliest are taken to have no support.")
        if abs(math.expm1(total)) > 1e-6:
            notes.append(
                f"The probabilities summed to {math.exp(min(total, 700)):.4g}; they were normalised."
            )
    else:
        _refuse(
            rows, raw < 0, raw, path, "negative, while others are positive: neither probabilities nor logs"
        )
        total = float(raw.sum())
        ref = raw / total
        if abs(total - 1) > 1e-6:
            notes.append(f"The probabilities summed to {total:.4g}; they were normalised.")
    return AnswerTable(path.stem, answers, ref, rewards, tuple(notes))


def _answers(rows: list[Row], path: Path) -> tuple[str, ...]:
    first: dict[str, int] = {}
    for row in rows:
        value = row.cells["answer"]
        if value is None or not str(value).strip():
            raise DataError(f"{path}, line {row.line}: the answer is empty.")
        answer = str(value).strip()
        if answer in first:
            raise DataError(
                f"{path}, line {row.line}: the answer {quote(answer)} was on line {first[answer]} already. Give each answer "
                "once, with its whole probability."
            )
        first[answer] = row.line
    return tuple(first)


def _finite(row: Row, column: str, path: Path) -> float:
    value = number(row.cells[column], path, row.line, column)
    if value is None or not math.isfinite(value):
        shown = "empty" if value is None else f"{value}"
        raise DataError(f"{path}, line {row.line}: {column} must be a finite number; it is {shown}.")
    return value


def _ref(row: Row, path: Path) -> float:
    value = number(row.cells["ref"], path, row.line, "ref")
    if value is None or math.isnan(value) or value == math.inf:
        shown = "empty" if value is None else f"{value}"
        raise DataError(
            f"{path}, line {row.line}: ref must be a probability or log-probability; it is {shown}."
        )
    return value


def _refuse(rows: list[Row], bad: np.ndarray, values: Array, path: Path, words: str) -> None:
    if bad.any():
        index = int(bad.argmax())
        raise DataError(f"{path}, line {rows[index].line}: ref is {values[index]:g}, {words}.")


# -- as JSON -------------------------------------------------------------------------------------------------------


def explanation_record(found: Explanation) -> dict[str, Any]:
    """Everything as plain values; `table_from_record` reads the table back."""
    table, crossover = found.table, found.crossover
    return {
        "name": table.name,
        "tau": found.config.tau,
        "sentence": found.sentence,
        "notes": list(found.notes),
        "rarest_good": table.answers[found.rare],
        "likeliest_good": table.answers[found.frequent],
        "crossover": {
            "beta": crossover.beta,
            "best": table.answers[crossover.best],
            "likeliest": table.answers[crossover.likeliest],
        },
        "table": {
            "answer": list(table.answers),
            "ref": table.ref.tolist(),
            "reward": table.rewards.tolist(),
            "good": found.good.tolist(),
            "notes": list(table.notes),
        },
        "optima": [
            {**vars(optimum), "policy": optimum.policy.tolist()}
            for optimum in (found.reference, *found.optima)
        ],
    }


def table_from_record(record: dict[str, Any]) -> AnswerTable:
    """The table that `explanation_record` wrote."""
    table = record["table"]
    return AnswerTable(
        record["name"],
        tuple(table["answer"]),
        np.array(table["ref"], float),
        np.array(table["reward"], float),
        tuple(table["notes"]),
    )
