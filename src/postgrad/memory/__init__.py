"""New facts without forgetting: "Continual Learning via Sparse Memory Finetuning" (arXiv 2510.15103), on Memory Layers at Scale
(2412.09764) with product keys (1907.05242). A batch touches a few slots of a value table, TF-IDF says which of them are about
this text, and only those rows change: a learned fact is a patch.

Departures from the papers:
1. The optimizer's state lives for one edit, so that a patch depends on the model and its texts alone.
2. Memory can be added beside the MLP of a pretrained model (`mode = "additive"`), not only replace it.
3. The number of slots need not be a square: half-key sets have the two divisors of N that are nearest to each other.

Start at `ops.py` (which slots), then `sparse.py` (one edit), `learning.py` (the stream), `store.py` (patches), `rivals.py` and
`plan.py` (what it will take). The layer itself is in `core/models/memory`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from postgrad.core.models.memory.config import MemoryConfig
from postgrad.memory.config import HealConfig, LearnConfig, ProfileConfig

if TYPE_CHECKING:
    from postgrad.core.models.memory.attach import attach, set_index
    from postgrad.core.models.memory.shard import shard_values
    from postgrad.memory import ops
    from postgrad.memory.data import Fact, read_facts
    from postgrad.memory.evaluate import answer_questions
    from postgrad.memory.healing import heal
    from postgrad.memory.learning import learn
    from postgrad.memory.plan import plan_edit, read_sizes
    from postgrad.memory.profiling import profile
    from postgrad.memory.store import PatchStore

__all__ = [
    "Fact",
    "HealConfig",
    "LearnConfig",
    "MemoryConfig",
    "PatchStore",
    "ProfileConfig",
    "answer_questions",
    "attach",
    "heal",
    "learn",
    "ops",
    "plan_edit",
    "profile",
    "read_facts",
    "read_sizes",
    "set_index",
    "shard_values",
]

_PLACES = {
    "Fact": "postgrad.memory.data",
    "PatchStore": "postgrad.memory.store",
    "answer_questions": "postgrad.memory.evaluate",
    "attach": "postgrad.core.models.memory.attach",
    "heal": "postgrad.memory.healing",
    "learn": "postgrad.memory.learning",
    "plan_edit": "postgrad.memory.plan",
    "profile": "postgrad.memory.profiling",
    "read_facts": "postgrad.memory.data",
    "read_sizes": "postgrad.memory.plan",
    "set_index": "postgrad.core.models.memory.attach",
    "shard_values": "postgrad.core.models.memory.shard",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("postgrad.memory.ops")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
