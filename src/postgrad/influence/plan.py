"""What an attribution will take, before any weight is there: from a model's shape, the tokens of the texts and the settings.

`read_sizes` counts; `plan` has the formulas, for the most draws that the settings allow. How many examples go forward and
backward is exact, and so are the bytes of weights, factors, chains, draws and token moments. The rest is an estimate: activations
are taken as what the linear layers read and write with the logits, operations as those of matrix products with weights
(attention's token-by-token products are left out).

Symbols: P weights of the model, M those that a token is multiplied with, D sampled ones, [O, I] a layer with its bias as column,
N training examples, Q queries, C chains, S draws, T tokens with padding, b bytes of a weight as loaded.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from postgrad.core.errors import ConfigError
from postgrad.influence.along import MAX_TOKENS
from postgrad.influence.baselines import GRADIENT_FLOATS
from postgrad.influence.config import DRAWN, SAMPLED, InfluenceConfig
from postgrad.influence.ekfac import LayerBasis
from postgrad.influence.examples import Examples, Texts
from postgrad.influence.layers import Layer, find_layers, layer_type
from postgrad.influence.result import BLOCK_BYTES
from postgrad.influence.sampler import CURVATURE_EXAMPLES, CURVATURE_STEPS
from postgrad.influence.stein import CURVATURE_EXAMPLES as STEIN_EXAMPLES
from postgrad.influence.tokens import MAX_TOKEN_BYTES, moments_bytes
from postgrad.influence.weights import choose_parameters

WITH_LAYERS = ("stein", "langevin", "laplace", "ekfac", "gradient")
_QUERY_BYTES = 28
"""For each loss of a query at a draw while scores are made: itself in float32, and three times in float64."""
_BLOCKS = 6
"""Blocks of training losses that are there at once while scores are made: two, and what is made of one (measured)."""


@dataclass(frozen=True)
class Sizes:
    """Numbers, not bytes.

    Attributes:
        num_parameters, num_multiplied, num_sampled: P, M, D.
        layers: (O, I) of the layers that are sampled along EK-FAC's axes (a norm has none); empty for the other methods.
        activations: numbers that a token leaves behind in a forward pass.
        num_train, num_queries: N, Q, equal ones merged.
        train_tokens, query_tokens: in one pass over each, padding included.
        counted_train, counted_query: tokens with a loss of each example.
        batch_tokens: of the largest training batch, padding included.
    """

    num_parameters: int
    num_multiplied: int
    num_sampled: int
    layers: tuple[tuple[int, int], ...]
    activations: int
    num_train: int
    num_queries: int
    train_tokens: int
    query_tokens: int
    counted_train: tuple[int, ...]
    counted_query: tuple[int, ...]
    batch_tokens: int


def read_sizes(module: nn.Module, train: Texts, queries: Texts, config: InfluenceConfig) -> Sizes:
    """Counts of a model, real or on the meta device.

    Raises:
        ConfigError: `parameters` fits no weight, or weights that the method does not know; as `run` would.
    """
    chosen = choose_parameters(module, config.parameters) if config.method != "bm25" else []
    sampled, layers = sum(parameter.numel() for _, parameter in chosen), []
    if config.method in WITH_LAYERS:
        basis = LayerBasis(find_layers(module, chosen), [parameter for _, parameter in chosen])
        pairs = zip(basis.layers, basis.sizes, strict=True)
        layers = [(size[0], size[1]) for layer, size in pairs if layer.factored]
    linear = [cast("Any", part).weight for part in module.modules() if layer_type(part) is Layer]
    head = cast("Any", module).get_output_embeddings().weight
    owned = {id(weight): weight for weight in [*linear, head]}
    vocabulary = head.shape[0]
    return Sizes(
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        num_multiplied=sum(weight.numel() for weight in owned.values()),
        num_sampled=sampled,
        layers=tuple(layers),
        activations=sum(sum(weight.shape) for weight in linear) + 3 * vocabulary,
        num_train=len(train),
        num_queries=len(queries),
        train_tokens=sum(_padded(train, config.batch_size)),
        query_tokens=sum(_padded(queries, config.batch_size)),
        counted_train=tuple(train.num_tokens),
        counted_query=tuple(queries.num_tokens),
        batch_tokens=max(_padded(train, config.batch_size)),
    )


def _padded(texts: Texts, batch_size: int) -> list[int]:
    """Tokens of each batch with its padding."""
    return [
        len(batch) * max(len(texts.tokens[index]) for index in batch) for batch in texts.batches(batch_size)
    ]


@dataclass(frozen=True)
class Plan:
    """Of one attribution.

    Attributes:
        forward_examples, gradient_examples: how many examples go forward only, and forward and backward.
        curvature_examples: and how many more forward and backward to measure the largest curvature.
        flops: multiplications and additions of it all.
        weights_bytes: the model as loaded, its float32 copies, and the chosen weights that displacements are added to.
        factors_bytes: axes and eigenvalues of EK-FAC.
        chain_bytes: preconditioner, and place and noise of the chain that is running, or of all where they may go on.
        draws_bytes: losses at all draws in memory, of which there are two sets while the step is checked.
        scoring_bytes: of these and what is made of them, at the peak.
        token_bytes: moments of tokens at their peak; 0 where they are left out.
        passing_bytes: the largest of what is there for a moment: activations and gradients of a batch, or each example's
            gradient (ekfac), or the queries' (ekfac, gradient).
        disk_bytes: training losses at all draws in a run's directory; 0 where they are in memory.
        notes: what is left out, and why.
    """

    forward_examples: int
    gradient_examples: int
    curvature_examples: int
    flops: float
    weights_bytes: int
    factors_bytes: int
    chain_bytes: int
    draws_bytes: int
    scoring_bytes: int
    token_bytes: int
    passing_bytes: int
    disk_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """Weights, factors and moments, and the larger of a pass beside chain and draws, and of scoring."""
        kept = self.weights_bytes + self.factors_bytes + self.token_bytes + self.chain_bytes
        return kept + max(self.draws_bytes + self.passing_bytes, self.scoring_bytes)


def plan(sizes: Sizes, config: InfluenceConfig, *, itemsize: int = 4, on_disk: bool = False) -> Plan:
    """What an attribution takes.

    Args:
        sizes: of model and texts.
        config: settings.
        itemsize: b.
        on_disk: a directory keeps the chains' state and training losses, as that of a run does.
    """
    if config.method == "bm25":
        scores = 4 * sizes.num_train * sizes.num_queries
        return Plan(0, 0, 0, 0.0, itemsize * sizes.num_parameters, 0, 0, 0, scores, 0, 0)
    sampled = config.method in SAMPLED
    counts = _count(sizes, config)
    tokens, notes = 0, ()
    if sampled and config.tokens:
        tokens = moments_bytes(sizes.counted_train, sizes.counted_query, config.chains)
        if tokens > MAX_TOKEN_BYTES:
            tokens, notes = 0, ("token scores would be left out: there are too many tokens",)
    axes = sum(rows**2 + columns**2 for rows, columns in sizes.layers) if _has_factors(config) else 0
    moving = (3 if config.method == "rmsprop" else 2) * (
        config.chains if config.max_draws > config.num_draws else 1
    )
    vectors = {"gradient": 0, "ekfac": 1, "stein": 4}.get(config.method, 1 + moving)
    vectors += 2 * (config.tokens and not sampled)
    centres = (2 if _checked(sizes, config) else 1) if config.method in DRAWN else 0
    return Plan(
        *counts,
        _flops(sizes, config, *counts),
        weights_bytes=itemsize * sizes.num_parameters
        + 4 * sizes.num_sampled * (1 + centres)
        + (4 * (sizes.num_parameters - sizes.num_sampled) if itemsize != 4 else 0),
        factors_bytes=4 * (axes + sizes.num_sampled * _has_factors(config)),
        chain_bytes=4 * sizes.num_sampled * vectors,
        draws_bytes=draws_bytes(sizes.num_train, sizes.num_queries, config, on_disk=on_disk)
        if sampled
        else 0,
        scoring_bytes=scoring_bytes(sizes.num_train, sizes.num_queries, config, on_disk=on_disk),
        token_bytes=tokens,
        passing_bytes=_passing_bytes(sizes, config),
        disk_bytes=disk_bytes(sizes.num_train, config) if on_disk else 0,
        notes=notes,
    )


def draws_bytes(num_train: int, num_queries: int, config: InfluenceConfig, *, on_disk: bool = False) -> int:
    """4·C·S·(N + Q + 1) of memory: losses and the distance; without N where training losses are on disk.

    >>> draws_bytes(9, 2, InfluenceConfig(method="langevin", chains=2, draws=5))
    480
    """
    return 4 * config.chains * config.most_draws * ((0 if on_disk else num_train) + num_queries + 1)


def disk_bytes(num_train: int, config: InfluenceConfig) -> int:
    """4·C·S·N of training losses at the draws, twice while the step is checked. Of methods with draws of losses.

    >>> disk_bytes(9, InfluenceConfig(method="langevin", chains=2, draws=5))
    720
    """
    if config.method not in SAMPLED:
        return 0
    sets = 2 if config.check_step and config.method != "laplace" and num_train > 2 else 1
    return 4 * sets * config.chains * config.most_draws * num_train


def scoring_bytes(num_train: int, num_queries: int, config: InfluenceConfig, *, on_disk: bool = False) -> int:
    """4·C·S·N of training losses (twice while the step is checked; nothing where they are on disk), 28·C·S·Q, six blocks of at
    most 16 MiB, and 20·Q·N; of stein 4·Q·N times 2·C or C + 4, the larger; of a method without draws of losses 4·Q·N."""
    pairs = num_train * num_queries
    if config.method not in SAMPLED:
        return 4 * pairs * (max(2 * config.chains, config.chains + 4) if config.method == "stein" else 1)
    draws = config.chains * config.most_draws
    losses = 0 if on_disk else disk_bytes(num_train, config)
    blocks = _BLOCKS * min(BLOCK_BYTES, 8 * config.chains * (config.most_draws + num_queries) * num_train)
    return losses + _QUERY_BYTES * draws * num_queries + blocks + 20 * pairs


def check_memory(
    train: Examples,
    queries: Examples,
    config: InfluenceConfig,
    device: torch.device,
    state: Path | None = None,
) -> None:
    """Whether draws and token moments fit into what is free on the device now, and training losses onto the disk.

    Args:
        state: directory where training losses are put; None = memory.

    Raises:
        ConfigError: they do not; says what to change.
    """
    if config.method not in SAMPLED:
        return
    if state is not None:
        _check_disk(len(train), config, state)
    need, tokens = scoring_bytes(len(train), len(queries), config, on_disk=state is not None), 0
    if config.tokens and hasattr(train, "num_tokens") and hasattr(queries, "num_tokens"):
        counts = cast("Any", train).num_tokens, cast("Any", queries).num_tokens
        tokens = moments_bytes(*counts, config.chains)
        tokens = tokens if tokens <= MAX_TOKEN_BYTES else 0
    free = free_bytes(device)
    if need + tokens <= free:
        return
    advice = "Lower draws or chains, or give fewer training examples or queries at a time."
    if state is None and scoring_bytes(len(train), len(queries), config, on_disk=True) + tokens <= free:
        advice = "Give a directory where training losses are kept (state=DIR; influence run does), or lower draws or chains."
    if need <= free:
        advice = "Leave token scores out (--no-tokens, tokens=False), or give fewer queries at a time."
    raise ConfigError(
        f"{config.most_draws:,} draws of {config.chains} chains over {len(train):,} training examples and "
        f"{len(queries):,} queries take {_gigabytes(need)} of memory while scores are made"
        + (f", token scores {_gigabytes(tokens)}" if tokens else "")
        + f"; {_gigabytes(free)} are free. {advice}"
    )


def _check_disk(num_train: int, config: InfluenceConfig, state: Path) -> None:
    """Raises ConfigError where training losses at the draws do not fit beside what is there."""
    need = disk_bytes(num_train, config) - sum(path.stat().st_size for path in state.glob("*.losses"))
    free = free_disk_bytes(state)
    if need > free:
        raise ConfigError(
            f"{config.most_draws:,} draws of {config.chains} chains over {num_train:,} training examples take "
            f"{_gigabytes(need)} of disk in {state}; {_gigabytes(free)} are free. Lower draws or chains, or choose another place."
        )


def free_disk_bytes(folder: Path) -> int:
    """Of the disk that a directory is on, or will be on."""
    place = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    return shutil.disk_usage(place).free


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def _has_factors(config: InfluenceConfig) -> bool:
    return config.method in WITH_LAYERS and config.method != "gradient"


def _checked(sizes: Sizes, config: InfluenceConfig) -> bool:
    return config.check_step and config.method != "laplace" and sizes.num_train > 2


def _count(sizes: Sizes, config: InfluenceConfig) -> tuple[int, int, int]:
    """Examples that go forward; forward and backward; and so for the largest curvature."""
    n, q = sizes.num_train, sizes.num_queries
    forward = n + q  # at the model's own weights
    gradient = 2 * n if _has_factors(config) else 0
    if config.method not in SAMPLED:
        visits, seen = (
            (1, 0) if config.method != "stein" else (config.chains * config.num_draws, min(n, STEIN_EXAMPLES))
        )
        passes = q + n * gradient_parts(q, sizes.num_sampled, config.batch_size) + seen
        shown, examples = shown_examples(sizes, config)
        passes += shown * (examples + 2)
        gradient += n * config.measures_damping
        return forward + (visits * seen), gradient + visits * passes, 0
    if config.method == "laplace":
        return forward + config.chains * config.most_draws * (n + q), gradient, 0
    whole = config.gradient_examples in (0, n)
    each = n if whole else min(n, config.gradient_examples)
    for slower in (1, 2) if _checked(sizes, config) else (1,):
        steps = slower * (config.burn_in + (config.most_draws - 1) * config.thin) + 1
        gradient += config.chains * steps * each
        forward += config.chains * config.most_draws * (n - each + q)
    batches = -(-CURVATURE_EXAMPLES // config.batch_size)
    curved = (CURVATURE_STEPS + 1) * min(n, batches * config.batch_size)
    return forward, gradient, curved if config.method in ("langevin", "sgld") else 0


def shown_examples(sizes: Sizes, config: InfluenceConfig) -> tuple[int, int]:
    """Queries whose tokens are scored where scores are derivatives, and how many training examples of each, at most. A query
    itself is passed twice more: for its direction, and for what all examples do to it."""
    if not config.tokens or config.method in SAMPLED:
        return 0, 0
    examples = min(sizes.num_train, 2 * config.token_examples)
    tokens = examples * sum(sizes.counted_train) / sizes.num_train
    return min(sizes.num_queries, max(1, int(MAX_TOKENS / tokens))), examples


def gradient_parts(num_queries: int, num_weights: int, batch_size: int) -> int:
    """Passes over the training examples of `gradient_scores`: one for each part of the queries whose gradients are held.

    >>> gradient_parts(10, 2**27, 1), gradient_parts(10, 100, 4)
    (5, 1)
    """
    most = max(1, GRADIENT_FLOATS // num_weights)
    size, held, parts = min(batch_size, most), most, 0
    for start in range(0, num_queries, size):
        count = min(size, num_queries - start)
        if held + count > most:
            held, parts = 0, parts + 1
        held += count
    return parts


def _flops(sizes: Sizes, config: InfluenceConfig, forward: int, gradient: int, curved: int) -> float:
    """2·M a token forward, 6·M with the way back; the rotations 4·(O²·I + O·I²) of a step
    (half of it in laplace), 2·min(O²·I + O·I², T·(O² + I²)) for each example whose gradient is rotated; factors 2·T·(O² + I²)
    with their eigenvectors 9·(O³ + I³); the covariances 2·C·S·Q·N, and of tokens 2·C·S·(T_q·N + Q·T_n). A pass for tokens
    along a direction takes 2·D a token more than one with the way back."""
    n, q = sizes.num_train, sizes.num_queries
    width = (sizes.train_tokens + sizes.query_tokens) / (n + q)
    total = width * sizes.num_multiplied * (2.0 * forward + 6.0 * (gradient + curved))
    rotation = 2.0 * sum(rows * columns * (rows + columns) for rows, columns in sizes.layers)
    each = sum(2.0 * min(o * i * (o + i), width * (o**2 + i**2)) for o, i in sizes.layers)
    if _has_factors(config):
        total += sum(2.0 * sizes.train_tokens * (o**2 + i**2) + 9.0 * (o**3 + i**3) for o, i in sizes.layers)
        total += n * each
    if config.method not in SAMPLED:
        visits = config.chains * config.num_draws if config.method == "stein" else 1
        seen, moves = (min(n, STEIN_EXAMPLES), 3) if config.method == "stein" else (0, 0)
        shown, examples = shown_examples(sizes, config)
        rotated = visits * ((q + n + seen) * each + (moves + shown) * rotation)
        total += visits * shown * (examples + 1) * width * 2.0 * sizes.num_sampled
        return total + rotated * _has_factors(config) + 2.0 * n * q * sizes.num_sampled * visits
    checked = _checked(sizes, config)
    draws = config.chains * config.most_draws
    if config.method == "laplace":
        total += rotation * draws
    elif sizes.layers:
        slower = 3 if checked else 1
        total += (
            2 * rotation * config.chains * slower * (config.burn_in + draws / config.chains * config.thin)
        )
    counted = n * sum(sizes.counted_query) + q * sum(sizes.counted_train)
    return total + 2.0 * draws * (q * n * (1 + checked) + counted * config.tokens)


def _passing_bytes(sizes: Sizes, config: InfluenceConfig) -> int:
    """The largest of: activations of a batch with the gradient of the chosen weights in three copies; of EK-FAC, the gradients of
    a batch of examples before and after they are rotated; of the methods without draws, the queries' gradients."""
    examples = min(config.batch_size, sizes.num_train)
    batch = 4 * sizes.batch_tokens * sizes.activations
    found: list[int] = [batch + (0 if config.method == "laplace" else 12 * sizes.num_sampled)]
    if config.method in WITH_LAYERS:
        found.append(batch + 8 * examples * sizes.num_sampled)
    if config.method not in SAMPLED:
        held = min(sizes.num_queries, max(1, GRADIENT_FLOATS // sizes.num_sampled))
        found.append(batch + 4 * sizes.num_sampled * (2 * examples + 2 * held))
    return max(found)
