"""The autoencoder that finds thoughts: one encoder of all states, a decoder for each agent, and its training.

The decoder has one hidden layer for each agent, all of which read the same thoughts. So the Jacobian of an agent's states is that
of its own layer, and what the agent does not hold can be cut off exactly: `mask` [A, Z] multiplies the thoughts each reads.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from postgrad.core.config import validate
from postgrad.core.errors import ConfigError, DataError, ModelError, TrainingError
from postgrad.core.runfiles import explain_os_error, pretty_json, replace_file
from postgrad.thought import jacobian, ops
from postgrad.thought.baselines import unfold
from postgrad.thought.config import AutoencoderConfig

FORMAT = 1
LEAK = 0.2
"""Slope of the leaky ReLU below 0."""
LAMBDA_START = 0.3
CONTROL_RATE = 0.01
"""How fast λ follows the budget: at most e^0.01 an update."""
BLOCK_BYTES = 2**26
"""Of what is held at once of states that are passed over."""
START_STATES = 10_000
"""States from which the first weights are made: at least so many, at least 10 for each thought."""


class Activation(NamedTuple):
    """φ and its derivative, both of the hidden inputs."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _gelu_slope(inputs: Tensor) -> Tensor:
    below = 0.5 * (1 + torch.erf(inputs / math.sqrt(2)))
    return below + inputs * torch.exp(-inputs.square() / 2) / math.sqrt(2 * math.pi)


def _silu_slope(inputs: Tensor) -> Tensor:
    gate = torch.sigmoid(inputs)
    return gate * (1 + inputs * (1 - gate))


ACTIVATIONS = {
    "leaky_relu": Activation(
        lambda a: F.leaky_relu(a, LEAK), lambda a: torch.where(a > 0, 1.0, LEAK).to(a.dtype)
    ),
    "gelu": Activation(F.gelu, _gelu_slope),
    "silu": Activation(F.silu, _silu_slope),
    "tanh": Activation(torch.tanh, lambda a: 1 - torch.tanh(a).square()),
}


LINES = {"leaky_relu": (1.0, 1 + LEAK), "gelu": (1.0, 1.0), "silu": (1.0, 1.0), "tanh": (0.1, 0.2)}
"""(c, g) of each activation with φ(c·z) − φ(−c·z) = g·z."""


class Autoencoder(nn.Module):
    """ẑ = f_e(H) and Ĥ = f̂(ẑ), on standardised states.

    Args:
        widths: state dimensions of each agent, in the order in which they lie in H.
        config: sizes and activation.
        generator: of the initial weights.
    """

    mean: Tensor
    deviation: Tensor
    mask: Tensor

    def __init__(
        self, widths: Sequence[int], config: AutoencoderConfig, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.widths, self.config = tuple(widths), config
        states, thoughts = sum(widths), config.num_thoughts
        self.activation = ACTIVATIONS[config.activation]

        def weight(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=generator) / math.sqrt(columns))

        units = config.encoder_units
        self.encode_in, self.encode_bias = weight(units, states), nn.Parameter(torch.zeros(units))
        self.encode_out, self.encode_skip = weight(thoughts, units), weight(thoughts, states)
        self.norm = nn.BatchNorm1d(thoughts, affine=False) if config.standardise else nn.Identity()
        units = config.decoder_units
        self.decode_in = weight(
            len(self.widths) * units, thoughts
        )  # agents' hidden units, one agent after another
        self.decode_bias = nn.Parameter(torch.zeros(len(self.decode_in)))
        self.decode_out = nn.ParameterList([weight(width, units) for width in widths])
        self.decode_shift = nn.Parameter(torch.zeros(states))
        self.register_buffer("mean", torch.zeros(states))
        self.register_buffer("deviation", torch.ones(states))
        self.register_buffer("mask", torch.ones(len(self.widths), thoughts))

    @property
    def agent_rows(self) -> Tensor:
        """Which agent a state dimension is of [H]."""
        return torch.repeat_interleave(
            torch.arange(len(self.widths)), torch.tensor(self.widths), output_size=sum(self.widths)
        ).to(self.mean.device)

    def standardise(self, states: Tensor) -> Tensor:
        """States as the autoencoder sees them [S, H]."""
        return ops.standardise(states, ops.Scale(self.mean, self.deviation))

    def encode(self, states: Tensor) -> Tensor:
        """ẑ [S, Z] of states as agents have them [S, H]."""
        return self._encode(self.standardise(states))

    def decode(self, thoughts: Tensor) -> Tensor:
        """Ĥ [S, H] of thoughts, in the agents' own units."""
        return self._decode(self._inputs(thoughts, self._weight_in())) * self.deviation + self.mean

    def raw_thoughts(self, states: Tensor) -> Tensor:
        """ẑ before the norm [S, Z], of standardised states."""
        hidden = self.activation.value(F.linear(states, self.encode_in, self.encode_bias))
        return F.linear(hidden, self.encode_out) + F.linear(states, self.encode_skip)

    def _encode(self, states: Tensor) -> Tensor:
        return self.norm(self.raw_thoughts(states))

    def _weight_in(self) -> Tensor:
        """W₁ of all agents [A·K, Z], without what they do not hold."""
        return self.decode_in * self.mask.repeat_interleave(self.config.decoder_units, 0)

    def _inputs(self, thoughts: Tensor, weight_in: Tensor) -> Tensor:
        """a [S, A·K]."""
        return F.linear(thoughts, weight_in, self.decode_bias)

    def _decode(self, inputs: Tensor) -> Tensor:
        hidden = self.activation.value(inputs).chunk(len(self.widths), -1)
        parts = [one @ out.T for one, out in zip(hidden, self.decode_out, strict=True)]
        return torch.cat(parts, -1) + self.decode_shift

    def _layers(self, inputs: Tensor, weight_in: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(φ', W₁, W₂) of each agent."""
        agents = len(self.widths)
        slopes = self.activation.slope(inputs).chunk(agents, -1)
        return list(zip(slopes, weight_in.chunk(agents), self.decode_out, strict=True))

    def backend(self, num_samples: int) -> jacobian.Backend:
        """How the penalty is taken of a batch of this size."""
        if self.config.backend != "auto":
            return self.config.backend
        sizes = num_samples, self.config.num_thoughts, self.config.decoder_units
        return jacobian.choose_backend(*sizes, sum(self.widths), self.config.jacobian_bytes)

    def losses(
        self,
        states: Tensor,
        generator: torch.Generator | None = None,
        entry_weights: Tensor | None = None,
        *,
        with_penalty: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """(error per dimension, ‖J‖₁ per dimension, its entries weighted [H, Z]) of standardised states [S, H]."""
        weight_in = self._weight_in()
        inputs = self._inputs(self._encode(states), weight_in)
        error = ops.reconstruction_error(self._decode(inputs), states)
        if not with_penalty:
            return error, torch.zeros_like(error)
        backend, limit = self.backend(len(states)), self.config.jacobian_bytes
        layers = self._layers(inputs, weight_in)
        weights = [None] * len(layers) if entry_weights is None else entry_weights.split(self.widths)
        terms = [
            jacobian.penalty(backend, *layer, generator, None, limit, own) * (width / len(self.mean))
            for layer, own, width in zip(layers, weights, self.widths, strict=True)
        ]
        return error, torch.stack(terms).sum()

    def blocks(self, states: Tensor) -> Iterator[Tensor]:
        """States in float32, standardised, as many at once as are affordable; they may be memory-mapped or of half precision."""
        units = len(self.mean) * 4 + len(self.encode_in) + len(self.decode_in)
        for part in states.split(max(1, BLOCK_BYTES // (4 * units))):
            yield self.standardise(part.to(self.mean))

    @torch.no_grad()
    def jacobian_rms(self, states: Tensor) -> Tensor:
        """√(mean over samples of J²) [H, Z], in units of standardised states and thoughts; of `jacobian_states` samples."""
        weight_in = self._weight_in()
        states = spread(states, self.config.jacobian_states).to(self.mean)
        inputs = self._inputs(self.encode(states), weight_in)
        limit = self.config.jacobian_bytes
        found = [jacobian.squared_mean(*layer, limit) for layer in self._layers(inputs, weight_in)]
        return torch.cat(found).sqrt()

    @torch.no_grad()
    def explained(self, states: Tensor) -> float:
        """R² of the reconstruction: 1 − mean squared error of standardised states (their variance is that of training)."""
        error, moments = 0.0, Moments()
        for seen in self.blocks(states):
            again = self._decode(self._inputs(self._encode(seen), self._weight_in()))
            error += float((again - seen).square().sum(dtype=torch.float64))
            moments.add(seen)
        return 1 - error / float(moments.squares.sum())

    @torch.no_grad()
    def start_linear(self, unmixing: Tensor, mixing: Tensor) -> None:
        """Makes the autoencoder a linear one: ẑ = unmixing·H [Y, H], Ĥ = mixing·ẑ [H, Y], for the first Y thoughts; of the other
        weights those that would disturb it are made small.

        Two hidden units with the weights ±1 are a line: φ(a) − φ(−a) = g·a for all activations (of tanh, near 0).
        """
        count = min(len(unmixing), self.config.decoder_units // 2)
        self.encode_out.mul_(0.01)
        self.encode_skip.mul_(0.01)
        self.encode_skip[:count] = unmixing[:count]
        step, gain = LINES[self.config.activation]
        blocks = self.decode_in.chunk(len(self.widths))
        for block, out, rows in zip(blocks, self.decode_out, mixing.split(self.widths), strict=True):
            line = step * torch.eye(count, self.config.num_thoughts)
            block[: 2 * count] = torch.cat([line, -line]).to(block)
            out.mul_(0.1)
            out[:, :count], out[:, count : 2 * count] = rows[:, :count] / gain, -rows[:, :count] / gain

    def fingerprint(self) -> str:
        """SHA-256 of all tensors, by which adapters will say which autoencoder they are for."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Writes `autoencoder.safetensors` and `autoencoder.json`. Raises ModelError when it cannot."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        about = {
            "format": FORMAT,
            "widths": list(self.widths),
            "sha256": self.fingerprint(),
            "config": self.config.model_dump(mode="json"),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / "autoencoder.safetensors", save(tensors))
            replace_file(folder / "autoencoder.json", pretty_json(about))
        except OSError as error:
            raise ModelError(f"The autoencoder was not written. {explain_os_error(error, folder)}") from error

    @classmethod
    def load(cls, folder: Path) -> Autoencoder:
        """Reads what `save` wrote, ready to use (`eval`). Raises ModelError: missing, damaged, or of another version."""
        path = folder / "autoencoder.json"
        try:
            about = cast("dict[str, Any]", json.loads(path.read_bytes()))
            config = validate(AutoencoderConfig, about["config"])
            model = cls([int(width) for width in about["widths"]], config)
            if about["format"] != FORMAT:
                raise ModelError(f"{path} has format {about['format']}; this version reads {FORMAT}.")
            model.load_state_dict(load_file(folder / "autoencoder.safetensors"))
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            RuntimeError,
            SafetensorError,
            ConfigError,
        ) as error:
            raise ModelError(f"There is no autoencoder that can be read in {folder}: {error}") from error
        if model.fingerprint() != about["sha256"]:
            raise ModelError(
                f"{folder}: autoencoder.safetensors is not the file that autoencoder.json describes "
                "(its tensors have another SHA-256). Copy both from the same place."
            )
        return model.eval()


class Moments:
    """Count, mean and squared deviations of rows that come in blocks, exact in float64 (Chan, Golub & LeVeque 1983).

    >>> moments = Moments()
    >>> for block in (torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])):
    ...     moments.add(block)
    >>> moments.count, moments.mean.tolist(), moments.squares.tolist()  # 4 + 1 + 9
    (3, [3.0], [14.0])
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, block: Tensor) -> None:
        """Takes in rows [S, X]."""
        block = block.double()
        mean, total = block.mean(0), self.count + len(block)
        step = mean - self.mean.to(mean)
        own = (block - mean).square().sum(0)
        self.squares = self.squares.to(own) + own + step.square() * (self.count * len(block) / total)
        self.mean = self.mean.to(mean) + step * (len(block) / total)
        self.count = total


def spread(states: Tensor, count: int) -> Tensor:
    """At most so many rows, evenly spread.

    >>> spread(torch.arange(10), 4).tolist()
    [0, 3, 6, 9]
    """
    if len(states) <= count:
        return states
    return states[torch.linspace(0, len(states) - 1, count, dtype=torch.float64).round().long()]


class Fitted(NamedTuple):
    """What `fit` gives.

    Attributes:
        autoencoder: trained, in `eval` mode, with what each agent holds as its mask.
        penalty_weight: λ of the sparse part, given or found.
        explained_warmup, explained_sparse, explained: R² of all states after the warm-up, before the refit, and at the end.
        curve: (step, error, ‖J‖₁, λ) every `log_every` updates.
    """

    autoencoder: Autoencoder
    penalty_weight: float
    explained_warmup: float
    explained_sparse: float
    explained: float
    curve: list[tuple[int, float, float, float]]


class _Training:
    """State of one `fit`: batches, λ, the error's running mean."""

    def __init__(
        self, model: Autoencoder, states: Tensor, config: AutoencoderConfig, generator: torch.Generator
    ) -> None:
        self.model, self.states, self.config, self.generator = model, states, config, generator
        self.weight = LAMBDA_START if config.penalty is None else config.penalty
        self.allowed = 1.0
        self.average = 1.0
        self.step = 0
        self.entry_weights: Tensor | None = None
        self.curve: list[tuple[int, float, float, float]] = []

    def run(self, steps: int, share: Callable[[int], float], *, control: bool, log_every: int) -> None:
        """`steps` updates with λ·share(step), one cycle of the learning rate."""
        if not steps:
            return
        config = self.config
        optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=config.lr, total_steps=steps + 1, cycle_momentum=False
        )
        size = min(config.batch_size, len(self.states))
        self.model.train()
        for step in range(steps):
            batch = self.states[torch.randint(len(self.states), (size,), generator=self.generator)]
            weight = self.weight * share(step)
            error, l1 = self.model.losses(
                self.model.standardise(batch.to(self.model.mean)),
                self.generator,
                self.entry_weights,
                with_penalty=weight > 0,
            )
            loss = ops.autoencoder_loss(error, l1, weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            self._follow(float(error.detach()), share(step), control=control)
            if log_every and self.step % log_every == 0:
                self.curve.append((self.step, float(error.detach()), float(l1.detach()), weight))
            self.step += 1

    def _follow(self, error: float, share: float, *, control: bool) -> None:
        if not math.isfinite(error):
            raise TrainingError(
                f"The autoencoder's error is {error} at update {self.step}. Check that the states are finite, and lower lr "
                f"(now {self.config.lr}) or penalty."
            )
        self.average += 0.05 * (error - self.average)
        if control and share > 0:
            self.weight = ops.adjust_penalty(self.weight, self.average, self.allowed, CONTROL_RATE, share)


def fit(
    states: Tensor,
    widths: Sequence[int],
    config: AutoencoderConfig | None = None,
    *,
    log_every: int = 0,
) -> Fitted:
    """Finds thoughts in states: warm-up, ramp, the whole penalty, then who holds what, and a reweighted penalty.

    With `penalty` not given, λ starts at 0.3 and follows the error, which may be what the warm-up left plus `budget` of what it
    explained. In the refit an agent keeps the thoughts on which its RMS Jacobian exceeds `tolerance` of the largest, and within
    them entries are penalised the more the less they stand out of their row (`jacobian.adaptive_weights`).

    Memory: the autoencoder's, its gradients' and Adam's (16 bytes a parameter), blocks of `BLOCK_BYTES`, and for the start "ica"
    the sample of states from which it is made.

    Args:
        states: [S, H], all agents' states side by side; may be memory-mapped, and of half precision.
        widths: of each agent; they add up to H.
        log_every: updates between entries of `curve`; 0 = none.

    Raises:
        DataError: states of another width, fewer than 2, all the same, or not finite.
        TrainingError: the error became infinite or NaN.
    """
    config = config or AutoencoderConfig()
    _check(states, widths)
    generator = torch.Generator().manual_seed(config.seed)
    model = Autoencoder(widths, config, generator).to(states.device)
    moments = Moments()
    for block in model.blocks(states):  # neither mean nor deviation is set yet: as they are
        moments.add(block)
    deviation = (moments.squares / moments.count).sqrt()
    if not deviation.any():
        raise DataError(
            f"All {len(states)} states are the same: none of the {len(widths)} agents' vary, so there is nothing to find. Are "
            "the prompts the same, or is it the state of a token which they share, such as the last of a chat template? Read "
            "others (states.tokens, states.mean)."
        )
    model.mean.copy_(moments.mean)
    model.deviation.copy_(torch.where(deviation > 0, deviation, 1.0))
    if config.start == "ica":
        sample = spread(states, max(START_STATES, 10 * config.num_thoughts))
        found = unfold(model.standardise(sample.to(model.mean)), config.num_thoughts, generator)
        model.start_linear(found.unmixing.float(), found.mixing.float())
    training = _Training(model, states, config, generator)
    training.run(config.warmup_steps, lambda _: 0.0, control=False, log_every=log_every)
    _settle(model, states)
    warm = model.explained(states)
    training.allowed = max(1e-4, 1 - warm * (1 - config.budget))
    training.average = 1 - warm
    training.run(
        config.ramp_steps + config.sparse_steps,
        lambda step: ops.ramp(step, 0, config.ramp_steps),
        control=config.penalty is None,
        log_every=log_every,
    )
    _settle(model, states)
    sparse = model.explained(states)
    weight = training.weight
    if config.refit_steps:
        rms = model.jacobian_rms(states)
        training.entry_weights = jacobian.adaptive_weights(rms, config.tolerance)
        held = ops.agent_rms(rms, model.agent_rows, len(widths))
        model.mask.copy_(ops.binarise(held, config.tolerance).T)
        training.run(config.refit_steps, lambda _: config.refit_share, control=False, log_every=log_every)
        _settle(model, states)
    return Fitted(model, weight, warm, sparse, model.explained(states), training.curve)


def _check(states: Tensor, widths: Sequence[int]) -> None:
    if states.ndim != 2 or states.shape[1] != sum(widths):
        raise DataError(
            f"States of agents with widths {list(widths)} are [samples, {sum(widths)}]; received {list(states.shape)}."
        )
    if len(states) < 2:
        raise DataError(f"An autoencoder needs at least 2 states; received {len(states)}.")
    rows = max(1, BLOCK_BYTES // (4 * states.shape[1]))
    bad = sum(int((~part.isfinite().all(1)).sum()) for part in states.split(rows))
    if bad:
        raise DataError(f"{bad} of {len(states)} states have NaN or infinite entries. Leave them out.")


@torch.no_grad()
def _settle(model: Autoencoder, states: Tensor) -> None:
    """The norm's mean and variance of all states, in place of their running means; then `eval`."""
    model.eval()
    norm = model.norm
    if isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None and norm.running_var is not None:
        moments = Moments()
        for seen in model.blocks(states):
            moments.add(model.raw_thoughts(seen))
        norm.running_mean.copy_(moments.mean)
        norm.running_var.copy_(moments.squares / max(1, moments.count - 1))
