"""Metrics: values by hand, loops, and the packages that are the reference where they are installed."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.core.errors import DataError, MissingExtraError
from postgrad.mara import diversity, molecules

words = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=30)


# -- counting ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(words, st.integers(0, 1000))
def test_yield_and_oracle_burden_equal_a_loop(answers: list[str], seed: int) -> None:
    generator = np.random.default_rng(seed)
    reward_of = {answer: float(generator.random()) for answer in "abcd"}
    rewards = [reward_of[answer] for answer in answers]
    first = [i for i in range(len(answers)) if answers[i] not in answers[:i]]
    assert diversity.yield_at(answers, rewards, 0.5) == sum(rewards[i] >= 0.5 for i in first)
    for target in (1, 2):
        burden = None
        for calls in range(len(first), 0, -1):
            if sum(rewards[i] >= 0.5 for i in first[:calls]) >= target:
                burden = calls
        assert diversity.oracle_burden(answers, rewards, 0.5, target) == burden


def test_oracle_burden_counts_bad_calls_too_and_may_never_end() -> None:
    answers = [str(i) for i in range(250)]
    rewards = [float(i % 2) for i in range(250)]
    assert diversity.oracle_burden(answers, rewards, 0.5) == 200
    assert diversity.oracle_burden(answers[:199], rewards[:199], 0.5) is None


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_pass_at_k_equals_the_enumeration_of_subsets(samples: int) -> None:
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        subsets = list(itertools.combinations([i < correct for i in range(samples)], k))
        assert diversity.pass_at_k(samples, correct, k) == pytest.approx(
            sum(map(any, subsets)) / len(subsets), abs=1e-12
        )
    with pytest.raises(ValueError, match="received 2, 1, 1"):
        diversity.pass_at_k(1, 2, 1)


def test_entropy_coverage_and_kl_of_an_enumerable_good_set() -> None:
    """a, a, b of {a, b, c}: frequencies ⅔, ⅓ against ⅓ each."""
    answers, good = ["a", "wrong", "b", "a"], {"a", "b", "c"}
    assert diversity.coverage(answers, good) == pytest.approx(2 / 3)
    assert diversity.kl_to_uniform(answers, good) == pytest.approx(
        2 / 3 * math.log((2 / 3) / (1 / 3)) + 1 / 3 * math.log(1)
    )
    assert diversity.answer_entropy(answers) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    assert diversity.kl_to_uniform(["a", "b", "c"] * 5, good) == pytest.approx(0)
    assert diversity.kl_to_uniform(["a"] * 5, good) == pytest.approx(math.log(3))
    assert diversity.unique_fraction(answers) == 0.75
    assert diversity.mean_over_groups(diversity.unique_fraction, [["a", "a"], [], ["a", "b"]]) == 0.75


def test_no_answers_are_nan_not_zero() -> None:
    assert math.isnan(diversity.unique_fraction([]))
    assert math.isnan(diversity.answer_entropy([]))
    assert math.isnan(diversity.kl_to_uniform(["x"], {"a"}))
    assert math.isnan(diversity.coverage(["x"], set()))
    assert math.isnan(diversity.internal_diversity(np.zeros((0, 0))))
    assert math.isnan(diversity.vendi_score(np.zeros((0, 0))))
    assert math.isnan(diversity.self_bleu(["alone"]))
    assert math.isnan(diversity.semantic_diversity(["alone"], lambda texts: [[1.0]] * len(texts)))
    assert math.isnan(diversity.novelty_utility([], []))
    assert math.isnan(diversity.expectation_adjusted_distinct([], 10))
    assert diversity.circles(np.zeros((0, 0))) == 0


# -- similarity ----------------------------------------------------------------------------------------------------


def gram(seed: int, size: int = 12) -> np.ndarray:
    """Cosines of positive vectors: a similarity [N, N] with some equal items."""
    vectors = np.random.default_rng(seed).random((size, 4)) ** 3
    vectors[1] = vectors[0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.05, 0.3, 0.75]))
def test_circles_are_far_apart_and_cover_everything(seed: int, threshold: float) -> None:
    """What a greedy count must be: its centres are pairwise far, and every other item is near an earlier centre."""
    similarity = gram(seed)
    centres: list[int] = []
    for item in range(len(similarity)):
        if all(1 - similarity[item, centre] > threshold for centre in centres):
            centres.append(item)
    assert diversity.circles(similarity, threshold) == len(centres)
    assert diversity.circles(np.eye(5), threshold) == 5
    assert diversity.circles(np.ones((5, 5)), threshold) == 1


def test_a_distance_equal_to_the_threshold_is_near() -> None:
    assert diversity.circles([[1.0, 0.25], [0.25, 1.0]], 0.75) == 1
    assert diversity.circles([[1.0, 0.2499], [0.2499, 1.0]], 0.75) == 2


def test_internal_diversity_includes_the_diagonal() -> None:
    """Three different items: 1 − 3/9, not 1."""
    assert diversity.internal_diversity(np.eye(3)) == pytest.approx(2 / 3)
    similarity = gram(0)
    mean = sum(similarity[i, j] for i in range(12) for j in range(12)) / 144
    assert diversity.internal_diversity(similarity) == pytest.approx(1 - mean)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(12)))
def test_vendi_and_internal_diversity_ignore_order_and_duplication(seed: int, order: list[int]) -> None:
    """Every item twice is as diverse as every item once."""
    similarity = gram(seed)
    for metric in (diversity.vendi_score, diversity.internal_diversity):
        assert metric(similarity[np.ix_(order, order)]) == pytest.approx(metric(similarity))
        assert metric(np.tile(similarity, (2, 2))) == pytest.approx(metric(similarity))


def test_vendi_score_by_hand() -> None:
    """Two items of similarity s: eigenvalues (1 ± s)/2. Groups of equal items: the exponential of their entropy."""
    for s in (0.0, 0.3, 0.9):
        high, low = (1 + s) / 2, (1 - s) / 2
        assert diversity.vendi_score([[1, s], [s, 1]]) == pytest.approx(
            math.exp(-high * math.log(high) - low * math.log(low))
        )
    kinds = np.array([0, 0, 0, 1])
    assert diversity.vendi_score(kinds[:, None] == kinds) == pytest.approx(
        math.exp(diversity.answer_entropy(kinds.tolist()))
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the package imports scipy's old names
def test_vendi_score_is_the_packages() -> None:
    package = pytest.importorskip("vendi_score", reason="needs the package vendi-score")
    from vendi_score import vendi

    assert package is not None
    for seed in range(10):
        similarity = gram(seed)
        assert diversity.vendi_score(similarity) == pytest.approx(float(vendi.score_K(similarity)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_semantic_diversity_equals_a_loop_over_pairs(seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(6, 3))
    vectors[2] = 0
    pairs = []
    for i, j in itertools.combinations(range(6), 2):
        size = np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j])
        pairs.append(vectors[i] @ vectors[j] / size if size else 0.0)
    found = diversity.semantic_diversity(
        [str(i) for i in range(6)], lambda texts: vectors[[int(t) for t in texts]]
    )
    assert found == pytest.approx(1 - np.mean(pairs))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one row per text, \[2, D\]"):
        diversity.semantic_diversity(["a", "b"], lambda texts: np.ones((3, 2)))
    with pytest.raises(ValueError, match="square matrix"):
        diversity.vendi_score(np.ones((2, 3)))


def test_a_partition_compares_with_the_first_of_each_class() -> None:
    """NoveltyBench's greedy rule on a relation that is not transitive: 3 is near 2, but 2's class is led by 1."""
    assert diversity.partition([1, 2, 3, 4], lambda a, b: abs(a - b) <= 1) == [0, 0, 1, 1]


def test_novelty_utility_by_hand() -> None:
    """Weights 1, .8, .64, .512 (sum 2.952); the third answer repeats the first."""
    found = diversity.novelty_utility(["a", "b", "a", "c"], [5.0, 2.0, 9.0, 1.0])
    assert found == pytest.approx((5 + 0.8 * 2 + 0.512 * 1) / 2.952)
    assert diversity.novelty_utility(list("abcd"), [3.0] * 4) == pytest.approx(3.0)


# -- words ---------------------------------------------------------------------------------------------------------


def test_ead_by_hand() -> None:
    """ "a b a" and "a": unigrams C = 4, N = 2; bigrams C = 2, N = 2; V = 4."""
    found = diversity.expectation_adjusted_distinct(["a b a", "a"], 4, orders=[1, 2, 9])
    unigrams = 2 / (4 * (1 - 0.75**4))
    bigrams = 2 / (4 * (1 - 0.75**2))
    assert found == pytest.approx((unigrams + bigrams) / 2)
    assert diversity.expectation_adjusted_distinct(["a a a"], 1, orders=[1]) == 1.0


def test_ead_of_words_drawn_from_the_vocabulary_is_one_at_any_length() -> None:
    """What the adjustment is for; the plain distinct fraction falls with length."""
    generator = np.random.default_rng(0)
    for length in (20, 200, 2000):
        text = " ".join(map(str, generator.integers(0, 100, length)))
        assert diversity.expectation_adjusted_distinct([text], 100, orders=[1]) == pytest.approx(
            1.0, abs=0.15
        )


def test_bleu_by_hand() -> None:
    """p1 = 3/4 ("the" is clipped to one), p2 = 1/3, p3 = .1/2, p4 = .1/1; lengths 4 and 5: e^(1 − 5/4)."""
    found = diversity.bleu(["the", "the", "cat", "sat"], [["the", "cat", "ate", "a", "rat"]], max_order=2)
    assert found == pytest.approx(math.exp(1 - 5 / 4) * math.sqrt(2 / 4 * 1 / 3))
    found = diversity.bleu(["the", "the", "cat", "sat"], [["the", "cat", "ate", "a", "rat"]])
    assert found == pytest.approx(math.exp(1 - 5 / 4) * (2 / 4 * 1 / 3 * 0.1 / 2 * 0.1 / 1) ** 0.25)


def test_the_brevity_penalty_uses_the_closest_length_and_clips_by_the_best_reference() -> None:
    references = [["a", "a"], ["a", "b", "c", "d", "e", "f"]]
    assert diversity.bleu(["a", "a", "a", "b"], references, max_order=1) == pytest.approx(
        3 / 4
    )  # lengths 2, 6: 2
    assert diversity.bleu(["a"], [["a"] * 3], max_order=1) == pytest.approx(math.exp(-2))


def test_self_bleu_by_hand_and_its_ends() -> None:
    """Bigram BLEU of "a b c" against "a b d" and back: √(2/3 · 1/2)."""
    assert diversity.self_bleu(["a b c", "a b d"], max_order=2) == pytest.approx(math.sqrt(1 / 3))
    assert diversity.self_bleu(["a b", "c d", "e f"]) == 0.0
    assert diversity.self_bleu(["a b c d e"] * 3) == pytest.approx(1.0)
    assert diversity.self_bleu(["", "a b", "a b"], max_order=1) == pytest.approx(2 / 3)


@settings(max_examples=30, deadline=None)
@given(st.lists(words.filter(bool).map(" ".join), min_size=2, max_size=6))
def test_metrics_ignore_the_order_of_answers(answers: list[str]) -> None:
    for metric in (
        diversity.self_bleu,
        lambda texts: diversity.expectation_adjusted_distinct(texts, 50),
        diversity.answer_entropy,
        lambda texts: diversity.kl_to_uniform(texts, set(answers)),
    ):
        assert metric(answers[::-1]) == pytest.approx(metric(answers))


# -- molecules -----------------------------------------------------------------------------------------------------


def smiles() -> list[str]:
    """Rings × linkers × caps: 84 different molecules in a fixed mixed order, two of them spelt a second time."""
    rings = ["c1ccccc1", "c1ccncc1", "C1CCCCC1", "c1ccsc1"]
    made = [
        f"{cap}{linker}{ring}"
        for ring in rings
        for linker in ("C", "CC(=O)N", "OCC")
        for cap in ("N", "F", "CC", "CCC", "O", "", "Cl")
    ]
    return [
        *(made[i] for i in np.random.default_rng(0).permutation(len(made))),
        "c1ccccc1CN",
        "c1ccccc1CCOCl",
    ]


def needs_rdkit() -> None:
    pytest.importorskip("rdkit", reason="needs the extra chem (rdkit)")


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.7, 0.75, 0.9])
def test_circles_equal_rdkits_leader_picker_on_the_same_order(threshold: float) -> None:
    needs_rdkit()
    similarity = molecules.tanimoto(smiles())
    counts = [diversity.circles(similarity, threshold), molecules.circles(smiles(), threshold)]
    assert counts[0] == counts[1]
    assert threshold > 0.7 or counts[0] > 2


def test_tanimoto_is_the_overlap_of_bits() -> None:
    needs_rdkit()
    some = smiles()[:12]
    bits = [set(mark.GetOnBits()) for mark in molecules.fingerprints(some)]
    expected = [[len(a & b) / len(a | b) for b in bits] for a in bits]
    np.testing.assert_allclose(molecules.tanimoto(some), expected)
    np.testing.assert_allclose(
        molecules.tanimoto(some), diversity.similarity_matrix(bits, lambda a, b: len(a & b) / len(a | b))
    )


def test_canonical_forms() -> None:
    needs_rdkit()
    assert molecules.canonical("OCC") == molecules.canonical("C(O)C") == "CCO"
    assert molecules.canonical("C1CC") is None
    assert molecules.canonical("") is None
    assert sorted(Counter(map(molecules.canonical, smiles())).values()) == [1] * 82 + [2] * 2
    with pytest.raises(DataError, match="string 1 is no molecule: 'C1CC'"):
        molecules.tanimoto(["C", "C1CC"])
    assert molecules.circles([]) == 0
    assert molecules.tanimoto([]).shape == (0, 0)


def test_without_rdkit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'postgrad\[chem\]'"):
        molecules.circles(["C"])


def test_the_face_is_sorted_and_the_metrics_need_no_torch() -> None:
    import postgrad.mara as face

    assert face.__all__ == sorted(face.__all__)
    assert face.theory.total_variation([1.0], [1.0]) == 0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        face.nothing  # noqa: B018
    code = "import sys; from postgrad.mara import diversity, molecules, theory; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
