"""The commands of memory: a stream that is killed and goes on, methods side by side, which tokens read a patch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.rooms.memory.small import FACTS, Rows, batch_of, options

from postgrad.core.errors import DataError
from postgrad.core.models import load
from postgrad.core.models.memory.patch import patch_files
from postgrad.memory.data import read_facts, read_questions
from postgrad.memory.learning import Probes, learn
from postgrad.memory.profiling import Profile
from postgrad.memory.sparse import SparseLearner
from postgrad.memory.store import PatchStore


def test_a_stream_that_is_killed_from_the_command_line_resumes_to_the_same_bits(
    copied: Path, tmp_path: Path
) -> None:
    import shutil
    import time

    whole = Path(shutil.copytree(copied, tmp_path / "whole"))
    facts = question_rows(tmp_path / "facts.jsonl", 0, 40)

    def command(model: Path, *more: str) -> list[str]:
        out = ["--out", str(tmp_path / f"run-{model.name}"), "--device", "cpu", "--budget", "16"]
        program = [sys.executable, "-m", "postgrad", "memory", "learn"]
        return [*program, str(model), str(facts), *out, "--evaluate-every", "10", *more]

    subprocess.run(command(whole), check=True, capture_output=True, timeout=120)
    process = subprocess.Popen(command(copied), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(patch_files(copied)) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    reached = len(patch_files(copied))
    assert 4 <= reached < 40, "killed in the middle"
    again = subprocess.run(command(copied), capture_output=True, text=True, timeout=120)
    assert again.returncode != 0
    assert "--resume" in again.stderr
    other = subprocess.run(
        command(copied, "--resume", "--updates", "2"), capture_output=True, text=True, timeout=120
    )
    assert "begun with other options" in other.stderr
    done = subprocess.run(command(copied, "--resume"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [
        [json.loads(line) for line in (tmp_path / f"run-{name}" / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", copied.name)
    ]
    steps = [[row["step"] for row in some] for some in rows]
    assert steps[0] == list(range(41))
    assert steps[1] in (steps[0], [step for step in steps[0] if step != reached]), (
        "killed before its row was written"
    )
    ids = [[entry.patch.changes for entry in PatchStore(folder).entries()] for folder in (whole, copied)]
    for first, second in zip(*ids, strict=True):
        assert all(first[name].new.equal(second[name].new) for name in first)


# -- methods side by side --------------------------------------------------------------------------------------------


def question_rows(path: Path, start: int, count: int) -> Path:
    facts = [
        {"text": f"The code of box {i} is {i % 7}.", "question": f"Code of box {i}?", "answer": str(i % 7)}
        for i in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in facts))
    return path


def test_compare_tries_every_method_goes_on_and_leaves_the_model(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from postgrad.cli import main

    new, old = question_rows(tmp_path / "new.jsonl", 0, 2), question_rows(tmp_path / "old.jsonl", 50, 2)
    before = {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()}
    out = tmp_path / "out"
    command = [
        "memory",
        "compare",
        str(copied),
        str(new),
        "--keep",
        str(old),
        "--out",
        str(out),
        "--updates",
        "1",
    ]
    command += ["--methods", '["sparse", "full"]', "--device", "cpu"]
    assert main(command) == 0
    trials = (out / "trials.jsonl").read_text().splitlines()
    assert [json.loads(line)["method"] for line in trials] == ["sparse"] * 5 + ["full"] * 5
    assert {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()} == before
    assert "learned-and-kept" in (out / "report.html").read_text()

    (out / "trials.jsonl").write_text("\n".join(trials[:8]) + "\n" + trials[8][:20])  # killed while writing
    capsys.readouterr()
    assert main([*command, "--resume"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:2]] == ["9/10", "10/10"]
    again = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    known = [json.loads(line) for line in trials]
    assert [(t["method"], t["learning_rate"], t["learned"]) for t in again] == [
        (t["method"], t["learning_rate"], t["learned"]) for t in known
    ]
    assert main([*command, "--resume", "--seed", "3"]) != 0
    assert "begun with other options" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert len((out / "trials.jsonl").read_text().splitlines()) == 10


def test_fronts_areas_and_levels_equal_a_loop() -> None:
    import itertools
    import random

    from postgrad.memory.compare import area, front, kept_at

    rng = random.Random(0)
    for _ in range(20):
        points = [(rng.randint(0, 10) / 10, rng.randint(0, 10) / 10) for _ in range(8)]
        best = {p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)}
        assert set(front(points)) == best
        cells = itertools.product(range(10), repeat=2)
        covered = sum(any(10 * x > i + 0.5 and 10 * y > j + 0.5 for x, y in points) for i, j in cells)
        assert area(points) == pytest.approx(covered / 100)
        assert kept_at(points, 0.5) == max((y for x, y in points if x >= 0.5), default=None)


def test_documents_are_asked_by_questions_of_their_own(copied: Path, tmp_path: Path) -> None:
    model = load(copied, device="cpu")
    (tmp_path / "doc.txt").write_text("Box 3 lies in the cellar. " * 5)
    asked = read_questions(question_rows(tmp_path / "ask.jsonl", 3, 2))
    found = learn(
        model,
        copied,
        read_facts(tmp_path / "doc.txt"),
        options(updates=1),
        Rows(),
        probes=Probes(ask=tuple(asked)),
    )
    assert 0 <= found["learned/exact"] <= 1
    (tmp_path / "none.jsonl").write_text('{"text": "nothing to ask"}\n')
    with pytest.raises(DataError, match="has no questions"):
        read_questions(tmp_path / "none.jsonl")


# -- which tokens read what ------------------------------------------------------------------------------------------


def test_explain_says_which_tokens_read_the_rows_of_a_patch(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from postgrad.cli import main
    from postgrad.memory.core_set import changed_rows, core_set, readings, share_of_rows

    model = load(copied, device="cpu")
    patch = (
        SparseLearner(model, Profile.load(copied, model), options())
        .learn(batch_of(model), {"texts": FACTS[:1]})
        .patch
    )
    PatchStore(copied).append(patch)
    found = readings(model, FACTS)
    alone = readings(model, FACTS[1:])[0]
    changed = changed_rows(model, patch)
    for name, slots in found[1].slots.items():
        assert slots.equal(alone.slots[name]), "a text reads the same whatever else is read"
        common = set(found[0].slots[name].flatten().tolist()) & set(slots.flatten().tolist())
        assert core_set(found, name).tolist() == sorted(common)
    expected = []
    for token in range(len(found[0].tokens)):
        pairs = [
            (int(slot), float(weight), name)
            for name in found[0].slots
            for slot, weight in zip(found[0].slots[name][token], found[0].weights[name][token], strict=True)
        ]
        hit = sum(weight for slot, weight, name in pairs if slot in set(changed[name].tolist()))
        expected.append(hit / sum(weight for _, weight, _ in pairs))
    assert share_of_rows(found[0], changed) == pytest.approx(expected)
    assert 0 < sum(expected) < len(expected)
    assert main(["memory", "explain", str(copied), "1", "--json", "--device", "cpu"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown[0]["shares"] == pytest.approx(expected)
    assert "".join(shown[0]["tokens"]).startswith(FACTS[0])
