"""`postgrad thought fit`, and the report of its run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postgrad.commands.resume import record_inputs, resume_run
from postgrad.commands.thought_work import KIND, TEAM, Work, grading, read_work, resolve_config
from postgrad.core.errors import ConfigError, RunError
from postgrad.core.run import Run, check_free
from postgrad.core.runfiles import pretty_json, read_object, remove_tree, replace_file, to_plain
from postgrad.thought.config import TeamConfig

if TYPE_CHECKING:
    from postgrad.thought.agents import Agent
    from postgrad.thought.evaluation import Evaluation
    from postgrad.thought.learning import Learned

RESULT_FILE = "result.json"
_WORK = "work"
_SHOWN_CASES = 40
_HEADLINE = (
    ("adapter/loss", "loss", ".4f"),
    ("adapter/loss_valid", "set aside", ".4f"),
    ("adapter/prefix_norm", "norm", ".2f"),
    ("autoencoder/explained", "explained", ".3f"),
    ("autoencoder/penalty_weight", "penalty", ".3g"),
    ("eval/thoughts/accuracy", "right by thoughts", ".1%"),
    ("eval/alone/accuracy", "alone", ".1%"),
)


def main(
    recipe: Path | None,
    overrides: Mapping[str, Any],
    out: Path | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    paper: bool,
    argv: list[str],
) -> int:
    """Fits a team; see `postgrad thought fit --help`."""
    if resume and overwrite:
        raise ConfigError("--resume keeps the run and --overwrite throws it away; give one of them.")
    out = out or Path("runs/thought")
    earlier = Run.open(out) if resume else None
    if earlier is not None and earlier.info.get("kind") == KIND and earlier.status == "finished":
        raise ConfigError(f"{out} is finished. What it gained: postgrad thought eval {out}")
    config = resolve_config(recipe, overrides, paper=paper, earlier=None if recipe else earlier)
    if not resume:
        check_free(out, overwrite=overwrite)
    work = read_work(config)

    from postgrad.thought.learning import check_cases
    from postgrad.thought.team import make_agents

    check_cases(config, work.train)
    if dry_run:
        from postgrad.commands.thought_plan import show_plan

        return show_plan(config, work)
    inputs = (work.train, work.held)
    if resume:
        run = resume_run(out, KIND, config, argv, inputs, **_shown(config))
        agents = _prepared(run, config)
    else:
        agents = make_agents(config)  # what is wrong with them shows before a directory is made
        run = Run.create(
            out, config, command=argv, kind=KIND, seed=config.seed, overwrite=overwrite, **_shown(config)
        )
        for name in (TEAM, RESULT_FILE, _WORK, "inspect"):
            remove_tree(run.path / name)
        record_inputs(run, inputs)
    try:
        with run:
            record = _fit(run, config, work, agents)
    except KeyboardInterrupt:
        words = [word for word in argv if word not in ("--overwrite", "--resume")]
        print(f"Stopped. Go on with: {shlex.join([*words, '--resume'])}")
        raise
    remove_tree(run.path / _WORK)
    show_record(record)
    print(f"\nreport: {rewrite_report(run)}")
    print(f"team: {run.path / TEAM}")
    return 0


def _shown(config: TeamConfig) -> dict[str, Any]:
    return {"headline": _HEADLINE, "total_steps": config.rounds * config.adapter.steps}


def _prepared(run: Run, config: TeamConfig) -> list[Agent]:
    """The agents of a run that goes on, whose metrics are cut back to the update that it goes on from."""
    from postgrad.thought.learning import kept_step
    from postgrad.thought.team import make_agents

    try:
        run.truncate_after(kept_step(run.path / _WORK, config))
        return make_agents(config)
    except BaseException:
        run.finish("interrupted")
        raise


def _fit(run: Run, config: TeamConfig, work: Work, agents: Sequence[Agent]) -> dict[str, Any]:
    """Learns, saves, measures; gives what result.json says."""
    from postgrad.commands.thought_eval import describe, usable_ways
    from postgrad.thought.cache import CachedAgent
    from postgrad.thought.evaluation import evaluate
    from postgrad.thought.learning import learn
    from postgrad.thought.team import Team

    folder = run.path / _WORK
    team = Team([CachedAgent(agent, folder) for agent in agents], config)
    logged = {row["step"] for row in run.metrics()}

    def log(step: int, metrics: Mapping[str, Any]) -> None:
        if step not in logged:
            run.log(step, metrics)

    run.note(f"reading what {len(agents)} agents think of {len(work.train)} cases")
    learned = learn(team, work.train, log=log, folder=folder)
    team.save_pretrained(run.path / TEAM)
    run.note(f"measuring on {len(work.held)} cases that were held out")
    with grading(config, work) as grader:
        found = evaluate(team, work.held, usable_ways(team), grader)
    record: dict[str, Any] = {
        "learned": _describe(learned, len(work.train)),
        "evaluation": describe(team, work.held, found),
    }
    replace_file(run.path / RESULT_FILE, pretty_json(to_plain(record)[0]))
    if not any(key.startswith("eval/") for row in run.metrics() for key in row):
        run.log(config.rounds * config.adapter.steps, _metrics(record))
    if not run.samples():
        run.log_samples(config.rounds * config.adapter.steps, _samples(team, work, found))
    return record


def _describe(learned: Learned, num_cases: int) -> dict[str, Any]:
    structure = learned.structure
    return {
        "cases": num_cases,
        "explained": learned.explained,
        "penalty_weight": learned.penalty_weight,
        "loss": learned.loss,
        "tolerance": structure.tolerance,
        "histogram": list(structure.histogram()),
        "private": [len(structure.private(agent)) for agent in range(structure.held.shape[1])],
        "warnings": structure.warnings(),
    }


def _metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"structure/holders": record["learned"]["histogram"]}
    for row in record["evaluation"]["ways"]:
        area = f"eval/{row['way']}"
        found |= {
            f"{area}/accuracy": row["accuracy"]["mean"],
            f"{area}/accuracy_low": row["accuracy"]["low"],
            f"{area}/accuracy_high": row["accuracy"]["high"],
            f"{area}/positions": row["positions"],
            f"{area}/bits": row["bits"],
        }
    return found


def _samples(team: Any, work: Work, found: Evaluation) -> list[dict[str, Any]]:
    """What agents said of some held-out cases, alone and by thoughts, for the report's sample browser."""
    rows: list[dict[str, Any]] = []
    for phase, way in (("before", "alone"), ("after", "thoughts")):
        row = found.rows[way]
        for place, case in enumerate(work.held[:_SHOWN_CASES]):
            rows += [
                {
                    "phase": phase,
                    "prompt_id": f"{case.id} {agent.name}",
                    "task": agent.name,
                    "prompt": _shown_prompt(case, number),
                    "answer": case.answer,
                    "completion": row.answers[number][place],
                    "correct": row.right[number][place],
                }
                for number, agent in enumerate(team.agents)
            ]
    return rows


def _shown_prompt(case: Any, number: int) -> str:
    view, question = case.views[number].content, case.questions[number].content
    return view if view == question else f"{view}\n\n{question}"


# -- what is shown -----------------------------------------------------------------------------------------------


def show_record(record: Mapping[str, Any]) -> None:
    """What was learned in a line or two, and the ways in a table."""
    from postgrad.commands.thought_eval import show_evaluation

    print(f"\n{summary(record['learned'])}")
    show_evaluation(record["evaluation"])


def summary(learned: Mapping[str, Any]) -> str:
    """How many thoughts are held by how many agents."""
    histogram = learned["histogram"]
    words = ", ".join(f"{count} by {number}" for number, count in enumerate(histogram) if count)
    return (
        f"{sum(histogram)} thoughts explain {learned['explained']:.1%} of the states' variance; agents that hold one: {words} "
        f"(α at tolerance {learned['tolerance']:g})"
    )


def rewrite_report(run: Run) -> Path:
    """The report of a run of `fit`."""
    from postgrad.commands.thought_eval import HEADER, NOTE, budget_line, table_rows
    from postgrad.core.figures import Figure, Headline, Interval, Line
    from postgrad.core.report import Table, merge_rows, write_report

    steps, series = merge_rows(run.metrics())
    columns: dict[str, Any] = {"update": [float(step) for step in steps], **series}
    lines = tuple(
        Line(key, label, smooth=smooth, style="line" if smooth else "points")
        for key, label, smooth in (
            ("adapter/loss", "cases that are learned from", True),
            ("adapter/loss_valid", "cases set aside", False),
        )
        if sum(value is not None for value in series.get(key, [])) > 1
    )
    words = (
        "−log p of what an agent is to say, and 1 − cos of mean embeddings. The adapter with the least loss on cases set aside "
        "is kept."
    )
    figures = (
        [Figure("loss", "The adapter's loss", words, columns, "update", lines, "update")] if lines else []
    )
    path = run.path / RESULT_FILE
    if not path.is_file():
        return write_report(run, figures=figures)
    record = read_object(path)
    learned, evaluation = record["learned"], record["evaluation"]
    by_way = {row["way"]: row for row in evaluation["ways"]}
    ends = [Interval(*by_way[way]["accuracy"].values()) for way in ("alone", "thoughts") if way in by_way]
    headlines = [
        Headline(
            "held-out answers that are right",
            detail=f"Alone, then by thoughts: {len(evaluation['agents'])} agents, {evaluation['cases']} cases",
            before=ends[0],
            after=ends[1],
        ),
        Headline("of the states' variance explained", f"{learned['explained']:.1%}"),
        Headline(
            "thoughts that two or more hold",
            f"{sum(learned['histogram'][2:])} of {sum(learned['histogram'])}",
        ),
    ]
    figures.append(holders_figure(learned["histogram"]))
    tables = [Table("Ways of telling", HEADER, table_rows(evaluation), f"{NOTE} {budget_line(evaluation)}")]
    return write_report(
        run, headlines=headlines, figures=figures, tables=tables, notes=evaluation["warnings"]
    )


def holders_figure(histogram: Sequence[int]) -> Any:
    """Thoughts by the number of agents that hold them."""
    from postgrad.core.figures import Figure, Line

    columns = {
        "agents": [float(number) for number in range(len(histogram))],
        "thoughts": [float(x) for x in histogram],
    }
    return Figure(
        "holders", "How many agents hold a thought",
        "α: 1 is private, more is shared, 0 is a thought that nobody holds.",
        columns, "agents", (Line("thoughts", style="bars"),), "agents", "thoughts",
    )  # fmt: skip


def read_result(path: Path) -> dict[str, Any]:
    """result.json of a run. Raises RunError where there is none."""
    try:
        return json.loads((path / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path / RESULT_FILE} cannot be read: {error}") from None
