"""AppWorld (2407.18901) as a source of tasks and as an agent's world, through its own environment servers.

AppWorld wants packages that do not go with ours (pydantic 1), so it lives in an environment of its own and is spoken to over
HTTP. A server holds one world; start as many as there are workers:

    pip install appworld && appworld install && appworld download data      # in that environment
    appworld serve environment --port 8000 &  appworld serve environment --port 8001 &
    export APPWORLD_DATA=data APPWORLD_URLS=http://127.0.0.1:8000,http://127.0.0.1:8001
    postgrad playbook learn appworld --chat.base_url URL --chat.model NAME --dry-run

`recipes/playbook/appworld.toml` names both functions below. An agent writes one block of Python a turn and reads what it prints,
until it says that the task is done; then the task's own tests judge. With `APPWORLD_LABELS=1` the report of the tests is
feedback, else only what was printed is.
"""

from __future__ import annotations

import json
import os
import queue
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from postgrad.core.errors import DataError, TaskError
from postgrad.core.types import Message

MAX_TURNS = 40
MAX_OUTPUT_CHARACTERS = 20_000
_TIMEOUT_S = 300.0
_CODE = re.compile(r"```(?:python|py)?\s*\n(.*?)(?:```|$)", re.DOTALL)
_HEAD = re.compile(r"\AAppWorld task (\S+)\n")
_EXPERIMENT = "postgrad"

_TOLD = """You act for {first_name} {last_name} ({email}, {phone_number}) in a world of apps, by writing Python.
It is {datetime} there. `apis` is there already. What can be called is told by
`print(apis.api_docs.show_app_descriptions())`, `print(apis.api_docs.show_api_descriptions(app_name=…))` and
`print(apis.api_docs.show_api_doc(app_name=…, api_name=…))`; passwords by `apis.supervisor.show_account_passwords()`.
Write one block of Python in each turn, between ``` marks; what it prints comes back. Variables stay.
When the task is done call `apis.supervisor.complete_task()`, with `answer=…` if the task asks a question.

Playbook of advice from earlier tasks; cite the id of a line that you use in a comment:
{playbook}"""


def tasks(size: int, seed: int, dataset: str = "train", data: str = "") -> list[dict[str, Any]]:
    """Rows of prompts: AppWorld's tasks of a data set, in its order.

    Args:
        size: at most so many.
        seed: not used; the order is AppWorld's.
        dataset: train, dev, test_normal or test_challenge.
        data: AppWorld's data directory; default: the environment variable APPWORLD_DATA, or `data`.

    Raises:
        DataError: no data there.
    """
    del seed
    root = Path(data or os.environ.get("APPWORLD_DATA", "data"))
    try:
        ids = (root / "datasets" / f"{dataset}.txt").read_text(encoding="utf-8").split()
        rows: list[dict[str, Any]] = []
        for name in ids[:size]:
            specs = json.loads((root / "tasks" / name / "specs.json").read_text(encoding="utf-8"))
            rows.append({"prompt": f"AppWorld task {name}\n{specs['instruction']}"})
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"AppWorld's data set {dataset!r} cannot be read below {root} ({error}). Fetch it with `appworld download data`, and "
            "name its directory in APPWORLD_DATA."
        ) from None
    return rows


def never(prompt: Any, completion: str) -> float:
    """The reward of these tasks outside their agent: there is none."""
    raise TaskError(
        "AppWorld's tasks are judged by their own tests: set agent = 'postgrad.playbook.appworld:work'."
    )


def work(question: str, playbook: str, ask: Callable[[Sequence[Message]], str]) -> dict[str, Any]:
    """One task, from its start to its tests: an agent for `LearnConfig.agent`.

    Args:
        question: of `tasks`.
        playbook: the text of the playbook.
        ask: messages → the model's reply.

    Returns:
        answer, trace, score (1 = all tests of the task pass) and feedback.

    Raises:
        TaskError: no server, or a question that is not of AppWorld.
    """
    head = _HEAD.match(question)
    if head is None:
        raise TaskError(
            f"No task of AppWorld: {question[:80]!r}. Use `postgrad.playbook.appworld:tasks` as the data's path."
        )
    servers = _servers()
    url = servers.get()
    try:
        return _play(url, head[1], question[head.end() :], playbook, ask)
    finally:
        servers.put(url)


def _play(
    url: str, name: str, instruction: str, playbook: str, ask: Callable[[Sequence[Message]], str]
) -> dict[str, Any]:
    world = _post(url, "initialize", task_id=name, experiment_name=_EXPERIMENT)
    told = _TOLD.format(**world["supervisor"], datetime=world["datetime"], playbook=playbook)
    messages: list[Message] = [
        {"role": "system", "content": told},
        {"role": "user", "content": f"Task: {instruction}"},
    ]
    last = ""
    try:
        for _ in range(MAX_TURNS):
            reply = ask(messages)
            messages.append({"role": "assistant", "content": reply})
            code = _CODE.search(reply)
            if code is None:
                last = "Write a block of Python between ``` marks."
            else:
                last = str(_post(url, "execute", task_id=name, code=code[1]))[:MAX_OUTPUT_CHARACTERS]
            messages.append({"role": "user", "content": f"Output:\n{last}"})
            if code is not None and _post(url, "task_completed", task_id=name):
                break
        verdict = _post(url, "evaluate", task_id=name, suppress_errors=True)
    finally:
        _post(url, "close", task_id=name)
    feedback = f"Last output: {last}"
    if os.environ.get("APPWORLD_LABELS") == "1":
        feedback = (
            f"Tests that failed: {json.dumps(verdict.get('failures', []), default=str)[:4000]}\n{feedback}"
        )
    trace = "\n\n".join(f"{message['role']}: {message['content']}" for message in messages[1:])
    return {"answer": last, "trace": trace, "score": float(bool(verdict["success"])), "feedback": feedback}


@lru_cache(maxsize=1)
def _servers() -> queue.SimpleQueue[str]:
    """Addresses of servers that hold no world now."""
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for url in os.environ.get("APPWORLD_URLS", "http://127.0.0.1:8000").split(","):
        free.put(url.strip().rstrip("/"))
    return free


def _post(url: str, what: str, **fields: Any) -> Any:
    """One call of an environment server; its `output`."""
    request = urllib.request.Request(
        f"{url}/{what}",
        json.dumps(fields).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
            return json.loads(reply.read())["output"]
    except (urllib.error.URLError, TimeoutError, ValueError, KeyError) as error:
        raise TaskError(
            f"AppWorld's server at {url} did not do {what!r}: {error}. Start it with `appworld serve environment --port PORT`, "
            "and name all of them in APPWORLD_URLS, with commas."
        ) from None
