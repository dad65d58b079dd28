"""The process that runs verifiers; started by `pool`, one per worker. Imports no torch.

It serves chunks of pickled items over one pipe, answers item by item, and exits when the pipe closes, however
the parent ended. An item that never returns is ended from two sides: the parent kills the process at its time
limit, and shortly after that an alarm does, should the parent be busy with something else or be gone.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import random
import signal
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from postgrad.core.protocols import Verifier
from postgrad.core.types import Prompt, VerdictStatus
from postgrad.tasks.config import TaskConfig
from postgrad.tasks.load import make_verifier

Outcome = tuple[float | None, VerdictStatus, str]
"""Score, status, detail: a Verdict as a plain tuple."""

_MAX_DETAIL_CHARACTERS = 1000


def main(settings: Mapping[str, Any]) -> None:
    """Serve until the pipe closes. Never returns.

    Protocol, to the parent: `("ready",)` once; then for each chunk `("begun",)`, and for each item of it
    `("done", seconds, score, status, detail)`.

    Args:
        settings: `fd`, the pipe; `tasks`, one TaskConfig as a dict per task; `start_s`, most seconds for
            building the verifiers; `item_s`, most seconds for one item if the parent does not act.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, settings["start_s"])
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # what a reward prints goes to stderr: stdout belongs to the command
    channel = Connection(settings["fd"])
    verifiers = {config["name"]: build_verifier(config) for config in settings["tasks"]}
    try:
        channel.send(("ready",))
        signal.setitimer(signal.ITIMER_REAL, 0)
        while True:
            serve_chunk(channel, channel.recv(), verifiers, settings["item_s"])
    except (EOFError, OSError):
        os._exit(0)  # at once: a reward may have left threads behind


def build_verifier(config: Mapping[str, Any]) -> Verifier | str:
    """The verifier of a task, or the text of the error that prevents it (the detail of its verdicts)."""
    try:
        return make_verifier(TaskConfig.model_validate(config))
    except BaseException as error:
        return describe(error)


def serve_chunk(
    channel: Connection, items: list[bytes], verifiers: Mapping[str, Verifier | str], item_s: float
) -> None:
    """Judge the items in order and answer each one at once."""
    channel.send(("begun",))
    for item in items:
        signal.setitimer(signal.ITIMER_REAL, item_s)
        before = time.monotonic()
        outcome = judge(item, verifiers)
        seconds = time.monotonic() - before
        signal.setitimer(signal.ITIMER_REAL, 0)  # a parent that is busy for long may keep `send` waiting
        channel.send(("done", seconds, *outcome))


def judge(item: bytes, verifiers: Mapping[str, Verifier | str]) -> Outcome:
    """Run the verifier of one pickled (prompt fields, completion); what it raises becomes status `error`."""
    try:
        (prompt_id, text, messages, answer, task, metadata), completion = pickle.loads(item)
        verifier = verifiers[task]
        if isinstance(verifier, str):
            return None, "error", verifier
        random.seed(0)  # a verifier that draws numbers does not depend on what ran before it
        score = verifier(Prompt(prompt_id, text, messages, answer, task, metadata), completion)
        return checked_score(score)
    except BaseException as error:  # SystemExit too: a reward must not end the worker
        return None, "error", describe(error)


def checked_score(score: object) -> Outcome:
    """A verifier's return value as an outcome.

    >>> checked_score(True), checked_score(float("nan"))[:2]
    ((1.0, 'ok', ''), (None, 'non_finite'))
    >>> checked_score("1")
    (None, 'error', "the reward returned '1' (str), not a number")
    """
    if isinstance(score, (str, bytes)) or not hasattr(score, "__float__"):
        return None, "error", f"the reward returned {repr(score)[:80]} ({type(score).__name__}), not a number"
    number = float(score)  # pyright: ignore[reportArgumentType]
    if not math.isfinite(number):
        return None, "non_finite", f"the reward returned {number}"
    return number, "ok", ""


def describe(error: BaseException) -> str:
    """Class and text of an exception, shortened; also of one whose text cannot be had."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        text = type(error).__name__
    return text[:_MAX_DETAIL_CHARACTERS]
