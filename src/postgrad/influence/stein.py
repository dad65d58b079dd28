"""Influence without the noise of covariances, by Stein's identity.

The weights have the law p ∝ exp(−U) with U = nβ·L + γ/2·‖w − w*‖². For any f, Cov(f, ∂U) = E[∇f], and Cov(∂U, ∂U) = E[∇²U].
So of Cov(ℓ_i, ℓ_j), the paper's influence, the part that both losses have linear in ∂U is

    E[∇ℓ_j]ᵀ · E[∇²U]⁻¹ · E[∇ℓ_i].

If p is Gaussian it is the first term of the covariance's expansion in derivatives (the next has E[∇²ℓ_i] and E[∇²ℓ_j]). It
takes three means over a few draws, where covariances of N losses take as many draws as an N-dimensional random projection has
dimensions. At w* itself, without draws, it is EK-FAC's damped influence.

The draws are pairs w* ± δ of the Gaussian that EK-FAC describes, so that what is odd in δ cancels; E[∇²U] is nβ·Λ̄ + γ on EK-FAC's
axes, Λ̄ the mean squared gradient *at the draws*.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import torch
from torch import Tensor, nn

from postgrad.core.errors import SamplingError
from postgrad.influence.baselines import gradient_scores
from postgrad.influence.config import InfluenceConfig
from postgrad.influence.ekfac import LayerBasis, example_gradients
from postgrad.influence.examples import Examples
from postgrad.influence.ops import standing_damping
from postgrad.influence.sampler import Posterior

CURVATURE_EXAMPLES = 512
"""Training examples, at most, whose gradients at the draws give Λ̄."""


def measure_damping(
    basis: LayerBasis, parameters: Sequence[nn.Parameter], train: Examples, config: InfluenceConfig
) -> InfluenceConfig:
    """The settings with a damping: their own, or `ops.standing_damping` at the module's weights, in one pass with gradients.

    Raises:
        SamplingError: the weights are all 0.
    """
    if not config.measures_damping:
        return config
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in train.batches(config.batch_size):
        loss = (train.losses(batch) * train.weights[batch]).sum()
        found = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
        total = [a.add_(b) for a, b in zip(total, found, strict=True)]
    gradient, weights = (
        float(torch.stack([part.detach().square().sum() for part in parts]).sum().sqrt())
        for parts in (total, parameters)
    )
    if weights == 0:
        raise SamplingError("The chosen weights are all 0, so that no damping can be measured. Give damping.")
    curvature = float(basis.curvature().mean())
    found = standing_damping(gradient / float(train.weights.sum()), weights, config.damping_share, curvature)
    return config.model_copy(update={"damping": found})


class SteinChain:
    """Pairs of draws, and the scores from their means.

    Args:
        posterior: of the training examples, its precision from fitted factors; its weights move.
        parameters: of the borrowed module.
        num_draws: S, even.
        seed: of the draws.
        at_draw: called before each visit; may raise.
    """

    def __init__(
        self,
        posterior: Posterior,
        basis: LayerBasis,
        parameters: Sequence[nn.Parameter],
        num_draws: int,
        seed: int,
        at_draw: Callable[[], None] = lambda: None,
    ) -> None:
        self._posterior, self._basis, self._parameters = posterior, basis, parameters
        self._num_draws, self._seed, self._at_draw = num_draws, seed, at_draw

    def visits(self) -> Generator[None]:
        """Puts the module's weights at one draw after the other, always the same; at w* in the end."""
        posterior = self._posterior
        generator = torch.Generator(self._basis.device)
        try:
            for number in range(self._num_draws):
                self._at_draw()
                generator.manual_seed((self._seed * 65_537 + number // 2) % 2**63)
                noise = torch.randn(self._basis.size, generator=generator, device=self._basis.device)
                posterior.place((noise if number % 2 == 0 else -noise) / posterior.precision.sqrt())
                yield
        finally:
            posterior.place(torch.zeros(self._basis.size, device=self._basis.device))

    def curvature(self, progress: Callable[[float], None]) -> Tensor:
        """Λ̄ [D]: the mean squared gradient of a training example over examples and draws.

        Args:
            progress: told the mean training loss at every draw.

        Raises:
            SamplingError: a loss is not finite at a draw.
        """
        train, config = self._posterior.train, self._posterior.config
        batches = self._some_batches()
        examples = [index for batch in batches for index in batch]
        weights = train.weights[examples]
        total = torch.zeros(self._basis.size, device=self._basis.device)
        parts = self._basis.split(total)
        with closing(self.visits()) as visits:
            for _ in visits:
                with torch.inference_mode():
                    losses = torch.cat([train.losses(batch).float() for batch in batches])
                if not bool(losses.isfinite().all()):
                    raise SamplingError(
                        "A training loss is not finite at a draw: the draws are too far from the weights. "
                        f"Lower radius (now {config.chosen_radius:g}), or raise damping."
                    )
                progress(float((losses * weights).sum() / weights.sum()))
                for batch, gradients in example_gradients(
                    self._basis, self._parameters, train, config.batch_size, batches=batches
                ):
                    for part, gradient in zip(parts, gradients, strict=True):
                        part += train.weights[batch] @ gradient.flatten(1).square_()
        return total / (weights.sum() * self._num_draws)

    def scores(
        self, queries: Examples, progress: Callable[[float], None], *, with_total: bool = False
    ) -> dict[str, Tensor]:
        """`scores` [Q, N]; `own` of each training example on itself [N], with the mean outside: E[∇ℓᵀ · E[∇²U]⁻¹ · ∇ℓ]; and
        `with_total`, what scores of tokens are made from: `precision` E[∇²U] and `total` Σ w_i E[∇ℓ_i] [D]."""
        posterior = self._posterior
        precision = posterior.num_tempered * self.curvature(progress) + posterior.localization
        found = gradient_scores(
            self._basis,
            self._parameters,
            posterior.train,
            queries,
            posterior.config.batch_size,
            precision,
            self.visits,
            with_own=posterior.config.self_scores,
            with_total=with_total,
        )
        kept = found._asdict()
        return (
            kept | {"precision": precision}
            if with_total
            else {part: kept[part] for part in ("scores", "own")}
        )

    def _some_batches(self) -> list[list[int]]:
        """Batches of at most 512 training examples, chosen by the seed; the same ones whatever the size of a batch."""
        train, size = self._posterior.train, self._posterior.config.batch_size
        batches = train.batches(size)
        if len(train) <= CURVATURE_EXAMPLES:
            return batches
        generator = torch.Generator().manual_seed(self._seed)
        chosen = set(torch.randperm(len(train), generator=generator)[:CURVATURE_EXAMPLES].tolist())
        order = [index for batch in batches for index in batch if index in chosen]
        return [order[start : start + size] for start in range(0, len(order), size)]
