"""Model: weights + tokenizer + revision. `load` reads any Hugging Face causal LM, `save` writes one."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch, transformers, tokenizers and huggingface_hub are only partly typed)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from postgrad.core.errors import ModelError
from postgrad.core.models.lora import is_lora, save_lora
from postgrad.core.models.memory.attach import load_memory
from postgrad.core.models.memory.shard import write_whole
from postgrad.core.models.paths import locate
from postgrad.core.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Model:
    """A causal language model.

    Attributes:
        module: the network, in evaluation mode when it comes from `load`.
        tokenizer: never changed by postgrad (a missing pad token is answered by `pad_token_id`, not written
            into it).
        source: the directory or hub name that it was asked for.
        revision: commit of a hub model, else None.
    """

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str = ""
    revision: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the first parameter is."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the first parameter."""
        return next(self.module.parameters()).dtype

    @property
    def num_parameters(self) -> int:
        """Parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def context_length(self) -> int | None:
        """Longest sequence in tokens, prompt and completion together; None = no limit is set."""
        config = cast("Any", self.module.config)
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: those of the generation config, then the tokenizer's eos."""
        stops: list[int] = []
        generation = getattr(self.module, "generation_config", None)
        for found in (getattr(generation, "eos_token_id", None), self.tokenizer.eos_token_id):
            tokens = cast("list[int | None]", found if isinstance(found, list) else [found])
            for token in tokens:
                if token is not None and token not in stops:
                    stops.append(int(token))
        return tuple(stops)

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's pad token; without one, a stop token (padding is masked everywhere)."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if isinstance(pad, int) else self.stop_token_ids[-1]


def resolve_device(device: str) -> torch.device:
    """`auto` → the first GPU, else the CPU. Raises ModelError on an unknown or absent device."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ModelError(f"Unknown device {device!r}. Valid: auto, cpu, cuda, cuda:N.") from None
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"Device {device!r} is not there: this machine shows {torch.cuda.device_count()} CUDA devices. "
            'Use device = "auto" or "cpu".'
        )
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` → float32 on a CPU (bfloat16 is 12 to 30 times slower there), bfloat16 elsewhere."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in _DTYPES:
        raise ModelError(f"Unknown dtype {dtype!r}. Valid: auto, {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def load(
    path_or_name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a causal LM with its tokenizer, in evaluation mode.

    Args:
        path_or_name: a model directory, a run directory (its latest checkpoint is taken) or a hub name.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        dtype: `auto`, `float32`, `bfloat16`.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ModelError: with the path, what is wrong there and what to do.
    """
    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)
    path, commit = locate(path_or_name, revision, trust_remote_code=trust_remote_code)
    with quiet_transformers():
        check_config(path, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
        module = _load_module(path, precision, trust_remote_code=trust_remote_code)
    model = Model(module, tokenizer, source=str(path_or_name), revision=commit)
    check_tokens(model, path)
    cast("torch.nn.Module", module).to(place)
    module.eval()
    return model


def save(model: Model, path: str | Path) -> None:
    """Write weights (safetensors), config and tokenizer; `AutoModelForCausalLM.from_pretrained` reads them.

    Writes into `path` directly, and leaves other files there alone; a run's checkpoints add the atomic
    rename. A LoRA model is written merged, with its adapter in `adapter/`.
    A memory that is sharded over ranks is written whole by rank 0; all ranks call, and go on when it is written.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)

    if is_lora(model.module):
        with quiet_transformers():
            save_lora(model.module, folder)
            model.tokenizer.save_pretrained(folder)
        return

    def write(state: dict[str, torch.Tensor] | None) -> None:
        model.module.save_pretrained(folder, state_dict=state)
        model.tokenizer.save_pretrained(folder)

    with quiet_transformers():
        write_whole(model.module, write)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def check_config(path: Path, *, trust_remote_code: bool) -> None:
    """Raise ModelError unless config.json describes a causal LM that this transformers knows."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    try:
        config = cast("Any", AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code))
    except Exception as error:  # ValueError, KeyError, JSON errors, errors of remote code
        hint = (
            ""
            if trust_remote_code
            else " If the model comes with its own code and you trust it: trust_remote_code = true."
        )
        raise ModelError(f"{path}/config.json cannot be used ({_first_line(error)}).{hint}") from None
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    names = {name for value in CAUSAL.values() for name in ([value] if isinstance(value, str) else value)}
    architectures = list(config.architectures or [])
    known = type(config) in AutoModelForCausalLM._model_mapping  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    if not known or config.is_encoder_decoder or (architectures and not names.intersection(architectures)):
        what = ", ".join(architectures) or f"model_type {config.model_type!r}"
        raise ModelError(
            f"{path} is not a causal language model but {what}. "
            "Valid: architectures that AutoModelForCausalLM loads, such as Qwen3ForCausalLM."
        )


def load_tokenizer(path: Path, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory. Raises ModelError."""
    from transformers import AutoTokenizer

    try:
        return cast(
            "PreTrainedTokenizerBase",
            AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code),
        )
    except Exception as error:  # OSError, ValueError, JSON errors, plain Exception from tokenizers
        raise ModelError(
            f"The tokenizer in {path} cannot be loaded ({_first_line(error)}). "
            "Write it anew: AutoTokenizer.from_pretrained(BASE_MODEL).save_pretrained(DIR)."
        ) from None


def _load_module(path: Path, dtype: torch.dtype, *, trust_remote_code: bool) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:  # OSError, SafetensorError, size mismatches (RuntimeError), import errors
        raise ModelError(
            f"The weights in {path} cannot be loaded ({_first_line(error)}). "
            "Check that every *.safetensors file of the index is complete; copy or download it again."
        ) from None
    module, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    missing = load_memory(module, path, sorted(info.get("missing_keys", ())))
    if missing:
        raise ModelError(
            f"The weights in {path} lack {len(missing)} tensors of {type(module).__name__}: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}. They would be random. "
            "Give the complete model, or check that config.json belongs to these weights."
        )
    return module


def check_tokens(model: Model, path: Path) -> None:
    """Raise ModelError when there is no stop token or a token without an embedding."""
    if not model.stop_token_ids:
        raise ModelError(
            f"{path} has no end-of-sequence token, neither in the tokenizer nor in generation_config.json: "
            'completions would never stop. Set one: tokenizer.eos_token = "TOKEN"; '
            "tokenizer.save_pretrained(DIR)."
        )
    num_embeddings = int(cast("torch.nn.Embedding", model.module.get_input_embeddings()).weight.shape[0])
    highest = max(model.tokenizer.get_vocab().values(), default=-1)
    highest = max(highest, *model.stop_token_ids)
    if highest >= num_embeddings:
        raise ModelError(
            f"The tokenizer in {path} has token id {highest}, but the model has only {num_embeddings} "
            "embeddings. Use its own tokenizer, or model.resize_token_embeddings(len(tokenizer)) and train."
        )
