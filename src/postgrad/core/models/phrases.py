"""The embedded model's tokenizer: common phrases, else bytes; a digit is always a token of its own.

A phrase is a maximal run of common atoms (words, punctuation) of the demonstrations that is common itself, so
a template such as "Find the Greatest Common Divisor (GCD) of these numbers: " is one token, a rare word is
spelled letter by letter (which makes it possible to reverse it or to count its letters), and any UTF-8 text
round-trips. The result is an ordinary `tokenizer.json`: a byte-level BPE without merges, whose pre-tokenizer
finds the phrases.

Assumption: the demonstrations come from templates. On free text it degrades to words and bytes.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch, transformers, tokenizers and huggingface_hub are only partly typed)

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, THINK, END_THINK = "<|pad|>", "<|end|>", "<think>", "</think>"
_NUM_FIXED = 256 + 4
_LETTER = "[A-Za-z]"
_ATOM = re.compile(rf"\d| ?{_LETTER}{{2,}}|[\s\S]")
_BRANCH, _FIXED, _LETTERS_AROUND_DIGIT = 0.2, 0.9, 10
_Place = tuple[int, int]
"""(index of a text, index of an atom in it)."""


def learn_phrases(texts: Sequence[str], num_phrases: int, min_share: float = 0.002) -> list[str]:
    """The phrases and words that save the most tokens.

    A phrase starts at the beginning of a text or where another one ended, and grows by the next atom for as
    long as that atom follows in at least `_BRANCH` of its occurrences (`_FIXED` for a digit or a letter,
    which is then part of the template and not of the question).

    Args:
        texts: prompts and answers of the demonstrations.
        num_phrases: most phrases returned.
        min_share: words and phrases in a smaller share of the texts than this are left to the bytes.

    Returns:
        Phrases, those that save most first; ties in alphabetical order, so the result is a function of
        `texts` alone.
    """
    corpus = [_ATOM.findall(text) for text in texts]
    least = max(2.0, min_share * len(texts))
    saved: Counter[str] = Counter()
    starts: list[_Place] = [(text, 0) for text in range(len(corpus))]
    while starts:
        ends: list[_Place] = []
        for places in _by_next_atom(corpus, starts).values():
            ends += _grow(corpus, places, 1, least, saved)
        starts = ends
    ranked = sorted((-amount, phrase) for phrase, amount in saved.items() if amount > 0)
    return [phrase for _, phrase in ranked[:num_phrases]]


def _by_next_atom(corpus: Sequence[list[str]], places: Sequence[_Place]) -> dict[str, list[_Place]]:
    """Places grouped by the atom that stands there; those at the end of their text are left out."""
    groups: dict[str, list[_Place]] = {}
    for text, position in places:
        if position < len(corpus[text]):
            groups.setdefault(corpus[text][position], []).append((text, position))
    return groups


def _grow(
    corpus: Sequence[list[str]], places: Sequence[_Place], length: int, least: float, saved: Counter[str]
) -> list[_Place]:
    """Grow the phrase of `length` atoms at `places`; adds to `saved`, returns where its forms end."""
    text, position = places[0]
    atoms = corpus[text][position : position + length]
    if _is_payload(atoms[0]):
        return [(text, position + 1) for text, position in places]
    stopped: list[_Place] = []
    ends: list[_Place] = []
    count = len(places)
    following = _by_next_atom(corpus, [(text, position + length) for text, position in places])
    for atom, nexts in following.items():
        share = _FIXED if _is_payload(atom) else _BRANCH
        if len(nexts) >= max(least, share * len(places)):
            grown = [(text, position - length) for text, position in nexts]
            ends += _grow(corpus, grown, length + 1, least, saved)
            count -= len(grown)
        else:
            stopped += nexts
    if count >= least:
        phrase = _template_part("".join(atoms))
        saved[phrase] += count * (len(phrase.encode()) - 1)
    return ends + stopped


def _is_payload(atom: str) -> bool:
    """Whether an atom looks like part of the question rather than of its template: a digit or a letter."""
    return len(atom) == 1 and atom.isalnum()


def _template_part(phrase: str) -> str:
    """The phrase, cut before its first digit unless it has many letters: then the digit is of the template.

    >>> _template_part("Base 10 numbers are like this: "), _template_part(".0 + ")
    ('Base 10 numbers are like this: ', '.')
    """
    if sum(c.isalpha() for c in phrase) >= _LETTERS_AROUND_DIGIT:
        return phrase
    return re.split(r"\d", phrase, maxsplit=1)[0]


def _pattern(phrases: Sequence[str]) -> str:
    """The pre-tokenizer's expression: longest phrase first, then the atoms. Phrases never cut a word."""

    def literal(phrase: str) -> str:
        body = "".join(
            "\\n" if c == "\n" else c if c.isalnum() or c == " " or not c.isascii() else f"\\x{{{ord(c):x}}}"
            for c in phrase
        )
        before = f"(?<!{_LETTER})" if re.match(_LETTER, phrase[0]) else ""
        after = f"(?!{_LETTER})" if re.match(_LETTER, phrase[-1]) else ""
        return before + body + after

    longest_first = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    return "|".join([*map(literal, longest_first), r"\d", rf" ?{_LETTER}{{2,}}", r"[\s\S]"])


def build_tokenizer(texts: Sequence[str], vocab_size: int, context_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer for these texts: 4 special tokens, 256 bytes and at most `vocab_size` − 260 phrases.

    Args:
        texts: prompts (with the newline that closes them) and answers.
        vocab_size: limit; fewer when the texts have fewer common phrases.
        context_length: recorded as `model_max_length`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    phrases = learn_phrases(texts, vocab_size - _NUM_FIXED)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    symbols = [PAD, END, THINK, END_THINK, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    symbols += [byte_level.pre_tokenize_str(phrase)[0][0] for phrase in phrases]
    vocab = {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Split(Regex(_pattern(phrases)), behavior="isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([PAD, END])
    tokenizer.add_tokens(
        [AddedToken(marker, normalized=False, special=False) for marker in (THINK, END_THINK)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
