"""Noise schedules σ(t) with their derivatives and inverses; see `openedm.schedules` for the table."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.ground.tensors import Values, float64, noise_levels
from openedm.schedules.scalings import FlowScaling, NoScaling, Scaling, VPScaling

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Angle",
    "Cosine",
    "FlowTime",
    "LogSigma",
    "PowerLaw",
    "PowerSigma",
    "RectifiedFlow",
    "Schedule",
]


class Schedule(Choice, ABC):
    """The noise schedule σ(t), strictly increasing, with its derivative and inverse.

    A schedule is also the variable in which solvers step or interpolate and in which levels are spaced. Times that it
    does not have are not refused: a step of a solver may end there, and what σ is there says so.
    """

    @property
    def time_of_zero(self) -> float:
        """The time at which σ = 0: 0, or −∞ for the logarithm."""
        return 0.0

    @property
    def scaling(self) -> Scaling:
        """The scaling that this schedule has in its paper."""
        return NoScaling()

    @abstractmethod
    def sigma(self, t: Values) -> Float64[Tensor, "*shape"]:
        """σ(t), in data units."""

    @abstractmethod
    def sigma_derivative(self, t: Values) -> Float64[Tensor, "*shape"]:
        """dσ/dt."""

    @abstractmethod
    def time(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """σ⁻¹(σ): the time at which the noise level is `sigma` ≥ 0.

        Raises:
            ValueError: a noise level on the host is not finite and ≥ 0.
        """


@dataclass(frozen=True)
class LogSigma(Schedule):
    """σ(t) = e^t: time is ln σ, which is −λ of the DPM-Solver papers."""

    @property
    def time_of_zero(self) -> float:
        """−∞."""
        return -math.inf

    def sigma(self, t: Values) -> Float64[Tensor, "*shape"]:
        """e^t."""
        return float64(t).exp()

    def sigma_derivative(self, t: Values) -> Float64[Tensor, "*shape"]:
        """e^t."""
        return float64(t).exp()

    def time(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """ln σ."""
        return noise_levels(sigma).log()


class PowerLaw(Schedule):
    """σ(t) = t^ρ."""

    @property
    @abstractmethod
    def rho(self) -> float:
        """ρ > 0."""

    def sigma(self, t: Values) -> Float64[Tensor, "*shape"]:
        """t^ρ."""
        return float64(t) ** self.rho

    def sigma_derivative(self, t: Values) -> Float64[Tensor, "*shape"]:
        """ρ t^{ρ−1}."""
        return self.rho * float64(t) ** (self.rho - 1)

    def time(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """σ^{1/ρ}."""
        return noise_levels(sigma) ** (1 / self.rho)


@dataclass(frozen=True)
class PowerSigma(PowerLaw):
    """σ(t) = t^ρ: time is σ^{1/ρ}, in which Karras's levels are even at ρ = 7.

    Args:
        rho: ρ > 0.

    Raises:
        ValueError: rho is not > 0.
    """

    rho: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("rho", self.rho)


@dataclass(frozen=True)
class EDM(PowerLaw):
    """σ(t) = t, s = 1: time is the noise level. Also the schedule with which EDM samples iDDPM models.

    >>> EDM().sigma(2.5)
    tensor(2.5000, dtype=torch.float64)
    """

    rho = 1.0


@dataclass(frozen=True)
class VE(PowerLaw):
    """Variance exploding (Song et al. 2021): σ(t) = √t, s = 1."""

    rho = 0.5


@dataclass(frozen=True)
class VP(Schedule):
    """Variance preserving (Song et al. 2021; Karras et al. 2022, eqs. 14–16): σ(t) = √(e^{½ β_d t² + β_min t} − 1).

    Args:
        beta_d: slope of β(t) = β_min + β_d t, > 0.
        beta_min: β(0). Slightly negative values arise from `fit` and are allowed; σ(t) then starts at t = −2 β_min/β_d.

    Raises:
        ValueError: beta_d is not > 0, or beta_min is not finite.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1

    def __post_init__(self) -> None:
        checks.positive("beta_d", self.beta_d)
        checks.finite("beta_min", self.beta_min)

    @classmethod
    def fit(cls, sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3) -> "VP":
        """The VP schedule with σ(ε_s) = `sigma_min` and σ(1) = `sigma_max`.

        β_d = 2 (ln(1+σ_min²)/ε_s − ln(1+σ_max²)) / (ε_s − 1),  β_min = ln(1+σ_max²) − ½ β_d.

        Raises:
            ValueError: not 0 < sigma_min < sigma_max ≤ 1e150, epsilon_s not in (0, 1), or no increasing schedule goes
                through both points (σ_min too large for its ε_s).
        """
        checks.positive("sigma_min", sigma_min)
        checks.ordered("sigma_min", sigma_min, "sigma_max", sigma_max)
        checks.between("sigma_max", sigma_max, 0, 1e150)  # whose square is finite
        if not 0 < epsilon_s < 1:
            raise ValueError(f"epsilon_s must be between 0 and 1, got {epsilon_s!r}")
        low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
        beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
        if beta_d <= 0:
            raise ValueError(
                f"no VP schedule has sigma({epsilon_s}) = {sigma_min} and sigma(1) = {sigma_max}: sigma_min must be "
                f"below {math.sqrt(math.expm1(high * epsilon_s)):.6g} or epsilon_s above {low / high:.6g}"
            )
        return cls(beta_d=beta_d, beta_min=high - beta_d / 2)

    @property
    def scaling(self) -> Scaling:
        """s = 1/√(1+σ²)."""
        return VPScaling()

    def sigma(self, t: Values) -> Float64[Tensor, "*shape"]:
        """√(e^{½ β_d t² + β_min t} − 1), through expm1: exact near t = 0."""
        t = float64(t)
        return torch.expm1(t * (self.beta_d * t / 2 + self.beta_min)).sqrt()

    def sigma_derivative(self, t: Values) -> Float64[Tensor, "*shape"]:
        """(β_d t + β_min)(1 + σ²)/(2σ)."""
        t = float64(t)
        sigma = self.sigma(t)
        return (self.beta_d * t + self.beta_min) * (sigma + 1 / sigma) / 2

    def time(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """(√(β_min² + 2 β_d ln(1+σ²)) − β_min)/β_d, written without cancellation for β_min > 0."""
        log = torch.log1p(noise_levels(sigma).square())
        root = (self.beta_min**2 + 2 * self.beta_d * log).sqrt()
        return 2 * log / (root + self.beta_min) if self.beta_min > 0 else (root - self.beta_min) / self.beta_d


@dataclass(frozen=True)
class Angle(Schedule):
    """σ(t) = σ_d tan t^ρ: at ρ = 1 a quarter turn from data to noise, as v-prediction moves (Salimans & Ho 2022).

    Args:
        sigma_data: σ_d > 0, in data units.
        rho: ρ > 0; larger values give more of the time to low noise levels.

    Raises:
        ValueError: a value is not > 0.
    """

    sigma_data: float = 0.5
    rho: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("sigma_data", self.sigma_data)
        checks.positive("rho", self.rho)

    def sigma(self, t: Values) -> Float64[Tensor, "*shape"]:
        """σ_d tan t^ρ."""
        return self.sigma_data * (float64(t) ** self.rho).tan()

    def sigma_derivative(self, t: Values) -> Float64[Tensor, "*shape"]:
        """σ_d (1 + tan² t^ρ) ρ t^{ρ−1}."""
        t = float64(t)
        return self.sigma_data * (1 + (t**self.rho).tan().square()) * self.rho * t ** (self.rho - 1)

    def time(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """atan(σ/σ_d)^{1/ρ}."""
        return (noise_levels(sigma) / self.sigma_data).atan() ** (1 / self.rho)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Cosine (Nichol & Dhariwal 2021, in continuous time): σ(t) = tan(πt/2), clipped to [σ_min, σ_max].

    Args:
        sigma_min: σ is not less than this, > 0.
        sigma_max: σ is not more than this.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 1e4

    def __post_init__(self) -> None:
        checks.positive("sigma_min", self.sigma_min)
        checks.ordered("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    @property
    def scaling(self) -> Scaling:
        """s = 1/√(1+σ²) = cos(πt/2)."""
        return VPScaling()

    def sigma(self, t: Values) -> Float64[Tensor, "*shape"]:
        """tan(πt/2), clipped."""
        return QUARTER_TURN.sigma(float64(t) * (math.pi / 2)).clamp(self.sigma_min, self.sigma_max)

    def sigma_derivative(self, t: Values) -> Float64[Tensor, "*shape"]:
        """½π (1 + tan²(πt/2)); 0 where σ is clipped."""
        t = float64(t)
        # σ⁻¹ and steps in t round: a time at an end of the range must not fall outside, where the derivative is 0.
        rounding = 1e-14
        inside = (t >= self.time(self.sigma_min) - rounding) & (t <= self.time(self.sigma_max) + rounding)
        return (math.pi / 2) * QUARTER_TURN.sigma_derivative(t * (math.pi / 2)) * inside

    def time(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """(2/π) atan σ."""
        return QUARTER_TURN.time(sigma) * (2 / math.pi)


QUARTER_TURN = Angle(sigma_data=1.0)


class FlowLaw(Schedule):
    """σ(t) = σ_d t/(1−t), 0 ≤ t < 1."""

    @property
    @abstractmethod
    def sigma_data(self) -> float:
        """σ_d > 0, in data units."""

    def sigma(self, t: Values) -> Float64[Tensor, "*shape"]:
        """σ_d t/(1−t)."""
        t = float64(t)
        return self.sigma_data * t / (1 - t)

    def sigma_derivative(self, t: Values) -> Float64[Tensor, "*shape"]:
        """σ_d/(1−t)²."""
        return self.sigma_data * (1 - float64(t)).pow(-2)

    def time(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """σ/(σ+σ_d)."""
        sigma = noise_levels(sigma)
        return sigma / (sigma + self.sigma_data)


@dataclass(frozen=True)
class FlowTime(FlowLaw):
    """σ(t) = σ_d t/(1−t), 0 ≤ t < 1: the time of rectified flow between data of width σ_d and noise.

    Args:
        sigma_data: σ_d > 0, in data units.

    Raises:
        ValueError: sigma_data is not > 0.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        checks.positive("sigma_data", self.sigma_data)


@dataclass(frozen=True)
class RectifiedFlow(FlowLaw):
    """Rectified flow / flow matching (Liu et al. 2022): x(t) = (1−t) y + t n, that is σ(t) = t/(1−t), 0 ≤ t < 1."""

    sigma_data = 1.0

    @property
    def scaling(self) -> Scaling:
        """s = 1 − t = 1/(1+σ)."""
        return FlowScaling()
