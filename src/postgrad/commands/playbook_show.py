"""`postgrad playbook show`, `diff`, `rollback`, `approve`, `reject` and `import`: a playbook as people read and govern it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from postgrad.core.errors import ConfigError, DataError
from postgrad.playbook.book import (
    SECTIONS,
    Add,
    Bullet,
    Difference,
    Operation,
    Playbook,
    Retire,
    Rollback,
    SetTrust,
    difference,
    to_row,
)
from postgrad.playbook.clean import RefusalError, clean_section, visible
from postgrad.playbook.combine import combine
from postgrad.playbook.export import record
from postgrad.playbook.log import PlaybookLog
from postgrad.playbook.similarity import normalise
from postgrad.playbook.source import Opened, open_log, open_playbook
from postgrad.playbook.text import parse_text

BY_HAND = "by hand"
"""Source of the deltas that people make here."""


def main(
    path: Path,
    *,
    at: str | None = None,
    section: str | None = None,
    quarantined: bool = False,
    json_output: bool = False,
) -> int:
    """Prints a playbook; see `postgrad playbook show --help`.

    Args:
        path: run's directory, log or text.
        at: version or mark of a log.
        section: only this one; case and punctuation do not matter.
        quarantined: only bullets in quarantine.
        json_output: one JSON object.
    """
    found = open_playbook(path, at)
    bullets = _chosen(found.playbook, section, quarantined)
    _print_problems(found)
    if json_output:
        kept = {bullet.id for bullet in bullets}
        row = record(found.playbook, path=str(found.path), name=found.name)
        row["bullets"] = [one for one in row["bullets"] if one["id"] in kept]
        row["problems"] = list(found.problems)
        print(json.dumps(row, indent=2, ensure_ascii=False))
        return 0
    print(_headline(found, at))
    for name in [*SECTIONS, *dict.fromkeys(b.section for b in bullets if b.section not in SECTIONS)]:
        inside = [bullet for bullet in bullets if bullet.section == name]
        if inside:
            print(f"\n{visible(name)} ({len(inside)})")
            print("\n".join(f"  {_line(bullet)}" for bullet in inside))
    if not bullets:
        print("\nNo bullets." if not (section or quarantined) else "\nNo such bullets.")
    return 0


def diff(first: str, second: str, *, json_output: bool = False) -> int:
    """Prints what is other in the second playbook; each is PATH, PATH@VERSION, or (the second) @VERSION of the first's path."""
    before = _open_version(first, None)
    after = _open_version(second, before.path)
    found = difference(before.playbook, after.playbook)
    if json_output:
        print(
            json.dumps(_difference_row(before.playbook, after.playbook, found), indent=2, ensure_ascii=False)
        )
        return 0
    print(f"{before.path} version {before.playbook.version} → {after.path} version {after.playbook.version}")
    _print_difference(found)
    return 0


def rollback(path: Path, version: str) -> int:
    """Makes bullets and counters again what they were at a version or mark: one more delta, so that it can be undone."""
    with open_log(path) as log:
        number, before = log.version_of(version), log.playbook
        wanted = difference(before, log.at(number))
        if not (wanted.added or wanted.removed or wanted.changed):
            print(f"{log.path} is as it was at version {number} already; nothing was written.")
            return 0
        log.append([Rollback(number)], source=BY_HAND)
        print(f"{log.path} version {log.playbook.version}: rolled back to version {number}")
        _print_difference(difference(before, log.playbook))
        print(f"\nTo undo it: postgrad playbook rollback {path} {before.version}")
    return 0


def approve(path: Path, ids: Sequence[str], *, everything: bool = False) -> int:
    """Lets bullets out of quarantine: those named, or all of them."""
    with open_log(path) as log:
        bullets = _named(log, ids, everything, "approve")
        waiting = [bullet for bullet in bullets if bullet.trust == "quarantined"]
        if waiting:
            log.append([SetTrust(bullet.id, "trusted") for bullet in waiting], source=BY_HAND)
        for bullet in bullets:
            print(
                f"{'approved' if bullet.trust == 'quarantined' else 'was trusted already'}: {_line(bullet, trust=False)}"
            )
    return 0


def reject(path: Path, ids: Sequence[str], *, everything: bool = False, reason: str = "") -> int:
    """Takes bullets out: those named, or all in quarantine."""
    with open_log(path) as log:
        bullets = _named(log, ids, everything, "reject")
        if bullets:
            words = visible(reason) or "rejected by hand"
            log.append([Retire(bullet.id, words) for bullet in bullets], source=BY_HAND)
        for bullet in bullets:
            print(f"rejected: {_line(bullet, trust=False)}")
    return 0


def merge(path: Path, other: Path, *, trust: bool = False, counters: bool = False) -> int:
    """Takes the bullets of another playbook into a log, in quarantine unless they are trusted; copies stay out."""
    theirs = open_playbook(other)
    with open_log(path) as log:
        found = combine(
            log.playbook,
            theirs.playbook,
            source=f"playbook {visible(theirs.name)}",
            trust="trusted" if trust else "quarantined",
            counters=counters,
        )
        for problem in [*theirs.problems, *found.refused]:
            print(f"{other}: {problem}", file=sys.stderr)
        if not found.operations:
            print(f"{log.path} has all of {other} already; nothing was written.")
            return 0
        before = log.playbook
        log.append(found.operations, source=f"playbook {visible(theirs.name)}", refused=found.refused)
        _print_difference(difference(before, log.playbook))
        waiting = any(bullet.trust == "quarantined" for bullet in difference(before, log.playbook).added)
    if waiting:
        print(f"\nThey wait: postgrad playbook approve {path} --all")
    return 0


def import_text(path: Path, text_file: Path, *, quarantine: bool = False) -> int:
    """Takes the bullets of a text in the published format into a log, which is made if it is not there.

    Copies of bullets that are there are left out; a bullet whose id is taken gets a new one. Both are told, and kept in the log.
    Exits with 1 if there was nothing to take.
    """
    if path.is_dir():
        path = open_log(path).path
    elif path.suffix.lower() != ".jsonl":
        raise ConfigError(f"A log is called ….jsonl; received {path}.")
    try:
        parsed = parse_text(text_file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{text_file} is no UTF-8 text: byte {error.start + 1}.") from None
    except OSError as error:
        raise DataError(f"{text_file} cannot be read: {error.strerror or error}.") from None
    with PlaybookLog(path) as log:
        adds, problems = _importable(log.playbook, parsed.adds, quarantine)
        problems = [*parsed.problems, *problems]
        if adds:
            log.append(adds, source=f"file {visible(text_file.name)}", refused=problems)
        for problem in problems:
            print(f"{text_file}: {problem}", file=sys.stderr)
        trust = ", in quarantine" if quarantine and adds else ""
        print(f"{path}: {len(adds)} bullets taken from {text_file}{trust}; {len(problems)} problems")
    return 0 if adds else 1


def _importable(book: Playbook, adds: Sequence[Add], quarantine: bool) -> tuple[list[Operation], list[str]]:
    forms = {normalise(bullet.text): bullet.id for bullet in book.bullets.values()}
    taken = book.bullets.keys() | book.retired.keys()
    found: list[Operation] = []
    problems: list[str] = []
    for add in adds:
        form = normalise(add.text)
        if form in forms:
            problems.append(f"a copy of {forms[form]} is left out: {add.text[:60]!r}")
            continue
        id = add.id
        if id is not None and id in taken:
            problems.append(f"the id {id} is taken; it gets a new one")
            id = None
        forms[form] = id or "a bullet before it"
        trust = "quarantined" if quarantine else "trusted"
        found.append(Add(add.section, add.text, id, add.helpful, add.harmful, trust))
    # Those with ids first: a new id must not take one that comes later.
    return sorted(found, key=lambda add: isinstance(add, Add) and add.id is None), problems


# -- words ---------------------------------------------------------------------------------------------------------


def _chosen(book: Playbook, section: str | None, quarantined: bool) -> list[Bullet]:
    bullets = [bullet for bullet in book.bullets.values() if not quarantined or bullet.trust == "quarantined"]
    if section is None:
        return bullets
    names = tuple(dict.fromkeys(bullet.section for bullet in book.bullets.values()))
    try:
        wanted = clean_section(section, names)
    except RefusalError as refusal:
        raise ConfigError(f"--section: {refusal}.") from None
    if wanted not in names:
        raise ConfigError(
            f"No section {section!r} in this playbook. Its sections: {', '.join(names) or 'none'}."
        )
    return [bullet for bullet in bullets if bullet.section == wanted]


def _headline(found: Opened, at: str | None) -> str:
    book = found.playbook
    waiting = len(book) - len(book.trusted)
    parts = [f"{found.name}: {len(book)} {'bullet' if len(book) == 1 else 'bullets'}"]
    if waiting:
        parts.append(f"{waiting} in quarantine")
    if found.log is not None:
        total = len(found.log.deltas)
        parts.append(
            f"version {book.version}" + (f" of {total}" if at is not None and book.version != total else "")
        )
        parts += [f"{visible(name)} = version {version}" for name, (version, _) in book.marks.items()]
    return ", ".join(parts)


def _line(bullet: Bullet, *, trust: bool = True) -> str:
    mark = " (quarantined)" if trust and bullet.trust == "quarantined" else ""
    return f"[{bullet.id}] +{bullet.helpful} −{bullet.harmful}{mark}  {visible(bullet.text)}"


def _print_problems(found: Opened) -> None:
    for problem in found.problems:
        print(f"{found.path}: {problem}", file=sys.stderr)


def _print_difference(found: Difference) -> None:
    for bullet in found.removed:
        print(f"- {_line(bullet)}")
    for bullet in found.added:
        print(f"+ {_line(bullet)}")
    for before, after in found.changed:
        if (before.text, before.section, before.trust) == (after.text, after.section, after.trust):
            print(f"~ [{after.id}] +{before.helpful} −{before.harmful} → +{after.helpful} −{after.harmful}")
        else:
            print(f"~ {_line(before)}\n→ {_line(after)}")
    counts = (len(found.added), len(found.removed), len(found.changed))
    print("{} added, {} removed, {} changed".format(*counts))


def _difference_row(before: Playbook, after: Playbook, found: Difference) -> dict[str, Any]:
    return {
        "from": before.version,
        "to": after.version,
        "added": [to_row(bullet) for bullet in found.added],
        "removed": [to_row(bullet) for bullet in found.removed],
        "changed": [{"before": to_row(old), "after": to_row(new)} for old, new in found.changed],
    }


def _open_version(text: str, default: Path | None) -> Opened:
    """PATH, PATH@VERSION, or @VERSION of a path named before."""
    if Path(text).expanduser().exists():
        return open_playbook(text)
    path, at, version = text.rpartition("@")
    if at and version:
        if path:
            return open_playbook(path, version)
        if default is not None:
            return open_playbook(default, version)
    return open_playbook(text)


def _named(log: PlaybookLog, ids: Sequence[str], everything: bool, verb: str) -> list[Bullet]:
    """Bullets by id; by default none are meant, with `everything` all in quarantine."""
    book = log.playbook
    if everything:
        if ids:
            raise ConfigError(f"Name the bullets to {verb}, or give --all; not both.")
        bullets = [bullet for bullet in book.bullets.values() if bullet.trust == "quarantined"]
        if not bullets:
            print(f"{log.path}: nothing is in quarantine.")
        return bullets
    if not ids:
        raise ConfigError(
            f"Name the bullets to {verb} by their ids, or give --all for all that are in quarantine."
        )
    missing = [id for id in ids if id not in book.bullets]
    if missing:
        gone = book.resolve(missing[0])
        hint = (
            f" It was merged into {gone}."
            if gone
            else " It was retired."
            if missing[0] in book.retired
            else ""
        )
        raise DataError(f"{log.path} has no bullet {missing[0]!r}.{hint} Nothing was written.")
    return [book.bullets[id] for id in dict.fromkeys(ids)]
