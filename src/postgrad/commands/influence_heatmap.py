"""Token scores of a run of influence: what result.json keeps of them, and the shaded texts of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from postgrad.core.report_words import Heatmap, Words, shaded

MAX_SCORES = 400_000
"""Numbers that result.json keeps at most: with many queries, of the first examples of each ranking alone."""
_MAX_REPORT_SCORES = 30_000
_SHOWN = 10
_MAX_TITLE = 60
_SCALE = ("raises the loss of what the model said", "lowers it")
_NOTE = (
    "Each text has its own scale; point at a word for its score. A text's words add up to its score, which the bar compares with "
    "the strongest one here. In the box: what all training examples do together."
)


class TokenRecords:
    """Texts with the scores of their tokens, as result.json has them: `{"context": text, "pieces": [[text, score], …]}`.

    Args:
        tokens: `Result.tokens`, a `TokenView` of texts.
    """

    def __init__(self, tokens: Any) -> None:
        self._tokens = tokens
        self._split: dict[tuple[bool, int], Any] = {}
        ranked = len(tokens.num_query) * max(1, sum(tokens.num_train) // len(tokens.num_train))
        self.count: int = tokens.num_shown or max(1, MAX_SCORES // (2 * ranked))
        """How many of each ranking have theirs."""

    def of_query(self, query: int) -> dict[str, Any]:
        """`tokens` of a query, by what all training examples do together; nothing where it has none."""
        if not self._tokens.has(query):
            return {}
        return {"tokens": self._record(self._tokens.query_texts, query, self._tokens.totals(query))}

    def of_example(self, query: int, example: int) -> dict[str, Any]:
        """`tokens` of a training example, by what it does to a query; nothing where it has none."""
        if not self._tokens.has(query, example):
            return {}
        scores = self._tokens.of_example(query, example)
        return {"tokens": self._record(self._tokens.train_texts, example, scores)}

    def _record(self, texts: Any, index: int, scores: Any) -> dict[str, Any]:
        from postgrad.influence.tokens import piece_scores, pieces

        key = (texts is self._tokens.query_texts, index)
        if key not in self._split:
            self._split[key] = pieces(texts.tokenizer, texts.tokens[index], texts.starts[index])
        context, parts = self._split[key]
        values = [float(f"{score:.4g}") for score in piece_scores(parts, scores)]
        return {
            "context": context,
            "pieces": [[part.text, score] for part, score in zip(parts, values, strict=True)],
        }


def heatmaps(queries: Sequence[Mapping[str, Any]], facts: Any) -> tuple[list[Heatmap], int]:
    """A section for each query, for as many as a page can take; how many that are.

    Args:
        queries: of result.json.
        facts: what is said about a ranked example, from its entry.
    """
    found: list[Heatmap] = []
    budget = _MAX_REPORT_SCORES
    for query in queries:
        sides = [
            [one for one in query[side][:_SHOWN] if "tokens" in one] for side in ("proponents", "opponents")
        ]
        budget -= sum(len(one["tokens"]["pieces"]) for side in sides for one in side)
        if "tokens" not in query or not any(sides) or (found and budget < 0):
            break
        largest = max(abs(one["score"]) for side in sides for one in side)
        groups = [
            (title, [_words(one, facts(one), one["score"] / largest if largest else 0.0) for one in side])
            for title, side in zip(("Proponents", "Opponents"), sides, strict=True)
        ]
        title = f"What made the model say “{_said(query)}”"
        head = _words(query, f"query {query['id']}", 0.0)
        found.append(Heatmap(title, _SCALE, head, groups, _NOTE))
    return found, len(found)


def _said(query: Mapping[str, Any]) -> str:
    """What is explained, without a stop token that is not in the text; on one line, cut.

    >>> _said({"text": "Say it. Now", "tokens": {"pieces": [[" No", 0.1], ["w", 0.2], ["<eos>", 0.0]]}})
    'Now'
    """
    pieces = [text for text, _ in query["tokens"]["pieces"]]
    if pieces and pieces[-1].strip() not in query["text"]:
        pieces.pop()
    line = " ".join("".join(pieces).split())
    return line if len(line) <= _MAX_TITLE else f"{line[: _MAX_TITLE - 1]}…"


def _words(entry: Mapping[str, Any], facts: str, share: float) -> Words:
    tokens = entry["tokens"]
    context = tokens["context"]
    return shaded(entry["id"], facts, share, context, [(text, score) for text, score in tokens["pieces"]])
