"""Checkpoints of one training: which there are, how much each counts, whether they read alike, their weights in a module."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from postgrad.core.checkpoints import Checkpoints
from postgrad.core.errors import ConfigError, MissingExtraError, ModelError
from postgrad.core.models.model import load_tokenizer
from postgrad.core.models.paths import TOKENIZER_FILES
from postgrad.core.models.quiet import quiet_transformers
from postgrad.influence.callback import RECORD_FILE, read_record


def find_checkpoints(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The directories, each once; of one that holds checkpoints (`step_…`, or `checkpoints/step_…`) all of them, oldest first.

    Raises:
        ConfigError: none, or one that is not there.
    """
    given = [paths] if isinstance(paths, (str, Path)) else paths
    found: list[Path] = []
    for path in map(Path, given):
        if not path.is_dir():
            raise ConfigError(f"There is no checkpoint directory {path} (looked in {Path.cwd()}).")
        inside = [entry for root in (path, path / "checkpoints") for _, entry in Checkpoints(root).all()]
        found += inside or [path]
    if not found:
        raise ConfigError("There are no checkpoints. Give at least one directory.")
    return list(dict.fromkeys(found))


def checkpoint_shares(checkpoints: Sequence[Path], weights: str) -> list[float]:
    """Share of each in the mean; they add up to 1.

    Args:
        checkpoints: their directories.
        weights: `equal`, or `learning_rate`: mean learning rate times the steps that a checkpoint stands for.

    Raises:
        ConfigError: no record of the learning rate, or it was 0 throughout.
    """
    if weights == "equal":
        return [1 / len(checkpoints)] * len(checkpoints)
    sizes: list[float] = []
    for path in checkpoints:
        record = read_record(path)
        if record is None:
            raise ConfigError(
                f"{path} has no {RECORD_FILE} with its learning rate: CheckpointCallback did not write it. "
                'Use checkpoint_weights = "equal".'
            )
        sizes.append(record.mean_learning_rate * record.num_steps)
    if sum(sizes) <= 0:
        raise ConfigError('The learning rate was 0 at every checkpoint. Use checkpoint_weights = "equal".')
    return [size / sum(sizes) for size in sizes]


def check_tokenizers(
    checkpoints: Sequence[Path], tokenizer: Any, texts: Sequence[str], *, needed: bool
) -> None:
    """Refuses checkpoints that read texts differently: scores of different tokens have no mean.

    Args:
        checkpoints: their directories.
        tokenizer: of the model that takes their weights, or None.
        texts: on which they must agree.
        needed: whether each must have one.

    Raises:
        ModelError: names two, and what differs; or one that has no tokenizer and needs it.
    """
    first, owner = tokenizer, "the model"
    for path in checkpoints:
        if not any((path / name).is_file() for name in TOKENIZER_FILES):
            if needed:
                raise ModelError(
                    f"{path} has no tokenizer. Give the trainer its tokenizer as processing_class, or give model, which has one."
                )
            continue
        found = load_tokenizer(path, trust_remote_code=False)
        if first is None:
            first, owner = found, str(path)
        elif what := _difference(first, found, texts):
            raise ModelError(
                f"{owner} and {path} have different tokenizers ({what}): their losses are of different tokens, and their scores "
                "have no mean. Give checkpoints of one training."
            )


def _difference(one: Any, other: Any, texts: Sequence[str]) -> str:
    if one.get_vocab() != other.get_vocab():
        return "another vocabulary"
    if (one.bos_token_id, one.eos_token_id) != (other.bos_token_id, other.eos_token_id):
        return "other special tokens"
    if getattr(one, "chat_template", None) != getattr(other, "chat_template", None):
        return "another chat template"
    for text in texts:
        if one(text, verbose=False)["input_ids"] != other(text, verbose=False)["input_ids"]:
            return f"they cut {text[:40]!r} differently"
    return ""


@contextlib.contextmanager
def weights_kept(module: nn.Module) -> Generator[None]:
    """Afterwards all parameters and buffers have the values that they had."""
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(tensors, kept, strict=True):
                tensor.copy_(values)


def put_weights(module: nn.Module, checkpoint: Path) -> None:
    """The weights of a checkpoint into a module of its architecture; of an adapter (peft) into a module that has one like it.

    Raises:
        ModelError: no safetensors, tensors that the module does not have, or some that it lacks.
        MissingExtraError: an adapter without the extra `peft`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    try:
        for file in sorted(checkpoint.glob("*.safetensors")):
            state |= load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"The weights in {checkpoint} cannot be read: {error}.") from None
    if not state:
        raise ModelError(f"{checkpoint} has no weights (*.safetensors).")
    try:
        if (checkpoint / "adapter_config.json").is_file():
            missing, unexpected = _put_adapter(module, state)
        else:
            missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # sizes
        raise ModelError(f"The weights in {checkpoint} do not fit the model: {error}") from None
    names = dict(module.named_parameters(remove_duplicate=False))
    tied = {id(names[name]) for name in state if name in names}
    missing = [name for name in missing if id(names.get(name)) not in tied]
    if missing or unexpected:
        raise ModelError(
            f"The weights in {checkpoint} are those of another model: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3]) or 'none'}), {len(unexpected)} unknown ({', '.join(unexpected[:3]) or 'none'})."
        )


def _put_adapter(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    try:
        import peft
    except ModuleNotFoundError:
        raise MissingExtraError("peft", "peft", "A checkpoint of an adapter") from None
    if not isinstance(module, peft.PeftModel):
        raise ModelError(
            "The checkpoint is an adapter. Give the model with an adapter like it: "
            "peft.PeftModel.from_pretrained(model.module, CHECKPOINT)."
        )
    with quiet_transformers():
        found = cast("Any", peft.set_peft_model_state_dict(module, dict(state)))
    return [name for name in found.missing_keys if "lora_" in name], list(found.unexpected_keys)
