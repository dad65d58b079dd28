"""Experience from outside: what other agents did, read from their logs, whatever their form.

Start at `read_traces`. A file is JSON or JSON lines, or a directory of such files. Told apart by their fields:

    ours        {"messages": […], "outcome": {"score": 1.0, "feedback": "…"}, "question": …, "answer": …, "truth": …}
    openai      {"request": {"messages" or "input"}, "response": {"choices" or "output"}}, or the same fields beside each other
    anthropic   {"system", "messages", "content" or "response": {"content": […]}}
    langchain   {"messages": [{"type": "human", "data": {…}}, …]}, LangSmith's {"inputs", "outputs"}
    transcript  lines of {"type": "user" or "assistant", "message": {…}, "sessionId"}: one trace a session
    messages    lines of one message each, or a list of them: one trace a file

What fits none is an error with its line. Nothing of a trace is to be trusted; secrets are taken out as far as they can be told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from postgrad.core.errors import DataError
from postgrad.playbook.clean import redact, visible
from postgrad.playbook.trace_files import SUFFIXES, Place, read_rows
from postgrad.playbook.trace_messages import (
    FormError,
    Turn,
    flat,
    is_message,
    plain,
    read_message,
    to_json,
    transcript,
)

MAX_TRACE_CHARACTERS = 400_000
"""Of a whole trace; of a longer one the beginning and the end. A Reflector reads less."""
MAX_FIELD_CHARACTERS = 20_000
"""Of a question, an answer, a truth and a feedback."""
_MAX_METADATA_CHARACTERS = 4000


@dataclass(frozen=True)
class Trace:
    """What an agent did about one task.

    Attributes:
        id: as the log has it, else file and line; unique among those that were read.
        question: the task: the first thing that a user says, if nothing else is said to be it.
        messages: all that was said, thought, called and returned, as text.
        answer: what the agent said last, if nothing else is said to be it.
        score: how good it was; success counts 1, failure 0; None = nobody knows.
        feedback: what the environment said.
        truth: the right answer, or None.
        metadata: `format`, `file`, `line`, what the log has under `metadata`, and counts of what was left out.
    """

    id: str
    question: str
    messages: str
    answer: str = ""
    score: float | None = None
    feedback: str = ""
    truth: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


def read_traces(path: Path | str) -> list[Trace]:
    """All traces of a file or a directory, in order of names and lines.

    Args:
        path: .jsonl, .ndjson or .json, or a directory with such files, at any depth; files with other endings and hidden ones
            are not looked at.

    Raises:
        DataError: no such path, no traces, or something that is no trace; it names the file and the line.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        files = [
            file
            for file in sorted(place.rglob("*"))
            if file.suffix.lower() in SUFFIXES
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(place).parts)
        ]
        if not files:
            raise DataError(f"{place} holds no file that ends with {', '.join(SUFFIXES)}.")
    elif place.exists():
        files = [place]
    else:
        raise DataError(f"No traces at {place}: there is no such file or directory.")
    traces = [trace for file in files for trace in _read_file(file)]
    if not traces:
        raise DataError(f"{place} holds no traces.")
    return _unique(traces)


def _unique(traces: Sequence[Trace]) -> list[Trace]:
    """With a number behind each id that came before."""
    seen: set[str] = set()
    found: list[Trace] = []
    for trace in traces:
        id, number = trace.id, 2
        while id in seen:
            id, number = f"{trace.id}#{number}", number + 1
        seen.add(id)
        found.append(trace if id == trace.id else replace(trace, id=id))
    return found


def _read_file(path: Path) -> list[Trace]:
    sessions: dict[str, _Session] = {}
    order: list[Trace | str] = []
    for place, row in read_rows(path, _is_bare_message):
        try:
            if _is_transcript_line(row):
                key = _session_key(row, path)
                if key not in sessions:
                    sessions[key] = _Session(key, place)
                    order.append(key)
                sessions[key].take(row)
            else:
                order.append(_record(row, place))
        except FormError as error:
            raise DataError(f"{place}: {error}.") from None
    found = [sessions[item].trace() if isinstance(item, str) else item for item in order]
    return [trace for trace in found if trace is not None]


def _is_bare_message(row: Any) -> bool:
    return (
        is_message(row)
        and not _is_transcript_line(row)
        and not _outcome_fields(row)
        and "messages" not in row
    )


# -- transcripts ---------------------------------------------------------------------------------------------------


def _is_transcript_line(row: Any) -> bool:
    """A line of a session: a message with what surrounds it, or a note (a summary, a snapshot) of the same log."""
    if not isinstance(row, Mapping) or not isinstance(row.get("type"), str) or "messages" in row:
        return False
    if isinstance(row.get("message"), Mapping):
        return row["type"] in ("user", "assistant", "system") and "role" in row["message"]
    if "content" in row and is_message(row) and not row.keys() & {"sessionId", "session_id"}:
        return False
    return bool(row.keys() & {"sessionId", "session_id", "leafUuid", "snapshot", "parentUuid"})


def _session_key(row: Mapping[str, Any], path: Path) -> str:
    session = row.get("sessionId") or row.get("session_id")
    key = session if isinstance(session, str) else path.stem
    if row.get("isSidechain"):
        agent = row.get("agentId")
        key += f"/{agent if isinstance(agent, str) else 'side'}"
    return key


class _Session:
    """The lines of one session, gathered."""

    def __init__(self, id: str, place: Place) -> None:
        self.id, self.place = id, place
        self.turns: list[Turn] = []
        self.questions: list[str] = []
        self.outcome: dict[str, Any] = {}
        self.seen: set[str] = set()
        self.num_notes = self.num_repeated = 0

    def take(self, row: Mapping[str, Any]) -> None:
        self.outcome.update(_outcome_fields(row))
        uuid = row.get("uuid")
        if isinstance(uuid, str):
            if uuid in self.seen:
                self.num_repeated += 1
                return
            self.seen.add(uuid)
        if not isinstance(row.get("message"), Mapping):
            self.num_notes += 1
            return
        turn = read_message(row["message"])
        self.turns.append(turn)
        if turn.role == "user" and turn.said and not row.get("isMeta"):
            self.questions.append(turn.said)

    def trace(self) -> Trace | None:
        """None for a log without any message and outcome, which holds only notes."""
        if not self.turns:
            return None
        extra = {"other_lines": self.num_notes, "repeated_lines": self.num_repeated}
        try:
            return _trace(
                self.turns,
                self.outcome | {"id": self.id},
                self.place,
                "transcript",
                {name: count for name, count in extra.items() if count},
                question=self.questions[0] if self.questions else None,
            )
        except FormError as error:
            raise DataError(f"{self.place}: {error}.") from None


# -- records -------------------------------------------------------------------------------------------------------


def _record(row: Any, place: Place) -> Trace:
    """A record of any form but a line of a transcript."""
    if isinstance(row, list):
        if not row or not all(map(is_message, row)):
            raise FormError("a list that does not hold messages")
        return _trace(_turns(row), {"id": place.file.stem}, place, _kind(row, "messages"))
    if not isinstance(row, Mapping):
        raise FormError(f"a trace is an object, not a {type(row).__name__}")
    if isinstance(row.get("request"), Mapping):
        return _call(row, place)
    if isinstance(row.get("messages"), list):
        said = _said_after(row)
        kind = (
            "ours"
            if "outcome" in row
            else "anthropic"
            if "system" in row
            else _kind(row["messages"], "openai")
        )
        return _trace(_system(row) + _turns(row["messages"]) + _turns(said), row, place, kind)
    if isinstance(row.get("messages"), Mapping | str):
        raise FormError("`messages` is not a list")
    if isinstance(row.get("inputs"), Mapping) or ("inputs" in row and "outputs" in row):
        return _chain(row, place)
    if isinstance(row.get("input"), list) and all(map(_is_item, row["input"])):
        return _trace(_turns(row["input"]) + _turns(_said_after(row)), row, place, "openai")
    raise FormError(
        f"no form of a trace that is known: an object with the fields {', '.join(map(str, list(row)[:8])) or '(none)'}. "
        'Known are {"messages": […], "outcome": …}, OpenAI requests and responses, LangChain messages and runs, '
        "and transcripts of sessions"
    )


def _call(row: Mapping[str, Any], place: Place) -> Trace:
    """A request with its response."""
    request, response = row["request"], row.get("response")
    request = request["body"] if isinstance(request.get("body"), Mapping) else request
    if isinstance(response, Mapping) and isinstance(response.get("body"), Mapping):
        response = response["body"]
    asked = request.get("messages", request.get("input"))
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    if not isinstance(asked, list):
        raise FormError("a request without `messages` or `input`")
    said = _said_after(response) if isinstance(response, Mapping) else []
    if isinstance(response, str):
        said = [{"role": "assistant", "content": response}]
    failed = response.get("error") if isinstance(response, Mapping) else None
    own = {"error": failed, **row} if failed else row
    kind = "anthropic" if isinstance(response, Mapping) and "content" in response else "openai"
    extra = {"model": request["model"]} if isinstance(request.get("model"), str) else {}
    return _trace(_system(request) + _turns(asked) + _turns(said), own, place, kind, extra)


def _said_after(response: Mapping[str, Any]) -> list[Any]:
    """The messages of a response: OpenAI's first choice or `output`, Anthropic's `content`."""
    choices = response.get("choices")
    if isinstance(choices, list):
        if choices and not (
            isinstance(choices[0], Mapping) and isinstance(choices[0].get("message"), Mapping)
        ):
            raise FormError("a choice without a message")
        return [choices[0]["message"]] if choices else []
    if isinstance(response.get("response"), Mapping):
        return _said_after(response["response"])
    if isinstance(response.get("output"), list):
        return response["output"]
    if isinstance(response.get("content"), list):
        return [{"role": "assistant", "content": response["content"]}]
    return []


def _system(row: Mapping[str, Any]) -> list[Turn]:
    told = row.get("system", row.get("instructions"))
    return _turns([{"role": "system", "content": told}]) if isinstance(told, str | list) and told else []


def _is_item(value: Any) -> bool:
    return is_message(value) or (
        isinstance(value, Mapping)
        and value.get("type") in ("function_call", "function_call_output", "reasoning")
    )


def _turns(messages: Sequence[Any]) -> list[Turn]:
    found: list[Turn] = []
    for number, value in enumerate(messages, start=1):
        try:
            if (
                isinstance(value, Mapping)
                and "role" not in value
                and _is_item(value)
                and not is_message(value)
            ):
                # an item of OpenAI's responses
                role = "tool" if value["type"] == "function_call_output" else "assistant"
                value = {"role": role, "content": [value]}
            found.append(read_message(value))
        except FormError as error:
            raise FormError(f"message {number}: {error}") from None
    return found


def _kind(messages: Sequence[Any], otherwise: str) -> str:
    first = messages[0] if messages else None
    return "langchain" if isinstance(first, Mapping) and "role" not in first else otherwise


def _chain(row: Mapping[str, Any], place: Place) -> Trace:
    """A run of LangChain as LangSmith keeps it."""
    inputs, outputs = row.get("inputs"), row.get("outputs")
    asked, question = _side(inputs, ("input", "question", "query", "prompt", "text"), "user")
    said, answer = _side(outputs, ("output", "answer", "result", "text", "content"), "assistant")
    if said[: len(asked)] == asked:  # a graph's state holds what it was given
        said = said[len(asked) :]
    children = row.get("child_runs")
    extra = {"child_runs_left_out": len(children)} if isinstance(children, list) and children else {}
    own = {name: value for name, value in row.items() if name not in ("inputs", "outputs")}
    reference = row.get("reference_outputs")
    if reference is not None:
        own.setdefault("truth", reference)
    if row.get("error"):
        own.setdefault("feedback", row["error"])
    turns = asked + said
    return _trace(turns, own, place, "langchain", extra, question=question, answer=answer)


def _side(value: Any, names: Sequence[str], role: str) -> tuple[list[Turn], str | None]:
    """Inputs or outputs: their messages, and what is said to be the question or the answer."""
    if value is None:
        return [], None
    if not isinstance(value, Mapping):
        text = flat(value)
        return [Turn(role, plain(text), plain(text))], text
    messages = value.get("messages")
    if isinstance(messages, list):
        if messages and isinstance(messages[0], list):  # a batch of one
            messages = messages[0]
        return _turns(messages), None
    generations = value.get("generations")
    if isinstance(generations, list) and generations:
        first = generations[0][0] if isinstance(generations[0], list) and generations[0] else generations[0]
        if isinstance(first, Mapping):
            if is_message(first.get("message")):
                return _turns([first["message"]]), None
            return [Turn(role, plain(flat(first)), plain(flat(first)))], flat(first)
    for name in names:
        if is_message(value.get(name)):
            return _turns([value[name]]), None
        if isinstance(value.get(name), str):
            others = {key: part for key, part in value.items() if key != name}
            text = value[name] + (f"\n{to_json(others)}" if others else "")
            return [Turn(role, plain(value[name]), plain(text))], value[name]
    text = to_json(value)
    return [Turn(role, plain(text), plain(text))], text


# -- what came of it -----------------------------------------------------------------------------------------------

_SCORES = ("score", "reward", "success", "passed", "correct", "is_correct", "resolved")
_FEEDBACK = ("feedback", "environment_feedback", "error", "reason", "detail", "message")
_TRUTHS = ("truth", "ground_truth", "expected", "expected_answer", "reference_answer", "reference", "target")
_QUESTIONS = ("question", "task", "problem", "query", "instruction")
_ANSWERS = ("answer", "final_answer", "prediction")
_YES = ("true", "yes", "pass", "passed", "success", "succeeded", "correct", "solved", "resolved")
_NO = ("false", "no", "fail", "failed", "failure", "incorrect", "wrong", "unsolved", "unresolved", "error")


def _outcome_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: row[name] for name in ("outcome", *_SCORES, "feedback", *_TRUTHS) if row.get(name) is not None
    }


def _trace(
    turns: Sequence[Turn],
    row: Mapping[str, Any],
    place: Place,
    kind: str,
    extra: Mapping[str, Any] | None = None,
    *,
    question: str | None = None,
    answer: str | None = None,
) -> Trace:
    """Messages, and what the record says besides."""
    if not turns:
        raise FormError("a trace without messages")
    score, feedback = _outcome(row)
    given = _first_text(row, _QUESTIONS) or question
    asked = given or next((turn.said for turn in turns if turn.role == "user" and turn.said), "")
    said = _first_text(row, _ANSWERS)
    if said is None:
        said = answer if answer is not None else ""
        said = said or next(
            (turn.said for turn in reversed(turns) if turn.role == "assistant" and turn.said), ""
        )
    truth = _first_text(row, _TRUTHS)
    own = row.get("metadata")
    metadata: dict[str, Any] = {"format": kind, "file": place.file.name, "line": place.line}
    if place.item is not None:
        metadata["item"] = place.item
    metadata.update(num_messages=len(turns), **(extra or {}))
    if isinstance(row.get("model"), str):
        metadata["model"] = row["model"][:200]
    if isinstance(own, Mapping) and own:
        text = redact(to_json(own)[: 4 * _MAX_METADATA_CHARACTERS])
        metadata["given"] = text[:_MAX_METADATA_CHARACTERS]
    return Trace(
        id=_id(row, place),
        question=_field(asked),
        messages=plain(redact(transcript(turns)), MAX_TRACE_CHARACTERS),
        answer=_field(said),
        score=score,
        feedback=_field(feedback),
        truth=None if truth is None else _field(truth),
        metadata=metadata,
    )


def _field(text: str) -> str:
    return plain(redact(plain(text)), MAX_FIELD_CHARACTERS)


def _id(row: Mapping[str, Any], place: Place) -> str:
    for name in ("id", "trace_id", "task_id", "run_id", "custom_id", "session_id"):
        value = row.get(name)
        if (
            isinstance(value, str | int)
            and not isinstance(value, bool)
            and visible(redact(str(value)[:1000]))
        ):
            return visible(redact(str(value)[:1000]))[:200]
    return visible(place.id)


def _first_text(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        value = row.get(name)
        if value is not None and not (isinstance(value, str) and not value.strip()):
            return flat(value)
    return None


def _outcome(row: Mapping[str, Any]) -> tuple[float | None, str]:
    """(score, feedback), from `outcome` and from fields beside the messages."""
    score: float | None = None
    words: list[str] = []
    outcome = row.get("outcome")
    if isinstance(outcome, Mapping):
        score = _score_of(outcome)
        words += [flat(outcome[name]) for name in _FEEDBACK if outcome.get(name)]
    elif isinstance(outcome, str) and _verdict(outcome) is None:
        words.append(outcome)
    elif outcome is not None:
        score = _number(outcome, "outcome")
    if score is None:
        score = _score_of(row)
    if score is None and isinstance(row.get("feedback_stats"), Mapping):  # LangSmith
        stats = row["feedback_stats"]
        found = {name: part.get("avg") for name, part in stats.items() if isinstance(part, Mapping)}
        score = _score_of(found | ({"correct": found["correctness"]} if "correctness" in found else {}))
    words += [flat(row[name]) for name in _FEEDBACK[:3] if row.get(name)]
    return score, "\n".join(dict.fromkeys(words))


def _score_of(row: Mapping[str, Any]) -> float | None:
    for name in _SCORES:
        if row.get(name) is not None:
            return _number(row[name], name)
    return None


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        found = _verdict(value)
        if found is not None:
            return found
    elif isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise FormError(
        f"`{name}` is {to_json(value)[:60]}; it has to be a number, true or false, or a word such as passed or failed"
    )


def _verdict(text: str) -> float | None:
    word = text.strip().lower()
    if word in _YES or word in _NO:
        return float(word in _YES)
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
