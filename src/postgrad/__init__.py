"""postgrad: everything a language model learns after pre-training.

    import postgrad as pg

    model = pg.load("path/to/model")
    run = pg.rl.train(model, task="chain_sum", out="runs/first")

Rooms are imported on first use; each has the same doors (`config`, `ops`, a loop) and says in its docstring where to start.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from postgrad._version import __version__

if TYPE_CHECKING:
    from postgrad import influence, mara, memory, playbook, rl, scaling, tasks, thought
    from postgrad.core.errors import PostgradError
    from postgrad.core.models import Model, load
    from postgrad.core.run import Run

__all__ = [
    "Model",
    "PostgradError",
    "Run",
    "__version__",
    "influence",
    "load",
    "mara",
    "memory",
    "playbook",
    "rl",
    "scaling",
    "tasks",
    "thought",
]

_MODULES = {
    "influence": "postgrad.influence",
    "mara": "postgrad.mara",
    "memory": "postgrad.memory",
    "playbook": "postgrad.playbook",
    "rl": "postgrad.rl",
    "scaling": "postgrad.scaling",
    "tasks": "postgrad.tasks",
    "thought": "postgrad.thought",
}
_NAMES = {
    "Model": "postgrad.core.models",
    "PostgradError": "postgrad.core.errors",
    "Run": "postgrad.core.run",
    "load": "postgrad.core.models",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
