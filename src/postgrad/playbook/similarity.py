"""When two short texts are copies, and why two that look alike must not be merged. Pure functions of text; no vectors.

Start at `conflict`. Vectors find "Always paginate" and "Never paginate" alike (MiniLM: cosine 0.986), so they may only propose
pairs; what is here refuses a pair when the two differ in something that a rewording does not change: negation, one of the opposites of
`CONTRASTS`, numbers, units, operators, code, names, or which word stands on which side of "before", "from", "by", …

It errs to one side on purpose: a pair that is refused stays two bullets, which costs a line; a pair that is merged wrongly loses a rule.
So it refuses some true rewordings: "Never X without Y" against "Always X with Y", "5%" against "0.05" (a number is compared as written),
"B after A" against "A before B", a number or an identifier that only one of the two mentions. It knows English only, and it cannot
see that two different nouns ("billing address", "shipping address") make a different rule: those pairs go to the Curator.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

CONTRASTS = """
always, invariably | usually, typically, often, generally, normally | sometimes, occasionally | rarely, seldom | never
must, required, mandatory, compulsory | may, might, optional, optionally
before, prior | after, afterwards
previous, preceding | next, subsequent
first, initial | second | third | last, final
earliest | latest
oldest, older | newest, newer
ascending | descending
increase, raise, grow, rise | decrease, reduce, shrink, fall, decline
higher, greater, more, larger, above, exceed, upper, over | lower, less, fewer, smaller, below, under
minimum, min, minimise, minimize, smallest, lowest, atleast | maximum, max, maximise, maximize, largest, highest, atmost
true | false
yes | no
enable, activate, turnon, switchon | disable, deactivate, turnoff, switchoff
include, inclusive | exclude, exclusive, omit
allow, permit | forbid, deny, prohibit, disallow
accept, approve | reject, decline
add, plus, sum | subtract, minus, difference | multiply, multiplied, product | divide, divided, ratio, quotient
insert | delete
add | remove
keep, retain | drop, discard, remove
append | prepend
push, enqueue | pop, dequeue
open | close
start, begin | stop, end, finish
show, expand | hide, collapse
read | write
import | export
upload | download
encode | decode
encrypt | decrypt
serialise, serialize | deserialise, deserialize
lock | unlock
left | right
top | bottom
up, upward, upwards | down, downward, downwards | nearest
inner | outer
row | column
horizontal, horizontally | vertical, vertically
numerator | denominator
buy, bought, purchase | sell, sold, sale
debit | credit
asset | liability, liabilities
inflow | outflow
profit, gain | loss, losses
gross | net
nominal | real
simple | compound
positive | negative
even | odd
all, every, each | any | some
both | either | neither
same, identical | different
equal | unequal
local | remote | global
public | private
synchronous, synchronously, sync | asynchronous, asynchronously, async
serial, serially, sequential, sequentially | parallel
static | dynamic
client | server
input | output
source | destination, target
parent | child, children
sender | receiver, recipient
request | response
internal | external
old | new
early | late
fast, faster | slow, slower
short, shorter, shortest | long, longer, longest
empty, blank | full, filled
strict, strictly | loose, loosely
success, succeed | failure, fail
absolute | relative
singular | plural
uppercase | lowercase
daily | weekly | monthly | quarterly | yearly, annual, annually
day, days | week, weeks | month, months | quarter, quarters | year, years
floor | ceiling, ceil | truncate
mean, average | median | mode | variance
arithmetic | geometric
permutation | combination
area | perimeter, circumference
radius | diameter
sine, sin | cosine, cos | tangent, tan
convex | concave
half, halve | double | triple
manual, manually | automatic, automatically
single | multiple
once | twice | thrice
prefix | suffix
current | noncurrent
shallow | deep
"""
"""Groups of poles, one group a line, poles divided by `|`; the words of a pole mean the same here. Regular endings (-s, -d, -ed, -ing)
are added. Two texts conflict when both use a group and not with the same poles, or with the same ones in another order."""

NEGATIONS = frozenset(
    """not no never none nor neither nobody nothing nowhere cannot without avoid avoids avoided avoiding unless except excepting
    refrain lack lacks lacking stop forbid forbidden prohibit prohibited disallow disallowed refuse refuses""".split()
)
"""Counted, together with words that end in n't and the phrases "instead of" and "rather than"; the counts must be equal. So "Avoid X",
"Do not X" and "Never X" agree (but see the group always … never)."""
EXCLUSIVES = frozenset("only solely exclusively".split())
PREFIXES = ("un", "in", "im", "ir", "il", "non", "non-", "dis", "de")
"""A word of one text is the other's with one of these before it: valid and invalid, sorted and unsorted."""
_SIDED = frozenset(
    """before after then from to into by than over minus insteadof ratherthan not if when unless until because per against versus
    / - < > <= >=""".split()
)
"""Words and signs whose two sides cannot be swapped ("convert EUR to USD")."""
_REACH = 6
"""Words looked at on each side of a word of `_SIDED`."""

_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()
    )
} | {"twice": "2", "thrice": "3", "dozen": "12", "hundred": "100", "thousand": "1000", "million": "1000000"}
_NOT_COUNTING = frozenset(
    "the this that each every no last next right wrong which any some another correct".split()
)
"""Before "one" they make it a pronoun; so does a following of, by, another or at."""
_UNITS = {
    name: units[0]
    for units in (
        line.split()
        for line in """
        % percent per-cent
        pp percentage-point percentage-points
        bp bps basis-point basis-points
        ms millisecond milliseconds msec
        µs us microsecond microseconds
        s sec secs second seconds
        min mins minute minutes
        h hr hrs hour hours
        d day days
        wk week weeks
        mo month months
        qtr quarter quarters
        yr yrs year years
        bit bits
        byte bytes b
        kb kilobyte kilobytes kib
        mb megabyte megabytes mib
        gb gigabyte gigabytes gib
        mm millimetre millimetres millimeter millimeters
        cm centimetre centimetres centimeter centimeters
        m metre metres meter meters
        km kilometre kilometres kilometer kilometers
        mile miles mi
        in inch inches
        ft foot feet
        g gram grams
        kg kilogram kilograms
        lb lbs pound pounds
        oz ounce ounces
        l litre litres liter liters
        ml millilitre millilitres milliliter milliliters
        ° degree degrees deg
        rad radian radians
        celsius c
        fahrenheit f
        px pixel pixels
        pt point points
        decimal decimals decimal-place decimal-places
        digit digits
        significant significant-figure significant-figures significant-digit significant-digits
        token tokens
        word words
        character characters chars
        line lines
        row rows
        page pages
        $ usd dollar dollars
        € eur euro euros
        £ gbp
        cent cents
        thousands
        millions
        billions
        """.strip().splitlines()
    )
    for name in units
}
_BARE_UNITS = frozenset(
    name for name in _UNITS if len(name) > 2 and name not in ("min", "deg", "rad", "sec", "point", "points", "second",
    "quarter", "quarters", "minute", "pound", "pounds", "significant", "foot", "mins", "secs", "line", "lines", "word", "words",
    "row", "rows", "page", "pages", "character", "characters", "token", "tokens", "day", "days", "week", "weeks", "month", "months",
    "year", "years")
) | {"%", "$", "€", "£", "°", "ms"}  # fmt: skip
"""Units that are read as such without a number before them; the others are too often something else."""

_QUOTES = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "‐": "-", "‑": "-", "–": "-", "—": "-", "−": "-", "×": "*", "÷": "/", "⋅": "*", "≤": "<=", "≥": ">=", "≠": "!="}
)  # fmt: skip
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
_ENDS = (" ", ".", ",", ";", ":", "!")
_DATES = re.compile(
    r"\b\d{4}-\d{1,2}(?:-\d{1,2})?\b|\b\d{1,2}/\d{1,2}/\d{2,4}\b|\b\d{1,2}:\d{2}(?::\d{2})?\b"
)
_NUMERALS = re.compile(
    r"(?<![\w.])(?P<sign>(?<![\w)\]])-)?(?P<body>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:e[+-]?\d+)?|\.\d+)(?P<tail>[a-zµ°%]*)",
    re.IGNORECASE,
)
_WORDS = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\d[\w.,]*|<=|>=|!=|==|[-+*/^=<>%$€£°](?=\s|\d|$)|[%$€£°]")
_OPERATORS = re.compile(r"(?<=[\w)\]\s])(?:\s(?P<spaced>\*\*|<=|>=|!=|==|[-+*/^=<>])\s|(?P<tight>\*\*|<=|>=|!=|==|[+*^=<>]))(?=[\w(\[\s$-])")  # fmt: skip


# -- copies --------------------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """What two texts share when one is a copy of the other; for comparing only, never to be shown.

    Case, white space, a list marker before and punctuation after do not count, nor which of several Unicode forms was used
    (NFKC; superscripts are kept apart: x² is not x2). Case does count inside code and quotes: `userId` is not `userid`. A question mark
    and the sign of a factorial count too. A word that is another one in capitals, such as IT, is taken for a copy.

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
    while text.endswith(_ENDS) and (bare := re.sub(r"(?:[\s.,;:]|(?<=[^\W\d_]{2})!+)+$", "", text)) != text:
        text = bare
    return text


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
    counted = any(map(str.isdigit, prose)) or not vocabulary.isdisjoint(_NUMBERS)
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
        if numbers or counted or not vocabulary.isdisjoint(_BARE_UNITS)
        else frozenset(),
        frozenset(found.group("spaced") or found.group("tight") for found in _OPERATORS.finditer(prose)),
        _read_names(prose) if _MAYBE_NAME.search(prose) else frozenset(),
        frozenset(filter(None, spans)),
    )


_PHRASES = [
    (re.compile(pattern), word)
    for pattern, word in (
        (r"\binstead of\b", "insteadof"),
        (r"\brather than\b", "ratherthan"),
        (r"\b(?:all|every|everything|everyone|any|nothing) but\b", "except"),
        (r"\bat least\b", "atleast"),
        (r"\bat most\b", "atmost"),
        (r"\b(turn|switch)(?:ed|es|s|ing)? (on|off)\b", r"\1\2"),
        (r"\bnon-current\b", "noncurrent"),
        (r"\b(upper|lower)[ -]case\b", r"\1case"),
        (r"\b(?:does|do|did) n[o']t\b", "don't"),
        (r"\b(percentage|basis) (points?)\b", r"\1-\2"),
        (r"\bdecimal (places?)\b", r"decimal-\1"),
        (r"\bsignificant (figures?|digits?)\b", r"significant-\1"),
    )
]


_ANY_PHRASE = re.compile("|".join(f"(?:{pattern.pattern})" for pattern, _ in _PHRASES))


def _phrases(prose: str) -> list[str]:
    """Words and signs, a phrase being one word."""
    if _ANY_PHRASE.search(prose):
        for pattern, word in _PHRASES:
            prose = pattern.sub(word, prose)
    return _WORDS.findall(prose)


def _bare(span: str) -> str:
    """An identifier without its quotes and its empty call."""
    span = span.strip("`") if span.startswith("`") else span[1:-1] if span[0] in "\"'" else span
    return " ".join(span.split()).removesuffix("()").rstrip(".,;:")


def _forms(word: str) -> set[str]:
    """A word with its regular endings."""
    stem = word[:-1] if word.endswith(("e", "y")) else word
    found = {
        word,
        word + "s",
        word + "es",
        word + "ed",
        word + "ing",
        stem + "ing",
        stem + "ed",
        stem + "ies",
        stem + "ied",
    }
    if re.search("[^aeiou][aeiou][bdgmnpt]$", word):
        found |= {word + word[-1] + "ed", word + word[-1] + "ing"}
    return found


def _table() -> dict[str, tuple[tuple[int, int], ...]]:
    """Word → its (group, pole)s."""
    found: dict[str, dict[int, int]] = {}
    for group, line in enumerate(CONTRASTS.strip().splitlines()):
        for pole, names in enumerate(line.split("|")):
            for name in names.replace(",", " ").split():
                for form in _forms(name):
                    found.setdefault(form, {}).setdefault(group, pole)
    return {word: tuple(places.items()) for word, places in found.items()}


_POLES = _table()
_TIME_GROUP = next(i for i, line in enumerate(CONTRASTS.strip().splitlines()) if line.startswith("first"))


def _poles(words: tuple[str, ...]) -> dict[int, tuple[int, ...]]:
    found: dict[int, list[int]] = {}
    for i, word in enumerate(words):
        for group, pole in _POLES.get(word, ()):
            before = words[i - 1] if i else ""
            if (
                group == _TIME_GROUP
                and word.startswith("second")
                and (before in ("per", "a", "each", "every") or _is_number(before))
            ):
                continue  # a unit
            if pole not in found.setdefault(group, []):
                found[group].append(pole)
    return {group: tuple(poles) for group, poles in found.items()}


def _is_number(word: str) -> bool:
    return word in _NUMBERS or word[:1].isdigit()


def _read_numbers(prose: str) -> tuple[tuple[str, ...], str]:
    """(sorted canonical numbers, the prose without what was read)."""
    found = _DATES.findall(prose)
    rest = _DATES.sub(" ", prose)
    for numeral in _NUMERALS.finditer(rest):
        body, tail = numeral["body"].replace(",", ""), numeral["tail"].lower()
        value = float(body) * {"k": 1e3, "bn": 1e9}.get(tail, 1)
        known = tail in ("", "k", "bn", "st", "nd", "rd", "th", "x") or tail in _UNITS
        sign = "-" if numeral["sign"] else ""
        found.append(sign + (f"{value:.12g}" if known else f"{value:.12g}{tail}"))
    words = rest.lower().replace("-", " ").split()
    words = [word.strip(".,;:()!?\"'") for word in words]
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        pronoun = word == "one" and (before in _NOT_COUNTING or after in ("of", "by", "another", "at"))
        if word in _NUMBERS and not pronoun:
            found.append(_NUMBERS[word])
    return tuple(sorted(found)), rest


def _read_units(words: tuple[str, ...], prose: str) -> frozenset[str]:
    found = {_UNITS[word] for word in words if word in _BARE_UNITS}
    for before, word in zip(words, words[1:], strict=False):
        if word in _UNITS and _is_number(before):
            found.add(_UNITS[word])
    found |= {_UNITS[n["tail"].lower()] for n in _NUMERALS.finditer(prose) if n["tail"].lower() in _UNITS}
    for number, unit in re.findall(r"\b(\d+|[a-z]+)[- ]([a-z]+)\b", prose.lower()):
        if unit in _UNITS and _is_number(number):
            found.add(_UNITS[unit])
    return frozenset(found)


_EMPHASIS = frozenset(
    """do does is are be the a an and or all any if when then than for to of in on at by with from as it its you your this that
    must should shall can will only also use check note tip warning important first last ok i""".split()
)


_MAYBE_NAME = re.compile(r"[^\W\d_a-z]{2}|[\w,] [^\W\d_a-z]")
_METHODS = frozenset("GET HEAD POST PUT PATCH DELETE OPTIONS".split())


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
        if word in _METHODS:
            found.add(low)
        if low in _EMPHASIS or low in NEGATIONS or low in _POLES or low in EXCLUSIVES or low in _NUMBERS:
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


_FILLER = frozenset(
    "the a an it its they them their this that these those be are was were of for in on at with as your you".split()
)


def _swapped(a: Facts, b: Facts) -> str | None:
    """A word stands left of a sided word in one text and right of it in the other, and a second word the other way round."""
    for word in sorted(a.vocabulary & b.vocabulary & _SIDED):
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
    left, right = ([w for w in part if w not in _FILLER] for part in (left, right))
    near = set(left[:_REACH] if turned else left[-_REACH:]) - _SIDED, set(right[:_REACH]) - _SIDED
    return near[0] - near[1], near[1] - near[0]
