"""`postgrad rl ablate`: which choice of a recipe matters, over seeds, with the law of every arm."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from postgrad.commands.rl_train import resolve_config
from postgrad.commands.rl_work import make_transform
from postgrad.core.config import validate
from postgrad.core.console import print_rows
from postgrad.core.errors import ConfigError, ModelError, PostgradError
from postgrad.core.figures import LINE_ROLES, Figure, Headline, Line
from postgrad.core.report import Table, write_report
from postgrad.core.run import Run
from postgrad.core.statistics import Interval
from postgrad.rl.ablation import AblationConfig, Axes, choose_axes, describe, read_axes
from postgrad.rl.ablation_results import Ablation, ArmResult, read_result, write_result
from postgrad.rl.config import RLConfig
from postgrad.scaling.bootstrap import Estimate
from postgrad.scaling.comparison import shared_ceiling
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.curve import Axis, Curve
from postgrad.scaling.fitting import Fit, fit_curve

_FLOP = Axis("compute/generate_flops + compute/train_flops", "FLOP")
_CANNOT = "cannot be read off"
_ARMS_IN_A_FIGURE = 4
"""Beside the reference; more bands than that hide each other."""


def main(
    recipe: Path | None,
    preset: Path | None,
    overrides: dict[str, Any],
    tasks: tuple[str, ...],
    *,
    mode: str | None,
    seeds: int | None,
    axes: str | None,
    axes_file: Path | None,
    jobs: int,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    json_output: bool,
    argv: list[str],
) -> int:
    """Runs all arms and writes table, laws and page; see `postgrad rl ablate --help`."""
    out = out or Path("runs/ablation")
    if resume:
        given = (recipe, preset, overrides, tasks, mode, seeds, axes, axes_file)
        if any(value not in (None, (), {}) for value in given):
            raise ConfigError(
                "--resume goes on with the ablation in --out by its own config, so it takes no recipe, no preset and no options "
                "but --jobs."
            )
        from postgrad.rl.ablation_runs import open_ablation

        config, left_out = open_ablation(out), list[str]()
    else:
        base = resolve_config(recipe, overrides, tasks, preset=preset)
        config, left_out = _configure(base, mode, seeds, axes, axes_file)
    transform = make_transform(config.recipe.mara)
    if dry_run:
        return _dry_run(config, left_out, jobs)

    from postgrad.rl.ablation_runs import run_ablation

    if not json_output:
        for words in left_out:
            print(f"left out: {words}")
    try:
        found = run_ablation(
            config,
            out,
            jobs=jobs,
            resume=resume,
            overwrite=overwrite,
            command=argv,
            quiet=json_output,
            transform=transform,
        )
    except KeyboardInterrupt:
        print(f"Stopped. Go on with: postgrad rl ablate --out {out} --resume")
        raise
    run = Run.open(out)
    laws = read_laws(found)
    write_result(run, found, **law_record(laws))
    page = _page(run, found, laws)
    if json_output:
        print((out / "result.json").read_text(encoding="utf-8").strip())
        return 0
    print()
    print_rows(_HEADER, _rows(found))
    print()
    print_rows(_LAW_HEADER, _law_rows(laws))
    for words in _notes(found, laws):
        print(f"\n{words}")
    print(f"\nreport: {page}")
    return 0


def _configure(
    base: RLConfig, mode: str | None, seeds: int | None, axes: str | None, axes_file: Path | None
) -> tuple[AblationConfig, list[str]]:
    """The config, and why axes are left out."""
    names = [name.strip() for name in axes.split(",") if name.strip()] if axes else []
    chosen_mode = "forward" if mode == "forward" else "leave-one-out"
    own = None if axes_file is None else read_axes(axes_file)
    chosen: Axes = choose_axes(base, chosen_mode, names=names, given=own)
    data: dict[str, Any] = {
        "mode": chosen_mode,
        "recipe": base.model_dump(),
        "axes": chosen.overrides,
        **({} if seeds is None else {"seeds": seeds}),
    }
    return validate(AblationConfig, data), chosen.left_out


def _dry_run(config: AblationConfig, left_out: Sequence[str], jobs: int) -> int:
    from postgrad.rl.plan import make_plan

    print(json.dumps(config.recipe.model_dump(mode="json"), indent=2))
    rows = [(config.reference, "the recipe"), *((n, describe(o)) for n, o in config.axes.items())]
    print_rows(("arm", "options"), rows)
    for words in left_out:
        print(f"left out: {words}")
    count = len(config.axes)
    arms = (
        f"{count + 1} arms"
        if config.mode == "leave-one-out"
        else f"{count + 1} to {1 + count * (count + 1) // 2} arms"
    )
    least = (count + 1) * config.seeds
    print(f"runs                {arms} × {config.seeds} seeds, {config.recipe.steps} updates each")
    try:
        plan = make_plan(config.recipe)
    except ModelError as error:
        print(f"memory and time     not estimated: {error}")
    else:
        for line in plan.lines(config.recipe.steps):
            print(line)
        hours = plan.flops_per_update / plan.matmul_flops * config.recipe.steps * least / jobs / 3600
        print(
            f"all runs            {hours:.2g} h of that for {least} runs, {jobs} at a time; evaluations come on top, and small "
            "models take several times that. The first run tells: its time times the number of runs."
        )
    print("dry run: nothing was written")
    return 0


class Law(NamedTuple):
    """Of one arm's mean curve.

    Attributes:
        fit: under a ceiling of its own, or None where the fit was refused.
        words: why nothing can be read off; empty if it can.
        exponent: B under the shared ceiling, or None.
    """

    fit: Fit | None
    words: str
    exponent: Estimate | None = None


def read_laws(found: Ablation) -> dict[str, Law]:
    """The law of every arm's mean curve, and B again under one ceiling for all that can be read off, as in the paper."""
    options = ScalingConfig()
    laws = {arm.name: _law(arm, options) for arm in found.arms}
    readable = {name: law.fit for name, law in laws.items() if law.fit is not None and not law.words}
    if len(readable) < 2:
        return laws
    together = options.model_copy(update={"ceiling": shared_ceiling(list(readable.values()))})
    for name, fit in readable.items():
        laws[name] = laws[name]._replace(exponent=fit_curve(fit.curve, together).exponent)
    return laws


def _law(arm: ArmResult, options: ScalingConfig) -> Law:
    try:
        curve = Curve.from_points(
            arm.curve.compute,
            arm.curve.mean,
            name=arm.name,
            axis=_FLOP,
            reward_key="eval/pass_rate",
            limits=(0.0, 1.0),
        )
        fit = fit_curve(curve, options)
    except PostgradError as error:
        return Law(None, str(error))
    return Law(fit, "" if fit.status == "identified" else fit.verdict)


def law_record(laws: Mapping[str, Law]) -> dict[str, Any]:
    """Laws for result.json."""

    def estimate(value: Estimate | None) -> dict[str, Any] | None:
        return None if value is None else value._asdict()

    records = {
        name: {
            "status": "refused" if law.fit is None else law.fit.status,
            "ceiling": None if law.fit is None or law.words else estimate(law.fit.ceiling),
            "exponent": None if law.fit is None or law.words else estimate(law.fit.exponent),
            "exponent_at_shared_ceiling": estimate(law.exponent),
            "why_not": law.words,
        }
        for name, law in laws.items()
    }
    return {"laws": records, "shared_ceiling": _shared(laws)}


def _shared(laws: Mapping[str, Law]) -> float | None:
    fits = [law.fit for law in laws.values() if law.fit is not None and law.exponent is not None]
    return shared_ceiling(fits) if fits else None


_HEADER = ("arm", "pass rate", "difference", "samples/s", "truncated", "runs")
_LAW_HEADER = ("arm", "A", "B", "B, shared A")


def _rows(found: Ablation) -> list[tuple[str, ...]]:
    return [
        (
            arm.name,
            _show(arm.score),
            _show(arm.difference, sign=True),
            "–" if math.isnan(arm.samples_per_s) else f"{arm.samples_per_s:,.0f}",
            "–" if math.isnan(arm.truncated) else f"{100 * arm.truncated:.1f} %",
            f"{len(arm.scores)}" + (f", {len(arm.failed)} failed" if arm.failed else ""),
        )
        for arm in found.arms
    ]


def _show(found: Interval, *, sign: bool = False) -> str:
    """A rate with its interval.

    >>> _show(Interval(0.5, 0.4, 0.6)), _show(Interval(0.05, math.nan, math.nan), sign=True), _show(Interval(*[math.nan] * 3))
    ('0.500 [0.400, 0.600]', '+0.050', '–')
    """
    if math.isnan(found.mean):
        return "–"
    form = "+.3f" if sign else ".3f"
    ends = "" if math.isnan(found.low) else f" [{found.low:{form}}, {found.high:{form}}]"
    return f"{found.mean:{form}}{ends}"


def _law_rows(laws: Mapping[str, Law]) -> list[tuple[str, ...]]:
    return [(name, *_show_law(law)) for name, law in laws.items()]


def _show_law(law: Law) -> tuple[str, str, str]:
    if law.fit is None or law.words:
        return (_CANNOT, "–", "–")
    shared = "–" if law.exponent is None else law.exponent.show()
    return law.fit.ceiling.show(), law.fit.exponent.show(), shared


def _notes(found: Ablation, laws: Mapping[str, Law]) -> list[str]:
    """Sentences below the table."""
    notes: list[str] = []
    for arm in found.arms:
        notes += [f"{arm.name}, seed {seed}, failed: {why}" for seed, why in arm.failed.items()]
    for index, item in enumerate(found.rounds, 1):
        best = f"{item.best} is best" if item.best else "nothing can be compared"
        helps = (
            "and helps beyond noise: kept"
            if item.kept
            else "but its interval does not leave out 0: the search ends"
        )
        notes.append(
            f"Round {index}: {best} of {len(item.tried)}, {helps if item.best else 'the search ends'}."
        )
    if found.rounds:
        notes.append(f"Kept: {', '.join(found.kept) or 'nothing'}.")
    unread = [name for name, law in laws.items() if law.words]
    if unread:
        names = ", ".join(unread) if len(unread) < len(laws) else "any arm"
        notes.append(f"A and B cannot be read off for {names}: {laws[unread[0]].words}")
    return notes


def _figures(found: Ablation) -> list[Figure]:
    """Held-out curves: the reference with a few arms in each figure."""
    drawn = [arm for arm in found.arms if arm.curve.compute]
    if not drawn:
        return []
    reference, others = drawn[0], drawn[1:]
    size = math.ceil(len(others) / max(1, math.ceil(len(others) / _ARMS_IN_A_FIGURE)))
    groups = [others[start : start + size] for start in range(0, len(others), max(1, size))] or [[]]
    return [
        _figure(
            reference, group, f"curves_{index}", f" ({index} of {len(groups)})" if len(groups) > 1 else ""
        )
        for index, group in enumerate(groups, 1)
    ]


def _figure(reference: ArmResult, others: Sequence[ArmResult], name: str, place: str) -> Figure:
    columns: dict[str, list[float | None]] = {"FLOP": []}
    lines: list[Line] = []
    arms = [*others, reference]  # the reference is drawn last, on top
    roles = dict(zip((reference.name, *(arm.name for arm in others)), LINE_ROLES, strict=False))
    total = sum(len(arm.curve.compute) for arm in arms)
    for arm in arms:
        start = len(columns["FLOP"])
        columns["FLOP"] += arm.curve.compute
        for key, values in (
            (arm.name, arm.curve.mean),
            (f"{arm.name} low", arm.curve.low),
            (f"{arm.name} high", arm.curve.high),
        ):
            before: list[float | None] = [None] * start
            after: list[float | None] = [None] * (total - start - len(values))
            columns[key] = [*before, *values, *after]
        lines.append(Line(arm.name, arm.name, f"{arm.name} low", f"{arm.name} high", role=roles[arm.name]))
    return Figure(
        name,
        f"Held-out pass rate over compute{place}",
        "Mean over seeds; the band is the 95 % interval of that mean. Compute: 2 FLOP per parameter and generated token, 6 per "
        "trained token.",
        columns,
        "FLOP",
        tuple(lines),
        x_label="FLOP",
        y_label="held-out pass rate",
        percent=True,
    )


def _headlines(found: Ablation) -> list[Headline]:
    reference = found.arms[0]
    headlines = [
        Headline(f"pass rate, {reference.name}", f"{reference.score.mean:.3f}", _ends(reference.score))
    ]
    told = [arm for arm in found.arms[1:] if not math.isnan(arm.difference.mean)]
    if found.rounds:
        headlines.append(
            Headline("kept", str(len(found.kept)), ", ".join(found.kept) or "nothing helps beyond noise")
        )
    elif told:
        most = min(told, key=lambda arm: arm.difference.mean)
        clear = [arm for arm in told if arm.difference.low > 0 or arm.difference.high < 0]
        headlines += [
            Headline(
                f"most is lost by reverting {most.name}",
                f"{most.difference.mean:+.3f}",
                _ends(most.difference),
            ),
            Headline(
                "differences beyond noise", f"{len(clear)} of {len(told)}", "intervals that leave out 0"
            ),
        ]
    return headlines


def _ends(found: Interval) -> str:
    return "one seed" if math.isnan(found.low) else f"95 % interval {found.low:.3f} to {found.high:.3f}"


def _page(run: Run, found: Ablation, laws: Mapping[str, Law]) -> Path:
    options = [
        (arm.name, describe(arm.overrides) or "the recipe", arm.reference or "–") for arm in found.arms
    ]
    shared = _shared(laws)
    under = "" if shared is None else f" ({shared:.3f})"
    tables = [
        Table(
            "Arms",
            _HEADER,
            _rows(found),
            "Pass rate: held-out, after the last update, mean over seeds. Difference: paired by seed, to the arm named below. "
            "Intervals: 95 %, Student's t over seeds; each for itself, so of twenty differences that are none, one is "
            "expected to look like one. Truncated: last tenth of the updates.",
        ),
        Table(
            "Laws",
            _LAW_HEADER,
            _law_rows(laws),
            "Of each arm's mean curve, with the interval of that curve's noise. B once more under one ceiling for all arms that "
            f"can be read off{under}, as speeds compare only there.",
        ),
        Table("Options", ("arm", "options", "compared with"), options),
    ]
    if found.rounds:
        rounds = [
            (str(index), str(len(item.tried)), item.best or "–", item.kept or "–")
            for index, item in enumerate(found.rounds, 1)
        ]
        tables.append(
            Table(
                "Rounds",
                ("round", "arms tried", "best", "kept"),
                rounds,
                "The best axis of a round is kept if the interval of its difference, paired by seed, lies above 0, where the "
                "intervals of all axes of the round hold together at 95 % (Bonferroni).",
            )
        )
    return write_report(
        run,
        headlines=_headlines(found),
        figures=_figures(found),
        tables=tables,
        notes=_notes(found, laws),
        derived=True,
    )


def rewrite_report(run: Run) -> Path:
    """The page of an existing ablation, from its result.json."""
    found = read_result(run.path)
    laws = read_laws(found)
    write_result(run, found, **law_record(laws))
    return _page(run, found, laws)
