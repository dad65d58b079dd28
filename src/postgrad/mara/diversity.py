"""How diverse are answers? Metrics that any run can use; numpy only.

An *answer* is a string in canonical form, so that equal means the same; a *similarity* is a symmetric matrix [N, N] with 1
on its diagonal. Two numbers must not be compared across different N: every metric here but `pass_at_k` and `kl_to_uniform`
depends on how many answers there are.

Start at `unique_fraction`; molecules have their similarity in `molecules.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Embedder = Callable[[list[str]], ArrayLike]
"""N texts → [N, D]."""

Answer = TypeVar("Answer", bound=Hashable)
Item = TypeVar("Item")

# -- counting ------------------------------------------------------------------------------------------------------


def unique_fraction(answers: Sequence[Hashable]) -> float:
    """Different answers / answers; NaN of none.

    >>> unique_fraction(["a", "b", "a", "a"])
    0.5
    """
    return len(set(answers)) / len(answers) if answers else math.nan


def mean_over_groups(metric: Callable[[Sequence[Item]], float], groups: Iterable[Sequence[Item]]) -> float:
    """The mean of a metric over groups (answers of one prompt each), every group weighing the same; NaN ones are left out.

    >>> mean_over_groups(unique_fraction, [["a", "a"], ["a", "b"]])
    0.75
    """
    values = [value for value in map(metric, groups) if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def yield_at(answers: Sequence[Hashable], rewards: Sequence[float], threshold: float) -> int:
    """Yield: how many different answers reach R ≥ threshold (Guo & Schwaller, arXiv 2405.17066).

    >>> yield_at(["a", "a", "b", "c"], [0.9, 0.9, 0.8, 0.1], 0.8)
    2
    """
    return len({answer for answer, reward in zip(answers, rewards, strict=True) if reward >= threshold})


def oracle_burden(
    answers: Sequence[Hashable], rewards: Sequence[float], threshold: float, target: int = 100
) -> int | None:
    """OB: calls of the reward, in order, until `target` different answers have R ≥ threshold; None if that never happens.

    An answer that comes again is not called again (arXiv 2405.17066; OB100 has target 100).

    >>> oracle_burden(["a", "a", "b", "c"], [0.9, 0.9, 0.1, 0.8], 0.8, target=2)  # calls: a, b, c
    3
    """
    called: set[Hashable] = set()
    found = 0
    for answer, reward in zip(answers, rewards, strict=True):
        if answer in called:
            continue
        called.add(answer)
        found += reward >= threshold
        if found == target:
            return len(called)
    return None


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """1 − C(n − c, k)/C(n, k): the unbiased chance that one of k samples is right (Chen et al., arXiv 2107.03374).

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise ValueError(
            f"needs 0 ≤ correct ≤ samples and 1 ≤ k ≤ samples; received {num_correct}, {num_samples}, {k}"
        )
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def answer_entropy(answers: Sequence[Hashable]) -> float:
    """Entropy of the answers' frequencies, in nats (a lower bound on the policy's: at most log N); NaN of none.

    >>> round(answer_entropy(["a", "b", "a", "b"]) / math.log(2), 6)
    1.0
    """
    total = len(answers)
    if not total:
        return math.nan
    return -sum(n / total * math.log(n / total) for n in Counter(answers).values()) + 0.0


def coverage(answers: Collection[Hashable], good: Collection[Hashable]) -> float:
    """Share of the enumerated good set that was found; NaN of an empty set.

    >>> coverage(["1+2", "3", "9"], {"1+2", "2+1", "3", "4-1"})
    0.5
    """
    wanted = set(good)
    return len(wanted.intersection(answers)) / len(wanted) if wanted else math.nan


def kl_to_uniform(answers: Sequence[Answer], good: Collection[Answer]) -> float:
    """KL(frequencies of the good answers ‖ uniform over the good set), in nats: log|good| − entropy; NaN when none is good.

    0 = every good answer equally often, log|good| = always the same one. Answers outside the good set are left out. A
    sample of N answers from the uniform itself has about (|good| − 1)/2N.

    >>> round(kl_to_uniform(["a", "b", "wrong"], {"a", "b", "c", "d"}) / math.log(2), 6)
    1.0
    """
    wanted = set(good)
    inside = [answer for answer in answers if answer in wanted]
    return math.log(len(wanted)) - answer_entropy(inside) if inside else math.nan


# -- similarity ----------------------------------------------------------------------------------------------------


def similarity_matrix(items: Sequence[Item], similarity: Callable[[Item, Item], float]) -> Array:
    """[N, N] from a symmetric function of pairs, called once per pair.

    >>> similarity_matrix(["a", "ab"], lambda x, y: len(set(x) & set(y)) / len(set(x) | set(y))).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    size = len(items)
    matrix = np.empty((size, size))
    for i in range(size):
        for j in range(i, size):
            matrix[i, j] = matrix[j, i] = similarity(items[i], items[j])
    return matrix


def internal_diversity(similarity: ArrayLike) -> float:
    """IntDiv1 = 1 − mean similarity over all N² pairs, an item with itself included (MOSES, arXiv 1811.12823); NaN of none.

    >>> internal_diversity([[1.0, 0.0], [0.0, 1.0]])
    0.5
    """
    matrix = _square(similarity)
    return float(1.0 - matrix.mean()) if matrix.size else math.nan


def circles(similarity: ArrayLike, threshold: float = 0.75) -> int:
    """#Circles, greedy: an item counts if its distance 1 − similarity to all counted ones is > threshold (arXiv 2112.12542).

    The greedy count depends on the order of items; fix it before comparing.

    >>> circles([[1.0, 0.2, 0.1], [0.2, 1.0, 0.9], [0.1, 0.9, 1.0]], threshold=0.75)
    2
    """
    near = 1.0 - _square(similarity) <= threshold
    centres: list[int] = []
    for item in range(len(near)):
        if not near[item, centres].any():
            centres.append(item)
    return len(centres)


def vendi_score(similarity: ArrayLike) -> float:
    """exp of the entropy of the eigenvalues of K/N: the effective number of different items (arXiv 2210.02410); NaN of none.

    K must be positive semi-definite; eigenvalues below 0 by rounding are dropped.

    >>> round(vendi_score(np.eye(3)), 6), round(vendi_score(np.ones((3, 3))), 6)
    (3.0, 1.0)
    """
    matrix = _square(similarity)
    if not matrix.size:
        return math.nan
    values = np.linalg.eigvalsh(matrix / len(matrix))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def semantic_diversity(answers: Sequence[str], embedder: Embedder) -> float:
    """1 − mean cosine over the N(N − 1)/2 pairs of different positions; NaN of fewer than two answers.

    A zero embedding has cosine 0 with everything.

    >>> semantic_diversity(["x", "y", "x"], lambda texts: [[1.0, 0.0] if t == "x" else [0.0, 2.0] for t in texts])
    0.6666666666666667
    """
    size = len(answers)
    if size < 2:
        return math.nan
    vectors = np.asarray(embedder(list(answers)), float)
    if vectors.ndim != 2 or len(vectors) != size:
        raise ValueError(
            f"the embedder must give one row per text, [{size}, D]; received shape {vectors.shape}"
        )
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms == 0, 1.0, norms)
    off_diagonal = np.square(unit.sum(0)).sum() - np.square(unit).sum()
    return max(0.0, float(1.0 - off_diagonal / (size * (size - 1))))  # rounding


def partition(answers: Sequence[Item], same: Callable[[Item, Item], bool]) -> list[int]:
    """Class of each answer: the first class whose first member is the `same`, else a new one (NoveltyBench, arXiv 2504.05228).

    >>> partition(["cat", "Cat", "dog", "CAT"], lambda a, b: a.lower() == b.lower())
    [0, 0, 1, 0]
    """
    founders: list[Item] = []
    classes: list[int] = []
    for answer in answers:
        home = next((i for i, founder in enumerate(founders) if same(answer, founder)), len(founders))
        if home == len(founders):
            founders.append(answer)
        classes.append(home)
    return classes


def novelty_utility(classes: Sequence[Hashable], utilities: Sequence[float], patience: float = 0.8) -> float:
    """(1 − p)/(1 − p^k)·Σ_i p^(i−1)·u_i over the answers that are the first of their class (NoveltyBench, p = 0.8).

    Args:
        classes: of each answer, in the order in which they are shown (`partition`, or the answers themselves).
        utilities: quality of each answer.
        patience: the chance that the user reads on, 0 < p < 1.

    The second answer repeats the first, so of the weights 1, .8, .64 the second is lost:

    >>> round(novelty_utility(["a", "a", "b"], [1.0, 1.0, 1.0]), 6)  # 1.64/2.44
    0.672131
    """
    if not 0 < patience < 1:
        raise ValueError(f"patience must lie between 0 and 1; received {patience}")
    seen: set[Hashable] = set()
    gained = 0.0
    for index, (kind, utility) in enumerate(zip(classes, utilities, strict=True)):
        if kind not in seen:
            gained += patience**index * utility
        seen.add(kind)
    return gained * (1 - patience) / (1 - patience ** len(classes)) if classes else math.nan


# -- words ---------------------------------------------------------------------------------------------------------


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def expectation_adjusted_distinct(
    answers: Sequence[str],
    vocabulary_size: int,
    orders: Sequence[int] = (1, 2, 3, 4, 5),
    tokenize: Callable[[str], Sequence[str]] = str.split,
) -> float:
    """EAD = N/(V·(1 − ((V − 1)/V)^C)), the mean over n-gram orders (Liu et al., arXiv 2202.13587).

    N different n-grams among C in all answers together, over how many different ones C draws from V would give. V is the
    size of the vocabulary for every order. Orders longer than every answer are left out; NaN when none is left.

    >>> expectation_adjusted_distinct(["a b"], vocabulary_size=2, orders=[1])  # 2/(2·(1 − ¼))
    1.3333333333333333
    """
    if vocabulary_size < 1:
        raise ValueError(f"vocabulary_size must be positive; received {vocabulary_size}")
    texts = [tokenize(answer) for answer in answers]
    scores: list[float] = []
    for order in orders:
        counts = Counter(gram for words in texts for gram in _ngrams(words, order).elements())
        if drawn := sum(counts.values()):
            expected = -vocabulary_size * math.expm1(drawn * _log_share_left(vocabulary_size))
            scores.append(len(counts) / expected)
    return sum(scores) / len(scores) if scores else math.nan


def _log_share_left(vocabulary_size: int) -> float:
    return math.log1p(-1.0 / vocabulary_size) if vocabulary_size > 1 else -math.inf


def bleu(
    words: Sequence[str], references: Sequence[Sequence[str]], max_order: int = 4, smoothing: float = 0.1
) -> float:
    """Sentence BLEU: geometric mean of clipped n-gram precisions × brevity penalty (Papineni et al. 2002).

    Args:
        words: the sentence.
        references: what it is compared with; the length that counts is the closest one, the shorter of two equally close.
        max_order: n = 1..max_order, evenly weighed.
        smoothing: stands for a count of matches that is 0 (Chen & Cherry 2014, method 1).

    Returns:
        0 to 1; 0 without any common word.

    >>> bleu("the the the".split(), ["the cat sat".split()], max_order=1)  # clipped: one of three
    0.3333333333333333
    """
    log_precision = 0.0
    for order in range(1, max_order + 1):
        mine = _ngrams(words, order)
        ceiling: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            ceiling |= _ngrams(reference, order)
        matched = (mine & ceiling).total()
        if order == 1 and not matched:
            return 0.0
        log_precision += math.log((matched or smoothing) / max(1, mine.total())) / max_order
    closest = min((abs(len(r) - len(words)), len(r)) for r in references)[1]
    return math.exp(min(0.0, 1 - closest / len(words)) + log_precision)


def self_bleu(
    answers: Sequence[str],
    max_order: int = 4,
    smoothing: float = 0.1,
    tokenize: Callable[[str], Sequence[str]] = str.split,
) -> float:
    """Mean BLEU of each answer against all others: 1 = all alike (Zhu et al., Texygen, arXiv 1802.01886); NaN below two answers.

    >>> self_bleu(["a b c d", "a b c d"])
    1.0
    """
    texts = [tokenize(answer) for answer in answers]
    if len(texts) < 2:
        return math.nan
    scores = [
        bleu(words, texts[:index] + texts[index + 1 :], max_order, smoothing) if words else 0.0
        for index, words in enumerate(texts)
    ]
    return sum(scores) / len(scores)


def _square(similarity: ArrayLike) -> Array:
    matrix = np.asarray(similarity, float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a similarity is a square matrix [N, N]; received shape {matrix.shape}")
    return matrix
