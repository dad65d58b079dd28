"""Chains around the weights of a borrowed module: p(w) ∝ exp(−nβ·L(w) − γ/2·‖w − w*‖²), L the mean training loss.

Everything lives in one flat float32 vector, the displacement w − w* on the axes of a `Basis`: the weights themselves, or EK-FAC's
eigenbasis, in which the preconditioner is diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from postgrad.core.errors import SamplingError
from postgrad.influence.config import InfluenceConfig
from postgrad.influence.examples import Examples
from postgrad.influence.ops import langevin_step, largest_eigenvalue, local_beta, rmsprop_step, sgld_step
from postgrad.influence.tokens import ByToken, TokenMoments

CURVATURE_STEPS = 8
CURVATURE_EXAMPLES = 64
CURVATURE_MOVE = 1e-4  # of the weights' norm


class Basis(Protocol):
    """Axes for displacements: an orthogonal map between one tensor per parameter and one flat vector."""

    size: int
    device: torch.device

    def to_flat(self, tensors: Sequence[Tensor]) -> Tensor: ...

    def from_flat(self, flat: Tensor) -> list[Tensor]: ...

    def precision(self, num_tempered: float, localization: float) -> Tensor:
        """Approximate diagonal of nβH + γ on these axes [D]; its inverse is the preconditioner."""
        ...


class Posterior:
    """Training losses and their gradient as functions of the displacement. Leaves the module at the last one; see `borrowed`.

    Args:
        parameters: of the borrowed module.
        train: training examples.
        basis: axes.
        config: damping, beta and batch size.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], train: Examples, basis: Basis, config: InfluenceConfig
    ) -> None:
        self.train, self.basis, self.config = train, basis, config
        self.beta = choose_beta(parameters, train, config)
        self.num_tempered = self.beta * float(train.weights.sum())
        self.localization = config.chosen_damping * self.num_tempered
        self.precision = basis.precision(self.num_tempered, self.localization)
        self._parameters = list(parameters)
        self._centre = [parameter.detach().clone() for parameter in parameters]
        self._batches = train.batches(config.batch_size)

    @torch.no_grad()
    def place(self, displacement: Tensor) -> None:
        """Moves the module's weights there."""
        moves = self.basis.from_flat(displacement)
        for parameter, centre, move in zip(self._parameters, self._centre, moves, strict=True):
            torch.add(centre, move, out=parameter.data)

    def losses(self, examples: Examples) -> Tensor:
        """[K] at the module's present weights, forward only."""
        found = torch.empty(len(examples), device=self.basis.device)
        with torch.inference_mode():
            for batch in examples.batches(self.config.batch_size):
                found[batch] = examples.losses(batch).float()
        return found

    def step_batches(self, generator: torch.Generator) -> list[list[int]]:
        """The examples in the gradient of one step: all, or `gradient_examples` of them drawn without replacement."""
        count, size = self.config.gradient_examples, self.config.batch_size
        if count in (0, len(self.train)):
            return self._batches
        chosen = torch.randperm(len(self.train), generator=generator, device=generator.device)[
            :count
        ].tolist()
        return [chosen[start : start + size] for start in range(0, len(chosen), size)]

    def losses_and_gradient(self, batches: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """In one pass over these examples at the present weights, their losses [N], 0 of all others, and an unbiased gradient of
        the weighted mean loss of all [D]."""
        order = torch.tensor([index for batch in batches for index in batch], device=self.basis.device)
        weights = self.train.weights[order].split([len(batch) for batch in batches])
        values: list[Tensor] = []
        total: list[Tensor] | None = None
        for batch, weight in zip(batches, weights, strict=True):
            losses = self.train.losses(batch)
            values.append(losses.detach().float())
            total = _add(total, self._gradient((losses * weight).sum()))
        found = torch.zeros(len(self.train), device=self.basis.device)
        found[order] = torch.cat(values)
        scale = len(self.train) / len(order)
        return found, self.basis.to_flat(total or []) * scale / self.train.weights.sum()

    def complete(self, losses: Tensor, batches: Sequence[Sequence[int]]) -> Tensor:
        """`losses` [N] with those of the training examples in none of these batches, forward only."""
        passed = {index for batch in batches for index in batch}
        rest = [index for batch in self._batches for index in batch if index not in passed]
        with torch.inference_mode():
            for start in range(0, len(rest), self.config.batch_size):
                batch = rest[start : start + self.config.batch_size]
                losses[batch] = self.train.losses(batch).float()
        return losses

    def largest_curvature(self, generator: torch.Generator) -> float:
        """Largest eigenvalue of P^(−½)(nβH + γ)P^(−½) at w*, P the basis's precision: eight steps of Lanczos' method over 64
        training examples of all lengths. 4 divided by it is the largest stable step, a quarter of which is taken.

        H·v is the difference of two gradients whose weights are a ten-thousandth of their norm apart, divided by the distance:
        a third of the operations of the exact product, no second derivatives, and right within a percent.
        """
        root = self.precision.rsqrt()
        norm = torch.stack([centre.square().sum() for centre in self._centre]).sum().sqrt()
        move = CURVATURE_MOVE * (float(norm) or 1.0)
        self.place(torch.zeros_like(root))
        centre = self._some_gradient()

        def product(vector: Tensor) -> Tensor:
            scaled = root * vector
            length = move / scaled.norm()
            self.place(length * scaled)
            along = (self._some_gradient() - centre) / length
            return root * (self.num_tempered * along + self.localization * scaled)

        start = torch.randn(self.basis.size, generator=generator, device=self.basis.device)
        value = float(largest_eigenvalue(product, start, CURVATURE_STEPS))
        self.place(torch.zeros_like(root))
        if not value > 0:
            raise SamplingError(
                f"The curvature around the weights is {value:.3g}: not that of a minimum. Raise damping, or train further."
            )
        return value

    def _some_gradient(self) -> Tensor:
        """Of the mean loss of some examples [D], always the same, at the present weights."""
        number = len(self._batches)
        few = min(number, -(-CURVATURE_EXAMPLES // self.config.batch_size))
        chosen = [self._batches[place * number // few] for place in range(few)]  # they are sorted by length
        weights = torch.cat([self.train.weights[batch] for batch in chosen])
        share = self.train.weights.sum() / weights.sum() * len(weights) / len(self.train)
        return self.losses_and_gradient(chosen)[1] * share

    def _gradient(self, value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, self._parameters, materialize_grads=True, allow_unused=True))


def choose_beta(parameters: Sequence[nn.Parameter], train: Examples, config: InfluenceConfig) -> float:
    """`beta`, or the one that keeps draws within `radius` of the weights. Raises SamplingError where the weights are all 0."""
    if config.beta is not None:
        return config.beta
    norm = float(torch.stack([parameter.detach().square().sum() for parameter in parameters]).sum().sqrt())
    if norm == 0:
        raise SamplingError("The chosen weights are all 0, so that radius has no meaning. Give beta.")
    size = sum(parameter.numel() for parameter in parameters)
    return local_beta(size, float(train.weights.sum()), config.chosen_damping, config.chosen_radius * norm)


def chain_seed(config: InfluenceConfig, number: int) -> int:
    """Of a chain's generator."""
    return (config.seed * 1_000_003 + number) % 2**63


def _add(total: list[Tensor] | None, part: list[Tensor]) -> list[Tensor]:
    return part if total is None else [a.add_(b) for a, b in zip(total, part, strict=True)]


class Draws(NamedTuple):
    """Losses at the draws: train float32 [C, S, N], which may be a mapped file, query [C, S, Q], and ‖w − w*‖ [C, S]."""

    train: Tensor
    query: Tensor
    distance: Tensor


def _room(shape: tuple[int, ...], num_queries: int, device: torch.device, train: Tensor | None) -> Draws:
    """For draws [*shape, N]; all at once, as small tensors between large ones would tear the heap."""
    train = torch.empty(shape, device=device) if train is None else train
    return Draws(
        train, torch.empty(*shape[:-1], num_queries, device=device), torch.empty(shape[:-1], device=device)
    )


class Chain:
    """One chain: reproducible by its seed alone, and resumable at any step by `state_dict`.

    Args:
        posterior: what it samples.
        queries: their losses are taken at every draw.
        step_size: ε.
        seed: of its generator.
        tokens: told of every draw.
        room: where the draws are put [S, …], of which training losses are kept elsewhere; None = memory of its own.
    """

    def __init__(
        self,
        posterior: Posterior,
        queries: Examples,
        step_size: float,
        seed: int,
        tokens: TokenMoments | None = None,
        room: Draws | None = None,
    ) -> None:
        self.tokens = tokens
        self._posterior, self._queries, self._step_size = posterior, queries, step_size
        self._config = posterior.config
        self._generator = torch.Generator(posterior.basis.device).manual_seed(seed)
        self._step = 0
        self._own = room is None
        shape = self._config.most_draws, len(posterior.train)
        self._draws = _room(shape, len(queries), posterior.basis.device, None) if room is None else room
        self._num_draws = 0
        self._noise = self._draw_noise()
        self._displacement = torch.zeros_like(self._noise)
        self._squares = torch.zeros(self._noise.numel() if self._config.method == "rmsprop" else 0).to(
            self._noise
        )
        if self._config.method in ("langevin", "laplace"):  # a draw of the Gaussian that the factors describe
            self._displacement = self._draw_noise() / posterior.precision.sqrt()

    @property
    def num_draws(self) -> int:
        """Draws so far."""
        return self._num_draws

    @property
    def last_losses(self) -> Tensor:
        """Training losses [N] at the last draw."""
        return self._draws.train[self._num_draws - 1].to(self._displacement.device)

    @property
    def done(self) -> bool:
        """Whether it has all its draws."""
        return self.num_draws >= self._config.num_draws

    def advance(self) -> bool:
        """One step; whether a draw was recorded.

        Raises:
            SamplingError: a loss is not finite.
        """
        config, posterior = self._config, self._posterior
        posterior.place(self._displacement)
        laplace = config.method == "laplace"
        after = self._step - (0 if laplace else config.burn_in)
        due = after >= 0 and (laplace or after % config.thin == 0)
        if laplace:
            self._record(posterior.losses(posterior.train))
            self._displacement = self._draw_noise() / posterior.precision.sqrt()
        else:
            batches = posterior.step_batches(self._generator)
            losses, gradient = posterior.losses_and_gradient(batches)
            if due:
                self._record(
                    posterior.complete(losses, batches)
                )  # those of the gradient's pass come for free
            self._move(gradient)
        self._step += 1
        return due

    def draws(self, count: int | None = None) -> Draws:
        """The first `count`, or all so far, as [S, …]."""
        count = self._num_draws if count is None else min(count, self._num_draws)
        return Draws(*(part[:count] for part in self._draws))

    def end(self) -> None:
        """Forgets its place: nothing is left but draws and token moments."""
        self._displacement = self._noise = self._squares = self._noise.new_zeros(0)

    def state_dict(self) -> dict[str, Tensor]:
        """All that the rest of the chain depends on, and its draws: flat, all tensors."""
        state = {
            "step": torch.tensor(self._step),
            "generator": self._generator.get_state(),
            "displacement": self._displacement.clone(),
            "noise": self._noise.clone(),
        }
        if self._config.method == "rmsprop":
            state["squares"] = self._squares.clone()
        kept = self.draws()._asdict()
        if not self._own:  # they are kept where they are
            del kept["train"]
        state |= {f"draws.{name}": part for name, part in kept.items()}
        if self.tokens is not None:
            state |= {f"tokens.{name}": part for name, part in self.tokens.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on where `state_dict` was taken, on this chain's device."""
        device = self._displacement.device
        self._step = int(state["step"])
        self._generator.set_state(state["generator"].cpu())
        self._displacement, self._noise = (
            state[name].clone().to(device) for name in ("displacement", "noise")
        )
        if "squares" in state:
            self._squares = state["squares"].clone().to(device)
        self._num_draws = len(state["draws.distance"])
        for name, part in self.draws()._asdict().items():
            if f"draws.{name}" in state:
                part.copy_(state[f"draws.{name}"])
        if self.tokens is not None:
            prefix = "tokens."
            own = {key.removeprefix(prefix): part for key, part in state.items() if key.startswith(prefix)}
            self.tokens.load_state_dict({name: part.to(device) for name, part in own.items()})

    def _draw_noise(self) -> Tensor:
        basis = self._posterior.basis
        return torch.randn(basis.size, generator=self._generator, device=basis.device)

    def _move(self, gradient: Tensor) -> None:
        posterior, noise = self._posterior, self._noise
        options = {
            "step_size": self._step_size,
            "num_tempered": posterior.num_tempered,
            "localization": posterior.localization,
        }
        self._noise = self._draw_noise()
        if self._config.method == "langevin":
            self._displacement = langevin_step(
                self._displacement, gradient, noise, self._noise, posterior.precision, **options
            )
        elif self._config.method == "sgld":
            self._displacement = sgld_step(self._displacement, gradient, noise, **options)
        else:
            self._displacement, self._squares = rmsprop_step(
                self._displacement,
                gradient,
                noise,
                self._squares,
                stability=self._config.rmsprop_stability,
                **options,
            )

    def _record(self, train: Tensor) -> None:
        query = self._posterior.losses(self._queries)
        for values, what in ((train, "training"), (query, "query")):
            bad = (~values.isfinite()).nonzero()
            if len(bad):
                raise SamplingError(
                    f"The chain diverged: at step {self._step} the loss of {what} example {int(bad[0]) + 1} is "
                    f"{float(values[bad[0]]):.3g}. Lower step_size (now {self._config.relative_step:g}), or raise damping."
                )
        for room, value in zip(self._draws, (train, query, self._displacement.norm()), strict=True):
            room[self._num_draws] = value
        self._num_draws += 1
        if self.tokens is not None:
            self.tokens.add(train, query)


class Keeper(Protocol):
    """Where the state of chains is kept, so that they can go on after the process has died."""

    def losses(self, name: str, shape: tuple[int, int, int]) -> Tensor:
        """Training losses at the draws of the chains of a kind, float32 [C, S, N], on disk: what was put there is still there."""
        ...

    def restore(self, name: str, chain: Chain) -> None:
        """Brings a new chain to where the one of this name was, if it was kept."""
        ...

    def keep(self, name: str, chain: Chain, *, now: bool = False) -> None:
        """Told after every step; writes when it is time, or now. May raise KeyboardInterrupt, having written."""
        ...


class Sampler:
    """All chains of one kind, advanced one after the other.

    Args:
        posterior: what is sampled.
        queries: their losses are taken at every draw.
        step_size: ε.
        name: of the kind; chain c is `name-c` to the keeper.
        seed_offset: added to the chains' seeds.
        keeper: keeps the chains' state, and the training losses at their draws.
        tokens: both sides by token, training first; None = no token scores.
    """

    def __init__(
        self,
        posterior: Posterior,
        queries: Examples,
        step_size: float,
        *,
        name: str = "chain",
        seed_offset: int = 0,
        keeper: Keeper | None = None,
        tokens: tuple[ByToken, ByToken] | None = None,
    ) -> None:
        self._posterior, self._queries, self._step_size = posterior, queries, step_size
        self._name, self._seed_offset, self._keeper, self._tokens = name, seed_offset, keeper, tokens
        self._chains: list[Chain] = []
        shape = posterior.config.chains, posterior.config.most_draws, len(posterior.train)
        losses = None if keeper is None else keeper.losses(name, shape)
        self._room = _room(shape, len(queries), posterior.basis.device, losses)

    @property
    def token_moments(self) -> list[TokenMoments]:
        """Of each chain so far; empty without tokens."""
        return [chain.tokens for chain in self._chains if chain.tokens is not None]

    def sample(
        self, num_draws: int, progress: Callable[[int, Tensor], None] | None = None, *, last: bool = True
    ) -> Draws:
        """The first S draws of every chain.

        Args:
            num_draws: S; a later call may ask for more.
            progress: told the chain's number and the training losses after every new draw.
            last: no more will be asked for, so that a chain's place in weight space need not be held when it is done.
        """
        for number in range(self._posterior.config.chains):
            chain = self._chain(number)
            name, begun = f"{self._name}-{number}", chain.num_draws
            while chain.num_draws < num_draws:
                if chain.advance() and progress is not None:
                    progress(number, chain.last_losses)
                if self._keeper is not None:
                    self._keeper.keep(name, chain)
            if self._keeper is not None and chain.num_draws > begun:
                self._keeper.keep(name, chain, now=True)
            if last:
                chain.end()
        return Draws(*(part[:, :num_draws] for part in self._room))

    def end(self) -> None:
        """No more will be asked for. Draws and token moments are left."""
        for chain in self._chains:
            chain.end()

    def _chain(self, number: int) -> Chain:
        """A new one, or as it was kept."""
        if number == len(self._chains):
            config = self._posterior.config
            seed = chain_seed(config, number + self._seed_offset)
            tokens = None if self._tokens is None else TokenMoments(*self._tokens)
            room = Draws(*(part[number] for part in self._room))
            chain = Chain(self._posterior, self._queries, self._step_size, seed, tokens, room)
            if self._keeper is not None:
                self._keeper.restore(f"{self._name}-{number}", chain)
            self._chains.append(chain)
        return self._chains[number]
