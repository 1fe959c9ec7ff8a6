"""Levels at the quantiles of a logistic distribution of ln σ: the rule of `Auto` and of fitted levels."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from openedm.ground import checks
from openedm.levels.rules import Levels, with_exact_ends

__all__ = ["Logistic"]


@dataclass(frozen=True)
class Logistic(Levels):
    """Levels at the quantiles of a logistic distribution of ln σ, cut to the range: dense around a centre.

    With F the distribution function 1/(1 + e^{−(ln σ − ln c)/w}), F(σ_i) = F(σ_max) + p_i (F(σ_min) − F(σ_max)), where
    p_i = i/(N−1) + Σ_k v_k sin(πk i/(N−1))/(πk). With w = 1 levels are even in the time σ/(σ+c) of rectified flow, with
    w = ½ in the fraction σ²/(σ²+c²) of the variance that is noise, and with w → ∞ in ln σ.

    Args:
        num_steps: N ≥ 1.
        sigma_min: lowest level, > 0, in data units; None means EDM's 0.002 σ_data/0.5.
        sigma_max: highest level; None means EDM's 80 σ_data/0.5.
        centre: c > 0, where levels are densest, in data units; None means half of σ_data.
        spread: w > 0, the width of the distribution of levels, in units of ln σ.
        warp: v_1, v_2, …: a smooth displacement of the quantiles that keeps their order, found by `fit_levels`.

    Raises:
        ValueError: a value is out of its range, or the levels do not decrease strictly.
    """

    relative_numbers: ClassVar[Mapping[str, float]] = {**Levels.relative_numbers, "centre": 0.25}

    num_steps: int = 18
    sigma_min: float | None = None
    sigma_max: float | None = None
    centre: float | None = None
    spread: float = 1.5
    warp: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._check_range()
        if self.centre is not None:
            checks.positive("centre", self.centre)
        checks.positive("spread", self.spread)
        for k, value in enumerate(self.warp):
            checks.finite(f"warp[{k}]", value)
        if not bool((self._shares().diff() > 0).all()):
            raise ValueError(f"warp must keep the order of the levels, got {self.warp}")
        self._check_order()

    def _shares(self) -> Float64[Tensor, "num_steps"]:
        """p_i."""
        ramp = self._fractions()
        parts = [v * (math.pi * k * ramp).sin() / (math.pi * k) for k, v in enumerate(self.warp, start=1)]
        return torch.stack([ramp, *parts]).sum(0)

    def sigmas(self) -> Float64[Tensor, "num_steps"]:
        """The quantiles, from σ_max down."""
        low, high = self.ends
        centre = self.relative_numbers["centre"] if self.centre is None else self.centre
        shares = self._shares()
        ends = torch.tensor([high, low], dtype=torch.float64)
        scaled = (ends.log() - math.log(centre)) / self.spread
        # Logits of F(σ_max) + p (F(σ_min) − F(σ_max)), of both F and 1 − F, which keeps digits where F is close to 1.
        below, above = scaled.sigmoid(), (-scaled).sigmoid()
        quantile, rest = (end[0] + shares * (end[1] - end[0]) for end in (below, above))
        logits = quantile.clamp(min=1e-300).log() - rest.clamp(min=1e-300).log()
        return with_exact_ends((math.log(centre) + self.spread * logits).exp(), low, high)
