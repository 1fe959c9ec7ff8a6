"""The task two_moons: two crescents in θ, each a hundredth wide."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from openedm.inference.priors import Box, Prior
from openedm.inference.tasks.task import Task


@dataclass(frozen=True)
class TwoMoons(Task):
    """θ ~ U(−1, 1)²; x = (r cos a + ¼, r sin a) + (−|θ₁ + θ₂|, −θ₁ + θ₂)/√2, a ~ U(−π/2, π/2), r ~ N(0.1, 0.01²)."""

    name = "two_moons"
    x_shape = (2,)

    @property
    def prior(self) -> Prior:
        """U(−1, 1)²."""
        return Box((-1.0,) * 2, (1.0,) * 2)

    def _simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        angle = math.pi * (torch.rand(len(theta), dtype=torch.float64, generator=generator) - 0.5)
        radius = 0.1 + 0.01 * torch.randn(len(theta), dtype=torch.float64, generator=generator)
        crescent = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], -1)
        return crescent + _shift(theta)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        # A radius < 0 lies ten standard deviations away; da dr = dx/r.
        u, v = (x - _shift(theta)).unbind(-1)
        u = u - 0.25
        radius = torch.hypot(u, v)
        density = -(((radius - 0.1) / 0.01) ** 2) / 2 - math.log(0.01 * math.sqrt(2 * math.pi))
        return torch.where(u > 0, density - math.log(math.pi) - radius.log(), -math.inf)


def _shift(theta: Tensor) -> Tensor:
    first, second = theta.unbind(-1)
    return torch.stack([-(first + second).abs(), second - first], -1) / math.sqrt(2)
