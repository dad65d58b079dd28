"""What `postgrad memory attach --dry-run` and `learn --dry-run` print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from postgrad.commands.runs import describe_size
from postgrad.core.console import print_rows
from postgrad.core.errors import ConfigError, ModelError
from postgrad.core.models.model import resolve_device, resolve_dtype
from postgrad.core.models.paths import locate, looks_local
from postgrad.memory.config import LearnConfig
from postgrad.memory.plan import Need, Sizes, chosen_rows, lookup_bytes_per_token, plan_all

HEADER = ("method", "trained", "weights", "state", "passing", "peak", "FLOP", "patch")


def check_dry_options(dry_run: bool, ranks: int | None, json_output: bool) -> None:
    """Raises ConfigError for options that only mean something to a plan."""
    for name, given in (("--ranks", ranks is not None), ("--json", json_output)):
        if given and not dry_run:
            raise ConfigError(f"{name} belongs to --dry-run.")
    if ranks is not None and ranks < 1:
        raise ConfigError(f"--ranks {ranks}: at least one rank holds the values.")


def planned_dtype(device: str, notes: list[str]) -> torch.dtype:
    """What `load` would take on that device, which need not be here (that is noted). Raises ModelError for no device at all."""
    try:
        return resolve_dtype("auto", resolve_device(device))
    except ModelError:
        if not device.startswith("cuda"):
            raise
        notes.append(f"{device} is not on this machine")
        return torch.bfloat16


def note_missing_files(model: str | Path, notes: list[str]) -> None:
    """Notes what a local directory lacks that the real command will need."""
    if Path(model).expanduser().is_dir() or looks_local(str(model)):
        try:
            locate(model, None, trust_remote_code=False)
        except ModelError as error:
            notes.append(f"without --dry-run this stops: {error}")


def show_plan(
    sizes: Sizes,
    config: LearnConfig,
    tokens: int,
    dtype: torch.dtype,
    *,
    ranks: int = 1,
    json_output: bool,
    extra: dict[str, int] | None = None,
    notes: list[str],
) -> int:
    """Prints a plan; `extra` are further bytes by what they are for."""
    size = dtype.itemsize
    needs = plan_all(sizes, config, tokens, itemsize=size, num_ranks=ranks)
    table = sizes.table_parameters * size
    facts: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "ranks": ranks,
        "model_bytes": sizes.num_parameters * size,
        "table_bytes": table,
        "table_bytes_per_rank": table // ranks,
        "lookup_bytes_per_token": lookup_bytes_per_token(sizes, size),
        "tokens": tokens,
        "updates": config.updates,
        "rows": chosen_rows(sizes, config, tokens) if sizes.num_layers else 0,
        **(extra or {}),
    }
    if json_output:
        methods = [need._asdict() | {"peak_bytes": need.peak_bytes} for need in needs]
        print(json.dumps({"sizes": asdict(sizes), **facts, "methods": methods, "notes": notes}, indent=2))
        return 0
    for line in _lines(sizes, facts):
        print(line)
    print_rows(HEADER, [_row(need) for need in needs])
    print(
        "\nAn edit. weights, patch: exact, but for a patch's texts. state: optimizer, background counts, …; passing: activations "
        "with\nlogits, or gradients of weights; peak: all three, an estimate."
        + (f" sparse is on each of {ranks} ranks, the others are not sharded." if ranks > 1 else "")
    )
    for note in notes:
        print(f"note: {note}")
    print("dry run: nothing was written")
    return 0


def _lines(sizes: Sizes, facts: dict[str, Any]) -> list[str]:
    lines = [
        f"model    {sizes.num_parameters:,} parameters, {describe_size(facts['model_bytes'])} in {facts['dtype']}, as on disk"
    ]
    if sizes.num_layers:
        shared = (
            ""
            if facts["ranks"] == 1
            else f", on each of {facts['ranks']} ranks {describe_size(facts['table_bytes_per_rank'])}"
        )
        lines += [
            f"memory   {sizes.num_layers} layer{'s' * (sizes.num_layers > 1)}, {sizes.memory_parameters:,} of these; values "
            f"{sizes.num_tables} × {sizes.num_slots:,} × {sizes.value_dim}: {describe_size(facts['table_bytes'])}{shared}",
            f"look-up  reads {describe_size(facts['lookup_bytes_per_token'])} of values per token",
        ]
    if "training_bytes" in facts:
        lines.append(
            f"training {describe_size(facts['training_bytes'])} of gradients and AdamW beside the weights, for --steps"
        )
    rows = f", {facts['rows']:,} rows a layer" if sizes.num_layers else ""
    return [*lines, f"edit     {facts['tokens']:,} tokens with padding, {facts['updates']} updates{rows}"]


def _row(need: Need) -> tuple[str, ...]:
    parts = (need.weights_bytes, need.state_bytes, need.passing_bytes, need.peak_bytes)
    patch = "" if need.patch_bytes is None else describe_size(need.patch_bytes)
    return (
        need.method,
        f"{need.trained_parameters:,}",
        *map(describe_size, parts),
        f"{need.flops:.2e}",
        patch,
    )
