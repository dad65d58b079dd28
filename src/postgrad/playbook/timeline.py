"""A log of a playbook as one HTML file, which needs no network: growth, the playbook at any version, and every delta.

Bullets are not to be trusted: they enter the page as JSON that cannot end its element, and from there as text only; the page's
policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from postgrad.core.errors import RunError
from postgrad.core.figures import PALETTE, format_number
from postgrad.core.report_samples import script_json
from postgrad.core.runfiles import explain_os_error, replace_file
from postgrad.playbook.book import SECTIONS, Delta
from postgrad.playbook.timeline_chart import chart
from postgrad.playbook.timeline_data import History, history, was_correct


def write_timeline(
    deltas: Sequence[Delta], path: Path | str, *, name: str = "playbook", head: str = ""
) -> Path:
    """Writes the page, atomically; the same log gives the same bytes.

    Args:
        deltas: of the log.
        path: of the page.
        name: its title.
        head: hash of the log's last line, which says which log this is a page of.

    Raises:
        RunError: the file cannot be written.
    """
    place = Path(path).expanduser()
    page = render_timeline(deltas, name=name, head=head)
    try:
        replace_file(place, page.encode("utf-8", "replace"))
    except OSError as error:
        raise RunError(f"Cannot write the timeline. {explain_os_error(error, place)}") from error
    return place


def render_timeline(deltas: Sequence[Delta], *, name: str = "playbook", head: str = "") -> str:
    """The page's text; see `write_timeline`."""
    import jinja2
    from markupsafe import Markup

    found = history(deltas)
    script = _resource("postgrad.playbook", "timeline.js")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    data = {
        "steps": found.steps,
        "sections": list(SECTIONS),
        "marks": [{"name": mark, "version": version, "score": score} for mark, version, score in found.marks],
    }
    return environment.from_string(_resource("postgrad.playbook", "timeline.html.j2")).render(
        name=name,
        head=head[:12],
        first=_day(deltas[0].at) if deltas else "",
        last=_day(deltas[-1].at) if deltas else "",
        num_deltas=len(deltas),
        change=_change(deltas),
        facts=_facts(found, deltas),
        marks=_marks(found),
        rollbacks=found.rollbacks,
        waiting=found.points[-1].waiting,
        ever_waiting=any(point.waiting for point in found.points),
        wide=Markup(chart(found, 1000, 120)),
        narrow=Markup(chart(found, 350, 90)),
        data=Markup(script_json(data)),
        palette=PALETTE,
        style=Markup(
            _resource("postgrad.core", "report.css") + _resource("postgrad.playbook", "timeline.css")
        ),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _change(deltas: Sequence[Delta]) -> dict[str, Any] | None:
    """Accuracy of the first and the last quarter of the judged samples, where there are enough to tell."""
    judged = [right for delta in deltas if (right := was_correct(delta.sample)) is not None]
    size = min(len(judged) // 4, 100)
    if size < 5:
        return None
    before, after = (sum(part) / size for part in (judged[:size], judged[-size:]))
    return {
        "before": f"{100 * before:.0f}",
        "after": f"{100 * after:.0f}",
        "size": size,
        "total": len(judged),
    }


def _facts(found: History, deltas: Sequence[Delta]) -> list[tuple[str, str, str]]:
    """(value, label, detail) of the page's head."""
    last, book = found.points[-1], found.playbook
    judged = [right for delta in deltas if (right := was_correct(delta.sample)) is not None]
    helpful = sum(bullet.helpful for bullet in book.bullets.values())
    harmful = sum(bullet.harmful for bullet in book.bullets.values())
    refused = sum(len(delta.refused) for delta in deltas)
    merged = sum(gone.into is not None for gone in book.retired.values())
    waiting = f"{last.waiting} of them in quarantine" if last.waiting else "none in quarantine"
    facts = [
        (format_number(last.bullets), "bullets", waiting),
        (format_number(last.tokens), "tokens", "shown to the agent, estimated"),
        (f"{helpful:,} : {harmful:,}", "helpful : harmful", "tags of those that are there"),
        (format_number(len(book.retired)), "no longer there", f"{merged} of them merged"),
    ]
    if judged:
        share = format_number(sum(judged) / len(judged), percent=True)
        facts.append((share, "first answers right", f"over all {len(judged):,} samples"))
    if refused:
        facts.append((format_number(refused), "changes refused", "with their reasons below"))
    return facts


def _day(at: str) -> str:
    return at[:16].replace("T", " ")


def _marks(found: History) -> str:
    """Where marks stand; of a name that was given again, the last one counts."""
    by_name: dict[str, list[str]] = {}
    for name, version, score in found.marks:
        by_name.setdefault(name, []).append(f"{version}" + ("" if score is None else f" ({score:.4g})"))
    return "; ".join(
        f"“{name}” is version {versions[-1]}"
        + (f", before {', '.join(versions[:-1])}" if versions[1:] else "")
        for name, versions in by_name.items()
    )


def _resource(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
