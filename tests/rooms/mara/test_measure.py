"""Measures of answers: values by hand, exact bootstraps, invariances, and files that must be refused."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.core.errors import DataError
from postgrad.mara import diversity
from postgrad.mara.answers import read_sides
from postgrad.mara.config import MeasureConfig
from postgrad.mara.figures import measure_figures
from postgrad.mara.measure import bootstrap_mean, measure, self_bleu

LN2 = math.log(2)
WORKED = """prompt,answer,correct
p,a,true
p,a,yes
q,d,0
p,b,false
q,d,0
q,d,0
p,c,1
q,d,0
"""
"""p: a a b c, of which a, a, c are right. q: four times d, wrong."""


def write(folder: Path, text: str, name: str = "answers.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def lines(folder: Path, rows: list[dict[str, Any]], name: str = "answers.jsonl") -> Path:
    return write(folder, "".join(json.dumps(row) + "\n" for row in rows), name)


def record(paths: Path | list[Path], good: Path | None = None, **options: Any) -> dict[str, Any]:
    config = MeasureConfig(**options)
    return measure(read_sides([paths] if isinstance(paths, Path) else paths, config, good), config)


def values(side: dict[str, Any]) -> dict[str, float]:
    return {key: cell["value"] for key, cell in side["metrics"].items() if cell["value"] is not None}


# -- numbers -------------------------------------------------------------------------------------------------------


def test_every_metric_by_hand(tmp_path: Path) -> None:
    good = lines(tmp_path, [{"prompt": "p", "answers": ["a", "b", " c ", "e"]}], "good.jsonl")
    found = record(write(tmp_path, WORKED), good, k=2, vocabulary=4)
    (side,) = found["sides"]
    assert (side["num_prompts"], side["num_answers"]) == (2, 8)
    drawn = 4 * (1 - (3 / 4) ** 4)  # different words that 4 draws from 4 give
    assert values(side) == pytest.approx(
        {
            "unique_fraction": (3 / 4 + 1 / 4) / 2,
            "answer_entropy": 1.5 * LN2 / 2,  # ½, ¼, ¼ and 0
            "ead": (3 / drawn + 1 / drawn) / 2,
            "self_bleu": (1 / 2 + 1) / 2,  # of a, a, b, c the two a are found again
            "pass_at_1": (3 / 4 + 0) / 2,
            "pass_at_k": (1 + 0) / 2,  # one wrong of four: any two hold a right one
            "distinct_good": (2 + 0) / 2,
            "coverage": 3 / 4,  # only p has a good set
            "kl_to_uniform": math.log(4) - 1.5 * LN2,
        }
    )
    assert "answers: 1 of 2 prompts have no good set." in found["notes"]


def test_the_bootstrap_over_two_prompts_is_exact() -> None:
    """Draws of two give both ends with chance ¼ each, more than the 2.5 % that a tail holds."""
    assert bootstrap_mean([0.25, 0.75], MeasureConfig()) == (0.5, 0.25, 0.75)
    assert bootstrap_mean([0.25, math.nan], MeasureConfig()) == (0.25, None, None)
    assert bootstrap_mean([math.nan], MeasureConfig()) == (None, None, None)


def test_the_bootstrap_is_near_the_enumeration_of_all_draws() -> None:
    numbers = [0.0, 1.0, 2.0, 5.0, 9.0]
    means = [sum(draw) / 5 for draw in itertools.product(numbers, repeat=5)]
    found = bootstrap_mean(numbers, MeasureConfig(bootstrap=20_000, confidence=0.8))
    for end, level in ((found.low, 0.1), (found.high, 0.9)):
        assert end is not None
        # 20,000 draws put the level within 0.01 (five standard errors) of where it belongs
        assert (
            np.mean(np.array(means) < end - 1e-9) - 0.01
            <= level
            <= np.mean(np.array(means) < end + 1e-9) + 0.01
        )
    again = MeasureConfig(bootstrap=200, seed=1)
    assert bootstrap_mean(numbers, again) == bootstrap_mean(numbers, again)
    assert bootstrap_mean(numbers, again) != bootstrap_mean(numbers, MeasureConfig(bootstrap=200, seed=2))


def test_the_order_of_prompts_and_answers_does_not_matter(tmp_path: Path) -> None:
    header, *rows = WORKED.splitlines()
    first = record(write(tmp_path, WORKED))
    second = record(write(tmp_path, "\n".join([header, *reversed(rows)]) + "\n", "turned.csv"))
    assert values(first["sides"][0]) == pytest.approx(values(second["sides"][0]))
    assert first["k"] == 4


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_good_one(tmp_path: Path) -> None:
    verdicts = {"p": [1, 0, 0, 0, 1, 0], "q": [0, 0, 1, 0, 0, 0]}
    rows = [
        {"prompt": p, "answer": i, "correct": bool(v)} for p, vs in verdicts.items() for i, v in enumerate(vs)
    ]
    curve = record(lines(tmp_path, rows))["sides"][0]["curves"]["pass_at_k"]
    assert [point["k"] for point in curve] == [1, 2, 3, 4, 5, 6]
    for point in curve:
        subsets = [list(itertools.combinations(vs, point["k"])) for vs in verdicts.values()]
        assert point["value"] == pytest.approx(sum(sum(map(any, s)) / len(s) for s in subsets) / 2)


def test_frequencies_and_yield_over_steps(tmp_path: Path) -> None:
    rows = [
        {"answer": answer, "reward": reward, "step": step}
        for step, (answer, reward) in enumerate([("a", 0.9), ("a", 0.9), ("b", 0.1), ("c", 0.8)])
    ]
    found = record(lines(tmp_path, rows), tau=0.8, oracle_target=2)
    (side,) = found["sides"]
    assert [(point["rank"], point["value"]) for point in side["curves"]["frequency"]] == [
        (1, 0.5),
        (2, 0.25),
        (3, 0.25),
    ]
    assert [point["value"] for point in side["curves"]["yield"]] == [0, 1, 1, 1, 2]
    assert (values(side)["yield"], values(side)["oracle_burden"]) == (2, 3)  # a, b, c are judged
    figures = {figure.name: figure for figure in measure_figures(found)}
    assert figures["yield"].columns["answers"] == [0, 1, 2, 3, 4]
    assert figures["frequency"].columns["answers value"] == [0.5, 0.25, 0.25]


def test_yield_tells_prompts_apart_and_may_never_reach_its_target(tmp_path: Path) -> None:
    rows = [{"prompt": p, "answer": "x", "reward": 1} for p in "pqq"]
    metrics = record(lines(tmp_path, rows))["sides"][0]["metrics"]
    assert metrics["yield"]["value"] == 2
    assert metrics["oracle_burden"]["value"] is None


def test_one_answer_says_nothing_about_diversity(tmp_path: Path) -> None:
    found = record(lines(tmp_path, [{"prompt": p, "answer": "x", "correct": p == "p"} for p in "pq"]))
    assert values(found["sides"][0]) == {"pass_at_1": 0.5, "pass_at_k": 0.5, "distinct_good": 0.5}
    assert any("2 of 2 prompts have one answer" in note for note in found["notes"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=7), min_size=2, max_size=6))
def test_self_bleu_equals_the_slow_one(words: list[list[str]]) -> None:
    scores = [
        diversity.bleu(mine, words[:i] + words[i + 1 :], max_order=min(4, len(mine))) if mine else 0.0
        for i, mine in enumerate(words)
    ]
    assert self_bleu([" ".join(mine) for mine in words]) == pytest.approx(
        sum(scores) / len(scores), abs=1e-12
    )


def test_self_bleu_of_long_texts_is_that_of_the_room() -> None:
    texts = ["a b c d e", "a b c d f", "d e f a b c", "a a a a b"]
    assert self_bleu(texts) == pytest.approx(diversity.self_bleu(texts))


# -- verdicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "tau", "rate"),
    [
        ({"correct": True, "score": 0.0, "reward": -1.0}, None, 1.0),
        ({"correct": True, "score": 0.3}, 0.5, 0.0),  # a τ that is given judges
        ({"correct": True}, 0.5, 1.0),
        ({"score": 1.0, "reward": -1.0}, None, 1.0),
        ({"score": 0.99}, None, 0.0),
        ({"score": None, "reward": 0.6}, 0.5, 1.0),
        ({"score": math.nan, "reward": 0.6}, 0.5, 1.0),
    ],
)
def test_which_column_decides(tmp_path: Path, row: dict[str, Any], tau: float | None, rate: float) -> None:
    found = record(lines(tmp_path, [{"answer": "x", **row}]), tau=tau)
    assert values(found["sides"][0])["pass_at_1"] == rate


def test_a_good_set_judges_where_nothing_else_does(tmp_path: Path) -> None:
    rows = [{"prompt_id": "1", "prompt": "reach 3", "answer": a} for a in ("1 + 2", "1  +  2", "5")]
    good = lines(tmp_path, [{"prompt": "reach 3", "answers": ["1 + 2", "2 + 1"]}], "good.jsonl")
    (side,) = record(lines(tmp_path, rows), good)["sides"]
    assert values(side)["pass_at_1"] == pytest.approx(2 / 3)
    assert values(side)["coverage"] == 0.5
    (strict,) = record(lines(tmp_path, rows), good, answers="text")["sides"]
    assert values(strict)["pass_at_1"] == pytest.approx(1 / 3)
    assert values(strict)["unique_fraction"] == 1.0
    assert values(side)["unique_fraction"] == pytest.approx(2 / 3)


def test_answers_without_verdict_are_counted_and_left_out(tmp_path: Path) -> None:
    rows = [{"answer": "x", "correct": verdict} for verdict in (True, None, False, False)]
    found = record(lines(tmp_path, rows))
    assert values(found["sides"][0])["pass_at_1"] == pytest.approx(1 / 3)
    assert found["k"] == 3
    assert any("1 answers without a verdict" in note for note in found["notes"])


# -- sides ---------------------------------------------------------------------------------------------------------


def phase_rows(phase: str, step: int, said: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "phase": phase,
            "step": step,
            "prompt_id": p,
            "answer": "solution",
            "completion": c,
            "correct": c == "a",
        }
        for p, answers in said.items()
        for c in answers
    ]


def test_phases_are_sides_and_changes_are_paired(tmp_path: Path) -> None:
    rows = [
        *phase_rows("after", 9, {"p": "aa", "q": "aa", "r": "bb"}),
        *phase_rows("before", 0, {"p": "ab", "q": "bc"}),
        *phase_rows("eval", 3, {"p": "aa"}),
        *phase_rows("eval", 6, {"p": "ab"}),
    ]
    (tmp_path / "run").mkdir()
    lines(tmp_path / "run", rows, "samples.jsonl")
    found = record(tmp_path / "run")
    assert [side["name"] for side in found["sides"]] == ["before", "after"]
    (change,) = found["differences"]
    assert (change["side"], change["against"], change["num_prompts"]) == ("after", "before", 2)
    assert change["metrics"]["pass_at_1"] == {"value": 0.75, "low": 0.5, "high": 1.0}  # p: ½ → 1, q: 0 → 1
    assert change["metrics"]["unique_fraction"] == {"value": -0.5, "low": -0.5, "high": -0.5}
    assert any("left out eval@3, eval@6" in note for note in found["notes"])
    more = record(tmp_path / "run", phases="eval,before")
    assert [side["name"] for side in more["sides"]] == ["eval@3", "eval@6", "before"]


def test_files_side_by_side_and_equal_numbers_of_answers(tmp_path: Path) -> None:
    for folder, text in (("x", "aab"), ("y", "ab")):
        (tmp_path / folder).mkdir()
        lines(tmp_path / folder, [{"answer": a, "correct": True} for a in text], "s.jsonl")
    paths = [tmp_path / "x" / "s.jsonl", tmp_path / "y" / "s.jsonl"]
    found = record(paths)
    assert [side["name"] for side in found["sides"]] == ["s-1", "s-2"]
    assert any("s-1 3, s-2 2" in note for note in found["notes"])
    equal = record(paths, samples=2)
    assert [values(side)["unique_fraction"] for side in equal["sides"]] == [0.5, 1.0]
    assert not any("Answers per prompt differ" in note for note in equal["notes"])
    with pytest.raises(DataError, match="no prompt has 3 answers"):
        record(paths, samples=3)


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, '{"answer": "x"}\n{"answer": "y"}\n{"answ', "torn.jsonl")
    assert record(path)["sides"][0]["num_answers"] == 2


def test_numbers_as_answers_and_zero(tmp_path: Path) -> None:
    (side,) = record(lines(tmp_path, [{"answer": 0}, {"answer": "0"}, {"answer": 1}]))["sides"]
    assert values(side)["unique_fraction"] == pytest.approx(2 / 3)


# -- molecules -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("rdkit") is None, reason="needs rdkit")
def test_molecules_by_their_canonical_form(tmp_path: Path) -> None:
    text = "answer,reward\nCCO,0.9\nOCC,0.9\nnope,0.95\nc1ccccc1,0.8\nCCN,0.1\n"
    (side,) = record(write(tmp_path, text), molecules=True, tau=0.5)["sides"]
    found = values(side)
    assert found["valid_fraction"] == pytest.approx(4 / 5)
    assert found["unique_fraction"] == pytest.approx(4 / 5)
    assert found["yield"] == 2  # ethanol and benzene; "nope" is no molecule whatever its reward
    # ethanol and benzene share no fragment: similarity is the identity
    assert found["internal_diversity"] == pytest.approx(0.5)
    assert found["circles"] == 2
    assert found["vendi"] == pytest.approx(2.0)


# -- files that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "answers.csv is empty"),
        (
            "prompt,reward\np,1\n",
            "line 2: no answer. Needed is one of the columns completion, answer, text; it has prompt, reward",
        ),
        ("answer,reward\na,1\nb,much\n", "line 3: reward must be a number, not 'much'"),
        ("answer,correct\na,1\nb,maybe\n", "line 3: correct must be true or false, not 'maybe'"),
        ("answer,step\na,first\n", "line 2: step must be a number"),
        ("answer,reward\na,b,1\n", "line 2: 3 cells, but the header has 2"),
    ],
)
def test_bad_answers_are_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        record(write(tmp_path, text))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "p"}\n', 'line 1: needs "answers"'),
        ('{"prompt": "p", "answers": "a"}\n', 'line 1: needs "answers"'),
        (
            '{"prompt": "p", "answers": ["a"]}\n{"prompt": "p", "answers": ["b"]}\n',
            "line 2: a second good set",
        ),
        ('{"prompt": "z", "answers": ["a"]}\n', "none of its prompts is one of answers's, such as 'p'"),
        ("[1]\n", "line 1: expected an object, not list"),
    ],
)
def test_bad_good_sets_are_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        record(write(tmp_path, WORKED), write(tmp_path, text, "good.jsonl"))
    assert words in str(caught.value)


def test_a_directory_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no samples\.jsonl"):
        record(tmp_path)
