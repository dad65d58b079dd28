"""A small model with memory, for all tests of the room."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.rooms.memory.small import PAIRS, TEXTS

from postgrad.core.models import embedded_model, load, save
from postgrad.core.models.config import EmbeddedConfig
from postgrad.core.models.memory import MemoryConfig, attach
from postgrad.memory.config import ProfileConfig
from postgrad.memory.profiling import profile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with two memory layers and a background profile."""
    root = tmp_path_factory.mktemp("memory")
    sizes = EmbeddedConfig(
        hidden_size=32, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=64, steps=20
    )
    model = embedded_model(PAIRS, sizes, device="cpu", cache_dir=root / "cache")
    attach(
        model.module, MemoryConfig(layers=(1, 3), num_slots=400, num_heads=2, top_k=4, key_dim=16, scale=1.0)
    )
    path = root / "model"
    save(model, path)
    found = profile(load(path, device="cpu"), TEXTS, ProfileConfig(batches=20, batch_tokens=128))
    found.save(path)
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))
