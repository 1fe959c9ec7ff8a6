"""Posteriors in closed form: θ ~ N(0, I), x = A θ + noise, and ways to be wrong about it."""

import math

import torch

from openedm.inference.draws import SampleNoise
from openedm.inference.posterior import Posterior
from openedm.inference.priors import Box, Normal


class LinearGaussian(Posterior):
    """θ ~ N(0, I), x | θ ~ N(A θ, s² I): θ | x ~ N(Σ Aᵀ x/s², Σ), Σ = (I + Aᵀ A/s²)⁻¹.

    `width` multiplies the standard deviations, `shift` moves the mean by so many of them: 1 and 0 are the truth.
    """

    def __init__(self, dim=2, noise=0.5, width=1.0, shift=0.0, names=None):
        super().__init__(dim, (dim + 1,), prior=Normal([0.0] * dim, [1.0] * dim), names=names)
        self.matrix = torch.randn(dim + 1, dim, generator=torch.Generator().manual_seed(3))
        self.noise = noise
        covariance = torch.linalg.inv(torch.eye(dim) + self.matrix.T @ self.matrix / noise**2)
        self.gain = covariance @ self.matrix.T / noise**2
        self.factor = width * torch.linalg.cholesky(covariance)
        self.shift = shift * covariance.diagonal().sqrt()

    def mean(self, x):
        return x @ self.gain.T + self.shift

    def simulate(self, theta, seed=1):
        noise = torch.randn(*theta.shape[:-1], self.dim + 1, generator=torch.Generator().manual_seed(seed))
        return theta @ self.matrix.T + self.noise * noise

    def joint(self, n, seed=0):
        theta = self.prior.sample(n, seed)
        return theta, self.simulate(theta, seed + 1)

    def _draw(self, x, n, seeds):
        noise = SampleNoise(seeds, n).draw((self.dim,)).reshape(len(x), n, self.dim)
        return self.mean(x)[:, None] + noise @ self.factor.T

    def _density(self, theta, x):
        centred = (theta - self.mean(x)[:, None]).double()
        unit = torch.linalg.solve_triangular(self.factor.double(), centred.mT, upper=False)
        log_volume = self.factor.double().diagonal().log().sum() + self.dim / 2 * math.log(2 * math.pi)
        return -unit.square().sum(-2) / 2 - log_volume


class WithoutGradient(LinearGaussian):
    """Densities that autograd cannot follow."""

    def _density(self, theta, x):
        return super()._density(theta.detach(), x)


class Beta(Posterior):
    """θ uniform in (0, 1)^d, x in (0, 1)^d: densities ∝ θ^(4x) (1 − θ)^(4 − 4x), highest at θ = x."""

    def __init__(self, dim=2):
        super().__init__(dim, (dim,), prior=Box((0.0,) * dim, (1.0,) * dim))

    def _counts(self, x):
        return 1 + 4 * x.double(), 5 - 4 * x.double()

    def _draw(self, x, n, seeds):
        uniform = torch.special.ndtr(SampleNoise(seeds, n).draw((self.dim, 64)).double())
        # Of the quantiles of 64 uniform numbers, those of order statistics are beta-distributed: here roughly.
        a, b = self._counts(x)
        middle = (a / (a + b))[:, None]
        return (middle + 0.2 * (uniform.mean(-1).reshape(len(x), n, self.dim) - 0.5)).clamp(0.001, 0.999).float()

    def _density(self, theta, x):
        a, b = (count[:, None] for count in self._counts(x))
        normaliser = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
        place = theta.double()
        return ((a - 1) * place.log() + (b - 1) * (-place).log1p() + normaliser).sum(-1)
