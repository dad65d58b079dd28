"""What people do with a playbook: show, diff, rollback, approve, reject, import, export and timeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from postgrad.commands import playbook_export, playbook_show, playbook_timeline
from postgrad.core.errors import ConfigError, DataError
from postgrad.playbook.book import Add, Mark, Merge, Tag
from postgrad.playbook.log import NAME, PlaybookLog
from postgrad.playbook.source import open_playbook


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's directory with a log of four versions, in the current directory."""
    monkeypatch.chdir(tmp_path)
    with PlaybookLog(Path("run") / NAME, clock=lambda: "2026-01-01T00:00:00Z") as log:
        log.append(
            [Add("OTHERS", "Be brief."), Add("ABOUT SQL", "Quote names.", trust="quarantined")], source="t/0"
        )
        log.append(
            [Tag("misc-00001", helpful=2), Add("ABOUT SQL", "Use joins."), Mark("best", 0.5)], source="t/1"
        )
        log.append([Add("OTHERS", "Be kind.", trust="quarantined")], source="t/2")
        log.append([Merge(("misc-00001", "about-00003"), "Be brief, use joins.")], source="t/3")
    return Path("run")


def head(run: Path) -> int:
    return len(PlaybookLog(run / NAME).deltas)


def test_show(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert playbook_show.main(run) == 0
    assert capsys.readouterr().out == (
        "run: 3 bullets, 2 in quarantine, version 4, best = version 2\n"
        "\nOTHERS (2)\n"
        "  [misc-00001] +2 −0  Be brief, use joins.\n"
        "  [misc-00004] +0 −0 (quarantined)  Be kind.\n"
        "\nABOUT SQL (1)\n"
        "  [about-00002] +0 −0 (quarantined)  Quote names.\n"
    )
    playbook_show.main(run, at="best", section="about_sql", quarantined=True)
    shown = capsys.readouterr().out
    assert "version 2 of 4" in shown
    assert "Quote names." in shown
    assert "Use joins." not in shown
    playbook_show.main(run, at="-1", json_output=True)
    row = json.loads(capsys.readouterr().out)
    assert (row["version"], len(row["bullets"]), row["marks"]) == (
        3,
        4,
        {"best": {"version": 2, "score": 0.5}},
    )
    with pytest.raises(ConfigError, match=r"No section 'maths'.*ABOUT SQL"):
        playbook_show.main(run, section="maths")
    with pytest.raises(DataError, match=r"no version 'worst'.*best"):
        playbook_show.main(run, at="worst")


def test_two_playbooks_become_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("team.txt").write_text(
        "## OTHERS\n[misc-00001] helpful=4 harmful=0 :: be kind\n[misc-00002] helpful=1 harmful=0 :: Check units.\n"
    )
    assert playbook_show.merge(run, Path("team.txt")) == 0
    shown = capsys.readouterr().out
    assert "Check units." in shown
    assert "be kind" not in shown
    assert "approve" in shown
    book = open_playbook(run).playbook
    (new,) = [bullet for bullet in book.bullets.values() if bullet.text == "Check units."]
    assert (new.trust, new.helpful, "team" in new.source) == ("quarantined", 1, True)
    assert playbook_show.merge(run, Path("team.txt")) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert open_playbook(run).playbook == book


def test_a_bullet_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with PlaybookLog(tmp_path / "a.jsonl") as log, pytest.raises(DataError, match="not one line of text"):
        log.append([Add("OTHERS\x1b[2J", "a\x1b]0;title\x07b\nc")])
    (tmp_path / "a.md").write_text(
        "## OTHERS\x1b[2J\n[misc-00001] helpful=0 harmful=0 :: a\x1b]0;title\x07b\n"
    )
    playbook_show.main(tmp_path / "a.md")
    assert not set("\x1b\x07") & set(capsys.readouterr().out)


def test_texts_and_what_is_no_playbook(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.txt").write_text("## OTHERS\n[misc-00007] helpful=1 harmful=2 :: Be brief.\nnoise\n")
    assert playbook_show.main(Path("a.txt")) == 0
    captured = capsys.readouterr()
    assert "[misc-00007] +1 −2  Be brief." in captured.out
    assert "line 3" in captured.err
    opened = open_playbook("a.txt")
    assert (opened.log, opened.playbook.bullets["misc-00007"].source) == (None, "file a.txt")
    Path("b.txt").write_text("nothing here")
    Path("c.txt").write_bytes(b"\xff\xfe")
    Path("d.jsonl").write_text('{"a": 1}\n')
    Path("empty").mkdir()
    for path, words in [
        ("b.txt", r"no bullet(.|\n)*calc-00003(.|\n)*line 1"),
        ("c.txt", "UTF-8"),
        ("d.jsonl", "line 1: no delta"),
        ("empty", NAME),
        ("missing", "no such file"),
    ]:
        with pytest.raises(DataError, match=words):
            open_playbook(path)
    with pytest.raises(DataError, match="one version"):
        open_playbook("a.txt", "3")


def test_diff(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert playbook_show.diff("run@1", "@4") == 0
    assert capsys.readouterr().out == (
        "run/playbook.jsonl version 1 → run/playbook.jsonl version 4\n"
        "+ [misc-00004] +0 −0 (quarantined)  Be kind.\n"
        "~ [misc-00001] +0 −0  Be brief.\n"
        "→ [misc-00001] +2 −0  Be brief, use joins.\n"
        "1 added, 0 removed, 1 changed\n"
    )
    playbook_show.diff("run", "run@best", json_output=True)
    row = json.loads(capsys.readouterr().out)
    assert [bullet["id"] for bullet in row["added"]] == ["about-00003"]
    assert [bullet["id"] for bullet in row["removed"]] == ["misc-00004"]
    playbook_show.diff("run@1", "run@2")
    assert "~ [misc-00001] +0 −0 → +2 −0" in capsys.readouterr().out


def test_rollback_can_be_undone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = PlaybookLog(run / NAME).playbook
    assert playbook_show.rollback(run, "best") == 0
    assert "To undo it: postgrad playbook rollback run 4" in capsys.readouterr().out
    assert set(PlaybookLog(run / NAME).playbook.bullets) == {"misc-00001", "about-00002", "about-00003"}
    playbook_show.rollback(run, "4")
    after = PlaybookLog(run / NAME).playbook
    assert {id: bullet.text for id, bullet in after.bullets.items()} == {
        id: bullet.text for id, bullet in before.bullets.items()
    }
    assert head(run) == 6
    playbook_show.rollback(run, "6")
    assert head(run) == 6
    with pytest.raises(DataError, match="versions 0 to 6"):
        playbook_show.rollback(run, "7")


def test_approve_and_reject(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert playbook_show.approve(run, ["about-00002", "misc-00001"]) == 0
    assert "was trusted already: [misc-00001]" in capsys.readouterr().out
    book = PlaybookLog(run / NAME).playbook
    assert (book.bullets["about-00002"].trust, book.version) == ("trusted", 5)
    playbook_show.reject(run, [], everything=True, reason="no\nuse")
    book = PlaybookLog(run / NAME).playbook
    assert book.retired["misc-00004"].reason == "no\\nuse"
    assert PlaybookLog(run / NAME).deltas[-1].source == "by hand"
    playbook_show.approve(run, [], everything=True)
    assert "nothing is in quarantine" in capsys.readouterr().out
    for ids, words in [
        (["about-00003"], "merged into misc-00001"),
        (["misc-00004"], "retired"),
        (["x"], "no bullet 'x'"),
    ]:
        with pytest.raises(DataError, match=words):
            playbook_show.approve(run, ids)
    with pytest.raises(ConfigError, match="--all"):
        playbook_show.reject(run, [])
    assert head(run) == 6


def test_import(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("theirs.txt")
    text.write_text(
        "## OTHERS\n[misc-00001] helpful=3 harmful=1 :: Sleep.\n[misc-00009] helpful=0 harmful=0 :: be kind\n"
        "[misc-00010] helpful=0 harmful=0 :: Eat.\n[misc-00011] helpful=0 harmful=0 :: eat\nnoise\n"
    )
    assert playbook_show.import_text(run, text, quarantine=True) == 0
    captured = capsys.readouterr()
    assert "2 bullets taken from theirs.txt, in quarantine; 4 problems" in captured.out
    assert "copy of misc-00004" in captured.err
    assert "id misc-00001 is taken" in captured.err
    log = PlaybookLog(run / NAME)
    new = [bullet for bullet in log.playbook.bullets.values() if bullet.source == "file theirs.txt"]
    assert [(bullet.id, bullet.text, bullet.helpful, bullet.trust) for bullet in new] == [
        ("misc-00010", "Eat.", 0, "quarantined"),
        ("misc-00011", "Sleep.", 3, "quarantined"),
    ]
    assert len(log.deltas[-1].refused) == 4
    assert playbook_show.import_text(run, text) == 1
    assert playbook_show.import_text(Path("new.jsonl"), text) == 0
    assert len(PlaybookLog(Path("new.jsonl")).playbook) == 3
    with pytest.raises(ConfigError, match="jsonl"):
        playbook_show.import_text(Path("new"), text)
    with pytest.raises(DataError, match="cannot be read"):
        playbook_show.import_text(run, Path("missing.txt"))


def test_export_and_timeline(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert playbook_export.main(run) == 0
    assert capsys.readouterr().out.startswith("AGENTS.md: 1 bullets, ")
    assert "- Be brief, use joins." in Path("AGENTS.md").read_text()
    playbook_export.main(run, "skill", at="1", quarantined=True, json_output=True)
    assert json.loads(capsys.readouterr().out)["written"] == 2
    assert Path("SKILL.md").read_text().startswith("---\nname: run\n")
    playbook_export.main(run, "text", Path("-"))
    assert capsys.readouterr().out.startswith("## OTHERS\n[misc-00001] helpful=2")
    with pytest.raises(ConfigError, match="kind"):
        playbook_export.main(run, "pdf")
    assert playbook_timeline.main(run) == 0
    assert capsys.readouterr().out == "run/playbook.html\n"
    assert "<h1>run</h1>" in Path("run/playbook.html").read_text()
    with pytest.raises(ConfigError, match="html"):
        playbook_timeline.main(run, Path("a.txt"))
