"""`postgrad memory learn`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postgrad.core.config import validate
from postgrad.core.errors import ConfigError
from postgrad.core.figures import Figure, Headline, Line
from postgrad.core.report import merge_rows, write_report
from postgrad.core.run import Run, check_free
from postgrad.memory.config import LearnConfig

if TYPE_CHECKING:
    from postgrad.memory.data import Fact

KIND = "memory.learn"
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
    background: Path | None,
    out: Path | None,
    overwrite: bool,
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

    from postgrad.memory.data import contradictions, read_facts, read_texts

    learned = read_facts(facts)
    kept = read_facts(keep) if keep is not None else []
    texts = read_texts(background) if background is not None else []
    if config.method in ("replay", "ewc") and not texts:
        raise ConfigError(f"--method {config.method} needs --background TEXTS.")
    notes: list[str] = []
    for question, answers in contradictions([*kept, *learned]):
        notes.append(f"{question!r} is answered in {len(answers)} ways: {', '.join(map(repr, answers[:4]))}")
    out = out or Path("runs/memory") / f"{model.resolve().name}-{config.method}"
    if dry_run:
        check_free(out, overwrite=overwrite)
        return _plan(model, learned, texts, config, device, ranks or 1, json_output, notes)
    for note in notes:
        print(f"note: {note}")

    from postgrad.core.models import load, save
    from postgrad.memory.learn import Probes, learn

    loaded = load(model, device=device)
    run = Run.create(
        out,
        config,
        command=argv,
        kind=KIND,
        seed=config.seed,
        overwrite=overwrite,
        device=str(loaded.device),
        headline=HEADLINE,
        total_steps=-(-len(learned) // config.per_edit),
    )
    with run:
        probes = Probes(tuple(kept), tuple(texts[:200]))
        metrics = learn(loaded, model, learned, config, run, probes=probes, background=texts, note=run.note)
        if config.method != "sparse":
            path = run.save_checkpoint(len(learned), lambda folder: save(loaded, folder))
            print(f"checkpoint: {path}")
    print(f"report: {rewrite_report(run)}")
    if config.method == "sparse":
        print(f"take it back: postgrad memory rollback {model} --all")
    if "learned/exact" in metrics:
        kept_words = f", kept {metrics['kept/exact']:.3f}" if "kept/exact" in metrics else ""
        print(f"learned {metrics['learned/exact']:.3f}{kept_words} (share of questions answered exactly)")
    return 0


def _plan(
    model: Path,
    facts: Sequence[Fact],
    background: Sequence[str],
    config: LearnConfig,
    device: str,
    ranks: int,
    json_output: bool,
    notes: list[str],
) -> int:
    """All that `learn` checks before it needs weights, then the largest edit."""
    from postgrad.commands.memory_plan import note_missing_files, planned_dtype, show_plan
    from postgrad.core.models.skeleton import load_outline
    from postgrad.memory.learn import check_without_weights
    from postgrad.memory.plan import read_sizes

    dtype, outline = planned_dtype(device, notes), load_outline(model)
    edits = check_without_weights(outline, model, facts, config, background)
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
