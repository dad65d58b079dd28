"""`postgrad memory profile`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from postgrad.core.config import validate
from postgrad.memory.config import ProfileConfig


def main(model: Path, background: Path, device: str, options: Mapping[str, Any]) -> int:
    """Counts which slots the background uses, and keeps it with the model; see `postgrad memory profile --help`."""
    config = validate(ProfileConfig, options)

    from postgrad.core.models import load
    from postgrad.memory.data import read_texts
    from postgrad.memory.profiling import profile

    texts = read_texts(background)
    found = profile(load(model, device=device), texts, config, _progress)
    path = found.save(model)
    for name, counts in found.batch_counts.items():
        used = int((counts > 0).sum())
        print(
            f"{name}: {used:,} of {len(counts):,} slots are used by the background ({found.num_batches} batches)"
        )
    if found.num_batches < config.batches:
        print(
            f"note: the texts filled {found.num_batches} batches of {config.batch_tokens} tokens, not {config.batches}"
        )
    print(f"profile: {path}")
    return 0


def _progress(done: int, total: int) -> None:
    if done == total or done % max(1, total // 5) == 0:
        print(f"background: {done}/{total} batches", flush=True)
