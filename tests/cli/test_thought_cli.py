"""`postgrad thought …` in an empty folder: what it prints, writes, refuses, and that a killed run ends with the same bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import postgrad.cli
from postgrad.cli import main
from postgrad.commands.thought_plan import adapter_parameters, autoencoder_parameters
from postgrad.core.glossary import explain
from postgrad.core.models import EmbeddedConfig
from postgrad.core.models.embedded import build
from postgrad.core.models.model import save
from postgrad.core.report import AREAS
from postgrad.core.run import Run
from postgrad.thought.adapter import Adapter
from postgrad.thought.autoencoder import Autoencoder
from postgrad.thought.config import TeamConfig

SOURCE = Path(postgrad.cli.__file__).parents[2]
RECIPE = """
cases = "cases.jsonl"
answer_tokens = 2
[[agents]]
name = "ann"
model = "./left"
[[agents]]
name = "b <i>"
model = "./right"
[autoencoder]
num_thoughts = 6
warmup_steps = 20
ramp_steps = 10
sparse_steps = 20
refit_steps = 10
[adapter]
steps = 20
batch_size = 8
checkpoint_every = 5
hidden = 16
[data]
holdout_fraction = 0.25
"""


def write_inputs(folder: Path) -> None:
    """Two models of different widths, cases and a recipe."""
    for seed, (name, width) in enumerate((("left", 32), ("right", 48))):
        shape = EmbeddedConfig(
            hidden_size=width,
            num_layers=2,
            num_heads=2,
            num_kv_heads=2,
            head_dim=16,
            intermediate_size=48,
            seed=seed,
        )
        save(build([("ab", "1")], shape), folder / name)
    rows = [
        {"id": f"case{i}", "views": {"ann": f"a{i}", "b <i>": f"b{i % 2}"}, "answer": "ab"[i % 2], "whole": f"a{i} b"}
        for i in range(80)
    ]  # fmt: skip
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "team.toml").write_text(RECIPE)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs and a finished run `fit`."""
    folder = tmp_path_factory.mktemp("thought")
    write_inputs(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run("fit", "team.toml", "--out", "fit") == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, and in it."""
    shutil.copytree(fitted, tmp_path / "folder")
    monkeypatch.chdir(tmp_path / "folder")
    return tmp_path / "folder"


def run(*words: str) -> int:
    return main(["thought", *words])


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert run(*words) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert run(*words) == 2
    return capsys.readouterr().err


def strict(text: str) -> Any:
    def fail(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=fail)


def test_fit_leaves_a_run_whose_metrics_are_explained_and_whose_table_has_all_ways(here: Path) -> None:
    found = Run.open("fit")
    assert found.status == "finished"
    keys = {key for row in found.metrics() for key in row if "/" in key}
    assert {"adapter/loss", "adapter/loss_valid", "autoencoder/explained", "eval/thoughts/accuracy"} <= keys
    for key in keys:
        assert explain(key)
        assert key.split("/")[0] in AREAS
    record = strict(Path("fit/result.json").read_text())
    ways = [row["way"] for row in record["evaluation"]["ways"]]
    assert ways == ["thoughts", "alone", "zero", "random", "shuffled", "own", "vote", "text", "raw", "whole"]
    assert sum(record["learned"]["histogram"]) == 6
    page = Path("fit/report.html").read_text()
    assert "Ways of telling" in page
    assert "b &lt;i&gt;" in page
    assert "b <i>" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not Path("fit/work").exists()


def test_eval_repeats_what_fit_measured(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = strict(printed(capsys, "eval", "fit", "--json"))
    for row, first in zip(
        again["ways"], strict(Path("fit/result.json").read_text())["evaluation"]["ways"], strict=True
    ):
        assert row == first
    some = strict(printed(capsys, "eval", "fit", "--ways", "thoughts, alone", "--bits", "2", "--json"))
    assert [row["way"] for row in some["ways"]] == ["thoughts", "alone"]
    assert some["ways"][0]["bits"] == 6 * 2
    assert "alone" in printed(
        capsys, "eval", "fit/team", "--ways", "thoughts,alone", "--cases", "cases.jsonl"
    )


def test_run_asks_all_the_same_or_each_something_else(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (same,) = strict(printed(capsys, "run", "fit", "--prompt", "a1", "--json"))
    assert [agent["view"] for agent in same["agents"]] == ["a1", "a1"]
    words = ("run", "fit", "--view", "a1", "--view", "b1", "--question", "which?")
    (case,) = strict(printed(capsys, *words, "--json"))
    assert [agent["question"] for agent in case["agents"]] == ["which?", "which?"]
    assert "by thoughts" in printed(capsys, *words)
    assert len(strict(printed(capsys, "run", "fit", "--cases", "cases.jsonl", "--json"))) == 80


def test_inspect_draws_who_holds_what_and_takes_thoughts_away(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = strict(
        printed(capsys, "inspect", "fit", "--ablate", "2", "--ablate", "0", "--most", "10", "--json")
    )
    assert found["cases"] == 10
    assert [one["thought"] for one in found["ablated"]] == [2, 0]
    held = torch.tensor(found["held"])
    assert found["sharing"] == (held.T.long() @ held.long()).tolist()
    assert found["histogram"] == [int((held.sum(1) == number).sum()) for number in range(3)]
    page = Path("fit/inspect/report.html").read_text()
    assert page.count("<rect") >= 12
    assert "Without a thought" in page
    assert "case1" in page
    assert "b <i>" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "thought 0" in printed(capsys, "inspect", "fit", "--most", "10", "--out", "elsewhere")
    assert Path("elsewhere/report.html").is_file()


def test_a_run_that_was_killed_goes_on_to_the_same_team(here: Path) -> None:
    words = [sys.executable, "-m", "postgrad", "thought", "fit", "team.toml", "--out", "killed"]
    process = subprocess.Popen(
        words,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    kept = Path("killed/work/adapter-round-1.safetensors")
    while not kept.is_file() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run("fit", "team.toml", "--out", "killed", "--resume") == 0
    for name in ("team/adapter.safetensors", "team/autoencoder.safetensors", "team/team.json"):
        assert Path("killed", name).read_bytes() == Path("fit", name).read_bytes()

    def told(name: str) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in row.items() if key != "time"} for row in Run.open(name).metrics()
        ]

    assert told("killed") == told("fit")


def test_a_dry_run_counts_what_is_trained_and_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, "fit", "team.toml", "--out", "dry", "--dry-run")
    assert not Path("dry").exists()
    config = TeamConfig.model_validate(strict(Path("fit/config.json").read_text()))
    autoencoder = Autoencoder([32, 48], config.autoencoder)
    adapter = Adapter(torch.ones(6, 2, dtype=torch.bool), [32, 48], [1.0, 1.0], config.adapter)
    for module, count in (
        (autoencoder, autoencoder_parameters(config, [32, 48])),
        (adapter, adapter_parameters(config, [32, 48])),
    ):
        assert count == sum(p.numel() for p in module.parameters())
        assert f"{count:,}" in text


def test_tasks_and_their_verifier_stand_in_for_cases(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"a{i}", "answer": "a"}) + "\n" for i in range(40))
    )
    Path("reward.py").write_text("def anything(prompt, completion):\n    return 1.0\n")
    Path("tasks.toml").write_text(
        RECIPE.replace('cases = "cases.jsonl"\n', "")
        + '[[data.tasks]]\nname = "t"\npath = "rows.jsonl"\nreward = "reward.py:anything"\n'
    )
    assert run("fit", "tasks.toml", "--out", "tasks") == 0
    found = strict(Path("tasks/result.json").read_text())["evaluation"]["ways"]
    assert all(row["accuracy"]["mean"] == 1.0 for row in found)
    assert "exclude" not in printed(capsys, "eval", "tasks", "--ways", "alone")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fit",), "No agents."),
        (("fit", "--agents", "./left", "--cases", "cases.jsonl"), "at least two agents"),
        (("fit", "--agents", "./left,./right"), "Nothing to learn from."),
        (("fit", "--agents", "./left,./right", "--cases", "none.jsonl"), "none.jsonl"),
        (("fit", "team.toml", "--agents", "./left,./none"), "cases.jsonl, line 1"),
        (("fit", "team.toml", "--out", "fit"), "already holds a run"),
        (("fit", "--out", "fit", "--resume"), "is finished"),
        (("fit", "team.toml", "--out", "fit", "--resume", "--overwrite"), "give one of them"),
        (("fit", "team.toml", "--out", "x", "--autoencoder.num_thoughts", "4000"), "too few states"),
        (("fit", "team.toml", "--out", "x", "--data.holdout_fraction", "0.001"), "No case is left to measure on"),
        (("fit", "team.toml", "--out", "x", "--adapter.refrence", "text"), "Did you mean 'adapter.reference'?"),
        (("eval", "none"), "none does not exist"),
        (("eval", "fit", "--ways", "thouhts"), "Did you mean 'thoughts'?"),
        (("eval", "fit", "--cases", "prompts.jsonl"), "prompts.jsonl"),
        (("run", "fit"), "Nothing is asked."),
        (("run", "fit", "--view", "a"), "1 --view for 2 agents"),
        (("run", "fit", "--prompt", " "), "A prompt is empty"),
        (("run", "fit", "--prompt", "a", "--question", "b"), "without views it has no place"),
        (("run", "fit", "--prompt", "a", "--view", "b", "--view", "c"), "exclude each other"),
        (("inspect", "fit", "--ablate", "6"), "from 0 to 5"),
    ],
)  # fmt: skip
def test_wrong_words_are_explained_and_leave_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    before = sorted(here.rglob("*"))
    assert message in refused(capsys, *words)
    assert sorted(here.rglob("*")) == before


def test_another_model_in_the_place_of_an_agents_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("right")
    shutil.copytree("left", "right")
    assert "b <i>" in refused(capsys, "run", "fit", "--prompt", "a")
    shutil.rmtree("right")
    assert "right" in refused(capsys, "run", "fit", "--prompt", "a")
