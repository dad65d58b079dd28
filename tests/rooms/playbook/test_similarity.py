"""Copies and conflicts: cases by hand, laws of both, and every labelled pair."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from postgrad.playbook.dedup import judge
from postgrad.playbook.english import CONTRASTS, NEGATIONS
from postgrad.playbook.similarity import conflict, facts, normalise

LABELLED: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parents[3] / "benchmarks/data/bullet_pairs.jsonl")
    .read_text("utf-8")
    .splitlines()
]
TEXTS = sorted({pair[side] for pair in LABELLED for side in ("a", "b")})
WORDS = st.lists(st.text("abcdefghijklmnopqrstuvwxyzäßéσ", min_size=1, max_size=8), min_size=1, max_size=12)
GAPS = st.sampled_from([" ", "  ", "\t", "\n", " \u00a0 "])


# -- copies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("  Round   at the END. ", "round at the end"),
        ("- Round at the end", "round at the end"),
        ("2. Round at the end;", "round at the end"),
        ("2.5 is the limit", "2.5 is the limit"),
        ("Call `getUser` FIRST", "call `getUser` first"),
        ("Set MAX_ROWS = 5", "set MAX_ROWS = 5"),
        ('Click "Save As"', 'click "Save As"'),
        ("Don’t “guess”", 'don\'t "guess"'),
        ("ﬁve ﬁles", "five files"),
        ("use 10⁻³", "use 10^(-3)"),
        ("1½ hours", "1 1⁄2 hours"),
        ("zero\u200bwidth", "zerowidth"),
        ("5!", "5!"),
        ("the count is n!", "the count is n!"),
        ("stop!!", "stop"),
        ("is it?", "is it?"),
        ("-5 is valid", "-5 is valid"),
        (" . ", ""),
    ],
)
def test_normalised_forms(text: str, form: str) -> None:
    assert normalise(text) == form


@given(WORDS, st.lists(GAPS, min_size=12, max_size=12), st.sampled_from(["", ".", " ;", "…", ".."]))
@example(["straße"], [" "] * 12, ".")
def test_case_space_and_final_punctuation_never_hide_a_copy(
    words: list[str], gaps: list[str], end: str
) -> None:
    plain = " ".join(words)
    spread = "".join(word + gap for word, gap in zip(words, gaps, strict=False)).strip()
    for variant in (spread, plain.upper(), plain.title(), plain + end, "  - " + plain, plain.casefold()):
        assert normalise(variant) == normalise(plain), variant


@given(st.text(max_size=40) | st.sampled_from(TEXTS))
def test_a_form_is_its_own_form(text: str) -> None:
    form = normalise(text)
    assume("^(" not in form and not form.startswith(("-", "*", "•", "·")) and not form[:1].isdigit())
    assert normalise(form) == form


# -- conflicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ("Retry the call.", "Never retry the call.", "negation: 0 against 1"),
        ("You should retry.", "You shouldn't retry.", "negation: 0 against 1"),
        ("Use A, B instead of C.", "Use A, B and C.", "negation: 1 against 0"),
        ("Delete all rows.", "Delete all but some rows.", "negation: 0 against 1"),
        ("Only admins edit.", "Admins edit.", "exclusive: 1 against 0"),
        ("Sort ascending.", "Sort descending.", "opposites: ascending against descending"),
        ("Save before sending.", "Save after sending.", "opposites: before against after"),
        ("X rises when Y falls.", "X rises when Y rises.", "opposites: increase then decrease against increase"),
        ("at least five", "at most five", "opposites: minimum against maximum"),
        ("turn on the filter", "turn off the filter", "opposites: enable against disable"),
        ("Take the second row.", "Take the third row.", "opposites: second against third"),
        ("Round to 2 decimals.", "Round to 3 decimals.", "numbers: 2 against 3"),
        ("Round to 2 decimals.", "Round to decimals.", "numbers: 2 against none"),
        ("Pay 5%.", "Pay 0.05.", "numbers: 5 against 0.05"),
        ("Shift by -5.", "Shift by 5.", "numbers: -5 against 5"),
        ("Due 2024-01-05.", "Due 2024-05-01.", "numbers: 2024-01-05 against 2024-05-01"),
        ("Open order 1234567890123.", "Open order 1234567890124.", "numbers: 1234567890123 against 1234567890124"),
        ("Add 2 and 2.", "Add 2.", "numbers: 2 against none"),
        ("Wait 30 seconds.", "Wait 30 ms.", "units: s against ms"),
        ("Wait 30 s.", "Wait 30 min.", "units: s against min"),
        ("Costs $5", "Costs €5", "units: $ against €"),
        ("Give it in miles.", "Give it in kilometres.", "units: mile against km"),
        ("Call get_user.", "Call get_users.", "code: get_user against get_users"),
        ("Call `go`.", "Call `stop_all`.", "code: go against stop_all"),
        ("Use np.sum here.", "Use np.mean here.", "code: np.sum against np.mean"),
        ("Pass --force.", "Pass --fast.", "code: --force against --fast"),
        ("Edit /etc/hosts.", "Edit /etc/passwd.", "code: /etc/hosts against /etc/passwd"),
        ("Read userId.", "Read orderId.", "code: userId against orderId"),
        ("Pin v1.2.3 here.", "Pin v1.2.4 here.", "code: v1.2.3 against v1.2.4"),
        ("Click 'Save'.", "Click 'Send'.", "code: Save against Send"),
        ("Sum A1:B2.", "Sum A1:B3.", "code: A1:B2 against A1:B3"),
        ("m = a + b", "m = a - b", "operators: + against -"),
        ("Use the Spotify app.", "Use the Venmo app.", "names: spotify against venmo"),
        ("Use GET for it.", "Use DELETE for it.", "names: get against delete"),
        ("An ordered list works.", "An unordered list works.", "opposites: ordered with and without a prefix"),
        ("The name and the email match.", "The name or the email match.", "opposites: and against or"),
        ("Call login before fetch.", "Call fetch before login.", "order: the sides of 'before' are swapped"),
        ("Before login, call fetch.", "Before fetch, call login.", "order: the sides of 'before' are swapped"),
        ("Divide income by equity.", "Divide equity by income.", "order: the sides of 'by' are swapped"),
    ],
)  # fmt: skip
def test_what_must_stay_apart(a: str, b: str, reason: str) -> None:
    assert conflict(a, b) == reason
    assert conflict(b, a) is not None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Retry twice.", "Retry two times."),
        ("Retry three times.", "Retry it 3 times."),
        ("Cap it at 1,000.50 dollars.", "The cap is $1000.5"),
        ("Send 10k rows.", "Send 10,000 rows."),
        ("A step of 1e-3.", "A step of 0.0010."),
        ("A limit of 1e999.", "A limit of 1e999!"),
        ("A 5-minute timeout.", "A timeout of five minutes."),
        ("A fee of 5%.", "A fee of 5 percent."),
        ("Don't guess names.", "Never guess names."),
        ("Avoid loops.", "Do not use loops."),
        ("Call `get_user()` first.", "First call get_user."),
        ("Use B, not A.", "Use B instead of A."),
        ("Call login before you fetch.", "Before you fetch, call login."),
        ("This one is good.", "This is good."),
        ("Wait a second, then go.", "Then go, but wait a second."),
        ("CHECK THE UNITS FIRST", "Check the units first"),
        ("Follow the NPV rule.", "Follow the rule of net present value."),
        ("", ""),
    ],
)
def test_what_a_rewording_may_change(a: str, b: str) -> None:
    assert conflict(a, b) is None
    assert conflict(b, a) is None


def test_rewordings_that_are_refused_all_the_same() -> None:
    """Documented: a refused pair costs a line, a wrong merge a rule."""
    assert conflict("Never save without a backup.", "Always save with a backup.")
    assert conflict("Call login before fetch.", "Call fetch after login.")


@given(st.sampled_from(TEXTS), st.sampled_from(TEXTS))
def test_a_conflict_is_symmetric_and_never_with_itself(a: str, b: str) -> None:
    assert conflict(a, a) is None
    assert (conflict(a, b) is None) == (conflict(b, a) is None)


@given(st.text(), st.text())
def test_any_text_can_be_compared(a: str, b: str) -> None:
    assert (conflict(a, b) is None) == (conflict(b, a) is None)


@given(st.sampled_from(TEXTS), st.sampled_from(sorted(NEGATIONS)), st.data())
def test_a_negation_put_in_anywhere_is_never_merged(text: str, word: str, data: st.DataObject) -> None:
    words = text.split()
    place = data.draw(st.integers(0, len(words)))
    changed = " ".join([*words[:place], word, *words[place:]])
    assert judge(text, changed)[0] != "copy"
    if facts(changed).negations != facts(text).negations:  # not inside code or quotes
        assert judge(text, changed)[0] == "blocked"


@given(st.sampled_from([text for text in TEXTS if facts(text).numbers]), st.integers(13, 10**6))
def test_a_number_put_in_is_never_merged(text: str, number: int) -> None:
    assert judge(text, f"{text.rstrip('.')} {number}")[0] == "blocked"


@pytest.mark.parametrize(
    "piece", ["a-", "a/", "ab!", ".", "- ", "aB", "a.b", "1,", "'a ", "before a, ", "not ", "_", "²"]
)
def test_long_texts_are_read_in_bounded_time(piece: str) -> None:
    """Untrusted text: nothing grows faster than the square of its length."""
    text = piece * (2000 // len(piece))
    begun = time.process_time()
    judge(text + "x.", "y " + text + ".")
    assert time.process_time() - begun < 60  # a guard against hours, not a measure of speed


def test_the_table_of_opposites_is_well_formed() -> None:
    for line in CONTRASTS.strip().splitlines():
        poles = [[name.strip() for name in pole.split(",")] for pole in line.split("|")]
        assert all(name and " " not in name for pole in poles for name in pole), line
        names = [name for pole in poles for name in pole]
        assert len(set(names)) == len(names), line
        assert len(poles) > 1, line
        for other in poles[1:]:
            assert conflict(f"say {poles[0][0]} here", f"say {other[0]} here"), line


# -- the labelled pairs --------------------------------------------------------------------------------------------


def test_the_labelled_pairs_are_what_they_claim() -> None:
    count = {
        label: sum(p["label"] == label for p in LABELLED)
        for label in ("paraphrase", "opposite", "copy", "different")
    }
    assert count["paraphrase"] >= 120
    assert count["opposite"] >= 100
    assert count["copy"] >= 40
    assert count["different"] >= 60
    assert sum(count.values()) == len(LABELLED)
    assert len({(p["a"], p["b"]) for p in LABELLED}) == len(LABELLED)
    assert all(p["a"] != p["b"] and p["split"] in ("development", "held-out") for p in LABELLED)


def test_every_copy_is_dropped_and_nothing_else_is() -> None:
    wrong = [p for p in LABELLED if (judge(p["a"], p["b"])[0] == "copy") != (p["label"] == "copy")]
    assert wrong == []


@pytest.mark.parametrize("split", ["development", "held-out"])
def test_most_opposites_are_kept_from_the_curator_and_most_rewordings_reach_it(split: str) -> None:
    """Held-out, as measured: 53 of 56 opposites are blocked, 43 of 60 rewordings are not."""
    kinds = {
        label: [judge(p["a"], p["b"])[0] for p in LABELLED if p["label"] == label and p["split"] == split]
        for label in ("opposite", "paraphrase")
    }
    assert kinds["opposite"].count("blocked") >= 0.9 * len(kinds["opposite"])
    assert kinds["paraphrase"].count("candidate") >= 0.7 * len(kinds["paraphrase"])
