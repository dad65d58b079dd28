"""`postgrad rl train`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from postgrad.commands.rl_work import make_transform, train_here
from postgrad.core.config import deep_merge, read_toml, validate
from postgrad.core.errors import ConfigError, ModelError
from postgrad.core.models.paths import is_offline, looks_local
from postgrad.core.run import Run
from postgrad.rl.config import RLConfig, make_config
from postgrad.tasks.judge import check_judges


def resolve_config(
    recipe: Path | None,
    overrides: Mapping[str, Any],
    tasks: tuple[str, ...],
    from_run: Path | None = None,
    preset: Path | None = None,
) -> RLConfig:
    """Recipe (or the config of an earlier run), preset, dotted overrides, `--task`; see `rl.config.make_config`."""
    if recipe is not None and from_run is not None:
        raise ConfigError("Give a recipe or --from RUN, not both: --from replays that run's own config.")
    data = Run.open(from_run).config_dict() if from_run else read_toml(recipe) if recipe else None
    return make_config(data, preset=read_toml(preset) if preset else None, tasks=tasks, overrides=overrides)


def main(
    recipe: Path | None,
    overrides: dict[str, Any],
    tasks: tuple[str, ...],
    out: Path | None,
    resume: bool,
    overwrite: bool,
    from_run: Path | None,
    dry_run: bool,
    argv: list[str],
    cluster: str | None = None,
    preset: Path | None = None,
) -> int:
    """Trains and writes the report; see `postgrad rl train --help`."""
    if resume and (recipe or overrides or tasks or from_run or preset):
        raise ConfigError(
            "--resume goes on with the config of the run, so it takes no recipe, no preset, no options and no --task. To change "
            "something, start a new run with --from RUN and your options."
        )
    if resume and overwrite:
        raise ConfigError("--resume keeps the run and --overwrite throws it away; give one of them.")
    out = out or Path("runs/rl")
    config = (
        validate(RLConfig, Run.open(out).config_dict())
        if resume
        else resolve_config(recipe, overrides, tasks, from_run, preset)
    )
    if cluster is not None:
        config = validate(RLConfig, deep_merge(config.model_dump(), {"cluster": {"address": cluster}}))
    make_transform(config.mara)
    if dry_run:
        return _dry_run(config)

    from postgrad.commands.rl_report import rewrite_report

    try:
        if config.cluster.address is None:
            run = train_here(config, out, resume=resume, overwrite=overwrite, command=argv)
        else:
            from postgrad.commands.rl_cluster import train_there

            run = train_there(config, out, resume=resume, overwrite=overwrite, command=argv)
    except KeyboardInterrupt:
        print(f"Stopped. Go on with: postgrad rl train --out {out} --resume")
        raise
    summarise(run)
    print(f"checkpoint: {run.checkpoints()[-1][1]}")
    print(f"report: {rewrite_report(run)}")
    print(headline(run))
    return 0


def summarise(run: Run, count: int = 3) -> None:
    """Prints the same prompts before and after, one per task first."""
    rows = run.samples()
    before = {row["prompt_id"]: row for row in rows if row.get("phase") == "before"}
    after = {row["prompt_id"]: row for row in rows if row.get("phase") == "after"}
    shared = [before[key] for key in before if key in after]
    improved = [row for row in shared if not row["correct"] and after[row["prompt_id"]]["correct"]]
    chosen: dict[str, dict[str, Any]] = {}
    for row in [*improved, *shared]:
        chosen.setdefault(row["task"], row)
    for row in list(chosen.values())[:count]:
        later = after[row["prompt_id"]]
        print(f"\n{row['task']}: {row['prompt'].strip()[-300:]}\n  expected: {row['answer']}")
        for name, sample in (("before", row), ("after", later)):
            mark = "correct" if sample["correct"] else "wrong"
            print(f"  {name:>8}: {sample['completion'].strip()[:300]!r} ({mark})")
    print()


def headline(run: Run) -> str:
    """`held-out pass rate: 0.21 [0.18, 0.24] -> 0.86 [0.83, 0.89]`, and the mean reward where that says more."""
    config = validate(RLConfig, run.config_dict())
    rows = [row for row in run.metrics() if row.get("eval/pass_rate") is not None]

    def show(row: Mapping[str, Any]) -> str:
        return (
            f"{row['eval/pass_rate']:.2f} [{row['eval/pass_rate_low']:.2f}, {row['eval/pass_rate_high']:.2f}]"
        )

    means = [row.get("eval/reward_mean") for row in (rows[0], rows[-1])]
    graded = config.algorithm.reward == "raw" and None not in means
    reward = f", reward {means[0]:.2f} -> {means[1]:.2f}" if graded else ""
    failed = rows[-1].get("eval/verify_failed_fraction") or 0.0
    warning = f" ({failed:.0%} could not be judged and have no reward)" if failed else ""
    held_out = "held-out " if config.data.holdout_fraction else ""
    return f"{held_out}pass rate: {show(rows[0])} -> {show(rows[-1])}{reward}{warning}"


def _dry_run(config: RLConfig) -> int:
    from postgrad.rl.plan import make_plan

    print(json.dumps(config.model_dump(mode="json"), indent=2))
    check_judges(config.data.tasks)
    try:
        lines = make_plan(config).lines(config.steps)
    except ModelError as error:
        if looks_local(config.model.path) or not is_offline():
            raise
        lines = [f"memory and time     not estimated: {error}"]
    for line in lines:
        print(line)
    print("dry run: nothing was written")
    return 0
