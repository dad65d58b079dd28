"""Run: the directory that holds all that a training or evaluation leaves behind.

    config.json         resolved config; feeding it back replays the run
    run.json            command, git sha, versions, device, seed, status, pid, times, last step
    metrics.jsonl       {"step": 3, "area/name": value, …} per line; non-finite numbers are null and counted
    samples.jsonl       {"step": 3, "prompt": …, "completion": …, …} per line
    checkpoints/        step_00000100/, complete or absent
    report.html         `postgrad report`, with figures/ beside it

Only `Run` writes here. A process that is killed at any moment leaves a directory that `Run.resume` accepts.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

from postgrad.core.checkpoints import Checkpoints
from postgrad.core.config import Config
from postgrad.core.console import HeadlineSpec, StepConsole
from postgrad.core.environment import describe_process, utc_now
from postgrad.core.errors import RunError
from postgrad.core.runfiles import (
    DirectoryLock,
    LineFile,
    explain_os_error,
    is_locked,
    pretty_json,
    read_object,
    remove_tree,
    replace_file,
    to_plain,
    tree_size_bytes,
)

RunStatus = Literal["running", "finished", "interrupted", "failed"]

_METRIC_KEY = re.compile(r"[^/\s]+(/[^/\s]+)+")
_OWN_NAMES = (
    "config.json",
    "metrics.jsonl",
    "samples.jsonl",
    "checkpoints",
    "report.html",
    "figures",
    "run.json",
)


class Run:
    """A run directory, made by `create`, continued by `resume`, read by `open`.

    As a context manager it finishes with the right status: finished, interrupted (Ctrl-C) or failed.

    Attributes:
        path: the directory.
        info: content of run.json.
    """

    def __init__(
        self, path: Path, info: dict[str, Any], *, lock: DirectoryLock | None, console: StepConsole
    ) -> None:
        self.path = path
        self.info = info
        self._lock = lock
        self._console = console
        self._metrics = LineFile(path / "metrics.jsonl")
        self._samples = LineFile(path / "samples.jsonl")
        self._checkpoints = Checkpoints(path / "checkpoints")

    # -- ways in -------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path | str,
        config: Config,
        *,
        command: Sequence[str],
        kind: str,
        seed: int,
        overwrite: bool = False,
        device: str = "",
        headline: Sequence[HeadlineSpec] = (),
        total_steps: int | None = None,
        quiet: bool = False,
    ) -> Run:
        """Start a new run.

        Args:
            path: directory; made if missing, refused if it holds anything.
            config: the resolved config.
            command: the command line, as `sys.argv` has it.
            kind: what the run is, such as `rl.train`.
            seed: of the run.
            overwrite: throw an earlier run in `path` away. A directory that is no run is refused all the
            same.
            device: where it computes, in words.
            headline: (key, label, format spec) of the metrics shown on the console, such as
                `("rollout/pass_rate", "pass", ".1%")`; default: the first few.
            total_steps: for the progress bar.
            quiet: nothing on the console.

        Raises:
            RunError: the directory is used, locked, not writable or on a full disk.
        """
        path = Path(path)
        lock = DirectoryLock(path)
        with _writing(path):
            if path.is_dir() and not (path / "run.json").exists():
                _clear_for_new_run(path, overwrite)  # leaves no lock file in a directory of somebody else's
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            with _writing(path):
                _clear_for_new_run(path, overwrite)
                info = describe_process(command=command, kind=kind, seed=seed, device=device)
                run = cls(path, info, lock=lock, console=StepConsole(headline, total_steps, quiet=quiet))
                run._write_info()
                replace_file(path / "config.json", pretty_json(config.model_dump(mode="json")))
                (path / "checkpoints").mkdir()
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def resume(
        cls,
        path: Path | str,
        *,
        command: Sequence[str] = (),
        device: str = "",
        headline: Sequence[HeadlineSpec] = (),
        total_steps: int | None = None,
        quiet: bool = False,
    ) -> Run:
        """Go on with a run that ended or was killed: half-written lines and checkpoints are removed.

        The caller loads `latest_checkpoint()` and calls `truncate_after` with its step.

        Args:
            path: directory of the run.
            command: appended to the `resumed` list of run.json with the time.
            device, headline, total_steps, quiet: as for `create`.

        Raises:
            RunError: no run there, or it is locked, damaged or not writable.
        """
        path = Path(path)
        info = _read_info(path)
        lock = DirectoryLock(path)
        with _writing(path):
            lock.acquire()
        try:
            with _writing(path):
                run = cls(path, info, lock=lock, console=StepConsole(headline, total_steps, quiet=quiet))
                run._metrics.trim_torn_line()
                run._samples.trim_torn_line()
                run._checkpoints.clean()
                for stale in path.glob(".tmp-*"):
                    remove_tree(stale)
                info.setdefault("resumed", []).append({"at": utc_now(), "command": list(command)})
                info.update(status="running", pid=os.getpid(), ended=None)
                if device:
                    info["device"] = device
                run._write_info()
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Read a run, also one that is still going on. Raises RunError if there is none."""
        path = Path(path)
        return cls(path, _read_info(path), lock=None, console=StepConsole(quiet=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        if kind is None:
            self.finish("finished")
            return
        # The first error is the one to show: a full disk must not replace it here.
        with contextlib.suppress(RunError):
            self.finish("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.info.get('kind')}, {self.status})"

    # -- reading -------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.resolve().name

    @property
    def status(self) -> RunStatus:
        """As in run.json, except that a run whose process is dead is `interrupted`, not `running`."""
        status = cast("RunStatus", self.info.get("status", "interrupted"))
        if status == "running" and self._lock is None and not is_locked(self.path):
            return "interrupted"
        return status

    @property
    def last_step(self) -> int | None:
        """Greatest step logged so far, or the one in run.json where nothing was logged."""
        steps = [row["step"] for row in self.metrics() if isinstance(row.get("step"), int)]
        return max(steps) if steps else self.info.get("last_step")

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl, in the order they were logged. Raises RunError on a damaged line."""
        return self._metrics.read()

    def samples(self) -> list[dict[str, Any]]:
        """Rows of samples.jsonl. Raises RunError on a damaged line."""
        return self._samples.read()

    def config_dict(self) -> dict[str, Any]:
        """The resolved config. Raises RunError if it is missing or damaged."""
        return read_object(self.path / "config.json")

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, directory) of every complete checkpoint, oldest first."""
        return self._checkpoints.all()

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """(step, directory) of the newest checkpoint, or None."""
        return self._checkpoints.latest()

    # -- writing -------------------------------------------------------------------------------------------

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line of metrics and show it on the console.

        Args:
            step: of the loop; several calls may have the same one.
            metrics: `area/name` → number, list of numbers or text; NumPy and torch scalars are fine.
            Non-finite
                numbers are written as null, and counted in `nonfinite/count` of the same line.

        Raises:
            RunError: a key without an area, a read-only run, or a disk that is full.
        """
        bad = [key for key in metrics if not _METRIC_KEY.fullmatch(key)]
        if bad:
            raise RunError(f"Metric keys look like 'area/name'; received {', '.join(map(repr, bad))}.")
        row: dict[str, Any] = {"step": int(step)}
        nonfinite = 0
        for key, value in metrics.items():
            row[key], count = to_plain(value)
            nonfinite += count
        if nonfinite:
            row["nonfinite/count"] = nonfinite
        with self._writable():
            self._metrics.append([row])
        self.info["last_step"] = int(step)
        self._console.step(int(step), row)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append samples; see `core.report` for the keys that the sample browser knows. Raises RunError as
        `log`."""
        plain = [
            {"step": int(step), **{key: to_plain(value)[0] for key, value in row.items()}} for row in rows
        ]
        with self._writable():
            if plain:
                self._samples.append(plain)

    def note(self, text: str) -> None:
        """One line on the console, above the progress bar; nothing is written."""
        self._console.note(text)

    def save_checkpoint(self, step: int, write: Callable[[Path], None], keep: int = 1) -> Path:
        """Write a checkpoint that is either complete or absent, then remove the oldest beyond `keep`.

        Args:
            step: of the loop.
            write: called with an empty directory to fill.
            keep: newest checkpoints left (at least 1).

        Returns:
            The checkpoint's directory.

        Raises:
            RunError: `write` failed or the disk is full; the earlier checkpoints are untouched.
        """
        with self._writable():
            self._metrics.sync()
            self._samples.sync()
        final = self._checkpoints.save(step, write)
        with self._writable():
            self._write_info()
        for path in self._checkpoints.prune(keep):
            self.note(f"could not remove the old checkpoint {path.name}")
        return final

    def truncate_after(self, step: int) -> None:
        """Forget everything later than `step` (checkpoints, metrics, samples), so that a replay writes the
        same files.

        Each file is replaced atomically, and a second call does no harm, so a kill in between costs nothing.

        Raises:
            RunError: a damaged line, a read-only run or a full disk.
        """
        with self._writable():
            self._checkpoints.discard_after(step)
            self._metrics.keep_up_to(step)
            self._samples.keep_up_to(step)
        self.info["last_step"] = self.last_step

    def finish(self, status: RunStatus = "finished") -> None:
        """Write the final status, let go of the lock. A second call does nothing. Raises RunError (full
        disk)."""
        if self._lock is None:
            return
        self._console.close()
        self.info.update(status=status, ended=utc_now())
        try:
            with _writing(self.path):
                self._write_info()
        finally:
            self._metrics.close()
            self._samples.close()
            self._lock.release()
            self._lock = None

    # -- inside --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writable(self) -> Generator[None]:
        if self._lock is None:
            raise RunError(f"The run {self.path} is open for reading only. Use Run.resume to go on with it.")
        with _writing(self.path):
            yield

    def _write_info(self) -> None:
        replace_file(self.path / "run.json", pretty_json(self.info))


@dataclass(frozen=True)
class RunSummary:
    """One line of `postgrad runs`.

    Attributes:
        path, kind, status: of the run; status is `damaged` when it cannot be read.
        last_step: greatest step logged, or None.
        pass_rate, pass_rate_low, pass_rate_high: last held-out pass rate and its 95 % interval, or None.
        started, ended: UTC, ISO 8601.
        size_bytes: of all its files.
    """

    path: Path
    kind: str
    status: str
    last_step: int | None = None
    pass_rate: float | None = None
    pass_rate_low: float | None = None
    pass_rate_high: float | None = None
    started: str | None = None
    ended: str | None = None
    size_bytes: int = 0


def list_runs(root: Path | str, *, depth: int = 3) -> list[RunSummary]:
    """Summaries of `root` itself or of the runs below it, at most `depth` levels down, oldest first.

    A run that cannot be read is listed as damaged. Raises RunError if `root` is no directory.
    """
    root = Path(root)
    if not root.is_dir():
        raise RunError(f"{root} is no directory. Name the directory that holds your runs: postgrad runs DIR.")
    found = [_summarise(path) for path in _find_runs(root, depth)]
    return sorted(found, key=lambda summary: (summary.started or "", str(summary.path)))


def _find_runs(root: Path, depth: int) -> list[Path]:
    if (root / "run.json").is_file():
        return [root]
    if depth == 0:
        return []
    with contextlib.suppress(OSError):
        children = sorted(
            entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
        return [run for child in children for run in _find_runs(child, depth - 1)]
    return []


def _summarise(path: Path) -> RunSummary:
    try:
        run = Run.open(path)
        rows = run.metrics()
        evaluated = [row for row in rows if row.get("eval/pass_rate") is not None]
        last_eval: dict[str, Any] = evaluated[-1] if evaluated else {}
        return RunSummary(
            path=path,
            kind=str(run.info.get("kind", "")),
            status=run.status,
            last_step=run.last_step,
            pass_rate=last_eval.get("eval/pass_rate"),
            pass_rate_low=last_eval.get("eval/pass_rate_low"),
            pass_rate_high=last_eval.get("eval/pass_rate_high"),
            started=run.info.get("started"),
            ended=run.info.get("ended"),
            size_bytes=tree_size_bytes(path),
        )
    except RunError:
        return RunSummary(path=path, kind="", status="damaged", size_bytes=tree_size_bytes(path))


def check_free(path: Path | str, *, overwrite: bool = False) -> None:
    """Whether `Run.create` would take this directory, without touching it: to ask before long preparations.

    Raises:
        RunError: it is used, with the exits named, or no directory.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file. Choose another name with --out.")
    if path.is_dir():
        _refuse_used(path, overwrite)


def _clear_for_new_run(path: Path, overwrite: bool) -> None:
    if _refuse_used(path, overwrite):
        for name in _OWN_NAMES:
            remove_tree(path / name)


def _refuse_used(path: Path, overwrite: bool) -> bool:
    """Raises RunError if a new run may not go there; else whether there is an old one to throw away."""
    leftovers = sorted(entry.name for entry in path.iterdir() if entry.name != ".lock")
    leftovers = [name for name in leftovers if not name.startswith(".tmp-")]
    if not leftovers:
        return False
    if not (path / "run.json").exists():
        some = ", ".join(leftovers[:3]) + (", …" if len(leftovers) > 3 else "")
        raise RunError(f"{path} is not empty and holds no run ({some}).\n  Choose another name with --out.")
    if not overwrite:
        raise RunError(
            f"{path} already holds a run.\n"
            "  Go on with it: --resume.  Keep it: choose another name with --out.  "
            "Throw it away: --overwrite."
        )
    return True


def _read_info(path: Path) -> dict[str, Any]:
    if not (path / "run.json").exists():
        what = "does not exist" if not path.exists() else "holds no run (run.json is missing)"
        raise RunError(f"{path} {what}. `postgrad runs` lists the runs below a directory.")
    return read_object(path / "run.json")


@contextlib.contextmanager
def _writing(path: Path) -> Generator[None]:
    """Turn an OSError into a RunError with the next step in it."""
    try:
        yield
    except OSError as error:
        raise RunError(explain_os_error(error, path)) from error
