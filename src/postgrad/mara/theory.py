"""Closed forms of "KL-Regularized RL is Designed to Mode Collapse" (arXiv 2510.20817), for distributions that fit in a table.

Symbols: π_ref = `ref`, R = `rewards`, β = `beta`, G_β = the optimum, Λ = `forward_kl_multiplier`, τ = `tau`.

Everything is float64 and batched: distributions and rewards are [..., V]. Answers that the reference never gives stay
without mass. Every function raises ValueError when β ≤ 0 or `ref` is no distribution.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def reverse_kl_optimum(ref: ArrayLike, rewards: ArrayLike, beta: float) -> Array:
    """argmax of E[R] − β·KL(π ‖ π_ref): G_β = π_ref·e^(R/β)/ζ.

    With equal rewards the ratio of two answers is the reference's whatever β; with equal support it is e^(ΔR/β).

    >>> reverse_kl_optimum([0.6, 0.2, 0.2], [1.0, 1.0, 1.0 - 0.1 * np.log(4)], 0.1).round(6).tolist()  # .6 : .2 : .05
    [0.705882, 0.235294, 0.058824]
    """
    log_ref, values = _checked(ref, rewards, beta)
    log_optimum = log_ref + values / beta
    return np.exp(log_optimum - _logsumexp(log_optimum))


def forward_kl_multiplier(ref: ArrayLike, rewards: ArrayLike, beta: float) -> Array:
    """Λ of the forward KL's optimum, [...]: the only one above R_max for which Σ β·π_ref/(Λ − R) = 1.

    The sum falls in Λ. It is ≤ 1 at R_max + β, and ≥ 1 at R_max + β·π_ref(best answers); between them by bisection, on
    log(Λ − R_max), so that a Λ next to R_max keeps its digits.

    >>> round(float(forward_kl_multiplier([0.5, 0.5], [1.0, 0.0], 1.0)), 6)  # ½/(Λ − 1) + ½/Λ = 1: Λ = 1 + 1/√2
    1.707107
    """
    log_ref, values = _checked(ref, rewards, beta)
    return _best(log_ref, values)[..., 0] + np.exp(_log_gap(log_ref, values, beta))[..., 0]


def forward_kl_optimum(ref: ArrayLike, rewards: ArrayLike, beta: float) -> Array:
    """argmax of E[R] − β·KL(π_ref ‖ π): G = β·π_ref/(Λ − R), within the support of the reference.

    >>> forward_kl_optimum([0.5, 0.5], [1.0, 0.0], 1.0).round(6).tolist()  # ½/0.7071, ½/1.7071
    [0.707107, 0.292893]
    """
    log_ref, values = _checked(ref, rewards, beta)
    return np.exp(_log_forward(_log_gap(log_ref, values, beta), log_ref, values, beta))


def mara_rewards(ref: ArrayLike, rewards: ArrayLike, beta: float, tau: float) -> Array:
    """R̃ [..., V] with the anchor searched among all answers that the reference gives: `ops.mara` of the whole table.

    >>> mara_rewards([0.5, 0.25, 0.25], [1.0, 1.0, 0.0], 1.0, 1.0).round(6).tolist()
    [1.0, 1.693147, 0.0]
    """
    log_ref, values = _checked(ref, rewards, beta)
    good = (values >= tau) & np.isfinite(log_ref)
    logps = np.where(good, log_ref, -np.inf)
    anchor_logp = logps.max(-1, keepdims=True)
    anchor_reward = np.where(good & (logps == anchor_logp), values, -np.inf).max(-1, keepdims=True)
    lift = np.where(good, anchor_logp, 0.0) - np.where(good, log_ref, 0.0)
    return np.where(good, anchor_reward + beta * lift, values)


def mara_optimum(ref: ArrayLike, rewards: ArrayLike, beta: float, tau: float) -> Array:
    """The reverse-KL optimum under R̃: uniform over the good answers, the rest as before.

    >>> mara_optimum([0.6, 0.02, 0.38], [1.0, 1.0, 0.0], 0.1, 1.0).round(4).tolist()
    [0.5, 0.5, 0.0]
    """
    return reverse_kl_optimum(ref, mara_rewards(ref, rewards, beta, tau), beta)


def crossover_beta(ref_1: float, ref_2: float, reward_1: float, reward_2: float) -> float:
    """β* = (R2 − R1)/(log π_ref1 − log π_ref2), at which the two answers are equally likely in the reverse-KL optimum.

    Below it the better rewarded one wins, above it the one that the reference likes. ValueError unless β* is positive,
    that is, unless the answer of less support has more reward.

    >>> round(crossover_beta(0.8, 0.2, 0.0, 1.0), 6)  # 1/log 4
    0.721348
    """
    distance = np.log(ref_1) - np.log(ref_2)
    if distance * (reward_2 - reward_1) <= 0:
        raise ValueError(
            "there is a crossover only if the answer of less support has more reward; received "
            f"support {ref_1}, {ref_2} and rewards {reward_1}, {reward_2}"
        )
    return float((reward_2 - reward_1) / distance)


def total_variation(first: ArrayLike, second: ArrayLike) -> Array:
    """½·Σ|p − q|, [...]: 0 equal, 1 disjoint.

    >>> float(total_variation([0.5, 0.5], [1.0, 0.0]))
    0.5
    """
    return np.asarray(0.5 * np.abs(np.asarray(first, float) - np.asarray(second, float)).sum(-1))


# -- helpers -------------------------------------------------------------------------------------------------------


def _checked(ref: ArrayLike, rewards: ArrayLike, beta: float) -> tuple[Array, Array]:
    support, values = np.broadcast_arrays(np.asarray(ref, float), np.asarray(rewards, float))
    if not 0 < beta < np.inf:
        raise ValueError(f"beta must be positive and finite; received {beta}")
    if (support < 0).any() or not np.allclose(support.sum(-1), 1.0, rtol=0, atol=1e-6):
        raise ValueError(f"ref must be probabilities that sum to 1; received sums {support.sum(-1)}")
    with np.errstate(divide="ignore"):
        return np.log(support), values


def _best(log_ref: Array, values: Array) -> Array:
    return np.where(np.isfinite(log_ref), values, -np.inf).max(-1, keepdims=True)


def _log_gap(log_ref: Array, values: Array, beta: float) -> Array:
    """log(Λ − R_max), [..., 1]."""
    best = _best(log_ref, values)
    at_best = np.where(values == best, log_ref, -np.inf)
    low, high = np.log(beta) + _logsumexp(at_best), np.full_like(best, np.log(beta))
    for _ in range(100):
        middle = 0.5 * (low + high)
        too_much = _logsumexp(_log_forward(middle, log_ref, values, beta)) > 0
        low, high = np.where(too_much, middle, low), np.where(too_much, high, middle)
    return 0.5 * (low + high)


def _log_forward(log_gap: Array, log_ref: Array, values: Array, beta: float) -> Array:
    below = np.maximum(_best(log_ref, values) - values, 0.0)  # > R_max only without support: mass 0 anyway
    with np.errstate(divide="ignore"):
        return np.log(beta) + log_ref - np.logaddexp(log_gap, np.log(below))


def _logsumexp(values: Array) -> Array:
    top = values.max(-1, keepdims=True)
    return top + np.log(np.exp(values - top).sum(-1, keepdims=True))
