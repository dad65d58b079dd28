"""Logs of other agents in the forms that they are found in, and files that must be refused with their line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from postgrad.core.errors import DataError
from postgrad.playbook import trace_files
from postgrad.playbook.traces import MAX_FIELD_CHARACTERS, MAX_TRACE_CHARACTERS, Trace, read_traces


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def only(path: Path, *rows: Any) -> Trace:
    (trace,) = read_traces(lines(path, *rows))
    return trace


ASKED = {"role": "user", "content": "What is 2 + 2?"}
SAID = {"role": "assistant", "content": "4"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


# -- forms ---------------------------------------------------------------------------------------------------------


def test_ours(file: Path) -> None:
    outcome = {"score": 0.5, "feedback": "half right"}
    trace = only(
        file, {"id": "a", "messages": [ASKED, SAID], "outcome": outcome, "truth": 5, "metadata": {"k": "v"}}
    )
    assert trace == Trace(
        "a", "What is 2 + 2?", "[user] What is 2 + 2?\n[assistant] 4", "4", 0.5, "half right", "5",
        {"format": "ours", "file": "log.jsonl", "line": 1, "num_messages": 2, "given": '{"k": "v"}'},
    )  # fmt: skip
    named = only(file, {"messages": [SAID], "outcome": True, "question": "Q", "answer": "A"})
    assert (named.id, named.question, named.answer, named.score, named.truth) == (
        "log/1",
        "Q",
        "A",
        1.0,
        None,
    )


@pytest.mark.parametrize(
    ("fields", "score", "feedback"),
    [
        ({"outcome": False}, 0.0, ""),
        ({"outcome": -3}, -3.0, ""),
        ({"outcome": None}, None, ""),
        ({"outcome": "passed"}, 1.0, ""),
        ({"outcome": "two tests of nine failed"}, None, "two tests of nine failed"),
        ({"outcome": {"success": True, "error": "late", "detail": ["a", "b"]}}, 1.0, "late\na\nb"),
        ({"reward": 0.25}, 0.25, ""),
        ({"passed": "no"}, 0.0, ""),
        ({"correct": True, "feedback": "good"}, 1.0, "good"),
        ({"score": None, "success": False}, 0.0, ""),
        ({}, None, ""),
    ],
)
def test_outcomes(file: Path, fields: dict[str, Any], score: float | None, feedback: str) -> None:
    trace = only(file, {"messages": [ASKED, SAID], **fields})
    assert (trace.score, trace.feedback) == (score, feedback)


def test_openai_request_and_response_with_tools(file: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
    request = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Use tools."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "2 + 2?"}, {"type": "image_url", "image_url": {}}],
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "4"},
        ],
    }
    response = {"choices": [{"message": {"role": "assistant", "content": "It is 4.", "refusal": None}}]}
    trace = only(file, {"request": request, "response": response, "success": True})
    assert trace.messages.splitlines() == [
        "[system] Use tools.",
        "[user] 2 + 2?",
        "[image_url]",
        '[assistant] calls add({"a": 2, "b": 2})',
        "[tool] 4",
        "[assistant] It is 4.",
    ]
    assert (trace.question, trace.answer, trace.score) == ("2 + 2?", "It is 4.", 1.0)
    assert trace.metadata["model"] == "m"
    assert trace.metadata["format"] == "openai"
    stored = only(file, {"messages": request["messages"], "choices": response["choices"]})
    assert stored.messages == trace.messages


def test_openai_batches_responses_and_failures(file: Path) -> None:
    items = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "add them"}]},
        {"type": "function_call", "name": "add", "arguments": "{}", "call_id": "c"},
        {"type": "function_call_output", "call_id": "c", "output": "4"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Four."}]},
    ]
    rows = [
        {
            "request": {"body": {"input": "2 + 2?"}},
            "response": {"body": {"output": items}},
            "custom_id": "r-1",
        },
        {"request": {"messages": [ASKED]}, "response": {"error": {"message": "overloaded"}}},
        {"request": {"messages": [ASKED]}, "response": None},
    ]
    found, failed, silent = read_traces(lines(file, *rows))
    assert found.id == "r-1"
    assert found.messages.splitlines() == [
        "[user] 2 + 2?", "[assistant] (thinks) add them", "[assistant] calls add({})", "[tool] result: 4", "[assistant] Four.",
    ]  # fmt: skip
    assert (found.question, found.answer) == ("2 + 2?", "Four.")
    assert (failed.answer, failed.feedback) == ("", '{"message": "overloaded"}')
    assert silent.messages == "[user] What is 2 + 2?"


def test_anthropic_messages(file: Path) -> None:
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "look"}, {"type": "text", "text": "I look."},
                                          {"type": "tool_use", "id": "t", "name": "w", "input": {"city": "Köln"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "is_error": True,
                                      "content": [{"type": "text", "text": "no such city"}]}]},
    ]  # fmt: skip
    row = {
        "system": "Be brief.",
        "messages": messages,
        "response": {"content": [{"type": "text", "text": "Sorry."}]},
    }
    trace = only(file, row)
    assert trace.messages.splitlines() == [
        "[system] Be brief.",
        "[user] Weather?",
        "[assistant] (thinks) look",
        "I look.",
        'calls w({"city": "Köln"})',
        "[user] result: (error) no such city",
        "[assistant] Sorry.",
    ]
    assert (trace.question, trace.answer, trace.metadata["format"]) == ("Weather?", "Sorry.", "anthropic")
    request = {"request": {"system": row["system"], "messages": messages}, "response": row["response"]}
    assert only(file, request).messages == trace.messages


def test_langchain_messages(file: Path) -> None:
    dumped = [
        {"type": "system", "data": {"content": "S", "type": "system"}},
        {"type": "human", "data": {"content": "Q", "additional_kwargs": {}, "type": "human"}},
        {"type": "ai", "data": {"content": [{"type": "text", "text": "t"},
                                            {"type": "tool_use", "id": "1", "name": "f", "input": {}}],
                                "tool_calls": [{"name": "f", "args": {}, "id": "1"}]}},
        {"type": "tool", "data": {"content": "boom", "name": "f", "tool_call_id": "1", "status": "error"}},
        {"type": "ai", "data": {"content": "A"}},
    ]  # fmt: skip
    said = "[system] S\n[user] Q\n[assistant] t\ncalls f({})\n[tool] f: (error) boom\n[assistant] A"
    trace = only(file, {"messages": dumped, "reward": 1})
    assert (trace.messages, trace.question, trace.answer, trace.score) == (said, "Q", "A", 1.0)
    assert trace.metadata["format"] == "langchain"
    bare = file.with_name("thread.json")
    bare.write_text(json.dumps(dumped))
    (found,) = read_traces(bare)
    assert (found.messages, found.id) == (said, "thread")
    flat = [{**row["data"], "type": row["type"]} for row in dumped]
    assert only(file, {"messages": flat}).messages == said
    path = ["langchain", "schema", "messages"]
    classes = {"system": "SystemMessage", "human": "HumanMessage", "ai": "AIMessage", "tool": "ToolMessage"}
    serialised = [
        {"lc": 1, "type": "constructor", "id": [*path, classes[row["type"]]], "kwargs": row["data"]}
        for row in dumped
    ]
    assert only(file, {"messages": serialised}).messages == said


def test_langsmith_runs(file: Path) -> None:
    human, ai = {"type": "human", "content": "Q"}, {"type": "ai", "content": "A"}
    rows = [
        {"id": "r1", "inputs": {"messages": [[human]]}, "outputs": {"generations": [[{"text": "A", "message": ai}]]}},
        {"id": "r2", "inputs": {"messages": [human]}, "outputs": {"messages": [human, ai]},
         "feedback_stats": {"correctness": {"n": 1, "avg": 0.75}}},
        {"id": "r3", "inputs": {"question": "Q", "hint": 3}, "outputs": {"answer": "A"}, "reference_outputs": {"text": "B"}},
        {"id": "r4", "inputs": {"question": "Q"}, "outputs": None, "error": "timed out", "child_runs": [{}, {}]},
    ]  # fmt: skip
    first, second, third, fourth = read_traces(lines(file, *rows))
    assert first.messages == second.messages == "[user] Q\n[assistant] A"
    assert second.score == 0.75
    assert (third.question, third.answer, third.truth) == ("Q", "A", "B")
    assert '"hint": 3' in third.messages
    assert (fourth.feedback, fourth.answer, fourth.metadata["child_runs_left_out"]) == ("timed out", "", 2)


def test_transcripts_are_gathered_by_session(file: Path) -> None:
    def line(uuid: str, role: str, content: Any, session: str = "s1", **more: Any) -> dict[str, Any]:
        return {
            "type": role,
            "message": {"role": role, "content": content},
            "sessionId": session,
            "uuid": uuid,
            **more,
        }

    use = {"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": "ls"}}
    rows = [
        {"type": "summary", "summary": "Listing", "leafUuid": "z"},
        line("0", "user", "<caveat>", isMeta=True),
        line("1", "user", "List files"),
        line("9", "user", "Other task", session="s2"),
        line("2", "assistant", [{"type": "text", "text": "I list."}]),
        line("3", "assistant", [use]),
        line("4", "user", [{"type": "tool_result", "tool_use_id": "t", "content": "a.txt"}]),
        line("4", "user", [{"type": "tool_result", "tool_use_id": "t", "content": "a.txt"}]),
        line("5", "user", "Look deeper", isSidechain=True, agentId="ag"),
        {"type": "system", "subtype": "note", "content": "compacted", "sessionId": "s1", "uuid": "6"},
        line("7", "assistant", [{"type": "text", "text": "One file."}]),
        {"type": "result", "sessionId": "s1", "outcome": {"score": 1, "feedback": "ok"}},
    ]
    first, second, side = read_traces(lines(file, *rows))
    assert first.messages.splitlines() == [
        "[user] <caveat>",
        "[user] List files",
        "[assistant] I list.",
        '[assistant] calls Bash({"command": "ls"})',
        "[user] result: a.txt",
        "[assistant] One file.",
    ]
    assert (first.id, first.question, first.answer) == ("s1", "List files", "One file.")
    assert (first.score, first.feedback) == (1.0, "ok")
    assert first.metadata | {"other_lines": 2, "repeated_lines": 1, "format": "transcript"} == first.metadata
    assert (second.id, second.question) == ("s2", "Other task")
    assert (side.id, side.question) == ("s1/ag", "Look deeper")
    without = [{key: value for key, value in row.items() if key != "sessionId"} for row in rows[2:3]]
    assert only(file, *without).id == "log"


def test_lines_of_single_messages_are_one_trace(file: Path) -> None:
    trace = only(file, ASKED, SAID)
    assert (trace.id, trace.messages) == ("log", "[user] What is 2 + 2?\n[assistant] 4")


# -- files ---------------------------------------------------------------------------------------------------------


def test_json_in_all_its_layouts(tmp_path: Path) -> None:
    row = {"messages": [ASKED, SAID], "outcome": 1}
    texts = {
        "one.json": json.dumps(row, indent=1),
        "list.json": json.dumps([row, row]),
        "named.json": json.dumps({"traces": [row]}),
        "lines.json": f"{json.dumps(row)}\n{json.dumps(row)}\n",
        "pretty.jsonl": json.dumps(row, indent=2),
        "bom.jsonl": "\ufeff" + json.dumps(row) + "\r\n\r\n" + json.dumps(row),
    }
    counts = {}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        counts[name] = len(read_traces(tmp_path / name))
    assert counts == {
        "one.json": 1,
        "list.json": 2,
        "named.json": 1,
        "lines.json": 2,
        "pretty.jsonl": 1,
        "bom.jsonl": 2,
    }
    (tmp_path / "sub").mkdir()
    lines(tmp_path / "sub" / "more.jsonl", row | {"id": "x"}, row | {"id": "x"})
    (tmp_path / "README.md").write_text("no trace")
    (tmp_path / ".hidden.jsonl").write_text("{")
    (tmp_path / "empty.jsonl").write_text("")
    traces = read_traces(tmp_path)
    assert len(traces) == 11
    assert len({trace.id for trace in traces}) == 11
    assert [trace.id for trace in traces][-2:] == ["x", "x#2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"messages": [{"role": "user", "content": "a"}]}\n{"foo": 1, "bar": 2}\n', ["line 2", "foo, bar", "outcome"]),
        ('{"messages": [{"role": "user", "content": "a"}]}\n{"messages": [', ["line 2", "no JSON", "still being written"]),
        ('{"messages": []}\n', ["line 1", "without messages"]),
        ('{"messages": "hello"}\n', ["line 1", "not a list"]),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "wizard", "content": "b"}]}\n', ["message 2", "wizard"]),
        ('{"messages": [{"role": "user", "content": 7}]}\n', ["line 1", "message 1", "int"]),
        ('{"messages": [3]}\n', ["message 1", "int"]),
        ('{"messages": [{"role": "user", "content": "a"}], "score": NaN}\n', ["line 1", "`score`", "NaN"]),
        ('{"messages": [{"role": "user", "content": "a"}], "reward": [1]}\n', ["line 1", "`reward`"]),
        ('{"request": {"model": "m"}}\n', ["line 1", "request without"]),
        ('{"request": {"messages": [{"role": "user", "content": "a"}]}, "response": {"choices": [{}]}}\n', ["choice"]),
        ("[1, 2]\n", ["line 1", "list"]),
        ('"text"\n', ["line 1", "str"]),
        ("not json\n", ["line 1", "no JSON"]),
        ("[" * 100_000 + "\n", ["line 1"]),
        ('{"id": ' + "9" * 5000 + "}\n", ["line 1"]),
        ("", ["no traces"]),
        ("\n\n", ["no traces"]),
        ('{"type": "summary", "leafUuid": "a"}\n', ["no traces"]),
    ],
)  # fmt: skip
def test_what_fits_no_form_is_refused_with_its_line(file: Path, text: str, words: list[str]) -> None:
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_traces(file)
    assert all(word in str(caught.value) for word in [*words, "log.jsonl"]), str(caught.value)


def test_other_refusals(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_traces(tmp_path / "missing")
    with pytest.raises(DataError, match="no file that ends"):
        read_traces(tmp_path)
    file.write_bytes(b'{"messages": [{"role": "user", "content": "\xff"}]}\n')
    with pytest.raises(DataError, match="line 1 is no UTF-8"):
        read_traces(file)
    monkeypatch.setattr(trace_files, "MAX_LINE_BYTES", 100)
    lines(file, {"messages": [ASKED | {"content": "a" * 200}]})
    with pytest.raises(DataError, match="line 1 has more than 100 bytes"):
        read_traces(file)
    monkeypatch.setattr(trace_files, "MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="Split it"):
        read_traces(file)


# -- hostile contents ----------------------------------------------------------------------------------------------


def test_secrets_and_control_characters_go(file: Path) -> None:
    secret = "sk-" + "a1b2c3d4" * 4
    raw = (
        '{"id": "\\u202eid\\n", "messages": [{"role": "user",'
        ' "content": "key %s \\u0000\\u001b[31mred\\u001b[0m \\ud83d\\ude00 \\ud800."}, {"role": "assistant", "content": "",'
        ' "tool_calls": [{"function": {"name": "f", "arguments": "{\\"password\\": \\"hunter22\\"}"}}]}],'
        ' "truth": "%s", "feedback": "%s", "metadata": {"token": "%s"}}\n'
    )
    file.write_text(raw % (secret, secret, secret, secret))
    (trace,) = read_traces(file)
    assert secret not in repr(trace)
    assert "hunter22" not in trace.messages
    assert trace.question == "key [key removed] red 😀 \ufffd."
    assert trace.id == "id"
    trace.messages.encode()


def test_long_traces_are_bounded_and_read_in_time(file: Path) -> None:
    long = {"role": "assistant", "content": "eyJ-a.b." * 50_000}
    start = time.perf_counter()
    trace = only(file, {"messages": [ASKED, *[long] * 5], "feedback": "f" * 10**6})
    assert time.perf_counter() - start < 60
    assert len(trace.messages) < MAX_TRACE_CHARACTERS + 100
    assert len(trace.feedback) < MAX_FIELD_CHARACTERS + 100
    assert "characters left out" in trace.messages
    assert trace.messages.startswith("[user] What is 2 + 2?")


def test_deep_contents_do_not_end_in_a_stack_overflow(file: Path) -> None:
    content: Any = "x"
    for _ in range(300):
        content = [{"type": "tool_result", "content": content}]
    trace = only(file, {"messages": [ASKED, {"role": "user", "content": content}]})
    assert "result:" in trace.messages
