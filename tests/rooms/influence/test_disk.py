"""Training losses at the draws on disk: the same scores, in little memory, and written in pieces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rooms.influence.problems import regression

from postgrad.commands import influence_run
from postgrad.influence import result as results
from postgrad.influence.api import run
from postgrad.influence.result import Result, from_draws
from postgrad.influence.sampler import Draws

QUICK: dict[str, Any] = {"method": "langevin", "draws": 24, "burn_in": 3, "thin": 1, "beta": 1.0}


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"method": "laplace"}, {"draws": 6, "max_draws": 24, "min_ess": 1e6}]
)
def test_scores_are_those_in_memory(chains: int, options: dict[str, Any], tmp_path: Path) -> None:
    module, train, queries = regression()
    options = QUICK | {"chains": chains} | options
    memory, disk = (
        run(module, train, queries, **options),
        run(module, train, queries, **options, state=tmp_path),
    )
    for name in ("scores", "errors", "correlation", "self_scores"):
        torch.testing.assert_close(getattr(disk, name), getattr(memory, name), rtol=0, atol=0, equal_nan=True)
    time = "time/attribute_s"
    assert {**disk.diagnostics, time: 0} == {**memory.diagnostics, time: 0}
    assert disk.draws is not None
    assert memory.draws is not None
    assert torch.equal(disk.draws.train, memory.draws.train)
    assert (tmp_path / "chain.losses").stat().st_size == 4 * chains * 24 * 12
    assert (tmp_path / "half.losses").exists() == ("method" not in options or options["method"] != "laplace")


@pytest.mark.parametrize("chains", [1, 2])
def test_blocks_of_examples_give_what_all_at_once_do(chains: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(chains, 9, 50, generator=generator) + 100
    draws = Draws(
        train, train[..., :3] + torch.randn(chains, 9, 3, generator=generator), torch.ones(chains, 9)
    )
    weights = torch.rand(50, generator=generator)
    whole = from_draws(draws, weights)
    monkeypatch.setattr(results, "BLOCK_BYTES", 8 * chains * 12 * 7)  # 7 examples
    for part, expected in zip(from_draws(draws, weights), whole, strict=True):
        if isinstance(part, float):
            assert part == pytest.approx(expected, rel=1e-9)
        else:
            torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-7, equal_nan=True)


_LIMITED = """
import resource, sys
import torch
from tests.rooms.influence.problems import Regression
from postgrad.influence import result as results
from postgrad.influence.api import run

results.BLOCK_BYTES = 2**22
torch.set_num_threads(1)
count = 60_000
x = torch.randn(count, 4)
module = torch.nn.Linear(4, 1, bias=False)
train, queries = Regression(module, x, x.sum(1)), Regression(module, x[:2], x[:2].sum(1))
train.losses = lambda indices: 0.5 * (train.y - module(x)[:, 0]).square()  # of all, without a list of them
options = dict(method="laplace", chains=2, batch_size=count, beta=1.0)
run(module, train, queries, **options, draws=4)  # whatever is allocated once
held = next(line for line in open("/proc/self/status") if line.startswith("VmData"))
limit = int(held.split()[1]) * 1024 + 60 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    found = run(module, train, queries, **options, draws=150, state=sys.argv[1] or None)
    print(found.scores.shape[1])
except (RuntimeError, MemoryError) as error:
    print("not enough memory" if "memory" in str(error) else repr(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_is_bounded_where_losses_are_on_disk(tmp_path: Path) -> None:
    """72 MB of losses within 60 MiB of memory, mapped files not counted; without a directory they do not fit."""

    def said(state: str) -> str:
        command = [sys.executable, "-c", _LIMITED, state]
        root = Path(__file__).parents[3]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    assert said("") == "not enough memory"
    assert said(str(tmp_path)) == "60000"
    assert (tmp_path / "chain.losses").stat().st_size == 4 * 2 * 150 * 60_000


def test_scores_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(influence_run, "_BATCH", 3)
    scores = torch.arange(10.0).view(2, 5)
    names = [(f"t{n}", "") for n in range(5)]
    found = Result(scores, scores / 10, train=names, queries=[("a", ""), ("b", "")])
    for _ in range(2):  # a second time in place of the first
        influence_run._write_scores(tmp_path, found)
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [(row["query"], row["train"], row["score"]) for row in rows] == [
        (query, f"t{n}", float(scores[q, n])) for q, query in enumerate("ab") for n in range(5)
    ]
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(tmp_path / "scores.parquet").to_pylist() == rows
