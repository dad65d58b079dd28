"""The page of a log: what it says, that its states are those of the fold, and that bullets stay text."""

from __future__ import annotations

import html
import json
import random
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from postgrad.core.errors import RunError
from postgrad.playbook.book import Add, Delta, Mark, Merge, Retire, Rollback, SetTrust, Tag, Update, fold
from postgrad.playbook.timeline import render_timeline, write_timeline
from postgrad.playbook.timeline_chart import chart
from postgrad.playbook.timeline_data import history

SECTION = "OTHERS"
EVIL = "</script><script>document.title = 'pwned'</script><img src=x onerror=\"document.title='pwned'\"> {{ 7 * 7 }}"


def sample(correct: bool | None, **more: Any) -> dict[str, Any]:
    return {"index": 1, "correct": correct, **more}


DELTAS = [
    Delta((Add(SECTION, "One."), Add(SECTION, "Two.", trust="quarantined")), "t/0", sample(False, rounds=2), at="2026-01-02"),
    Delta((Tag("misc-00001", helpful=1), Tag("misc-00001", helpful=1, harmful=1)), "t/1", sample(True)),
    Delta((Update("misc-00001", "One, changed."), SetTrust("misc-00002", "trusted")), "t/2", sample(None)),
    Delta((Mark("best", 0.5), Add(SECTION, "Three.")), "t/3", sample(True), ("no such bullet",)),
    Delta((Merge(("misc-00002", "misc-00003"), "Two and three."),), "t/4"),
    Delta((Retire("misc-00001", "harmful"),), "by hand"),
    Delta((Rollback(4),), "by hand"),
]  # fmt: skip


def test_steps_tell_what_each_delta_did() -> None:
    found = history(DELTAS, count=lambda text: 10)
    done = [step["done"] for step in found.steps]
    assert [[one["do"] for one in row] for row in done] == [
        ["added", "added"], ["tagged"], ["changed", "trusted"], ["mark", "added"], ["merged"], ["retired"], ["rollback"],
    ]  # fmt: skip
    assert done[0][1] == {
        "do": "added",
        "id": "misc-00002",
        "section": SECTION,
        "text": "Two.",
        "waits": True,
    }
    assert done[1][0]["tags"] == [["misc-00001", 2, 1]]
    assert (done[2][0]["was"], done[2][0]["text"]) == ("One.", "One, changed.")
    assert (done[4][0]["id"], done[4][0]["was"]) == ("misc-00002", ["Two.", "Three."])
    assert done[5][0] == {"do": "retired", "id": "misc-00001", "was": "One, changed.", "why": "harmful"}
    assert done[6][0] == {"do": "rollback", "to": 4, "counts": [2, 0, 1]}
    assert (found.marks, found.rollbacks) == ([("best", 4, 0.5)], [(7, 4)])
    assert found.steps[3]["refused"] == ["no such bullet"]
    assert (found.steps[0]["sample"], found.steps[0]["correct"]) == ("rounds\xa02", 0.0)
    assert [point.bullets for point in found.points] == [0, 2, 2, 2, 3, 2, 1, 3]
    assert [point.tokens for point in found.points] == [0, 10, 10, 20, 30, 20, 10, 30]
    assert [point.waiting for point in found.points] == [0, 1, 1, 0, 0, 0, 0, 0]


def random_deltas(num: int) -> list[Delta]:
    rng = random.Random(0)
    deltas: list[Delta] = []
    book = fold([])
    for number in range(num):
        ids = list(book.bullets)
        kind = (
            rng.choice(["add", "add", "tag", "update", "retire", "merge", "trust", "rollback"])
            if len(ids) > 3
            else "add"
        )
        one, two = rng.sample(ids, 2) if len(ids) > 3 else ("", "")
        operation = {
            "add": Add(SECTION, f"Rule {number}.", trust=rng.choice(["trusted", "quarantined"])),
            "tag": Tag(one, 1, 1), "update": Update(one, f"New {number}."), "retire": Retire(one),
            "merge": Merge((one, two)), "trust": SetTrust(one, "trusted"), "rollback": Rollback(rng.randint(0, number)),
        }[kind]  # fmt: skip
        deltas.append(Delta((operation,), f"t/{number}", sample(rng.random() < 0.5)))
        book = fold(deltas)
    return deltas


def test_states_of_all_versions_are_those_of_the_fold() -> None:
    """What the page does to travel in time, done here: the changes of the first so many steps give the playbook."""
    deltas = random_deltas(80)
    found = history(deltas)
    state: dict[str, list[Any]] = {}
    for version, step in enumerate(found.steps, start=1):
        for id, row in step["state"]:
            if row is None:
                del state[id]
            else:
                state[id] = row
        book = fold(deltas[:version])
        assert {id: row[1:4] for id, row in state.items()} == {
            id: [bullet.text, bullet.helpful, bullet.harmful] for id, bullet in book.bullets.items()
        }
        assert {id: bool(row[5]) for id, row in state.items()} == {
            id: bullet.trust == "quarantined" for id, bullet in book.bullets.items()
        }
        assert found.points[version].waiting == len(book) - len(book.trusted)


def page_data(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    return json.loads(match[1])


def test_the_page_is_self_contained_and_repeatable(tmp_path: Path) -> None:
    path = write_timeline(DELTAS, tmp_path / "a.html", name="finance", head="abcdef0123456789")
    page = path.read_text()
    assert page == render_timeline(DELTAS, name="finance", head="abcdef0123456789")
    assert "<h1>finance</h1>" in page
    assert "abcdef012345<" in page
    assert not re.search(r"""(?:src|href)\s*=|https?://(?!www\.w3\.org)|@import|url\(""", page)
    assert len(page_data(page)["steps"]) == 7
    assert "“best” is version 4 (0.5)." in page
    assert "delta 7 went back to version 4" in page
    with pytest.raises(RunError, match="timeline"):
        write_timeline(DELTAS, tmp_path / "no" / "a.html")


def test_accuracy_at_the_top_needs_samples() -> None:
    assert "First answers right</h2>" not in render_timeline(DELTAS)
    many = [Delta(sample=sample(number >= 20)) for number in range(40)]
    page = render_timeline(many)
    assert re.search(r"First answers right</h2>.*?>0<.*?>100<.*?last 10 of 40", page, re.DOTALL)
    assert "50.0 %" in page
    accuracy = [point.accuracy for point in history(many).points]
    assert accuracy[4] is None
    assert (accuracy[20], accuracy[30], accuracy[40]) == (0.0, 0.5, 1.0)


def test_an_empty_log_has_a_page() -> None:
    page = render_timeline([])
    assert "0 deltas" in page
    assert "Growth" not in page
    assert page_data(page)["steps"] == []


def test_bullets_sources_sections_and_names_cannot_enter_as_markup() -> None:
    deltas = [
        Delta(
            (Add(EVIL, EVIL, "misc-00001"), Mark(EVIL, 0.1)),
            EVIL,
            {"index": EVIL, EVIL: 1, "x": EVIL[:50]},
            (EVIL,),
            EVIL,
        ),
        Delta((Update("misc-00001", EVIL + "!"), Rollback(0)), EVIL),
    ]
    page = render_timeline(deltas, name=EVIL, head=EVIL)
    assert "<img" not in page
    assert "<script>document" not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert "49" not in html.unescape(page.split("<main>")[0].split("<title>")[1].split("</title>")[0])
    assert page_data(page)["steps"][0]["done"][0]["text"] == EVIL
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]+='", page)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_shows_hostile_bullets_as_text(tmp_path: Path) -> None:
    deltas = [
        Delta((Add(SECTION, EVIL), Add(SECTION, "Two.", trust="quarantined")), "t"),
        Delta((Tag("misc-00001", 1),), "t"),
    ]
    path = write_timeline(deltas, tmp_path / "a.html", name="hostile")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    command = [
        "chromium",
        *flags,
        f"--user-data-dir={tmp_path / 'p'}",
        "--virtual-time-budget=2000",
        "--dump-dom",
        path.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert "<title>hostile – postgrad playbook</title>" in dom
    assert "<img" not in dom
    assert "&lt;img src=x" in dom
    assert dom.count('class="bullet') == 2 + 1  # and their list
    assert dom.count('class="badge"') == 2  # in the playbook and in its delta
    assert "2 bullets" in dom


def test_two_thousand_deltas_are_drawn_in_a_moment() -> None:
    deltas = [
        Delta(
            (Add(SECTION, f"Rule number {i} of many."), *([Tag(f"misc-{i:05d}", 1)] if i else [])),
            f"t/{i}",
            sample(i % 3 > 0),
        )
        for i in range(2000)
    ]
    start = time.perf_counter()
    page = render_timeline(deltas)
    assert time.perf_counter() - start < 60
    assert len(page) < 2_000_000
    wide = chart(history(deltas[:1500]), 1000, 120)
    assert len(wide) < 60_000
