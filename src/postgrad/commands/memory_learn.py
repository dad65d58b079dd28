"""`postgrad memory learn`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postgrad.core.config import validate
from postgrad.core.errors import ConfigError
from postgrad.core.figures import Figure, Headline, Line
from postgrad.core.report import merge_rows, write_report
from postgrad.core.run import Run
from postgrad.memory.config import LearnConfig

if TYPE_CHECKING:
    from postgrad.memory.data import Fact
    from postgrad.memory.learn import Probes

KIND = "memory.learn"
BACKGROUND_PROBES = 200
"""Background texts whose loss is watched."""
HEADLINE = (
    ("learn/loss_before", "loss before", ".3f"),
    ("learn/loss_after", "after", ".3f"),
    ("learn/rows", "rows", ".0f"),
    ("learned/exact", "learned", ".3f"),
    ("kept/exact", "kept", ".3f"),
)


def main(
    model: Path,
    facts: Path,
    keep: Path | None,
    ask: Path | None,
    background: Path | None,
    out: Path | None,
    overwrite: bool,
    device: str,
    options: Mapping[str, Any],
    argv: list[str],
) -> int:
    """Teaches a stream of facts or documents; see `postgrad memory learn --help`."""
    config = validate(LearnConfig, options)

    inputs = read_inputs(facts, keep, ask, background, [config.method])

    from postgrad.core.models import load, save
    from postgrad.memory.learn import learn

    loaded = load(model, device=device)
    out = out or Path("runs/memory") / f"{model.resolve().name}-{config.method}"
    run = Run.create(
        out,
        config,
        command=argv,
        kind=KIND,
        seed=config.seed,
        overwrite=overwrite,
        device=str(loaded.device),
        headline=HEADLINE,
        total_steps=-(-len(inputs.facts) // config.per_edit),
    )
    with run:
        metrics = learn(
            loaded,
            model,
            inputs.facts,
            config,
            run,
            probes=inputs.probes(),
            background=inputs.background,
            note=run.note,
        )
        if config.method != "sparse":
            path = run.save_checkpoint(len(inputs.facts), lambda folder: save(loaded, folder))
            print(f"checkpoint: {path}")
    print(f"report: {rewrite_report(run)}")
    if config.method == "sparse":
        print(f"take it back: postgrad memory rollback {model} --all")
    if "learned/exact" in metrics:
        kept_words = f", kept {metrics['kept/exact']:.3f}" if "kept/exact" in metrics else ""
        print(f"learned {metrics['learned/exact']:.3f}{kept_words} (share of questions answered exactly)")
    return 0


@dataclass(frozen=True)
class Inputs:
    """Files of a stream, read: what is taught, what was known before, further questions, background."""

    facts: Sequence[Fact]
    keep: Sequence[Fact]
    ask: Sequence[Fact]
    background: Sequence[str]

    def probes(self) -> Probes:
        """What is looked at."""
        from postgrad.memory.learn import Probes

        return Probes(tuple(self.keep), tuple(self.ask), tuple(self.background[:BACKGROUND_PROBES]))


def read_inputs(
    facts: Path, keep: Path | None, ask: Path | None, background: Path | None, methods: Sequence[str]
) -> Inputs:
    """Reads the files, and says which questions are answered in several ways."""
    from postgrad.memory.data import contradictions, read_facts, read_questions, read_texts

    needing = [method for method in methods if method in ("replay", "ewc")]
    if needing and background is None:
        raise ConfigError(f"--method {needing[0]} needs --background TEXTS.")
    found = Inputs(
        read_facts(facts),
        read_questions(keep) if keep is not None else [],
        read_questions(ask) if ask is not None else [],
        read_texts(background) if background is not None else [],
    )
    for question, answers in contradictions([*found.keep, *found.ask, *found.facts]):
        print(f"note: {question!r} is answered in {len(answers)} ways: {', '.join(map(repr, answers[:4]))}")
    return found


def rewrite_report(run: Run) -> Path:
    """The report of a stream: what was learned and kept over the edits."""
    steps, series = merge_rows(run.metrics())
    columns: dict[str, Sequence[float | None]] = {"edits": [float(step) for step in steps], **series}
    lines = [
        Line(key, label, style="points")
        for key, label in (("learned/exact", "learned"), ("kept/exact", "kept"))
        if any(value is not None for value in series.get(key, []))
    ]
    figures = []
    if lines:
        figures.append(
            Figure(
                "learned-and-kept",
                "Questions answered exactly",
                "Of the facts taught so far, and of those that were known before.",
                columns,
                "edits",
                tuple(lines),
                x_label="edits",
                percent=True,
            )
        )
    headlines = [
        Headline(label, f"{100 * values[-1]:.1f} %")
        for key, label in (("learned/exact", "learned"), ("kept/exact", "kept"))
        if (values := [value for value in series.get(key, []) if value is not None])
    ]
    return write_report(
        run, headlines=[Headline("edits", str(steps[-1] if steps else 0)), *headlines], figures=figures
    )
