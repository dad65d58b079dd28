"""`postgrad playbook learn`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postgrad.commands.resume import record_inputs, resume_run
from postgrad.core.config import read_toml, resolve, validate
from postgrad.core.errors import ConfigError, RunError
from postgrad.core.run import Run, check_free
from postgrad.playbook.config import ROLES, LearnConfig

if TYPE_CHECKING:
    from postgrad.playbook.book import Playbook
    from postgrad.playbook.learning import Work

KIND = "playbook.learn"
HEADLINE = (
    ("learn/accuracy_recent", "right (last 50)", ".1%"),
    ("playbook/bullets", "bullets", ".0f"),
    ("playbook/tokens", "tokens", ".0f"),
    ("cost/usd", "USD", ".4f"),
)
_START = "start.json"


def main(
    recipe: Path | None,
    overrides: Mapping[str, Any],
    tasks: tuple[str, ...],
    traces: Path | None,
    source: Path | None,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    argv: list[str],
) -> int:
    """Grows a playbook; see `postgrad playbook learn --help`."""
    out = out or Path("runs/playbook")
    config = resolve_config(recipe, overrides, tasks, Run.open(out) if resume and not recipe else None)

    from postgrad.core.data import plain_text
    from postgrad.playbook.api import learn, make_roles, read_instructions, read_work
    from postgrad.playbook.learning import trace_work
    from postgrad.playbook.log import NAME, PlaybookLog
    from postgrad.playbook.record import is_sample

    found = None
    if traces is not None:
        from postgrad.playbook.traces import read_traces

        found = read_traces(traces)
        work = trace_work(found)
    else:
        if not config.data.tasks:
            raise ConfigError(
                "Nothing to learn from. Name a task (--task chain_sum, or data.tasks in a recipe), or give --traces FILE"
                f"{' again' if resume else ''}."
            )
        work = read_work(config)
    read_instructions(config)
    if dry_run:
        if not resume:
            check_free(out, overwrite=overwrite)
        return _plan(config, work)
    inputs = [(key, prompt.id, plain_text(prompt), prompt.answer) for key, prompt, _ in work.samples]
    if resume:
        run = resume_run(out, KIND, config, argv, inputs, headline=HEADLINE, total_steps=len(work.samples))
        if not (out / _START).is_file():
            raise RunError(f"{out} was stopped before it began. Begin anew: --overwrite.")
        start = int(json.loads((out / _START).read_text(encoding="utf-8"))["deltas"])
        roles = make_roles(config)
    else:
        check_free(out, overwrite=overwrite)
        roles = make_roles(config)  # what is wrong with them shows before a directory is made
        deltas = _source(source)
        run = Run.create(
            out,
            config,
            command=argv,
            kind=KIND,
            seed=config.seed,
            overwrite=overwrite,
            headline=HEADLINE,
            total_steps=len(work.samples),
        )
        for stale in (NAME, *(f"calls-{role}.jsonl" for role in ROLES)):
            (out / stale).unlink(missing_ok=True)
        start = _begin(run, source, deltas)
        record_inputs(run, inputs)
    with run, PlaybookLog(out / NAME) as log:
        run.truncate_after(sum(map(is_sample, log.deltas[start:])))
        logged = {(row["step"], key.partition("/")[0]) for row in run.metrics() for key in row if "/" in key}
        book = learn(
            log,
            config,
            run=run,
            traces=found,
            roles=roles,
            work=work,
            journal=out,
            start=start,
            logged=logged,
        )
        write_text(out, book)
    print(f"report: {rewrite_report(run)}")
    print(f"playbook: {out / 'playbook.md'} ({len(book)} bullets)")
    summary = headline(run)
    if summary:
        print(summary)
    return 0


def resolve_config(
    recipe: Path | None, overrides: Mapping[str, Any], tasks: tuple[str, ...], earlier: Run | None = None
) -> LearnConfig:
    """Recipe (or the config of a run that goes on), dotted overrides, `--task`."""
    if earlier is not None:
        if overrides or tasks:
            raise ConfigError(
                "--resume goes on with the config of the run, so it takes no options and no --task."
            )
        return validate(LearnConfig, earlier.config_dict())
    if recipe is not None:
        read_toml(recipe)
    if tasks:
        overrides = {**overrides, "data.tasks": list(tasks)}
    return resolve(LearnConfig, recipe, overrides)


def _source(source: Path | None) -> tuple[bytes, Any] | None:
    """What an earlier playbook begins with: the bytes of its log, or the bullets of a text."""
    if source is None:
        return None
    from postgrad.playbook.log import NAME, parse
    from postgrad.playbook.text import parse_text

    path = source / NAME if source.is_dir() else source
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"{path} cannot be read: {error.strerror}. Name a run, a playbook.jsonl or a text."
        ) from None
    if path.suffix == ".jsonl":
        whole = data[: data.rfind(b"\n") + 1]
        parse(whole, path)
        return whole, None
    parsed = parse_text(data.decode("utf-8", "replace"))
    for problem in parsed.problems:
        print(f"note: {path}, {problem}")
    return b"", parsed.adds


def _begin(run: Run, source: Path | None, found: tuple[bytes, Any] | None) -> int:
    """The log of a new run, with what was there before; the number of its deltas."""
    from postgrad.core.runfiles import pretty_json, replace_file
    from postgrad.playbook.log import NAME, PlaybookLog

    count = 0
    if found is not None:
        data, adds = found
        if data:
            replace_file(run.path / NAME, data)
        with PlaybookLog(run.path / NAME) as log:
            if adds:
                log.append(adds, source=f"file {source}")
            count = len(log.deltas)
    replace_file(run.path / _START, pretty_json({"deltas": count, "from": str(source or "")}))
    return count


def write_text(out: Path, book: Playbook) -> None:
    """playbook.md, in the published format."""
    from postgrad.core.runfiles import replace_file
    from postgrad.playbook.text import format_text

    replace_file(out / "playbook.md", format_text(book.bullets.values()).encode())


def headline(run: Run) -> str:
    """`held-out accuracy: 0.42 [0.29, 0.56] empty -> 0.78 [0.65, 0.87] best`, or that of the samples."""
    rows = [row for row in run.metrics() if row.get("validation/accuracy") is not None]
    if rows:
        best = max(rows, key=lambda row: row["validation/accuracy"])

        def show(row: Mapping[str, Any]) -> str:
            low, high = row["validation/accuracy_low"], row["validation/accuracy_high"]
            return f"{row['validation/accuracy']:.2f} [{low:.2f}, {high:.2f}]"

        return f"held-out accuracy: {show(rows[0])} before -> {show(best)} with the best version (after {best['step']} samples)"
    rows = [row for row in run.metrics() if row.get("learn/accuracy") is not None]
    if not rows:
        return ""
    last = rows[-1]
    return f"right at first: {last['learn/accuracy']:.2f}, of the last 50 {last['learn/accuracy_recent']:.2f}"


def _plan(config: LearnConfig, work: Work) -> int:
    """What it takes at most, and what that costs where prices are known."""
    from postgrad.playbook.plan import plan

    for line in plan(config, work).lines():
        print(line)
    print("dry run: nothing was written")
    return 0


def rewrite_report(run: Run) -> Path:
    """The report of a run of learning."""
    from postgrad.core.figures import Figure, Headline, Line
    from postgrad.core.report import merge_rows, write_report

    steps, series = merge_rows(run.metrics())
    columns: dict[str, Any] = {"samples": [float(step) for step in steps], **series}

    def drawn(*lines: Line) -> tuple[Line, ...]:
        return tuple(line for line in lines if any(value is not None for value in series.get(line.y, [])))

    accuracy = drawn(
        Line("learn/accuracy_recent", "first answers, last 50 samples"),
        Line(
            "validation/accuracy",
            "held-out prompts",
            low="validation/accuracy_low",
            high="validation/accuracy_high",
            style="points",
        ),
    )
    size = drawn(Line("playbook/tokens"))
    figures = []
    if accuracy:
        words = "First answers to what is learned from, and to held-out prompts."
        figures.append(
            Figure("accuracy", "Right answers", words, columns, "samples", accuracy, "samples", percent=True)
        )
    if size:
        words = "Tokens. A fall is a rewrite of its lines, without those that were replaced or taken back."
        figures.append(
            Figure("size", "The playbook in the prompt", words, columns, "samples", size, "samples", "tokens")
        )
    last = {key: next((v for v in reversed(values) if v is not None), None) for key, values in series.items()}
    rows = [row for row in run.metrics() if row.get("validation/accuracy") is not None]
    headlines = [Headline("bullets at the end", f"{last.get('playbook/bullets') or 0:.0f}")]
    if rows:
        best = max(rows, key=lambda row: row["validation/accuracy"])
        words = f"With the playbook as it began, then with the best version, after {best['step']} samples"
        interval = _interval(rows[0]), _interval(best)
        headlines.insert(
            0, Headline("held-out prompts answered rightly", "", words, before=interval[0], after=interval[1])
        )
    elif last.get("learn/accuracy_recent") is not None:
        headlines.insert(0, Headline("right at first, last 50", f"{last['learn/accuracy_recent']:.1%}"))
    if last.get("cost/usd"):
        headlines.append(Headline("cost", f"{last['cost/usd']:.2f} USD"))
    return write_report(run, figures=figures, headlines=headlines)


def _interval(row: Mapping[str, Any]) -> Any:
    from postgrad.core.figures import Interval

    return Interval(*(row[f"validation/accuracy{end}"] for end in ("", "_low", "_high")))
