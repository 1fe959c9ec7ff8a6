"""Tasks with likelihoods of one line: gaussian_linear, gaussian_linear_uniform, gaussian_mixture, two_moons."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from openedm.inference.priors import Box, Normal, Prior
from openedm.inference.tasks.task import Data, Points, Rows, Task, normal

__all__ = ["GaussianLinear", "GaussianLinearUniform", "GaussianMixture", "TwoMoons"]

VARIANCE = 0.1


class GaussianLinear(Task):
    """θ ~ N(0, 0.1 I) in ten dimensions, x ~ N(θ, 0.1 I); the posterior is N(x/2, 0.05 I)."""

    name = "gaussian_linear"
    x_shape = (10,)
    prior: ClassVar[Prior] = Normal((0.0,) * 10, (math.sqrt(VARIANCE),) * 10)

    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        return theta + math.sqrt(VARIANCE) * normal(theta, generator)

    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        return _isotropic(x - theta, VARIANCE)

    def reference_posterior(self, x: Float[Tensor, " dx"], n: int, seed: int = 0) -> Float32[Tensor, "n d"]:
        """Exact draws from p(θ|x)."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(n, 10, dtype=torch.float64, generator=generator)
        return (x.double() / 2 + math.sqrt(VARIANCE / 2) * noise).float()


class GaussianLinearUniform(GaussianLinear):
    """θ ~ U(−1, 1) in ten dimensions, x ~ N(θ, 0.1 I); the posterior is N(x, 0.1 I) cut to the box."""

    name = "gaussian_linear_uniform"
    prior = Box((-1.0,) * 10, (1.0,) * 10)

    def reference_posterior(self, x: Float[Tensor, " dx"], n: int, seed: int = 0) -> Float32[Tensor, "n d"]:
        """Exact draws from p(θ|x), by the inverse distribution function of the cut normal."""
        generator = torch.Generator().manual_seed(seed)
        center, scale = x.double(), math.sqrt(VARIANCE)
        # Mirrored to the left tail, where Φ keeps its relative accuracy.
        sign = torch.where(center > 0, 1.0, -1.0).double()
        low, high = (torch.special.ndtr((end - sign * center) / scale) for end in (-1.0, 1.0))
        share = torch.rand(n, 10, dtype=torch.float64, generator=generator)
        drawn = sign * torch.special.ndtri(low + (high - low) * share) * scale + center
        return self.prior.bijection.clamp(drawn.float())


class GaussianMixture(Task):
    """θ ~ U(−10, 10)², x ~ ½ N(θ, I) + ½ N(θ, 0.01 I)."""

    name = "gaussian_mixture"
    x_shape = (2,)
    prior = Box((-10.0,) * 2, (10.0,) * 2)

    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        wide = torch.rand(len(theta), 1, dtype=torch.float64, generator=generator) < 0.5
        return theta + torch.where(wide, 1.0, 0.1) * normal(theta, generator)

    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        parts = torch.stack([_isotropic(x - theta, variance) for variance in (1.0, 0.01)])
        return parts.logsumexp(0) - math.log(2)


class TwoMoons(Task):
    """θ ~ U(−1, 1)²; x = (r cos a + ¼, r sin a) + (−|θ₁ + θ₂|, −θ₁ + θ₂)/√2, a ~ U(−π/2, π/2), r ~ N(0.1, 0.01²)."""

    name = "two_moons"
    x_shape = (2,)
    prior = Box((-1.0,) * 2, (1.0,) * 2)

    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        angle = math.pi * (torch.rand(len(theta), dtype=torch.float64, generator=generator) - 0.5)
        radius = 0.1 + 0.01 * torch.randn(len(theta), dtype=torch.float64, generator=generator)
        crescent = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], -1)
        return crescent + _shift(theta)

    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        # A radius < 0 is ten standard deviations away; da dr = dx/r.
        u, v = (x - _shift(theta)).unbind(-1)
        u = u - 0.25
        radius = torch.hypot(u, v)
        density = -(((radius - 0.1) / 0.01) ** 2) / 2 - math.log(0.01 * math.sqrt(2 * math.pi))
        return torch.where(u > 0, density - math.log(math.pi) - radius.log(), -math.inf)


def _isotropic(difference: Float64[Tensor, "*batch d"], variance: float) -> Float64[Tensor, "*batch"]:
    """Ln N(difference; 0, variance·I)."""
    constant = difference.shape[-1] * math.log(2 * math.pi * variance) / 2
    squares: Tensor = (difference**2).sum(-1)
    return -squares / (2 * variance) - constant


def _shift(theta: Points) -> Points:
    first, second = theta.unbind(-1)
    return torch.stack([-(first + second).abs(), second - first], -1) / math.sqrt(2)
