"""A playbook as a file of instructions for coding agents: AGENTS.md, CLAUDE.md, SKILL.md; or as text and JSON.

The best bullets first, until the limit of the file. In a file that is there, only what stands between two comment lines is ours:

    <!-- postgrad playbook: begin -->
    <!-- postgrad playbook: end -->

Bullets come from traces that nobody has read, and agents act on some characters of these files: comments, `@file` imports and
!`commands` are written so that they mean nothing.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from postgrad.core.errors import ConfigError, RunError
from postgrad.core.runfiles import explain_os_error, replace_file
from postgrad.playbook.book import SECTIONS, Bullet, Playbook, to_row
from postgrad.playbook.clean import visible
from postgrad.playbook.text import format_text
from postgrad.playbook.view import worth

Kind = Literal["agents", "claude", "skill", "text", "json"]
KINDS: Mapping[str, str] = {
    "agents": "AGENTS.md",
    "claude": "CLAUDE.md",
    "skill": "SKILL.md",
    "text": "playbook.txt",
    "json": "playbook.json",
}
"""Kinds of files and how they are called."""

BEGIN = "<!-- postgrad playbook: begin -->"
END = "<!-- postgrad playbook: end -->"


@dataclass(frozen=True)
class Limit:
    """Of a whole file.

    Attributes:
        num_bytes, num_lines: at most; None = any.
        words: the limit in words.
    """

    num_bytes: int | None
    num_lines: int | None
    words: str


LIMITS: Mapping[str, Limit] = {
    "agents": Limit(32 * 1024, None, "32 KiB"),
    "claude": Limit(25_000, 200, "200 lines or 25 KB"),
    "skill": Limit(None, 499, "fewer than 500 lines"),
}
MAX_SKILL_NAME_CHARACTERS = 64
MAX_SKILL_DESCRIPTION_CHARACTERS = 1024


@dataclass(frozen=True)
class Exported:
    """A file's content.

    Attributes:
        data: all of it.
        num_written, num_left_out: bullets.
    """

    data: bytes
    num_written: int
    num_left_out: int


def export(
    book: Playbook,
    kind: Kind,
    existing: bytes = b"",
    *,
    name: str = "playbook",
    description: str = "",
    quarantined: bool = False,
) -> Exported:
    """The content of a file with a playbook in it.

    Args:
        book: what is written.
        kind: of file.
        existing: what the file holds now; text and JSON replace it.
        name: of a skill: lower-case letters, digits and hyphens, at most 64.
        description: of a skill: what it is about and when to use it, at most 1,024 characters; default: from the sections.
        quarantined: write those in quarantine too (JSON always has them, marked).

    Raises:
        ConfigError: a name or description that a skill cannot have; markers that do not pair; a file that is full without us.

    >>> from postgrad.playbook.book import Add, Delta, fold
    >>> book = fold([Delta((Add("OTHERS", "Be brief."),))])
    >>> print(export(book, "agents", b"# Mine\\n").data.decode(), end="")
    # Mine
    <BLANKLINE>
    <!-- postgrad playbook: begin -->
    ## Playbook
    <BLANKLINE>
    Advice from experience with such tasks; follow it where it applies.
    <BLANKLINE>
    ### Others
    <BLANKLINE>
    - Be brief.
    <!-- postgrad playbook: end -->
    """
    if kind == "json":
        return Exported(_json(book), len(book), 0)
    bullets = list(book.bullets.values()) if quarantined else book.trusted
    if kind == "text":
        return Exported(format_text(bullets).encode(), len(bullets), len(book) - len(bullets))
    if kind not in LIMITS:
        raise ConfigError(f"No file of the kind {kind!r}. Valid: {', '.join(KINDS)}.")
    before, after = split(existing)
    if kind == "skill":
        check_skill(name, description)
        if not existing.strip():
            before = frontmatter(name, description or default_description(name, bullets)).encode()
    newline = b"\r\n" if existing.count(b"\r\n") * 2 > existing.count(b"\n") else b"\n"
    if before and not before.endswith(b"\n"):
        before += newline
    if before.strip() and not _has_markers(existing):
        before += newline
    limit = LIMITS[kind]
    block, written = _block(
        bullets, limit, len(before) + len(after), before.count(b"\n") + _lines(after), len(newline)
    )
    return Exported(before + block.encode().replace(b"\n", newline) + after, written, len(bullets) - written)


# -- what is ours --------------------------------------------------------------------------------------------------


def _block(
    bullets: Sequence[Bullet], limit: Limit, used_bytes: int, used_lines: int, newline: int
) -> tuple[str, int]:
    """Our part of a file, and how many bullets are in it."""
    ranked = sorted(bullets, key=lambda bullet: (*(-part for part in worth(bullet)), bullet.id))
    places: dict[str, int] = {}
    room = _Room(limit, used_bytes, used_lines, newline)
    if not room.take(_wrap([], len(bullets), limit)):
        raise ConfigError(
            f"There is no room for a playbook: the file may have {limit.words}, and what stands there needs {used_bytes:,} bytes "
            f"on {used_lines:,} lines. Shorten it, or write to another file."
        )
    chosen: dict[str, list[Bullet]] = {}
    for place, bullet in enumerate(ranked):
        heading = "" if bullet.section in chosen else f"\n### {heading_of(bullet.section)}\n\n"
        if room.take(f"{heading}- {harmless(bullet.text)}\n"):
            chosen.setdefault(bullet.section, []).append(bullet)
            places[bullet.id] = place
    lines: list[str] = []
    for section in _in_order(chosen):
        lines += [
            "",
            f"### {heading_of(section)}",
            "",
            *(f"- {harmless(bullet.text)}" for bullet in chosen[section]),
        ]
    return _wrap(lines, len(bullets) - len(places), limit), len(places)


class _Room:
    """What is left of a file."""

    def __init__(self, limit: Limit, used_bytes: int, used_lines: int, newline: int) -> None:
        self.limit, self.num_bytes, self.num_lines, self.newline = limit, used_bytes, used_lines, newline

    def take(self, text: str) -> bool:
        """Whether a text still fits; then its place is taken."""
        lines = text.count("\n")
        size = len(text.encode()) + lines * (self.newline - 1)
        if self.limit.num_bytes is not None and self.num_bytes + size > self.limit.num_bytes:
            return False
        if self.limit.num_lines is not None and self.num_lines + lines > self.limit.num_lines:
            return False
        self.num_bytes += size
        self.num_lines += lines
        return True


def _wrap(lines: Sequence[str], left_out: int, limit: Limit) -> str:
    intro = "Advice from experience with such tasks; follow it where it applies."
    if left_out:
        intro += f" {left_out} of lesser worth {'is' if left_out == 1 else 'are'} left out ({limit.words})."
    return "\n".join([BEGIN, "## Playbook", "", intro, *lines, END, ""])


def _in_order(sections: Iterable[str]) -> list[str]:
    found = list(sections)
    return [name for name in SECTIONS if name in found] + sorted(
        name for name in found if name not in SECTIONS
    )


def heading_of(section: str) -> str:
    """A section's name for reading.

    >>> heading_of("STRATEGIES & INSIGHTS"), heading_of("About SQL")
    ('Strategies & insights', 'About SQL')
    """
    shown = harmless(section)
    return shown.capitalize() if shown.isupper() else shown


def harmless(text: str) -> str:
    """A bullet's text with which neither Markdown nor an agent does anything.

    >>> harmless("<!-- x --> ask @~/.ssh/id or !`rm x`, me@home, `@property`")
    '&lt;!-- x --&gt; ask &#64;~/.ssh/id or ! `rm x`, me@home, `@property`'
    """
    text = visible(text).replace("<!--", "&lt;!--").replace("-->", "--&gt;")
    text = re.sub(r"!(?=`)", "! ", re.sub(r"`(?=!)", "` ", text))
    parts = text.split("`")
    inside = (
        len(parts) - 1 if len(parts) % 2 else len(parts) - 2
    )  # a last backtick without a partner opens nothing
    return "`".join(
        part if number % 2 and number < inside else re.sub(r"(?<![\w&])@(?=\S)", "&#64;", part)
        for number, part in enumerate(parts)
    )


# -- what is not ours ----------------------------------------------------------------------------------------------


def _has_markers(data: bytes) -> bool:
    return any(line.strip() == BEGIN.encode() for line in data.split(b"\n"))


def split(data: bytes) -> tuple[bytes, bytes]:
    """What stands before and after our part of a file; all of it before, where we have none.

    Raises:
        ConfigError: markers that do not pair.
    """
    lines: list[bytes] = re.findall(rb"[^\n]*\n|[^\n]+", data)
    begins = [at for at, line in enumerate(lines) if line.strip() == BEGIN.encode()]
    ends = [at for at, line in enumerate(lines) if line.strip() == END.encode()]
    if not begins and not ends:
        return data, b""
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        raise ConfigError(
            f"The file has {len(begins)} lines {BEGIN!r} and {len(ends)} lines {END!r}; one of each, in this order, marks what "
            "is ours. Mend that by hand; nothing was written."
        )
    return b"".join(lines[: begins[0]]), b"".join(lines[ends[0] + 1 :])


def _lines(data: bytes) -> int:
    return data.count(b"\n") + (1 if data and not data.endswith(b"\n") else 0)


# -- skills --------------------------------------------------------------------------------------------------------


def check_skill(name: str, description: str) -> None:
    """Whether a skill can be called and described so.

    Raises:
        ConfigError: with the rule that is broken.
    """
    if len(name) > MAX_SKILL_NAME_CHARACTERS or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ConfigError(
            f"A skill cannot be called {name[:80]!r}: lower-case letters and digits with single hyphens between them, at most "
            f"{MAX_SKILL_NAME_CHARACTERS} characters. Choose one with --name."
        )
    if len(description) > MAX_SKILL_DESCRIPTION_CHARACTERS:
        raise ConfigError(
            f"A skill's description has at most {MAX_SKILL_DESCRIPTION_CHARACTERS:,} characters; received {len(description):,}."
        )
    if "<" in description or ">" in description:
        raise ConfigError("A skill's description may not hold < or >.")


def skill_name(text: str) -> str:
    """A name for a skill, from the name of something.

    >>> skill_name("Finance (2026)"), skill_name("…")
    ('finance-2026', 'playbook')
    """
    words = re.findall(r"[a-z0-9]+", text.lower())
    return "-".join(words)[:MAX_SKILL_NAME_CHARACTERS].strip("-") or "playbook"


def default_description(name: str, bullets: Sequence[Bullet]) -> str:
    """What a skill is about, from the names of its sections; they may not say more than that."""
    sections = ", ".join(
        heading_of(section).lower() for section in _in_order({b.section for b in bullets})[:8]
    )
    text = f"Advice from experience with {name.replace('-', ' ')}: {sections or 'none yet'}. Use it for tasks of this kind."
    return re.sub("[<>]", "", text)[:MAX_SKILL_DESCRIPTION_CHARACTERS]


def frontmatter(name: str, description: str) -> str:
    """Of a SKILL.md."""
    return f"---\nname: {name}\ndescription: {json.dumps(visible(description), ensure_ascii=False)}\n---\n"


# -- files ---------------------------------------------------------------------------------------------------------


def write(
    path: Path | str,
    book: Playbook,
    kind: Kind,
    *,
    name: str = "playbook",
    description: str = "",
    quarantined: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Writes a playbook into a file, wholly or not at all; see `export`. What is the same already is not touched.

    Args:
        path: a file of instructions may be there; text and JSON replace a file only with `overwrite`. A link is followed within
            its directory, not out of it.

    Raises:
        ConfigError: as `export`; or the path is no place for a file.
        RunError: the disk is full, or the file cannot be read or written.
    """
    place = _target(Path(path).expanduser())
    try:
        existing = place.read_bytes() if place.exists() else None
        if existing is not None and kind not in LIMITS and not overwrite:
            raise ConfigError(
                "it is there already. Choose another name with --out, or replace it with --overwrite."
            )
        made = export(
            book, kind, existing or b"", name=name, description=description, quarantined=quarantined
        )
        if made.data != existing:
            mode = None if existing is None else stat.S_IMODE(place.stat().st_mode)
            replace_file(place, made.data)
            if mode is not None:
                place.chmod(mode)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    except OSError as error:
        raise RunError(explain_os_error(error, place)) from error
    return made


def _target(path: Path) -> Path:
    """The file that a path stands for."""
    try:
        folder = path.parent.resolve(strict=True)
        target = (folder / path.name).resolve()
    except (OSError, RuntimeError):  # RuntimeError: links that go in circles
        raise ConfigError(
            f"{path} cannot be written: its directory is not there, or a link goes nowhere."
        ) from None
    if path.is_symlink() and not target.is_relative_to(folder):
        raise ConfigError(
            f"{path} is a link out of its directory, to {target}. Name that file itself if it is meant."
        )
    if target.is_dir():
        raise ConfigError(f"{path} is a directory. Name the file: {path / 'AGENTS.md'}")
    if target.exists() and not target.is_file():
        raise ConfigError(f"{path} is no ordinary file.")
    return target


# -- JSON ----------------------------------------------------------------------------------------------------------


def record(book: Playbook, **more: Any) -> dict[str, Any]:
    """A playbook as JSON."""
    return {
        **more,
        "version": book.version,
        "bullets": [to_row(bullet) for bullet in book.bullets.values()],
        "retired": [
            {**to_row(gone.bullet), "reason": gone.reason, "into": gone.into, "at": gone.at}
            for gone in book.retired.values()
        ],
        "marks": {name: {"version": at, "score": score} for name, (at, score) in book.marks.items()},
    }


def _json(book: Playbook) -> bytes:
    return (json.dumps(record(book), indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
