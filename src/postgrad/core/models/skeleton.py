"""The shape of a model without its weights: for planning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from postgrad.core.models.config import ModelConfig
from postgrad.core.models.embedded import architecture
from postgrad.core.models.model import quiet_transformers
from postgrad.core.models.paths import locate

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
