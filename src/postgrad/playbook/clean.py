"""What is let into a playbook: bullets come from traces that nobody has read, so each is made one harmless line or refused.

Nothing here understands text. It takes out what hides (control, invisible and direction-changing characters), what forges (ids,
counters, headers), what is secret, and what is too long.
"""

from __future__ import annotations

import re
import unicodedata

MAX_CHARACTERS = 2000
"""Of a bullet."""
MAX_SECTION_CHARACTERS = 60

_ID = r"[\[【〔〖❲⟦]\s*[^\W\d_]\w{0,31}\s?[-‐‑‒–—―−]\s?\d{3,}\s*[\]】〕〗❳⟧]"  # in any letters, as a reader would see it
_FORGERIES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("begins with the id of a bullet", re.compile(rf"^\W{{0,9}}{_ID}")),
    ("holds another bullet", re.compile(rf"(?i){_ID}\s*(?:helpful\b|harmful\b|withdrawn\b|::|\()")),
    ("holds counters", re.compile(r"(?i)\b(?:helpful|harmful)\s*=\s*\d")),
    ("holds a header", re.compile(r"(?:^|\\n)\s*#{1,6}\s")),
    (
        "holds markup of prompts",
        re.compile(
            r"(?i)</?\s{0,9}(?:playbook|trace|reflection|system|instructions)\b[^>]{0,200}>|<\|[^|<>]{1,40}\|>"
        ),
    ),
)

# Each pattern starts only where a word starts and has bounded repeats, so that no text takes long.
_START = r"(?<![A-Za-z0-9_-])"
_LABEL = (
    r"(?:(?:api|app|access|account|shared[_-]?access|secret(?:[_-]?access)?|private|encryption|signing)[_-]?key"
    r"|(?:access|auth|refresh|session|id|api|bot)[_-]?token|client[_-]?secret|connection[_-]?secret"
    r"|passw(?:or)?d|passphrase|passwd|(?<![a-z])(?:secret|pwd))"
)
_UNQUOTED = r"[^\s\"'`,;&|<>(){}]"
_MIXED = rf"(?=[a-z.-]{{0,200}}[^a-z.\s\"'`,;&|<>(){{}}-]){_UNQUOTED}{{4,}}"  # not of letters alone
_SECRETS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "private key",
        re.compile(
            r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----|\Z)",
            re.DOTALL,
        ),
    ),
    ("key", re.compile(_START + r"(?:sk|pk|rk)-(?=[A-Za-z_-]{0,200}[0-9])[A-Za-z0-9_-]{16,}")),
    ("key", re.compile(_START + r"(?:(?:sk|pk|rk)_(?:live|test)|whsec)_[A-Za-z0-9]{10,}")),
    ("key", re.compile(_START + r"(?:gsk_|xai-|dapi|dop_v1_|GOCSPX-)(?=[A-Za-z_-]{0,200}[0-9])[A-Za-z0-9_-]{20,}")),
    ("token", re.compile(_START + r"(?:gh[pousr]_|github_pat_|hf_|npm_)[A-Za-z0-9_]{20,}")),
    ("token", re.compile(_START + r"(?:gl(?:pat|dt|rt|ft|soat)-|pypi-)[A-Za-z0-9_-]{16,}")),
    ("token", re.compile(_START + r"x(?:ox[abeoprs]|app)-[A-Za-z0-9-]{10,}")),
    ("token", re.compile(r"\bhooks\.slack\.com/services/(?P<value>[A-Za-z0-9/]{20,})")),
    ("key", re.compile(_START + r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])")),
    ("key", re.compile(_START + r"(?:AIza[A-Za-z0-9_-]{30,}|ya29\.[A-Za-z0-9_-]{20,})")),
    ("key", re.compile(_START + r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}")),
    ("token", re.compile(_START + r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?")),
    ("token", re.compile(
        r"(?i)\bauthorization[\"']?\s{0,9}[:=]\s{0,9}[\"']?(?:[a-z]{1,12}\s+)?(?P<value>[A-Za-z0-9+/_.=-]{8,})"
    )),
    ("token", re.compile(r"(?i)\b(?:bearer|basic)\s{1,9}(?P<value>(?=[A-Za-z+/_.-]{0,200}[0-9=])[A-Za-z0-9+/_.=-]{16,})")),
    ("password", re.compile(r"(?i)(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,30}://[^\s:/@]{0,200}:(?P<value>[^\s/]{1,300})@")),
    ("password", re.compile(r"(?<!\S)(?:-u|--user)[ =][\"']?[^\s:\"']{1,100}:(?P<value>[^\s\"']{3,300})")),
    # Labelled: in quotes; after "=", or alone after ":", in any letters; in prose, where there is more than letters.
    (
        "secret",
        re.compile(
            rf"(?i){_LABEL}\\?[\"'`]?(?:"
            r"\s{0,9}(?:[:=]|=>|:=)\s{0,9}\\?(?P<quote>[\"'`])(?P<quoted>[^\"'`\n]{4,300})(?P=quote)"
            rf"|=\\?[\"'`]?(?P<given>{_UNQUOTED}{{4,}})"
            rf"|\s{{0,9}}[:=]\s{{0,9}}\\?[\"'`]?(?P<alone>{_UNQUOTED}{{6,}})(?=[\"'`]?\s{{0,9}}(?:\Z|[\n,;}}#]|\\n))"
            rf"|\s{{0,9}}(?:[:=]|\bis\b)\s{{0,9}}\\?[\"'`]?(?P<told>{_MIXED})"
            r")"
        ),
    ),
    ("secret", re.compile(rf"(?i)--(?:password|token|api-key|secret)[ =]\\?[\"'`]?(?P<value>{_MIXED})")),
    ("secret", re.compile(
        r"(?i)(?<![a-z])(?:token|sig|key|pass)[\"']?\s{0,9}[:=]\s{0,9}[\"']?"
        r"(?P<value>(?=[a-z%_-]{0,200}[0-9])[a-z0-9%/+_-]{20,}=*)"
    )),
)  # fmt: skip
_MARKS = (
    "[private key removed]",
    "[key removed]",
    "[token removed]",
    "[password removed]",
    "[secret removed]",
)
_HARMLESS = re.compile(
    r"(?i)[$<{%\[]|your[_-]|(?:x+|\*+|\.+|=+.*|required|optional|string|str|text|none|null|true|false|missing|wrong|invalid"
    r"|incorrect|empty|unknown|placeholder|redacted|hidden|unset|undefined)[.!?]?$"
    r"|(?:os|self|cls|config|cfg|settings|env|environ|process|args|options|request|secrets|user|st)[.\[]"
    r"|(?:get|load|read|fetch)[a-z_]*$|[a-z_]\w*\[$|(?:[a-z]+_)*(?:password|passwd|pwd|token|key|secret)s?$"
)
"""What stands where a secret would: a variable, a placeholder, a type, a word."""


def redact(text: str) -> str:
    """The text with keys, tokens and passwords taken out, as far as they can be told by their form.

    >>> redact("use api_key=abcdef123456 and https://me:hunter2@example.org")
    'use api_key=[secret removed] and https://me:[password removed]@example.org'
    """
    for kind, pattern in _SECRETS:
        text = pattern.sub(lambda match, kind=kind: _without(match, kind), text)
    return text


def _without(match: re.Match[str], kind: str) -> str:
    mark = f"[{kind} removed]"
    name = match.lastgroup
    if name is None:
        return mark
    # A mark may be cut at its space: "[secret" of "[secret removed]".
    if any(known.startswith(match[name]) or known in match[name] for known in _MARKS):
        return match[0]
    if kind == "secret" and _HARMLESS.match(match[name]):
        return match[0]
    start, end = match.start(name) - match.start(), match.end(name) - match.start()
    return match[0][:start] + mark + match[0][end:]


def visible(text: str) -> str:
    """Composed, on one line, and without characters that do not show. What it gives, it leaves as it is.

    Line breaks become the two characters `\\n`, with the indentation after them; control, format (zero-width, direction, tags),
    private and unassigned characters and lone surrogates go, and what is too much of accents; other spaces become one space.

    >>> visible("two\\nlines,\\u00a0one\\u200b\\u202e word")
    'two\\\\nlines, one word'
    """
    text = text.replace("\r\n", "\n")
    for _ in range(4):  # composing may bring together what is then looked at anew
        shown = _shown(text)
        if shown == text:
            break
        text = shown
    return text


_MAX_MARKS = 4
"""Accents that one letter may bear; no language needs more, and a tower of them hides the lines around."""
_LINE_BREAKS = frozenset("\n\r\x0b\x0c\x85\u2028\u2029")


def _shown(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        text = unicodedata.normalize("NFC", _kept(text))
    text = text.strip().replace("\n", "\\n")
    return re.sub(r"(?<!\\n)(?<! ) {2,}", " ", text)


def _kept(text: str) -> str:
    kept: list[str] = []
    marks = _MAX_MARKS  # of a line's beginning there is no letter that could bear one
    for character in text:
        if character in _LINE_BREAKS:
            kept.append("\n")
            marks = _MAX_MARKS
            continue
        kind = unicodedata.category(character)
        if kind == "Zs" or character == "\t":
            character = " "
        elif kind[0] == "C" or _is_filler(character):
            continue
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        if marks <= _MAX_MARKS:
            kept.append(character)
    return "".join(kept)


def _is_filler(character: str) -> bool:
    """Variation selectors, blank letters and the like, which can carry hidden text."""
    number = ord(character)
    return (
        0xFE00 <= number <= 0xFE0F
        or 0xE0100 <= number <= 0xE01EF
        or 0x180B <= number <= 0x180F
        or number in (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0)
    )


class RefusalError(ValueError):
    """Why a text may not become a bullet."""


def clean_text(text: object, limit: int = MAX_CHARACTERS) -> str:
    """A bullet's text, safe to store and to render.

    Args:
        text: as it came.
        limit: characters.

    Raises:
        RefusalError: no text, too long, or made to look like other bullets, counters or headers.

    >>> clean_text("  Paginate\\nuntil empty. ")
    'Paginate\\\\nuntil empty.'
    """
    if not isinstance(text, str):
        raise RefusalError(f"a bullet's text is a {type(text).__name__}, not text")
    if len(text) > 50 * limit:
        raise RefusalError(f"a bullet of {len(text):,} characters; the most is {limit:,}")
    # Before, secrets may go over lines; after, what was hidden between their characters is gone.
    shown = redact(visible(redact(text)))
    if not shown:
        raise RefusalError("a bullet without text")
    if len(shown) > limit:
        raise RefusalError(f"a bullet of {len(shown):,} characters; the most is {limit:,}")
    # Forgeries are looked for as a reader would see them: full-width brackets count too.
    plain = unicodedata.normalize("NFKC", shown)
    for what, pattern in _FORGERIES:
        if pattern.search(plain):
            raise RefusalError(f"a bullet that {what}: {shown[:80]!r}")
    return shown


def clean_section(name: object, known: tuple[str, ...]) -> str:
    """A section's heading: one of the known where it is meant (case, `_`, missing `&`), else in capitals.

    Raises:
        RefusalError: no text, or too long.

    >>> clean_section("formulas_and_calculations", ("FORMULAS & CALCULATIONS",))
    'FORMULAS & CALCULATIONS'
    """
    if not isinstance(name, str):
        raise RefusalError(f"a section's name is a {type(name).__name__}, not text")
    shown = name[: 10 * MAX_SECTION_CHARACTERS]
    for _ in range(4):
        shown = visible(shown.upper()).replace("\\n", " ").replace("\\N", " ")
        shown = " ".join(re.sub(r"[][(){}<>|_]|::", " ", shown).split()).strip("#:=*- ")
    if not shown or len(shown) > MAX_SECTION_CHARACTERS:
        raise RefusalError(f"a section named {name[:80]!r}")

    def core(text: str) -> str:
        return re.sub(
            r"[^A-Z0-9]+", "", re.sub(r"\bAND\b", "", text.upper().replace("_", " ").replace("-", " "))
        )

    wanted = core(shown)
    if not wanted:
        return shown
    return next((section for section in known if core(section) == wanted), shown)
