"""Memory layers in any Hugging Face causal LM: attach, find, save with the model, load again.

A layer is called `mlp.memory` in its block: beside the MLP, whose output a hook adds it to (additive), or instead of all that
the MLP had (replace). The names of all other weights stay, so without postgrad an additive model still loads as the model it was.
`config.postgrad_memory` says what is attached, and travels in config.json.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch, transformers and safetensors are only partly typed)

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from postgrad.core.config import validate
from postgrad.core.errors import ModelError
from postgrad.core.models.memory.config import MemoryConfig
from postgrad.core.models.memory.layer import MemoryLayer
from postgrad.core.models.memory.patch import apply_patch, patch_files, read_patch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_KEY = "postgrad_memory"
_MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "ff")


def attach(module: PreTrainedModel, config: MemoryConfig) -> list[MemoryLayer]:
    """Puts memory layers with initial weights into the model, in place; returns them by block.

    Args:
        module: a causal LM without memory.
        config: where and how large.

    Raises:
        ModelError: it has a memory already, has no such block, or no MLP is found in one.
    """
    if memory_config(module) is not None:
        raise ModelError(
            "This model has memory layers already. Start from the model without, or go on teaching these."
        )
    blocks = find_blocks(module)
    beyond = [layer for layer in config.layers if layer >= len(blocks)]
    if beyond:
        raise ModelError(f"layers = {list(config.layers)}, but the model has blocks 0 to {len(blocks) - 1}.")
    width = int(cast("Any", module.get_input_embeddings()).weight.shape[1])
    generator = torch.Generator().manual_seed(config.seed)
    made: list[MemoryLayer] = []
    for index in config.layers:
        name = _mlp_name(blocks[index])
        mlp = cast("nn.Module", getattr(blocks[index], name))
        shared = made[0].table if config.shared_values and made else None
        layer = MemoryLayer(config, width, shared)
        layer.reset(generator)
        like = next(blocks[index].parameters())
        layer.to(device=like.device, dtype=like.dtype)
        layer.train(module.training)
        if config.mode == "additive":
            mlp.add_module("memory", layer)
            mlp.register_forward_hook(_add_memory)
        else:
            setattr(blocks[index], name, _InPlaceOfMLP(layer))
        made.append(layer)
    setattr(module.config, CONFIG_KEY, config.model_dump(mode="json"))
    return made


class _InPlaceOfMLP(nn.Module):
    """A memory that is all there is of an MLP; it has the same name in the model as one beside an MLP."""

    def __init__(self, memory: MemoryLayer) -> None:
        super().__init__()
        self.memory = memory

    def forward(self, hidden: Tensor) -> Tensor:
        return self.memory(hidden)


def _add_memory(mlp: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """mlp(x) + scale·memory(x); an MLP of experts gives a tuple whose first entry is the output."""
    added = cast("MemoryLayer", mlp.memory)(inputs[0])
    if isinstance(output, tuple):
        first, *rest = cast("tuple[Tensor, ...]", output)
        return (first + added.view_as(first), *rest)
    return output + added


def find_blocks(module: PreTrainedModel) -> nn.ModuleList:
    """The model's blocks, in order. Raises ModelError if there is no list of them."""
    depth = int(cast("Any", module.config).get_text_config().num_hidden_layers)
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and len(child) == depth and _mlp_name(child[0], missing=""):
            return child
    raise ModelError(
        f"{type(module).__name__} has no list of {depth} blocks with an MLP ({', '.join(_MLP_NAMES)}); a memory needs one."
    )


def _mlp_name(block: nn.Module, missing: str | None = None) -> str:
    for name in _MLP_NAMES:
        if isinstance(getattr(block, name, None), nn.Module):
            return name
    if missing is None:
        raise ModelError(f"{type(block).__name__} has no MLP by a known name ({', '.join(_MLP_NAMES)}).")
    return missing


def memory_config(module: PreTrainedModel) -> MemoryConfig | None:
    """What is attached; None without memory."""
    data = cast("Mapping[str, Any] | None", getattr(module.config, CONFIG_KEY, None))
    return None if data is None else validate(MemoryConfig, data)


def memory_layers(module: nn.Module) -> dict[str, MemoryLayer]:
    """The attached layers by their names in the model."""
    return {name: child for name, child in module.named_modules() if isinstance(child, MemoryLayer)}


def set_index(module: PreTrainedModel, index: Literal["flat", "pq"], **options: Any) -> None:
    """Looks a flat set of keys up by `index` from now on, also after the model was saved; no weight changes.

    Args:
        module: with memory of the index flat or pq.
        index: the new one.
        options: fields of `MemoryConfig` that begin with `pq_`.

    Raises:
        ModelError: it has no memory, or product keys, or an option is about something else.
        ConfigError: an option is impossible.
    """
    own = memory_config(module)
    if own is None or "product" in (own.index, index):
        received = "no memory" if own is None else f"index {own.index!r}"
        raise ModelError(f"Flat keys are looked up by flat or pq; received {received}, to become {index!r}.")
    other = [name for name in options if not name.startswith("pq_")]
    if other:
        raise ModelError(f"{', '.join(other)} would be other weights. Valid: options that begin with pq_.")
    config = validate(MemoryConfig, {**own.model_dump(mode="json"), "index": index, **options})
    for layer in memory_layers(module).values():
        layer.config = config
    setattr(module.config, CONFIG_KEY, config.model_dump(mode="json"))


def load_memory(module: PreTrainedModel, path: Path, missing: list[str]) -> list[str]:
    """Attaches what config.json says, reads its weights from the safetensors files of `path` and applies its patches, in place.

    Args:
        module: loaded without its memory.
        path: model directory.
        missing: names that loading did not find.

    Returns:
        Those of `missing` that are still missing (in replaced MLPs there are none).

    Raises:
        ModelError: weights of the memory are missing or have other shapes, or a patch does not fit.
    """
    config = memory_config(module)
    if config is None:
        return missing
    delattr(module.config, CONFIG_KEY)
    attach(module, config)
    found = read_tensors(path, {f"{name}." for name in memory_layers(module)})
    expected = {name: tensor for name, tensor in module.state_dict().items() if _inside(module, name)}
    for name, tensor in expected.items():
        if name not in found or found[name].shape != tensor.shape:
            received = tuple(found[name].shape) if name in found else "nothing"
            raise ModelError(
                f"The memory in {path} is incomplete: {name} should have shape {tuple(tensor.shape)}, found {received}. "
                "Copy the whole directory again."
            )
        with torch.no_grad():
            tensor.copy_(found[name])
    for file in patch_files(path):
        apply_patch(module, read_patch(file))
    present = module.state_dict().keys()
    return [name for name in missing if name in present]


def _inside(module: PreTrainedModel, name: str) -> bool:
    return any(name.startswith(f"{layer}.") for layer in memory_layers(module))


def read_tensors(path: Path, prefixes: set[str]) -> dict[str, Tensor]:
    """The tensors of a model directory whose names begin with one of the prefixes."""
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:  # pyright: ignore[reportUnknownVariableType]
            for name in tensors.keys():  # noqa: SIM118
                if name.startswith(tuple(prefixes)):
                    found[name] = tensors.get_tensor(name)
    return found
