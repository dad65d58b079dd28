"""Chains that go on after their process was stopped give the scores of a run that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rooms.influence.problems import regression
from tests.rooms.influence.test_tokens import sentences

from postgrad.core.errors import ConfigError, RunError
from postgrad.influence import checkpoints
from postgrad.influence.api import run
from postgrad.influence.checkpoints import ChainFiles
from postgrad.influence.result import Result

QUICK: dict[str, Any] = {"chains": 2, "draws": 19, "burn_in": 3, "thin": 2}


class Stopped(Exception):
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
    monkeypatch.setattr(checkpoints, "_EVERY_S", 0.0)
    monkeypatch.setattr(checkpoints, "_SHARE", 1e9)
    keep, calls, stops = ChainFiles.keep, 0, 0

    def stopping(self: Any, name: str, chain: Any, *, now: bool = False) -> None:
        nonlocal calls
        calls += 1
        if calls % 14 == 0:
            raise Stopped
        keep(self, name, chain, now=now)
        if calls % 23 == 0:
            raise Stopped

    monkeypatch.setattr(ChainFiles, "keep", stopping)
    while True:
        try:
            found = run(module, train, queries, state=tmp_path / "chains", **options)
            break
        except Stopped:
            stops += 1
    assert stops >= 2 if options.get("method") == "laplace" else stops > 10
    assert_same(whole, found)
    ChainFiles(tmp_path / "chains").remove()
    assert not (tmp_path / "chains").exists()


def test_draws_are_told_once(tmp_path: Path) -> None:
    module, train, queries = sentences()
    seen: list[tuple[int, float]] = []
    options = QUICK | {"check_step": False}

    def log(step: int, metrics: Any) -> None:
        if step == 25 and len(seen) == 25:
            raise Stopped
        seen.append((step, metrics["chain/loss"]))

    with pytest.raises(Stopped):
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
