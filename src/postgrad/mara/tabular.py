"""Does training reach the optimum? Categorical policies on logits, trained with the estimators of real RL, many at once.

One prompt, V answers, C independent chains (seeds, and values of β: everything per chain). Every estimator is a
policy gradient, Σ_i w_i·c_i·∇log π_θ(y_i) over the group with coefficients c_i that depend on where the KL is put:

    k1_reward  c = advantage of R̃ − β·(log π_θ − log π_ref)              expected gradient: reverse KL
    k2_loss    c = advantage of R̃ − β·(log π_θ − log π_ref)              reverse KL, outside of centring and scaling
    k3_loss    c = advantage of R̃ − β·(1 − π_ref/π_θ)                    *forward* KL (GRPO's default)

On logits ∇log π_θ(y) = 1_y − π_θ, so no automatic differentiation is needed. Start at `train`; `gradient_flow` follows the
exact gradient. Sources: "KL-Regularized RL is Designed to Mode Collapse" (arXiv 2510.20817); the remedies are postgrad's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from postgrad.mara.ops import centre_and_scale, find_anchor

Placement = Literal["k1_reward", "k2_loss", "k3_loss"]
Deviation = Literal["none", "augmented", "total"]
Direction = Literal["reverse", "forward"]
Optimizer = Literal["adam", "sgd"]


@dataclass(frozen=True)
class Settings:
    """How the chains are trained.

    Attributes:
        placement: where the KL is (see the module).
        deviation: what divides the advantage: nothing, the deviation of R̃ alone, or that of the total reward (the last
            one only with `k1_reward`: elsewhere R̃ is all that is centred).
        min_deviation: the deviation of the total is at least β times this, in nats.
        leave_one_out: centre each R̃ by the mean of the *other* samples: G/(G − 1) times what centring by all of them
            gives. With the KL in the loss and no deviation this alone moves the optimum, whose β is G/(G − 1) times too
            large otherwise. Not together with a deviation (which undoes it) or with the remedies.
        augment: MARA's R̃ instead of R; the anchor is the reference's best good answer in the group.
        tau: good means R ≥ τ.
        group_size: G samples per step.
        optimizer: `adam` (torch's defaults) or `sgd` (plain).
        learning_rate: of the logits.
        steps: updates.
        reference_fraction: this share of each group, rounded up, is drawn from π_ref instead of π_θ.
        replay: this share, rounded up, is drawn evenly from the good answers this chain has seen so far (from π_θ while
            it has seen none).
        importance_power: γ of the weights (π_θ/q)^γ, q the group's mixture of sources. 1 corrects fully: the expected
            gradient is that of samples from π_θ, which starves what π_θ rarely gives. 0 does not correct. With the KL in
            the reward every γ has the same fixed point, because the total is then equal for all answers, however drawn;
            whether training gets there is another matter (`benchmarks/mara_tabular.py`).
    """

    placement: Placement = "k1_reward"
    deviation: Deviation = "total"
    min_deviation: float = 0.0
    leave_one_out: bool = False
    augment: bool = True
    tau: float = 1.0
    group_size: int = 8
    optimizer: Optimizer = "adam"
    learning_rate: float = 0.01
    steps: int = 4000
    reference_fraction: float = 0.0
    replay: float = 0.0
    importance_power: float = 1.0

    def __post_init__(self) -> None:
        for value, choices in (
            (self.placement, Placement),
            (self.deviation, Deviation),
            (self.optimizer, Optimizer),
        ):
            if value not in get_args(choices):
                raise ValueError(f"received {value!r}; valid: {', '.join(get_args(choices))}")
        if self.deviation == "total" and self.placement != "k1_reward":
            raise ValueError(f"deviation 'total' needs the KL in the reward; received {self.placement!r}")
        reference, replayed, own = self.sources()
        if self.leave_one_out and (self.deviation != "none" or reference or replayed or self.group_size < 2):
            raise ValueError("leave_one_out needs deviation 'none', no remedy and at least two samples")
        if own < 1:
            raise ValueError(
                f"of {self.group_size} samples {reference} come from the reference and {replayed} from replay; at least "
                "one must come from the policy: lower reference_fraction or replay"
            )

    def sources(self) -> tuple[int, int, int]:
        """How many samples of a group come from the reference, from replay and from the policy."""
        reference = math.ceil(self.reference_fraction * self.group_size)
        replayed = math.ceil(self.replay * self.group_size)
        return reference, replayed, self.group_size - reference - replayed


class Trained(NamedTuple):
    """What became of each chain.

    Attributes:
        policy: π_θ [C, V].
        rare_given_good: P(rare | good) [C]; rare is the good answer that the reference gives least; ideal 1/number of good ones.
        good_mass: P(good) [C].
        steps_to_uniform: the first step from which P(rare | good) stays ≥ 0.8/number of good answers (0.4 of two), up to
            the end [C]; inf if it is below at the end.
    """

    policy: Tensor
    rare_given_good: Tensor
    good_mass: Tensor
    steps_to_uniform: Tensor


def train(
    ref: Float[Tensor, " V"],
    rewards: Float[Tensor, " V"],
    beta: Float[Tensor, " C"],
    settings: Settings,
    generator: torch.Generator,
) -> Trained:
    """Trains one policy per entry of `beta`, all from the reference, on samples.

    Args:
        ref: π_ref [V], positive, with at least one good answer (R ≥ τ).
        rewards: R [V].
        beta: > 0, per chain; repeat a value for more seeds.
        settings: see there.
        generator: of all draws; on the device of `ref`.

    Two good answers of .6 and .02 become equally likely:

    >>> ref, rewards = torch.tensor([0.6, 0.02, 0.38]), torch.tensor([1.0, 1.0, 0.0])
    >>> seeds = torch.full((8,), 0.1)
    >>> trained = train(ref, rewards, seeds, Settings(steps=1500), torch.Generator().manual_seed(0))
    >>> bool(((trained.rare_given_good - 0.5).abs() < 0.1).all())
    True
    """
    good = rewards >= settings.tau
    if not bool(good.any()) or not bool((ref > 0).all()) or not bool((beta > 0).all()):
        raise ValueError("train needs ref > 0 and beta > 0 everywhere, and a good answer (rewards ≥ tau)")
    log_ref = ref.log()
    logits = log_ref.repeat(len(beta), 1)
    update = _make_optimizer(logits, settings)
    seen = torch.zeros_like(logits)
    rare = int(torch.where(good, ref, math.inf).argmin())
    target = 0.8 / int(good.sum())
    last_below = torch.zeros(len(beta), device=ref.device)
    for step in range(settings.steps):
        log_policy = logits.log_softmax(-1)
        drawn = draw_group(log_policy, ref, seen, settings, generator)
        if settings.replay:
            seen.scatter_(1, drawn.answers, good.to(seen.dtype)[drawn.answers])
        logps = log_policy.gather(1, drawn.answers)
        c = coefficients(rewards[drawn.answers], logps, log_ref[drawn.answers], drawn.weights, beta, settings)
        update(policy_gradient(log_policy, drawn.answers, drawn.weights * c))
        policy = logits.softmax(-1)
        share = policy[:, rare] / policy[:, good].sum(-1)
        last_below = torch.where(share >= target, last_below, float(step + 1))
    policy = logits.softmax(-1)
    good_mass = policy[:, good].sum(-1)
    reached = torch.where(last_below < settings.steps, last_below + 1, math.inf)
    return Trained(policy, policy[:, rare] / good_mass, good_mass, reached)


# -- one step --------------------------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """A group per chain: answers [C, G] and the importance weights [C, G] of its members."""

    answers: Tensor
    weights: Tensor


def draw_group(
    log_policy: Float[Tensor, "C V"],
    ref: Float[Tensor, " V"],
    seen: Float[Tensor, "C V"],
    settings: Settings,
    generator: torch.Generator,
) -> Drawn:
    """Samples from the reference, replay and the policy, in fixed numbers; weights (π_θ/q)^γ, q their mixture per group.

    Weighing by the mixture, whichever source a sample came from (the balance heuristic: Veach & Guibas 1995), bounds the
    weights by G over the policy's own samples.

    Args:
        log_policy: log π_θ.
        ref: π_ref.
        seen: 1 on good answers that the chain has seen.
        settings: numbers of samples and γ.
        generator: of the draws.
    """
    policy = log_policy.exp()
    reference, replayed, own = settings.sources()
    if not reference and not replayed:
        answers = torch.multinomial(policy, own, replacement=True, generator=generator)
        return Drawn(answers, torch.ones_like(answers, dtype=policy.dtype))
    count = seen.sum(-1, keepdim=True)
    replay = torch.where(count > 0, seen / count.clamp(min=1), policy)
    sources = [(policy, own), (ref.expand_as(policy), reference), (replay, replayed)]
    answers = torch.cat(
        [torch.multinomial(p, n, replacement=True, generator=generator) for p, n in sources if n], dim=1
    )
    mixture = torch.stack([p * n for p, n in sources]).sum(0) / settings.group_size
    weights = (policy / mixture.clamp(min=1e-30)).gather(1, answers) ** settings.importance_power
    return Drawn(answers, weights)


def coefficients(
    rewards: Float[Tensor, "C G"],
    logps: Float[Tensor, "C G"],
    ref_logps: Float[Tensor, "C G"],
    weights: Float[Tensor, "C G"],
    beta: Float[Tensor, " C"],
    settings: Settings,
) -> Float[Tensor, "C G"]:
    """c of each sample (see the module): the ascent direction is Σ w·c·∇log π_θ / G.

    >>> one = torch.ones(1, 2)
    >>> known = Settings(placement="k2_loss", deviation="none", augment=False)
    >>> coefficients(torch.tensor([[1.0, 0.0]]), -1 * one, -2 * one, one, torch.tensor([0.1]), known).tolist()  # ±½ − 0.1·1
    [[0.4000000059604645, -0.6000000238418579]]
    """
    least = settings.min_deviation * beta
    beta = beta.unsqueeze(-1)
    augmented = _augment(rewards, ref_logps, beta, settings.tau) if settings.augment else rewards
    difference = logps - ref_logps
    if settings.placement == "k1_reward" and settings.deviation != "augmented":
        norm = "group" if settings.deviation == "total" else "none"
        return _factor(settings) * centre_and_scale(augmented - beta * difference, norm, weights, least)
    advantage = centre_and_scale(augmented, "group" if settings.deviation == "augmented" else "none", weights)
    if settings.placement == "k1_reward":
        return advantage - centre_and_scale(beta * difference, "none", weights)
    penalty = difference if settings.placement == "k2_loss" else 1 - (-difference).exp()
    return _factor(settings) * advantage - beta * penalty


def _factor(settings: Settings) -> float:
    return settings.group_size / (settings.group_size - 1) if settings.leave_one_out else 1.0


def _augment(rewards: Tensor, ref_logps: Tensor, beta: Tensor, tau: float) -> Tensor:
    """`ops.mara` with one β per chain: it is linear in β."""
    good = rewards >= tau
    anchor = find_anchor(rewards, ref_logps, good)
    lifted = anchor.rewards.unsqueeze(-1) + beta * (anchor.ref_logps.unsqueeze(-1) - ref_logps)
    return torch.where(good, lifted, rewards)


def policy_gradient(
    log_policy: Float[Tensor, "C V"], answers: Int[Tensor, "C G"], weighted: Float[Tensor, "C G"]
) -> Float[Tensor, "C V"]:
    """Σ_i weighted_i·(1_{y_i} − π_θ)/G: the ascent direction on the logits.

    >>> half = torch.tensor([[0.5, 0.5]]).log()
    >>> policy_gradient(half, torch.tensor([[0, 0]]), torch.tensor([[1.0, 3.0]])).tolist()
    [[1.0, -1.0]]
    """
    hits = torch.zeros_like(log_policy).scatter_add_(1, answers, weighted)
    return (hits - weighted.sum(-1, keepdim=True) * log_policy.exp()) / answers.shape[-1]


def _make_optimizer(logits: Tensor, settings: Settings) -> Callable[[Tensor], None]:
    """An ascent step in place. Adam and plain SGD act elementwise, so chains stay independent."""
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.SGD
    optimizer = kind([logits], lr=settings.learning_rate)

    def update(gradient: Tensor) -> None:
        logits.grad = -gradient
        optimizer.step()

    return update


# -- the exact gradient ------------------------------------------------------------------------------------------------


def exact_gradient(
    log_policy: Float[Tensor, "... V"],
    log_ref: Float[Tensor, "... V"],
    rewards: Float[Tensor, "... V"],
    beta: float,
    direction: Direction,
) -> Float[Tensor, "... V"]:
    """∇ over the logits of E[R] − β·KL: reverse KL(π_θ ‖ π_ref), or forward KL(π_ref ‖ π_θ).

    reverse: π_θ·(T − E[T]) with T = R − β·(log π_θ − log π_ref); forward: π_θ·(R − E[R]) + β·(π_ref − π_θ).

    >>> third = torch.tensor([0.5, 0.5]).log()
    >>> exact_gradient(third, third, torch.tensor([1.0, 0.0]), 0.1, "reverse").tolist()
    [0.25, -0.25]
    """
    policy = log_policy.exp()
    total = rewards - beta * (log_policy - log_ref) if direction == "reverse" else rewards
    gradient = policy * (total - (policy * total).sum(-1, keepdim=True))
    return gradient if direction == "reverse" else gradient + beta * (log_ref.exp() - policy)


def gradient_flow(
    ref: Float[Tensor, "... V"],
    rewards: Float[Tensor, "... V"],
    beta: float,
    direction: Direction,
    *,
    steps: int = 4000,
    learning_rate: float = 0.05,
) -> Float[Tensor, "... V"]:
    """The policy after following the exact gradient from the reference, with Adam (`steps` updates, rate falling to 0), float64.

    Its end is `theory.reverse_kl_optimum` or `theory.forward_kl_optimum`.
    """
    log_ref, values = ref.double().log(), rewards.double()
    logits = log_ref.clone()
    optimizer = torch.optim.Adam([logits], lr=learning_rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        logits.grad = -exact_gradient(logits.log_softmax(-1), log_ref, values, beta, direction)
        optimizer.step()
    return logits.softmax(-1)
