"""Every error postgrad raises on purpose.

    PostgradError
    ├── ConfigError        a value, key or combination in a config or on the command line
    ├── DataError          a file of prompts or documents (names file and line)
    ├── ModelError         a directory that is no model, a tokenizer that cannot be used, ...
    ├── TaskError          an unknown task, a verifier that cannot be loaded
    ├── EngineError        generation cannot go on
    │   └── ChatError      a model behind a server gave no usable reply
    ├── RunError           a run directory that is used, locked, damaged or full
    ├── TrainingError      the optimisation cannot go on (all samples failed, non-finite loss)
    ├── SamplingError      draws from a posterior that cannot be had, or not be trusted
    └── MissingExtraError  an optional dependency; the message has the install command

A message says what is wrong, the value received, what is valid, and the next step. A bad *sample* is data
(counted, with its stop reason), never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PostgradError(Exception):
    """Base of every deliberate error; the command line prints it without a traceback and exits with 2."""


class ConfigError(PostgradError):
    """A config value, key or combination that cannot be used."""


class DataError(PostgradError):
    """A file of prompts or documents that cannot be read; names the file and the line."""


class ModelError(PostgradError):
    """A path that is no causal language model, or one that lacks something postgrad needs."""


class TaskError(PostgradError):
    """An unknown task or a verifier that cannot be loaded."""


class EngineError(PostgradError):
    """Generation cannot go on."""


class ChatError(EngineError):
    """A model behind a server gave no usable reply, after all tries."""


class RunError(PostgradError):
    """A run directory that is already used, locked by another process, damaged or on a full disk."""


class TrainingError(PostgradError):
    """Training cannot go on."""


class SamplingError(PostgradError):
    """A chain that diverged, or draws whose diagnostics fail."""


class MissingExtraError(PostgradError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed.\n"
            f"  Install it with: pip install 'postgrad[{extra}]'"
        )
        self.package = package
        self.extra = extra


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, or torch's of a GPU or of the CPU.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("can't allocate memory: you tried to allocate 9 bytes"))
    (True, True)
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A ' Did you mean …?' clause for an unknown name, or the list of valid ones when none is close.

    >>> nearest("chain_sun", ["chain_sum", "gcd"])
    "Did you mean 'chain_sum'?"
    >>> nearest("zzz", ["b", "a"])
    'Valid: a, b.'
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    shown = ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")
    return f"Valid: {shown}."
