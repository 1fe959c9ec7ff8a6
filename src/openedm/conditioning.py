"""Conditioning of any denoiser on a noisy linear measurement of the clean sample, without training.

    y = A x₀ + σ_y n,   D(x; σ | y) = E[x₀ | x, y] = D(x; σ) + (σS)² ∇ₓ ln p(y | x; σ)

With the covariance V = Cov[x₀ | x] = (σS)² (∂D/∂x)ᵀ (the second-order form of D = E[x₀ | x]; S is the denoiser's
`scale`, the width of the noise of each channel at σ = 1) and the residual r = y − A D, each algorithm adds V Aᵀ u to D.
The algorithms differ in u:

| algorithm | p(y | x; σ) is taken to be | u |
|---|---|---|
| `MMPS` (Rozet et al. 2024) | N(y; A D, σ_y² I + A V Aᵀ) | (σ_y² I + A V Aᵀ)⁻¹ r, by conjugate gradients |
| `DPS` (Chung et al. 2023), `step="likelihood"` | N(y; A D, σ_y² I) | ζ r/σ_y² |
| `DPS`, `step="residual"` | | 2ζ r/‖r‖ |

V Aᵀ u = (σS)² (∂D/∂x)ᵀ Aᵀ u is a vector-Jacobian product: V itself is never formed. MMPS is exact where x₀ given x is
Gaussian, so for Gaussian data; DPS leaves out that D is uncertain about x₀, and is exact only as σ → 0.

Sources: Rozet et al. 2024, "Learning diffusion priors from observations by expectation maximization"; Chung et al.
2023, "Diffusion posterior sampling for general noisy inverse problems", Theorem 1 and Algorithm 1.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.denoiser import Condition, Denoiser, Wrapper, per_sample
from openedm.ground import checks
from openedm.measurements import Measurement
from openedm.units import like

__all__ = ["DPS", "MMPS", "Conditioned", "conjugate_gradients"]


class Conditioned(Wrapper):
    """Base class of denoisers that are conditioned on a measurement: D(x; σ) + V Aᵀ u. Subclasses define `weighted`, u.

    Shape, classes, σ_data and noise levels are those of the denoiser. The result is differentiable where autograd is
    on, and detached otherwise, as inside a sampler.

    Args:
        denoiser: D, any denoiser that autograd can differentiate.
        measurement: y, A and σ_y.

    Raises:
        ValueError: the measurement does not fit the samples of the denoiser (where it has an `event_shape`), or its
            operator is not linear or has another adjoint.
    """

    def __init__(self, denoiser: Denoiser, measurement: Measurement) -> None:
        super().__init__(denoiser)
        denoiser.check_gives_mean()
        if denoiser.event_shape is not None:
            measurement.check(denoiser.event_shape)
        self.measurement = measurement
        self.rows = len(measurement.y) if len(measurement.y) > 1 else denoiser.rows

    def denoise(
        self, x: Float[Tensor, "batch *event"], sigma: Float64[Tensor, "*batch_or_none"], condition: Condition
    ) -> Float[Tensor, "batch *event"]:
        """D + V Aᵀ u."""
        # A function transform also differentiates inside no_grad, and records no graph there.
        denoised, vjp = torch.func.vjp(lambda x: self.denoiser(x, sigma, condition), x)[:2]
        variance = per_sample(sigma.square(), x)
        if self.scale is not None:
            variance = variance * like(self.scale, x).square()

        def spread(u: Tensor) -> Tensor:
            """V Aᵀ u = (σS)² (∂D/∂x)ᵀ Aᵀ u."""
            product: Tensor = variance * vjp(self.measurement.operator.adjoint(u, tuple(x.shape[1:])))[0]
            return product

        conditioned: Tensor = denoised + spread(self.weighted(self.measurement.residual(denoised), spread))
        return conditioned

    @abstractmethod
    def weighted(
        self, residual: Float[Tensor, "batch *measured"], spread: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "batch *measured"]:
        """u, from the residual r = y − A D and the function u ↦ V Aᵀ u."""


class MMPS(Conditioned):
    """Moment-matching posterior sampling (Rozet et al. 2024): u = (σ_y² I + A V Aᵀ)⁻¹ (y − A D).

    Given x, x₀ is taken to be Gaussian, with the mean and the covariance that the denoiser implies; the gradient of V
    is left out, as published. This is exact for Gaussian data. On data in separate clusters it underweights the
    measurement, and DPS overweights it: where 95 % of a posterior lay in one of two clusters, MMPS drew 80 % from it
    and DPS 99.9 % (tests/test_conditioning.py).

    The linear system is solved by conjugate gradients; each iteration costs a vector-Jacobian product, so that an
    evaluation costs one of D and `iterations` + 1 products. If there are as many iterations as distinct eigenvalues of
    A V Aᵀ, the solution is exact; fewer give the best u in the Krylov space of as many products.

    Args:
        denoiser: D.
        measurement: y, A and σ_y.
        iterations: the number of iterations of conjugate gradients, ≥ 1. A sample whose residual is at the level of
            rounding takes no further ones.

    Raises:
        ValueError: `iterations` is less than 1, or as for `Conditioned`.

    >>> from openedm.exact import GaussianMixture
    >>> from openedm.measurements import Matrix
    >>> prior = GaussianMixture([1.0], [[0.0]], [[[1.0]]])
    >>> posterior = MMPS(prior, Measurement(Matrix(torch.eye(1)), torch.tensor([[4.0]]), sigma_y=1.0))
    >>> posterior(torch.tensor([[2.0]]), sigma=1.0)  # precisions 1, 1 and 1 of 0, 2 and 4
    tensor([[2.]])
    """

    def __init__(self, denoiser: Denoiser, measurement: Measurement, iterations: int = 3) -> None:
        super().__init__(denoiser, measurement)
        checks.integer("iterations", iterations, 1)
        self.iterations = iterations

    def weighted(
        self, residual: Float[Tensor, "batch *measured"], spread: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "batch *measured"]:
        """(σ_y² I + A V Aᵀ)⁻¹ r."""
        noise, operator = self.measurement.sigma_y**2, self.measurement.operator
        return conjugate_gradients(lambda u: noise * u + operator(spread(u)), residual, self.iterations)


class DPS(Conditioned):
    """Diffusion posterior sampling (Chung et al. 2023): a step along the gradient of ‖y − A D(x; σ)‖².

    `step="likelihood"` is their Theorem 1 unchanged: p(y | x; σ) is taken to be N(y; A D, σ_y² I), so that u = ζ r/σ_y²
    with ζ = 1. It is biased where the measurement is informative. For Gaussian data of variance λ, measured directly
    with κ = λ/σ_y², the ODE ends with mean y √(2κ) F(√(κ/2)) and variance λ e^{−κ} (F: Dawson's integral), where the
    posterior has y κ/(1+κ) and λ/(1+κ). The ODE is stiff: solvers need steps Δ ln σ < 8/κ.

    `step="residual"` is what their experiments run: after step i of a chain of 1000, ζ_i = ζ′/‖r‖ times the gradient is
    subtracted. A denoiser has no steps. Where step i of the chain adds β_i times the score, the same displacement is ∇ₓ
    ln p = −(ζ′/β_i) ∇ₓ‖r‖²/‖r‖, and ζ here stands for ζ′/β_i, in the inverse units of y: u = 2ζ r/‖r‖. σ_y does not
    occur in it. The step equals that of MMPS on average at ζ = ½ √m/√(λ + σ_y²), for m values that vary by λ.

    An evaluation costs one of D and one vector-Jacobian product.

    Args:
        denoiser: D.
        measurement: y, A and σ_y.
        zeta: ζ > 0.
        step: "likelihood" or "residual".

    Raises:
        ValueError: a value is out of its range, or as for `Conditioned`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        measurement: Measurement,
        zeta: float = 1.0,
        step: Literal["likelihood", "residual"] = "likelihood",
    ) -> None:
        super().__init__(denoiser, measurement)
        checks.positive("zeta", zeta)
        checks.one_of("step", step, ("likelihood", "residual"))
        self.zeta = zeta
        self.step = step

    def weighted(
        self, residual: Float[Tensor, "batch *measured"], spread: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "batch *measured"]:
        """ζ r/σ_y² or 2ζ r/‖r‖."""
        if self.step == "likelihood":
            return residual * (self.zeta / self.measurement.sigma_y**2)
        norm = _dot(residual, residual).sqrt().clamp(min=torch.finfo(residual.dtype).tiny)
        return residual * (2 * self.zeta) / norm


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], b: Float[Tensor, "batch *shape"], iterations: int
) -> Float[Tensor, "batch *shape"]:
    """M⁻¹ b after some iterations from 0, for each sample separately; M symmetric and positive definite.

    A sample no longer changes once its residual is at the level of rounding, or where M is found not to be positive.
    The host does not wait for the device.

    Args:
        apply: u ↦ M u.
        b: the right-hand sides.
        iterations: how many, ≥ 1.
    """
    u = torch.zeros_like(b)
    residual = direction = b
    squared = _dot(b, b)
    smallest = squared * torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        image = apply(direction)
        curvature = _dot(direction, image)
        active = (squared > smallest) & (curvature > 0)
        alpha = torch.where(active, squared / torch.where(active, curvature, 1), 0)
        u = u + alpha * direction
        residual = residual - alpha * image
        new_squared = torch.where(active, _dot(residual, residual), 0)
        direction = residual + new_squared / torch.where(active, squared, 1) * direction
        squared = new_squared
    return u


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ of each sample, in a shape that broadcasts against a and b."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))
