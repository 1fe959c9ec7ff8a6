"""Exponential integration of the sampling equation: its linear part exactly, a predicted quantity by interpolation.

In ln σ the family of sampling equations is (Karras et al. 2022, eq. 6, with β(t) = η σ̇/σ)

    dx = (1+η) (x − D(x; σ)) dσ/σ + √(2η) σ dω,

whose marginals are p(x; σ) for every η ≥ 0; η = 0 is the probability-flow ODE, η = 1 the reverse of dx = √(2σ) dω.
A network predicts q = a x + b D. With D = (q − a x)/b the equation is linear in x and q, so from σ to σ'

    x(σ') = Φ(σ')/Φ(σ) x(σ) − ∫_σ^σ' Φ(σ')/Φ(s) (1+η)/(b(s) s) q(s) ds + noise,   ln Φ = ∫ (1+η) (1 + a/b) ds/s,
    noise variance  ∫_σ'^σ (Φ(σ')/Φ(s))² 2η s ds.

| prediction | q | a | b | Φ at η = 0 |
|---|---|---|---|---|
| epsilon | (x − D)/σ | 1/σ | −1/σ | 1 |
| data | D | 0 | 1 | σ |
| velocity | (x − D)/σ − D/σ_d | 1/σ | −1/σ − 1/σ_d | σ + σ_d |
| network (EDM's F) | (D − c_skip x)/c_out | −c_skip/c_out | 1/c_out | √(σ² + σ_d²) |

q is interpolated by a polynomial in a variable u(σ) through its values at past levels; the integrals are taken by
Gauss–Legendre quadrature in ln s. η is constant within a step, which is one more member of the family.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.schedules import VP, Schedule

Array = NDArray[np.float64]
Rule = Literal["exact", "midpoint", "dpm-solver++", "adams-bashforth"]
RULES = ("exact", "midpoint", "dpm-solver++", "adams-bashforth")
QUADRATURE = 48


class Prediction(Choice, ABC):
    """A quantity q = a(σ) x + b(σ) D that a network may predict, and that a solver interpolates."""

    @abstractmethod
    def coefficients(self, sigma: Float64[Array, "*shape"]) -> tuple[Array, Array]:
        """a and b at σ > 0."""

    @abstractmethod
    def log_growth(self, sigma: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
        """ln Φ(σ) at η = 0."""


@dataclass(frozen=True)
class EpsilonPrediction(Prediction):
    """The noise ε = (x − D)/σ: DDIM, LMS, DEIS, DPM-Solver."""

    def coefficients(self, sigma: Float64[Array, "*shape"]) -> tuple[Array, Array]:
        """1/σ, −1/σ."""
        return 1 / sigma, -1 / sigma

    def log_growth(self, sigma: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
        """0."""
        return np.zeros_like(sigma)


@dataclass(frozen=True)
class DataPrediction(Prediction):
    """The denoised sample D itself: DPM-Solver++, UniPC."""

    def coefficients(self, sigma: Float64[Array, "*shape"]) -> tuple[Array, Array]:
        """0, 1."""
        return np.zeros_like(sigma), np.ones_like(sigma)

    def log_growth(self, sigma: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
        """ln σ."""
        grown: Array = np.log(sigma)
        return grown


@dataclass(frozen=True)
class VelocityPrediction(Prediction):
    """ε − D/σ_d: the velocity of rectified flow where σ_d = 1.

    Args:
        sigma_data: σ_d > 0, in data units.

    Raises:
        ValueError: sigma_data is not > 0.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("sigma_data", self.sigma_data)

    def coefficients(self, sigma: Float64[Array, "*shape"]) -> tuple[Array, Array]:
        """1/σ, −1/σ − 1/σ_d."""
        return 1 / sigma, -1 / sigma - 1 / self.sigma_data

    def log_growth(self, sigma: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
        """ln(σ + σ_d)."""
        grown: Array = np.log(sigma + self.sigma_data)
        return grown


@dataclass(frozen=True)
class NetworkPrediction(Prediction):
    """EDM's network output F (Karras et al. 2022, eq. 7), 0 where the data is one Gaussian of width σ_d around 0.

    Args:
        sigma_data: σ_d > 0, in data units.

    Raises:
        ValueError: sigma_data is not > 0.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        checks.positive("sigma_data", self.sigma_data)

    def coefficients(self, sigma: Float64[Array, "*shape"]) -> tuple[Array, Array]:
        """−σ_d/(σ √(σ²+σ_d²)), √(σ²+σ_d²)/(σ σ_d)."""
        width = np.hypot(sigma, self.sigma_data)
        return -self.sigma_data / (sigma * width), width / (sigma * self.sigma_data)

    def log_growth(self, sigma: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
        """½ ln(σ² + σ_d²)."""
        return np.log(np.hypot(sigma, self.sigma_data))


class Variable(Choice, ABC):
    """The variable u(σ), strictly monotone, in which a solver interpolates or steps."""

    @abstractmethod
    def value(self, sigma: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
        """u(σ), for σ > 0."""

    @abstractmethod
    def sigma(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """σ(u), the inverse, on any device."""

    @abstractmethod
    def sigma_derivative(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """dσ/du at u."""


@dataclass(frozen=True)
class LogSigma(Variable):
    """ln σ, which is −λ of the DPM-Solver papers."""

    def value(self, sigma: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
        """ln σ."""
        return np.log(sigma)

    def sigma(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """e^u."""
        return value.exp()

    def sigma_derivative(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """e^u."""
        return value.exp()


@dataclass(frozen=True)
class PowerSigma(Variable):
    """σ^{1/ρ}: σ itself at ρ = 1, the variable in which Karras's levels are even at ρ = 7.

    Args:
        rho: ρ > 0.

    Raises:
        ValueError: rho is not > 0.
    """

    rho: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("rho", self.rho)

    def value(self, sigma: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
        """σ^{1/ρ}."""
        return np.power(sigma, 1 / self.rho)

    def sigma(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """u^ρ."""
        return value**self.rho

    def sigma_derivative(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ρ u^{ρ−1}."""
        return self.rho * value ** (self.rho - 1)


@dataclass(frozen=True)
class Angle(Variable):
    """atan(σ/σ_d)^{1/ρ}: at ρ = 1 a quarter turn from data to noise, as v-prediction moves (Salimans & Ho 2022).

    Args:
        sigma_data: σ_d > 0, in data units.
        rho: ρ > 0; larger values make more of the low noise levels.

    Raises:
        ValueError: a value is not > 0.
    """

    sigma_data: float = 0.5
    rho: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("sigma_data", self.sigma_data)
        checks.positive("rho", self.rho)

    def value(self, sigma: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
        """atan(σ/σ_d)^{1/ρ}."""
        return np.arctan(np.asarray(sigma) / self.sigma_data) ** (1 / self.rho)

    def sigma(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """σ_d tan u^ρ."""
        return self.sigma_data * (value**self.rho).tan()

    def sigma_derivative(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """σ_d (1 + tan² u^ρ) ρ u^{ρ−1}."""
        return self.sigma_data * (1 + (value**self.rho).tan().square()) * self.rho * value ** (self.rho - 1)


@dataclass(frozen=True)
class FlowTime(Variable):
    """σ/(σ + σ_d): the time of rectified flow between data of width σ_d and noise, along which the velocity moves.

    Args:
        sigma_data: σ_d > 0, in data units.

    Raises:
        ValueError: sigma_data is not > 0.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        checks.positive("sigma_data", self.sigma_data)

    def value(self, sigma: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
        """σ/(σ + σ_d)."""
        return sigma / (sigma + self.sigma_data)

    def sigma(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """σ_d u/(1 − u)."""
        return self.sigma_data * value / (1 - value)

    def sigma_derivative(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """σ_d/(1 − u)²."""
        return self.sigma_data * (1 - value).pow(-2)


@dataclass(frozen=True)
class ScheduleTime(Variable):
    """The time t = σ⁻¹(σ) of a noise schedule.

    Args:
        schedule: any schedule.
    """

    schedule: Schedule = VP()

    def value(self, sigma: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
        """t(σ)."""
        time: Array = self.schedule.time(torch.from_numpy(np.asarray(sigma, dtype=np.float64))).numpy()
        return time

    def sigma(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """σ(t)."""
        return self.schedule.sigma(value).to(value.dtype)

    def sigma_derivative(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """dσ/dt."""
        return self.schedule.sigma_derivative(value).to(value.dtype)


class Weights(NamedTuple):
    """x(σ') = `keep` · x(σ) + Σ_j `of_past`[:, j] · q(node_j) + `noise_std` · n, one row a step."""

    keep: Float64[Array, "steps"]
    of_past: Float64[Array, "steps nodes"]
    noise_std: Float64[Array, "steps"]


def step_weights(
    prediction: Prediction,
    variable: Variable,
    start: Float64[Array, "steps"],
    end: Float64[Array, "steps"],
    nodes: Float64[Array, "steps nodes"],
    *,
    rule: Rule = "exact",
    eta: Float64[Array, "steps"] | None = None,
) -> Weights:
    """The weights of steps from levels `start` to levels `end` that interpolate q at `nodes`.

    With τ = (u − u(start))/(u(end) − u(start)) and the moments m_p = ∫ K τ^p of the integral's kernel K, the weights
    solve Σ_j w_j τ_j^p = m_p. Rules other than "exact" are the published methods' own moments:

    - "midpoint": with two nodes, m_1 = m_0/2 (DPM-Solver-2, DPM-Solver++(2M), UniPC with B(h) = e^h − 1);
    - "dpm-solver++": also, with three nodes, half the exact m_2 (DPM-Solver++(3M) as published);
    - "adams-bashforth": τ_j = −j and m_p = m_0/(p+1), as if the steps were equal (iPNDM); τ_j = 1 − j where the first
      node is the end, which is Adams–Moulton.

    Args:
        prediction: q.
        variable: u.
        start: σ > 0.
        end: σ' > 0.
        nodes: levels where q is known, different within a row.
        rule: how the moments are taken.
        eta: η ≥ 0 of each step; None for the ODE.

    Raises:
        ValueError: a step ends where it starts.
    """
    repeated = start[start == end]
    if len(repeated) > 0:
        raise ValueError(
            f"levels must differ for an exponential solver, got sigma = {repeated[0]:g} twice in a row: ask for fewer "
            "steps, the denoiser knows no level between them"
        )
    eta = np.zeros_like(start) if eta is None else eta
    points, masses = _legendre(QUADRATURE)
    low, high = np.log(end)[:, None], np.log(start)[:, None]
    s = np.exp(high + (low - high) * points)
    ds = (low - high) * masses * s
    drift = (1 + eta)[:, None]
    growth = np.exp(drift * (prediction.log_growth(end)[:, None] - prediction.log_growth(s)))
    keep = np.exp((1 + eta) * (prediction.log_growth(end) - prediction.log_growth(start)))
    kernel = -drift * growth * ds / (prediction.coefficients(s)[1] * s)
    noise_std = np.sqrt(np.maximum(-(growth**2 * 2 * eta[:, None] * s * ds).sum(1), 0))
    count = nodes.shape[1]
    if rule == "adams-bashforth":
        tau = (nodes[:, :1] == end[:, None]) - np.arange(count, dtype=np.float64)
        moments = kernel.sum(1)[:, None] / np.arange(1, count + 1)
    else:
        origin = variable.value(start)[:, None]
        length = variable.value(end)[:, None] - origin
        tau = (variable.value(nodes) - origin) / length
        powers = ((variable.value(s) - origin) / length)[:, :, None] ** np.arange(count)
        moments = (kernel[:, :, None] * powers).sum(1)
        if count == 2 and rule != "exact":
            moments[:, 1] = moments[:, 0] / 2
        if count == 3 and rule == "dpm-solver++":
            moments[:, 2] /= 2
    vandermonde = (tau[:, :, None] ** np.arange(count)).transpose(0, 2, 1)
    return Weights(keep, np.linalg.solve(vandermonde, moments[:, :, None])[:, :, 0], noise_std)


@cache
def _legendre(count: int) -> tuple[Array, Array]:
    """Gauss–Legendre points and masses on [0, 1]."""
    points, masses = np.polynomial.legendre.leggauss(count)
    return (points + 1) / 2, masses / 2
