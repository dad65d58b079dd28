"""What of a playbook stands in a prompt: lines that stay as they are, so that a server's prefix cache keeps them.

Bullets stand in the order in which they came, without counters. What changes is said at the end: a new text in a new line with
the same id, a withdrawal in a line of its own. When such left-overs are a tenth of all tokens, or the budget is reached, the
lines are written anew. A view is a function of the playbooks that it has seen, so it can be had again from the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

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
        wasted: lines that were replaced or withdrawn, and withdrawals.
        version: of the playbook that was seen last.
        num_rewrites: how often the lines were written anew.
    """

    lines: tuple[str, ...] = ()
    shown: dict[str, str] | None = None
    wasted: tuple[str, ...] = ()
    version: int = 0
    num_rewrites: int = 0

    @property
    def text(self) -> str:
        """Of the prompt."""
        return "\n".join(self.lines) or EMPTY


def advance(
    view: View, book: Playbook, budget_tokens: int, count: CountTokens, max_waste: float = 0.1
) -> View:
    """The view after a playbook has changed.

    Args:
        view: so far.
        book: as it is now; quarantined bullets are not shown.
        budget_tokens: `count(view.text)` never exceeds it.
        count: tokens of a text.
        max_waste: share of tokens in left-overs at which the lines are written anew.
    """
    shown = dict(view.shown or {})
    trusted = {bullet.id: bullet for bullet in book.bullets.values() if bullet.trust == "trusted"}
    gone = [id for id in shown if id not in trusted]
    news = [bullet for bullet in trusted.values() if shown.get(bullet.id) != line(bullet)]
    news.sort(key=lambda bullet: bullet.changed)
    if not gone and not news:
        return View(view.lines, shown, view.wasted, book.version, view.num_rewrites)
    wasted = [*view.wasted, *(shown[bullet.id] for bullet in news if bullet.id in shown)]
    wasted += [text for id in gone for text in (shown[id], withdrawal(id))]
    lines = (*view.lines, *map(withdrawal, gone), *map(line, news))
    for id in gone:
        del shown[id]
    shown.update((bullet.id, line(bullet)) for bullet in news)
    total = count("\n".join(lines))
    if total <= budget_tokens and sum(map(count, wasted)) <= max_waste * total:
        return View(lines, shown, tuple(wasted), book.version, view.num_rewrites)
    chosen = select(list(trusted.values()), budget_tokens, count)
    return View(
        tuple(map(line, chosen)),
        {bullet.id: line(bullet) for bullet in chosen},
        (),
        book.version,
        view.num_rewrites + 1,
    )


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
    # Tokens of a whole are hardly ever more than those of its parts; where they are, the least of the chosen goes.
    while chosen and count("\n".join(line(bullets[i]) for i in sorted(chosen))) > budget_tokens:
        chosen.pop()
    return [bullets[index] for index in sorted(chosen)]


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
