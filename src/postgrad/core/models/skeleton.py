"""The shape of a model without its weights: for planning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from postgrad.core.models.config import ModelConfig
from postgrad.core.models.embedded import architecture
from postgrad.core.models.memory.attach import CONFIG_KEY, attach, memory_config
from postgrad.core.models.model import Model, check_config, check_tokens, load_tokenizer
from postgrad.core.models.paths import locate, looks_local
from postgrad.core.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_skeleton(config: ModelConfig) -> PreTrainedModel:
    """The configured model on the meta device: every shape, no memory. Raises ModelError as `load` does for the path."""
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = config.trust_remote_code
    with quiet_transformers(), torch.device("meta"):
        if not config.path:
            shape: Any = architecture(config.embedded, config.embedded.vocab_size)
        else:
            path, _ = locate(config.path, config.revision, trust_remote_code=trust)
            shape = cast("Any", AutoConfig).from_pretrained(path, trust_remote_code=trust)
        return cast("Any", AutoModelForCausalLM).from_config(shape, trust_remote_code=trust)


def load_shape(path_or_name: str | Path) -> PreTrainedModel:
    """A model on the meta device from its config.json alone, with the memory that is named there; its weights and tokenizer need
    not be there, and of a hub model nothing else is fetched.

    Raises:
        ModelError: no config.json, or not that of a causal LM.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(path_or_name).expanduser()
    if not (path / "config.json").is_file() and (path.exists() or looks_local(str(path_or_name))):
        path, _ = locate(
            path_or_name, None, trust_remote_code=False
        )  # the checkpoint of a run, or what is wrong
    with quiet_transformers(), torch.device("meta"):
        check_config(path, trust_remote_code=False)
        shape = cast("Any", AutoConfig).from_pretrained(path)
        module = cast("PreTrainedModel", cast("Any", AutoModelForCausalLM).from_config(shape))
        memory = memory_config(module)
        if memory is not None:
            delattr(module.config, CONFIG_KEY)
            attach(module, memory)
    return module


def load_outline(path: Path) -> Model:
    """A model directory without its weights: `load_shape` and the tokenizer. Raises ModelError as `load` does for both."""
    from transformers import GenerationConfig

    module = load_shape(path)
    folder = path if (path / "config.json").is_file() else locate(path, None, trust_remote_code=False)[0]
    with quiet_transformers():
        if (folder / "generation_config.json").is_file():
            module.generation_config = cast("Any", GenerationConfig).from_pretrained(folder)
        model = Model(module, load_tokenizer(folder, trust_remote_code=False), source=str(path))
    check_tokens(model, folder)
    return model
