"""LoRA (Hu et al., arXiv 2106.09685) through peft (extra `peft`): y = Wx + s·BAx with W frozen, s = alpha/rank.

A and B are fp32 whatever W is. Whatever reads weights by the names of the base model, engines and checkpoints, gets W + s·BA.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch's random numbers and peft are only partly typed)

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from postgrad.core.errors import MissingExtraError, ModelError
from postgrad.core.models.config import LoraConfig
from postgrad.core.models.quiet import quiet_transformers

ADAPTER_FOLDER = "adapter"
"""Where a saved model has its adapter, in peft's format; the folder above has the merged weights."""


def require_peft(purpose: str) -> None:
    """Raises MissingExtraError if peft is not installed."""
    if find_spec("peft") is None:
        raise MissingExtraError("peft", "peft", purpose)


def add_lora(module: Any, config: LoraConfig, seed: int) -> Any:
    """`module` as a peft model: A drawn by the seed, B = 0, so that nothing has changed yet; only A and B are trainable.

    Raises:
        MissingExtraError: peft is not installed.
        ModelError: a target that the model does not have, or its head or embedding.
    """
    require_peft("LoRA")
    peft: Any = import_module("peft")
    from peft.tuners.lora import LoraLayer

    targets = config.target_modules if config.target_modules == "all-linear" else list(config.target_modules)
    options = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    ends = (module.get_input_embeddings(), module.get_output_embeddings())
    try:
        with torch.random.fork_rng(), quiet_transformers():
            torch.manual_seed(seed)
            adapted: Any = peft.get_peft_model(module, options)
    except ValueError as error:
        linear = {
            name.rsplit(".", 1)[-1]
            for name, part in module.named_modules()
            if isinstance(part, torch.nn.Linear)
        }
        raise ModelError(
            f"lora.target_modules {config.target_modules!r} cannot be adapted ({str(error).splitlines()[0]}). "
            f"The model's linear layers are called {', '.join(sorted(linear))}."
        ) from None
    for name, part in module.named_modules():
        if isinstance(part, LoraLayer) and any(part.get_base_layer() is end for end in ends):
            raise ModelError(
                f"lora.target_modules names {name!r}, the head or the embedding, which may share their weights. "
                'Leave it out; "all-linear" does.'
            )
    return adapted


def is_lora(module: Any) -> bool:
    """Whether `add_lora` made it."""
    return hasattr(module, "peft_config") and hasattr(module, "disable_adapter")


@torch.no_grad()
def merged_weights(module: Any) -> dict[str, Tensor]:
    """The base model's state dict with W + s·BA (in W's dtype) where there is an adapter; the other tensors are the live ones."""
    base = module.get_base_model()
    layers = dict(base.named_modules())
    weights: dict[str, Tensor] = {}
    for key, value in base.state_dict().items():
        owner, inside, name = key.rpartition(".base_layer.")
        if inside:
            whole = (
                (value + layers[owner].get_delta_weight("default")).to(value.dtype)
                if name == "weight"
                else value
            )
            weights[f"{owner}.{name}"] = whole
        elif not re.search(r"(^|\.)lora_", key):
            weights[key] = value
    return weights


def save_lora(module: Any, folder: Path) -> None:
    """Writes the merged model (without tokenizer) to `folder`, as any other, and the adapter to `folder`/adapter."""
    module.get_base_model().save_pretrained(folder, state_dict=merged_weights(module))
    adapter = folder / ADAPTER_FOLDER
    module.save_pretrained(adapter, save_embedding_layers=False)
    (adapter / "README.md").unlink(missing_ok=True)  # an empty form


def load_adapter(module: Any, folder: Path) -> None:
    """Takes up A and B from a folder that `save_lora` wrote, exactly.

    Raises:
        ModelError: they are not there, or of another shape.
    """
    file = folder / ADAPTER_FOLDER / "adapter_model.safetensors"
    try:
        result: Any = import_module("peft").set_peft_model_state_dict(module, load_file(file))
    except (OSError, RuntimeError) as error:
        raise ModelError(f"The adapter in {file} cannot be read: {str(error).splitlines()[0]}") from None
    if result.unexpected_keys:
        raise ModelError(f"The adapter in {file} has {result.unexpected_keys[0]}, which this model does not.")


@contextmanager
def _active(dropouts: list[torch.nn.Dropout], seed: int) -> Generator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in dropouts:
            part.train()
        try:
            yield
        finally:
            for part in dropouts:
                part.eval()


def adapter_dropout(module: Any, seed: int) -> Any:
    """A context in which the adapter's dropout, and no other, is active; its masks are drawn by the seed."""
    dropouts = [
        part
        for name, part in module.named_modules()
        if ".lora_dropout." in name and isinstance(part, torch.nn.Dropout)
    ]
    return _active(dropouts, seed) if dropouts else nullcontext()


def count_lora(module: Any, config: LoraConfig) -> int:
    """Parameters that `add_lora` would add: rank·(inputs + outputs) of each target. Needs no weights, and no peft."""
    head = module.get_output_embeddings()
    total = 0
    for name, part in module.named_modules():
        weight = getattr(part, "weight", None)
        if part is head or weight is None or weight.dim() != 2 or isinstance(part, torch.nn.Embedding):
            continue
        targets = config.target_modules
        if targets == "all-linear" or any(name == t or name.endswith("." + t) for t in targets):
            total += config.rank * sum(weight.shape)
    return total
