"""Guidance weights w(σ), functions of the noise level.

| weight | w(σ) |
|---|---|
| `Constant` | w |
| `Interval` (Kynkäänniemi et al. 2024) | w for σ_low < σ ≤ σ_high, otherwise 1 |
| `Piecewise` | given at some noise levels, linear in ln σ between them |
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float64
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.ground.tensors import float64_between
from openedm.schedules import Values

__all__ = ["Constant", "GuidanceWeight", "Interval", "Piecewise", "Weight", "to_weight"]


class GuidanceWeight(Choice, ABC):
    """The guidance weight as a function of σ."""

    @property
    @abstractmethod
    def is_one(self) -> bool:
        """Whether the weight is 1 at every noise level, so that there is no guidance."""

    @abstractmethod
    def at(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """w(σ), exactly 1 where there is no guidance; of the shape of σ and on its device."""


@dataclass(frozen=True)
class Constant(GuidanceWeight):
    """The same weight at every noise level.

    Args:
        weight: w ≥ 0; 1 means no guidance.

    Raises:
        ValueError: the weight is negative or not finite.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_weight("weight", self.weight)

    @property
    def is_one(self) -> bool:
        """w = 1."""
        return self.weight == 1

    def at(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """w."""
        return torch.full_like(float64_between("sigma", sigma, 0, math.inf), self.weight)


@dataclass(frozen=True)
class Interval(GuidanceWeight):
    """A weight inside an interval of noise levels and no guidance outside (Kynkäänniemi et al. 2024).

    In their experiments guidance is harmful at high noise levels, unnecessary at low ones, and useful in between.

    Args:
        weight: w ≥ 0 for σ_low < σ ≤ σ_high; 1 means no guidance.
        low: σ_low ≥ 0, in data units.
        high: σ_high; infinite by default.

    Raises:
        ValueError: the weight is negative or not finite, or not 0 ≤ low < high.

    >>> Interval(2.0, low=0.5, high=4.0).at(torch.tensor([0.5, 1.0, 4.0, 4.5]))
    tensor([1., 2., 2., 1.], dtype=torch.float64)
    """

    weight: float = 1.0
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        _check_weight("weight", self.weight)
        checks.at_least("low", self.low, 0)
        checks.ordered("low", self.low, "high", self.high)

    @property
    def is_one(self) -> bool:
        """w = 1."""
        return self.weight == 1

    def at(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """w for σ_low < σ ≤ σ_high, otherwise 1."""
        sigma = float64_between("sigma", sigma, 0, math.inf)
        return torch.ones_like(sigma).masked_fill((sigma > self.low) & (sigma <= self.high), self.weight)


@dataclass(frozen=True)
class Piecewise(GuidanceWeight):
    """Weights given at some noise levels; between them linear in ln σ, outside them the weight of the nearest.

    Args:
        sigmas: at least 2 noise levels > 0, strictly increasing, in data units.
        weights: w ≥ 0 at each; 1 means no guidance.

    Raises:
        ValueError: a value is out of its range, the levels do not increase, or their numbers differ.

    >>> Piecewise((0.25, 1.0, 4.0), (1.0, 3.0, 2.0)).at(torch.tensor([0.125, 0.25, 0.5, 1.0, 9.0]))
    tensor([1., 1., 2., 3., 2.], dtype=torch.float64)
    """

    sigmas: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sigmas) < 2 or len(self.weights) != len(self.sigmas):
            raise ValueError(
                "sigmas and weights must hold the same number of values, at least 2, "
                f"got {len(self.sigmas)} sigmas and {len(self.weights)} weights"
            )
        for i, (sigma, weight) in enumerate(zip(self.sigmas, self.weights, strict=True)):
            checks.positive(f"sigmas[{i}]", sigma)
            _check_weight(f"weights[{i}]", weight)
        if any(not low < high for low, high in pairwise(self.sigmas)):
            raise ValueError(f"sigmas must increase strictly, got {self.sigmas}")

    @property
    def is_one(self) -> bool:
        """All weights are 1."""
        return all(weight == 1 for weight in self.weights)

    def at(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """w_j + (w_{j+1} − w_j) ln(σ/σ_j) / ln(σ_{j+1}/σ_j) for σ_j ≤ σ ≤ σ_{j+1}."""
        sigma = float64_between("sigma", sigma, 0, math.inf)
        knots, weights = (
            torch.tensor(v, dtype=torch.float64, device=sigma.device) for v in (self.sigmas, self.weights)
        )
        log, knots = sigma.log(), knots.log()
        right = torch.searchsorted(knots, log.detach().contiguous()).clamp(1, len(knots) - 1)
        fraction = ((log - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0, 1)
        return torch.lerp(weights[right - 1], weights[right], fraction)


Weight = GuidanceWeight | Tensor | float
"""A weight: a function of σ, a number, or one value a sample, a tensor of shape (batch,)."""


def to_weight(weight: Weight) -> GuidanceWeight | Tensor:
    """The weight as a function of σ; or one value a sample, on the host."""
    if isinstance(weight, GuidanceWeight):
        return weight
    if not isinstance(weight, Tensor) or weight.ndim == 0:
        return Constant(float(weight))
    values = weight.detach().to("cpu", torch.float64)
    if values.ndim != 1 or not bool((values.isfinite() & (values >= 0)).all()):
        raise ValueError(f"weight must be a number or one finite value >= 0 a sample, got {weight.tolist()}")
    return values


def _check_weight(name: str, weight: float) -> None:
    checks.finite(name, weight)
    checks.at_least(name, weight, 0)
