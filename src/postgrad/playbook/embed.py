"""Short texts → unit vectors: hashed n-grams in numpy, a local sentence encoder, or a server's `/v1/embeddings`.

Start at `HashedNgrams`, which needs nothing but numpy. A text's vector depends on that text alone (no frequencies of a
collection), so it is computed once; which cosine means "worth a look" differs from embedder to embedder, hence
`Embedder.threshold`.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from postgrad.core.errors import ConfigError, EngineError, ModelError
from postgrad.playbook.english import COMMON
from postgrad.tasks.extras import require

Vectors = NDArray[np.float32]


class Embedder(Protocol):
    """Texts → vectors; the same text always has the same one, up to rounding, whatever else is embedded.

    Attributes:
        name: with everything that changes vectors, such as `hashed-ngrams-512`.
        dim: D.
        threshold: cosine from which two texts are proposed as alike.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def threshold(self) -> float: ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32 [N, D], rows of unit length; a text without any feature has a row of zeros."""
        ...


# -- hashed n-grams ------------------------------------------------------------------------------------------------

_BASE = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 1024


class HashedNgrams:
    """Character n-grams inside words and whole words, hashed with a sign into D cells; no model, no vocabulary, no randomness.

    A word w is read with a space on either side; its n-grams (n = 3, 4, 5) and the word itself are features. A feature that
    occurs c times counts (1 + ln c)·weight, is added to cell hash mod D with the sign of another bit of the hash (so that
    collisions cancel on average), and the row is scaled to unit length. Case and Unicode forms do not count.

    Args:
        dim: D; collisions add noise of about 1/√D to a cosine, 0.04 at 512. On the labelled pairs 1,024 and 2,048 are no better.
        word_weight: of whole words, against 1 for an n-gram.
        common_weight: factor on all features of words like "the" and "with".
        threshold: see `Embedder`; 0.5 was chosen as MiniLM's, see `SentenceTransformers`.

    Raises:
        ConfigError: a dim below 2 or above 2¹⁶, or a negative weight.

    >>> rows = HashedNgrams().embed(["Round to two decimals", "round  to TWO decimals!", "Close the browser tab"])
    >>> (rows @ rows.T).round(2).tolist()[0][:2], bool((rows @ rows.T)[0, 2] < 0.1)
    ([1.0, 1.0], True)
    """

    def __init__(
        self, dim: int = 512, word_weight: float = 2.0, common_weight: float = 0.3, threshold: float = 0.5
    ) -> None:
        if not 2 <= dim <= 2**16 or word_weight < 0 or common_weight < 0:
            raise ConfigError(
                f"HashedNgrams takes 2 to 65,536 dimensions and weights of at least 0; received dim={dim}, "
                f"word_weight={word_weight:g}, common_weight={common_weight:g}."
            )
        self._dim, self._word_weight, self._common_weight = dim, word_weight, common_weight
        self.threshold = threshold

    @property
    def name(self) -> str:
        """`hashed-ngrams-D`, with weights where they are not the default ones."""
        changed = (self._word_weight, self._common_weight) != (2.0, 0.3)
        return f"hashed-ngrams-{self._dim}" + (
            f"-w{self._word_weight:g}-c{self._common_weight:g}" if changed else ""
        )

    @property
    def dim(self) -> int:
        """D."""
        return self._dim

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32 [N, D]."""
        rows = np.zeros((len(texts), self._dim), np.float32)
        for start in range(0, len(texts), _BLOCK):
            block = texts[start : start + _BLOCK]
            rows[start : start + len(block)] = self._embed_block(block)
        return rows

    def _embed_block(self, texts: Sequence[str]) -> Vectors:
        """All texts' words in one array of code points, each word with a space on either side."""
        words = [_words(text) for text in texts]
        flat = [word for row in words for word in row]
        if not flat:
            return np.zeros((len(texts), self._dim), np.float32)
        run = " " + "  ".join(flat) + " " + "\0" * 4  # the longest n-gram fits behind any character
        points = np.frombuffer(run.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        lengths = np.fromiter(map(len, flat), np.int64, len(flat)) + 2
        starts = np.cumsum(lengths) - lengths
        word_row = np.repeat(np.arange(len(texts)), [len(row) for row in words])
        weight = np.where(
            np.fromiter((word in COMMON for word in flat), bool, len(flat)), self._common_weight, 1.0
        )

        place_word = np.repeat(np.arange(len(flat)), lengths)
        places = np.arange(len(points) - 4)
        left = np.repeat(starts + lengths, lengths) - places  # characters up to the word's end
        hashes, owners, weights = [], [], []
        rolling = np.zeros(len(places), np.uint64)
        with np.errstate(over="ignore"):
            for n in range(1, 6):
                rolling = rolling * _BASE + points[n - 1 : n - 1 + len(places)]
                if n >= 3:
                    at = np.flatnonzero(left >= n)
                    hashes.append(_mixed(rolling[at] + np.uint64(n)))
                    owners.append(word_row[place_word[at]])
                    weights.append(weight[place_word[at]])
            powers = np.cumprod(np.full(int(lengths.max()), _BASE, np.uint64))
            inside = places - np.repeat(starts, lengths)
            hashes.append(_mixed(np.add.reduceat(points[:-4] * powers[inside], starts) ^ _BASE))
        owners.append(word_row)
        weights.append(weight * self._word_weight)
        return self._scatter(
            len(texts), np.concatenate(hashes), np.concatenate(owners), np.concatenate(weights)
        )

    def _scatter(
        self, num: int, hashes: NDArray[np.uint64], owners: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> Vectors:
        """Count equal features of a row, damp, add into cells, scale."""
        keys = (owners.astype(np.uint64) << np.uint64(48)) | (hashes >> np.uint64(16))
        order = np.argsort(keys)
        keys = keys[order]
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        count = np.diff(np.append(first, len(keys)))
        # of equal features the heaviest word's weight; sums would depend on the order of words
        value = (1.0 + np.log(count)) * np.maximum.reduceat(weights[order], first)
        feature = keys[first]
        cell = (feature & np.uint64(0xFFFFFFFF)) % np.uint64(self._dim)
        sign = np.where((feature >> np.uint64(40)) & np.uint64(1), 1.0, -1.0)
        row = (feature >> np.uint64(48)).astype(np.int64)
        made = np.bincount(row * self._dim + cell.astype(np.int64), sign * value, num * self._dim)
        return unit_rows(made.reshape(num, self._dim))


def _words(text: str) -> list[str]:
    """Lower-case words and numbers; a number keeps its point, an identifier its underscores; signs stand alone."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


_WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+(?:'\w+)?|[%$€£+*/=<>]")


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64, so that every bit of a hash depends on all of the value's."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def unit_rows(rows: Any) -> Vectors:
    """float32 rows of length 1; rows of zeros stay.

    >>> unit_rows([[3.0, 4.0], [0.0, 0.0]]).round(3).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    rows = np.asarray(rows, np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    return (rows / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


# -- models --------------------------------------------------------------------------------------------------------


class SentenceTransformers:
    """A sentence encoder through sentence-transformers (extra `embed`).

    Args:
        path: a directory or a name on the hub.
        threshold: see `Embedder`. 0.65 is for MiniLM-L6: of 0.25, 0.30, …, 0.95 the lowest at which at most 5 % of the
            `different` pairs of the development half of benchmarks/data/bullet_pairs.jsonl are proposed.
        device: cpu unless said.
        batch_size: texts in one forward pass.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        ModelError: no such model.
    """

    def __init__(self, path: str, threshold: float = 0.65, device: str = "cpu", batch_size: int = 64) -> None:
        library = require(
            "sentence_transformers",
            package="sentence-transformers",
            extra="embed",
            purpose=f"The embedder {path}",
        )
        try:
            self._model = library.SentenceTransformer(path, device=device)
        except (OSError, ValueError, KeyError) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise ModelError(
                f"{path} cannot be loaded as a sentence encoder ({type(error).__name__}: {first}). Give a directory that "
                "sentence-transformers saved, or a name on the hub."
            ) from None
        self._batch_size = batch_size
        self.name = f"sentence-transformers:{path}"
        self.threshold = threshold
        self.dim = int(self._model.get_embedding_dimension())

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32 [N, D]."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        return unit_rows(
            self._model.encode(list(texts), batch_size=self._batch_size, show_progress_bar=False)
        )


class EndpointEmbedder:
    """A server that speaks OpenAI's `/v1/embeddings`, through the package openai (extra `llm`).

    Args:
        base_url: such as http://127.0.0.1:8000/v1.
        model: its name there.
        api_key_env: environment variable with the key; None = a server that asks for none.
        threshold: see `Embedder`; find it with `benchmarks/playbook_dedup.py`, it differs from model to model.
        batch_size: texts in one request.
        timeout_s, retries: of one request.

    Raises:
        MissingExtraError: openai is not installed.
        ConfigError: the environment variable is not set.
        EngineError: (embed) the server gave no usable vectors.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        threshold: float = 0.65,
        batch_size: int = 128,
        timeout_s: float = 60.0,
        retries: int = 3,
    ) -> None:
        self._openai = require("openai", package="openai", extra="llm", purpose="An embedder behind a server")
        key = os.environ.get(api_key_env, "") if api_key_env else "none"
        if not key:
            raise ConfigError(
                f"The embedder's key is read from the environment variable {api_key_env}, which is not set. Set it, or leave "
                "api_key_env out for a server that asks for none."
            )
        self._client = self._openai.OpenAI(
            base_url=base_url,
            api_key=key,
            organization="",
            project="",
            timeout=timeout_s,
            max_retries=retries,
        )
        self._base_url, self._model, self._batch_size = base_url, model, batch_size
        self._dim: int | None = None
        self.name = f"endpoint:{model}"
        self.threshold = threshold

    @property
    def dim(self) -> int:
        """D; asks the server for one vector if none came yet."""
        if self._dim is None:
            self.embed(["dimension"])
        assert self._dim is not None
        return self._dim

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32 [N, D]; an empty text is sent as one space, which servers accept."""
        blocks = [
            self._ask([text or " " for text in texts[start : start + self._batch_size]])
            for start in range(0, len(texts), self._batch_size)
        ]
        return np.concatenate(blocks) if blocks else np.zeros((0, self.dim), np.float32)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def _ask(self, texts: list[str]) -> Vectors:
        try:
            reply = self._client.embeddings.create(model=self._model, input=texts, encoding_format="float")
            rows = np.array(
                [item.embedding for item in sorted(reply.data, key=lambda item: item.index)], np.float64
            )
        except (self._openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            raise EngineError(
                f"{self._base_url} gave no embeddings of model {self._model!r}: {type(error).__name__}: {str(error)[:500]}"
            ) from None
        expected = (len(texts), self._dim or (rows.shape[1] if rows.ndim == 2 else 0))
        if rows.shape != expected or not expected[1] or not np.isfinite(rows).all():
            raise EngineError(
                f"{self._base_url} must give one row of finite numbers per text, {list(expected)}; received {list(rows.shape)}."
            )
        self._dim = expected[1]
        return unit_rows(rows)
