"""Runs of an ablation: DIR/ARM/seed_N, each an ordinary run of `rl train`, one after another or in processes side by side.

A finished run is never repeated; one that was killed goes on from its checkpoint. A run that fails in training (a loss that
is not finite, say) is a result of its arm, counted and named; it is tried again by `resume`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal, NamedTuple

from postgrad.core.config import deep_merge, validate
from postgrad.core.errors import ConfigError, PostgradError, RunError, TrainingError
from postgrad.core.models.model import Model
from postgrad.core.protocols import RewardTransform, TransformContext
from postgrad.core.run import Run, check_free
from postgrad.core.runfiles import pretty_json, remove_tree, replace_file
from postgrad.rl.ablation import (
    AblationConfig,
    Overrides,
    best_beyond_noise,
    choose_axes,
    put_on,
)
from postgrad.rl.ablation_results import (
    KIND,
    RESULT,
    Ablation,
    ArmResult,
    Round,
    SeedResult,
    paired,
    read_seed,
    summarise_arm,
    write_result,
)
from postgrad.rl.api import configure, load_model, read_data, train
from postgrad.rl.config import RLConfig

Transform = Callable[[TransformContext], RewardTransform]


class _Job(NamedTuple):
    arm: str
    seed: int
    config: RLConfig
    recipe: Path
    folder: Path


def ablate(
    model: Model | str | Path | None = None,
    *,
    task: str | Sequence[str] | None = None,
    config: RLConfig | None = None,
    preset: str | Path | None = None,
    mode: Literal["leave-one-out", "forward"] = "leave-one-out",
    axes: Sequence[str] | Mapping[str, Mapping[str, Any]] = (),
    seeds: int = 5,
    jobs: int = 1,
    out: str | Path = "runs/ablation",
    resume: bool = False,
    overwrite: bool = False,
    command: Sequence[str] = (),
    quiet: bool = False,
    transform: Transform | None = None,
    **overrides: Any,
) -> Ablation:
    """Which choice of a recipe matters: leave-one-out or forward search over seeds, paired by seed.

    Args:
        model: a path or hub name; a Model in memory would be trained in place by the first run, so it is refused.
        task, config, preset, overrides: the recipe, as for `train`.
        mode: `leave-one-out` reverts one axis at a time; `forward` adds axes to a baseline recipe while they help beyond noise
            (see `ablation.best_beyond_noise`).
        axes: names of ScaleRL's axes, default all; or axes of your own, name → dotted or nested options.
        seeds: runs of every arm.
        jobs: processes side by side; 1 = one run after another in this process.
        out: directory; runs are out/ARM/seed_N.
        resume: go on with the ablation in `out`, by its own config.
        overwrite: throw away an earlier one in `out`.
        command: recorded in run.json.
        quiet: nothing on the console.
        transform: as for `train`.

    Returns:
        Arms with scores, differences and curves; also in out/result.json. `postgrad report OUT` adds laws and figures.

    Raises:
        PostgradError: see `core.errors`; a directory that was new is left as it was. KeyboardInterrupt after Ctrl-C, when the
            run under way has written its checkpoint.
    """
    if isinstance(model, Model):
        raise ConfigError("Every run starts from the same weights: give a path or a hub name, not a Model.")
    out = Path(out)
    if resume:
        settings = open_ablation(out)
    else:
        recipe = configure(config, model, task, overrides, preset)
        settings = make_config(recipe, mode=mode, axes=axes, seeds=seeds)
        check_free(out, overwrite=overwrite)
    return run_ablation(
        settings,
        out,
        jobs=jobs,
        resume=resume,
        overwrite=overwrite,
        command=command or ["postgrad.rl.ablate"],
        quiet=quiet,
        transform=transform,
    )


def make_config(
    recipe: RLConfig,
    *,
    mode: Literal["leave-one-out", "forward"],
    axes: Sequence[str] | Mapping[str, Mapping[str, Any]] = (),
    seeds: int = 5,
) -> AblationConfig:
    """The config of an ablation; axes as for `ablate`. Raises ConfigError as `ablation.choose_axes`."""
    given = axes if isinstance(axes, Mapping) else None
    names = () if isinstance(axes, Mapping) else axes
    chosen = choose_axes(recipe, mode, names=names, given=given)
    return validate(
        AblationConfig,
        {"mode": mode, "seeds": seeds, "recipe": recipe.model_dump(), "axes": chosen.overrides},
    )


def open_ablation(out: Path) -> AblationConfig:
    """The config of the ablation in a directory. Raises RunError if it holds none."""
    run = Run.open(out)
    if run.info.get("kind") != KIND:
        raise RunError(f"{out} holds a run of {run.info.get('kind')}, not of {KIND}. Choose another --out.")
    return validate(AblationConfig, run.config_dict())


def run_ablation(
    config: AblationConfig,
    out: Path,
    *,
    jobs: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    command: Sequence[str] = (),
    quiet: bool = False,
    transform: Transform | None = None,
) -> Ablation:
    """Runs what is not finished and writes result.json; see `ablate`."""
    existed = out.is_dir()
    data = read_data(config.recipe)  # wrong tasks come to light before anything is written
    if jobs > 1 and not config.recipe.model.path:
        load_model(config.recipe, data)  # made once and cached, not once in every process
    del data
    try:
        with _open(config, out, resume, overwrite, command) as run:
            work = _Work(run, config, jobs, quiet, transform)
            found = _forward(work) if config.mode == "forward" else _leave_one_out(work)
            write_result(run, found)
    except PostgradError:
        if not resume and not any(out.glob("*/seed_*/run.json")):  # the very first run was refused
            remove_tree(out)
            if existed:
                out.mkdir()
        raise
    return found


def _open(config: AblationConfig, out: Path, resume: bool, overwrite: bool, command: Sequence[str]) -> Run:
    if resume:
        return Run.resume(out, command=command, quiet=True)
    run = Run.create(
        out,
        config,
        command=command,
        kind=KIND,
        seed=config.recipe.seed,
        overwrite=overwrite,
        device=config.recipe.model.device,
        quiet=True,
    )
    (out / RESULT).unlink(missing_ok=True)
    for folder in {path.parent for path in out.glob("*/recipe.json")}:  # arms of what was here before
        remove_tree(folder)
    return run


class _Work:
    """Runs arms of one ablation and keeps what came out."""

    def __init__(
        self, run: Run, config: AblationConfig, jobs: int, quiet: bool, transform: Transform | None
    ) -> None:
        self.run, self.config, self.jobs = run, config, jobs
        self.quiet, self.transform = quiet, transform
        self.arms: dict[str, ArmResult] = {}

    def do(self, arms: Mapping[str, Overrides], reference: str = "") -> None:
        """Runs all seeds of all arms, and summarises them."""
        jobs: list[_Job] = []
        for (
            seed
        ) in self.config.seed_list:  # seeds in turn, so that what is there after a while compares all arms
            for name, overrides in arms.items():
                folder = self.run.path / name
                config = put_on(self.config.recipe, overrides, {"seed": seed})
                jobs.append(_Job(name, seed, config, folder / "recipe.json", folder / f"seed_{seed}"))
        for job in jobs:
            job.recipe.parent.mkdir(exist_ok=True)
            replace_file(job.recipe, pretty_json(job.config.model_dump(mode="json")))
        failed = self._run_all(jobs)
        results: dict[str, dict[int, SeedResult]] = {name: {} for name in arms}
        for job in jobs:
            result = None if (job.arm, job.seed) in failed else read_seed(Run.open(job.folder))
            if result is not None:
                results[job.arm][job.seed] = result
        for name, overrides in arms.items():
            why = {seed: words for (arm, seed), words in failed.items() if arm == name}
            self.arms[name] = summarise_arm(name, overrides, results[name], why, self.arms.get(reference))

    def _run_all(self, jobs: Sequence[_Job]) -> dict[tuple[str, int], str]:
        left = [job for job in jobs if not _finished(job.folder)]
        if not self.quiet and len(left) < len(jobs):
            print(f"{len(jobs) - len(left)} of {len(jobs)} runs are finished already", flush=True)
        if self.jobs == 1:
            words = [self._here(job, f"{index}/{len(left)}") for index, job in enumerate(left, 1)]
        else:
            words = _side_by_side(left, self.jobs, self.quiet)
        return {(job.arm, job.seed): why for job, why in zip(left, words, strict=True) if why is not None}

    def _here(self, job: _Job, place: str) -> str | None:
        """One run in this process; why it failed, or None."""
        if not self.quiet:
            print(f"run {place}: {job.arm}, seed {job.seed}", flush=True)
        resume = _begun(job.folder)
        try:
            train(
                config=None if resume else job.config,
                out=job.folder,
                resume=resume,
                command=_words(job, resume)[2:],
                quiet=self.quiet,
                transform=self.transform,
            )
        except TrainingError as error:
            return str(error)
        return None


def _finished(folder: Path) -> bool:
    return _begun(folder) and Run.open(folder).status == "finished"


def _begun(folder: Path) -> bool:
    """Whether there is a run to go on with. Raises RunError if it is still going on."""
    if not (folder / "run.json").is_file():
        return False
    if not (folder / "config.json").is_file():  # killed in the moment it was made
        remove_tree(folder)
        return False
    run = Run.open(folder)
    if run.status == "running":
        raise RunError(
            f"{folder} is still running (process {run.info.get('pid')}), left over from a command that was killed. "
            "Wait until it is done, or end it; then go on with --resume."
        )
    return True


def _words(job: _Job, resume: bool) -> list[str]:
    """The command line of a run."""
    program = [sys.executable, "-m", "postgrad", "rl", "train"]
    if resume:
        return [*program, "--out", str(job.folder), "--resume"]
    return [*program, str(job.recipe), "--seed", str(job.seed), "--out", str(job.folder)]


def _side_by_side(jobs: Sequence[_Job], count: int, quiet: bool) -> list[str | None]:
    """Runs in processes of their own, `count` at a time; why each failed, or None."""
    processes: list[subprocess.Popen[bytes]] = []
    stopping = threading.Event()

    def run(place: int, job: _Job) -> str | None:
        if stopping.is_set():
            return None
        if not quiet:
            print(f"run {place}/{len(jobs)}: {job.arm}, seed {job.seed}", flush=True)
        log = job.folder.with_suffix(".log")
        with log.open("ab") as output:
            # In a session of its own, Ctrl-C reaches it once: from here.
            process = subprocess.Popen(
                _words(job, _begun(job.folder)), stdout=output, stderr=output, start_new_session=True
            )
            processes.append(process)
            code = process.wait()
        if code == 0 or stopping.is_set():
            return None
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        words = lines[-1].removeprefix("Error: ") if lines else "no output"
        if code == 2 and _begun(job.folder) and Run.open(job.folder).status == "failed":
            return words
        raise RunError(f"Seed {job.seed} of {job.arm} ended with code {code}: {words} (see {log}).")

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, place, job) for place, job in enumerate(jobs, 1)]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:  # those under way write a checkpoint and end; those that wait are not begun
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            raise
    return [future.result() for future in futures]


def _leave_one_out(work: _Work) -> Ablation:
    name = work.config.reference
    work.do({name: {}, **work.config.axes}, name)
    _require(work.arms[name])
    return Ablation(work.run.path, list(work.arms.values()), [])


def _forward(work: _Work) -> Ablation:
    current = work.config.reference
    work.do({current: {}})
    _require(work.arms[current])
    kept: dict[str, Overrides] = {}
    rounds: list[Round] = []
    while left := [name for name in work.config.axes if name not in kept]:
        base = put_on(work.config.recipe, *kept.values())
        trials = {"+".join([*kept, name]): name for name in left}
        changes = {
            arm: _merged([*kept.values(), work.config.axes[name]])
            for arm, name in trials.items()
            if put_on(base, work.config.axes[name]) != base
        }
        if not changes:
            break
        work.do(changes, current)
        differences = {
            trials[arm]: paired(work.arms[arm].scores, work.arms[current].scores) for arm in changes
        }
        best, winner = best_beyond_noise(differences)
        rounds.append(Round(list(changes), best, winner))
        if winner is None:
            break
        current = "+".join([*kept, winner])
        kept[winner] = work.config.axes[winner]
    return Ablation(work.run.path, list(work.arms.values()), rounds)


def _merged(several: Sequence[Overrides]) -> Overrides:
    merged: Overrides = {}
    for overrides in several:
        merged = deep_merge(merged, overrides)
    return merged


def _require(reference: ArmResult) -> None:
    if not reference.scores:
        why = next(iter(reference.failed.values()), "no run was evaluated")
        raise TrainingError(
            f"No seed of the recipe itself came to its end, so nothing can be compared: {why}"
        )
