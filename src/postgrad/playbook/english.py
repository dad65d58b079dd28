"""What `similarity` knows of English: opposites, negations, numbers, units, and words that say little. Tables only.

A part of the opposites was mended after a look at the development half of benchmarks/data/bullet_pairs.jsonl: `add | remove`,
`keep | drop`, "all but", and the methods of HTTP, which are names even where the word is in a table. The held-out half was not
looked at, but for its copies.
"""

from __future__ import annotations

import re


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


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
"""Groups of poles, one group a line, poles divided by `|`; the words of a pole mean the same here. Regular endings (-s, -d, -ed,
-ing) are added. Two texts conflict when both use a group and not with the same poles, or with the same ones in another order."""

NEGATIONS = _set(
    """not no never none nor neither nobody nothing nowhere cannot without avoid avoids avoided avoiding unless except excepting
    refrain lack lacks lacking stop forbid forbidden prohibit prohibited disallow disallowed refuse refuses"""
)
"""Counted, together with words that end in n't and the phrases "instead of" and "rather than"; the counts must be equal. So
"Avoid X", "Do not X" and "Never X" agree (but see the group always … never)."""
EXCLUSIVES = _set("only solely exclusively")
PREFIXES = ("un", "in", "im", "ir", "il", "non", "non-", "dis", "de")
"""A word of one text is the other's with one of these before it: valid and invalid, sorted and unsorted."""
SIDED = _set(
    """before after then from to into by than over minus insteadof ratherthan not if when unless until because per against versus
    / - < > <= >="""
)
"""Words and signs whose two sides cannot be swapped ("convert EUR to USD")."""

NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
        ]
    )
} | {"twice": "2", "thrice": "3", "dozen": "12", "hundred": "100", "thousand": "1000", "million": "1000000"}
NOT_COUNTING = _set("the this that each every no last next right wrong which any some another correct")
"""Before "one" they make it a pronoun; so does a following of, by, another or at."""
UNITS = {
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
_NOT_BARE = _set(
    """min deg rad sec secs mins minute point points second quarter quarters pound pounds significant foot line lines word words
    row rows page pages character characters token tokens day days week weeks month months year years"""
)
BARE_UNITS = frozenset(name for name in UNITS if len(name) > 2) - _NOT_BARE | _set("% $ € £ ° ms")
"""Units that are read as such without a number before them; the others are too often something else."""
EMPHASIS = _set(
    """do does is are be the a an and or all any if when then than for to of in on at by with from as it its you your this that
    must should shall can will only also use check note tip warning important first last ok i"""
)


METHODS = _set("GET HEAD POST PUT PATCH DELETE OPTIONS")
COMMON = _set(
    """a an the and or of to in on at by for from with as is are was were be been it its this that these those if then than so do
    does did has have had can could will would should may might must not no you your they them their there when while which what
    who how use using into out up each any all"""
)
"""They weigh little in `embed.HashedNgrams`. A list, not counts of the collection: a vector must not depend on what else there
is."""
FILLER = _set(
    "the a an it its they them their this that these those be are was were of for in on at with as your you"
)

PHRASES = [
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


ANY_PHRASE = re.compile("|".join(f"(?:{pattern.pattern})" for pattern, _ in PHRASES))


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


POLES = _table()
TIME_GROUP = next(i for i, line in enumerate(CONTRASTS.strip().splitlines()) if line.startswith("first"))
