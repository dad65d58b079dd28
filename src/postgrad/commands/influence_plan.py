"""What `postgrad influence run --dry-run` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from postgrad.commands.runs import describe_size
from postgrad.core.console import print_rows
from postgrad.core.errors import ConfigError
from postgrad.influence.config import DRAWN, SAMPLED, InfluenceConfig

_MEANING = {
    "weights_bytes": "the model, float32 copies of it, and the chosen weights that displacements are added to",
    "factors_bytes": "EK-FAC's axes and eigenvalues",
    "chain_bytes": "place or noise, and preconditioners, of the running chain",
    "draws_bytes": "losses of queries at all draws",
    "token_bytes": "moments of single tokens, at their peak",
    "passing_bytes": "activations and gradients of a batch (estimate)",
    "scoring_bytes": "draws and all that is made of them, at the peak",
    "peak_bytes": "weights, factors, chain and tokens, and a pass beside the draws or the scoring (estimate)",
    "disk_bytes": "on disk, until the run has ended: training losses at all draws",
}


def check_dry_options(dry_run: bool, json_output: bool) -> None:
    """Raises ConfigError for an option that only means something to a plan."""
    if json_output and not dry_run:
        raise ConfigError(
            "--json belongs to --dry-run. Of a finished run: postgrad influence show RUN --json"
        )


def show_plan(
    model: str,
    rows: Sequence[Any],
    queries: Sequence[Any],
    prompts: Sequence[str],
    config: InfluenceConfig,
    device: str,
    out: Path,
    *,
    json_output: bool,
) -> int:
    """Reads the texts and the model's shape, and prints memory, passes and operations.

    Raises:
        ConfigError, DataError, ModelError: as the run itself would, for all that shows without weights.
    """
    from postgrad.commands.memory_plan import note_missing_files, planned_dtype
    from postgrad.core.models.model import resolve_device
    from postgrad.core.models.skeleton import load_outline
    from postgrad.influence.examples import Example, Texts, make_examples
    from postgrad.influence.plan import free_bytes, free_disk_bytes, plan, read_sizes

    notes: list[str] = []
    dtype, outline = planned_dtype(device, notes), load_outline(Path(model))
    note_missing_files(model, notes)
    answers = [Example(f"prompt {n}", "?" * config.answer_tokens, text) for n, text in enumerate(prompts, 1)]
    if answers:
        notes.append(f"the answers to {len(answers)} prompts are taken as {config.answer_tokens} characters")
    sides: list[Texts] = []
    for role, given in (("training", rows), ("query", [*queries, *answers])):
        texts = Texts(outline, make_examples(given, role), config.max_tokens)
        if len(texts) < len(given):
            notes.append(f"{len(given) - len(texts)} {role} examples are the same as another one")
        if texts.num_cut:
            notes.append(
                f"{texts.num_cut} {role} examples are cut to {config.max_tokens} tokens or the model's context"
            )
        sides.append(texts)
    sizes = read_sizes(outline.module, sides[0], sides[1], config)
    found = plan(sizes, config, itemsize=dtype.itemsize, on_disk=True)
    notes += found.notes
    here = not any("is not on this machine" in note for note in notes)
    free = free_bytes(resolve_device(device)) if here else None
    if free is not None and found.peak_bytes > free:
        notes.append(f"that is more than the {describe_size(free)} of memory that are free now")
    disk = free_disk_bytes(out)
    if found.disk_bytes > disk:
        notes.append(
            f"{describe_size(found.disk_bytes)} are more than the {describe_size(disk)} of disk that are free at {out}"
        )
    if json_output:
        facts = asdict(found) | {"peak_bytes": found.peak_bytes, "free_bytes": free, "notes": notes}
        counted = {name: sum(getattr(sizes, name)) for name in ("counted_train", "counted_query")}
        print(json.dumps({"sizes": asdict(sizes) | counted, **facts}, indent=2, ensure_ascii=False))
        return 0
    _print(asdict(found) | {"peak_bytes": found.peak_bytes}, sizes, config)
    for note in notes:
        print(f"note: {note}")
    print("dry run: nothing was written")
    return 0


def _print(found: dict[str, Any], sizes: Any, config: InfluenceConfig) -> None:
    print(f"model    {sizes.num_parameters:,} parameters, {sizes.num_sampled:,} of them sampled")
    print(
        f"texts    {sizes.num_train:,} training examples, {sum(sizes.counted_train):,} tokens with a loss; "
        f"{sizes.num_queries:,} queries, {sum(sizes.counted_query):,}"
    )
    if config.method in DRAWN:
        print(
            f"draws    {config.chains} chains × {config.num_draws}"
            + (", twice" if _again(config, sizes) else "")
        )
    print(
        f"passes   {found['gradient_examples']:,} examples forward and backward, {found['forward_examples']:,} forward, "
        f"{found['curvature_examples']:,} forward and backward for the curvature: {found['flops']:.2e} FLOP (estimate)"
    )
    meaning = dict(_MEANING)
    if config.method not in SAMPLED:
        meaning["scoring_bytes"] = "scores of all chains and what is made of them, at the peak"
    print_rows(
        ("memory", "", "what"),
        [
            (name.removesuffix("_bytes"), describe_size(found[name]), text)
            for name, text in meaning.items()
            if found[name]
        ],
    )


def _again(config: InfluenceConfig, sizes: Any) -> bool:
    return (
        config.check_step and config.method in SAMPLED and config.method != "laplace" and sizes.num_train > 2
    )
