"""Agents that learn from experience by growing their own context: "Agentic Context Engineering" (ACE, arXiv 2510.04618).
A Generator works with a playbook of short bullets in its prompt, a Reflector says what helped and what was missing, a Curator
asks for small changes, and a merge without any model applies them: nobody ever rewrites the whole.

Departures from the paper:
1. Samples are worked on side by side: each starts from the playbook as it was `window` samples before it (1 = the paper).
2. Prompts hold neither counters nor sections, so that they grow at their end only; the beginning of an id says the section.
3. What a Curator may not do (copy, contradict, take out what has helped, forge) is refused, and the refusal kept.
4. Embeddings only propose what looks alike; rules block what contradicts, and the Curator decides.

Start at `book.py` (bullets, deltas, `fold`), then `log.py`, `study.py` (one sample), `curate.py` (what is done of what is asked),
`learning.py` (the loop), `view.py` (the text in the prompt), `api.py`; `clean.py`, `similarity.py`, `dedup.py` guard, `traces.py`
reads what was done elsewhere, `export.py`, `serve.py` and `timeline.py` give out.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from postgrad.playbook.config import LearnConfig

if TYPE_CHECKING:
    from postgrad.playbook import ops
    from postgrad.playbook.api import OpenPlaybook, evaluate, learn, open_playbook
    from postgrad.playbook.book import Bullet, Delta, Playbook, difference, fold
    from postgrad.playbook.log import PlaybookLog
    from postgrad.playbook.text import format_text, parse_text
    from postgrad.playbook.traces import Trace, read_traces
    from postgrad.playbook.view import render

__all__ = [
    "Bullet",
    "Delta",
    "LearnConfig",
    "OpenPlaybook",
    "Playbook",
    "PlaybookLog",
    "Trace",
    "difference",
    "evaluate",
    "fold",
    "format_text",
    "learn",
    "open_playbook",
    "ops",
    "parse_text",
    "read_traces",
    "render",
]

_PLACES = {
    "Bullet": "book",
    "Delta": "book",
    "OpenPlaybook": "api",
    "Playbook": "book",
    "PlaybookLog": "log",
    "Trace": "traces",
    "difference": "book",
    "evaluate": "api",
    "fold": "book",
    "format_text": "text",
    "learn": "api",
    "open_playbook": "api",
    "parse_text": "text",
    "read_traces": "traces",
    "render": "view",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("postgrad.playbook.ops")
    if name in _PLACES:
        return getattr(import_module(f"postgrad.playbook.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
