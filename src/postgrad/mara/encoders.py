"""Models that compare answers: a sentence encoder and a classifier of pairs, both through transformers.

`semantics.py` uses them through plain functions; only `postgrad mara measure --embedder` and `--partition` import this file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from postgrad.core.errors import ConfigError, ModelError
from postgrad.core.models.model import resolve_device
from postgrad.core.models.paths import locate, looks_local
from postgrad.core.models.quiet import quiet_transformers
from postgrad.mara.semantics import Pair
from postgrad.tasks.extras import require

Pooling = Literal["mean", "cls"]
_UNLIMITED = 10**9
_DEFAULT_TOKENS = 512
"""Where neither the tokenizer nor the model says how much can be read."""
_UNUSED = ("pooler.", "lm_head.", "cls.", "embeddings.position_ids")
"""Weights that pooling over the last layer does not use."""


class TextEncoder:
    """Texts → unit vectors, float64 [N, D]: the last layer's states, averaged over the tokens of a text (or the first one's).

    A directory of sentence-transformers is read for its pooling and its length; one with further layers, or another pooling,
    is left to that package (extra `embed`). Longer texts are read from their beginning and counted.

    Args:
        path: directory or hub name.
        device: as for `core.models.load`.
        batch_size: texts in one forward pass.

    Attributes:
        num_cut: texts that were longer than the model reads.

    Raises:
        ModelError: no such model, or weights that are missing.
        MissingExtraError: a sentence-transformers model that needs that package.
    """

    def __init__(self, path: str, device: str = "auto", batch_size: int = 32) -> None:
        self.num_cut = 0
        self._batch_size = batch_size
        self._device = resolve_device(device)
        folder, _ = locate(path, None, trust_remote_code=False)
        pooling, self._limit = _sentence_settings(folder)
        self._foreign: Any = None
        if pooling is None:
            library = require(
                "sentence_transformers",
                package="sentence-transformers",
                extra="embed",
                purpose=f"The embedder {path}",
            )
            self._foreign = library.SentenceTransformer(str(folder), device=str(self._device))
            return
        self._pooling: Pooling = pooling
        self._tokenizer, self._module = _load(str(folder), str(folder), "AutoModel", self._device)
        self._limit = min(self._limit, _readable_tokens(self._tokenizer, self._module.config))

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> NDArray[np.float64]:
        """Vectors in the order of the texts; batches are made by length."""
        if self._foreign is not None:
            return np.asarray(self._foreign.encode(texts, batch_size=self._batch_size), np.float64)
        ids = [self._tokenizer(text, verbose=False)["input_ids"] for text in texts]
        self.num_cut += sum(len(row) > self._limit for row in ids)
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        rows: list[NDArray[np.float64] | None] = [None] * len(texts)
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            inputs = self._tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=self._limit,
                return_tensors="pt",
                verbose=False,
            ).to(self._device)
            states = self._module(**_accepted(self._module, inputs)).last_hidden_state.double()
            weights = inputs["attention_mask"].unsqueeze(-1).double()
            if self._pooling == "mean":
                pooled = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
            else:
                pooled = states[torch.arange(len(chosen)), weights.squeeze(-1).argmax(1)]
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
            for i, row in zip(chosen, pooled.cpu().numpy(), strict=True):
                rows[i] = row
        return np.array([row for row in rows if row is not None], np.float64).reshape(len(texts), -1)


class PairClassifier:
    """Pairs of answers → the chance that they do the same for a reader, by a classifier of sequence pairs.

    Args:
        path: directory or hub name, such as NoveltyBench's yimingzhang/deberta-v3-large-generation-similarity.
        tokenizer: where the tokenizer is, if not there.
        label: the output that says "the same"; a classifier with one output has its sigmoid taken.
        max_tokens: tokens read of each answer, from its beginning (NoveltyBench: 128).
        device: as for `core.models.load`.
        batch_size: pairs in one forward pass.

    Raises:
        ModelError: no such model, or no classifier with trained weights.
        ConfigError: it has no such label.
    """

    def __init__(
        self,
        path: str,
        tokenizer: str | None = None,
        label: int = 1,
        max_tokens: int = 128,
        device: str = "auto",
        batch_size: int = 32,
    ) -> None:
        self._device = resolve_device(device)
        self._max_tokens, self._batch_size = max_tokens, batch_size
        self._tokenizer, self._module = _load(
            path, tokenizer or path, "AutoModelForSequenceClassification", self._device
        )
        names: dict[int, str] = self._module.config.id2label
        self._label = 0 if len(names) == 1 else label
        if self._label not in names:
            shown = ", ".join(f"{index} ({name})" for index, name in sorted(names.items()))
            raise ConfigError(f"{path} has the labels {shown}, not {label}; see --partition-label.")
        self._limit = _readable_tokens(self._tokenizer, self._module.config)
        if self._limit < 2 * max_tokens + 4:
            raise ConfigError(
                f"{path} reads {self._limit} tokens, too few for two answers of {max_tokens}; lower --partition-tokens."
            )

    @torch.inference_mode()
    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        """One chance for each pair, in order; batches are made by length."""
        begun = {text: self._beginning(text) for text in dict.fromkeys(t for pair in pairs for t in pair)}
        order = sorted(range(len(pairs)), key=lambda i: sum(len(begun[text]) for text in pairs[i]))
        scores = [0.0] * len(pairs)
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            first, second = ([begun[pairs[i][side]] for i in chosen] for side in (0, 1))
            inputs = self._tokenizer(
                first,
                second,
                padding=True,
                truncation="longest_first",
                max_length=self._limit,
                return_tensors="pt",
                verbose=False,
            ).to(self._device)
            logits = self._module(**_accepted(self._module, inputs)).logits.double()
            chances = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(-1)
            for i, chance in zip(chosen, chances[:, self._label].tolist(), strict=True):
                scores[i] = chance
        return scores

    def _beginning(self, text: str) -> str:
        """The text as far as its first `max_tokens` tokens reach."""
        found = self._tokenizer(
            text,
            add_special_tokens=False,
            truncation=True,
            max_length=self._max_tokens,
            return_offsets_mapping=True,
            verbose=False,
        )["offset_mapping"]
        return text[: found[-1][1]] if len(found) == self._max_tokens else text


# -- loading -------------------------------------------------------------------------------------------------------


def _load(path: str, tokenizer: str, kind: str, device: torch.device) -> tuple[Any, Any]:
    """(tokenizer, module in float32 and evaluation mode); refuses weights that are incomplete."""
    import transformers

    for name in (path, tokenizer):
        if looks_local(name) and not Path(name).expanduser().is_dir():
            raise ModelError(f"There is no model directory {name}.")
    with quiet_transformers():
        try:
            words = transformers.AutoTokenizer.from_pretrained(tokenizer)
            module, info = getattr(transformers, kind).from_pretrained(
                path, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, errors of the hub
            first = (str(error).strip().splitlines() or [""])[0]
            raise ModelError(
                f"{path} cannot be loaded with {kind} and the tokenizer of {tokenizer} ({type(error).__name__}: {first}). "
                "Give a directory or hub name with config.json, safetensors and tokenizer."
            ) from None
    missing = sorted(name for name in info.get("missing_keys", ()) if not _unused(name, kind))
    if missing:
        raise ModelError(
            f"{path} lacks {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''} for {kind}; they would be random. Give a "
            "model that was trained for this."
        )
    if words.pad_token is None:
        words.pad_token = words.eos_token or words.unk_token  # masked everywhere
    module.config.pad_token_id = (
        words.pad_token_id if module.config.pad_token_id is None else module.config.pad_token_id
    )
    return words, module.to(device).eval()


def _unused(name: str, kind: str) -> bool:
    return kind == "AutoModel" and any(name.startswith(p) or f".{p}" in name for p in _UNUSED)


def _accepted(module: Any, inputs: Any) -> dict[str, Any]:
    """Those of the tokenizer's tensors that the model takes."""
    import inspect

    names = inspect.signature(module.forward).parameters
    return {name: value for name, value in inputs.items() if name in names}


def _readable_tokens(tokenizer: Any, config: Any) -> int:
    """Most tokens of a text, special ones included."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or _UNLIMITED
    limit = min(int(min(tokenizer.model_max_length, _UNLIMITED)), int(positions))
    return _DEFAULT_TOKENS if limit >= _UNLIMITED else limit


def _sentence_settings(folder: Path) -> tuple[Pooling | None, int]:
    """(pooling, most tokens) of a directory; pooling None = only sentence-transformers can do it.

    Without the files of sentence-transformers it is an encoder of Hugging Face: mean pooling.
    """
    if not (folder / "modules.json").is_file():
        return "mean", _UNLIMITED
    kinds = [str(module["type"]).rpartition(".")[2] for module in _json(folder / "modules.json")]
    places = [str(module.get("path", "")) for module in _json(folder / "modules.json")]
    plain = kinds[:2] == ["Transformer", "Pooling"] and kinds[2:] in ([], ["Normalize"]) and places[0] == ""
    if not plain:
        return None, _UNLIMITED
    pooling = cast("dict[str, Any]", _json(folder / places[1] / "config.json"))
    modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True]
    limits = folder / "sentence_bert_config.json"
    limit = _json(limits).get("max_seq_length") if limits.is_file() else None
    known: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    mode = known.get(modes[0]) if len(modes) == 1 else None
    if isinstance(pooling.get("pooling_mode"), str):
        mode = cast(
            "Pooling | None", pooling["pooling_mode"] if pooling["pooling_mode"] in ("mean", "cls") else None
        )
    return mode, int(limit or _UNLIMITED)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
