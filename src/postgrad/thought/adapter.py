"""The adapter: routed thoughts become a few virtual tokens for each agent. The only weights that are trained for talking."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from postgrad.core.config import validate
from postgrad.core.errors import ConfigError, ModelError
from postgrad.core.runfiles import explain_os_error, pretty_json, replace_file
from postgrad.thought import ops
from postgrad.thought.config import AdapterConfig

FORMAT = 1


class Adapter(nn.Module):
    """P_i = g_i(ẑ ⊙ w_i): what agent i is told, [S, M, D_i].

    Args:
        held: which agents hold which thoughts [Z, A].
        embed_widths: D of each agent.
        embed_norms: mean norm of each agent's token embeddings.
        config: sizes and routing.
        generator: of the initial weights.

    Attributes:
        weights: w_α [A + 1], or of `learned` w [A, Z]; trained unless given by hand.
    """

    held: Tensor

    def __init__(
        self,
        held: Tensor,
        embed_widths: Sequence[int],
        embed_norms: Sequence[float],
        config: AdapterConfig,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        thoughts, agents = held.shape
        self.config, self.embed_widths, self.embed_norms = config, tuple(embed_widths), tuple(embed_norms)
        self.register_buffer("held", held.clone())
        shape = (agents, thoughts) if config.routing == "learned" else (agents + 1,)
        by_hand = config.alpha_weights if config.routing != "learned" else None
        start = torch.ones(shape) if by_hand is None else torch.tensor(by_hand)
        self.weights = nn.Parameter(start, requires_grad=by_hand is None)

        def weight(rows: int, columns: int, scale: float) -> nn.Parameter:
            return nn.Parameter(
                torch.randn(rows, columns, generator=generator) * (scale / math.sqrt(columns))
            )

        units = config.hidden
        outputs = [config.num_vectors * width for width in self.embed_widths]
        self.enter = nn.ParameterList([weight(units, thoughts, 1.0) for _ in outputs])
        self.enter_bias = nn.ParameterList([nn.Parameter(torch.zeros(units)) for _ in outputs])
        # ‖v‖ ≈ start_norm: half of it from thoughts, half a constant, so that no vector is 0 whatever is thought
        share = config.start_norm / math.sqrt(2)
        self.leave = nn.ParameterList(
            [
                weight(count, units, 2 * share / math.sqrt(max(1, width)))
                for count, width in zip(outputs, self.embed_widths, strict=True)
            ]
        )
        self.leave_bias = nn.ParameterList(
            [
                nn.Parameter(torch.randn(count, generator=generator) * share / math.sqrt(max(1, width)))
                for count, width in zip(outputs, self.embed_widths, strict=True)
            ]
        )

    def routing(self) -> Tensor:
        """w [A, Z]."""
        return ops.routing_weights(self.held, self.config.routing, self.weights)

    def forward(self, thoughts: Tensor) -> list[Tensor]:
        """Virtual tokens of each agent, from ẑ [S, Z]; an agent that takes none has D = 0."""
        routed = ops.route(thoughts, self.routing())
        return [self.tell(agent, routed[:, agent]) for agent in range(len(self.embed_widths))]

    def tell(self, agent: int, routed: Tensor) -> Tensor:
        """Virtual tokens of one agent [S, M, D_i], from its thoughts [S, Z]."""
        hidden = nn.functional.gelu(nn.functional.linear(routed, self.enter[agent], self.enter_bias[agent]))
        vectors = nn.functional.linear(hidden, self.leave[agent], self.leave_bias[agent])
        shaped = vectors.view(len(routed), self.config.num_vectors, self.embed_widths[agent])
        return ops.safe_prefix(shaped, self.embed_norms[agent], self.config.max_norm)

    def save(self, folder: Path, autoencoder: str) -> None:
        """Writes `adapter.safetensors` and `adapter.json`. Raises ModelError when it cannot.

        Args:
            autoencoder: fingerprint of the one whose thoughts it tells.
        """
        about = {
            "format": FORMAT,
            "embed_widths": list(self.embed_widths),
            "embed_norms": list(self.embed_norms),
            "autoencoder": autoencoder,
            "config": self.config.model_dump(mode="json"),
        }
        try:
            replace_file(
                folder / "adapter.safetensors",
                save({name: tensor.contiguous() for name, tensor in self.state_dict().items()}),
            )
            replace_file(folder / "adapter.json", pretty_json(about))
        except OSError as error:
            raise ModelError(f"The adapter was not written. {explain_os_error(error, folder)}") from error

    @classmethod
    def load(cls, folder: Path, autoencoder: str) -> Adapter:
        """Reads what `save` wrote. Raises ModelError: missing, damaged, or made for another autoencoder."""
        path = folder / "adapter.json"
        try:
            about = cast("dict[str, Any]", json.loads(path.read_bytes()))
            tensors = load_file(folder / "adapter.safetensors")
            config = validate(AdapterConfig, about["config"])
            adapter = cls(tensors["held"], about["embed_widths"], about["embed_norms"], config)
            adapter.load_state_dict(tensors)
            made_for = about["autoencoder"]
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            RuntimeError,
            SafetensorError,
            ConfigError,
        ) as error:
            raise ModelError(f"There is no adapter that can be read in {folder}: {error}") from error
        if made_for != autoencoder:
            raise ModelError(
                f"{folder}: the adapter tells the thoughts of another autoencoder ({made_for[:12]}…, here {autoencoder[:12]}…). "
                "Copy both from the same place."
            )
        return adapter
