"""`postgrad memory list | diff | explain | rollback | export | apply`: what a model directory has learned, as patches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from postgrad.core.console import print_rows
from postgrad.core.errors import ConfigError
from postgrad.core.figures import format_number


def show(model: Path, *, json_output: bool) -> int:
    """`list`."""
    from postgrad.memory.store import PatchStore, describe

    entries = [describe(entry) for entry in PatchStore(model).entries()]
    if json_output:
        print(json.dumps(entries, indent=2, ensure_ascii=False))
        return 0
    if not entries:
        print(f"{model} has learned nothing yet: postgrad memory learn {model} FACTS.jsonl")
        return 0
    rows = [
        (
            str(entry["number"]),
            entry["id"],
            format_number(entry["rows"]),
            format_number(entry["bytes"]),
            entry.get("created", ""),
            ", ".join(entry.get("facts", []))[:60],
        )
        for entry in entries
    ]
    print_rows(("number", "patch", "rows", "bytes", "learned at", "facts"), rows)
    return 0


def diff(model: Path, first: str, second: str | None) -> int:
    """`diff`: what one patch changed, or what two have in common."""
    from postgrad.memory.store import PatchStore, overlap

    store = PatchStore(model)
    entry = store.find(first)
    if second is not None:
        other = store.find(second)
        shared = overlap(entry.patch, other.patch)
        sizes = (
            f"{entry.patch.id} changes {entry.patch.num_rows} rows, {other.patch.id} {other.patch.num_rows}"
        )
        print(f"{sizes}; {shared} of them are the same")
        return 0
    for text in entry.patch.facts.get("texts", []):
        print(f"learned: {text}")
    for name, change in entry.patch.changes.items():
        moved = (change.new.float() - change.old.float()).norm(dim=-1)
        order = moved.argsort(descending=True)[:20].tolist()
        rows = [
            (str(int(change.rows[i])), f"{float(change.old[i].float().norm()):.4g}", f"{float(moved[i]):.4g}")
            for i in order
        ]
        print(f"\n{name}: {len(change.rows)} rows; the {len(rows)} that changed most")
        print_rows(("slot", "norm before", "distance moved"), rows)
    return 0


def explain(model: Path, name: str, texts: Sequence[str], device: str, *, json_output: bool) -> int:
    """`explain`: how much of what each token of a text reads are rows that a patch changed."""
    from postgrad.core.models import load
    from postgrad.memory.core_set import changed_rows, readings, share_of_rows
    from postgrad.memory.store import PatchStore

    entry = PatchStore(model).find(name)
    shown = list(texts) or list(entry.patch.facts.get("texts", []))
    if not shown:
        raise ConfigError(
            f"Patch {name} does not say what it learned. Give a text: postgrad memory explain {model} {name} TEXT"
        )
    loaded = load(model, device=device)
    changed = changed_rows(loaded, entry.patch)
    found = [(reading.tokens, share_of_rows(reading, changed)) for reading in readings(loaded, shown)]
    if json_output:
        print(json.dumps([{"tokens": t, "shares": s} for t, s in found], indent=2, ensure_ascii=False))
        return 0
    for number, (tokens, shares) in enumerate(found):
        print("" if not number else "\n", end="")
        width = max(map(len, map(repr, tokens)))
        for token, share in zip(tokens, shares, strict=True):
            print(f"{token!r:<{width}}  {100 * share:5.1f} %  {'█' * round(40 * share)}")
    return 0


def rollback(model: Path, names: Sequence[str], to: str | None, everything: bool) -> int:
    """`rollback`: named patches, all after one, or all."""
    from postgrad.memory.store import PatchStore

    if sum((bool(names), to is not None, everything)) != 1:
        raise ConfigError(
            "Say what to roll back: patches by number or id, --to PATCH (all after it), or --all."
        )
    store = PatchStore(model)
    if names:
        chosen = [store.find(name) for name in names]
    else:
        after = 0 if to is None else store.find(to).number
        chosen = [entry for entry in store.entries() if entry.number > after]
    for entry in sorted(chosen, key=lambda entry: -entry.number):
        store.roll_back(entry)
        print(f"rolled back {entry.number} ({entry.patch.id}), {entry.patch.num_rows} rows")
    print(f"{len(store.entries())} patches are in force")
    return 0


def export(model: Path, names: Sequence[str], out: Path) -> int:
    """`export`: copies of patches, all without names."""
    from postgrad.memory.store import PatchStore

    store = PatchStore(model)
    chosen = [store.find(name) for name in names] if names else store.entries()
    for path in store.export(sorted(chosen, key=lambda entry: entry.number), out):
        print(path)
    return 0


def apply(model: Path, files: Sequence[Path], device: str) -> int:
    """`apply`: patches from elsewhere, all or none of them."""
    from postgrad.core.models import load
    from postgrad.core.models.memory.patch import apply_patch, read_patch
    from postgrad.memory.store import PatchStore

    found = [
        path
        for given in files
        for path in (sorted(given.glob("*.safetensors")) if given.is_dir() else [given])
    ]
    if not found:
        raise ConfigError("There is no patch in what was given.")
    store, loaded = PatchStore(model), load(model, device=device)
    patches = [read_patch(path) for path in found]
    for patch in patches:  # all are tried on the loaded model before the first one is put in force
        apply_patch(loaded.module, patch)
    for patch in patches:
        entry = store.append(patch)
        print(f"applied {entry.number} ({patch.id}), {patch.num_rows} rows")
    return 0
