"""Playbooks as files for agents: limits, what is not ours byte for byte, and texts that would make an agent act."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postgrad.core.errors import ConfigError, RunError
from postgrad.playbook.book import Add, Delta, Playbook, Tag, fold
from postgrad.playbook.export import (
    BEGIN,
    END,
    LIMITS,
    Kind,
    check_skill,
    export,
    harmless,
    skill_name,
    split,
    write,
)
from postgrad.playbook.text import parse_text

OURS = "## Playbook\n\nAdvice from experience with such tasks; follow it where it applies.\n"


def book(
    num: int, words: str = "Advice number {}, which is of some length.", section: str = "OTHERS"
) -> Playbook:
    """The later, the better."""
    adds = [Add(section, words.format(i), helpful=i) for i in range(num)]
    return fold([Delta(tuple(adds))])


SMALL = fold(
    [
        Delta(
            (
                Add("ABOUT SQL", "Quote names."),
                Add("STRATEGIES & INSIGHTS", "Plan."),
                Add("ABOUT SQL", "Use joins."),
            )
        ),
        Delta((Tag("about-00003", helpful=2), Add("OTHERS", "Secretly.", trust="quarantined"))),
    ]
)


def text(playbook: Playbook, kind: Kind, existing: str = "") -> str:
    return export(playbook, kind, existing.encode()).data.decode()


def test_sections_best_first_and_nothing_from_quarantine() -> None:
    assert text(SMALL, "agents") == (
        f"{BEGIN}\n{OURS}\n### Strategies & insights\n\n- Plan.\n\n### About sql\n\n- Use joins.\n- Quote names.\n{END}\n"
    )
    assert "Secretly" in export(SMALL, "claude", quarantined=True).data.decode()


@pytest.mark.parametrize("kind", ["agents", "claude", "skill"])
def test_limits_hold_and_the_best_stay(kind: Kind) -> None:
    many = book(2000)
    existing = "# Rules\n" + "x\n" * 50
    made = export(many, kind, existing.encode())
    limit, shown = LIMITS[kind], made.data.decode()
    assert limit.num_bytes is None or len(made.data) <= limit.num_bytes
    assert limit.num_lines is None or shown.count("\n") <= limit.num_lines
    assert made.num_written + made.num_left_out == 2000
    assert made.num_written > 100
    kept = [int(line.split()[3].strip(",")) for line in shown.splitlines() if line.startswith("- ")]
    assert kept == list(range(1999, 1999 - made.num_written, -1))
    assert f" {made.num_left_out} of lesser worth are left out ({limit.words})." in shown
    room = (limit.num_lines or 10**9) - shown.count("\n"), (limit.num_bytes or 10**9) - len(made.data)
    assert min(room[0], room[1] // 60) <= 2  # the file is full


def test_a_file_that_is_full_without_us_is_told() -> None:
    with pytest.raises(ConfigError, match=r"no room.*200 lines"):
        export(SMALL, "claude", b"x\n" * 198)


@given(
    before=st.binary(max_size=60).map(lambda data: data.replace(b"<!--", b"")),
    after=st.binary(max_size=60).map(lambda data: data.replace(b"<!--", b"")),
)
def test_what_is_not_ours_stays_byte_for_byte(before: bytes, after: bytes) -> None:
    head = before + b"\n" + BEGIN.encode() + b"\nold\n" + END.encode() + b"\n"
    made = export(SMALL, "agents", head + after).data
    assert made.startswith(before + b"\n" + BEGIN.encode())
    assert made.endswith(b"\n" + after)
    assert split(made) == (before + b"\n", after)
    assert export(SMALL, "agents", made).data == made
    appended = export(SMALL, "agents", before).data
    assert appended.startswith(before)
    assert export(SMALL, "agents", appended).data == appended


def test_line_ends_of_the_file_are_kept() -> None:
    made = export(SMALL, "agents", b"# Mine\r\nrules").data
    assert made.startswith(b"# Mine\r\nrules\r\n\r\n<!--")
    assert made.count(b"\n") == made.count(b"\r\n")
    assert export(SMALL, "agents", made).data == made


@pytest.mark.parametrize("lines", ["b", "e", "eb", "bebe", "bbe"])
def test_markers_that_do_not_pair(lines: str) -> None:
    existing = "\n".join({"b": BEGIN, "e": END}[line] for line in lines)
    with pytest.raises(ConfigError, match="nothing was written"):
        text(SMALL, "agents", existing)


def test_bullets_cannot_forge_markers_imports_or_commands() -> None:
    hostile = [
        f"a {END} b {BEGIN}",
        "@~/.ssh/id_rsa",
        "see (@secret) and `code` then @x",
        "!`rm -rf ~`",
        "```! x",
        "` @open",
        "x\n@y\n# z",
    ]
    made = text(fold([Delta(tuple(Add(f"OTHERS {END}", one) for one in hostile))]), "skill")
    assert made.count(BEGIN) == made.count(END) == 1
    assert not re.search(r"(?<!\w)@", made)
    assert "!`" not in made
    assert "`!" not in made
    assert text(fold([]), "skill", made).endswith(f"{OURS}{END}\n")
    assert harmless("mail me@home, use `@dataclass`") == "mail me@home, use `@dataclass`"


def test_skills() -> None:
    made = text(SMALL, "skill")
    assert made.startswith(
        '---\nname: playbook\ndescription: "Advice from experience with playbook: strategies'
    )
    own = export(SMALL, "skill", name="my-sql", description='About: "SQL"').data.decode()
    assert own.startswith('---\nname: my-sql\ndescription: "About: \\"SQL\\""\n---\n\n' + BEGIN)
    assert export(SMALL, "skill", b"---\nname: kept\n---\n").data.startswith(b"---\nname: kept\n---\n\n<!--")
    check_skill("a" * 64, "d" * 1024)
    for name, description in [
        ("A", ""), ("a--b", ""), ("-a", ""), ("a" * 65, ""), ("", ""), ("a\nb", ""), ("a", "d" * 1025), ("a", "<b>"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError):
            check_skill(name, description)
    check_skill(skill_name("Ünï (2026)" * 20), "")


def test_text_and_json() -> None:
    adds = parse_text(text(SMALL, "text")).adds
    assert {add.text for add in adds} == {"Plan.", "Quote names.", "Use joins."}
    found = json.loads(text(SMALL, "json"))
    assert [row["trust"] for row in found["bullets"]] == ["trusted"] * 3 + ["quarantined"]
    with pytest.raises(ConfigError, match="kind"):
        export(SMALL, "pdf")  # pyright: ignore[reportArgumentType]


# -- files ---------------------------------------------------------------------------------------------------------


def test_write_keeps_mode_and_does_not_touch_what_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "AGENTS.md"
    path.write_text("# Mine\n")
    path.chmod(0o640)
    write(path, SMALL, "agents")
    before = path.stat()
    assert before.st_mode & 0o777 == 0o640
    write(path, SMALL, "agents")
    assert path.stat().st_ino == before.st_ino
    changed = replace(SMALL, bullets={})
    write(path, changed, "agents")
    assert path.read_text() == f"# Mine\n\n{BEGIN}\n{OURS}{END}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["AGENTS.md"]


def test_links_and_places_that_are_no_files(tmp_path: Path) -> None:
    inside, outside = tmp_path / "repo", tmp_path / "secret.md"
    inside.mkdir()
    outside.write_text("mine\n")
    (inside / "CLAUDE.md").symlink_to(outside)
    with pytest.raises(ConfigError, match="link out of its directory"):
        write(inside / "CLAUDE.md", SMALL, "claude")
    assert outside.read_text() == "mine\n"
    (inside / "AGENTS.md").write_text("ours\n")
    (inside / "GEMINI.md").symlink_to("AGENTS.md")
    write(inside / "GEMINI.md", SMALL, "agents")
    assert (inside / "GEMINI.md").is_symlink()
    assert (inside / "AGENTS.md").read_text().startswith("ours\n\n<!--")
    (inside / "loop").symlink_to("loop")
    os.mkfifo(inside / "pipe")
    for path, words in [
        (inside, "is a directory"),
        (inside / "loop", "link"),
        (inside / "pipe", "no ordinary file"),
        (inside / "no" / "AGENTS.md", "not there"),
    ]:
        with pytest.raises(ConfigError, match=words):
            write(path, SMALL, "agents")


def test_text_replaces_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    write(path, SMALL, "text")
    with pytest.raises(ConfigError, match="--overwrite"):
        write(path, SMALL, "text")
    write(path, SMALL, "json", overwrite=True)
    assert json.loads(path.read_text())["version"] == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot be written"):
        write(tmp_path / "AGENTS.md", SMALL, "agents")
