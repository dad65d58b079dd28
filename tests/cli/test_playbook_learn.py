"""`postgrad playbook learn` and `eval` against a loopback server: whole runs, kills, wrong words."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from benchmarks._student import Student
from tests.engines.chat.server import Answer, ChatServer
from tests.rooms.playbook.small import RULES, operations

from postgrad.cli import main
from postgrad.core.glossary import explain
from postgrad.core.report import AREAS
from postgrad.core.run import Run
from postgrad.playbook.log import PlaybookLog

ROOT = Path(__file__).parents[2]


def script(request: dict[str, Any]) -> str | Answer:
    """The student behind HTTP: the role is told by what the system message asks for."""
    text = "\n".join(message["content"] for message in request["messages"])
    role = (
        "curator"
        if "You keep a playbook" in text
        else "reflector"
        if "You study how" in text
        else "generator"
    )
    reply = getattr(Student(RULES, reveal=1.0), role)(text, random.Random(text))
    return json.dumps(reply)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(script) as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Reports without their figures, which take most of the time."""
    with monkeypatch.context() as patch:
        patch.setattr("postgrad.commands.playbook_learn.rewrite_report", lambda run: run.path / "report.html")
        yield patch


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": p.text, "answer": p.answer} for p in RULES.prompts(60, 1)]
    (tmp_path / "rules.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.py").write_text(
        "def exact(prompt, completion):\n    return float(completion == prompt.answer)\n"
    )
    (tmp_path / "recipe.toml").write_text(
        "num_samples = 8\nepochs = 1\nvalidation_samples = 6\nreflection_rounds = 1\nwindow = 4\n"
        "[data]\nholdout_fraction = 0.3\n"
        '[[data.tasks]]\nname = "rules"\npath = "rules.jsonl"\nreward = "reward.py:exact"\n'
    )
    return tmp_path


def words(server: ChatServer | str, *more: str) -> list[str]:
    url = server if isinstance(server, str) else server.url
    return ["playbook", "learn", "recipe.toml", "--chat.base_url", url, "--chat.model", "m", "--chat.structured", "text",
            "--out", "run", *more]  # fmt: skip


def rows_of(run: Path) -> tuple[Any, ...]:
    """All that must be the same in two runs."""
    with PlaybookLog(run / "playbook.jsonl") as log:
        done = operations(log)
    files = [(run / name).read_text() for name in ("metrics.jsonl", "samples.jsonl", "playbook.md")]
    return done, *files


def test_a_whole_run(
    here: Path, server: ChatServer, capsys: pytest.CaptureFixture[str], quick: pytest.MonkeyPatch
) -> None:
    quick.undo()
    assert main(words(server, "--dry-run")) == 0
    assert "12 held-out answers" in capsys.readouterr().out
    assert not server.requests
    assert not Path("run").exists()
    assert main(words(server)) == 0
    out = capsys.readouterr().out
    assert "report: run/report.html" in out
    assert re.search(r"held-out accuracy: 0\.00 \[0\.00, 0\.\d+\] before -> 0\.\d+ \[", out)
    names = {path.name for path in Path("run").iterdir()}
    assert {"config.json", "run.json", "metrics.jsonl", "samples.jsonl", "report.html", "playbook.md", "playbook.jsonl",
            "inputs.json", "start.json", "calls-generator.jsonl"} <= names  # fmt: skip
    run = Run.open("run")
    assert (run.status, run.info["kind"], run.last_step) == ("finished", "playbook.learn", 8)
    keys = {key for row in run.metrics() for key in row if "/" in key}
    assert not [key for key in keys if not re.search(r"\([^)]+\)\.$", explain(key))]
    assert {key.partition("/")[0] for key in keys} <= AREAS.keys()
    assert Path("run/playbook.md").read_text().startswith("## FORMULAS & CALCULATIONS\n[calc-00001] helpful=")
    assert "counts" in Path("run/playbook.md").read_text()
    first, num_requests = rows_of(Path("run")), len(server.requests)
    page = Path("run/report.html")
    assert "held-out prompts answered rightly" in page.read_text()
    quick.setattr("postgrad.commands.playbook_learn.rewrite_report", lambda run: page)
    assert main(["report", "run"]) == 0  # which writes the room's own report
    assert capsys.readouterr().out.strip() == "run/report.html"

    assert main(words(server)) == 2  # a used directory
    assert "--overwrite" in capsys.readouterr().err
    assert main(["playbook", "learn", "--out", "run", "--resume"]) == 0  # nothing is left to do
    assert len(server.requests) == num_requests
    assert rows_of(Path("run")) == first
    assert main(words(server, "--overwrite")) == 0
    assert rows_of(Path("run"))[0] == first[0]
    assert len(server.requests) == 2 * num_requests

    capsys.readouterr()
    assert main(["playbook", "eval", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompts"] == 6
    assert found["without"]["mean"] == 0.0
    assert found["difference"]["mean"] == found["with_playbook"]["mean"] > 0
    assert found["only_without"] == 0
    assert (
        main(["playbook", "eval", "run/playbook.md", *words(server)[2:-2], "--validation_samples", "0"]) == 0
    )
    text = capsys.readouterr().out
    assert re.search(r"difference +\+0\.\d+ \[", text)
    assert int(text.split()[0]) > 6
    more = ["playbook", "learn", "recipe.toml", *words(server)[3:-1], "more", "--from", "run/playbook.md"]
    assert main(more) == 0
    assert len(Path("more/playbook.md").read_text()) >= len(Path("run/playbook.md").read_text())


def test_kill_9_and_resume(here: Path) -> None:
    """A child is killed at several moments; the same command with --resume ends as an undisturbed run does."""

    def slow(request: dict[str, Any]) -> Answer:
        made = script(request)
        assert isinstance(made, str)
        return Answer(made, latency_s=0.03)

    with ChatServer(slow) as server:
        assert main(words(server)) == 0
        whole = rows_of(Path("run"))
        undisturbed = len(server.requests)
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"}
        for turn, wanted in enumerate((9, 21)):
            server.requests.clear()
            out = f"killed{turn}"
            command = [sys.executable, "-m", "postgrad", *words(server)[:-1], out]
            child = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            deadline = time.monotonic() + 60
            while len(server.requests) < wanted and time.monotonic() < deadline:
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
            with (Path(out) / "metrics.jsonl").open("ab") as file:
                file.write(b'{"step": 99, "learn/to')  # half a line
            assert main(["playbook", "learn", "recipe.toml", *words(server)[3:-1], out, "--resume"]) == 0
            assert rows_of(Path(out)) == whole
            assert undisturbed <= len(server.requests) <= undisturbed + 4  # what was on its way


def test_a_server_that_stops_loses_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answered = 0

    def stops(request: dict[str, Any]) -> str | Answer:
        nonlocal answered
        answered += 1
        if answered == 5:
            return Answer("busy", status=429, headers={"Retry-After": "0"})
        return script(request) if answered <= 20 else Answer("down", status=400)

    with ChatServer(stops) as server:
        assert main(words(server, "--max_failures", "3", "--chat.retries", "1")) == 2
        err = capsys.readouterr().err
        assert "3 samples in a row got no reply; the last: m at http" in err
        assert "Go on with --resume" in err
        assert "Traceback" not in err
        assert Run.open("run").status == "failed"
        answered = -10_000
        assert main(["playbook", "learn", "--out", "run", "--resume"]) == 0
    with ChatServer(script) as server:
        assert main([*words(server, "--max_failures", "3", "--chat.retries", "1"), "--out", "whole"]) == 0
    assert rows_of(Path("run")) == rows_of(Path("whole"))


def test_traces_from_the_command_line(
    here: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": p.text, "messages": [{"role": "assistant", "content": "0"}], "outcome": {"score": 0.0}}
            for p in RULES.prompts(5, 3)]  # fmt: skip
    Path("traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = words(server)[3:-2]
    assert main(["playbook", "learn", *chat, "--traces", "traces.jsonl", "--out", "t"]) == 0
    assert Run.open("t").last_step == 5
    assert main(["playbook", "learn", "--traces", "traces.jsonl", "--out", "t", "--resume"]) == 0
    capsys.readouterr()
    assert main(["playbook", "learn", "--out", "t", "--resume"]) == 2
    assert "give --traces FILE again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (["recipe.toml"], "No language model. Name a server (--chat.base_url"),
        (["--chat.base_url", "http://127.0.0.1:9/v1", "--chat.model", "m"], "Nothing to learn from. Name a task"),
        (["recipe.toml", "--chat.base_url", "http://127.0.0.1:9/v1"], "chat: a server needs base_url and model"),
        (["recipe.toml", "--chat.base_urll", "x"], "Did you mean"),
        (["recipe.toml", "--windo", "4"], "Did you mean"),
        (["recipe.toml", "--chat.model", "m", "--chat.base_url", "nope"], "base_url"),
        (["recipe.toml", "--generator.temprature", "1"], "temperature"),
        (["recipe.toml", "--window", "0"], "window"),
        (["nope.toml"], "nope.toml"),
        (["recipe.toml", "--resume"], "nothing"),
        (["--traces", "nope.jsonl"], "nope.jsonl"),
        (["recipe.toml", "--from", "nope.md", "--chat.model", "m", "--chat.base_url", "http://127.0.0.1:9/v1"], "nope.md"),
        (["recipe.toml", "--prompts.critic", "x"], "prompts are for generator"),
        (["recipe.toml", "--quarantine", "validation", "--mode", "online"], "needs mode = offline"),
    ],
)  # fmt: skip
def test_wrong_words_are_answered(
    given: list[str], answer: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["playbook", "learn", *given, "--out", "nothing"]) == 2
    err = capsys.readouterr().err
    assert answer in err, err
    assert "Traceback" not in err
    assert not Path("nothing").exists()


def test_a_server_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = words("http://127.0.0.1:9/v1", "--chat.retries", "0")
    for mode in ([], ["--mode", "online"]):
        assert main([*given[:-2], *mode, "--chat.retries", "0", "--overwrite"]) == 2
        err = capsys.readouterr().err
        assert "cannot be reached" in err
        assert "0 of 8 samples are done and kept. Go on with --resume." in err
        assert Run.open("run").status == "failed"
    assert main(["playbook", "eval", "run"]) == 2
    assert "Name a run" in capsys.readouterr().err


def test_eval_says_what_is_wrong(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("p.md").write_text("## OTHERS\n[misc-00001] helpful=0 harmful=0 :: x\n")
    for given, answer in (
        (["p.md"], "No prompts to answer"),
        (["p.md", "recipe.toml"], "No language model"),
        (
            ["nope", "recipe.toml", "--chat.model", "m", "--chat.base_url", "http://127.0.0.1:9/v1"],
            "nope cannot be read",
        ),
    ):
        assert main(["playbook", "eval", *given]) == 2
        err = capsys.readouterr().err
        assert answer in err
        assert "Traceback" not in err
