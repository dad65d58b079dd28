"""What one of the ranks of `test_shard.py` does: the same as an unsharded model, on its columns of the tables."""

from __future__ import annotations

import os
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from postgrad.core.errors import ModelError
from postgrad.core.models import Model, load, save
from postgrad.core.models.memory.patch import apply_patch, fingerprint, read_patch, tables
from postgrad.core.models.memory.shard import own_columns, shard_values
from postgrad.memory.batches import encode_texts, pad
from postgrad.memory.config import HealConfig, LearnConfig
from postgrad.memory.data import Fact
from postgrad.memory.healing import heal
from postgrad.memory.learning import learn
from postgrad.memory.profiling import Profile
from postgrad.memory.rivals import Rival
from postgrad.memory.sparse import SparseLearner

TEXTS = ["The capital of Zorn is Plim.", "Zorn's capital city: Plim."]


class Silent:
    """Logs nothing."""

    def log(self, step: int, metrics: Any) -> None: ...

    def log_samples(self, step: int, rows: Any) -> None: ...


def teach(model: Model, folder: Path, **options: Any) -> Any:
    config = LearnConfig(**{"budget": 16, "updates": 3, **options})
    batch = pad(model, encode_texts(model, TEXTS, 64, cut=False))
    return SparseLearner(model, Profile.load(folder, model), config).learn(batch, {"texts": TEXTS})


def check(folder: Path, mesh: Any) -> None:
    whole, sharded = load(folder, device="cpu"), load(folder, device="cpu")
    shard_values(sharded.module, mesh)
    with pytest.raises(ModelError, match="sharded already"):
        shard_values(sharded.module, mesh)
    assert fingerprint(sharded.module) == fingerprint(whole.module)
    assert sharded.num_parameters == whole.num_parameters
    for name, table in tables(sharded.module).items():
        full, own = tables(whole.module)[name], own_columns(table.detach())
        assert own.untyped_storage().nbytes() * mesh.size() == full.untyped_storage().nbytes()
        assert torch.equal(own, full.detach().chunk(mesh.size(), 1)[mesh.get_local_rank()])
    batch = pad(whole, encode_texts(whole, TEXTS, 64, cut=False))
    with torch.no_grad():
        expected, found = (model.module(input_ids=batch.tokens).logits for model in (whole, sharded))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)

    check_edits(folder, mesh, {"lr": 1.0, "max_grad_norm": 0.01})
    check_edits(folder, mesh, {"lr": 0.1, "optimizer": "adamw", "updates": 1})
    taught = teach(whole, folder, lr=1.0).patch
    apply_patch(sharded.module, taught)
    copy = folder.parent / "saved"
    save(sharded, copy)
    loaded = load(copy, device="cpu")
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], tensor), name
    with pytest.raises(ModelError, match="needs whole value tables"):
        heal(sharded, TEXTS, HealConfig(steps=1))
    with pytest.raises(ModelError, match="needs whole value tables"):
        Rival(sharded, LearnConfig(method="full"))


def check_edits(folder: Path, mesh: Any, options: dict[str, Any]) -> None:
    whole, sharded = load(folder, device="cpu"), load(folder, device="cpu")
    shard_values(sharded.module, mesh)
    adamw = options.get("optimizer") == "adamw"
    expected, found = (teach(model, folder, **options) for model in (whole, sharded))
    assert found.losses == pytest.approx(expected.losses, abs=1e-3 if adamw else 1e-6)
    for name, change in expected.patch.changes.items():
        rows, old, new = found.patch.changes[name]
        assert torch.equal(rows, change.rows)
        assert torch.equal(old, change.old)
        apart = (new - change.new).abs()
        # AdamW divides a gradient by its size, so rounding decides over the few that nearly cancel out
        assert float(apart.quantile(0.99) if adamw else apart.max()) < 1e-6
    with pytest.raises(ModelError, match="have been changed by others"):
        apply_patch(sharded.module, found.patch)  # all ranks refuse, none has written
    apply_patch(sharded.module, found.patch, undo=True)
    apply_patch(whole.module, expected.patch, undo=True)
    for name, table in tables(sharded.module).items():
        original = tables(whole.module)[name].detach().chunk(mesh.size(), 1)[mesh.get_local_rank()]
        assert torch.equal(own_columns(table.detach()), original)


def check_stream(folder: Path, mesh: Any) -> None:
    stream = folder.parent / "stream"
    if dist.get_rank() == 0:
        shutil.copytree(folder, stream)
    dist.barrier()
    taught = load(stream, device="cpu")
    shard_values(taught.module, mesh)
    facts = [Fact("1", (TEXTS[0],)), Fact("2", (TEXTS[1],))]
    learn(taught, stream, facts, LearnConfig(budget=16, updates=2, lr=0.5), Silent())
    dist.barrier()
    files = sorted((stream / "memory" / "patches").iterdir())
    assert [file.name for file in files] == ["000001.safetensors", "000002.safetensors"]
    assert read_patch(files[0]).facts["facts"] == ["1"]
    again = load(stream, device="cpu")  # the patches are of whole rows
    for name, table in tables(taught.module).items():
        part = tables(again.module)[name].detach().chunk(mesh.size(), 1)[mesh.get_local_rank()]
        assert torch.equal(own_columns(table.detach()), part)


if __name__ == "__main__":
    size, this = int(sys.argv[1]), int(sys.argv[2])
    folders = [Path(word) for word in sys.argv[3:]]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = f"file://{folders[0].parent / 'rendezvous'}"
    dist.init_process_group(
        "gloo", init_method=store, world_size=size, rank=this, timeout=timedelta(seconds=60)
    )
    mesh = init_device_mesh("cpu", (size,))
    try:
        for folder in folders:
            check(folder, mesh)
        check_stream(folders[0], mesh)
    finally:
        dist.destroy_process_group()
