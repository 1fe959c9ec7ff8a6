"""The form of the probability-flow ODE that adaptive solvers integrate (`methods.adaptive`)."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from openedm.sampling.engine.integrate import Scale
from openedm.sampling.engine.pairs import Pair
from openedm.schedules import Angle, Schedule

__all__ = ["Formulation", "scaled_flow", "width_ratio"]


@dataclass(frozen=True)
class Formulation:
    """The ODE in the form of the integrator: y' = L y + N in the time τ of a schedule, with y = x · `factor`(σ).

    Attributes:
        pair: the embedded pair.
        variable: the schedule σ(τ).
        factor: the factor of x in y, a function of σ.
        slope: N as a function of (x, D, σ, dσ/dτ); the last two have one value a row and broadcast against x.
        linear: L.
        scale: the factor of the tolerance of y, a function of τ; None for 1.
        tolerance_fraction: the fraction of the tolerance that is the tolerance of a step.
    """

    pair: Pair
    variable: Schedule
    factor: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    linear: float = 0.0
    scale: Scale | None = None
    tolerance_fraction: float = 0.1


def width_ratio(sigma: Float[Tensor, "*shape"], sigma_data: float) -> Float[Tensor, "*shape"]:
    """c(σ) = σ_d/√(σ² + σ_d²)."""
    return sigma_data * (sigma.square() + sigma_data**2).rsqrt()


def scaled_flow(pair: Pair, variable: Schedule | None, sigma_data: float) -> Formulation:
    """dw/dτ, w = c(σ) x."""

    def slope(x: Tensor, denoised: Tensor, sigma: Tensor, speed: Tensor) -> Tensor:
        ratio = width_ratio(sigma, sigma_data)
        return (x * ratio.square() - denoised) * (ratio * speed / sigma)

    return Formulation(
        pair=pair,
        variable=Angle(sigma_data, rho=2.0) if variable is None else variable,
        factor=lambda sigma: width_ratio(sigma, sigma_data),
        slope=slope,
    )
