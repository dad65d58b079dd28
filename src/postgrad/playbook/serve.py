"""A playbook for agents that speak the Model Context Protocol: tools to search, add and tag, and the text as resource and prompt.

Start at `serve`. What agents add is cleaned, compared with what is there, and waits in quarantine until a person approves it,
unless they are trusted. Each change is one delta with the source "mcp". Between two calls the log is free: other servers,
`approve` and `rollback` may write, and what they wrote is seen at the next call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from postgrad.core.errors import ConfigError, PostgradError, RunError
from postgrad.engines.chat.tokens import estimate_tokens
from postgrad.playbook.book import SECTIONS, Add, Bullet, Operation, Tag
from postgrad.playbook.clean import RefusalError, clean_section, clean_text
from postgrad.playbook.dedup import Index
from postgrad.playbook.embed import Embedder
from postgrad.playbook.log import PlaybookLog
from postgrad.playbook.similarity import normalise
from postgrad.playbook.source import log_path, open_log
from postgrad.playbook.view import render
from postgrad.tasks.extras import require

MAX_QUERY_CHARACTERS = 4000
MAX_RESULTS = 50
MAX_WAITING = 500
"""Bullets in quarantine, above which nothing more is taken."""
MAX_BULLETS = 10_000
SOURCE = "mcp"
INSTRUCTIONS = (
    "A playbook: short advice from earlier tasks of this kind. Before a task, search it. When a line helped or misled you, tag "
    "it by its id. When you have learned something that would help with other tasks, add it: one line, general, no secrets."
)
_WAIT_S = 5.0
_FLOOR = 1e-6
_Result = TypeVar("_Result")


class Served:
    """A playbook that several callers use at once.

    Args:
        path: of the log; a file that is not there is made with the first addition.
        trust: additions are shown at once, not after approval.
        budget_tokens: of the text.
        count: tokens of a text; default: estimated.
        embedder: for search and for likeness; default: hashed n-grams.

    Raises:
        ConfigError: a budget below 1.
        DataError: no log there.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        trust: bool = False,
        budget_tokens: int = 8000,
        count: Callable[[str], int] = estimate_tokens,
        embedder: Embedder | None = None,
    ) -> None:
        if budget_tokens < 1:
            raise ConfigError(f"A budget is at least 1 token; received {budget_tokens}.")
        place = Path(path).expanduser()
        new = not place.exists() and place.suffix.lower() == ".jsonl"
        self.path = place if new else log_path(place)
        self.log = PlaybookLog(place) if new else open_log(place)
        self.trust, self.budget_tokens, self.count = trust, budget_tokens, count
        self._index, self._texts = Index(embedder), dict[str, str]()
        self._stamp = self._read_stamp()
        self._lock = threading.RLock()
        self._sync_index()

    def search(self, query: str, k: int = 8) -> list[dict[str, Any]]:
        """The trusted bullets nearest to a query, nearest first."""
        with self._lock:
            self._refresh()
            ranked = self._index.near(query, _FLOOR, len(self._index)) if len(self._index) else []
            bullets = self.log.playbook.bullets
            found = [(bullets[id], cosine) for id, cosine in ranked if bullets[id].trust == "trusted"]
            return [{**_row(bullet), "cosine": round(cosine, 3)} for bullet, cosine in found[:k]]

    def add(self, section: str, text: str) -> dict[str, Any]:
        """A new bullet.

        Raises:
            RefusalError: it may not be one, or is there already; nothing is written.
            RunError: the log cannot be written, or another process writes to it for long.
        """
        line = clean_text(text)

        def write() -> dict[str, Any]:
            book = self.log.playbook
            heading = clean_section(
                section, (*SECTIONS, *dict.fromkeys(b.section for b in book.bullets.values()))
            )
            self._refuse(line)
            alike = [found.first for found in self._index.propose(line, k=3) if found.kind == "candidate"]
            self.log.append(
                [Add(heading, line, trust="trusted" if self.trust else "quarantined")], source=SOURCE
            )
            added = list(self.log.playbook.bullets.values())[-1]
            self._sync_index()
            return {**_row(added), "trust": added.trust, "similar": [_row(book.bullets[id]) for id in alike]}

        return self._written(write)

    def tag(self, id: str, verdict: Literal["helpful", "harmful"]) -> dict[str, Any]:
        """Counts that a bullet helped or harmed; of a merged one, that which it was merged into.

        Raises:
            RefusalError: there is no such bullet.
        """

        def write() -> dict[str, Any]:
            book = self.log.playbook
            found = book.resolve(id)
            if found is None or book.bullets[found].trust != "trusted":
                why = "is in quarantine" if found else "was retired" if id in book.retired else "is not there"
                raise RefusalError(f"the bullet {id[:60]!r} {why}")
            operation: Operation = Tag(found, **{verdict: 1})
            self.log.append([operation], source=SOURCE)
            bullet = self.log.playbook.bullets[found]
            return {**_row(bullet), "helpful": bullet.helpful, "harmful": bullet.harmful}

        return self._written(write)

    def text(self, query: str = "") -> str:
        """The playbook within the budget; where not all fits, what is nearest to a query stays."""
        with self._lock:
            self._refresh()
            near = (
                dict(self._index.near(query, _FLOOR, len(self._index))) if query and len(self._index) else {}
            )
            relevance = (lambda bullet: near.get(bullet.id, 0.0)) if near else None
            return render(self.log.playbook, self.budget_tokens, self.count, relevance=relevance)

    # -- within

    def _refuse(self, line: str) -> None:
        book = self.log.playbook
        copy = self._index.exact(line)
        if copy is not None:
            raise RefusalError(f"it is there already, as {copy}")
        form = normalise(line)
        for gone in book.retired.values():
            if gone.into is None and gone.reason != "rolled back" and normalise(gone.bullet.text) == form:
                raise RefusalError(f"it was there and is retired: {gone.reason or 'no reason was given'}")
        if not self.trust and len(book) - len(book.trusted) >= MAX_WAITING:
            raise RefusalError(f"{MAX_WAITING} additions wait for approval already")
        if len(book) >= MAX_BULLETS:
            raise RefusalError(f"the playbook has {MAX_BULLETS:,} bullets, which is the most")

    def _written(self, write: Callable[[], _Result]) -> _Result:
        """One change: with what others have written in view, and after those who write just now."""
        deadline = time.monotonic() + _WAIT_S
        with self._lock:
            while True:
                try:
                    self._refresh()
                    result = write()
                    self._stamp = self._read_stamp()
                    return result
                except RunError as error:
                    if "another process" not in str(error) or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
                finally:
                    self.log.close()

    def _refresh(self) -> None:
        """Reads what others have written since."""
        stamp = self._read_stamp()
        if stamp != self._stamp:
            self.log = PlaybookLog(self.path)
            self._sync_index()
            self._stamp = stamp

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ino

    def _sync_index(self) -> None:
        texts = {id: bullet.text for id, bullet in self.log.playbook.bullets.items()}
        for id in [id for id, text in self._texts.items() if texts.get(id) != text]:
            self._index.remove(id)
            del self._texts[id]
        news = {id: text for id, text in texts.items() if id not in self._texts}
        self._index.add_all(news.items())
        self._texts.update(news)


def _row(bullet: Bullet) -> dict[str, Any]:
    return {"id": bullet.id, "section": bullet.section, "text": bullet.text}


# -- the protocol --------------------------------------------------------------------------------------------------


def build(served: Served, name: str = "playbook") -> Any:
    """An `MCPServer` with the tools `search`, `add` and `tag`, the resource `playbook://current` and the prompt `playbook`.

    A call that is refused returns the reason as a tool's error.

    Raises:
        MissingExtraError: the package mcp is not installed.
    """

    def part(module: str) -> Any:
        return require(module, package="mcp", extra="mcp", purpose="Serving a playbook")

    server = part("mcp.server.mcpserver").MCPServer
    tool_error: type[Exception] = part("mcp.server.mcpserver.exceptions").ToolError
    read_only = part("mcp_types").ToolAnnotations(read_only_hint=True)
    made = server(name, instructions=INSTRUCTIONS, log_level="WARNING")
    waits = "" if served.trust else " It is shown to nobody before a person approves it."

    def answered(call: Callable[[], _Result]) -> _Result:
        try:
            return call()
        except RefusalError as refusal:
            raise tool_error(f"refused: {refusal}") from None
        except PostgradError as error:
            raise tool_error(str(error)) from None

    def search(
        query: Annotated[
            str, Field(max_length=MAX_QUERY_CHARACTERS, description="the task, or what it is about")
        ],
        k: Annotated[int, Field(ge=1, le=MAX_RESULTS, description="how many lines")] = 8,
    ) -> dict[str, Any]:
        return {"bullets": answered(lambda: served.search(query, k))}

    def add(
        section: Annotated[
            str, Field(max_length=200, description="one of: " + "; ".join(SECTIONS) + "; or a new one")
        ],
        text: Annotated[
            str,
            Field(
                max_length=MAX_QUERY_CHARACTERS, description="one line of advice, at most 2,000 characters"
            ),
        ],
    ) -> dict[str, Any]:
        return answered(lambda: served.add(section, text))

    def tag(
        id: Annotated[str, Field(max_length=60, description="such as calc-00003")],
        verdict: Annotated[Literal["helpful", "harmful"], Field(description="what the line did")],
    ) -> dict[str, Any]:
        return answered(lambda: served.tag(id, verdict))

    def playbook(
        task: Annotated[str, Field(max_length=MAX_QUERY_CHARACTERS, description="the task")] = "",
    ) -> str:
        return (
            f"Advice from earlier tasks; follow it where it applies:\n{answered(lambda: served.text(task))}"
        )

    def current() -> str:
        return answered(served.text)

    made.tool(description="Lines of the playbook that are about something.", annotations=read_only)(search)
    made.tool(description=f"Add a line of advice to the playbook.{waits}")(add)
    made.tool(description="Say that a line of the playbook helped or misled you.")(tag)
    made.prompt(description="The playbook, within its budget of tokens.")(playbook)
    made.resource(
        "playbook://current", description="The playbook, within its budget of tokens.", mime_type="text/plain"
    )(current)
    return made


def serve(
    path: Path | str,
    *,
    trust: bool = False,
    budget_tokens: int = 8000,
    http: int | None = None,
    embedder: Embedder | None = None,
) -> None:
    """Serves a log until the client goes: over standard input and output, or on 127.0.0.1 under /mcp of a port.

    Raises:
        MissingExtraError: the package mcp is not installed.
        DataError: no log there.
    """
    if http is not None and not 0 < http < 65536:
        raise ConfigError(f"A port is between 1 and 65535; received {http}.")
    served = Served(path, trust=trust, budget_tokens=budget_tokens, embedder=embedder)
    server = build(served, served.path.stem)
    if http is None:
        server.run("stdio")
    else:
        server.run("streamable-http", host="127.0.0.1", port=http, max_request_body_size=2**20)
