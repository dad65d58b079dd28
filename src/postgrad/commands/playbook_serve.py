"""`postgrad playbook serve`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from postgrad.playbook.serve import serve


def main(path: Path, *, trust: bool = False, budget_tokens: int = 8000, http: int | None = None) -> int:
    """Serves a playbook to agents over MCP; see `postgrad playbook serve --help`.

    Args:
        path: run's directory or log; a .jsonl that is not there is made with the first addition.
        trust: additions are shown at once; without, after `postgrad playbook approve`.
        budget_tokens: of the resource and the prompt.
        http: port on 127.0.0.1, instead of standard input and output.
    """
    if http is not None:
        print(f"http://127.0.0.1:{http}/mcp", file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt):
        serve(path, trust=trust, budget_tokens=budget_tokens, http=http)
    return 0
