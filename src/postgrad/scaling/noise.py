"""The noise around a fitted curve: how large it is, how long it remembers, and how well both are known.

Held-out evaluations a hundred steps apart share part of the policy's wandering, so their errors are taken as a first-order
autoregression, ε_t = ρ·ε_{t−1} + e_t with standard deviation σ. Residuals understate both σ and ρ, because the curve has
followed part of the noise; the likelihood of what no curve can follow (restricted likelihood, Patterson &
Thompson 1971) does not:

    log L(ρ) = −½·log|Σ(ρ)| − ½·log|JᵀΣ(ρ)⁻¹J| − (n − q)/2·log Q(ρ),   Q(ρ) = min_b (r − J·b)ᵀ Σ(ρ)⁻¹ (r − J·b),

J the Jacobian of the curve with q columns, Σ_ij = ρ^|i−j|. With a flat prior on ρ and 1/σ² on σ² this is the posterior of ρ, and
σ²|ρ is Q(ρ)/χ²_{n−q}. A bootstrap that draws both from it has the wider tails that few points call for (without memory:
Student's).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from postgrad.scaling.ops import Array

RHOS = np.round(np.arange(-0.6, 0.981, 0.02), 2)
"""ρ that are considered."""


class Noise(NamedTuple):
    """Of one curve.

    Attributes:
        sigma: standard deviation of one evaluation, in the reward's unit.
        rho: autocorrelation between neighbours; the mean of its posterior, and at least 0.
        num_effective: of how many independent points the log has the information: n·(1 − ρ)/(1 + ρ).
        posterior: of ρ on `RHOS`, summing to 1.
        quadratic: Q on `RHOS`.
        freedom: n − q.
    """

    sigma: float
    rho: float
    num_effective: float
    posterior: Array
    quadratic: Array
    freedom: int


def whiten(values: Array, rho: Array | float) -> Array:
    """Σ(ρ)^−½ along the first axis: (v_t − ρ·v_{t−1})/√(1 − ρ²), the first as it is.

    >>> whiten(np.array([1.0, 1.0, 2.0]), 0.6).round(6).tolist()
    [1.0, 0.5, 1.75]
    """
    rest = (values[1:] - rho * values[:-1]) / np.sqrt(1 - np.square(rho))
    return np.concatenate([values[:1], rest])


def autoregressive(rho: float, num_points: int) -> Array:
    """Correlation matrix Σ_ij = ρ^|i−j|, [n, n].

    >>> autoregressive(0.5, 3).tolist()
    [[1.0, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 1.0]]
    """
    index = np.arange(num_points)
    return float(rho) ** np.abs(index[:, None] - index)


def estimate_noise(residuals: Array, jacobian: Array) -> Noise:
    """σ and ρ from residuals in the order of compute.

    Args:
        residuals: [n].
        jacobian: of the fitted curve with respect to all its parameters, [n, q], q < n.

    Returns:
        The noise with its posterior.
    """
    n = len(residuals)
    basis = _basis(jacobian)
    freedom = n - basis.shape[1]
    log_posterior, quadratic = np.empty(len(RHOS)), np.empty(len(RHOS))
    floor = 1e-24 * float(np.mean(np.square(residuals))) + 1e-300
    for index, rho in enumerate(RHOS):
        q, triangle = np.linalg.qr(whiten(basis, rho))
        white = whiten(residuals, rho)
        left = white - q @ (q.T @ white)
        quadratic[index] = max(float(left @ left), floor)
        log_posterior[index] = (
            -0.5 * (n - 1) * np.log1p(-rho * rho)
            - np.sum(np.log(np.abs(np.diagonal(triangle))))
            - 0.5 * freedom * np.log(quadratic[index])
        )
    posterior = np.exp(log_posterior - log_posterior.max())
    posterior /= posterior.sum()
    rho = max(float(posterior @ RHOS), 0.0)
    sigma = float(np.sqrt(np.interp(rho, RHOS, quadratic) / freedom))
    return Noise(sigma, rho, n * (1 - rho) / (1 + rho), posterior, quadratic, freedom)


def simulate(noise: Noise, residuals: Array, draws: int, generator: np.random.Generator) -> Array:
    """New noise of the same kind, each draw with a σ and ρ of its own from their posterior.

    Args:
        noise: from `estimate_noise`.
        residuals: [n]; their whitened values are resampled, so that their distribution is kept.
        draws: S.
        generator: of all of it.

    Returns:
        [S, n].
    """
    n = len(residuals)
    white = whiten(residuals, noise.rho)
    white = white - white.mean()
    spread = float(np.sqrt(np.mean(white**2)))
    if spread <= 0:
        return np.zeros((draws, n))
    which = generator.choice(len(RHOS), size=draws, p=noise.posterior)
    rho = RHOS[which]
    sigma = np.sqrt(noise.quadratic[which] / generator.chisquare(noise.freedom, size=draws))
    fresh = generator.choice(white / spread, size=(draws, n))
    out = np.empty((draws, n))
    out[:, 0] = fresh[:, 0]
    for t in range(1, n):
        out[:, t] = rho * out[:, t - 1] + np.sqrt(1 - rho**2) * fresh[:, t]
    return sigma[:, None] * out


def covariance(jacobian: Array, noise: Noise) -> Array:
    """Of the least-squares estimates, to first order: σ²·(JᵀJ)⁻¹ Jᵀ Σ(ρ) J (JᵀJ)⁻¹.

    Args:
        jacobian: [n, q].
        noise: σ and ρ.

    Returns:
        [q, q].
    """
    pinv = np.linalg.pinv(jacobian)
    return noise.sigma**2 * pinv @ autoregressive(noise.rho, len(jacobian)) @ pinv.T


def _basis(jacobian: Array) -> Array:
    scaled = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    left, singular, _ = np.linalg.svd(scaled, full_matrices=False)
    return left[:, singular > 1e-8 * max(float(singular[0]), 1e-300)]
