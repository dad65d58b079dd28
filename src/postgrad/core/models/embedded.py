"""The embedded small model: a Qwen3-type network built from config and warm-started on task demonstrations.

The warm start is the analogue of the supervised stage before RL: it stops early on purpose, so that the model
is right some of the time and RL has something to sharpen. The result is cached by content and loaded like any
other model.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch, transformers, tokenizers and huggingface_hub are only partly typed)

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from postgrad.core.data import encode_prompt
from postgrad.core.errors import ModelError
from postgrad.core.models.config import EmbeddedConfig
from postgrad.core.models.model import Model, load, resolve_device, save
from postgrad.core.models.muon import Muon
from postgrad.core.models.phrases import build_tokenizer
from postgrad.core.models.quiet import quiet_transformers
from postgrad.core.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3Config

Demonstration = tuple[str, str]
"""(prompt text, answer text)."""

Progress = Callable[[int, int, float], None]
"""Called as progress(step, steps, loss) after each update."""

FORMAT_VERSION = 2
"""Part of the cache key: raised whenever the same config and demonstrations would give another model."""

_IGNORE = -100
_WARMUP_SHARE, _FINAL_LR_SHARE = 0.05, 0.1
_BUCKET_BATCHES = 16


def embedded_model(
    demonstrations: Sequence[Demonstration],
    config: EmbeddedConfig | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
    cache_dir: str | Path | None = None,
) -> Model:
    """The warm-started small model for these demonstrations, from the cache or built now.

    Args:
        demonstrations: (prompt text, answer text) pairs; the answer alone is trained on, followed by the stop
            token.
        config: sizes and warm start.
        device, dtype: as for `load`; the warm start itself runs in float32.
        progress: told (step, steps, loss) after each update; not called when the model comes from the cache.
        cache_dir: default `$POSTGRAD_CACHE`, else `$XDG_CACHE_HOME/postgrad`, else `~/.cache/postgrad`.

    Raises:
        ModelError: no demonstrations, one that is too long for `max_position`, or a cache that cannot be
            written.
    """
    config = config or EmbeddedConfig()
    folder = cache_root(cache_dir) / "models" / content_key(demonstrations, config)
    if folder.is_dir():
        try:
            return load(folder, device=device, dtype=dtype)
        except ModelError:  # damaged by hand or by a full disk: build it again
            shutil.rmtree(folder, ignore_errors=True)
    if not demonstrations:
        raise ModelError(
            "The embedded model needs demonstrations to warm-start on, and got none. Give a task."
        )
    model = build(demonstrations, config)
    cast("torch.nn.Module", model.module).to(resolve_device(device))
    warm_start(model, demonstrations, config, progress=progress)
    _publish(model, folder)
    return load(folder, device=device, dtype=dtype)


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """`cache_dir`, else `$POSTGRAD_CACHE`, else `$XDG_CACHE_HOME/postgrad`, else `~/.cache/postgrad`."""
    if cache_dir is not None:
        return Path(cache_dir)
    if os.environ.get("POSTGRAD_CACHE"):
        return Path(os.environ["POSTGRAD_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "postgrad"
    return Path.home() / ".cache" / "postgrad"


def content_key(demonstrations: Sequence[Demonstration], config: EmbeddedConfig) -> str:
    """Twenty hex digits that name config, demonstrations (in order) and format version."""
    content = json.dumps(
        [FORMAT_VERSION, config.model_dump(mode="json"), [list(pair) for pair in demonstrations]]
    )
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def build(demonstrations: Sequence[Demonstration], config: EmbeddedConfig) -> Model:
    """Tokenizer from the demonstrations and a network with random weights, on the CPU in float32."""
    from transformers import Qwen3ForCausalLM

    texts = [part for prompt, answer in demonstrations for part in (f"{prompt}\n", answer)]
    tokenizer = build_tokenizer(texts, config.vocab_size, config.max_position)
    shape = architecture(config, len(tokenizer))
    shape.eos_token_id, shape.pad_token_id = cast(
        "tuple[int, int]", (tokenizer.eos_token_id, tokenizer.pad_token_id)
    )
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = Qwen3ForCausalLM(shape)
    return Model(module.eval(), tokenizer, source="embedded")


def architecture(config: EmbeddedConfig, vocab_size: int) -> Qwen3Config:
    """The network's shape; the special tokens are for the caller to set."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
    )


def warm_start(
    model: Model,
    demonstrations: Sequence[Demonstration],
    config: EmbeddedConfig,
    *,
    progress: Progress | None = None,
) -> None:
    """Supervised training in place: mean cross-entropy of answer and stop tokens, given the prompt.

    Muon for the weight matrices, AdamW for the rest; linear warm-up, then cosine decay. Batches hold sequences
    of similar length; order fixed by `config.seed`.

    Raises:
        ModelError: a demonstration is longer than `config.max_position`.
    """
    pairs = _encode(model.tokenizer, demonstrations, config.max_position)
    module = model.module
    matrices, others = split_parameters(module)
    muon = Muon(matrices, config.matrix_lr)
    adamw = torch.optim.AdamW(others, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    batches = _batches(pairs, config.batch_size, model.pad_token_id, config.seed)
    module.train()
    for step in range(config.steps):
        share = lr_share(step, config.steps)
        muon.lr = config.matrix_lr * share
        for group in adamw.param_groups:
            group["lr"] = config.lr * share
        tokens, targets = (array.to(model.device) for array in next(batches))
        loss = answer_loss(module, tokens, targets)
        module.zero_grad(set_to_none=True)
        loss.backward()
        muon.step()
        adamw.step()
        if progress is not None:
            progress(step + 1, config.steps, loss.item())
    module.zero_grad(set_to_none=True)
    module.eval()


def split_parameters(module: torch.nn.Module) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """(weight matrices inside the layers, everything else: the tied embedding and the norms)."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in named if parameter.dim() == 2 and ".layers." in name]
    others = [parameter for name, parameter in named if not (parameter.dim() == 2 and ".layers." in name)]
    return matrices, others


def lr_share(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear over the first 5 %, then cosine to 0.1.

    >>> lr_share(0, 100), lr_share(4, 100), round(lr_share(99, 100), 2)
    (0.2, 1.0, 0.1)
    """
    warmup = max(1, int(_WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    along = (step + 1 - warmup) / max(1, steps - warmup)
    return _FINAL_LR_SHARE + (1 - _FINAL_LR_SHARE) * 0.5 * (1 + float(np.cos(np.pi * along)))


def answer_loss(module: torch.nn.Module, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the positions with a target; the LM head runs on those alone.

    Args:
        module: a causal LM with `model` (the trunk) and `lm_head`.
        tokens: int64 [B, T], padded on the right.
        targets: int64 [B, T]; the token that follows, −100 where none is learned.
    """
    network = cast("Any", module)
    hidden = cast("torch.Tensor", network.model(input_ids=tokens, use_cache=False).last_hidden_state)
    learned = targets != _IGNORE
    return F.cross_entropy(cast("torch.Tensor", network.lm_head(hidden[learned])), targets[learned])


def _encode(
    tokenizer: PreTrainedTokenizerBase, demonstrations: Sequence[Demonstration], max_position: int
) -> list[tuple[NDArray[np.int64], int]]:
    """(tokens of prompt + answer + stop, number of prompt tokens) of each demonstration."""
    pairs: list[tuple[NDArray[np.int64], int]] = []
    for prompt_text, answer in demonstrations:
        prompt = encode_prompt(tokenizer, Prompt(id="", text=prompt_text))
        answer_ids = np.asarray([*tokenizer(answer)["input_ids"], tokenizer.eos_token_id], dtype=np.int64)  # pyright: ignore[reportArgumentType]
        tokens = np.concatenate([prompt, answer_ids])
        if len(tokens) > max_position:
            raise ModelError(
                f"A demonstration has {len(tokens)} tokens, above max_position {max_position}: "
                f"{prompt_text[:60]!r}. Raise model.embedded.max_position, or shorten the task's prompts."
            )
        pairs.append((tokens, len(prompt)))
    return pairs


def _batches(
    pairs: Sequence[tuple[NDArray[np.int64], int]], batch_size: int, pad: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (tokens, targets), int64 [B, T]: shuffled, then sorted by length within a few batches."""
    random = np.random.default_rng(seed)
    lengths = np.array([len(tokens) for tokens, _ in pairs])
    bucket = batch_size * _BUCKET_BATCHES
    while True:
        order = random.permutation(len(pairs))
        chunks: list[NDArray[np.int64]] = []
        for start in range(0, len(order), bucket):
            part = order[start : start + bucket]
            part = part[np.argsort(lengths[part], kind="stable")]
            chunks += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        for index in random.permutation(len(chunks)):
            chosen = [pairs[int(i)] for i in chunks[int(index)]]
            width = max(len(tokens) for tokens, _ in chosen) - 1
            inputs = np.full((len(chosen), width), pad, dtype=np.int64)
            targets = np.full((len(chosen), width), _IGNORE, dtype=np.int64)
            for row, (tokens, prompt_length) in enumerate(chosen):
                inputs[row, : len(tokens) - 1] = tokens[:-1]
                targets[row, prompt_length - 1 : len(tokens) - 1] = tokens[prompt_length:]
            yield torch.from_numpy(inputs), torch.from_numpy(targets)


def _publish(model: Model, folder: Path) -> None:
    """Write the model beside `folder`, then rename: readers see all or nothing; the first builder wins."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ModelError(
            f"The model cache {folder.parent} cannot be written ({error.strerror}). "
            "Set POSTGRAD_CACHE to a directory that can."
        ) from None
    try:
        save(model, staging)
        staging.chmod(0o755)
        staging.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # a concurrent builder did not publish either: a real failure
            raise ModelError(f"The model cache {folder} cannot be written ({error}).") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
