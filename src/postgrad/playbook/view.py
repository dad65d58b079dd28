"""What of a playbook stands in a prompt: lines that stay as they are, so that a server's prefix cache keeps them.

Bullets stand in the order in which they came, without counters. What changes is said at the end: a new text in a new line with
the same id, a withdrawal in a line of its own. When such left-overs are a tenth of all tokens, or the budget is reached, the
lines are written anew, with a tenth of the budget free: so that a full playbook does not change all of its lines with each new
one.
A view is a function of the playbooks that it has seen, so it can be had again from the log.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from postgrad.playbook.book import Bullet, Playbook

CountTokens = Callable[[str], int]
EMPTY = "(The playbook is still empty.)"


def line(bullet: Bullet) -> str:
    """A bullet in a prompt; the beginning of its id says the section.

    >>> line(Bullet("calc-00003", "FORMULAS & CALCULATIONS", "NPV = …", 8, 1))
    '[calc-00003] NPV = …'
    """
    return f"[{bullet.id}] {bullet.text}"


def withdrawal(id: str) -> str:
    """The line that takes a bullet back."""
    return f"[{id}] withdrawn"


def worth(bullet: Bullet) -> tuple[float, int, int]:
    """For choosing what stays: share of good tags with one imagined tag of each kind, then how often used, then the newer."""
    used = bullet.helpful + bullet.harmful
    return (bullet.helpful + 1) / (used + 2), used, bullet.changed


@dataclass(frozen=True)
class View:
    """Lines of a prompt.

    Attributes:
        lines: as rendered, in order.
        shown: id → the line that stands for it now.
        left_out: id → the line that had no room when the lines were written anew last.
        wasted_tokens: of lines that were replaced or withdrawn, and of withdrawals, each counted by itself.
        version: of the playbook that was seen last.
        num_rewrites: how often the lines were written anew.
    """

    lines: tuple[str, ...] = ()
    shown: Mapping[str, str] = field(default_factory=dict[str, str])
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    wasted_tokens: int = 0
    version: int = 0
    num_rewrites: int = 0

    @property
    def text(self) -> str:
        """Of the prompt."""
        return "\n".join(self.lines) or EMPTY


def advance(
    view: View, book: Playbook, budget_tokens: int, count: CountTokens, max_waste: float = 0.1
) -> View:
    """The view after a playbook has changed. Tokens are counted once, of the whole, and of what has become waste.

    Args:
        view: so far.
        book: as it is now; quarantined bullets are not shown.
        budget_tokens: `count(view.text)` never exceeds it, unless no bullet is shown.
        count: tokens of a text.
        max_waste: share of tokens in left-overs at which the lines are written anew, and share of the budget that is then left
            free, if not all bullets fit. Bullets that are new have the first right to room.
    """
    now = {bullet.id: line(bullet) for bullet in book.bullets.values() if bullet.trust == "trusted"}
    gone = [id for id in view.shown if id not in now]
    news = [id for id, text in now.items() if text not in (view.shown.get(id), view.left_out.get(id))]
    left_out = {id: text for id, text in view.left_out.items() if now.get(id) == text}
    if not gone and not news:
        return replace(view, left_out=left_out, version=book.version)
    news.sort(key=lambda id: book.bullets[id].changed)
    lines = (*view.lines, *map(withdrawal, gone), *(now[id] for id in news))
    waste = [view.shown[id] for id in news if id in view.shown]
    waste += [text for id in gone for text in (view.shown[id], withdrawal(id))]
    wasted_tokens = view.wasted_tokens + sum(map(count, waste))
    total = count("\n".join(lines))
    if total <= budget_tokens and wasted_tokens <= max_waste * total:
        shown = {id: text for id, text in view.shown.items() if id in now} | {id: now[id] for id in news}
        return View(lines, shown, left_out, wasted_tokens, book.version, view.num_rewrites)

    def is_new(bullet: Bullet) -> float:
        return bullet.id not in view.shown and bullet.id not in view.left_out

    chosen = trusted = book.trusted
    if count("\n".join(now.values())) > budget_tokens:
        with_room = int(budget_tokens * (1 - max_waste))
        chosen = select(trusted, with_room, count, is_new) or select(trusted, budget_tokens, count, is_new)
    shown = {bullet.id: now[bullet.id] for bullet in chosen}
    left_out = {id: text for id, text in now.items() if id not in shown}
    return View(tuple(shown.values()), shown, left_out, 0, book.version, view.num_rewrites + 1)


def select(
    bullets: Sequence[Bullet],
    budget_tokens: int,
    count: CountTokens,
    relevance: Callable[[Bullet], float] | None = None,
) -> list[Bullet]:
    """The best bullets whose lines fit, in the order given: by relevance where there is one, then by `worth`.

    `count("\\n".join(lines))` of what is returned is within the budget, exactly.
    """
    if count("\n".join(map(line, bullets))) <= budget_tokens:
        return list(bullets)
    ranked = sorted(
        range(len(bullets)),
        key=lambda i: (
            -relevance(bullets[i]) if relevance else 0.0,
            *(-part for part in worth(bullets[i])),
            i,
        ),
    )
    chosen: list[int] = []
    total = 0
    for index in ranked:
        tokens = count(line(bullets[index]) + "\n")
        if total + tokens <= budget_tokens:
            chosen.append(index)
            total += tokens

    def whole(num: int) -> int:
        return count("\n".join(line(bullets[index]) for index in sorted(chosen[:num])))

    # Tokens of a whole are hardly ever more than those of its parts; where they are, the least of the chosen go.
    num = len(chosen)
    if whole(num) > budget_tokens:
        num = max(bisect.bisect_right(range(num), budget_tokens, key=whole) - 1, 0)
    return [bullets[index] for index in sorted(chosen[:num])]


def render(
    book: Playbook,
    budget_tokens: int,
    count: CountTokens,
    *,
    relevance: Callable[[Bullet], float] | None = None,
    quarantined: bool = False,
) -> str:
    """A playbook as the text of a prompt, within a budget.

    Args:
        book: what is rendered.
        budget_tokens: `count` of the result is never above, unless the playbook is empty.
        count: tokens of a text.
        relevance: of a bullet to the query; without, the worth of bullets alone decides what stays.
        quarantined: show bullets in quarantine too.
    """
    bullets: Iterable[Bullet] = book.bullets.values() if quarantined else book.trusted
    return "\n".join(map(line, select(list(bullets), budget_tokens, count, relevance))) or EMPTY
