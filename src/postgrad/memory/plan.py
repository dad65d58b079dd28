"""What memory and teaching it will take, before any of it is there: from a model's shape alone.

`read_sizes` counts the weights of a skeleton (on the meta device: no weight is read, no table made); the other functions are
formulas of these counts. Weights and files are exact. The peak of an edit is an estimate from what PyTorch's autograd keeps of a
decoder block with a gated MLP and fused attention; it leaves out what the allocator and the kernels take for themselves.

Symbols: T tokens of an edit with padding, D width, N slots, H heads of look-ups of k slots, dv width of a value, t rows, U
updates, b bytes of a weight, W ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

from torch import nn

from postgrad.core.models.memory.attach import find_blocks, memory_config, memory_layers
from postgrad.core.models.memory.patch import tables
from postgrad.core.models.memory.shard import columns_per_rank
from postgrad.memory.config import LearnConfig, Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sizes:
    """Of a model: numbers, not bytes.

    Attributes:
        num_parameters: all, tied ones once, memory included.
        memory_parameters: of the memory layers, tables included.
        table_parameters: of the value tables, shared ones once.
        num_layers, num_tables: of the memory.
        num_slots, value_dim: N and dv of a table.
        reads: H·k, values that a layer reads for a token.
        scored: scores that a layer's look-up computes for a token, all heads.
        key_parameters: of one layer.
        before, within, after: weights that a token is multiplied with in the blocks before the first memory, in that memory's
            block, and in those after it with the head (tables left out; of experts those that a token goes to).
        blocks, blocks_after: all blocks, and those after the first memory's.
        hidden, inner, attention, vocabulary: widths D, of the MLP for a token, of all query heads together, and of the logits.
        linear_sides: Σ (inputs + outputs) of the linear layers but the head: an adapter's parameters for each rank.
    """

    num_parameters: int
    memory_parameters: int
    table_parameters: int
    num_layers: int
    num_tables: int
    num_slots: int
    value_dim: int
    reads: int
    scored: int
    key_parameters: int
    before: int
    within: int
    after: int
    blocks: int
    blocks_after: int
    hidden: int
    inner: int
    attention: int
    vocabulary: int
    linear_sides: int


def read_sizes(module: PreTrainedModel) -> Sizes:
    """Counts of a model, real or on the meta device; without memory those of the memory are 0, and all blocks are before it.

    Raises:
        ModelError: the model's blocks are not found.
    """
    layers, attached = list(memory_layers(module).values()), memory_config(module)
    blocks = find_blocks(module)
    config = cast("Any", module.config).get_text_config()
    first = min(attached.layers) if attached else len(blocks)
    own = tables(module)
    num_slots, value_dim = next(iter(own.values())).shape if own else (0, 0)
    head = cast("nn.Module", module.get_output_embeddings())
    vocabulary, hidden = cast("tuple[int, int]", tuple(cast("Any", head).weight.shape))
    share = _expert_share(config)
    weights = [sum(_multiplied(name, p, share) for name, p in block.named_parameters()) for block in blocks]
    experts = getattr(config, "num_experts_per_tok", None) if share < 1 else None
    inner = getattr(config, "moe_intermediate_size", None) if experts else None
    inner = (
        inner or getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    )
    heads = int(config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    keys = list(layers[0].keys) if layers else []
    return Sizes(
        num_parameters=sum(p.numel() for p in module.parameters()),
        memory_parameters=sum(p.numel() for layer in layers for p in layer.parameters()),
        table_parameters=sum(values.numel() for values in own.values()),
        num_layers=len(layers),
        num_tables=len(own),
        num_slots=num_slots,
        value_dim=value_dim,
        reads=attached.num_heads * attached.top_k if attached else 0,
        scored=sum(key.shape[0] * key.shape[1] for key in keys),
        key_parameters=sum(key.numel() for key in keys),
        before=sum(weights[:first]),
        within=sum(weights[first : first + 1]),
        after=sum(weights[first + 1 :]) + vocabulary * hidden,
        blocks=len(blocks),
        blocks_after=max(0, len(blocks) - first - 1),
        hidden=hidden,
        inner=int(inner) * int(experts or 1),
        attention=heads * int(head_dim),
        vocabulary=vocabulary,
        linear_sides=sum(_sides(child) for child in module.modules() if child is not head),
    )


def _expert_share(config: Any) -> float:
    """Share of a block's experts that a token goes to; 1 without experts."""
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    return config.num_experts_per_tok / experts if experts else 1.0


def _multiplied(name: str, parameter: nn.Parameter, share: float) -> int:
    """Weights of a matrix that a token meets; the rows of a table are read, not multiplied."""
    if parameter.ndim < 2 or name.endswith("values.weight"):
        return 0
    return round(parameter.numel() * share) if ".experts." in f".{name}" else parameter.numel()


def _sides(module: nn.Module) -> int:
    """Inputs + outputs of a linear layer (of GPT-2's kind too), else 0."""
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return sum(cast("Any", module).weight.shape)
    return 0


def lookup_bytes_per_token(sizes: Sizes, itemsize: int) -> int:
    """H·k·dv·b over the layers: values that are read for one token.

    The keys are read once for a batch and left out.
    """
    return sizes.num_layers * sizes.reads * sizes.value_dim * itemsize


def patch_bytes(num_rows: int, value_dim: int, itemsize: int) -> int:
    """t·(8 + 2·dv·b): row numbers, values before and after. The file's header (names, texts) comes on top, 1 or 2 kB.

    >>> patch_bytes(500, 1024, 2)
    2052000
    """
    return num_rows * (8 + 2 * value_dim * itemsize)


def chosen_rows(sizes: Sizes, config: LearnConfig, tokens: int) -> int:
    """t, rows of one layer in one update: the budget, but no more than there are or T tokens can access."""
    accessible = min(sizes.num_slots, tokens * sizes.reads)
    return accessible if config.score == "all" else min(config.budget, accessible)


def edit_flops(sizes: Sizes, config: LearnConfig, tokens: int) -> float:
    """Multiplications and additions of one edit: 2 a weight and token forward, 2 more for the gradient of what goes in, 2 more
    for a weight's own. Attention's token-by-token products are left out, and ewc's Fisher information, which is made once.

    sparse: T·[2·before + U·(2·(within + after) + 2·after) + 2·(within + after)], as the first part is computed once and not
    differentiated; lora: T·[(4·U + 2)·all + (6·U + 2)·adapter]; full, ewc: T·(6·U + 2)·all; replay: the same with U divided by
    1 − the share of replay. The reads of values are 2·H·k·dv more per token, layer and pass.
    """
    updates, everything = config.updates, sizes.before + sizes.within + sizes.after
    reads = 2.0 * sizes.num_layers * sizes.reads * sizes.value_dim
    if config.method == "sparse":
        step = sizes.within + sizes.after
        products = 2.0 * sizes.before + updates * 2.0 * (step + sizes.after) + 2.0 * step
        return tokens * (products + (2 * updates + 1) * reads)
    passes = updates / (1 - config.replay_fraction) if config.method == "replay" else updates
    products = (6.0 * passes + 2.0) * everything
    if config.method == "lora":
        adapter = config.lora_rank * sizes.linear_sides
        products = (4.0 * passes + 2.0) * everything + (6.0 * passes + 2.0) * adapter
    return tokens * (products + (2 * passes + 1) * reads)


def kept_activations(sizes: Sizes, method: Method, tokens: int, itemsize: int) -> int:
    """Bytes that autograd keeps of a forward pass for the backward pass, logits left out.

    With frozen weights a block keeps, for each token, the inputs of its two norms in fp32 (2·D), queries, keys, values and output
    of attention (4·attention), and gate, activation and value of the MLP (3·inner): sparse keeps these of the blocks after the
    first memory. Weights that are trained want their inputs too (4·D + attention + inner), in every block. A memory keeps y and
    the gate (3·dv) and the look-up's scores, weights and numbers (32 bytes for each of H·k).
    """
    frozen = 8 * sizes.hidden + itemsize * (4 * sizes.attention + 3 * sizes.inner)
    memory = sizes.num_layers * (3 * sizes.value_dim * itemsize + 32 * sizes.reads)
    if method == "sparse":
        return tokens * (sizes.blocks_after * frozen + memory)
    inputs = itemsize * (4 * sizes.hidden + sizes.attention + sizes.inner)
    return tokens * (sizes.blocks * (frozen + inputs) + memory)


class Need(NamedTuple):
    """Of one edit by one method, on one rank, in bytes (and FLOP).

    Attributes:
        method: which.
        trained_parameters: how many weights one update changes at most.
        weights_bytes: model and memory, and an adapter.
        state_bytes: what the optimizer, a penalty or the background's counts keep from update to update.
        activation_bytes: kept for the backward pass.
        passing_bytes: the largest of what is there for a moment: logits with their gradient, gradients of the weights, scores of
            the look-up, values that were read.
        flops: of the edit.
        patch_bytes: what is written, header left out; None of methods that write a model.
    """

    method: Method
    trained_parameters: int
    weights_bytes: int
    state_bytes: int
    activation_bytes: int
    passing_bytes: int
    flops: float
    patch_bytes: int | None

    @property
    def peak_bytes(self) -> int:
        """Weights, state, and the largest of what is there at a time."""
        return self.weights_bytes + self.state_bytes + self.passing_bytes


def plan_edit(sizes: Sizes, config: LearnConfig, tokens: int, *, itemsize: int, num_ranks: int = 1) -> Need:
    """What one edit of T tokens takes, by `config.method`.

    sparse: weights with 1/W of the tables; rows: t·dv·b/W each of values, gradient, clipped gradient and values before, and two
    fp32 moments with AdamW; 16 bytes a slot and layer of background counts.
    full, replay, ewc: gradients of all weights, dense ones of tables too, two moments with AdamW, and ewc's Fisher information
    and old weights.
    lora: the adapter in fp32 with its gradient and moments.

    Args:
        sizes: of the model.
        config: method, budget, updates, …
        tokens: of the edit, padding included.
        itemsize: bytes of a weight.
        num_ranks: W; a rival cannot be sharded, and is planned for one.

    Raises:
        ModelError: W does not divide the width of a value.
    """
    kept = kept_activations(sizes, config.method, tokens, itemsize)
    logits = tokens * sizes.vocabulary * (itemsize + 8 + (4 if itemsize < 4 else 0))
    scores = (
        4 * tokens * sizes.scored + (4 * sizes.key_parameters if itemsize < 4 else 0) + 28 * sizes.num_slots
    )
    gathered = tokens * sizes.reads * sizes.value_dim * itemsize
    weights, flops = sizes.num_parameters * itemsize, edit_flops(sizes, config, tokens)
    if config.method == "sparse":
        width = columns_per_rank(sizes.value_dim, num_ranks)
        rows = chosen_rows(sizes, config, tokens)
        moments = 8 if config.optimizer_name == "adamw" else 0
        return Need(
            method="sparse",
            trained_parameters=sizes.num_layers * rows * sizes.value_dim,
            weights_bytes=weights - sizes.table_parameters * itemsize // num_ranks * (num_ranks - 1),
            state_bytes=sizes.num_layers * (rows * width * (4 * itemsize + moments) + 16 * sizes.num_slots),
            activation_bytes=kept,
            passing_bytes=kept + max(logits, scores, gathered // num_ranks if sizes.num_layers > 1 else 0),
            flops=flops,
            patch_bytes=sizes.num_tables * patch_bytes(rows, sizes.value_dim, itemsize),
        )
    if config.method == "replay":
        kept, logits = (math.ceil(size / (1 - config.replay_fraction)) for size in (kept, logits))
    adapter = config.lora_rank * sizes.linear_sides if config.method == "lora" else 0
    trained, size = (adapter, 4) if adapter else (sizes.num_parameters, itemsize)
    copies = (2 if config.optimizer_name == "adamw" else 0) + (2 if config.method == "ewc" else 0)
    return Need(
        method=config.method,
        trained_parameters=trained,
        weights_bytes=weights + 4 * adapter,
        state_bytes=copies * trained * size,
        activation_bytes=kept,
        passing_bytes=max(kept + max(logits, scores), trained * size),
        flops=flops,
        patch_bytes=None,
    )


def plan_all(
    sizes: Sizes, config: LearnConfig, tokens: int, *, itemsize: int, num_ranks: int = 1
) -> list[Need]:
    """`plan_edit` of every method with the same options, that of `config` first; of a model without memory not sparse."""
    possible = [method for method in get_args(Method) if method != "sparse" or sizes.num_layers]
    methods = sorted(possible, key=lambda method: method != config.method)
    own = (
        {} if config.optimizer is None else {config.method: config.optimizer}
    )  # the others have their defaults
    chosen = [
        config.model_copy(update={"method": method, "optimizer": own.get(method)}) for method in methods
    ]
    return [plan_edit(sizes, one, tokens, itemsize=itemsize, num_ranks=num_ranks) for one in chosen]


def training_bytes(sizes: Sizes, *, itemsize: int, everything: bool) -> int:
    """Gradients and AdamW's moments in training a fresh memory (`attach --steps`), which are dense: 3·b a trained weight."""
    return 3 * itemsize * (sizes.num_parameters if everything else sizes.memory_parameters)
