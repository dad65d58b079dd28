"""Value tables sharded over two processes: the same logits, patches and files as whole ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from postgrad.core.errors import ModelError
from postgrad.core.models import embedded_model, save
from postgrad.core.models.config import EmbeddedConfig
from postgrad.core.models.memory import MemoryConfig, attach
from postgrad.core.models.memory.shard import columns_per_rank, shard_values
from postgrad.memory.config import LearnConfig, ProfileConfig
from postgrad.memory.profiling import profile
from postgrad.memory.sparse import _State

PAIRS = [(f"What is {a} plus {b}?", str(a + b)) for a in range(6) for b in range(6)]
WORKER = Path(__file__).with_name("sharded_worker.py")
SIZES = EmbeddedConfig(
    hidden_size=32, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=64, steps=5
)


def test_two_ranks_do_what_one_does(tmp_path: Path) -> None:
    """Tables of their own and one that two layers share. A rank that waits for another one too long fails."""
    folders: list[Path] = []
    for shared in (False, True):
        model = embedded_model(PAIRS, SIZES, device="cpu", cache_dir=tmp_path / "cache")
        sizes = {"num_slots": 400, "num_heads": 2, "top_k": 4, "key_dim": 16, "scale": 1.0}
        attach(model.module, MemoryConfig(layers=(1, 3), shared_values=shared, **sizes))
        folders.append(tmp_path / f"shared-{shared}" / "model")
        save(model, folders[-1])
        texts = [f"{question}\n{answer}" for question, answer in PAIRS]
        profile(model, texts, ProfileConfig(batches=20, batch_tokens=128)).save(folders[-1])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), "2", str(rank), *map(str, folders)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for process, output in zip(ranks, outputs, strict=True):
        assert process.returncode == 0, output


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_optimizer_of_columns_is_that_of_the_rows(optimizer: Literal["sgd", "adamw"]) -> None:
    generator = torch.Generator().manual_seed(0)
    config = LearnConfig(optimizer=optimizer)
    whole, left, right = (_State(config) for _ in range(3))
    for rows in ([1, 4, 9], [4, 9, 11], [1, 11, 12]):
        gradient, at = torch.randn(3, 8, generator=generator), torch.tensor(rows)
        parts = [
            state.step("table", at, half)
            for state, half in zip((left, right), gradient.chunk(2, 1), strict=True)
        ]
        assert torch.equal(torch.cat(parts, 1), whole.step("table", at, gradient))


def test_a_model_without_memory_and_widths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ModelError, match="no memory layers"):
        shard_values(torch.nn.Linear(2, 2), None)  # type: ignore[arg-type]
    assert columns_per_rank(96, 3) == 32
    with pytest.raises(ModelError, match="width 30 cannot be cut into 4 .* 1, 2, 3, 5, 6, 10, 15, 30[.]"):
        columns_per_rank(30, 4)
