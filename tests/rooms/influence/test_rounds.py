"""Chains that go on until they are stable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rooms.influence.test_tokens import sentences

from postgrad.core.config import validate
from postgrad.core.errors import ConfigError
from postgrad.influence.api import run
from postgrad.influence.config import ValidateConfig
from postgrad.influence.multi import run_checkpoints
from postgrad.influence.state import ChainFiles

ROUNDS: dict[str, Any] = {
    "method": "langevin",
    "chains": 2,
    "draws": 8,
    "max_draws": 300,
    "burn_in": 3,
    "thin": 1,
    "min_ess": 60,
}
ROUNDS |= {"min_agreement": -1.0, "max_r_hat": 2.0}


def test_the_draws_are_those_of_a_run_that_knew_how_many_it_takes() -> None:
    module, train, queries = sentences()
    options = ROUNDS | {"min_ess": 18, "thin": 4}
    found = run(module, train, queries, **options)
    assert found.draws is not None
    size = found.draws.train.shape[1]
    assert size in (16, 32, 64, 128, 256)  # 2 chains: at least 9
    assert found.diagnostics["diagnostics/ess"] >= 18
    assert [note.split()[0] for note in found.notes] == [str(n) for n in (8, 16, 32, 64, 128) if n < size]
    assert "draws of each chain were not enough (ess " in found.notes[0]
    known = run(module, train, queries, **options | {"draws": size, "max_draws": 0})
    assert torch.equal(found.scores, known.scores)
    assert found.diagnostics["diagnostics/agreement"] == known.diagnostics["diagnostics/agreement"]
    assert found.tokens is not None
    assert known.tokens is not None
    torch.testing.assert_close(found.tokens.query, known.tokens.query)


def test_at_the_most_draws_it_stops_and_says_that_they_do_not_suffice() -> None:
    module, train, queries = sentences()
    found = run(module, train, queries, **ROUNDS | {"max_draws": 20, "check_step": False})
    assert found.draws is not None
    assert found.draws.train.shape[1] == 20
    assert any(problem.startswith("ess is") for problem in found.problems)


def test_checkpoints_take_no_rounds() -> None:
    with pytest.raises(ConfigError, match="max_draws is for one model"):
        run_checkpoints("nowhere", ["a text"], ["another"], method="langevin", max_draws=500)


def test_a_method_without_rounds_refuses_them() -> None:
    with pytest.raises(
        ConfigError, match=r"max_draws has no effect with method stein: give draws, or one of langevin"
    ):
        run(*sentences(), max_draws=500)
    mixed = {"methods": "stein,sgld", "max_draws": 500}
    assert validate(ValidateConfig, mixed).most_draws == 500
    with pytest.raises(ConfigError, match="no effect with method stein, ekfac"):
        validate(ValidateConfig, mixed | {"methods": "stein,ekfac"})


def test_rounds_go_on_after_a_stop_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second chain of a later round, when the first has gone further than the rounds that are judged again."""
    module, train, queries = sentences()
    whole: list[tuple[int, float]] = []
    expected = run(module, train, queries, log=lambda s, m: whole.append((s, m["chain/loss"])), **ROUNDS)
    keep = ChainFiles.keep

    def stopping(self: Any, name: str, chain: Any, *, now: bool = False) -> None:
        if name == "chain-1" and chain.num_draws == 20:
            keep(self, name, chain, now=True)
            raise KeyboardInterrupt
        keep(self, name, chain, now=now)

    seen: list[tuple[int, float]] = []
    monkeypatch.setattr(ChainFiles, "keep", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(
            module,
            train,
            queries,
            state=tmp_path,
            log=lambda s, m: seen.append((s, m["chain/loss"])),
            **ROUNDS,
        )
    monkeypatch.setattr(ChainFiles, "keep", keep)
    assert ChainFiles(tmp_path).num_draws() == 32 + 20 == len(seen)
    found = run(
        module, train, queries, state=tmp_path, log=lambda s, m: seen.append((s, m["chain/loss"])), **ROUNDS
    )
    assert torch.equal(found.scores, expected.scores)
    assert found.tokens is not None
    assert expected.tokens is not None
    assert torch.equal(found.tokens.train, expected.tokens.train)
    assert (found.notes, seen) == (expected.notes, whole)
