"""`postgrad scaling …` in an empty folder: what it prints, writes, refuses, and what it does not import."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import postgrad.cli
from postgrad.cli import main
from postgrad.core.config import Config
from postgrad.core.run import Run
from postgrad.scaling.config import ScalingConfig

SOURCE = Path(postgrad.cli.__file__).parents[2]
CEILING, EXPONENT, MIDPOINT, INITIAL, SIGMA = 0.62, 1.5, 1500.0, 0.2, 0.01
HOURS = np.linspace(100, 16000, 60)


def law(compute: np.ndarray, ceiling: float = CEILING) -> np.ndarray:
    """ScaleRL, eq. 1, written out again."""
    return INITIAL + (ceiling - INITIAL) / (1 + (MIDPOINT / compute) ** EXPONENT)


def write_log(
    name: str, reward: np.ndarray | list[Any], compute: np.ndarray = HOURS, x: str = "gpu_hours"
) -> str:
    rows = "".join(f"{c!r},{r}\n" for c, r in zip(compute.tolist(), reward, strict=True))
    Path(name).write_text(f"{x},eval/acc\n{rows}")
    return name


def noise(seed: int, size: int = len(HOURS)) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, SIGMA, size)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with one log, as the current directory."""
    monkeypatch.chdir(tmp_path)
    write_log("log.csv", law(HOURS) + noise(0))
    return tmp_path


def run(*words: str) -> int:
    return main(["scaling", *words])


QUICK = ("--bootstrap", "100")
"""Where no interval is looked at."""


def strict(text: str) -> Any:
    """JSON without NaN and Infinity."""

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


class Nothing(Config):
    """No options."""


# -- what the verbs say ------------------------------------------------------------------------------------


def test_fit_finds_the_law_and_writes_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "log.csv", "--json") == 0
    record = strict(capsys.readouterr().out)
    assert record["status"] == "identified"
    assert record["ceiling"]["low"] < CEILING < record["ceiling"]["high"]
    assert record["exponent"]["low"] < EXPONENT < record["exponent"]["high"]
    assert abs(record["ceiling"]["value"] - CEILING) < 4 * SIGMA / math.sqrt(20)
    out = folder / "runs" / "scaling" / "log"
    assert strict((out / "fit.json").read_text()) == record
    assert record["curve"]["reward"] == [
        float(line.split(",")[1]) for line in Path("log.csv").read_text().split()[1:]
    ]
    assert Run.open(out).info["kind"] == "scaling.fit"
    assert Run.open(out).status == "finished"
    (row,) = Run.open(out).metrics()
    assert row["scaling/ceiling_low"] == record["ceiling"]["low"]


def test_the_page_and_the_figures_of_a_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "log.csv", "--out", "out") == 0
    printed = capsys.readouterr().out
    page = (folder / "out" / "report.html").read_text()
    verdict = next(line for line in printed.splitlines() if line.startswith("Ceiling A = "))
    assert verdict in page
    assert "report: out/report.html" in printed
    assert 'class="status finished"' in page
    for useless in ("0 steps", "<h2>Metrics</h2>", "from its resolved config"):
        assert useless not in page
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "base64" not in page
    for name in ("law", "law_log", "residuals"):
        assert (folder / "out" / "figures" / f"{name}.svg").read_text().startswith("<?xml")
        png = (folder / "out" / "figures" / f"{name}.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(png[16:20]) == 1840
    rows = list(csv.DictReader((folder / "out" / "figures" / "law.csv").read_text().splitlines()))
    points = [float(row["reward"]) for row in rows if row["reward"]]
    np.testing.assert_allclose(points, law(HOURS) + noise(0))
    forecast = [(float(row["GPU-hours"]), float(row["forecast"])) for row in rows if row["forecast"]]
    assert forecast[0][0] == 16000
    assert forecast[-1][0] == pytest.approx(4 * 16000)


def test_the_report_can_be_written_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log("other.csv", law(HOURS, 0.5) + noise(1))
    assert run("fit", "log.csv", "--out", "fit", *QUICK) == 0
    assert run("compare", "log.csv", "other.csv", "--out", "compare", *QUICK) == 0
    assert run("backtest", "log.csv", "--out", "backtest", "--shares", "0.3,0.6", *QUICK) == 0
    Path("log.csv").unlink()
    for name in ("fit", "compare", "backtest"):
        page, figures = folder / name / "report.html", folder / name / "figures"
        before = page.read_bytes(), sorted(path.name for path in figures.iterdir())
        page.unlink()
        shutil.rmtree(figures)
        capsys.readouterr()
        assert main(["report", name]) == 0
        assert capsys.readouterr().out == f"{name}/report.html\n"
        assert (page.read_bytes(), sorted(path.name for path in figures.iterdir())) == before


def test_predict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            "predict",
            "log.csv",
            "--at",
            "32000",
            "--at",
            "5000",
            "--reach",
            "0.5",
            "--reach",
            "0.9",
            "--json",
        )
        == 0
    )
    record = strict(capsys.readouterr().out)
    assert [item["compute"] for item in record["predictions"]] == [32000, 5000]
    for item in record["predictions"]:
        truth = law(np.array([item["compute"]]))[0]
        assert item["reward"]["low"] < truth < item["reward"]["high"]
        assert item["evaluation"]["low"] < item["reward"]["low"]
    half = record["compute_to_reach"]["0.5"]  # the law solved for C by hand: C_mid·((A−R)/(R−R0))^(−1/B)
    truth = MIDPOINT * ((CEILING - 0.5) / (0.5 - INITIAL)) ** (-1 / EXPONENT)
    assert half["low"] < truth < half["high"]
    assert record["compute_to_reach"]["0.9"]["value"] is None  # above the ceiling
    assert run("predict", "log.csv", "--reach", "0.9", "--price", "2", "--currency", "€") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^0\.9 +out of reach +–$", printed, re.M)
    hours, cost = re.search(r"^90 % of A +([\d,]+) \[.*\] +€([\d,]+) \[", printed, re.M).groups()  # type: ignore[union-attr]
    assert float(cost.replace(",", "")) == pytest.approx(2 * float(hours.replace(",", "")), rel=0.01)
    assert re.search(r"^32,000 ", printed, re.M)
    assert not Path("runs").exists()


def test_compare(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log("better.csv", law(HOURS, 0.7) + noise(1))
    assert run("compare", "log.csv", "better.csv", "--json") == 0
    record = strict(capsys.readouterr().out)
    (pair,) = record["comparisons"]
    assert (pair["first"], pair["second"], pair["outcome"]) == ("better", "log", "higher ceiling")
    assert pair["ceiling_difference"]["low"] < 0.08 < pair["ceiling_difference"]["high"]
    out = folder / "runs" / "scaling" / "log-vs-better"
    assert strict((out / "comparison.json").read_text()) == record
    page = (out / "report.html").read_text()
    assert "better than log" in page
    assert (out / "figures" / "laws_log.png").stat().st_size > 5000


def test_backtest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("backtest", "log.csv", "--shares", "0.05,0.5", "--json") == 0
    record = strict(capsys.readouterr().out)
    early, half = record["beginnings"]
    assert (early["status"], early["rmse"]) == ("too few points", None)
    assert (half["num_fitted"], half["num_scored"]) == (30, 30)
    assert half["rmse"] < half["rmse_last"]
    out = folder / "runs" / "scaling" / "log-backtest"
    assert strict((out / "backtest.json").read_text()) == record
    assert sorted(path.name for path in (out / "figures").iterdir()) == [
        "backtest.csv",
        "backtest.png",
        "backtest.svg",
    ]


def test_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "log.csv", "--json") == 0
    record = strict(capsys.readouterr().out)
    assert record["now"] == 16000
    assert record["gain_of_doubling"]["low"] < law(np.array([32000.0]))[0] - law(np.array([16000.0]))[0]
    assert list(record["shares"]) == ["0.9", "0.95", "0.99"]
    assert run("plan", "log.csv") == 0
    assert "You can stop" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_the_report_of_an_rl_run_forecasts_where_it_can(folder: Path) -> None:
    for name, rewards in (("long", law(HOURS) + noise(6)), ("short", [0.1, 0.2, 0.3])):
        with Run.create(name, Nothing(), command=[], kind="rl.train", seed=0, quiet=True) as rl:
            for step, reward in enumerate(rewards):
                compute = {"compute/train_flops": 1e15 * HOURS[step], "compute/generate_flops": 0.0}
                rl.log(step, {"eval/pass_rate": float(reward), **compute})
        assert main(["report", name]) == 0
    page = Path("long/report.html").read_text()
    assert "Forecast: held-out pass rate over compute" in page
    assert "Ceiling A = 0.6" in page
    assert "<h2>Metrics</h2>" in page
    rows = list(csv.DictReader(Path("long/figures/forecast.csv").read_text().splitlines()))
    assert max(float(row["FLOP"]) for row in rows) == pytest.approx(4 * 16000e15)
    assert "Forecast" not in Path("short/report.html").read_text()
    assert "Pass rate" in Path("short/report.html").read_text()


# -- logs that hold no law ---------------------------------------------------------------------------------


def test_logs_without_a_law_get_an_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rising = law(HOURS) + noise(3)
    logs: dict[str, tuple[list[Any], str]] = {
        "flat": (list(0.3 + noise(1)), "No rise beyond the noise"),
        "constant": ([0.3] * 60, "eval/acc is 0.3 at every point"),
        "falling": (list(0.8 - rising), "eval/acc falls"),
        "gaps": (
            ["nan" if i % 7 == 0 else r for i, r in enumerate(rising)],
            "note: 9 rows with NaN or infinite values dropped",
        ),
    }
    for name, (reward, words) in logs.items():
        assert run("fit", write_log(f"{name}.csv", reward), *QUICK) == 0
        assert words in capsys.readouterr().out, name
        assert words.removeprefix("note: ") in Path(f"runs/scaling/{name}/report.html").read_text(), name
        for verb in ("predict", "plan"):
            assert run(verb, f"{name}.csv", *QUICK) == 0
            assert words in capsys.readouterr().out, (name, verb)
            assert run(verb, f"{name}.csv", "--json", *QUICK) == 0
            strict(capsys.readouterr().out)


def test_logs_that_are_too_short_or_empty_are_refused_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log("three.csv", [0.1, 0.2, 0.3], HOURS[:3])
    write_log("nan.csv", ["nan"] * 60)
    Path("empty.csv").write_text("")
    for name, words in (("three", "3 points of eval/acc"), ("nan", "no finite point"), ("empty", "is empty")):
        for words_of_verb in (
            ["fit"],
            ["predict"],
            ["plan"],
            ["backtest"],
            ["compare", "log.csv"],
            ["fit", "log.csv"],
        ):
            assert run(*words_of_verb, f"{name}.csv") == 2
            streams = capsys.readouterr()
            assert words in streams.err
            assert name in streams.err
            assert "Traceback" not in streams.err
            assert streams.out == ""
    assert not Path("runs").exists()


# -- where it writes ---------------------------------------------------------------------------------------


def test_a_second_fit_replaces_the_first(folder: Path) -> None:
    assert run("fit", "log.csv", "--out", "out", *QUICK) == 0
    first = json.loads(Path("out/fit.json").read_text())
    Path("out/figures/old.svg").write_text("")
    assert run("fit", "log.csv", "--out", "out", "--exclude-above", "8000", *QUICK) == 0
    second = json.loads(Path("out/fit.json").read_text())
    assert sum(first["fitted"]) == 60
    assert second["window"]["last"] <= 8000
    assert sum(second["fitted"]) == int((HOURS <= 8000).sum())
    assert not Path("out/figures/old.svg").exists()
    assert len(Run.open("out").metrics()) == 1
    assert "Hollow" in Path("out/report.html").read_text()


def test_another_run_is_never_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run.create("other", Nothing(), command=[], kind="rl.train", seed=0, quiet=True).finish()
    before = sorted(path.name for path in Path("other").iterdir())
    assert run("fit", "log.csv", "--out", "other") == 2
    assert "other holds a run of another kind (rl.train). Choose another --out" in capsys.readouterr().err
    assert sorted(path.name for path in Path("other").iterdir()) == before
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("x")
    assert run("fit", "log.csv", "--out", "full") == 2
    assert [path.name for path in Path("full").iterdir()] == ["thesis.tex"]
    assert run("fit", "log.csv", "--out", "log.csv") == 2
    assert Path("log.csv").read_text().startswith("gpu_hours")
    # of several logs none is written if one cannot be
    write_log("b.csv", law(HOURS) + noise(4))
    Run.create("all/log", Nothing(), command=[], kind="rl.train", seed=0, quiet=True).finish()
    assert run("fit", "b.csv", "log.csv", "--out", "all") == 2
    assert not Path("all/b").exists()


def test_several_logs_of_one_name_get_folders_of_their_own(folder: Path) -> None:
    for name, ceiling in (("x", 0.5), ("y", 0.7)):
        Path(name).mkdir()
        write_log(f"{name}/log.csv", law(HOURS, ceiling) + noise(2))
    assert run("fit", "x/log.csv", "y/log.csv", "--out", "out", *QUICK) == 0
    found = [json.loads(Path(f"out/log-{i}/fit.json").read_text())["ceiling"]["value"] for i in (1, 2)]
    assert found == pytest.approx([0.5, 0.7], abs=0.03)


def test_a_fit_is_a_log_for_the_other_verbs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "log.csv", "--json") == 0
    first = strict(capsys.readouterr().out)
    assert run("predict", "runs/scaling/log", "--json") == 0
    assert strict(capsys.readouterr().out)["ceiling"] == first["ceiling"]


# -- words -------------------------------------------------------------------------------------------------


def test_help_lists_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, info in ScalingConfig.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        assert option in text
        after = text[text.index(f" {option} ") :].split(" --")[1]
        shown = "none" if info.default is None else info.default
        shown = str(shown).lower() if isinstance(shown, bool) else shown
        shown = f"{shown:.4g}" if isinstance(shown, float) else shown
        assert f"[{shown}]" in after, (option, after)
    assert text.endswith("Show this message and exit.")
    for verb in ("predict", "compare", "backtest", "plan"):
        assert run(verb, "--help") == 0
        assert "--exclude-below FLOAT|auto" in " ".join(capsys.readouterr().out.split())
    assert run("--help") == 0
    assert "..." not in capsys.readouterr().out.split("Commands:")[1]  # no summary is cut off


@pytest.mark.parametrize(
    "option", [["--exclude_below", "3000"], ["--exclude-below", "3000"], ["--exclude_below=3000"]]
)
def test_options_may_be_spelt_either_way(
    folder: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "log.csv", "--json", *option) == 0
    record = strict(capsys.readouterr().out)
    assert record["window"]["first"] == HOURS[HOURS >= 3000][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "log.csv", "--exclude-blow", "3"], r"No such option '--exclude-blow'.*--exclude-below"),
        (["fit", "log.csv", "--method", "gird"], r"method: .*'projection' or 'grid' \(received 'gird'\)"),
        (["fit", "log.csv", "--bootstrap", "3"], r"bootstrap: .*100 \(received 3\)"),
        (["fit", "log.csv", "--x", "gpu-hour"], r"no column 'gpu-hour'. Did you mean 'gpu_hours'\?"),
        (["fit", "log.csv", "--x", "3"], r"no column '3'"),
        (["fit", "log.csv", "--y", "eval/ac"], r"no column 'eval/ac'. Did you mean 'eval/acc'\?"),
        (["fit", "log.csv", "--limits", "1,0"], "LOW below HIGH"),
        (["fit", "log.csv", "--limits", "0,0.3"], r"should lie in 0 to 0\.3, but is"),
        (["fit", "log.csv", "--out", "--json"], "--out needs a value; the next word is '--json'"),
        (["fit", "log.csv", "--price", "--json"], "--price needs a value; the next word is '--json'"),
        (["fit"], "Missing argument 'LOG...'"),
        (["fti", "log.csv"], "No command 'fti'. Did you mean 'fit'"),
        (["fit", "nowhere.csv"], "No log at nowhere.csv"),
        (["compare", "log.csv"], "Give two or more logs"),
        (["compare", "log.csv", "flops.csv"], "log counts compute in GPU-hours, flops in FLOP"),
        (["backtest", "log.csv", "--shares", "half"], "--shares takes numbers between 0 and 1"),
        (["backtest", "log.csv", "--shares", "2"], "between 0 and 1, not 2"),
        (["predict", "log.csv", "--at", "-3"], "--at takes compute above 0, in GPU-hours"),
        (["predict", "log.csv", "--at", "much"], "'much' is not a valid float"),
        (["predict", "log.csv", "--at", "nan"], "--at takes compute above 0, in GPU-hours"),
    ],
)
def test_wrong_words_end_with_2_and_write_nothing(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log("flops.csv", law(HOURS) + noise(5), 1e15 * HOURS, "total_flops")
    assert run(*words) == 2
    streams = capsys.readouterr()
    assert re.search(message, streams.err), streams.err
    assert streams.out == ""
    assert sorted(path.name for path in folder.iterdir()) == ["flops.csv", "log.csv"]


def test_text_stays_text_and_none_is_the_default(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "log.csv", "--price", "1", "--currency", "5", "--ceiling", "none") == 0
    assert re.search(r"^90 % of A .* 5[\d,]+ \[", capsys.readouterr().out, re.M)
    assert run("fit", "log.csv", "--limits", "0,1", "--initial", "first", "--ceiling", "0.62", "--json") == 0
    record = strict(capsys.readouterr().out)
    assert record["ceiling"]["value"] == 0.62
    assert record["initial"]["value"] == record["curve"]["reward"][0]
    assert record["curve"]["limits"] == [0, 1]


# -- what is imported --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["--help"], ["fit", "--help"], ["fit", "log.csv"], ["compare", "log.csv", "log.csv"]]
)
def test_no_torch(folder: Path, words: list[str]) -> None:
    code = (
        "import sys; from postgrad.cli import main; code = main(['scaling', *sys.argv[1:]]);"
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
