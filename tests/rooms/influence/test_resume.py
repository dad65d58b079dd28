"""Chains that go on after their process was stopped give the scores of a run that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rooms.influence.problems import regression
from tests.rooms.influence.test_tokens import sentences
from torch import nn

from postgrad.cli import main
from postgrad.core.errors import ConfigError, RunError
from postgrad.core.models import embedded_model, save
from postgrad.core.models.config import EmbeddedConfig
from postgrad.core.run import Run
from postgrad.influence import state
from postgrad.influence.api import run
from postgrad.influence.result import Result
from postgrad.influence.state import ChainFiles

QUICK: dict[str, Any] = {"method": "langevin", "chains": 2, "draws": 19, "burn_in": 3, "thin": 2}


class StoppedError(Exception):
    """In place of a kill."""


def assert_same(one: Result, other: Result) -> None:
    pairs = [(one.scores, other.scores), (one.errors, other.errors), (one.correlation, other.correlation)]
    assert one.tokens is not None
    assert other.tokens is not None
    pairs += [(one.tokens.query, other.tokens.query), (one.tokens.train, other.tokens.train)]
    for a, b in pairs:
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)
    for key, value in one.diagnostics.items():
        assert key.startswith("time/") or value == other.diagnostics[key], key


@pytest.mark.parametrize(
    "options", [{}, {"method": "sgld"}, {"method": "rmsprop", "gradient_examples": 4}, {"method": "laplace"}]
)
def test_a_run_that_is_stopped_anywhere_gives_the_same_bits(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped again and again: in burn-in, between draws, between chains, in the chains with half the step; before and after
    the state is written."""
    module, train, queries = sentences()
    options = QUICK | options
    whole = run(module, train, queries, **options)
    monkeypatch.setattr(state, "_EVERY_S", 0.0)
    monkeypatch.setattr(state, "_SHARE", 1e9)
    keep, calls, stops = ChainFiles.keep, 0, 0

    def stopping(self: Any, name: str, chain: Any, *, now: bool = False) -> None:
        nonlocal calls
        calls += 1
        if calls % 14 == 0:
            raise StoppedError
        keep(self, name, chain, now=now)
        if calls % 23 == 0:
            raise StoppedError

    monkeypatch.setattr(ChainFiles, "keep", stopping)
    while True:
        try:
            found = run(module, train, queries, state=tmp_path / "chains", **options)
            break
        except StoppedError:
            stops += 1
    assert stops >= 2 if options.get("method") == "laplace" else stops > 10
    assert_same(whole, found)
    ChainFiles(tmp_path / "chains").remove()
    assert not (tmp_path / "chains").exists()


def test_layers_without_axes_go_on_too(tmp_path: Path) -> None:
    """A norm has eigenvalues alone."""
    _, train, queries = sentences()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
    train.module = queries.module = module
    options = QUICK | {"parameters": ".", "check_step": False}
    expected = run(module, train, queries, state=tmp_path, **options)
    (tmp_path / "chain-1.safetensors").unlink()
    assert torch.equal(run(module, train, queries, state=tmp_path, **options).scores, expected.scores)


def test_draws_are_told_once(tmp_path: Path) -> None:
    module, train, queries = sentences()
    seen: list[tuple[int, float]] = []
    options = QUICK | {"check_step": False}

    def log(step: int, metrics: Any) -> None:
        if step == 25 and len(seen) == 25:
            raise StoppedError
        seen.append((step, metrics["chain/loss"]))

    with pytest.raises(StoppedError):
        run(module, train, queries, state=tmp_path, log=log, **options)
    known = ChainFiles(tmp_path).num_draws()
    assert known == 19  # the first chain, which is kept when it is done
    del seen[known:]
    seen_before = len(seen)
    run(module, train, queries, state=tmp_path, log=lambda s, m: seen.append((s, m["chain/loss"])), **options)
    assert seen_before == 19
    whole: list[tuple[int, float]] = []
    run(module, train, queries, log=lambda s, m: whole.append((s, m["chain/loss"])), **options)
    assert seen == whole


def test_other_input_is_refused_by_name(tmp_path: Path) -> None:
    module, train, queries = regression()
    weight = module.weight.detach().clone()
    options = QUICK | {"check_step": False}
    run(module, train, queries, state=tmp_path, **options)
    with pytest.raises(ConfigError, match="begun with other settings\\. Give the same"):
        run(module, train, queries, state=tmp_path, **options, seed=1)
    with pytest.raises(ConfigError, match="begun with other training examples"):
        run(module, queries, queries, state=tmp_path, **options)
    with torch.no_grad():
        module.weight[0, 0] += 1e-6
    with pytest.raises(ConfigError, match="begun with other model"):
        run(module, train, queries, state=tmp_path, **options)
    with torch.no_grad():
        module.weight.copy_(weight)
    (tmp_path / "chain-1.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RunError, match=r"chain-1.safetensors is damaged: .*Delete it"):
        run(module, train, queries, state=tmp_path, **options)
    (tmp_path / "chain-1.safetensors").unlink()
    (tmp_path / ".tmp-chain-1-1").write_bytes(b"half")
    again = run(module, train, queries, state=tmp_path, **options)
    assert torch.equal(again.scores, run(module, train, queries, **options).scores)
    assert not list(tmp_path.glob(".tmp-*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="a file is in the way"):
        run(module, train, queries, state=tmp_path / "file", **options)


# -- command line ----------------------------------------------------------------------------------------------------

FRUITS = ("plums", "figs", "dates", "limes", "pears")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command over a small model, without --out."""
    root = tmp_path_factory.mktemp("resume")
    rows = [
        {"id": fruit, "prompt": f"What is {fruit}?", "completion": f"{fruit} is fruit"} for fruit in FRUITS
    ]
    sizes = EmbeddedConfig(
        hidden_size=16, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16, intermediate_size=16, steps=20,
        batch_size=5,
    )  # fmt: skip
    pairs = [(row["prompt"], row["completion"]) for row in rows]
    save(embedded_model(pairs, sizes, device="cpu", cache_dir=root / "cache"), root / "model")
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (root / "query.jsonl").write_text(json.dumps(rows[0] | {"id": "q"}) + "\n", encoding="utf-8")
    found = ["influence", "run", str(root / "model"), "--train", str(root / "train.jsonl"), "--device", "cpu"]
    found += [
        "--query",
        str(root / "query.jsonl"),
        "--method",
        "langevin",
        "--chains",
        "2",
        "--draws",
        "40",
        "--burn-in",
        "4",
    ]
    found += [
        "--method",
        "langevin",
        "--thin",
        "3",
        "--min-ess",
        "0",
        "--max-r-hat",
        "99",
        "--max-drift",
        "1",
        "--min-agreement",
        "-1",
    ]
    return found


def stopped_by(
    number: signal.Signals, words: list[str], out: Path, due: Callable[[], bool]
) -> tuple[int, str]:
    """Exit code and output of the command in a process of its own that gets this signal when it is due."""
    command = [sys.executable, "-m", "postgrad", *words, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not due():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.send_signal(number)
    return process.wait(timeout=300), process.communicate()[0]


def test_interrupted_and_killed_the_command_goes_on_to_the_same_scores(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"

    def num_rows() -> int:
        path = out / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    code, said = stopped_by(signal.SIGINT, words, out, lambda: num_rows() >= 8)
    assert code == 130
    assert f"--out {out} --resume" in said
    assert Run.open(out).status == "interrupted"
    assert 8 <= num_rows() < 40
    assert [path.name for path in sorted((out / "chains").iterdir())] == [
        "chain-0.safetensors",
        "chain.losses",
        "origin.safetensors",
    ]
    code, _ = stopped_by(signal.SIGKILL, [*words, "--resume"], out, lambda: num_rows() >= 50)
    assert code == -signal.SIGKILL
    assert Run.open(out).status == "interrupted"
    resumed = [*words, "--out", str(out), "--resume"]
    assert main([*resumed, "--seed", "1"]) == 2
    assert "was begun with other options" in capsys.readouterr().err
    other = [str(out.parent / "more.jsonl") if word.endswith("query.jsonl") else word for word in resumed]
    (out.parent / "more.jsonl").write_text('{"text": "plums and figs"}\n', encoding="utf-8")
    assert main(other) == 2
    assert "begun with other queries" in capsys.readouterr().err
    assert Run.open(out).status == "interrupted"

    assert main(resumed) == 0
    assert main([*words, "--out", str(whole)]) == 0
    assert not (out / "chains").exists()
    assert (out / "scores.jsonl").read_bytes() == (whole / "scores.jsonl").read_bytes()
    first, second = (json.loads((path / "result.json").read_text()) for path in (out, whole))
    for record in (first, second):
        del record["diagnostics"]["time/attribute_s"]
    assert first == second
    rows = [Run.open(path).metrics() for path in (out, whole)]
    assert rows[0][:-1] == rows[1][:-1]
    assert [row["step"] for row in rows[0]] == list(range(81))
    capsys.readouterr()
    assert main(resumed) == 2
    assert "is finished" in capsys.readouterr().err


def test_what_cannot_be_resumed_is_said(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words, "--out", str(tmp_path / "none"), "--resume"]
    assert main(words) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert main([*words, "--method", "ekfac"]) == 2
    assert "keeps nothing before its end" in capsys.readouterr().err
