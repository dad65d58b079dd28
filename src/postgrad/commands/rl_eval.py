"""`postgrad rl eval`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from postgrad.commands.rl_train import resolve_config
from postgrad.core.config import read_toml


def main(
    model: str,
    recipe: Path | None,
    overrides: dict[str, Any],
    tasks: tuple[str, ...],
    json_output: bool,
    argv: list[str],
) -> int:
    """Prints mean@k on held-out prompts, in all and by task; see `postgrad rl eval --help`.

    Without a recipe, the checkpoint or run directory of an `rl train` run brings its own config (tasks, lengths, split).
    """
    source = run_config(Path(model)) if recipe is None else None
    from_run = source.parent if source is not None else None
    config = resolve_config(recipe, {**overrides, "model.path": model}, tasks, from_run)

    from postgrad.rl.api import evaluate_model

    metrics = evaluate_model(config, note=lambda text: print(text, file=sys.stderr)).metrics
    if json_output:
        print(json.dumps(metrics, indent=2))
        return 0
    for prefix in sorted({key.rsplit("/", 1)[0] for key in metrics if key.endswith("/pass_rate")}):
        name = prefix.removeprefix("eval").lstrip("/") or "all tasks"
        rate, low, high = (metrics[f"{prefix}/pass_rate{end}"] for end in ("", "_low", "_high"))
        reward = metrics.get(f"{prefix}/reward_mean")
        shown = "" if reward is None else f"   reward {reward:.3f}"
        print(f"{name:<24} {rate:.3f} [{low:.3f}, {high:.3f}]{shown}")
    return 0


def run_config(path: Path) -> Path | None:
    """config.json of the rl run that `path` is, or is a checkpoint of."""
    for folder in (path, path.parent.parent):
        config = folder / "config.json"
        if (folder / "run.json").is_file() and config.is_file() and "algorithm" in read_toml(config):
            return config
    return None
