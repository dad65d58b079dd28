"""`postgrad memory attach`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from postgrad.core.config import validate
from postgrad.core.errors import ConfigError
from postgrad.core.models.memory.config import MemoryConfig
from postgrad.memory.config import HealConfig, LearnConfig


def main(
    model: str,
    out: Path,
    background: Path | None,
    layers: str,
    device: str,
    options: Mapping[str, Any],
    *,
    dry_run: bool = False,
    ranks: int | None = None,
    json_output: bool = False,
) -> int:
    """Writes a copy of a model with memory layers; see `postgrad memory attach --help`."""
    healing = {key: value for key, value in options.items() if key in HealConfig.model_fields}
    sizes = {
        key: value for key, value in options.items() if key in MemoryConfig.model_fields and key != "layers"
    }
    heal_config = validate(HealConfig, healing)
    config = validate(MemoryConfig, {**sizes, "layers": _layers(layers)})
    if heal_config.steps and background is None:
        raise ConfigError(f"--steps {heal_config.steps} trains the memory on text: give --background TEXTS.")
    if config.mode == "replace" and not heal_config.steps:
        raise ConfigError(
            "mode = replace throws the MLP away, and the model speaks nonsense until the memory is trained: give --steps and "
            "--background, or use the additive mode."
        )
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is used. Choose another --out.")

    from postgrad.commands.memory_plan import check_dry_options

    check_dry_options(dry_run, ranks, json_output)

    from postgrad.memory.data import read_texts

    texts = read_texts(background) if background is not None else []
    if dry_run:
        return _plan(model, config, heal_config, device, ranks or 1, json_output)

    from postgrad.core.models import load, save
    from postgrad.core.models.memory import attach
    from postgrad.memory.evaluate import text_loss
    from postgrad.memory.healing import heal

    loaded = load(model, device=device)
    before = text_loss(loaded, texts[:200]) if texts else None
    made = attach(loaded.module, config)
    parameters = sum(p.numel() for layer in made for p in layer.parameters())
    print(
        f"{len(made)} memory layers, {parameters:,} parameters beside {loaded.num_parameters - parameters:,}"
    )
    if heal_config.steps:
        heal(loaded, texts, heal_config, _progress)
    if before is not None:
        after = text_loss(loaded, texts[:200])
        print(f"loss on the background, nats per token: {before:.4f} before, {after:.4f} with memory")
    save(loaded, out)
    print(f"model: {out}\nnext: postgrad memory profile {out} --background TEXTS")
    return 0


def _plan(
    model: str, config: MemoryConfig, heal_config: HealConfig, device: str, ranks: int, json_output: bool
) -> int:
    import torch

    from postgrad.commands.memory_plan import note_missing_files, planned_dtype, show_plan
    from postgrad.core.models.memory import attach
    from postgrad.core.models.skeleton import load_shape
    from postgrad.memory.plan import read_sizes, training_bytes

    notes: list[str] = []
    dtype, module = planned_dtype(device, notes), load_shape(model)
    with torch.device("meta"):
        attach(module, config)
    note_missing_files(model, notes)
    sizes, learning = read_sizes(module), LearnConfig()
    extra: dict[str, int] = {}
    if heal_config.steps:
        everything = heal_config.train == "all"
        extra["training_bytes"] = training_bytes(sizes, itemsize=dtype.itemsize, everything=everything)
    return show_plan(
        sizes,
        learning,
        learning.max_tokens,
        dtype,
        ranks=ranks,
        json_output=json_output,
        extra=extra,
        notes=notes,
    )


def _layers(words: str) -> list[int]:
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise ConfigError(
            f"--layers takes block numbers joined by commas, such as 6,12; not {words!r}."
        ) from None


def _progress(step: int, steps: int, loss: float) -> None:
    if step in (1, steps) or step % max(1, steps // 10) == 0:
        print(f"training the memory: {step}/{steps} updates, loss {loss:.3f}", flush=True)
