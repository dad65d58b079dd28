"""The AppWorld adapter against a server that answers as AppWorld's does."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from postgrad.core.errors import DataError, TaskError
from postgrad.playbook import appworld


class World(ThreadingHTTPServer):
    """One task: it is done when the code calls complete_task, and right if the code says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.done = self.right = False
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, what: str, fields: dict[str, Any]) -> Any:
        self.calls.append((what, fields))
        match what:
            case "initialize":
                person = {"first_name": "Ann", "last_name": "Bo", "email": "a@b.c", "phone_number": "1"}
                return {
                    "task_id": fields["task_id"],
                    "instruction": "…",
                    "supervisor": person,
                    "datetime": "2023-05-18",
                }
            case "execute":
                self.done = "complete_task" in fields["code"]
                self.right = "paginate" in fields["code"]
                return "Execution successful."
            case "task_completed":
                return self.done
            case "evaluate":
                return {
                    "success": self.right,
                    "num_tests": 1,
                    "failures": [] if self.right else [{"requirement": "all pages"}],
                }
            case _:
                return None


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, World)
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"output": self.server.answer(self.path.strip("/"), fields)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    server = World()
    monkeypatch.setenv("APPWORLD_URLS", server.url)
    appworld._servers.cache_clear()
    yield server
    server.shutdown()
    server.server_close()
    appworld._servers.cache_clear()


QUESTION = "AppWorld task 82e2fac_1\nHow many songs are there?"


def test_a_task_goes_from_start_to_its_tests(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = iter(
        [
            "I look first.",
            "```python\nprint(1)\n```",
            "```python\n# paginate\napis.supervisor.complete_task()\n```",
        ]
    )
    seen: list[Any] = []

    def ask(messages: Any) -> str:
        seen.append(list(messages))
        return next(replies)

    found = appworld.work(QUESTION, "[err-00001] Read all pages.", ask)
    assert found["score"] == 1.0
    assert "Output:\nExecution successful." in found["trace"]
    assert "[err-00001] Read all pages." in seen[0][0]["content"]
    assert seen[0][1]["content"] == "Task: How many songs are there?"
    assert "block of Python" in seen[1][-1]["content"]  # no code: told so, and nothing was executed
    assert [what for what, _ in world.calls] == [
        "initialize", "execute", "task_completed", "execute", "task_completed", "evaluate", "close",
    ]  # fmt: skip


def test_reports_of_tests_are_feedback_only_with_labels(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(messages: Any) -> str:
        return "```\napis.supervisor.complete_task()\n```"

    without = appworld.work(QUESTION, "", ask)
    assert without["score"] == 0.0
    assert "all pages" not in without["feedback"]
    monkeypatch.setenv("APPWORLD_LABELS", "1")
    assert "all pages" in appworld.work(QUESTION, "", ask)["feedback"]


def test_the_world_is_closed_and_free_again_when_the_model_fails(world: World) -> None:
    def ask(messages: Any) -> str:
        raise RuntimeError("gone")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="gone"):
            appworld.work(QUESTION, "", ask)
    assert [what for what, _ in world.calls] == ["initialize", "close"] * 2


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="appworld download data"):
        appworld.tasks(5, 0, data=str(tmp_path))
    with pytest.raises(TaskError, match="appworld:tasks"):
        appworld.work("2 + 2", "", lambda messages: "")
    monkeypatch.setenv("APPWORLD_URLS", "http://127.0.0.1:9")
    appworld._servers.cache_clear()
    with pytest.raises(TaskError, match="appworld serve environment"):
        appworld.work(QUESTION, "", lambda messages: "")
    appworld._servers.cache_clear()


def test_tasks_are_those_of_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/train.txt").write_text("a_1\nb_2\n")
    for name in ("a_1", "b_2"):
        (tmp_path / "tasks" / name).mkdir(parents=True)
        (tmp_path / "tasks" / name / "specs.json").write_text(json.dumps({"instruction": f"Do {name}."}))
    assert appworld.tasks(1, 0, data=str(tmp_path)) == [{"prompt": "AppWorld task a_1\nDo a_1."}]
