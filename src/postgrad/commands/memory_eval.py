"""`postgrad memory eval`."""

from __future__ import annotations

import json
from pathlib import Path


def main(model: str, facts: Path, device: str, *, json_output: bool, limit: int) -> int:
    """Asks a model the questions of a file of facts; see `postgrad memory eval --help`."""
    from postgrad.memory.data import read_questions

    asked = read_questions(facts)

    from postgrad.core.models import load
    from postgrad.memory.evaluate import answer_questions

    found = answer_questions(load(model, device=device), asked)
    exact, f1 = (sum(values) / len(values) for values in (found.exact, found.f1))
    rows = [
        {
            "id": fact.id,
            "question": fact.question,
            "answer": fact.answer,
            "found": text,
            "exact": bool(e),
            "f1": f,
        }
        for fact, text, e, f in zip(asked, found.texts, found.exact, found.f1, strict=True)
    ]
    if json_output:
        print(json.dumps({"exact": exact, "f1": f1, "questions": rows}, indent=2, ensure_ascii=False))
        return 0
    for row in rows[:limit]:
        print(f"{row['question']}\n  expected: {row['answer']}\n     found: {row['found']!r}")
    print(f"exact {exact:.3f}, F1 {f1:.3f} over {len(rows)} questions")
    return 0
