"""The denoiser of p(u | x₁, …, xₙ), made of those of p(u | xᵢ): several independent observations of one θ.

    D(u; σ) = Λ⁻¹ [ Σᵢ Pᵢ Dᵢ(u; σ) − (n − 1) P₀ D₀(u; σ) ],      Λ = Σᵢ Pᵢ − (n − 1) P₀,      P = C⁻¹ + σ⁻² I

0 is the prior, and C the covariance of p(u) or p(u | xᵢ). Scores of noisy densities do not add up as those of the
densities themselves do; weighted by the precisions P of u given its noisy value they do wherever these are Gaussian
(Linhart, Cardoso, Gramfort, Le Corff and Rodrigues 2024, arXiv 2404.07593). The prior is taken to be Gaussian in u.
Where a posterior is wider than the prior in some direction, it counts as being as wide: Λ stays positive definite.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.denoiser.interface import per_sample

__all__ = ["Composed", "Moments"]

MAX_ROWS = 1 << 15
"""Rows that the denoiser of one observation is asked for at a time."""


@dataclass(frozen=True)
class Moments:
    """Means and covariances of Gaussians.

    Attributes:
        means: one row each.
        precisions: inverse covariances.
    """

    means: Float64[Tensor, "n d"]
    precisions: Float64[Tensor, "n d d"]

    @classmethod
    def of(cls, samples: Float[Tensor, "n samples d"]) -> "Moments":
        """Those of samples."""
        samples = samples.double()
        count, d = samples.shape[1:]
        means = samples.mean(1)
        centred = samples - means[:, None]
        covariances = centred.mT @ centred / (count - 1)
        ridge = 1e-10 * covariances.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-200)
        covariances = covariances + ridge[:, None, None] * torch.eye(d).to(covariances)
        return cls(means, torch.linalg.inv(covariances))

    def beyond(self, prior: "Moments") -> "Moments":
        """The same, with precisions of at least the prior's in each direction."""
        factor = torch.linalg.cholesky(torch.linalg.inv(prior.precisions[0]))  # whitens the prior
        values, vectors = torch.linalg.eigh(factor.mT @ self.precisions @ factor)
        clipped = vectors @ torch.diag_embed(values.clamp_min(1.0)) @ vectors.mT
        unwhiten = torch.linalg.inv(factor)
        return Moments(self.means, unwhiten.mT @ clipped @ unwhiten)

    def product(self, prior: "Moments") -> "Moments":
        """The Gaussian of all observations together: the prior counted once."""
        more = len(self.means) - 1
        precision = self.precisions.sum(0) - more * prior.precisions[0]
        weighted = torch.einsum("nij,nj->i", self.precisions, self.means) - more * prior.precisions[0] @ prior.means[0]
        return Moments(torch.linalg.solve(precision, weighted)[None], precision[None])


class Composed(Denoiser):
    """D(u; σ) of all observations together.

    Args:
        denoiser: D(r; σ, y) of one observation, r = P u − shift.
        y: the observations, as the denoiser takes them.
        shifts: of each observation; zeros without a conditional Gaussian.
        moments: of P u given each observation.
        prior: the moments of P u under the prior.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        y: Float[Tensor, "n *y"],
        shifts: Float64[Tensor, "n d"],
        moments: Moments,
        prior: Moments,
    ) -> None:
        super().__init__()
        self.denoiser, self.y, self.shifts, self.moments, self.prior = denoiser, y, shifts, moments, prior
        self.event_shape = denoiser.event_shape
        self.sigma_min, self.sigma_max, self.sigma_data = denoiser.sigma_min, denoiser.sigma_max, denoiser.sigma_data
        precision = moments.product(prior).precisions[0]
        self._values, self._vectors = torch.linalg.eigh(precision)

    def mean(self, sigma_max: float, condition: Condition = None, event_shape: object = None) -> Float[Tensor, "one d"]:
        """D(0; σ_max)."""
        return self(torch.zeros(1, self.shifts.shape[1]).to(self.shifts), sigma_max)

    def denoise(
        self, x: Float[Tensor, "batch *event"], sigma: Float64[Tensor, "*batch_or_none"], condition: Condition
    ) -> Float[Tensor, "batch *event"]:
        """(σ² Λ₀ + I)⁻¹ [σ² (Σ Cᵢ⁻¹ Dᵢ − (n−1) C₀⁻¹ D₀) + Σ Dᵢ − (n−1) D₀], Λ₀ = Σ Cᵢ⁻¹ − (n−1) C₀⁻¹."""
        u, more = x.flatten(1).double(), len(self.y) - 1
        variance = per_sample(sigma.square(), u)
        prior = self._prior(u, sigma)
        plain, weighted = -more * prior, -more * prior @ self.prior.precisions[0]
        size = max(1, MAX_ROWS // len(u)) if self.y.ndim == 2 else 1  # a summary is made once for an observation
        for rows in torch.split(torch.arange(len(self.y)), size):
            each = self._each(u, sigma, rows)
            plain = plain + each.sum(0)
            weighted = weighted + torch.einsum("nbj,nij->bi", each, self.moments.precisions[rows])
        coordinates = (variance * weighted + plain) @ self._vectors
        solved: Tensor = coordinates / (variance * self._values + 1) @ self._vectors.mT
        return solved.reshape(x.shape).to(x)

    def _each(self, u: Float64[Tensor, "batch d"], sigma: Tensor, rows: Tensor) -> Float64[Tensor, "n batch d"]:
        """Dᵢ(u; σ) of some of the observations."""
        n, batch = len(rows), len(u)
        shifted = (u - self.shifts[rows, None]).flatten(0, 1)
        levels = sigma if sigma.ndim == 0 else sigma.repeat(n)
        condition = self.y[rows] if n == 1 else self.y[rows].repeat_interleave(batch, 0)
        found: Tensor = self.denoiser(shifted.to(self.y), levels, condition).double()
        moved: Tensor = found.reshape(n, batch, -1) + self.shifts[rows, None]
        return moved

    def _prior(self, u: Float64[Tensor, "batch d"], sigma: Tensor) -> Float64[Tensor, "batch d"]:
        """D₀: the mean of a Gaussian given its noisy value."""
        mean, precision = self.prior.means[0], self.prior.precisions[0]
        values, vectors = torch.linalg.eigh(precision)
        gain = 1 / (1 + per_sample(sigma.square(), u) * values)  # C (C + σ²)⁻¹
        found: Tensor = mean + ((u - mean) @ vectors * gain) @ vectors.mT
        return found
