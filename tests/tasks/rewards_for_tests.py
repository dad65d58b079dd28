"""Rewards that behave, and rewards that do not; loaded by path in worker processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

NUMBER = 3


def obey(prompt, completion):
    """Does what the completion says."""
    word, _, argument = completion.partition(" ")
    actions = {
        "score": lambda: float(argument),
        "answer": lambda: float(prompt.answer == argument),
        "hang": _hang,
        "sleep": lambda: time.sleep(float(argument)) or 1.0,
        "exit": lambda: os._exit(int(argument)),
        "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "raise": lambda: _raise(argument),
        "system_exit": lambda: sys.exit(1),
        "text": lambda: argument,
        "none": lambda: None,
        "numpy": lambda: np.float32(0.5),
        "long_error": lambda: _raise("\U0001f600" * 10_000),
        "length": lambda: float(len(completion)),
        "print": lambda: print("noise") or 1.0,
        "random": lambda: random.random(),
        "hash": lambda: float(hash("a") % 1000),
        "torch": lambda: float("torch" in sys.modules),
        "child": lambda: _child(argument),
        "meta": lambda: float(prompt.metadata[argument]),
    }
    return actions[word]()


def _hang():
    while True:
        pass


def _raise(text):
    raise ValueError(text)


def _child(path):
    """Starts a process that outlives a worker which is only killed itself; then hangs."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(path).write_text(str(child.pid))
    _hang()


def one_argument(prompt):
    return 1.0
