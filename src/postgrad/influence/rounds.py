"""As many draws as it takes: chains go on in rounds, each time to twice as many, until what they say is stable.

Stopping where a diagnostic passes favours draws that pass it by luck; the check with half the step, which is made once and at the
end, is not part of the rule.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from postgrad.influence.config import InfluenceConfig
from postgrad.influence.sampler import Draws, Sampler


def round_sizes(config: InfluenceConfig) -> list[int]:
    """Draws of each chain after each round: S, 2·S, 4·S, …, at most `max_draws`.

    >>> round_sizes(InfluenceConfig(method="sgld", draws=100, max_draws=500)), round_sizes(InfluenceConfig(draws=100))
    ([100, 200, 400, 500], [100])
    """
    sizes = [config.num_draws]
    while sizes[-1] < config.most_draws:
        sizes.append(min(2 * sizes[-1], config.most_draws))
    return sizes


def is_stable(diagnostics: dict[str, float], config: InfluenceConfig) -> bool:
    """Whether the effective number of draws and the stability of ranks reach what a ranking needs. NaN does not.

    >>> limits = InfluenceConfig(min_ess=50, min_agreement=0.5)
    >>> is_stable({"diagnostics/ess": 60.0, "diagnostics/stability": 0.4}, limits), is_stable({"diagnostics/ess": 60.0}, limits)
    (False, True)
    """
    ess = diagnostics["diagnostics/ess"]
    stability = diagnostics.get("diagnostics/stability", config.min_agreement)
    return ess >= config.min_ess and stability >= config.min_agreement


def draw_until_stable(
    sampler: Sampler,
    config: InfluenceConfig,
    judge: Callable[[Draws], dict[str, float]],
    progress: Callable[[int, Tensor], None] | None,
) -> tuple[Draws, list[str]]:
    """The draws of the first round that is stable, or of the last one.

    Args:
        sampler: its chains go on from round to round.
        config: sizes of the rounds, and what stable means.
        judge: diagnostics of draws; a round that was judged before a restart is judged alike.
        progress: see `Sampler.sample`.

    Returns:
        The draws, and a note for each round but the last.
    """
    sizes, notes = round_sizes(config), list[str]()
    for size in sizes:
        last = size == sizes[-1]
        draws = sampler.sample(size, progress, last=last)
        if last:
            return draws, notes
        found = judge(draws)
        if is_stable(found, config):
            sampler.end()
            return draws, notes
        stability = found.get("diagnostics/stability")
        notes.append(
            f"{size} draws of each chain were not enough (ess {found['diagnostics/ess']:.3g}"
            + ("" if stability is None else f", stability {stability:.2g}")
            + "), so the chains went on"
        )
    raise AssertionError("there is a last round")
