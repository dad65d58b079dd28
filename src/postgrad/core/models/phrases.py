"""The embedded model's tokenizer: common phrases, else bytes; a digit is always a token of its own.

A phrase is a maximal run of common atoms (words, punctuation) of the demonstrations that is common itself, so a
template such as "Find the Greatest Common Divisor (GCD) of these numbers: " is one token, a rare word is spelled
letter by letter (which makes it possible to reverse it or to count its letters), and any UTF-8 text round-trips.
The result is an ordinary `tokenizer.json`: a byte-level BPE without merges, whose pre-tokenizer finds the phrases.

Assumption: the demonstrations come from templates. On free text it degrades to words and bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, THINK, END_THINK = "<|pad|>", "<|end|>", "<think>", "</think>"
_NUM_FIXED = 256 + 4
_ATOM = re.compile(r"\d| ?[A-Za-z]+|[\s\S]")
_LETTER = "[A-Za-z]"


def learn_phrases(texts: Sequence[str], num_phrases: int, min_share: float = 0.002) -> list[str]:
    """The phrases and words that save the most tokens.

    Args:
        texts: prompts and answers of the demonstrations.
        num_phrases: most phrases returned.
        min_share: atoms and phrases in a smaller share of the texts than this are left to the bytes.

    Returns:
        Phrases, those that save most first; ties in alphabetical order, so the result is a function of `texts` alone.
    """
    atoms_of = [_ATOM.findall(text) for text in texts]
    least = max(2.0, min_share * len(texts))
    atom_counts = Counter(atom for atoms in atoms_of for atom in atoms)
    common = {atom for atom, count in atom_counts.items() if count >= least and not atom.isdigit()}
    run_counts: Counter[tuple[str, ...]] = Counter()
    for atoms in atoms_of:
        run_counts.update(_runs(atoms, common))
    saved = Counter({atom: atom_counts[atom] * (len(atom.encode()) - 1) for atom in common})
    for run, count in run_counts.items():
        if count >= least and len(run) > 1:
            saved["".join(run)] += count * (len(run) - 1)
    ranked = sorted((-amount, phrase) for phrase, amount in saved.items() if amount > 0)
    return [phrase for _, phrase in ranked[:num_phrases]]


def _runs(atoms: Iterable[str], common: set[str]) -> list[tuple[str, ...]]:
    """Maximal runs of common atoms.

    >>> _runs(["a", "b", "7", "a"], {"a", "b"})
    [('a', 'b'), ('a',)]
    """
    runs: list[tuple[str, ...]] = []
    current: list[str] = []
    for atom in atoms:
        if atom in common:
            current.append(atom)
        elif current:
            runs.append(tuple(current))
            current = []
    if current:
        runs.append(tuple(current))
    return runs


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
    return "|".join([*map(literal, longest_first), r"\d", rf" ?{_LETTER}+", r"[\s\S]"])


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
