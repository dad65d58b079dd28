"""report.html: one page that holds everything about a run, opens anywhere and asks nothing of the network.

What it shows comes from the metric keys (see `core.glossary`); a room may hand over headlines and figures
of its own.
Rows of samples.jsonl that the sample browser understands (all optional):

    step, phase ("before", "after", "train"), task, prompt_id, prompt, answer, completion, correct (bool),
    score, reward, num_tokens, stop_reason, interrupted, status (of the verdict)
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any, cast

from postgrad.core.errors import MissingExtraError, RunError
from postgrad.core.figures import (
    PALETTE,
    Figure,
    Headline,
    Interval,
    Line,
    columns_csv,
    format_number,
    require_matplotlib,
    standalone,
    to_csv,
    to_svg,
)
from postgrad.core.glossary import explain
from postgrad.core.report_samples import sample_groups, script_json
from postgrad.core.report_words import Heatmap
from postgrad.core.run import Run
from postgrad.core.runfiles import explain_os_error, replace_file

Series = dict[str, list[Any]]

AREAS = {
    "rollout": "Rollouts",
    "eval": "Held-out evaluation",
    "loss": "Loss and optimiser",
    "staleness": "Staleness",
    "mismatch": "Generator and trainer",
    "curriculum": "Prompts",
    "learn": "Samples",
    "validation": "Validation",
    "autoencoder": "Autoencoder",
    "structure": "Who holds what",
    "adapter": "Adapter",
    "playbook": "Playbook",
    "cost": "Cost",
    "idle": "Waiting",
    "speed": "Speed",
    "time": "Time",
    "compute": "Compute",
    "nonfinite": "Non-finite values",
}
_MAIN_KEYS = ("eval/pass_rate", "eval/pass_rate_low", "eval/pass_rate_high", "rollout/pass_rate")


@dataclass(frozen=True)
class Tile:
    """One metric of the small multiples: its figure, or only a value where a line would say nothing."""

    key: str
    meaning: str
    last: str
    span: str
    figure: Figure | None


@dataclass(frozen=True)
class Table:
    """A table of a report: cells are text, the first column names the row.

    Attributes:
        title: above it.
        header: of the columns.
        rows: as long as the header.
        note: a sentence below it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A drawing of a report that is no chart.

    Attributes:
        name: file stem of the SVG and the CSV.
        title: above it.
        caption: below it.
        svg: an `<svg>` element, put into the page as it is: only ever from a drawing library, never with a user's text in it.
        columns: what it shows, for the CSV.
    """

    name: str
    title: str
    caption: str
    svg: str
    columns: Mapping[str, Sequence[Any]]


def write_report(
    run: Run,
    *,
    headlines: Sequence[Headline] | None = None,
    figures: Sequence[Figure] | None = None,
    tables: Sequence[Table] = (),
    heatmaps: Sequence[Heatmap] = (),
    pictures: Sequence[Picture] = (),
    notes: Sequence[str] = (),
    derived: bool = False,
) -> Path:
    """Write report.html and figures/ into the run's directory; the same run gives the same bytes.

    Args:
        run: from `Run.open`, `Run.create` or `Run.resume`.
        headlines: the numbers at the top; default: those of the metric keys.
        figures: large figures; default: held-out and training pass rate, where logged.
        pictures: below the figures.
        tables: below these.
        heatmaps: texts with shaded words, below the tables.
        notes: sentences right below the headlines.
        derived: the run was computed from something else in a moment: no steps, no metrics over them, and no replay from
            its config alone.

    Returns:
        The path of report.html.

    Raises:
        RunError: the run is damaged, or its directory cannot be written.
    """
    steps, series = merge_rows(run.metrics())
    large = list(figures) if figures is not None else default_figures(steps, series)
    tiles = [] if derived else metric_tiles(steps, series)
    missing = ""
    svgs: dict[str, str] = {}
    try:
        require_matplotlib()
    except MissingExtraError as error:
        missing = str(error)
    else:
        svgs = _draw_all(large, tiles)
    groups, num_samples = sample_groups(all_samples := run.samples())
    script = _resource("report.js")
    page = _render(
        run=_run_facts(run, [] if derived else steps, series)
        | ({"replay": "", "duration": ""} if derived else {}),
        headlines=list(headlines) if headlines is not None else default_headlines(steps, series),
        figures=large,
        tables=tables,
        heatmaps=heatmaps,
        pictures=pictures,
        notes=notes,
        areas=_by_area(tiles),
        svgs=svgs,
        missing=missing,
        samples_json=script_json(groups),
        num_samples=num_samples,
        num_all_samples=len(all_samples),
        sample_tasks=sorted({group["task"] for group in groups if group["task"]}),
        sample_steps=sorted({sample["step"] for group in groups for sample in group["samples"]}),
        config=_config_sections(run.config_dict()),
        palette=PALETTE,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    try:
        _write_figures(run.path / "figures", [*large, *(tile.figure for tile in tiles if tile.figure)], svgs)
        _write_pictures(run.path / "figures", pictures)
        replace_file(run.path / "report.html", page.encode("utf-8", "replace"))
    except OSError as error:
        raise RunError(f"Cannot write the report. {explain_os_error(error, run.path)}") from error
    return run.path / "report.html"


def merge_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], Series]:
    """Rows of metrics.jsonl as columns: one entry per step (a later row wins), None where nothing was logged.

    >>> merge_rows([{"step": 0, "a/x": 1}, {"step": 1, "a/x": 2}, {"step": 1, "a/y": 3}])
    ([0, 1], {'a/x': [1, 2], 'a/y': [None, 3]})
    """
    merged: dict[int, dict[str, Any]] = {}
    keys: dict[str, None] = {}
    for row in rows:
        values = {key: value for key, value in row.items() if key != "step"}
        merged.setdefault(int(row.get("step", 0)), {}).update(values)
        keys.update(dict.fromkeys(values))
    steps = sorted(merged)
    return steps, {key: [merged[step].get(key) for step in steps] for key in keys}


def numbers(values: Sequence[Any]) -> list[float]:
    """The numbers among `values`."""
    return [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]


# -- what the metric keys say ------------------------------------------------------------------------------


def default_headlines(steps: Sequence[int], series: Series) -> list[Headline]:
    """Held-out pass rates before and after, then steps, tokens, time and speed, as far as they were
    logged."""
    found: list[Headline] = []
    rates = ["eval/pass_rate", *sorted(key for key in series if re.fullmatch(r"eval/.+/pass_rate", key))]
    for key in rates:
        ends = _ends(series, key)
        if ends is not None:
            task = key.removeprefix("eval/").removesuffix("pass_rate").strip("/")
            label = task or "Held-out pass rate"
            found.append(Headline(label, before=ends[0], after=ends[1], detail=_change(*ends)))
    if steps:
        found.append(Headline("steps", format_number(steps[-1])))
    for key, label in (
        ("compute/total_tokens", "tokens generated"),
        ("speed/generate_tokens_per_s", "tokens/s"),
    ):
        values = numbers(series.get(key, []))
        if values and key.startswith("speed"):
            found.append(
                Headline(f"{label} generated (median)", format_number(sorted(values)[len(values) // 2]))
            )
        elif values:
            found.append(Headline(label, _compact(values[-1])))
    elapsed = numbers(series.get("time/elapsed_s", []))
    if elapsed:
        found.append(Headline("wall time", format_duration(elapsed[-1])))
    return found


def _ends(series: Series, key: str) -> tuple[Interval, Interval | None] | None:
    found: list[Interval] = []
    values = series.get(key, [])
    nothing: list[Any] = [None] * len(values)
    for value, low, high in zip(
        values, series.get(f"{key}_low", nothing), series.get(f"{key}_high", nothing), strict=True
    ):
        if value is not None:
            found.append(Interval(value, value if low is None else low, value if high is None else high))
    if not found:
        return None
    return found[0], (found[-1] if len(found) > 1 else None)


def _change(before: Interval, after: Interval | None) -> str:
    if after is None:
        return "evaluated once"
    points = 100 * (after.value - before.value)
    apart = before.high < after.low or after.high < before.low
    return f"{points:+.1f} points" + ("" if apart else ", intervals overlap")


def default_figures(steps: Sequence[int], series: Series) -> list[Figure]:
    """Held-out and training pass rate over steps; nothing where neither was logged."""
    columns: dict[str, list[Any]] = {"step": list(steps)}
    columns.update({key: series[key] for key in _MAIN_KEYS if key in series})
    lines: list[Line] = []
    if "eval/pass_rate" in columns:
        band = (
            ("eval/pass_rate_low", "eval/pass_rate_high") if "eval/pass_rate_low" in columns else (None, None)
        )
        lines.append(Line("eval/pass_rate", "held-out, with 95 % interval", *band, style="points"))
    if "rollout/pass_rate" in columns:
        lines.append(Line("rollout/pass_rate", "training prompts", smooth=True))
    if not lines or len(steps) < 2:
        return []
    caption = " ".join(explain(line.y).replace(" (0 to 1)", "") for line in lines)
    if "rollout/pass_rate" in columns:
        caption += (
            " The training line leans on the prompts that the curriculum still serves, "
            "so the two need not meet."
        )
    return [
        Figure("pass_rate", "Pass rate", caption, columns, "step", tuple(lines), x_label="step", percent=True)
    ]


def metric_tiles(steps: Sequence[int], series: Series) -> list[Tile]:
    """A tile for every metric that is not part of the main figure or of another metric's band."""
    tiles: list[Tile] = []
    for key in sorted(series):
        base = re.sub(r"_(low|high)$", "", key)
        if key in _MAIN_KEYS or (base != key and base in series):
            continue
        tiles.append(
            _histogram_tile(key, series[key]) if _is_table(series[key]) else _tile(key, steps, series)
        )
    return tiles


def _is_table(values: Sequence[Any]) -> bool:
    return any(isinstance(value, list) for value in values)


def _tile(key: str, steps: Sequence[int], series: Series) -> Tile:
    meaning = explain(key)
    percent = "(0 to 1)" in meaning
    meaning = meaning.replace(" (0 to 1)", "")
    values = numbers(series[key])
    if not values:
        shown = [value for value in series[key] if value is not None]
        return Tile(key, meaning, str(shown[-1]) if shown else "–", "", None)
    last = format_number(values[-1], percent=percent)
    if len(set(values)) == 1:
        return Tile(
            key,
            meaning,
            last,
            "One value." if len(values) == 1 else f"Constant over {len(values)} values.",
            None,
        )
    columns: dict[str, list[Any]] = {"step": list(steps), key: series[key]}
    bands = (f"{key}_low", f"{key}_high")
    banded = bands[0] in series and bands[1] in series
    columns.update({band: series[band] for band in bands if banded})
    style = "points" if len(values) <= 30 else "line"
    line = Line(key, "", *(bands if banded else (None, None)), style=style, smooth=not banded)
    figure = Figure(key.replace("/", "_"), key, meaning, columns, "step", (line,), percent=percent)
    span = f"{format_number(min(values), percent=percent)} to {format_number(max(values), percent=percent)}"
    return Tile(key, meaning, last, span, figure)


def _histogram_tile(key: str, values: Sequence[Any]) -> Tile:
    rows = [cast("list[float | None]", value) for value in values if isinstance(value, list)]
    totals = [sum(row[i] or 0 for row in rows if i < len(row)) for i in range(max(map(len, rows), default=0))]
    whole = sum(totals)
    if not whole:
        return Tile(key, explain(key), "–", "empty", None)
    columns: dict[str, list[Any]] = {
        "bin": list(range(len(totals))),
        "share": [total / whole for total in totals],
    }
    figure = Figure(
        key.replace("/", "_"), key, explain(key), columns, "bin", (Line("share", style="bars"),), percent=True
    )
    return Tile(key, explain(key), "", "Share of all, over the run.", figure)


def _by_area(tiles: Sequence[Tile]) -> list[tuple[str, str, list[Tile]]]:
    """(area, title, tiles): known areas in reading order, then the others; drawn tiles before bare values."""
    names = [*AREAS, *sorted({tile.key.split("/")[0] for tile in tiles} - AREAS.keys())]
    found: list[tuple[str, str, list[Tile]]] = []
    for name in names:
        members = sorted(
            (t for t in tiles if t.key.split("/")[0] == name), key=lambda tile: tile.figure is None
        )
        if members:
            found.append((name, AREAS.get(name, name.capitalize()), members))
    return found


# -- the page ----------------------------------------------------------------------------------------------


def _draw_all(large: Sequence[Figure], tiles: Sequence[Tile]) -> dict[str, str]:
    svgs: dict[str, str] = {}
    for figure in large:
        svgs[figure.name] = to_svg(figure, 920, 360)
        svgs[f"{figure.name}.narrow"] = to_svg(figure, 340, 300, variant="-narrow")
    for tile in tiles:
        if tile.figure is not None:
            svgs[tile.figure.name] = to_svg(tile.figure, 290, 120)
    return svgs


def _write_figures(directory: Path, figures: Sequence[Figure], svgs: Mapping[str, str]) -> None:
    if figures:
        directory.mkdir(exist_ok=True)
    for figure in figures:
        (directory / f"{figure.name}.csv").write_bytes(to_csv(figure).encode("utf-8", "replace"))
        if figure.name in svgs:
            (directory / f"{figure.name}.svg").write_bytes(
                standalone(svgs[figure.name]).encode("utf-8", "replace")
            )


def _write_pictures(directory: Path, pictures: Sequence[Picture]) -> None:
    for picture in pictures:
        directory.mkdir(exist_ok=True)
        (directory / f"{picture.name}.csv").write_text(columns_csv(picture.columns), encoding="utf-8")
        (directory / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")


def _run_facts(run: Run, steps: Sequence[int], series: Series) -> dict[str, Any]:
    info = run.info
    elapsed = numbers(series.get("time/elapsed_s", []))
    seconds = elapsed[-1] if elapsed else _seconds_between(info.get("started"), info.get("ended"))
    environment = {
        "device": info.get("device") or "not recorded",
        "platform": info.get("platform"),
        "git commit": info.get("git_sha") or "none",
        "seed": info.get("seed"),
        "started": info.get("started"),
        "ended": info.get("ended") or "–",
        "resumed": len(info.get("resumed", [])) or "never",
        **cast("dict[str, Any]", info.get("versions", {})),
    }
    return {
        "name": run.name,
        "kind": info.get("kind", ""),
        "status": run.status,
        "steps": steps[-1] if steps else None,
        "started": str(info.get("started") or "")[:16].replace("T", " "),
        "duration": format_duration(seconds) if seconds is not None else "",
        "environment": environment,
        "command": _shell_line(info.get("command", [])),
        "replay": _shell_line(
            [
                "postgrad",
                *str(info.get("kind", "")).split("."),
                f"{run.name}/config.json",
                "--out",
                f"{run.name}-again",
            ]
        ),
    }


def _shell_line(words: Sequence[Any]) -> str:
    parts = [str(word) for word in words]
    if parts:
        name = Path(parts[0]).name
        parts[0] = "postgrad" if name in ("__main__.py", "postgrad") else parts[0]
    return shlex.join(parts)


def _config_sections(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(section, rows of dotted key and value); the keys without section first."""

    def leaves(prefix: str, value: Any) -> list[tuple[str, str]]:
        if isinstance(value, dict) and value:
            table = cast("dict[str, Any]", value)
            return [
                leaf
                for key, part in table.items()
                for leaf in leaves(f"{prefix}.{key}" if prefix else key, part)
            ]
        return [(prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]

    top = [(key, value) for key, value in config.items() if not isinstance(value, dict)]
    sections = [("general", [leaf for key, value in top for leaf in leaves(key, value)])] if top else []
    sections += [(key, leaves(key, value)) for key, value in config.items() if isinstance(value, dict)]
    return sections


def _render(**context: Any) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    cast("dict[str, Any]", environment.filters)["percent"] = _percent
    for name in ("script", "samples_json"):
        context[name] = Markup(context[name])
    context["svgs"] = {name: Markup(svg) for name, svg in context["svgs"].items()}
    context["pictures"] = [(picture, Markup(picture.svg)) for picture in context["pictures"]]
    context["style"] = Markup(_resource("report.css"))
    return environment.from_string(_resource("report.html.j2")).render(**context)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _resource(name: str) -> str:
    return resources.files("postgrad.core").joinpath(name).read_text(encoding="utf-8")


def _seconds_between(started: Any, ended: Any) -> float | None:
    try:
        return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
    except (TypeError, ValueError):
        return None


def format_duration(seconds: float) -> str:
    """Two units at most.

    >>> format_duration(42), format_duration(754), format_duration(9000), format_duration(200_000)
    ('42 s', '12 min 34 s', '2 h 30 min', '2 d 7 h')
    """
    whole = int(seconds)
    for size, unit, smaller, small_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {small_unit}"
    return f"{whole} s" if whole or not seconds else f"{seconds:.2g} s"


def _compact(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return format_number(value)
