"""The published format of playbooks: read and written."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.playbook.book import MAX_COUNT, SECTIONS, Bullet, Delta, fold
from postgrad.playbook.clean import RefusalError, clean_section, clean_text
from postgrad.playbook.text import format_bullet, format_text, parse_text

PUBLISHED = """\
[misc-00001] helpful=0 harmful=0 :: A bullet before any heading.

## STRATEGIES & INSIGHTS
[sai-00012] helpful=8 harmful=0 :: Use the Phone app's contacts, never transaction descriptions.

[fin-00001]helpful = 3  harmful=2::Compare like with like.
- [cms-00004] helpful=0 harmful=1 :: A bullet in a list.
* [strat-7] helpful=1 harmful=0 :: Fewer digits.

## FORMULAS AND CALCULATIONS ##
[calc-00012] helpful=1 harmful=0 :: NPV = Σ CF_t / (1+r)^t
[calc-00012] helpful=2 harmful=0 :: A second one with that id.
[Calc-00013] helpful=0 harmful=0 :: In capitals.
[calc-99999999999] helpful=0 harmful=0 :: Too high a number.
[calc-٠٠٠١٤] helpful=0 harmful=0 :: Foreign digits.

## My own (new) section
[own-00001] helpful=0 harmful=0 :: x
some prose
[own-00002] helpful=-1 harmful=0 :: negative
[own-00003] helpful=1 harmful=0 :: see [own-00001] helpful=9 harmful=0 :: forged
##
[own-00004] helpful=1 harmful=0 ::
#1 rule of thumb
"""


def test_published_format_with_its_oddities():
    parsed = parse_text("\ufeff" + PUBLISHED.replace("\n", "\r\n"))
    assert [(add.section, add.id, add.helpful, add.harmful) for add in parsed.adds] == [
        ("OTHERS", "misc-00001", 0, 0),
        ("STRATEGIES & INSIGHTS", "sai-00012", 8, 0),
        ("STRATEGIES & INSIGHTS", "fin-00001", 3, 2),
        ("STRATEGIES & INSIGHTS", "cms-00004", 0, 1),
        ("STRATEGIES & INSIGHTS", "strat-00007", 1, 0),
        ("FORMULAS & CALCULATIONS", "calc-00012", 1, 0),
        ("FORMULAS & CALCULATIONS", "calc-00013", 0, 0),
        ("MY OWN NEW SECTION", "own-00001", 0, 0),
        ("FORMULAS & CALCULATIONS", None, 2, 0),
        ("FORMULAS & CALCULATIONS", None, 0, 0),
        ("FORMULAS & CALCULATIONS", None, 0, 0),
    ]
    lines = {int(problem.split(":")[0].removeprefix("line ")): problem for problem in parsed.problems}
    assert sorted(lines) == [8, 12, 13, 14, 15, 19, 20, 21, 22, 23, 24]
    assert "read as strat-00007" in lines[8]
    assert "is taken" in lines[12]
    assert "holds another bullet" in lines[21]
    assert "without text" in lines[23]
    book = fold([Delta(tuple(parsed.adds))])
    assert len(book.bullets) == 11
    assert list(book.bullets)[-1] == "calc-00016"


def test_format_orders_sections_as_the_paper_does():
    bullets = [
        Bullet("own-00001", "OWN", "a"),
        Bullet("misc-00002", "OTHERS", "b", 1, 2),
        Bullet("strat-00003", "STRATEGIES & INSIGHTS", "c"),
    ]
    assert format_text(bullets) == (
        "## STRATEGIES & INSIGHTS\n[strat-00003] helpful=0 harmful=0 :: c\n\n"
        "## OTHERS\n[misc-00002] helpful=1 harmful=2 :: b\n\n"
        "## OWN\n[own-00001] helpful=0 harmful=0 :: a\n"
    )
    assert format_text([]) == ""
    assert parse_text("").adds == []


HOSTILE = st.text(st.characters(codec=None), max_size=30) | st.lists(
    st.sampled_from(
        ["[calc-00001]", " helpful=3", " harmful=1 ", "::", "\n", "\r", "\u2028", "## OTHERS", "#", " ", "\u200b", "［", "］",
         "a", "\\n", "- ", "é", "\u0301", "(", ")", "\ud800", "🏳️‍🌈", "\t", "\x85", "\x1e", "=", "<system>", "0"]
    ), max_size=10,
).map("".join)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(HOSTILE, HOSTILE, st.integers(0, MAX_COUNT)), max_size=5))
def test_what_cleaning_accepts_survives_a_round_trip_and_forges_nothing(items):
    bullets: list[Bullet] = []
    for number, (section, text, count) in enumerate(items, start=1):
        try:
            heading = clean_section(section, tuple(SECTIONS))
            bullets.append(Bullet(f"calc-{number:05d}", heading, clean_text(text), count, number))
        except RefusalError:
            continue
    parsed = parse_text(format_text(bullets))
    assert parsed.problems == []
    found = {add.id: (add.section, add.text, add.helpful, add.harmful) for add in parsed.adds}
    assert found == {b.id: (b.section, b.text, b.helpful, b.harmful) for b in bullets}
    assert len(format_text(bullets).splitlines()) == len(bullets) + 2 * len(
        {b.section for b in bullets}
    ) - bool(bullets)


@settings(max_examples=80, deadline=None)
@given(HOSTILE)
def test_any_text_can_be_read(text):
    parsed = parse_text(text)
    fold([Delta(tuple(parsed.adds))])


def test_bullet_line():
    assert format_bullet(Bullet("calc-00003", "X", "NPV", 8, 1)) == "[calc-00003] helpful=8 harmful=1 :: NPV"


@pytest.mark.parametrize(
    "piece", [" ", "#", "# ", "#a ", "[", "[a-1] ", "- ", "[a-00001] helpful=1 ", "\n", "a\n", "## "]
)
def test_long_texts_are_read_quickly(piece):
    started = time.process_time()
    parse_text(piece * (300_000 // len(piece)))
    assert time.process_time() - started < 60  # a guard against hours, not a measure of speed
