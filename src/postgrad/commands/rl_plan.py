"""`postgrad rl plan`: how many GPUs should generate, how many train, what fits, who waits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from postgrad.commands.rl_train import resolve_config
from postgrad.core.console import print_rows
from postgrad.core.errors import ConfigError, nearest
from postgrad.core.run import Run
from postgrad.rl.config import RLConfig

_MOST_SPLITS = 7
_HEADER = ("train", "generate", "samples/s", "tokens/s", "s an update", "generators wait", "trainer waits", "slots in use", "lag",
           "GB to train", "GB to generate", "fits")  # fmt: skip


def main(
    recipe: Path | None,
    overrides: Mapping[str, Any],
    preset: Path | None,
    gpus: int,
    hardware: str,
    lengths: str | None,
    prompt_tokens: int | None,
    measure: bool,
    json_output: bool,
) -> int:
    """Predicts a run; see `postgrad rl plan --help`."""
    config = resolve_config(recipe, overrides, (), None, preset)
    if measure:
        record = _measured(config, max(1, config.engine.generators))
    else:
        drawn = read_lengths(lengths, config)
        record = _by_data_sheet(config, gpus, hardware.lower(), drawn, prompt_tokens)
    if json_output:
        print(json.dumps(record, indent=2))
    else:
        _show(record)
    return 0


def read_lengths(source: str | None, config: RLConfig) -> list[int]:
    """Completion lengths in tokens: of a run's samples, or log-normal by `MEAN` or `MEAN,CV` (coefficient of variation, 1).

    Default: a mean of a third of the limit. None is longer than the limit.

    Raises:
        ConfigError: neither a run nor numbers.
    """
    import numpy as np

    limit = config.length.max_completion_tokens
    if source is not None and Path(source).is_dir():
        found = [int(row["num_tokens"]) for row in Run.open(Path(source)).samples() if row.get("num_tokens")]
        if not found:
            raise ConfigError(
                f"{source} has no samples with lengths. Name a run of rl, or give MEAN,CV in tokens."
            )
        return found
    try:
        mean, variation = (
            ([float(word) for word in source.split(",")] + [1.0])[:2] if source else (limit / 3, 1.0)
        )
    except ValueError:
        raise ConfigError(f"--lengths is a run, MEAN or MEAN,CV in tokens (received {source!r}).") from None
    if not (mean >= 1 and variation >= 0):
        raise ConfigError(
            f"--lengths needs a mean of at least 1 token and a variation of at least 0 (received {source!r})."
        )
    sigma = np.sqrt(np.log1p(variation**2))
    drawn = np.random.default_rng(0).lognormal(np.log(mean) - sigma**2 / 2, sigma, 20_000)
    return [max(1, min(limit, round(length))) for length in drawn]


def splits(gpus: int) -> list[int]:
    """Numbers of trainers to try: few, half, most.

    >>> splits(2), splits(8), splits(1000)
    ([1], [1, 2, 4, 6, 7], [15, 31, 62, 125, 250, 500, 750])
    """
    powers = [gpus >> shift for shift in range(1, 7) if gpus >> shift]
    found = sorted({*powers, gpus - max(1, gpus // 4), *([gpus - 1] if gpus <= 16 else [])} - {0, gpus})
    return found[-_MOST_SPLITS:]


def _by_data_sheet(
    config: RLConfig, gpus: int, hardware: str, lengths: Sequence[int], prompt_tokens: int | None
) -> dict[str, Any]:
    from postgrad.rl.costs import HARDWARE, by_data_sheet, memory, read_shape
    from postgrad.rl.simulate import simulate

    if hardware not in HARDWARE:
        raise ConfigError(f"Unknown hardware {hardware!r}. {nearest(hardware, HARDWARE)}")
    if gpus < 2:
        raise ConfigError(
            f"A plan parts GPUs into those that train and those that generate, so it needs 2 (received {gpus})."
        )
    shape, card = read_shape(config, on_gpu=True), HARDWARE[hardware]
    prompt = prompt_tokens or min(512, config.length.max_prompt_tokens)
    rows: list[dict[str, Any]] = []
    for trainers in splits(gpus):
        costs = by_data_sheet(config, shape, card, lengths, prompt, trainers)
        found = simulate(config, costs, lengths, gpus - trainers, updates=2 * (config.schedule.k + 1))
        needed = memory(config, shape, trainers)
        fits = max(needed) <= card.memory
        row = {"trainers": trainers, "generators": gpus - trainers, **found._asdict()}
        rows.append(row | {"memory": needed._asdict(), "fits": fits})
    return {
        "model": {"parameters": shape.num_parameters, "bytes": shape.num_parameters * shape.itemsize},
        "hardware": {"name": hardware, **card._asdict()},
        "lengths": _summary(lengths),
        "prompt_tokens": prompt,
        "splits": rows,
    }


def _measured(config: RLConfig, generators: int) -> dict[str, Any]:
    from postgrad.rl.costs import measure
    from postgrad.rl.simulate import simulate

    costs, lengths = measure(config)
    rows: list[dict[str, Any]] = []
    for mode in ("pipeline", "ppo"):
        planned = config.model_copy(update={"schedule": config.schedule.model_copy(update={"mode": mode})})
        found = simulate(planned, costs, lengths, generators, updates=6 * (config.schedule.k + 1))
        rows.append({"mode": f"{mode}-{config.schedule.k}", "generators": generators, **found._asdict()})
    slots = config.engine.slots
    return {
        "measured": {
            "decode_step_s": costs.decode_s(slots),
            "update_s": costs.update_s(
                round(
                    config.algorithm.prompts_per_batch
                    * config.algorithm.samples_per_prompt
                    * sum(lengths)
                    / len(lengths)
                )
            ),
            "transfer_s": costs.transfer_s,
        },
        "lengths": _summary(lengths),
        "schedules": rows,
    }


def _summary(lengths: Sequence[int]) -> dict[str, float]:
    return {"mean": sum(lengths) / len(lengths), "longest": max(lengths)}


def _show(record: Mapping[str, Any]) -> None:
    lengths = record["lengths"]
    print(f"completions  {lengths['mean']:,.0f} tokens on average, {lengths['longest']:,} at most")
    if "measured" in record:
        cost = record["measured"]
        print(
            f"measured     {1000 * cost['decode_step_s']:.2f} ms a decode step with all slots, {cost['update_s']:.3f} s an "
            f"update, {1000 * cost['transfer_s']:.1f} ms for new weights"
        )
        print_rows(
            ("schedule", "generators", *_HEADER[2:3], *_HEADER[4:9]),
            [
                (row["mode"], str(row["generators"]), f"{row['samples_per_s']:,.0f}", *_waits(row))
                for row in record["schedules"]
            ],
        )
        return
    model, card = record["model"], record["hardware"]
    print(
        f"model        {model['parameters']:,} parameters, {model['bytes'] / 1e9:.1f} GB; prompts of "
        f"{record['prompt_tokens']} tokens"
    )
    print(
        f"hardware     {card['name']}: {card['flops'] / 1e12:.0f} TFLOP/s, {card['bandwidth'] / 1e12:.2f} TB/s, "
        f"{card['memory'] / 1e9:.0f} GB"
    )
    print_rows(_HEADER, [_cells(row) for row in record["splits"]])
    fitting = [row for row in record["splits"] if row["fits"]]
    if not fitting:
        print(
            "\nNothing fits. More GPUs, fewer engine.slots, a smaller optimizer.micro_batch_tokens or "
            "optimizer.gradient_checkpointing would."
        )
        return
    best = max(fitting, key=lambda row: row["samples_per_s"])
    print(f"\nfastest that fits: {best['trainers']} to train, {best['generators']} to generate")
    print("A simulation of who waits for whom by data-sheet speeds; --measure takes this machine's.")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(row["trainers"]),
        str(row["generators"]),
        f"{row['samples_per_s']:,.1f}",
        f"{row['tokens_per_s']:,.0f}",
        *_waits(row),
        f"{row['memory']['trainer'] / 1e9:,.1f}",
        f"{row['memory']['generator'] / 1e9:,.1f}",
        "yes" if row["fits"] else "no",
    )


def _waits(row: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (row[key] for key in ("idle_generator", "idle_trainer", "occupancy"))
    return f"{row['update_s']:,.3g}", *(f"{share:.0%}" for share in shares), f"{row['lag']:.1f}"
