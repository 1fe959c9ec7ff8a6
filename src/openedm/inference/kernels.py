"""The density that samples show: Student's t kernels around each, to draw from and to evaluate.

    q(u) = 1/n Σᵢ t₅(u; uᵢ, (s h)² Σ),      h = (4 / (n (d + 2)))^(1/(d + 4)) (Silverman 1986),

Σ is the covariance of the samples, and s, at most 1, is chosen by the density of each sample under the kernels of the
others: samples in narrow separate modes need kernels much narrower than their covariance. The tails are heavier than
those of most targets, as proposals of Markov chains and importance sampling need them.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

__all__ = ["FREEDOM", "Kernels"]

FREEDOM = 5
"""Degrees of freedom of the kernels: a sum of so many squared normal numbers is their χ²."""

NARROWER = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""The values of s that are tried."""


@dataclass(frozen=True)
class Kernels:
    """The kernels of several observations.

    Attributes:
        points: the samples.
        factor: L of L Lᵀ = (s h)² Σ, lower triangular.
        whitened: L⁻¹ uᵢ.
        constant: ln of the density of a kernel at its centre, less ln n.
    """

    points: Float64[Tensor, "observations n d"]
    factor: Float64[Tensor, "observations d d"]
    whitened: Float64[Tensor, "observations n d"]
    constant: Float64[Tensor, " observations"]

    @classmethod
    def of(cls, points: Float[Tensor, "observations n d"]) -> "Kernels":
        """Kernels around samples, n ≥ 2 of each observation."""
        points = points.double()
        n, d = points.shape[1:]
        centred = points - points.mean(1, keepdim=True)
        # No matrix product, whose rounding depends on how many observations there are.
        covariance = (centred[..., :, None] * centred[..., None, :]).sum(1) / (n - 1)
        average = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-200)
        covariance = covariance + 1e-10 * average[:, None, None] * torch.eye(d).to(covariance)
        factor = torch.linalg.cholesky(covariance) * (4 / (n * (d + 2))) ** (1 / (d + 4))
        squares = _squares(_whiten(factor, points), _whiten(factor, points))
        squares.diagonal(dim1=1, dim2=2).fill_(math.inf)
        s = torch.tensor(NARROWER).to(points)
        scaled = [_log_kernels(squares / value**2, d).logsumexp(2) - d * value.log() for value in s]
        others = torch.stack(scaled).mean(2)
        factor = factor * s[others.argmax(0)][:, None, None]
        constant = math.lgamma((FREEDOM + d) / 2) - math.lgamma(FREEDOM / 2) - d / 2 * math.log(FREEDOM * math.pi)
        logs = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return cls(points, factor, _whiten(factor, points), constant - logs - math.log(n))

    def at(
        self, which: Int64[Tensor, "observations m"], noise: Float[Tensor, "observations m numbers"]
    ) -> Float64[Tensor, "observations m d"]:
        """Draws of the kernels of the given samples, made of d + 5 unit normal numbers each."""
        d = self.points.shape[2]
        normal, chi = noise[..., :d].double(), noise[..., d:].double().square().sum(-1, keepdim=True)
        centres = self.points.gather(1, which[..., None].expand(-1, -1, d))
        return centres + (normal / (chi / FREEDOM).sqrt()) @ self.factor.mT

    def log_prob(self, u: Float[Tensor, "observations m d"]) -> Float64[Tensor, "observations m"]:
        """ln q(u)."""
        squares = _squares(_whiten(self.factor, u.double()), self.whitened)
        return _log_kernels(squares, u.shape[2]).logsumexp(2) + self.constant[:, None]


def _whiten(
    factor: Float64[Tensor, "observations d d"], u: Float64[Tensor, "observations m d"]
) -> Float64[Tensor, "observations m d"]:
    """L⁻¹ u by forward substitution, coordinate by coordinate: LAPACK's rounding depends on how many rows there are."""
    white: list[Tensor] = []
    for i, one in enumerate(u.unbind(2)):
        for j, known in enumerate(white):
            one = one - factor[:, i, j, None] * known
        white.append(one / factor[:, i, i, None])
    return torch.stack(white, 2)


def _squares(
    u: Float64[Tensor, "observations m d"], points: Float64[Tensor, "observations n d"]
) -> Float64[Tensor, "observations m n"]:
    """Squared distances, coordinate by coordinate, so that a row does not depend on how many there are."""
    total = torch.zeros(*u.shape[:2], points.shape[1]).to(u)
    for one, other in zip(u.unbind(2), points.unbind(2), strict=True):
        total += (one[:, :, None] - other[:, None, :]).square()
    return total


def _log_kernels(squares: Float64[Tensor, "*shape"], d: int) -> Float64[Tensor, "*shape"]:
    return -(FREEDOM + d) / 2 * (squares / FREEDOM).log1p()
