"""`postgrad scaling plan`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from postgrad.core.config import validate
from postgrad.core.console import print_rows
from postgrad.scaling.api import fit
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.planning import plan_run
from postgrad.scaling.records import plain, plan_record


def main(log: Path, options: Mapping[str, Any], *, json_output: bool) -> int:
    """Prints where to stop and when to look again; see `postgrad scaling plan --help`."""
    found = fit(log, validate(ScalingConfig, options))
    plan = plan_run(found)
    if json_output:
        print(json.dumps(plain({"name": found.name, "status": found.status, **plan_record(plan)}), indent=2))
        return 0
    for words in plan.advice:
        print(words)
    for words in (*found.curve.notes, *found.cautions):
        print(f"  note: {words}")
    if plan.shares:
        rows = [(f"{100 * share:g} % of A", estimate.show()) for share, estimate in plan.shares.items()]
        print_rows(("", found.curve.axis.unit), rows)
    return 0
