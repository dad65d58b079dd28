"""`postgrad thought inspect`: who holds which thoughts, as one page."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postgrad.commands.thought_eval import HEADER, NOTE, budget_line, describe, table_rows
from postgrad.commands.thought_fit import RESULT_FILE, holders_figure, read_result
from postgrad.commands.thought_map import holders_map
from postgrad.commands.thought_work import Opened, grading, held_out, loaded_team, open_run
from postgrad.core.console import print_rows
from postgrad.core.errors import ConfigError
from postgrad.core.run import Run
from postgrad.core.runfiles import pretty_json, replace_file, to_plain

if TYPE_CHECKING:
    from torch import Tensor

    from postgrad.thought.cases import Case, Grader
    from postgrad.thought.evaluation import Evaluation
    from postgrad.thought.structure import Structure
    from postgrad.thought.team import Team

KIND = "thought.inspect"
_ABLATED, _DESCRIBED, _CONTEXTS, _TEXT = 8, 20, 3, 160


def main(
    run: Path,
    cases: Path | None,
    ablate: tuple[int, ...],
    most: int,
    out: Path | None,
    json_output: bool,
) -> int:
    """Writes the page; see `postgrad thought inspect --help`."""
    opened = open_run(run)
    num_thoughts = opened.config.autoencoder.num_thoughts
    for number in ablate:
        if not 0 <= number < num_thoughts:
            raise ConfigError(
                f"There is no thought {number}. They are numbered from 0 to {num_thoughts - 1}."
            )
    work = held_out(opened, cases)
    with loaded_team(opened) as team, grading(opened.config, work) as grader:
        record = to_plain(_study(team, work.held[:most], grader, ablate))[0]
    target = _page(opened, out or run / "inspect", run, record)
    page = rewrite_report(target)
    if json_output:
        print(json.dumps(record, indent=2, ensure_ascii=False))
        return 0
    _show(record)
    print(f"\npage: {page}")
    return 0


def _page(opened: Opened, out: Path, run: Path, record: Mapping[str, Any]) -> Run:
    """The directory of the page; an earlier one there is replaced."""
    page = Run.create(
        out,
        opened.config,
        command=["postgrad", "thought", "inspect", str(run)],
        kind=KIND,
        seed=opened.config.seed,
        overwrite=True,
        quiet=True,
    )
    with page:
        replace_file(page.path / RESULT_FILE, pretty_json(record))
    return page


# -- what is found -----------------------------------------------------------------------------------------------


def _study(team: Team, cases: Sequence[Case], grader: Grader, ablate: Sequence[int]) -> dict[str, Any]:
    from postgrad.thought.evaluation import evaluate

    heard = team.listen(cases)
    thoughts = team.think(heard.states)
    structure = team.structure(heard.states)
    weights = _importance(team, thoughts)
    order = weights.argsort(descending=True, stable=True).tolist()
    found = evaluate(team, cases, ["thoughts", "alone", "shuffled"], grader)
    chosen = list(dict.fromkeys(ablate)) or order[:_ABLATED]
    return {
        "agents": [agent.name for agent in team.agents],
        "cases": len(cases),
        "tolerance": structure.tolerance,
        "held": structure.held.tolist(),
        "rms": structure.agent_rms.tolist(),
        "histogram": list(structure.histogram()),
        "sharing": (structure.held.T.long() @ structure.held.long()).tolist(),
        "private": [len(structure.private(agent)) for agent in range(len(team.agents))],
        "stability": [point._asdict() for point in structure.stability()],
        "weights": weights.tolist(),
        "contexts": [_contexts(j, structure, thoughts, cases) for j in order[:_DESCRIBED]],
        "ablated": [_without(team, cases, grader, found, j) for j in chosen],
        "chosen": bool(ablate),
        "evaluation": describe(team, cases, found),
    }


def _importance(team: Team, thoughts: Tensor) -> Tensor:
    """How much of what is told comes from each thought [Z]: Σ_i |w_ij| ‖g_i's first weights at j‖ · deviation of ẑ_j."""
    import torch

    _, adapter = team.fitted()
    with torch.no_grad():
        routing = adapter.routing().abs()
        norms = torch.stack([weight.norm(dim=0) for weight in adapter.enter])
        taught = torch.tensor([[float(agent.embed_width > 0)] for agent in team.agents])
        spread = thoughts.std(0) if len(thoughts) > 1 else thoughts[0].abs()
        return (routing * norms * taught.to(norms)).sum(0) * spread


def _contexts(number: int, structure: Structure, thoughts: Tensor, cases: Sequence[Case]) -> dict[str, Any]:
    """The cases where a thought is farthest from its mean, as the agent sees them that holds it most."""
    values = thoughts[:, number]
    order = values.abs().argsort(descending=True, stable=True)[:_CONTEXTS].tolist()
    agent = int(structure.agent_rms[number].argmax())
    return {
        "thought": number,
        "agent": agent,
        "cases": [
            {"id": cases[i].id, "value": float(values[i]), "text": cases[i].views[agent].content}
            for i in order
        ],
    }


def _without(
    team: Team, cases: Sequence[Case], grader: Grader, full: Evaluation, number: int
) -> dict[str, Any]:
    """What happens when a thought is set to its mean before it is told."""
    from postgrad.thought.evaluation import evaluate

    row = evaluate(team, cases, ["thoughts"], grader, without=[number]).rows["thoughts"]
    before = full.rows["thoughts"]
    both = full._replace(rows={"thoughts": row, "alone": before})
    pairs = list(zip(itertools.chain(*row.answers), itertools.chain(*before.answers), strict=True))
    return {
        "thought": number,
        "accuracy": row.accuracy.mean,
        "change": both.gain("thoughts", "alone")._asdict(),
        "same": sum(now == then for now, then in pairs) / len(pairs),
    }


# -- what is shown -----------------------------------------------------------------------------------------------


def _holders(record: Mapping[str, Any], number: int) -> str:
    names = [name for name, holds in zip(record["agents"], record["held"][number], strict=True) if holds]
    return "nobody" if not names else "all" if len(names) == len(record["agents"]) else ", ".join(names)


_ABLATION_HEADER = (
    "thought",
    "held by",
    "weight",
    "right without it",
    "change",
    "95 % interval",
    "same answers",
)
_SHARING_NOTE = "Thoughts that both hold; on the diagonal, that the agent holds at all."


def _ablation_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    total = sum(record["weights"]) or 1.0
    rows: list[tuple[str, ...]] = []
    for one in record["ablated"]:
        change = one["change"]
        cells = (
            f"thought {one['thought']}",
            _holders(record, one["thought"]),
            f"{record['weights'][one['thought']] / total:.1%}",
            f"{one['accuracy']:.3f}",
            f"{change['mean']:+.3f}".replace("-", "−"),
            f"{change['low']:+.3f} to {change['high']:+.3f}".replace("-", "−"),
            f"{one['same']:.1%}",
        )
        rows.append(cells)
    return rows


def _sharing_rows(record: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    names = record["agents"]
    rows = [
        (name, *map(str, record["sharing"][place]), str(record["private"][place]))
        for place, name in enumerate(names)
    ]
    return ("", *names, "alone"), rows


def _show(record: Mapping[str, Any]) -> None:
    """The short version, in words."""
    histogram = record["histogram"]
    words = ", ".join(f"{count} by {number}" for number, count in enumerate(histogram) if count)
    print(f"{sum(histogram)} thoughts, agents that hold one: {words} (tolerance {record['tolerance']:g})")
    print_rows(*_sharing_rows(record))
    stable = "  ".join(f"{point['tolerance']:g}: {point['agreement']:.2f}" for point in record["stability"])
    print(f"\nagreement with who holds what at other tolerances  {stable}")
    print_rows(_ABLATION_HEADER, _ablation_rows(record))
    print_rows(HEADER, table_rows(record["evaluation"]))
    print(f"\n{budget_line(record['evaluation'])}")
    for warning in record["evaluation"]["warnings"]:
        print(f"warning: {warning}")


def rewrite_report(run: Run) -> Path:
    """The page."""
    from postgrad.core.figures import Headline, Interval
    from postgrad.core.report import Table, write_report

    record = read_result(run.path)
    evaluation = record["evaluation"]
    by_way = {row["way"]: row for row in evaluation["ways"]}
    ends = [Interval(*by_way[way]["accuracy"].values()) for way in ("alone", "thoughts")]
    histogram = record["histogram"]
    headlines = [
        Headline(
            "answers that are right",
            detail=f"Alone, then by thoughts: {len(record['agents'])} agents, {record['cases']} cases",
            before=ends[0],
            after=ends[1],
        ),
        Headline("thoughts that one agent holds", f"{histogram[1]} of {sum(histogram)}"),
        Headline("that two or more hold", f"{sum(histogram[2:])} of {sum(histogram)}"),
        Headline("virtual tokens", f"{by_way['thoughts']['positions']:g}", "before an agent's own"),
        Headline("bits", f"{by_way['thoughts']['bits']:,.0f}", "of what an agent is told"),
        Headline(
            "ms a case",
            f"{1000 * evaluation['seconds_per_case']:.3g}",
            f"{evaluation['flops_per_case']:.2e} FLOP, beside the models",
        ),
    ]
    which = (
        "those that were asked for"
        if record["chosen"]
        else "those that most of what is told comes from, by the adapter's weights"
    )
    tables = [
        Table("What agents share", *_sharing_rows(record), _SHARING_NOTE + " Last column: that nobody else holds."),
        Table(
            "Without a thought", _ABLATION_HEADER, _ablation_rows(record),
            f"The thought is at its mean for all agents; {which}. Same answers: share that is word for word what it was. "
            "Weight: share of what the adapters read. One thought may matter little because others say the same.",
        ),
        Table(
            "What thoughts are about", ("thought", "held by", "value", "case", "what the agent sees that depends on it most"),
            _context_rows(record),
            "The cases where a thought is farthest from its mean (0, in standard deviations), for the thoughts that weigh most.",
        ),
        Table("Ways of telling", HEADER, table_rows(evaluation), f"{NOTE} {budget_line(evaluation)}"),
    ]  # fmt: skip
    return write_report(
        run,
        headlines=headlines,
        figures=[holders_figure(histogram), _stability(record)],
        tables=tables,
        pictures=[holders_map(record["agents"], record["held"], record["rms"])],
        notes=evaluation["warnings"],
        derived=True,
    )


def _stability(record: Mapping[str, Any]) -> Any:
    from postgrad.core.figures import Figure, Line

    points = record["stability"]
    agents = len(record["agents"])
    pairs = agents * len(record["held"])
    columns = {
        "tolerance": [point["tolerance"] for point in points],
        "agreement": [point["agreement"] for point in points],
        "held": [point["num_held"] / pairs for point in points],
    }
    caption = (
        f"An agent holds a thought where its RMS Jacobian exceeds this share of the largest; {record['tolerance']:g} was used. "
        "Agreement near 100 % around it says that who holds what is in the states and not in the tolerance."
    )
    return Figure(
        "stability", "How much hangs on the tolerance", caption, columns, "tolerance",
        (
            Line("agreement", "agreement with the tolerance used", style="points"),
            Line("held", "pairs of agent and thought that are held", style="points"),
        ),
        "tolerance", percent=True, log_x=True,
    )  # fmt: skip


def _context_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for one in record["contexts"]:
        for place, case in enumerate(one["cases"]):
            text = " ".join(case["text"].split())
            shown = text if len(text) <= _TEXT else f"…{text[1 - _TEXT :]}"
            rows.append(
                (
                    "" if place else f"thought {one['thought']}",
                    "" if place else _holders(record, one["thought"]),
                    f"{case['value']:+.2f}".replace("-", "−"),
                    case["id"],
                    f"{record['agents'][one['agent']]}: {shown}",
                )
            )
    return rows
