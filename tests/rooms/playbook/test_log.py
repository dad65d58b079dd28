"""The log on disk: what was acknowledged stays, what is damaged is told."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from postgrad.core.errors import DataError, RunError
from postgrad.core.runfiles import to_json_line
from postgrad.playbook.book import Add, Delta, Mark, Merge, Playbook, Retire, Rollback, Tag, Update
from postgrad.playbook.log import PlaybookLog, digest, parse, to_line


def open_log(path: Path) -> PlaybookLog:
    return PlaybookLog(path, clock=lambda: "2026-01-01T00:00:00Z")


def write_three(path: Path) -> bytes:
    with open_log(path) as log:
        log.append([Add("OTHERS", "Be brief.")], source="chain_sum/0", sample={"index": 0, "correct": True})
        log.append([Add("FORMULAS & CALCULATIONS", "NPV = Σ …"), Tag("misc-00001", 1)], refused=["a reason"])
        log.append([Tag("calc-00002", 1), Mark("best", 0.5)])
    return path.read_bytes()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "playbook.jsonl"


def test_what_is_read_is_what_was_live(path):
    with open_log(path) as log:
        log.append([Add("OTHERS", "a"), Add("OTHERS", "b"), Add("OTHERS", "c")])
        log.append([Merge(("misc-00001", "misc-00002"), "ab"), Retire("misc-00003", "old")])
        log.append([Rollback(0)])
        assert len(log.playbook) == 0
        log.append([Add("OTHERS", "d")])  # an empty playbook still knows which ids were there
        log.append([Rollback(1), Update("misc-00001", "A"), Mark("best", 1)])
        log.append([Add("OTHERS", "e", "sai-00041", helpful=2), Tag("sai-00041", 0, 1)])
        live, head, deltas = log.playbook, log.head, log.deltas
    again = open_log(path)
    assert (again.playbook, again.head, again.deltas) == (live, head, deltas)
    assert list(live.bullets) == ["misc-00001", "misc-00002", "misc-00003", "sai-00041"]
    assert [len(again.at(n)) for n in range(7)] == [0, 3, 1, 0, 1, 3, 4]
    assert [again.at("best"), again.at("-1"), again.at(-6)] == [again.at(5), again.at(5), Playbook()]
    for wrong in (7, -7, "8", "worst"):
        with pytest.raises(DataError, match="version"):
            again.at(wrong)


def test_cut_at_every_byte(path):
    data = write_three(path)
    deltas, _ = parse(data, path)
    ends = [index + 1 for index, byte in enumerate(data) if byte == 10]
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        with open_log(path) as log:
            whole = sum(end <= size for end in ends)
            assert log.deltas == deltas[:whole]
            if size % 40 == 0 or size in ends or size + 1 in ends:
                log.append([Add("OTHERS", "after")])
                assert open_log(path).playbook == log.playbook
                assert path.read_bytes().startswith(data[: ([0, *ends])[whole]])


def test_samples_are_kept_as_json_would(path):
    with open_log(path) as log:
        log.append(
            [],
            source="\ud83d\ude00 \udc80",
            sample={1: (1, 2), "text": "\ud800", "nested": {"x": None}},
            refused=["\udfff"],
        )
        assert log.deltas[0].sample == {"1": [1, 2], "text": "\ud800", "nested": {"x": None}}
        assert log.deltas == open_log(path).deltas
        log.append([], source="next")
    assert open_log(path).deltas[0].refused == ("\udfff",)


@pytest.mark.parametrize(
    ("operations", "further"),
    [
        ([Tag("misc-00009", 1)], {}),
        ([Add("OTHERS", "two\nlines")], {}),
        ([Add("OTHERS", "\udc80")], {}),
        ([Add("OTHERS", "x", "not an id")], {}),
        ([Tag("misc-00001", True)], {}),
        ([Mark("3")], {}),
        ([Rollback(99)], {}),
        ([], {"sample": {"x": float("nan")}}),
        ([], {"sample": {"x": object()}}),
        ([], {"sample": [1]}),
        ([], {"source": 3}),
        ([], {"refused": [3]}),
    ],
)
def test_what_cannot_be_read_again_is_not_written(path, operations, further):
    data = write_three(path)
    with open_log(path) as log:
        before = log.playbook
        with pytest.raises(DataError):
            log.append(operations, **further)
        assert log.playbook is before
        assert path.read_bytes() == data
        log.append([Tag("misc-00001", 1)])
    assert open_log(path).playbook == log.playbook


CHILD = """
import sys
from postgrad.playbook.book import Add
from postgrad.playbook.log import PlaybookLog
log = PlaybookLog(sys.argv[1])
while True:
    log.append([Add("OTHERS", "advice")])
    print(len(log.deltas), flush=True)
"""


def test_killed_writer_loses_nothing_it_acknowledged(path):
    for round in range(2):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        acknowledged = 0
        for _ in range(40 + round):
            acknowledged = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(text) for text in child.stdout.read().splitlines() if text)])
        child.wait()
        child.stdout.close()
        log = open_log(path)
        assert len(log.deltas) in (acknowledged, acknowledged + 1)
        assert len(log.playbook) == len(log.deltas)


def test_one_writer_at_a_time(path):
    write_three(path)
    first, second, reader = open_log(path), open_log(path), open_log(path)
    first.append([Tag("misc-00001", 1)])
    with pytest.raises(RunError, match=r"being written by another process"):
        second.append([Tag("misc-00001", 1)])
    assert len(open_log(path).deltas) == 4  # anybody may read
    first.close()
    with pytest.raises(RunError, match="changed by another process; open it again"):
        second.append([Tag("misc-00001", 1)])
    assert len(reader.deltas) == 3
    first.append([Tag("misc-00001", 1)])  # it can go on after `close`
    first.close()
    assert open_log(path).playbook.bullets["misc-00001"].helpful == 3


def test_a_file_that_changes_under_an_open_log_is_not_written_to(path):
    data = write_three(path)
    for change in ("longer", "shorter", "replaced", "removed"):
        path.write_bytes(data)
        with open_log(path) as log:
            log.append([Tag("misc-00001", 1)])
            now = path.read_bytes()
            if change == "longer":
                path.write_bytes(now + b"x")
            elif change == "shorter":
                path.write_bytes(data)
            elif change == "replaced":
                path.rename(path.with_name("old"))
                path.write_bytes(now)
            else:
                path.unlink()
            with pytest.raises(RunError):
                log.append([Tag("misc-00001", 1)])
            assert len(log.deltas) == 4
            assert not path.exists() or path.read_bytes() in (now, now + b"x", data)


def damaged(data: bytes) -> dict[str, tuple[bytes, str]]:
    lines = data.splitlines(keepends=True)
    first = json.loads(lines[0])
    return {
        "changed": (data.replace(b"Be brief", b"Be wordy"), "(?s)line 2 does not follow.*head -n 1"),
        "missing": (lines[0] + lines[2], "line 2 does not follow"),
        "first missing": (lines[1] + lines[2], "line 1: format None"),
        "swapped": (lines[0] + lines[2] + lines[1], "line 2 does not follow"),
        "foreign": (lines[0] + b'{"question": "1+1?"}\n' + lines[1], "line 2: no delta of a playbook"),
        "prose": (b"some text\n", "line 1: no delta"),
        "blank line": (lines[0] + b"\n" + lines[1], "line 2: no delta"),
        "a number": (b"3\n", "line 1: no delta"),
        "two in a line": (lines[0][:-1] + lines[1], "line 1: no delta"),
        "not UTF-8": (lines[0] + b'{"parent": "\xff"}\n', "line 2: no delta.*utf-8"),
        "CRLF": (data.replace(b"\n", b"\r\n"), "line 1 ends with CRLF"),
        "BOM": (b"\xef\xbb\xbf" + data, "line 1: no delta"),
        "UTF-16": (data.decode().encode("utf-16"), "line 1: no delta"),
        "zeros": (lines[0] + b"\0" * 100 + b"\n", "line 2: no delta"),
        "other format": (to_json_line({**first, "format": 2}).encode(), "line 1: format 2 of a playbook; this version reads 1"),
        "wrong types": (to_json_line({**first, "operations": {}}).encode(), "line 1.*wrong types"),
        "refused is text": (to_json_line({**first, "refused": "abc"}).encode(), "line 1.*wrong types"),
        "sample is a list": (to_json_line({**first, "sample": []}).encode(), "line 1.*wrong types"),
        "operation is a list": (to_json_line({**first, "operations": [[]]}).encode(), "line 1: No operation"),
        "nan": (lines[0].replace(b'"index": 0', b'"index": NaN'), "line 1: no delta.*NaN"),
        "deep": (lines[0].replace(b'"index": 0', b'"index": ' + b"[" * 100_000 + b"]" * 100_000), "line 1: no delta"),
        "huge number": (lines[0].replace(b'"index": 0', b'"index": ' + b"9" * 100_000), "line 1: no delta"),
        "impossible": (
            to_json_line({**first, "operations": [{"op": "tag", "id": "calc-00009"}]}).encode(),
            "Delta 1: tag names calc-00009",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", damaged(b"".join(
    to_json_line(to_line(Delta((Add("OTHERS", "Be brief."),), "", {"index": 0}), "", first=not n)).encode() for n in range(3)
)))  # fmt: skip
def test_damage_is_told_with_its_line(path, kind):
    data, message = damaged(write_three(path))[kind]
    path.write_bytes(data)
    if kind == "huge number":
        # Python's limit of digits, or a whole number: read or refused, but never another error.
        try:
            open_log(path)
        except DataError as error:
            assert "line 1" in str(error)  # noqa: PT017
        return
    with pytest.raises(DataError, match=message) as caught:
        open_log(path)
    assert len(str(caught.value)) < 700
    assert path.read_bytes() == data


def test_full_disk_leaves_everything_as_it_was(path, monkeypatch):
    data = write_three(path)
    log = open_log(path)
    before = log.playbook
    write, sync = os.write, os.fsync
    room = 0

    def little(descriptor: int, piece) -> int:
        nonlocal room
        if descriptor < 3 or room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        size = min(len(piece), room, 7)
        room -= size
        return write(descriptor, piece[:size])

    monkeypatch.setattr(os, "write", little)
    for size in (0, 1, 20, 90):
        room = size
        with pytest.raises(RunError, match="No space left"):
            log.append([Tag("misc-00001", 1)])
        assert path.read_bytes() == data
        assert log.playbook is before
    room = 10_000  # short writes are no fault
    log.append([Tag("misc-00001", 1)])
    monkeypatch.setattr(os, "write", write)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    now = path.read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match="Input/output error"):
        log.append([Tag("misc-00001", 1)])
    assert path.read_bytes() == now

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        log.append([Tag("misc-00001", 1)])
    monkeypatch.setattr(os, "fsync", sync)
    log.append([Tag("misc-00001", 1)])
    log.close()
    assert open_log(path).playbook == log.playbook
    assert log.playbook.bullets["misc-00001"].helpful == 3


def test_files_that_cannot_be(path, tmp_path, monkeypatch):
    path.write_bytes(b"")
    assert (open_log(path).playbook, open_log(path).head) == (Playbook(), "")
    with pytest.raises(RunError, match="is no file"):
        PlaybookLog(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError):
        open_log(tmp_path / "file" / "log.jsonl").append([Add("OTHERS", "x")])
    deep = open_log(tmp_path / "a" / "b" / "log.jsonl")
    deep.append([Add("OTHERS", "x")])
    deep.close()
    assert len(open_log(deep.path).playbook) == 1

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    log = open_log(deep.path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(RunError, match="cannot be written"):
            log.append([Add("OTHERS", "y")])
    log.append([Add("OTHERS", "y")])
    log.close()


def test_hashes_chain(path):
    lines = write_three(path).splitlines(keepends=True)
    rows = [json.loads(text) for text in lines]
    assert [row["parent"] for row in rows] == ["", digest(lines[0]), digest(lines[1])]
    assert open_log(path).head == digest(lines[2])
    assert [row.get("format") for row in rows] == [1, None, None]
