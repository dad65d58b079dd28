"""Counts that are exact, and estimates that err upwards."""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path

import pytest

from postgrad.core.errors import ModelError
from postgrad.core.models.phrases import build_tokenizer
from postgrad.engines.chat import estimate_tokens
from postgrad.engines.chat.context import ContextWatch
from postgrad.engines.chat.tokens import count_messages, make_counter


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("word", 1),
        ("  word", 2),
        ("paginate", 2),
        ("HTTPError", 2),
        ("1234", 4),
        ("ü", 2),
        ("Привет", 3),
        ("人工智能", 4),
        ("😀", 3),
        ("=" * 80, 10),
        ("\n\n\n", 1),
        ("a\ud800b", 3),
        ('{"a": [1]}', 9),
    ],
)
def test_estimates_by_hand(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


def test_english_prose_is_between_four_and_three_letters_a_token() -> None:
    """Tokenizers of today make 4.2 to 4.6 characters of English prose a token."""
    prose = "\n".join(pydoc_data.topics.topics.values())[:50_000]
    assert 2.8 < len(prose) / estimate_tokens(prose) < 4.2


def test_a_tokenizer_counts_whole_texts_whatever_was_saved_with_it(tmp_path: Path) -> None:
    made = build_tokenizer(["a poem"], 264, 128)
    made.backend_tokenizer.enable_truncation(4)  # type: ignore[attr-defined]
    made.backend_tokenizer.enable_padding(length=64)  # type: ignore[attr-defined]
    made.save_pretrained(tmp_path)
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        counter = make_counter(str(place))
        assert (counter.exact, counter("0123456789"), counter("")) == (True, 10, 0)
    assert count_messages(counter, [{"role": "user", "content": "01"}, {"role": "user", "content": "2"}]) == 3
    assert not make_counter(None).exact
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        make_counter(str(tmp_path))
    with pytest.raises(ModelError, match="tokens are then estimated"):
        make_counter(str(tmp_path / "nothing"))


def test_calls_of_another_kind_do_not_decide_for_a_role() -> None:
    """A role whose text has half the tokens of our estimate is compared with itself as soon as it has said so."""
    watch = ContextWatch(exact=False)
    for n in range(3):
        assert watch.judge("curator", 300 + n, 300) is None
    for own in (400, 450, 500):
        assert watch.judge("generator", own, round(0.62 * own)) is None
    assert watch.judge("generator", 2000, 1000) is None
    assert watch.judge("generator", 2000, 600) is not None
    assert watch.judge("curator", 2000, 1000) is not None


def test_prompts_that_were_cut_a_little_do_not_teach_that_this_is_usual() -> None:
    watch = ContextWatch(exact=False)
    for own in (300, 310, 320):
        assert watch.judge("curator", own, own) is None
    for own in range(1400, 1450, 10):
        assert watch.judge("curator", own, 1000) is None
    assert watch.judge("curator", 1700, 1000) is not None


def test_text_that_a_server_adds_raises_no_expectations() -> None:
    watch = ContextWatch(exact=False)
    for own in (300, 310, 320):
        assert watch.judge("curator", own, own + 900) is None
    assert watch.judge("curator", 3000, 2500) is None
