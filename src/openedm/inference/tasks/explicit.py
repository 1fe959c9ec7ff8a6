"""Tasks whose likelihood is a formula: Gaussians, two moons, slcp, a generalised linear model of a neuron."""

import math
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from openedm.inference.priors import Box, Normal, Prior
from openedm.inference.tasks.task import Data, Points, Rows, Task, normal

__all__ = [
    "SLCP",
    "BernoulliGLM",
    "BernoulliGLMRaw",
    "GaussianLinear",
    "GaussianLinearUniform",
    "GaussianMixture",
    "SLCPDistractors",
    "TwoMoons",
    "design_matrix",
    "distractor_mixture",
]

VARIANCE = 0.1
"""Of gaussian_linear and gaussian_linear_uniform."""
DRAWS = 4
"""Of slcp, in one observation."""
BINS, TAPS = 100, 9
"""Of the neuron's response, and of its filter."""
COMPONENTS, DISTRACTORS = 20, 92
"""Of the mixture in slcp_distractors; its constants are the first numbers of numpy's legacy generator with seed 42."""
# Where each column of the finished observation comes from: 0-7 are slcp's numbers, 8-99 the distractors.
# fmt: off
PERMUTATION = (
    87, 47, 39, 9, 25, 21, 26, 94, 41, 30, 34, 44, 12, 27, 89, 20, 6, 13, 51, 40, 54, 5, 0, 2, 75,
    43, 14, 97, 29, 72, 79, 99, 98, 1, 38, 65, 83, 52, 74, 63, 19, 70, 4, 36, 96, 81, 35, 49, 31, 76,
    84, 28, 11, 66, 37, 85, 56, 60, 48, 10, 22, 82, 24, 8, 42, 32, 73, 3, 59, 95, 90, 50, 18, 68, 45,
    67, 92, 91, 17, 93, 33, 78, 88, 62, 46, 64, 57, 86, 55, 77, 7, 80, 69, 23, 58, 71, 15, 61, 53, 16,
)
# fmt: on


class GaussianLinear(Task):
    """θ ~ N(0, 0.1 I) in ten dimensions, x ~ N(θ, 0.1 I); the posterior is N(x/2, 0.05 I)."""

    name = "gaussian_linear"
    x_shape = (10,)
    prior: ClassVar[Prior] = Normal((0.0,) * 10, (math.sqrt(VARIANCE),) * 10)

    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        return theta + math.sqrt(VARIANCE) * normal(generator, *theta.shape)

    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        return _isotropic(x - theta, VARIANCE)

    def reference_posterior(self, x: Float[Tensor, " dx"], n: int, seed: int = 0) -> Float32[Tensor, "n d"]:
        """Exact draws from p(θ|x)."""
        noise = normal(torch.Generator().manual_seed(seed), n, self.dim)
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
        return theta + torch.where(wide, 1.0, 0.1) * normal(generator, *theta.shape)

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
        radius = 0.1 + 0.01 * normal(generator, len(theta))
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
    return -torch.sum(difference**2, -1) / (2 * variance) - constant


def _shift(theta: Points) -> Points:
    first, second = theta.unbind(-1)
    return torch.stack([-(first + second).abs(), second - first], -1) / math.sqrt(2)


class SLCP(Task):
    """θ ~ U(−3, 3)⁵; x is four draws of N(m, S), m = (θ₁, θ₂), S of θ₃², θ₄² and the correlation tanh θ₅.

    S = [[s₁², ρ s₁s₂], [ρ s₁s₂, s₂²]] + 10⁻⁶ I with s₁ = θ₃², s₂ = θ₄². Four symmetric modes.
    """

    name = "slcp"
    x_shape = (2 * DRAWS,)
    prior = Box((-3.0,) * 5, (3.0,) * 5)

    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        noise = normal(generator, len(theta), DRAWS, 2)
        l11, l21, l22 = _root(theta)
        first = theta[:, None, 0] + l11[:, None] * noise[..., 0]
        second = theta[:, None, 1] + l21[:, None] * noise[..., 0] + l22[:, None] * noise[..., 1]
        return torch.stack([first, second], -1).flatten(1)

    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        l11, l21, l22 = (entry[..., None] for entry in _root(theta))
        first, second = x[..., 0::2] - theta[..., 0:1], x[..., 1::2] - theta[..., 1:2]
        white = first / l11
        squares = white**2 + ((second - l21 * white) / l22) ** 2
        return torch.sum(-squares / 2 - (l11 * l22).log() - math.log(2 * math.pi), -1)


class SLCPDistractors(SLCP):
    """slcp's x with 92 numbers of a mixture of twenty Student-t (df 2) appended, and the 100 columns permuted.

    The posterior is slcp's. `log_likelihood` is that of slcp's numbers: the distractors' density is free of θ.
    """

    name = "slcp_distractors"
    x_shape = (2 * DRAWS + DISTRACTORS,)

    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        informative = super()._simulate(theta, generator)
        loc, root = distractor_mixture()
        component = torch.randint(COMPONENTS, (len(theta),), generator=generator)
        noise = normal(generator, len(theta), DISTRACTORS)
        # χ²₂/2 is exponential.
        noise = noise / torch.empty(len(theta), 1, dtype=torch.float64).exponential_(generator=generator).sqrt()
        appended = torch.empty_like(noise)
        for k in range(COMPONENTS):
            rows = component == k
            appended[rows] = loc[k] + noise[rows] @ root[k].mT
        return torch.cat([informative, appended], -1)[:, torch.tensor(PERMUTATION)]

    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        columns = [PERMUTATION.index(i) for i in range(2 * DRAWS)]
        return super()._log_likelihood(theta, x[..., columns])


def _root(theta: Points) -> tuple[Tensor, Tensor, Tensor]:
    """The lower triangle of S's Cholesky factor."""
    s1, s2, rho = theta[..., 2] ** 2, theta[..., 3] ** 2, theta[..., 4].tanh()
    l11 = (s1**2 + 1e-6).sqrt()
    l21 = rho * s1 * s2 / l11
    # s₂² + 10⁻⁶ − l₂₁², without the cancellation at |ρ| ≈ 1.
    sech2 = 1 / theta[..., 4].cosh() ** 2
    l22 = (s2**2 * (s1**2 * sech2 + 1e-6) / (s1**2 + 1e-6) + 1e-6).sqrt()
    return l11, l21, l22


@cache
def distractor_mixture() -> tuple[Tensor, Tensor]:
    """The components' locations (20, 92) and lower triangular scales (20, 92, 92)."""
    stream = np.random.RandomState(42)  # sbibm's constants are this generator's.
    loc = 15 * stream.standard_normal((COMPONENTS, DISTRACTORS))
    roots = []
    for _ in range(COMPONENTS):
        matrix = stream.standard_normal((DISTRACTORS, DISTRACTORS))
        roots.append(3 * (np.tril(matrix) + np.diag(np.exp(stream.standard_normal(DISTRACTORS)))))
    return torch.from_numpy(loc), torch.from_numpy(np.stack(roots))


def _prior() -> Normal:
    difference = np.eye(TAPS) - np.eye(TAPS, k=-1)
    smooth = difference @ difference + np.diag(np.sqrt(np.arange(TAPS) / TAPS))
    precision = np.zeros((TAPS + 1, TAPS + 1))
    precision[0, 0] = 0.5
    precision[1:, 1:] = smooth.T @ smooth
    covariance = np.linalg.inv(precision)
    return Normal((0.0,) * (TAPS + 1), covariance=((covariance + covariance.T) / 2).tolist())


class BernoulliGLMRaw(Task):
    """y_t ~ Bernoulli(sigmoid((Xθ)_t)), t < 100; x = y.

    X's first column is 1, the others are white noise, delayed by 0 … 8 bins. θ ~ N(0, P⁻¹): P couples neighbouring
    taps of the filter, so that it is smooth.
    """

    name = "bernoulli_glm_raw"
    x_shape = (BINS,)
    prior = _prior()

    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        rate = (theta @ design_matrix().mT).sigmoid()
        return (torch.rand(rate.shape, dtype=torch.float64, generator=generator) < rate).double()

    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        activity = theta @ design_matrix().mT
        return torch.sum(x * activity - torch.nn.functional.softplus(activity), -1)


class BernoulliGLM(BernoulliGLMRaw):
    """The same with x = Xᵀy, ten numbers that are sufficient for θ.

    `log_likelihood` leaves out ln of the number of y with this x, which is free of θ.
    """

    name = "bernoulli_glm"
    x_shape = (TAPS + 1,)

    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        return super()._simulate(theta, generator) @ design_matrix()

    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        activity = theta @ design_matrix().mT
        return torch.sum(theta * x, -1) - torch.nn.functional.softplus(activity).sum(-1)


@cache
def design_matrix() -> Tensor:
    """X (100, 10), float64."""
    # sbibm's stimulus is the first numbers of this generator, as float32.
    stimulus = np.random.RandomState(42).standard_normal(BINS).astype(np.float32)
    columns = [np.ones(BINS)] + [np.concatenate([np.zeros(j), stimulus[: BINS - j]]) for j in range(TAPS)]
    return torch.from_numpy(np.stack(columns, 1))
