"""`postgrad memory learn`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postgrad.commands.resume import resume_run
from postgrad.core.config import validate
from postgrad.core.errors import ConfigError
from postgrad.core.figures import Figure, Headline, Line
from postgrad.core.report import merge_rows, write_report
from postgrad.core.run import Run, check_free
from postgrad.memory.config import LearnConfig

if TYPE_CHECKING:
    from postgrad.memory.data import Fact
    from postgrad.memory.learning import Probes

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
    resume: bool,
    device: str,
    options: Mapping[str, Any],
    argv: list[str],
    *,
    dry_run: bool = False,
    ranks: int | None = None,
    json_output: bool = False,
) -> int:
    """Teaches a stream of facts or documents; see `postgrad memory learn --help`."""
    config = validate(LearnConfig, options)

    from postgrad.commands.memory_plan import check_dry_options

    check_dry_options(dry_run, ranks, json_output)
    if resume and config.method != "sparse":
        raise ConfigError(
            f"Method {config.method} keeps nothing before its end, so it cannot go on. Begin anew: --overwrite."
        )
    inputs = read_inputs(facts, keep, ask, background, [config.method])
    out = out or Path("runs/memory") / f"{model.resolve().name}-{config.method}"
    if dry_run:
        check_free(out, overwrite=overwrite)
        return _plan(model, inputs, config, device, ranks or 1, json_output)
    inputs.print_notes()

    from postgrad.core.models import load, save
    from postgrad.memory.learning import edits_in_force, learn

    loaded = load(model, device=device)
    if resume:
        done = edits_in_force(loaded, model, inputs.facts, config)
        run = resume_run(out, KIND, config, argv, headline=HEADLINE)
        run.truncate_after(done)
    else:
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
    """Files of a stream, read: what is taught, what was known before, further questions, background; what is odd about them."""

    facts: Sequence[Fact]
    keep: Sequence[Fact]
    ask: Sequence[Fact]
    background: Sequence[str]
    notes: Sequence[str]

    def probes(self) -> Probes:
        """What is looked at."""
        from postgrad.memory.learning import Probes

        return Probes(tuple(self.keep), tuple(self.ask), tuple(self.background[:BACKGROUND_PROBES]))

    def print_notes(self) -> None:
        """One line each."""
        for note in self.notes:
            print(f"note: {note}")


def read_inputs(
    facts: Path, keep: Path | None, ask: Path | None, background: Path | None, methods: Sequence[str]
) -> Inputs:
    """Reads the files; notes which questions are answered in several ways."""
    from postgrad.memory.data import contradictions, read_facts, read_questions, read_texts

    needing = [method for method in methods if method in ("replay", "ewc")]
    if needing and background is None:
        raise ConfigError(f"Method {needing[0]} needs --background TEXTS. Give it, or choose other methods.")
    taught = read_facts(facts)
    kept = read_questions(keep) if keep is not None else []
    asked = read_questions(ask) if ask is not None else []
    notes = [
        f"{question!r} is answered in {len(answers)} ways: {', '.join(map(repr, answers[:4]))}"
        for question, answers in contradictions([*kept, *asked, *taught])
    ]
    return Inputs(taught, kept, asked, read_texts(background) if background is not None else [], notes)


def _plan(
    model: Path, inputs: Inputs, config: LearnConfig, device: str, ranks: int, json_output: bool
) -> int:
    """All that `learn` checks before it needs weights, then the largest edit."""
    from postgrad.commands.memory_plan import note_missing_files, planned_dtype, show_plan
    from postgrad.core.models.skeleton import load_outline
    from postgrad.memory.learning import check_without_weights
    from postgrad.memory.plan import read_sizes

    notes = list(inputs.notes)
    dtype, outline = planned_dtype(device, notes), load_outline(model)
    edits = check_without_weights(outline, model, inputs.facts, config, inputs.background)
    note_missing_files(model, notes)
    tokens = max(len(edit) * max(map(len, edit)) for edit in edits)
    notes.append(f"{len(edits)} edit{'s' * (len(edits) > 1)}; this is the largest")
    return show_plan(
        read_sizes(outline.module), config, tokens, dtype, ranks=ranks, json_output=json_output, notes=notes
    )


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
