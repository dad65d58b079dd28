"""`postgrad mara …` in an empty folder: what it prints, writes, refuses, and what it does not import."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import postgrad.cli
from postgrad.cli import main
from postgrad.core.config import Config
from postgrad.core.glossary import explain
from postgrad.core.run import Run

SOURCE = Path(postgrad.cli.__file__).parents[2]


class Nothing(Config):
    """No options."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table, a run with samples of two phases and a good set, in the current directory."""
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text("answer,ref,reward\nA,0.7,1\nB,0.1,1\nC,0.2,0\n")
    said = {"before": {"p": "aabx", "q": "cdxx"}, "after": {"p": "aaaa", "q": "cccx"}}
    with Run.create("run", Nothing(), command=[], kind="rl.train", seed=0, quiet=True) as run:
        for step, (phase, answers) in enumerate(said.items()):
            rows = [
                {
                    "phase": phase,
                    "prompt_id": p,
                    "prompt": f"question {p}",
                    "completion": c,
                    "correct": c != "x",
                    "score": float(c != "x"),
                    "reward": 1.0 if c != "x" else -1.0,
                }
                for p, text in answers.items()
                for c in text
            ]
            run.log_samples(step, rows)
    good = [{"prompt": "question p", "answers": ["a", "b"]}, {"prompt_id": "q", "answers": ["c", "d"]}]
    Path("good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in good))
    return tmp_path


def run(*words: str) -> int:
    return main(["mara", *words])


def strict(text: str) -> Any:
    """JSON without NaN and Infinity."""

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


# -- explain -------------------------------------------------------------------------------------------------------


def test_explain_says_what_will_happen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "table.csv", "--beta", "0.05,1") == 0
    printed = capsys.readouterr().out
    assert "odds against the rarest, “B”, stay the reference's 7 : 1 whatever β" in printed
    assert re.search(r"^MARA +0\.05 +> 99\.9 % +50 % +50 % +0\.693$", printed, re.M)
    assert re.search(r"^ordinary RL +0\.05 +> 99\.9 % +12\.5 % +87\.5 % +0\.377$", printed, re.M)  # ⅛, ⅞
    assert re.search(r"^“A” ✓ +1 +70 % +87\.5 % ", printed, re.M)
    assert "report: runs/mara/table/report.html" in printed
    assert run("explain", "table.csv", "--beta", "0.05,1", "--json", "--out", "out") == 0
    record = strict(capsys.readouterr().out)
    assert strict((folder / "out" / "explain.json").read_text()) == record
    assert [(o["method"], o["beta"]) for o in record["optima"]][:3] == [
        ("reference", None),
        ("reverse", 0.05),
        ("forward", 0.05),
    ]
    assert record["optima"][1]["rare_given_good"] == pytest.approx(1 / 8)
    rows = Run.open("out").metrics()
    assert [row["optimum/beta"] for row in rows] == [0.05, 1]
    assert rows[0]["optimum/mara/rare_given_good"] == pytest.approx(0.5)


def test_explain_without_a_table_and_with_tau(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "--beta", "0.1", "--json") == 0
    record = strict(capsys.readouterr().out)
    assert record["optima"][1]["rare_given_good"] == pytest.approx(1 / 31)
    assert (folder / "runs" / "mara" / "two-modes" / "report.html").is_file()
    assert run("explain", "table.csv", "--tau", "0", "--json") == 0
    assert strict(capsys.readouterr().out)["optima"][3]["policy"] == pytest.approx([1 / 3] * 3)


# -- measure -------------------------------------------------------------------------------------------------------


def test_measure_compares_the_phases_of_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("measure", "run", "--good", "good.jsonl", "--k", "2", "--out", "out") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ +before +after$", printed, re.M)
    assert re.search(
        r"^different answers / answers +75\.0 % \[75\.0, 75\.0\] +37\.5 % \[25\.0, 50\.0\]$", printed, re.M
    )
    # p: 3 of 4, q: 2 of 4, then 4 and 3
    assert re.search(r"^pass@1 +62\.5 % \[50\.0, 75\.0\] +87\.5 % \[75\.0, 100\.0\]$", printed, re.M)
    # 1 − C(1,2)/6 = 1, 1 − C(2,2)/6 = 5/6
    assert re.search(r"^pass@2 +91\.7 % \[83\.3, 100\.0\] +100\.0 % \[100\.0, 100\.0\]$", printed, re.M)
    assert re.search(r"^coverage of the good set +100\.0 % \S+ \S+ +50\.0 % ", printed, re.M)
    assert re.search(r"^yield \(different good answers\) +4 +2$", printed, re.M)
    assert re.search(r"^OB100 .* +never +never$", printed, re.M)
    assert re.search(r"^change from before +after \(2 prompts\)$", printed, re.M)
    assert re.search(r"^coverage of the good set +-50\.0 points \[-50\.0, -50\.0\]$", printed, re.M)
    page = (folder / "out" / "report.html").read_text()
    assert "+25.0 points [+25.0, +25.0]" in page
    assert "Change on the same prompts" in page
    (row,) = Run.open("out").metrics()
    assert row["diversity/after/unique_fraction"] == 0.375
    unknown = [key for key in row if key != "step" and not explain(key)]
    assert not unknown


def test_measure_as_json_and_several_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.csv").write_text("prompt_id,answer\np,a\np,a\nq,z\nq,y\n")
    assert run("measure", "run", "other.csv", "--json") == 0
    record = strict(capsys.readouterr().out)
    out = folder / "runs" / "mara" / "run-vs-other-diversity"
    assert strict((out / "measure.json").read_text()) == record
    assert [side["name"] for side in record["sides"]] == ["run:before", "run:after", "other"]
    assert record["sides"][2]["metrics"]["unique_fraction"]["value"] == 0.75
    assert record["sides"][2]["metrics"]["pass_at_1"]["value"] is None


# -- both ----------------------------------------------------------------------------------------------------------


def test_the_pages_hold_figures_and_can_be_written_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", "table.csv", "--out", "e") == 0
    assert run("measure", "run", "--out", "m") == 0
    assert {path.stem for path in Path("e/figures").iterdir()} == {
        "distributions",
        "rare_given_good",
        "good_mass",
    }
    assert {path.stem for path in Path("m/figures").iterdir()} == {"pass_at_k", "frequency"}
    Path("table.csv").unlink()
    shutil.rmtree("run")
    for name in ("e", "m"):
        page, figures = Path(name, "report.html"), Path(name, "figures")
        assert len(list(figures.glob("*.png"))) == len(list(figures.glob("*.svg"))) > 0
        before = page.read_bytes(), sorted(path.name for path in figures.iterdir())
        page.unlink()
        shutil.rmtree(figures)
        capsys.readouterr()
        assert main(["report", name]) == 0
        assert capsys.readouterr().out == f"{name}/report.html\n"
        assert (page.read_bytes(), sorted(path.name for path in figures.iterdir())) == before
        assert set(re.findall(r"https?://[^\s\"'<]+", page.read_text())) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }


def test_a_result_replaces_only_its_own_kind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "--out", "out") == 0
    assert run("explain", "table.csv", "--out", "out") == 0
    assert strict(Path("out/explain.json").read_text())["name"] == "table"
    capsys.readouterr()
    assert run("measure", "run", "--out", "run") == 2
    assert "holds a run of another kind (rl.train)" in capsys.readouterr().err
    assert len(Run.open("run").samples()) == 16


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["explian"], "No command 'explian'. Did you mean 'explain'?"),
        (["explain", "none.csv"], "none.csv does not exist"),
        (["explain", "table.csv", "--beta", "0"], "every beta must be positive"),
        (["explain", "table.csv", "--beta", "a,b"], "numbers joined by commas"),
        (["explain", "table.csv", "--tau", "2"], "the greatest is 1. Give --tau"),
        (["explain", "table.csv", "--out", "--json"], "--out needs a value"),
        (["explain", "table.csv", "--log"], "line 2: ref is 0.7, a log-probability above 0"),
        (["measure"], "Missing argument"),
        (["measure", "none"], "none is no table"),
        (["measure", "."], "holds no samples.jsonl"),
        (["measure", "run", "--answers", "fuzzy"], "canonical"),
        (["measure", "run", "--k", "0"], "k: Input should be greater than or equal to 1"),
        (["measure", "run", "--good", "none.jsonl"], "none.jsonl does not exist"),
        (["measure", "run", "--bogus", "1"], "No such option"),
    ],
)
def test_wrong_words_are_answered(
    folder: Path, words: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert answer in captured.err
    assert captured.out == ""
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["explain", "--help"],
        ["measure", "--help"],
        ["explain", "table.csv"],
        ["measure", "run", "--good", "good.jsonl"],
    ],
)
def test_no_torch(folder: Path, words: list[str]) -> None:
    code = (
        "import sys; from postgrad.cli import main; code = main(['mara', *sys.argv[1:]]);"
        "print(code, sorted({'torch', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_training_with_mara_that_cannot_work_is_refused_before_anything_is_done(
    dry: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["rl", "train", "embedded", "--mara.beta", "0", *dry]) == 2
    assert "beta = 0 makes MARA inert" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
