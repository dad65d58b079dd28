"""Which samples a report shows: pairs from before and after first, then an even spread, within a size
limit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

MAX_SAMPLES = 400
MAX_TEXT = 6_000
MAX_TOTAL_BYTES = 1_800_000
PER_PROMPT = 12


def sample_groups(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Samples grouped by prompt, for the browser of the page.

    Args:
        rows: of samples.jsonl (keys: see `core.report`).

    Returns:
        Groups `{task, prompt, answer, samples: [{step, completion, correct, …}]}` and the number of samples
        in them.
        Prompts seen at several steps come first; each group is ordered by step.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        identity = row.get("prompt_id")
        key = (str(row.get("task", "")), str(row.get("prompt", "") if identity is None else identity))
        groups.setdefault(key, []).append(row)
    several = [group for group in groups.values() if len({row.get("step") for row in group}) > 1]
    single = [group for group in groups.values() if len({row.get("step") for row in group}) <= 1]

    chosen: list[dict[str, Any]] = []
    num_samples = 0
    budget = MAX_TOTAL_BYTES
    for group in [*several, *_evenly(single, MAX_SAMPLES)]:
        picked = _group(group)
        size = len(script_json(picked).encode())
        if num_samples + len(picked["samples"]) > MAX_SAMPLES or size > budget:
            continue
        chosen.append(picked)
        num_samples += len(picked["samples"])
        budget -= size
    return chosen, num_samples


def script_json(data: Any) -> str:
    """JSON that cannot end the script element that holds it.

    >>> script_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _evenly(items: list[Any], count: int) -> list[Any]:
    if len(items) <= count:
        return items
    return [items[index * len(items) // count] for index in range(count)]


def _group(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ordered = sorted(rows, key=_step)
    if len(ordered) > PER_PROMPT:
        ordered = [*ordered[: PER_PROMPT // 2], *ordered[-PER_PROMPT // 2 :]]
    first = ordered[0]
    return {
        "task": _cut(first.get("task")),
        "prompt": _cut(first.get("prompt", "")),
        "answer": _cut(first.get("answer")),
        "samples": [_sample(row) for row in ordered],
    }


def _step(row: Mapping[str, Any]) -> int:
    step = row.get("step", 0)
    return step if isinstance(step, int) else 0


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    facts = [
        "" if row.get("phase") in ("before", "after", None) else str(row["phase"]),
        f"reward {row['reward']:.3g}" if isinstance(row.get("reward"), (int, float)) else "",
        f"{row['num_tokens']} tokens" if isinstance(row.get("num_tokens"), int) else "",
        "cut off by the length limit" if row.get("stop_reason") == "length" else "",
        "interrupted" if row.get("interrupted") else "",
        f"verifier: {row['status']}" if row.get("status") not in (None, "ok") else "",
    ]
    return {
        "step": _step(row),
        "completion": _cut(row.get("completion", row.get("text", ""))),
        "correct": is_correct(row),
        "phase": row["phase"] if row.get("phase") in ("before", "after") else "",
        "facts": " · ".join(fact for fact in facts if fact),
    }


def is_correct(row: Mapping[str, Any]) -> bool | None:
    """Whether a sample passed: `correct` if given, else from `score` (at least 1) or `reward` (above 0);
    None: unknown.

    >>> is_correct({"correct": True}), is_correct({"reward": -1.0}), is_correct({})
    (True, False, None)
    """
    if isinstance(row.get("correct"), bool):
        return row["correct"]
    if isinstance(row.get("score"), (int, float)):
        return row["score"] >= 1
    if isinstance(row.get("reward"), (int, float)):
        return row["reward"] > 0
    return None


def _cut(value: Any) -> str:
    text = "" if value is None else str(value)
    # A lone surrogate cannot be written as UTF-8.
    text = text.encode("utf-8", "replace").decode()
    return (
        text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}\n… ({len(text) - MAX_TEXT:,} characters more)"
    )
