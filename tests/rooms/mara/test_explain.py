"""What RL will make of a table: numbers worked out by hand, invariances, and files that must be refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from postgrad.core.config import validate
from postgrad.core.errors import ConfigError, DataError
from postgrad.mara.config import ExplainConfig
from postgrad.mara.explain import (
    AnswerTable,
    explain,
    explanation_record,
    find_crossover,
    read_table,
    share,
    table_from_record,
    two_modes,
)
from postgrad.mara.figures import distribution_figure, explain_figures


def write(folder: Path, text: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def table(ref: list[float], rewards: list[float]) -> AnswerTable:
    return AnswerTable("t", tuple("abcdefgh"[: len(ref)]), np.array(ref), np.array(rewards, float))


# -- numbers -------------------------------------------------------------------------------------------------------


def test_two_modes_by_hand() -> None:
    """π_ref = .6, .02 good, .38 not, β = 1: e = 2.718282 times the good ones; MARA lifts the rare one to .6e as well."""
    found = explain(two_modes(), ExplainConfig(beta=(1.0,)))
    ordinary, forward, mara = (found.find(method, 1.0) for method in ("reverse", "forward", "mara"))
    assert found.reference.good_mass == pytest.approx(0.62)
    assert ordinary.good_mass == pytest.approx(0.62 * math.e / (0.62 * math.e + 0.38))
    assert mara.good_mass == pytest.approx(1.2 * math.e / (1.2 * math.e + 0.38))
    assert forward.good_mass == pytest.approx(math.sqrt(0.62))  # Λ² − 2Λ + .38 = 0, P(good) = .62/(Λ − 1)
    for optimum in (found.reference, ordinary, forward):
        assert optimum.rare_given_good == pytest.approx(1 / 31)
        assert optimum.frequent_given_good == pytest.approx(30 / 31)
    assert (mara.rare_given_good, mara.frequent_given_good) == pytest.approx((0.5, 0.5))
    half = mara.good_mass / 2
    rest = 1 - mara.good_mass
    assert mara.entropy == pytest.approx(-2 * half * math.log(half) - rest * math.log(rest))
    assert found.crossover.beta is None


def test_the_sentence_names_the_numbers() -> None:
    found = explain(two_modes())
    assert found.sentence == (
        "Ordinary RL at β = 0.01 gives the likeliest good answer, “frequent good answer”, 96.8 %, and its odds against the "
        "rarest, “rare good answer”, stay the reference's 30 : 1 whatever β you choose; MARA gives each of the 2 good ones "
        "50 %."
    )
    unequal = explain(table([0.5, 0.3, 0.2], [1.0, 2.0, 0.0]), ExplainConfig(beta=(0.1,)))
    # .3·e^20 against .5·e^10: b is 99.99 %
    assert "gives the good answer “b” > 99.9 % and “a” < 0.1 %" in unequal.sentence
    single = explain(table([0.5, 0.5], [1.0, 0.0]), ExplainConfig(beta=(1.0,)))
    assert "the only good answer, “a”, 73.1 %" in single.sentence  # e/(e + 1)


def test_the_crossover_makes_best_and_likeliest_equal() -> None:
    given = table([0.7, 0.1, 0.2], [0.2, 1.0, 0.9])
    found = find_crossover(given)
    assert (found.best, found.likeliest) == (1, 0)
    assert found.beta == pytest.approx(0.8 / math.log(7))
    assert found.beta is not None
    weights = given.ref * np.exp(given.rewards / found.beta)
    assert weights[0] == pytest.approx(weights[1])
    optimum = explain(given, ExplainConfig(beta=(found.beta,), tau=0.9)).find("reverse", found.beta)
    assert optimum.policy[0] == pytest.approx(optimum.policy[1])


@pytest.mark.parametrize(
    ("ref", "rewards"),
    [([0.6, 0.4], [1, 1]), ([0.6, 0.4], [2, 1]), ([0.5, 0.5], [1, 2]), ([1.0, 0.0], [1, 9])],
)
def test_no_crossover_where_the_likeliest_is_best(ref: list[float], rewards: list[float]) -> None:
    assert find_crossover(table(ref, rewards)).beta is None


def test_the_order_of_rows_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    ref, rewards = generator.dirichlet(np.ones(6)), generator.uniform(0, 2, 6)
    given = AnswerTable("t", tuple("abcdef"), ref, rewards)
    order = generator.permutation(6)
    moved = AnswerTable("t", tuple("abcdef"[i] for i in order), ref[order], rewards[order])
    first, second = explain(given), explain(moved)
    assert first.sentence == second.sentence
    assert first.crossover.beta == second.crossover.beta
    for one, other in zip(first.optima, second.optima, strict=True):
        np.testing.assert_allclose(one.policy[order], other.policy, atol=1e-14)
        assert one.rare_given_good == pytest.approx(other.rare_given_good)


def test_mara_is_even_over_the_good_answers_of_any_table() -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        found = explain(
            AnswerTable("t", tuple("abcdefg"), generator.dirichlet(np.ones(7)), generator.uniform(0, 2, 7))
        )
        for beta in found.config.beta:
            policy = found.find("mara", beta).policy[found.good]
            np.testing.assert_allclose(policy, policy.mean())


def test_a_good_answer_without_support_is_named_and_left_out() -> None:
    found = explain(table([0.9, 0.1, 0.0], [1.0, 1.0, 1.0]))
    assert found.good.tolist() == [True, True, False]
    assert found.find("mara", 0.1).policy.tolist() == pytest.approx([0.5, 0.5, 0])
    assert any("1 good answer has no support" in note for note in found.notes)


def test_nothing_good_is_refused_with_the_greatest_reward() -> None:
    with pytest.raises(DataError, match=r"at least tau = 1; the greatest is 0\.9\. Give --tau"):
        explain(table([0.5, 0.5, 0.0], [0.9, 0.1, 5.0]))


def test_a_record_gives_the_table_back() -> None:
    found = explain(table([0.7, 0.1, 0.2], [0.2, 1.0, 0.9]))
    record = json.loads(json.dumps(explanation_record(found)))
    assert explanation_record(explain(table_from_record(record))) == explanation_record(found)


def test_figures_hold_the_numbers() -> None:
    found = explain(table([0.1, 0.7, 0.2], [1.0, 0.2, 1.0]), ExplainConfig(beta=(0.1, 1.0)))
    bars = distribution_figure(found).columns
    assert bars["reference"] == [0.7, 0.2, 0.1]  # by support
    assert bars["MARA"] == pytest.approx(found.find("mara", 0.1).policy[[1, 2, 0]].tolist())
    figures = {figure.name: figure for figure in explain_figures(found)}
    assert set(figures) == {"distributions", "rare_given_good", "good_mass", "crossover"}
    assert figures["rare_given_good"].columns["ordinary RL"] == pytest.approx([1 / 3] * 121)
    assert figures["rare_given_good"].columns["MARA"] == pytest.approx([1 / 2] * 121)
    curve = figures["crossover"].columns
    signs = [b - a > 0 for a, b in zip(curve["best"], curve["likeliest"], strict=True)]  # type: ignore[operator]
    assert signs == [beta > found.crossover.beta for beta in curve["beta"]]  # type: ignore[operator]


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.0004, 0.001, 0.4996, 0.99949, 0.9996, 1.0])
def test_a_share_never_reads_as_certain_unless_it_is(value: float) -> None:
    assert (share(value) == "100 %") == (value == 1.0)
    assert (share(value) == "0 %") == (value == 0.0)


# -- files ---------------------------------------------------------------------------------------------------------


def test_probabilities_and_log_probabilities_are_the_same_table(tmp_path: Path) -> None:
    plain = read_table(write(tmp_path, "answer,ref,reward\na,0.5,1\nb,0.3,1\nc,0.2,0\n"), ExplainConfig())
    logs = "".join(
        f"{a}\t{math.log(p)!r}\t{r}\n" for a, p, r in (("a", 0.5, 1), ("b", 0.3, 1), ("c", 0.2, 0))
    )
    logged = read_table(write(tmp_path, "answer\tref\treward\n" + logs, "l.tsv"), ExplainConfig())
    np.testing.assert_allclose(plain.ref, [0.5, 0.3, 0.2], rtol=1e-12)
    np.testing.assert_allclose(logged.ref, plain.ref, rtol=1e-12)
    assert plain.notes == ()
    assert logged.notes == ("ref was read as log-probabilities.",)


def test_long_sequences_keep_their_ratios(tmp_path: Path) -> None:
    """Log-probs of whole completions lie far below what exp can hold."""
    path = write(
        tmp_path,
        '{"answer": "x", "ref": -2000.0, "reward": 1}\n{"answer": "y", "ref": -2002.0, "reward": 1}\n',
        "t.jsonl",
    )
    given = read_table(path, ExplainConfig())
    assert given.ref[0] / given.ref[1] == pytest.approx(math.exp(2))
    assert any("normalised" in note for note in given.notes)


def test_counts_are_normalised_with_a_note(tmp_path: Path) -> None:
    given = read_table(write(tmp_path, 'answer;ref;reward\n"a;b";3;1\nc;1;0\n\n'), ExplainConfig())
    assert given.answers == ("a;b", "c")
    assert given.ref.tolist() == [0.75, 0.25]
    assert given.notes == ("The probabilities summed to 4; they were normalised.",)


def test_log_decides_where_zero_could_be_either(tmp_path: Path) -> None:
    path = write(tmp_path, "answer,ref,reward\na,0,1\nb,-inf,1\n")
    assert read_table(path, ExplainConfig(log=True)).ref.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "table.csv is empty"),
        ("answer,ref,reward\n", "holds no complete row"),
        ("answer,ref\na,1\n", "line 2: no column 'reward'"),
        ("answr,ref,reward\na,1,1\n", "line 2: no column 'answer'. Did you mean 'answr'"),
        ("answer,ref,reward\na,1\n", "line 2: 2 cells, but the header has 3"),
        ("answer,ref,ref\na,1,1\n", "several columns are called 'ref'"),
        (
            "answer,ref,reward\na,0.5,1\nb,-0.5,1\n",
            "line 3: ref is -0.5, negative, while others are positive",
        ),
        (
            "answer,ref,reward\na,0.5,1\nb,nan,1\n",
            "line 3: ref must be a probability or log-probability; it is nan",
        ),
        ("answer,ref,reward\na,0.5,1\nb,inf,1\n", "line 3: ref must be"),
        (
            "answer,ref,reward\na,0.5,1\nb,,1\n",
            "line 3: ref must be a probability or log-probability; it is empty",
        ),
        ("answer,ref,reward\na,0.5,1\nb,0.5,nan\n", "line 3: reward must be a finite number; it is nan"),
        ("answer,ref,reward\na,0.5,1\nb,0.5,\n", "line 3: reward must be a finite number; it is empty"),
        ("answer,ref,reward\na,0.5,good\n", "line 2: reward must be a number, not 'good'"),
        ("answer,ref,reward\na,0.5,1\nb,0.2,1\na ,0.3,1\n", "line 4: the answer “a” was on line 2 already"),
        ("answer,ref,reward\n ,0.5,1\n", "line 2: the answer is empty"),
        ("answer,ref,reward\na,0,1\nb,0,0\n", "every ref is 0"),
        ("answer,ref,reward\na,-inf,1\n", "every ref is −inf"),
    ],
)
def test_a_bad_table_is_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_table(write(tmp_path, text), ExplainConfig())
    assert words in str(caught.value)
    assert str(tmp_path / "table.csv") in str(caught.value)


def test_other_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: ref is 0\.5, a log-probability above 0"):
        read_table(write(tmp_path, "answer,ref,reward\na,0.5,1\n"), ExplainConfig(log=True))
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "none.csv", ExplainConfig())
    with pytest.raises(DataError, match=r"Valid: \.csv"):
        read_table(tmp_path / "none.parquet", ExplainConfig())
    path = write(tmp_path, '{"answer": "a", "ref": 1, "reward": 1}\nnonsense\n', "t.jsonl")
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        read_table(path, ExplainConfig())
    (tmp_path / "l.csv").write_bytes("answer,ref,reward\né,1,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_table(tmp_path / "l.csv", ExplainConfig())


@pytest.mark.parametrize(
    ("beta", "words"),
    [("0.1,x", "numbers joined by commas"), (0.0, "positive"), ("0.1,0.1", "given twice"), ([], "beta")],
)
def test_bad_betas(beta: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(ExplainConfig, {"beta": beta})
    assert validate(ExplainConfig, {"beta": "0.5, 2"}).beta == (0.5, 2.0)
    assert validate(ExplainConfig, {"beta": 1}).beta == (1.0,)
