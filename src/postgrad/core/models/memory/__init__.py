"""Memory layers inside a model: a table of values that a few slots at a time can be changed of.

They live in core, since every room may be handed a model that has them; teaching them is the room `memory`. Start at
`layer.py`, then `attach.py`; the equations are in `ops.py` and `pq.py`.
"""

from __future__ import annotations

from postgrad.core.models.memory.attach import (
    attach,
    load_memory,
    memory_config,
    memory_layers,
    set_index,
)
from postgrad.core.models.memory.config import MemoryConfig
from postgrad.core.models.memory.layer import Accesses, MemoryLayer, Selection

__all__ = [
    "Accesses",
    "MemoryConfig",
    "MemoryLayer",
    "Selection",
    "attach",
    "load_memory",
    "memory_config",
    "memory_layers",
    "set_index",
]
