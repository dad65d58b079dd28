"""`postgrad playbook export`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

from postgrad.playbook.export import KINDS, Kind, export, skill_name, write
from postgrad.playbook.source import open_playbook


def main(
    path: Path,
    kind: str = "agents",
    out: Path | None = None,
    *,
    at: str | None = None,
    name: str | None = None,
    description: str = "",
    quarantined: bool = False,
    overwrite: bool = False,
    json_output: bool = False,
) -> int:
    """Writes a playbook as a file for agents; see `postgrad playbook export --help`.

    Args:
        path: run's directory, log or text.
        kind: agents, claude, skill, text or json.
        out: the file; "-" prints it; default: the kind's name, here.
        at: version or mark of a log.
        name, description: of a skill; default: from the playbook.
        quarantined: write bullets in quarantine too.
        overwrite: replace a text or JSON that is there.
        json_output: print what was done as JSON.
    """
    found = open_playbook(path, at)
    options: dict[str, Any] = {
        "name": name if name is not None else skill_name(found.name),
        "description": description,
        "quarantined": quarantined,
    }
    for problem in found.problems:
        print(f"{found.path}: {problem}", file=sys.stderr)
    if out is not None and str(out) == "-":
        made = export(found.playbook, cast("Kind", kind), **options)
        sys.stdout.write(made.data.decode())
        return 0
    target = out or Path(KINDS.get(kind, kind))
    made = write(target, found.playbook, cast("Kind", kind), overwrite=overwrite, **options)
    record = {
        "path": str(target),
        "bytes": len(made.data),
        "written": made.num_written,
        "left_out": made.num_left_out,
    }
    if json_output:
        print(json.dumps(record, ensure_ascii=False))
    else:
        left = f", {made.num_left_out:,} left out" if made.num_left_out else ""
        print(f"{target}: {made.num_written:,} bullets{left}, {len(made.data):,} bytes")
    return 0
