"""Options of a fit. Defaults are ours; `method = "grid"` is the paper's protocol (ScaleRL, arXiv 2510.13786, §A.5)."""

from __future__ import annotations

from statistics import NormalDist
from typing import Literal

from pydantic import Field, model_validator

from postgrad.core.config import Config, Seed


class ScalingConfig(Config):
    """`postgrad scaling …`."""

    x: str = "auto"
    """Compute axis: a column, several joined by '+', or one of auto (compute is the same), gpu_hours, flops, tokens,
    samples, steps, hours. auto takes the first of these that the log has, in this order."""
    y: str = "auto"
    """Reward: a column. auto takes the held-out metric that the framework is known to log, else the training reward."""
    num_gpus: float = Field(default=1.0, gt=0)
    """Multiplies an axis in hours to GPU-hours."""
    limits: tuple[float, float] | Literal["auto", "none"] = "auto"
    """Lowest and highest possible reward, which bound R0 and A. auto: 0,1 for rates and accuracies, none otherwise."""
    segment: int | Literal["last"] = "last"
    """Which run of a log that starts over several times."""
    max_points: int = Field(default=256, ge=16)
    """Longer logs are averaged to this many points, neighbours together."""
    method: Literal["projection", "grid"] = "projection"
    """`projection`: least squares over all four parameters. `grid`: the paper's grid over A and C_mid, curve_fit for B."""
    exclude_below: float | Literal["auto"] = "auto"
    """Compute below which points are the early regime and left out (paper: 1,500 GPU-hours). auto: by the data; 0: none."""
    exclude_above: float | None = None
    """Compute above which points are held out: shown and scored, not fitted."""
    max_excluded: float = Field(default=1 / 3, ge=0, lt=1)
    """Largest share of the points that the search for the early regime may leave out."""
    initial: float | Literal["fit", "first"] = "fit"
    """R0: fitted, the first reward of the log, or a number."""
    ceiling: float | None = None
    """A, if it is known or shared; otherwise it is fitted."""
    share_ceiling: bool = False
    """Several logs: fit all of them under one A, the one that fits them best together, whatever their own would be."""
    robust: bool = False
    """Huber's loss: outliers pull with bounded force."""
    bootstrap: int = Field(default=1000, ge=100)
    """Bootstrap curves behind every interval."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of all intervals."""
    seed: Seed = 0
    """Of the bootstrap."""
    min_points: int = Field(default=8, ge=6)
    """Fewer points are refused: four parameters and a noise level need that many."""
    margin: float = Field(default=0.02, gt=0)
    """Ceilings closer than this count as equal (the paper's error on A)."""
    share: float = Field(default=0.9, gt=0, lt=1)
    """Share of A whose compute is forecast and compared."""
    price: float | None = Field(default=None, gt=0)
    """Cost of one unit of compute, for forecasts of cost."""
    currency: str = "$"
    """Of `price`."""

    @property
    def quantile(self) -> float:
        """Of the normal distribution: half the width of an interval of `confidence`, in standard errors.

        >>> round(ScalingConfig().quantile, 2)
        1.96
        """
        return NormalDist().inv_cdf(0.5 + 0.5 * self.confidence)

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("limits"), str):
            text = data["limits"]
            if text in ("auto", "none"):
                return data
            try:
                low, high = (float(part) for part in text.split(","))
            except ValueError:
                raise ValueError(f"limits takes LOW,HIGH (such as 0,1), auto or none, not {text!r}") from None
            return {**data, "limits": (low, high)}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> ScalingConfig:
        if isinstance(self.limits, tuple) and not self.limits[0] < self.limits[1]:
            raise ValueError(f"limits must be LOW,HIGH with LOW below HIGH, not {self.limits}")
        if self.method == "grid" and self.robust:
            raise ValueError("the paper's grid is least squares; use robust with method = projection")
        return self
