"""`postgrad thought eval`: the table of ways."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from postgrad.commands.thought_work import grading, held_out, loaded_team, open_run
from postgrad.core.console import print_rows
from postgrad.core.errors import ConfigError, nearest
from postgrad.core.figures import format_number

if TYPE_CHECKING:
    from postgrad.thought.cases import Case
    from postgrad.thought.evaluation import Evaluation, Way
    from postgrad.thought.team import Team

HEADER = ("way", "right", "95 % interval", "thoughts − it", "95 % interval", "positions", "bits")
NOTE = (
    "Right: mean over agents; 95 % intervals take cases as the unit of chance. Positions and bits: what an agent is given, "
    "mean. Only where thoughts are better than zero, random, shuffled and own does their content matter."
)


def main(run: Path, cases: Path | None, ways: str | None, bits: int | None, json_output: bool) -> int:
    """Measures a team; see `postgrad thought eval --help`."""
    opened = open_run(run)
    work = held_out(opened, cases)

    from postgrad.thought.evaluation import evaluate

    chosen = None if ways is None else check_ways(ways.split(","))
    with loaded_team(opened) as team, grading(opened.config, work) as grader:
        found = evaluate(team, work.held, chosen or usable_ways(team), grader, bits=bits)
        record = describe(team, work.held, found)
    if json_output:
        print(json.dumps({"run": str(run), "thought_bits": bits, **record}, indent=2, ensure_ascii=False))
        return 0
    show_evaluation(record)
    return 0


def check_ways(names: Sequence[str]) -> list[Way]:
    """Raises ConfigError for one that there is not."""
    from postgrad.thought.evaluation import WAYS

    wanted = [name.strip() for name in names]
    for name in wanted:
        if name not in WAYS:
            raise ConfigError(f"Unknown way {name!r}. {nearest(name, WAYS)}")
    return cast("list[Way]", wanted)


def usable_ways(team: Team) -> list[Way]:
    """All ways; without `raw` where an agent is behind a server."""
    from postgrad.thought.evaluation import WAYS

    local = all(agent.embed_width for agent in team.agents)
    return [way for way in WAYS if local or way != "raw"]


def describe(team: Team, cases: Sequence[Case], found: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON."""
    return {
        "agents": [agent.name for agent in team.agents],
        "cases": len(cases),
        "ways": [
            {
                "way": way,
                "accuracy": row.accuracy._asdict(),
                "gain": found.gain("thoughts", cast("Way", way))._asdict()
                if way != "thoughts" and "thoughts" in found.rows
                else None,
                "positions": row.positions,
                "bits": row.bits,
            }
            for way, row in found.rows.items()
        ],
        "warnings": found.warnings,
        "seconds_per_case": found.seconds_per_case,
        "flops_per_case": found.flops_per_case,
    }


def table_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of HEADER."""
    return [
        (
            row["way"],
            f"{row['accuracy']['mean']:.3f}",
            _ends(row["accuracy"]),
            "" if row["gain"] is None else f"{row['gain']['mean']:+.3f}".replace("-", "−"),
            "" if row["gain"] is None else _ends(row["gain"], "+"),
            format_number(round(row["positions"], 1)),
            format_number(round(row["bits"])),
        )
        for row in record["ways"]
    ]


def _ends(interval: Mapping[str, float], sign: str = "") -> str:
    return f"{interval['low']:{sign}.3f} to {interval['high']:{sign}.3f}".replace("-", "−")


def budget_line(record: Mapping[str, Any]) -> str:
    """What an exchange costs beside the language models."""
    return (
        f"Reading and telling thoughts takes {record['flops_per_case']:.2e} FLOP and {1000 * record['seconds_per_case']:.3g} ms "
        "a case beside the language models."
    )


def show_evaluation(record: Mapping[str, Any]) -> None:
    """The table, the budget, what speaks against it."""
    print(f"{record['cases']} cases, {len(record['agents'])} agents")
    print_rows(HEADER, table_rows(record))
    print(f"\n{budget_line(record)}")
    for warning in record["warnings"]:
        print(f"warning: {warning}")
