"""What `postgrad thought fit --dry-run` prints: no weights are loaded."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch and transformers are only partly typed)

from __future__ import annotations

from typing import Any, NamedTuple, cast

from postgrad.commands.runs import describe_size
from postgrad.commands.thought_work import Work
from postgrad.core.console import print_rows
from postgrad.core.errors import ModelError
from postgrad.core.models import load_shape
from postgrad.core.models.model import resolve_device, resolve_dtype
from postgrad.thought.config import TeamConfig


class Shape(NamedTuple):
    """A model of an agent.

    Attributes:
        state_width: H, as it is read.
        embed_width: D of virtual tokens; 0 behind a server.
        num_parameters: of the whole model.
        itemsize: bytes of a weight.
    """

    state_width: int
    embed_width: int
    num_parameters: int
    itemsize: int


def read_shapes(config: TeamConfig) -> list[Shape]:
    """Of each agent. Raises ModelError: no such model, or one with an embedding in every layer."""
    loaded: dict[str, Any] = {}
    shapes: list[Shape] = []
    for name, agent in zip(config.names, config.agents, strict=True):
        if agent.model not in loaded:
            loaded[agent.model] = load_shape(agent.model)
        module = loaded[agent.model]
        text = cast("Any", module.config).get_text_config()
        if getattr(text, "hidden_size_per_layer_input", 0):
            raise ModelError(
                f"{name}: {type(module).__name__} looks up an embedding of each token in every layer, so it cannot be told "
                "thoughts. Use a model without per-layer embeddings."
            )
        width = int(text.hidden_size) * (1 if config.states.mean else config.states.tokens)
        embed = 0 if agent.chat else int(module.get_input_embeddings().weight.shape[1])
        size = resolve_dtype(agent.dtype, resolve_device(agent.device)).itemsize
        shapes.append(Shape(width, embed, sum(p.numel() for p in module.parameters()), size))
    return shapes


def autoencoder_parameters(config: TeamConfig, widths: list[int]) -> int:
    """Weights of the autoencoder."""
    states, thoughts, agents = sum(widths), config.autoencoder.num_thoughts, len(widths)
    encoder, decoder = config.autoencoder.encoder_units, config.autoencoder.decoder_units
    return (
        encoder * (states + 1 + thoughts)
        + thoughts * states
        + agents * decoder * (thoughts + 1)
        + states * (decoder + 1)
    )


def adapter_parameters(config: TeamConfig, embed_widths: list[int]) -> int:
    """Weights of the adapter."""
    thoughts, units, agents = config.autoencoder.num_thoughts, config.adapter.hidden, len(embed_widths)
    outputs = [config.adapter.num_vectors * width for width in embed_widths]
    routing = agents * thoughts if config.adapter.routing == "learned" else agents + 1
    return routing + sum(units * (thoughts + 1) + count * (units + 1) for count in outputs)


def show_plan(config: TeamConfig, work: Work) -> int:
    """Prints cases, widths, sizes and costs."""
    shapes = read_shapes(config)
    widths, embeds = [shape.state_width for shape in shapes], [shape.embed_width for shape in shapes]
    models = {
        (agent.model, agent.revision, agent.device, agent.dtype): shape
        for agent, shape in zip(config.agents, shapes, strict=True)
    }
    weights = sum(shape.num_parameters * shape.itemsize for shape in models.values())
    autoencoder, adapter = autoencoder_parameters(config, widths), adapter_parameters(config, embeds)
    print(f"cases    {len(work.train):,} to learn from, {len(work.held):,} held out")
    print_rows(
        ("agent", "model", "state width", "virtual tokens", "parameters"),
        [
            (name, agent.model, str(shape.state_width),
             f"{config.adapter.num_vectors} × {shape.embed_width}" if shape.embed_width else "none: told by text",
             f"{shape.num_parameters:,}")
            for name, agent, shape in zip(config.names, config.agents, shapes, strict=True)
        ],
    )  # fmt: skip
    per_thought = len(work.train) / config.autoencoder.num_thoughts
    print(
        f"\nthoughts {config.autoencoder.num_thoughts:,}, {per_thought:.3g} cases for each, from {sum(widths):,} state dimensions"
    )
    if per_thought < 10:
        print(
            "note: fewer than ten cases for each thought; it may be fitted to chance. More cases or fewer thoughts are better."
        )
    print(
        f"trained  {autoencoder:,} weights of the autoencoder, {adapter:,} of the adapter; models stay as they are"
    )
    print(
        f"memory   {describe_size(weights)} of model weights ({len(models)} loaded), {describe_size(16 * autoencoder)} and "
        f"{describe_size(16 * adapter)} for training (weights, gradients, Adam), "
        f"{describe_size(config.autoencoder.jacobian_bytes)} for Jacobians at most, "
        f"{describe_size(4 * sum(widths) * len(work.train))} of states; activations not counted"
    )
    words, flops = _flops(config, work, shapes)
    print(f"compute  about {flops:.2e} FLOP by the language models ({words})")
    print("dry run: nothing was written")
    return 0


def _flops(config: TeamConfig, work: Work, shapes: list[Shape]) -> tuple[str, float]:
    """A rough count: 2 for each weight and token forward, as much again back through to virtual tokens."""
    letters = sum(len(view.content) for case in work.train for view in case.views)
    asked = letters / 4 / len(work.train) / len(shapes)
    turn, answer = config.turn_tokens, config.answer_tokens
    num_parameters = sum(shape.num_parameters for shape in shapes)
    read = len(work.train) * config.rounds * (asked + turn)
    learn = config.rounds * config.adapter.steps * config.adapter.batch_size * 2 * (asked + answer)
    measure = len(work.held) * 9 * (asked + turn + answer)
    total = 2.0 * num_parameters * (read + learn + measure)
    return f"{asked:.0f} tokens a prompt at four letters each, turns and answers at their longest", total
