"""`postgrad rl train --cluster`: the trainer as an actor of a Ray cluster, watched from here.

The actor runs `rl.api.train`; generators and verifiers are actors that it starts, and they end with it. When it dies it is
started again and goes on from the last checkpoint. The run directory is on storage that this machine and all nodes see.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from postgrad.commands.rl_work import train_here
from postgrad.core.cluster import actor_options, cluster_gpus, connect, why_it_died
from postgrad.core.config import validate
from postgrad.core.errors import PostgradError, RunError
from postgrad.core.run import Run, check_free
from postgrad.rl.config import RLConfig

_CALLS_AT_ONCE = 4
_POLL_S = 1.0


def train_there(config: RLConfig, out: Path, *, resume: bool, overwrite: bool, command: list[str]) -> Run:
    """Trains in an actor of `config.cluster`, restarted when it dies.

    Raises:
        PostgradError: as `rl.api.train`; when the actor dies again and again without a new checkpoint; when it does not see
            the run directory.
        KeyboardInterrupt: after Ctrl-C, when the checkpoint is written.
    """
    out = out.absolute()
    if not resume:
        check_free(out, overwrite=overwrite)
    address = config.cluster.address or "local"
    ray = connect(address)
    watch = _Watch(ray, config, out, command)
    before = None if resume else _identity(out)
    failures, reached = 0, _latest(out)
    try:
        with watch.signals():
            while True:
                try:
                    watch.run_once(resume=resume, overwrite=overwrite)
                    return Run.open(out)
                except ray.exceptions.RayActorError as error:
                    why = why_it_died(error)
                if watch.num_signals:
                    raise KeyboardInterrupt
                resume = resume or _identity(out) not in (None, before)
                failures = 0 if _latest(out) != reached else failures
                reached = _latest(out)
                failures += 1
                if failures > config.cluster.max_restarts:
                    raise RunError(
                        f"The trainer ended {failures} times without a new checkpoint ({why}). Its words are above. Go on with: "
                        f"postgrad rl train --out {out} --resume --cluster {address}"
                    )
                _say(f"the trainer ended ({why}); another one goes on from {_where(reached)}")
    finally:
        watch.end()
        if address == "local":
            ray.shutdown()


def _identity(out: Path) -> str | None:
    """Which run is in `out`."""
    with contextlib.suppress(RunError):
        return str(Run.open(out).info.get("started"))
    return None


def _latest(out: Path) -> str | None:
    with contextlib.suppress(RunError):
        latest = Run.open(out).latest_checkpoint()
        return latest[1].name if latest else None
    return None


def _where(checkpoint: str | None) -> str:
    return checkpoint or "the beginning"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Watch:
    """The trainer's actor as this process sees it: starts it, prints its lines, passes Ctrl-C on."""

    def __init__(self, ray: Any, config: RLConfig, out: Path, command: list[str]) -> None:
        self.ray, self.config, self.out, self.command = ray, config, out, command
        self.num_signals = 0
        self._actor: Any = None
        address = config.cluster.address or "local"
        gpus = config.cluster.trainer_gpus
        if gpus is None:
            gpus = 1.0 if config.model.device != "cpu" and cluster_gpus(ray) else 0.0
        options = actor_options(address, 1, gpus)
        self._make = ray.remote(max_concurrency=_CALLS_AT_ONCE, max_restarts=0, **options)(TrainerActor)

    def run_once(self, *, resume: bool, overwrite: bool) -> None:
        """Until the trainer is done. Raises what ended it, `ray.exceptions.RayActorError` where it died."""
        ray = self.ray
        threads = os.environ.get("OMP_NUM_THREADS") if self.config.cluster.address == "local" else None
        actor = self._actor = self._make.remote(threads)
        self._check_storage(actor)
        config = self.config.model_dump(mode="json")
        done = actor.train.remote(config, str(self.out), resume, overwrite, self.command)
        passed_on = 0
        while True:
            if self.num_signals > passed_on:
                passed_on = self.num_signals
                actor.stop.remote()
            finished, _ = ray.wait([done], timeout=0)
            for text in ray.get(actor.lines.remote(0.0 if finished else _POLL_S)):
                sys.stderr.write(text)
            sys.stderr.flush()
            if finished:
                break
        kind, text = ray.get(done)
        self.end()
        if kind == "interrupted":
            raise KeyboardInterrupt
        if kind == "failed":
            raise PostgradError(text)

    def end(self) -> None:
        """Ends the actor, and with it those that it started."""
        if self._actor is not None:
            with contextlib.suppress(Exception):
                self.ray.kill(self._actor)
            self._actor = None

    def _check_storage(self, actor: Any) -> None:
        word = secrets.token_hex(8)
        self.out.mkdir(parents=True, exist_ok=True)
        probe = self.out / f".tmp-probe-{word}"
        try:
            probe.write_text(word)
            answer = self.ray.get(actor.answer_probe.remote(str(probe), word))
            if answer or probe.read_text() != word[::-1]:
                raise RunError(
                    f"The trainer's node does not see {self.out} as this machine does ({answer or 'what it wrote is not here'}). "
                    "Give --out on storage that this machine and all nodes of the cluster have at the same path."
                )
        finally:
            probe.unlink(missing_ok=True)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM is passed on by the loop, the second one ends all."""

        def handle(number: int, frame: FrameType | None) -> None:
            self.num_signals += 1
            if self.num_signals > 1:
                raise KeyboardInterrupt
            _say(
                "Interrupted: the trainer finishes its update and writes a checkpoint (again to stop at once)."
            )

        try:
            old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread
            yield
            return
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class TrainerActor:
    """The actor: trains in one call while others read its lines or ask it to stop.

    Args:
        threads: OMP_NUM_THREADS of who started it; None = all cores.
    """

    def __init__(self, threads: str | None = None) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stop = Event()
        self._threads = threads

    def answer_probe(self, path: str, word: str) -> str:
        """Turns round the word that is in a file; what is wrong, if anything is."""
        try:
            if Path(path).read_text() != word:
                return "a file has other contents there"
            Path(path).write_text(word[::-1])
        except OSError as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def train(
        self, config: dict[str, Any], out: str, resume: bool, overwrite: bool, command: list[str]
    ) -> tuple[str, str]:
        """(`finished`, `interrupted` or `failed`, why). What is not a `PostgradError` is raised."""
        import torch

        # Ray sets one thread for an actor that asks for no more.
        os.environ.pop("OMP_NUM_THREADS", None)
        if self._threads:
            os.environ["OMP_NUM_THREADS"] = self._threads
        torch.set_num_threads(int(self._threads or 0) or os.cpu_count() or 1)
        lines: Any = _Lines(self._lines)
        with contextlib.redirect_stdout(lines), contextlib.redirect_stderr(lines):
            try:
                train_here(
                    validate(RLConfig, config),
                    Path(out),
                    resume=resume,
                    overwrite=overwrite,
                    command=command,
                    stop=self._stop,
                )
            except KeyboardInterrupt:
                return "interrupted", ""
            except PostgradError as error:
                return "failed", str(error)
        return "finished", ""

    def stop(self) -> None:
        """Asks for a checkpoint and a clean end."""
        self._stop.set()

    def lines(self, timeout_s: float) -> list[str]:
        """What was written since the last call; waits up to `timeout_s` for something."""
        texts: list[str] = []
        with contextlib.suppress(queue.Empty):
            texts.append(self._lines.get(timeout=timeout_s) if timeout_s else self._lines.get_nowait())
            while True:
                texts.append(self._lines.get_nowait())
        return texts


class _Lines:
    """A text file that writes into a queue."""

    encoding = "utf-8"

    def __init__(self, texts: queue.SimpleQueue[str]) -> None:
        self._texts = texts

    def write(self, text: str) -> int:
        self._texts.put(text)
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False
