"""When two short texts are copies, and why two that look alike must not be merged. Pure functions of text; no vectors.

Start at `conflict`. Vectors find "Always paginate" and "Never paginate" alike (MiniLM: cosine 0.986), so they may only propose
pairs; what is here refuses a pair when the two differ in something that a rewording does not change: negation, one of the
opposites of `english.CONTRASTS`, numbers, units, operators, code, names, or which word stands on which side of "before", "from",
"by", …

It errs to one side on purpose: a pair that is refused stays two bullets, which costs a line; a pair that is merged wrongly loses
a rule. So it refuses some true rewordings: "Never X without Y" against "Always X with Y", "5%" against "0.05" (a number is
compared as written), "B after A" against "A before B", a number or an identifier that only one of the two mentions. It knows
English only, and it cannot see that two different nouns ("billing address", "shipping address") make a different rule: those
pairs go to the Curator.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from postgrad.playbook.english import (
    ANY_PHRASE,
    BARE_UNITS,
    CONTRASTS,
    EMPHASIS,
    EXCLUSIVES,
    FILLER,
    METHODS,
    NEGATIONS,
    NOT_COUNTING,
    NUMBERS,
    PHRASES,
    POLES,
    PREFIXES,
    SIDED,
    TIME_GROUP,
    UNITS,
)

_REACH = 6
"""Words looked at on each side of a word of `SIDED`."""

_QUOTES = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "≤": "<=", "≥": ">=", "≠": "!=", "×": "*", "⋅": "*", "÷": "/"}
    | dict.fromkeys("‐‑–—−", "-")
)
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴-⁹⁺⁻⁼⁽⁾ⁿ]+")
_FRACTIONS = re.compile("(?<=\\d)(?=[¼-¾⅐-⅞])")
_CODE = re.compile(
    r"""
      `[^`\n]+`                                                     # a code span
    | "[^"\n]{1,80}"                                                # a quoted string
    | (?<![\w'])'[^'\n]{1,40}'(?!\w)
    | https?://[^\s,;)]+
    | (?<![\w-])--?[A-Za-z][\w-]*(?==|\b)                           # a flag
    | (?<![\w/.])~?(?:/[\w.{}<>*-]+){1,}/?                          # a path
    | (?<![\w/.])(?:[\w.-]+/){2,}[\w.-]+
    | \b(?=\w*?(?:_|[a-z\d][A-Z]|\w\.[A-Za-z_]|\w\(\)))(?:
          [A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+(?:\(\))?                  # a dotted name
        | [A-Za-z]\w*_\w+(?:\(\))?|_\w+                             # snake_case, CONSTANTS
        | [a-z]+\d*[A-Z]\w*(?:\(\))?                                # camelCase
        | (?:[A-Z][a-z0-9]+){2,}(?:\(\))?                           # PascalCase
        | [A-Za-z]\w*\(\)
      )
    | (?<![\w$])\$?[A-Z]{1,3}\$?\d+(?::\$?[A-Z]{1,3}\$?\d+)?\b      # a cell, a range of cells
    | \bv\d+(?:\.\d+)*\b | \b\d+(?:\.\d+){2,}\b                     # a version
    """,
    re.VERBOSE,
)
_MAYBE_CODE = re.compile(r"[`\"'_/\d]|\.\w|(?:^|\s)-|[a-z][A-Z]|\(\)|[A-Z][a-z\d]+[A-Z]")
"""Without any of these there is no code; ten times faster than `_CODE`."""
_MARKER = re.compile(r"^(?:[-*•·]\s+|\d{1,2}[.)]\s+(?=\D))+")
_DATES = re.compile(
    r"\b\d{4}-\d{1,2}(?:-\d{1,2})?\b|\b\d{1,2}/\d{1,2}/\d{2,4}\b|\b\d{1,2}:\d{2}(?::\d{2})?\b"
)
_NUMERALS = re.compile(
    r"""(?<![\w.]) (?P<sign>(?<![\w)\]])-)?
    (?P<body>\d{1,3}(?:,\d{3})+(?:\.\d+)? | \d+(?:\.\d+)?(?:e[+-]?\d+)? | \.\d+)
    (?P<tail>[a-zµ°%]*)""",
    re.VERBOSE | re.IGNORECASE,
)
_WORDS = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\d[\w.,]*|<=|>=|!=|==|[-+*/^=<>%$€£°](?=\s|\d|$)|[%$€£°]")
_OPERATORS = re.compile(
    r"""(?<=[\w)\]\s])
    (?:\s(?P<spaced>\*\*|<=|>=|!=|==|[-+*/^=<>])\s | (?P<tight>\*\*|<=|>=|!=|==|[+*^=<>]))
    (?=[\w(\[\s$-])""",
    re.VERBOSE,
)


# -- copies --------------------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """What two texts share when one is a copy of the other; for comparing only, never to be shown.

    Case, white space, a list marker before and punctuation after do not count, nor which of several Unicode forms was used
    (NFKC; superscripts are kept apart: x² is not x2). Case does count inside code and quotes: `userId` is not `userid`. A
    question mark and the sign of a factorial count too. A word that is another one in capitals, such as IT, is taken for a copy.

    >>> normalise("  -  Always   Paginate!"), normalise("always paginate")
    ('always paginate', 'always paginate')
    >>> normalise("Read `userId`.") == normalise("read `userid`."), normalise("x² m") == normalise("x2 m")
    (False, False)
    """
    text = _plain(text)
    text = _MARKER.sub("", text.strip())
    if _MAYBE_CODE.search(text) is None:
        text = text.casefold()
    else:
        pieces, end = [], 0
        for span in _CODE.finditer(text):
            pieces += [text[end : span.start()].casefold(), span.group()]
            end = span.end()
        text = "".join([*pieces, text[end:].casefold()])
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)  # which folding can undo
    text = " ".join(text.split())
    while (bare := _without_end(text)) != text:
        text = bare
    return text


def _without_end(text: str) -> str:
    """Without final punctuation; "!" belongs to it behind a word of letters."""
    text = text.rstrip(" .,;:")
    word = text.rstrip("!")
    return word if len(word) > 1 and word[-2:].isalpha() else text


def _plain(text: str) -> str:
    """NFKC with plain quotes and dashes, without invisible characters, superscripts as ^(…)."""
    if text.isascii():
        return text
    text = _SUPERSCRIPTS.sub(lambda found: f"^({found.group()})", text)
    text = unicodedata.normalize("NFKC", _FRACTIONS.sub(" ", text)).translate(_QUOTES)
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


# -- conflicts -----------------------------------------------------------------------------------------------------


def conflict(a: str, b: str) -> str | None:
    """Why two texts must not be merged, however alike a vector finds them; None = nothing was found. Symmetric but for wording.

    >>> conflict("Always paginate until the list is empty.", "Never paginate until the list is empty.")
    'negation: 0 against 1'
    >>> conflict("Round to 2 decimals.", "Round to three decimals."), conflict("Retry twice.", "Retry two times.")
    ('numbers: 2 against 3', None)
    >>> conflict("Call `get_user` first.", "Call `get_users` first.")
    'code: get_user against get_users'
    >>> conflict("Convert EUR to USD.", "Convert USD to EUR.")
    "order: the sides of 'to' are swapped"
    """
    first, second = facts(a), facts(b)
    return (
        _counts("negation", first.negations, second.negations)
        or _counts("exclusive", first.exclusives, second.exclusives)
        or _contrasts(first, second)
        or _multisets("numbers", first.numbers, second.numbers)
        or _both("units", first.units, second.units)
        or _code(first, second)
        or _both("operators", first.operators, second.operators)
        or _both("names", first.names - second.vocabulary, second.names - first.vocabulary)
        or _prefixes(first, second)
        or _and_or(first, second)
        or _swapped(first, second)
    )


class Facts(NamedTuple):
    """What `conflict` compares.

    Attributes:
        text: as read, plain Unicode.
        words: lower-case words and signs in order, code left out; `vocabulary` is their set.
        negations, exclusives: how many.
        poles: group of `CONTRASTS` → the poles in order of first use.
        numbers: as multiset, canonical decimals; dates and times as written.
        units, operators, names: sets; names are acronyms and capitalised words inside a sentence, lower-case.
        code: identifiers, paths, flags, quoted strings, with case.
    """

    text: str
    words: tuple[str, ...]
    vocabulary: frozenset[str]
    negations: int
    exclusives: int
    poles: dict[int, tuple[int, ...]]
    numbers: tuple[str, ...]
    units: frozenset[str]
    operators: frozenset[str]
    names: frozenset[str]
    code: frozenset[str]


@lru_cache(maxsize=16_384)
def facts(text: str) -> Facts:
    """Read a text once.

    >>> found = facts("Don't round `unit_price` to 1,000.50 USD before the last step")
    >>> found.negations, found.numbers, sorted(found.units), sorted(found.code)
    (1, ('1000.5',), ['$'], ['unit_price'])
    """
    plain = " ".join(_plain(text).split())
    spans: list[str] = []

    def take(found: re.Match[str]) -> str:
        spans.append(_bare(found.group()))
        return " ` "

    prose = _CODE.sub(take, plain) if _MAYBE_CODE.search(plain) else plain
    words = tuple(_phrases(prose.lower()))
    vocabulary = frozenset(words)
    counted = any(map(str.isdigit, prose)) or not vocabulary.isdisjoint(NUMBERS)
    numbers, rest = _read_numbers(prose) if counted or "-" in prose else ((), prose)
    return Facts(
        plain,
        words,
        vocabulary,
        sum(word in NEGATIONS or word.endswith("n't") for word in words)
        + words.count("insteadof")
        + words.count("ratherthan"),
        sum(word in EXCLUSIVES for word in words),
        _poles(words),
        numbers,
        _read_units(words, rest)
        if numbers or counted or not vocabulary.isdisjoint(BARE_UNITS)
        else frozenset(),
        frozenset(found.group("spaced") or found.group("tight") for found in _OPERATORS.finditer(prose)),
        _read_names(prose) if _MAYBE_NAME.search(prose) else frozenset(),
        frozenset(filter(None, spans)),
    )


def _phrases(prose: str) -> list[str]:
    """Words and signs, a phrase being one word."""
    if ANY_PHRASE.search(prose):
        for pattern, word in PHRASES:
            prose = pattern.sub(word, prose)
    return _WORDS.findall(prose)


def _bare(span: str) -> str:
    """An identifier without its quotes and its empty call."""
    span = span.strip("`") if span.startswith("`") else span[1:-1] if span[0] in "\"'" else span
    return " ".join(span.split()).removesuffix("()").rstrip(".,;:")


def _poles(words: tuple[str, ...]) -> dict[int, tuple[int, ...]]:
    found: dict[int, list[int]] = {}
    for i, word in enumerate(words):
        for group, pole in POLES.get(word, ()):
            before = words[i - 1] if i else ""
            if (
                group == TIME_GROUP
                and word.startswith("second")
                and (before in ("per", "a", "each", "every") or _is_number(before))
            ):
                continue  # a unit
            if pole not in found.setdefault(group, []):
                found[group].append(pole)
    return {group: tuple(poles) for group, poles in found.items()}


def _is_number(word: str) -> bool:
    return word in NUMBERS or word[:1].isdigit()


def _read_numbers(prose: str) -> tuple[tuple[str, ...], str]:
    """(sorted canonical numbers, the prose without what was read)."""
    found = _DATES.findall(prose)
    rest = _DATES.sub(" ", prose)
    for numeral in _NUMERALS.finditer(rest):
        tail = numeral["tail"].lower()
        number = _canonical(numeral["body"].replace(",", ""), {"k": 3, "bn": 9}.get(tail, 0))
        known = tail in ("", "k", "bn", "st", "nd", "rd", "th", "x") or tail in UNITS
        found.append(("-" if numeral["sign"] else "") + number + ("" if known else tail))
    words = rest.lower().replace("-", " ").split()
    words = [word.strip(".,;:()!?\"'") for word in words]
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        pronoun = word == "one" and (before in NOT_COUNTING or after in ("of", "by", "another", "at"))
        if word in NUMBERS and not pronoun:
            found.append(NUMBERS[word])
    return tuple(sorted(found)), rest


def _canonical(body: str, power: int) -> str:
    """Decimal digits times 10^power, exact: 2.50 is 2.5, 1e3 and 1k are 1000; out of range it stays as written."""
    if power or "e" in body.lower():
        number = Decimal(body).scaleb(power) if len(body) < 25 else Decimal(0)
        if number and abs(number.adjusted()) < 30:
            body = format(number, "f")
    whole, point, part = body.partition(".")
    part = part.rstrip("0") if "e" not in part.lower() else part
    return (whole.lstrip("0") or "0") + (point + part if part else "")


def _read_units(words: tuple[str, ...], prose: str) -> frozenset[str]:
    found = {UNITS[word] for word in words if word in BARE_UNITS}
    for before, word in pairwise(words):
        if word in UNITS and _is_number(before):
            found.add(UNITS[word])
    found |= {UNITS[n["tail"].lower()] for n in _NUMERALS.finditer(prose) if n["tail"].lower() in UNITS}
    for number, unit in re.findall(r"\b(\d+|[a-z]+)[- ]([a-z]+)\b", prose.lower()):
        if unit in UNITS and _is_number(number):
            found.add(UNITS[unit])
    return frozenset(found)


_MAYBE_NAME = re.compile(r"[^\W\d_a-z]{2}|[\w,] [^\W\d_a-z]")


def _read_names(prose: str) -> frozenset[str]:
    """Acronyms, and capitalised words that do not begin a sentence; nothing where a whole text is written in capitals."""
    letters = [c for c in prose if c.isalpha()]
    if not letters or sum(map(str.isupper, letters)) > 0.5 * len(letters):
        return frozenset()
    tokens = re.findall(r"[^\W_]+(?:'[^\W_]+)*|[.!?:;\"(\-•]+", prose)
    plain = [token for token in tokens[1:] if token[0].isalpha() and not token.isupper()]
    titled = sum(word[0].isupper() for word in plain) > 0.6 * len(plain) and len(plain) > 3
    found = set()
    for before, word in zip([".", *tokens], tokens, strict=False):
        low = word.lower()
        if word in METHODS:
            found.add(low)
        if low in EMPHASIS or low in NEGATIONS or low in POLES or low in EXCLUSIVES or low in NUMBERS:
            continue
        if len(word) > 1 and word.rstrip("s").isupper() and word[0].isalpha() and len(word.rstrip("s")) > 1:
            found.add(low.rstrip("s"))
        elif word[0].isupper() and len(word) > 2 and before[0].isalnum() and not titled:
            found.add(low)
    return frozenset(found)


# -- comparisons ---------------------------------------------------------------------------------------------------


def _counts(what: str, a: int, b: int) -> str | None:
    return None if a == b else f"{what}: {a} against {b}"


def _multisets(what: str, a: tuple[str, ...], b: tuple[str, ...]) -> str | None:
    if a == b:
        return None
    one, other = Counter(a) - Counter(b), Counter(b) - Counter(a)
    return f"{what}: {_list(one.elements())} against {_list(other.elements())}"


def _both(what: str, a: frozenset[str], b: frozenset[str]) -> str | None:
    """A conflict when both have some, and not the same."""
    if not a or not b or a == b:
        return None
    return f"{what}: {_list(a - b)} against {_list(b - a)}"


def _list(items: object) -> str:
    return ", ".join(sorted(map(str, items))) or "none"  # type: ignore[call-overload]


def _contrasts(a: Facts, b: Facts) -> str | None:
    for group in a.poles.keys() & b.poles.keys():
        if a.poles[group] != b.poles[group]:
            lines = CONTRASTS.strip().splitlines()[group].split("|")
            shown = [
                " then ".join(lines[pole].split(",")[0].strip() for pole in side.poles[group])
                for side in (a, b)
            ]
            return f"opposites: {shown[0]} against {shown[1]}"
    return None


def _code(a: Facts, b: Facts) -> str | None:
    """An identifier of one that the other does not have, not even without its backticks."""
    one = {name for name in a.code - b.code if not _mentions(b.text, name)}
    other = {name for name in b.code - a.code if not _mentions(a.text, name)}
    return f"code: {_list(one)} against {_list(other)}" if one or other else None


def _mentions(text: str, name: str) -> bool:
    """Whether `name` stands there by itself, not inside a longer identifier or path."""
    place = text.find(name)
    while place >= 0:
        before, after = text[place - 1 : place], text[place + len(name) : place + len(name) + 2]
        inside = before and (before.isalnum() or before in "_.$/-")
        goes_on = after and (
            after[0].isalnum() or after[0] in "_/$-" or (after[0] == "." and after[1:].isalnum())
        )
        if not inside and not goes_on:
            return True
        place = text.find(name, place + 1)
    return False


def _prefixes(a: Facts, b: Facts) -> str | None:
    for one, other in ((a.vocabulary, b.vocabulary), (b.vocabulary, a.vocabulary)):
        for word in sorted(other - one):
            if word.startswith(PREFIXES):
                for prefix in PREFIXES:
                    bare = word.removeprefix(prefix)
                    if bare != word and len(bare) > 3 and bare in one and bare not in other:
                        return f"opposites: {bare} with and without a prefix"
    return None


def _and_or(a: Facts, b: Facts) -> str | None:
    """Of texts with almost the same words one joins them by "and", the other by "or"."""
    if not ({"and", "or"} <= a.vocabulary | b.vocabulary):
        return None
    one, other = Counter(a.words) - Counter(b.words), Counter(b.words) - Counter(a.words)
    for x, y in ((one, other), (other, one)):
        if x["and"] and y["or"] and x.total() + y.total() <= 4:
            return "opposites: and against or"
    return None


def _swapped(a: Facts, b: Facts) -> str | None:
    """A word stands left of a sided word in one text and right of it in the other, and a second word the other way round."""
    for word in sorted(a.vocabulary & b.vocabulary & SIDED):
        if a.words.count(word) == b.words.count(word) == 1:
            (left, right), (other_left, other_right) = _sides(a, word), _sides(b, word)
            if left & other_right and right & other_left:
                return f"order: the sides of {word!r} are swapped"
    return None


def _sides(side: Facts, word: str) -> tuple[set[str], set[str]]:
    """The words around `word`, nearest six on each side; "Before B, do A" is read as "do A before B"."""
    words = side.words
    place = words.index(word)
    lowered = side.text.lower()
    turned = place <= 1 and "," in lowered
    if turned:
        clause = len(_WORDS.findall(_CODE.sub(" ", lowered.split(",")[0])))
        left, right = words[clause:], words[place + 1 : clause]
    else:
        left, right = words[:place], words[place + 1 :]
    left, right = ([w for w in part if w not in FILLER] for part in (left, right))
    near = set(left[:_REACH] if turned else left[-_REACH:]) - SIDED, set(right[:_REACH]) - SIDED
    return near[0] - near[1], near[1] - near[0]
