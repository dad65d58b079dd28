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

_FORGED_ID = re.compile(
    r"\[\s*[A-Za-z][A-Za-z0-9_]{0,31}-\d{3,}\s*\]\s*(?:helpful\s*=|harmful\s*=|::|\()", re.IGNORECASE
)
_LEADING_ID = re.compile(r"\s*\[\s*[A-Za-z][A-Za-z0-9_]{0,31}-\d{3,}\s*\]", re.IGNORECASE)
_HEADER = re.compile(r"(?:^|\\n)\s*#{1,6}\s")
_COUNTERS = re.compile(r"\b(?:helpful|harmful)\s*=\s*\d+\b.*::", re.IGNORECASE)
_MARKUP = re.compile(
    r"</?\s*(?:playbook|trace|reflection|system|instructions)\b[^>]*>|<\|[^|<>]{1,40}\|>", re.IGNORECASE
)

_VALUE = r"(?P<value>[^\s\"'`,;]{6,})"
_SECRETS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL)),
    ("key", re.compile(r"\b(?:sk|pk|rk)-(?:[A-Za-z0-9]+[-_])*[A-Za-z0-9_-]{16,}")),
    ("key", re.compile(r"\b(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{10,}")),
    ("token", re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}|\bglpat-[A-Za-z0-9_-]{16,}")),
    ("token", re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bxox[abeoprs]-[A-Za-z0-9-]{10,}")),
    ("token", re.compile(r"\bnpm_[A-Za-z0-9]{30,}|\bpypi-[A-Za-z0-9_-]{30,}")),
    ("key", re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}|\bya29\.[A-Za-z0-9_-]{20,}")),
    ("token", re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")),
    ("token", re.compile(r"(?i)\b(?:authorization\s*[:=]\s*)?(?:bearer|basic)\s+(?P<value>[A-Za-z0-9+/_.=-]{16,})")),
    ("password", re.compile(r"(?i)\b[a-z][a-z0-9+.-]{0,30}://[^\s:/@]*:(?P<value>[^\s@/]+)@")),
    (
        "secret",
        re.compile(
            r"(?i)(?<![a-z])(?:api[_-]?key|secret(?:[_-]?key)?|access[_-]?(?:key|token)|auth[_-]?token|refresh[_-]?token"
            r"|client[_-]?secret|passw(?:or)?d|passphrase|pwd)[\"']?\s*(?:[:=]|\bis\b)\s*[\"'`]?" + _VALUE
        ),
    ),
)  # fmt: skip


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
    if "value" not in match.re.groupindex:
        return mark
    if match["value"].startswith("["):  # removed already
        return match[0]
    start, end = match.start("value") - match.start(), match.end("value") - match.start()
    return match[0][:start] + mark + match[0][end:]


def visible(text: str) -> str:
    """Composed, on one line, and without characters that do not show.

    Line breaks become the two characters `\\n`; control, format (zero-width, direction, tags), private and unassigned characters
    and lone surrogates go; other spaces become a space.

    >>> visible("two\\nlines,\\u00a0one\\u200b\\u202e word")
    'two\\\\nlines, one word'
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    kept: list[str] = []
    for character in text:
        if character in "\n\r\x0b\x0c\x85\u2028\u2029":
            kept.append("\\n")
            continue
        kind = unicodedata.category(character)
        if kind == "Zs" or character == "\t":
            kept.append(" ")
        elif kind[0] != "C" and not _is_filler(character):
            kept.append(character)
    return re.sub(r" {2,}", " ", "".join(kept)).strip().removesuffix("\\n").strip()


def _is_filler(character: str) -> bool:
    """Variation selectors, blank letters and the like, which can carry hidden text."""
    number = ord(character)
    return (
        0xFE00 <= number <= 0xFE0F
        or 0xE0100 <= number <= 0xE01EF
        or number in (0x115F, 0x1160, 0x3164, 0xFFA0, 0x034F, 0x2800)
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
    shown = visible(redact(text))
    if not shown:
        raise RefusalError("a bullet without text")
    if len(shown) > limit:
        raise RefusalError(f"a bullet of {len(shown):,} characters; the most is {limit:,}")
    # Forgeries are looked for as a reader would see them: full-width brackets count too.
    plain = unicodedata.normalize("NFKC", shown)
    for pattern, what in (
        (_LEADING_ID, "begins with the id of a bullet"),
        (_FORGED_ID, "holds another bullet"),
        (_COUNTERS, "holds counters"),
        (_HEADER, "holds a header"),
        (_MARKUP, "holds markup of prompts"),
    ):
        if pattern.search(plain) if pattern is not _LEADING_ID else pattern.match(plain):
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
    shown = visible(name[: 10 * MAX_SECTION_CHARACTERS]).replace("\\n", " ").strip("#[]:= ").upper()
    if not shown or len(shown) > MAX_SECTION_CHARACTERS:
        raise RefusalError(f"a section named {name[:80]!r}")

    def core(text: str) -> str:
        return re.sub(
            r"[^A-Z0-9]+", "", re.sub(r"\bAND\b", "", text.upper().replace("_", " ").replace("-", " "))
        )

    wanted = core(shown)
    return next((section for section in known if core(section) == wanted), shown.replace("_", " "))
