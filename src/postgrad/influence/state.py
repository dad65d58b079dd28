"""Chains that outlive their process: a directory with a file for each chain, and one for what they all rest on.

    origin.safetensors      EK-FAC's axes and eigenvalues, curvature or damping as measured, and of which input all this is
    chain-0.safetensors     place, generator, draws and token moments of a chain; of stein, what it found when it has ended
    half-0.safetensors      the same of a chain with half the step
    chain.losses            training losses at the draws of all chains, float32 [C, S, N], mapped into memory; half.losses

Each file is written beside its place, forced to the disk and renamed, so it is whole or absent whatever kills the writer, and
what was lost is computed again: scores are then those of a run that was not stopped, bit by bit (on the same device with as
many threads). The axes are kept because a chain's place is written on them, and another machine may find others.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from postgrad.core.errors import ConfigError, RunError
from postgrad.core.runfiles import explain_os_error, remove_tree, sync_directory
from postgrad.influence.config import InfluenceConfig
from postgrad.influence.ekfac import LayerBasis
from postgrad.influence.examples import Examples, Texts
from postgrad.influence.sampler import Basis, Chain

_ORIGIN = "origin"
_AXES = ("output_axes", "input_axes", "eigenvalues")
_EVERY_S = 5.0
_SHARE = 0.05  # of the time is spent on writing, at most


class ChainFiles:
    """The directory. It is a `Keeper` of the sampler.

    Args:
        folder: made if missing.

    Attributes:
        measured: the largest curvature, or λ of stein; None where it is not known yet.

    Raises:
        RunError: it cannot be written.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.measured: float | None = None
        self._identity: dict[str, str] = {}
        self._mapped: list[Any] = []
        self._interrupted = False
        self._last, self._cost = time.monotonic(), 0.0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(".tmp-*"):
                remove_tree(stale)
        except OSError as error:
            raise RunError(explain_os_error(error, self.folder)) from error

    # -- what the chains rest on -----------------------------------------------------------------------------------

    def begin(self, identity: Mapping[str, str], basis: Basis) -> bool:
        """Puts the axes and eigenvalues in place that were kept, and `measured`; whether there were any.

        Args:
            identity: of the input; see `identify`.
            basis: gets them.

        Raises:
            ConfigError: they are of another input; says whether settings, model, training examples or queries differ.
            RunError: a damaged file.
        """
        self._identity = dict(identity)
        if not self._path(_ORIGIN).exists():
            return False
        before = self._metadata(_ORIGIN)
        other = [part for part, digest in identity.items() if before.get(part) != digest]
        if other:
            raise ConfigError(
                f"The chains in {self.folder} were begun with other {' and '.join(other)}. "
                "Give the same again, or begin anew in another directory."
            )
        found = self._read(_ORIGIN)
        for number, layer in enumerate(basis.layers if isinstance(basis, LayerBasis) else []):
            parts = (found.get(f"{name}.{number}") for name in _AXES)  # a norm has no axes
            moved = (None if part is None else part.to(basis.device) for part in parts)
            layer.output_axes, layer.input_axes, layer.eigenvalues = moved
        self.measured = float(found["measured"])
        return True

    def keep_origin(self, basis: Basis, measured: float) -> None:
        """Keeps them for the next time. Raises RunError (full disk)."""
        if self.measured is not None:
            return
        self.measured = measured
        state = {"measured": torch.tensor(measured, dtype=torch.float64)}
        for number, layer in enumerate(basis.layers if isinstance(basis, LayerBasis) else []):
            parts = layer.output_axes, layer.input_axes, layer.eigenvalues
            state |= {
                f"{name}.{number}": part for name, part in zip(_AXES, parts, strict=True) if part is not None
            }
        self._write(_ORIGIN, state, self._identity)

    # -- chains ----------------------------------------------------------------------------------------------------

    def num_draws(self, name: str = "chain") -> int:
        """Draws of all chains of this kind together that are kept."""
        return sum(
            int(self._metadata(path.stem)["num_draws"]) for path in self.folder.glob(f"{name}-*.safetensors")
        )

    def restore(self, name: str, chain: Chain) -> None:
        """See `Keeper`. Raises RunError for a damaged file."""
        if self._path(name).exists():
            chain.load_state_dict(self._read(name))

    def losses(self, name: str, shape: tuple[int, int, int]) -> Tensor:
        """See `Keeper`. Room for all of it is taken at once. Raises RunError (full disk)."""
        path, size = self.folder / f"{name}.losses", 4 * math.prod(shape)
        try:
            with path.open("r+b" if path.exists() else "w+b") as file:
                if hasattr(os, "posix_fallocate"):  # without it a full disk would end the process
                    os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(size)
            self._mapped.append(np.memmap(path, np.float32, "r+", shape=shape))
        except OSError as error:
            raise RunError(f"Cannot keep {path.name}. {explain_os_error(error, self.folder)}") from error
        return torch.from_numpy(self._mapped[-1])

    def keep(self, name: str, chain: Chain, *, now: bool = False) -> None:
        """See `Keeper`: every five seconds, or less often where writing takes longer. Raises RunError (full disk)."""
        pause = max(_EVERY_S, self._cost / _SHARE)
        if now or self._interrupted or time.monotonic() - self._last > pause:
            started = time.monotonic()
            for mapped in self._mapped:  # before the state that counts them
                mapped.flush()
            self._write(name, chain.state_dict(), {"num_draws": str(chain.num_draws)})
            self._last = time.monotonic()
            self._cost = self._last - started
        if self._interrupted:
            raise KeyboardInterrupt

    def restore_found(self, name: str) -> dict[str, Tensor] | None:
        """What a chain found that came to its end, as `keep_found` was given it. Raises RunError for a damaged file."""
        return self._read(name) if self._path(name).exists() else None

    def keep_found(self, name: str, found: Mapping[str, Tensor], num_draws: int) -> None:
        """Keeps what a chain of `stein` found. Raises RunError (full disk)."""
        self._write(name, found, {"num_draws": str(num_draws)})

    def stop_if_asked(self) -> None:
        """Raises KeyboardInterrupt after Ctrl-C or SIGTERM."""
        if self._interrupted:
            raise KeyboardInterrupt

    @contextmanager
    def stopping_cleanly(self) -> Generator[None]:
        """The first Ctrl-C or SIGTERM lets the running step end and keeps the chain; the second one ends at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            del number, frame
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        try:
            old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals stay as they are
            yield
            return
        try:
            yield
        finally:
            self._interrupted = False
            for number, handler in old.items():
                signal.signal(number, handler)

    def remove(self) -> None:
        """Removes all that is kept: of no use once the scores are written."""
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob("*.losses")]:
            path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    # -- files -----------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _write(self, name: str, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        final = self._path(name)
        temporary = self.folder / f".tmp-{name}-{os.getpid()}"
        tensors = {key: part.detach().cpu().contiguous() for key, part in state.items()}
        try:
            save_file(tensors, temporary, metadata)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(final)
            sync_directory(self.folder)
        except (OSError, SafetensorError) as error:
            told = error if isinstance(error, OSError) else OSError(str(error))
            raise RunError(f"Cannot keep {final.name}. {explain_os_error(told, self.folder)}") from error

    def _read(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self._path(name))
        except (OSError, SafetensorError) as error:
            raise RunError(self._damaged(name, error)) from error

    def _metadata(self, name: str) -> dict[str, str]:
        try:
            with safe_open(self._path(name), "pt") as file:
                return dict(file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise RunError(self._damaged(name, error)) from error

    def _damaged(self, name: str, error: Exception) -> str:
        return f"{self._path(name)} is damaged: {error}. Delete it, and what it holds is computed again."


def identify(
    module: nn.Module, train: Examples, queries: Examples, config: InfluenceConfig
) -> dict[str, str]:
    """A digest each of settings, model, training examples and queries. Of examples that are no texts it knows their number and
    weights alone."""
    model: Any = hashlib.blake2b(digest_size=12)
    for name, tensor in module.state_dict().items():
        model.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        model.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    settings = hashlib.blake2b(config.model_dump_json().encode(), digest_size=12)
    return {
        "settings": settings.hexdigest(),
        "model": model.hexdigest(),
        "training examples": _digest(train),
        "queries": _digest(queries),
    }


def _digest(examples: Examples) -> str:
    content: Any = examples.weights.tolist()
    if isinstance(examples, Texts):
        content = content, examples.tokens, examples.starts
    return hashlib.blake2b(repr(content).encode(), digest_size=12).hexdigest()
