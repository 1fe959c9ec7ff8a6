"""Tasks with Gaussian likelihoods around θ: gaussian_linear, gaussian_linear_uniform, gaussian_mixture."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from openedm.inference.priors import Box, Normal, Prior
from openedm.inference.tasks.task import Task, normal

VARIANCE = 0.1


@dataclass(frozen=True)
class GaussianLinear(Task):
    """θ ~ N(0, 0.1 I) in ten dimensions, x ~ N(θ, 0.1 I); the posterior is N(x/2, 0.05 I)."""

    name = "gaussian_linear"
    x_shape = (10,)

    @property
    def prior(self) -> Prior:
        """N(0, 0.1 I)."""
        return Normal((0.0,) * 10, (math.sqrt(VARIANCE),) * 10)

    def _simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        return theta + math.sqrt(VARIANCE) * normal(theta, generator)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        return _isotropic(x - theta, VARIANCE)

    def reference_posterior(self, x: Float[Tensor, " dx"], n: int, seed: int = 0) -> Float32[Tensor, "n d"]:
        """Exact draws from p(θ|x)."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(n, 10, dtype=torch.float64, generator=generator)
        return (x.double() / 2 + math.sqrt(VARIANCE / 2) * noise).float()


@dataclass(frozen=True)
class GaussianLinearUniform(Task):
    """θ ~ U(−1, 1) in ten dimensions, x ~ N(θ, 0.1 I); the posterior is N(x, 0.1 I) cut to the box."""

    name = "gaussian_linear_uniform"
    x_shape = (10,)

    @property
    def prior(self) -> Prior:
        """U(−1, 1)¹⁰."""
        return Box((-1.0,) * 10, (1.0,) * 10)

    def _simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        return theta + math.sqrt(VARIANCE) * normal(theta, generator)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        return _isotropic(x - theta, VARIANCE)

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


@dataclass(frozen=True)
class GaussianMixture(Task):
    """θ ~ U(−10, 10)², x ~ ½ N(θ, I) + ½ N(θ, 0.01 I)."""

    name = "gaussian_mixture"
    x_shape = (2,)

    @property
    def prior(self) -> Prior:
        """U(−10, 10)²."""
        return Box((-10.0,) * 2, (10.0,) * 2)

    def _simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        wide = torch.rand(len(theta), 1, dtype=torch.float64, generator=generator) < 0.5
        return theta + torch.where(wide, 1.0, 0.1) * normal(theta, generator)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        parts = torch.stack([_isotropic(x - theta, variance) for variance in (1.0, 0.01)])
        return parts.logsumexp(0) - math.log(2)


def _isotropic(difference: Tensor, variance: float) -> Tensor:
    """Ln N(difference; 0, variance·I)."""
    constant = difference.shape[-1] * math.log(2 * math.pi * variance) / 2
    squares: Tensor = (difference**2).sum(-1)
    return -squares / (2 * variance) - constant
