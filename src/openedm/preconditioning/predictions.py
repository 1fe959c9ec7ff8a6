"""What a network predicts: a quantity q = a(σ) x + b(σ) D.

A `Prediction` is one equation used in both directions: networks return q, and the denoiser computes D = c_skip x +
c_out q; solvers start from D and interpolate q = a x + b D with a = −c_skip/c_out, b = 1/c_out. Its growth is Φ(σ) =
exp ∫ (1 − c_skip) dσ/σ, the factor by which x changes along the probability-flow ODE while q is 0.

| prediction | q | c_skip | c_out | Φ |
|---|---|---|---|---|
| EpsilonPrediction | n = (x − D)/σ | 1 | −σ | 1 |
| ScorePrediction | σ ∇ln p = (D − x)/σ | 1 | σ | 1 |
| DataPrediction | D | 0 | 1 | σ |
| VPrediction | s (n − σ y), s = 1/√(1+σ²) | s² | −σ s | √(1+σ²) |
| ScheduleVelocity | dx/dt = ṡ y + (ṡ σ + s σ̇) n of a schedule | 1 + σ ṡ/(s σ̇) | −σ/(s σ̇) | 1/s |
| VelocityPrediction(σ_d) | (x − D)/σ − D/σ_d | σ_d/(σ+σ_d) | −σ σ_d/(σ+σ_d) | σ+σ_d |
| NetworkPrediction(σ_d), EDM's F | (D − c_skip x)/c_out | σ_d²/(σ²+σ_d²) | σ σ_d/√(σ²+σ_d²) | √(σ²+σ_d²) |
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from openedm import schedules
from openedm.ground import checks
from openedm.ground.choices import Choice

Sigma = Float64[Tensor, "*shape"]
"""Noise levels > 0 in data units, of any shape."""


class Prediction(Choice, ABC):
    """A quantity q = a(σ) x + b(σ) D that a network may predict and that a solver may interpolate.

    Its functions take a noise level σ or a tensor of them, and raise ValueError where one on the host is not finite and
    ≥ 0.
    """

    @abstractmethod
    def denoising(self, sigma: schedules.Values) -> tuple[Sigma, Sigma]:
        """c_skip and c_out of D = c_skip x + c_out q."""

    @abstractmethod
    def log_growth(self, sigma: schedules.Values) -> Sigma:
        """ln Φ(σ) = ∫ (1 − c_skip) dσ/σ, up to a constant."""

    def for_data(self, sigma_data: float) -> "Prediction":
        """The quantity for data of standard deviation `sigma_data`; itself, unless it has a width that follows it."""
        return self

    def coefficients(self, sigma: schedules.Values) -> tuple[Sigma, Sigma]:
        """a = −c_skip/c_out and b = 1/c_out of q = a x + b D."""
        c_skip, c_out = self.denoising(sigma)
        return -c_skip / c_out, 1 / c_out


@dataclass(frozen=True)
class EpsilonPrediction(Prediction):
    """The noise ε = (x − D)/σ: DDPM, DDIM, LMS, DEIS, DPM-Solver."""

    def denoising(self, sigma: schedules.Values) -> tuple[Sigma, Sigma]:
        """1, −σ."""
        sigma = schedules.noise_levels(sigma)
        return torch.ones_like(sigma), -sigma

    def log_growth(self, sigma: schedules.Values) -> Sigma:
        """0."""
        sigma = schedules.noise_levels(sigma)
        return torch.zeros_like(sigma)


@dataclass(frozen=True)
class ScorePrediction(Prediction):
    """The score in units of 1/σ, (D − x)/σ = −ε: the networks of Song et al.'s VE models."""

    def denoising(self, sigma: schedules.Values) -> tuple[Sigma, Sigma]:
        """1, σ."""
        sigma = schedules.noise_levels(sigma)
        return torch.ones_like(sigma), sigma

    def log_growth(self, sigma: schedules.Values) -> Sigma:
        """0."""
        sigma = schedules.noise_levels(sigma)
        return torch.zeros_like(sigma)


@dataclass(frozen=True)
class DataPrediction(Prediction):
    """The denoised sample D itself: DPM-Solver++, UniPC."""

    def denoising(self, sigma: schedules.Values) -> tuple[Sigma, Sigma]:
        """0, 1."""
        sigma = schedules.noise_levels(sigma)
        return torch.zeros_like(sigma), torch.ones_like(sigma)

    def log_growth(self, sigma: schedules.Values) -> Sigma:
        """ln σ."""
        sigma = schedules.noise_levels(sigma)
        return sigma.log()


@dataclass(frozen=True)
class VPrediction(Prediction):
    """v = s (n − σ y) with s = 1/√(1+σ²) (Salimans & Ho 2022): minus EDM's F for data of width 1."""

    def denoising(self, sigma: schedules.Values) -> tuple[Sigma, Sigma]:
        """s², −σ s."""
        sigma = schedules.noise_levels(sigma)
        scale = schedules.VPScaling().scale(sigma)
        return scale.square(), -sigma * scale

    def log_growth(self, sigma: schedules.Values) -> Sigma:
        """½ ln(1 + σ²)."""
        sigma = schedules.noise_levels(sigma)
        return torch.log1p(sigma.square()) / 2


@dataclass(frozen=True)
class ScheduleVelocity(Prediction):
    """dx/dt along a schedule with its own scaling; n − y for `RectifiedFlow`.

    Args:
        schedule: any schedule.
    """

    schedule: schedules.Schedule = schedules.RectifiedFlow()

    def denoising(self, sigma: schedules.Values) -> tuple[Sigma, Sigma]:
        """1 + σ ṡ/(s σ̇), −σ/(s σ̇)."""
        sigma = schedules.noise_levels(sigma)
        scaling = self.schedule.scaling
        scale = scaling.scale(sigma)
        speed = scale * self.schedule.sigma_derivative(self.schedule.time(sigma))
        return 1 + sigma * (scaling.derivative(sigma) / scale), -sigma / speed

    def log_growth(self, sigma: schedules.Values) -> Sigma:
        """−ln s."""
        sigma = schedules.noise_levels(sigma)
        return -self.schedule.scaling.scale(sigma).log()


@dataclass(frozen=True)
class VelocityPrediction(Prediction):
    """ε − D/σ_d: the velocity of rectified flow between noise and data of width σ_d; n − y where σ_d = 1.

    Args:
        sigma_data: σ_d > 0, in data units.

    Raises:
        ValueError: sigma_data is not > 0.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("sigma_data", self.sigma_data)

    def denoising(self, sigma: schedules.Values) -> tuple[Sigma, Sigma]:
        """σ_d/(σ+σ_d), −σ σ_d/(σ+σ_d)."""
        sigma = schedules.noise_levels(sigma)
        c_skip = self.sigma_data / (sigma + self.sigma_data)
        return c_skip, -sigma * c_skip

    def log_growth(self, sigma: schedules.Values) -> Sigma:
        """ln(σ + σ_d)."""
        sigma = schedules.noise_levels(sigma)
        return (sigma + self.sigma_data).log()


@dataclass(frozen=True)
class NetworkPrediction(Prediction):
    """EDM's network output F (Karras et al. 2022, eq. 7), 0 where the data is one Gaussian of width σ_d around 0.

    Args:
        sigma_data: σ_d > 0, in data units; None means that of the denoiser, or EDM's 0.5 without one.

    Raises:
        ValueError: sigma_data is not > 0.
    """

    sigma_data: float | None = None

    def __post_init__(self) -> None:
        if self.sigma_data is not None:
            checks.positive("sigma_data", self.sigma_data)

    def for_data(self, sigma_data: float) -> "NetworkPrediction":
        """F for data of this width, unless one is given."""
        return NetworkPrediction(sigma_data) if self.sigma_data is None else self

    @property
    def width(self) -> float:
        """σ_d."""
        return 0.5 if self.sigma_data is None else self.sigma_data

    def denoising(self, sigma: schedules.Values) -> tuple[Sigma, Sigma]:
        """σ_d²/(σ²+σ_d²), σ σ_d/√(σ²+σ_d²)."""
        sigma = schedules.noise_levels(sigma)
        variance = sigma.square() + self.width**2
        return self.width**2 / variance, sigma * self.width * variance.rsqrt()

    def log_growth(self, sigma: schedules.Values) -> Sigma:
        """½ ln(σ² + σ_d²)."""
        sigma = schedules.noise_levels(sigma)
        return torch.hypot(sigma, torch.full_like(sigma, self.width)).log()
