"""Training objectives: E[λ(σ) ‖D(y + σ n; σ) − y‖²], σ ~ p(σ)   (Karras et al. 2022, eq. 2 and Table 1).

| | p(σ) | λ(σ) |
|---|---|---|
| EDM | ln σ ~ N(P_mean, P_std²) | (σ²+σ_d²)/(σ σ_d)² |
| VP | σ_VP(t), t ~ U(ε_t, 1) | 1/σ² |
| VE | ln σ ~ U(ln σ_min, ln σ_max) | 1/σ² |
| IDDPM | u_j, j ~ U{0…M−1} | 1/σ² |

A noise distribution is its inverse CDF, σ = F⁻¹(u) with u uniform in (0, 1). Independent draws take independent u;
stratified draws take one u from each of B equal intervals, in random order: the same distribution for each sample, a
lower variance of the batch's gradient. Losses are means over the dimensions of a sample, in data units.

EDM's P_mean is for data of standard deviation σ_d = 0.5. Where none is given it is moved by ln(σ_d/0.5), so that
training is the same for data in other units (`NoiseDistribution.for_data`).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from openedm import levels, schedules
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.ground.tensors import float64_between
from openedm.schedules import Values, noise_levels

__all__ = [
    "EDM",
    "EDM2",
    "EDM_P_MEAN",
    "IDDPM",
    "VE",
    "VP",
    "EDMWeighting",
    "InverseVariance",
    "LogNormal",
    "LogUniform",
    "Loss",
    "NoiseDistribution",
    "Objective",
    "Uncertainty",
    "UniformTable",
    "UniformTime",
    "Weighting",
    "denoising_loss",
    "weighted_loss",
]


EDM_P_MEAN = -1.2
"""P_mean of Karras et al. 2022, for σ_data = 0.5."""


class NoiseDistribution(Choice, ABC):
    """p(σ): the distribution of noise levels in training."""

    @abstractmethod
    def quantile(self, u: Values) -> Float64[Tensor, "*shape"]:
        """σ = F⁻¹(u) for u in (0, 1), with its limits at 0 and 1.

        Raises:
            ValueError: a u on the host is not between 0 and 1.
        """

    def for_data(self, sigma_data: float) -> "NoiseDistribution":
        """The distribution for data of standard deviation `sigma_data`; itself, unless a number follows the data."""
        return self

    def sample(self, count: int, generator: torch.Generator, *, stratified: bool = False) -> Float64[Tensor, "count"]:
        """`count` noise levels, on the generator's device; stratified over the batch or independent."""
        u = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
        if stratified:
            order = torch.randperm(count, generator=generator, device=generator.device)
            u = (order + u) / count
        tiny = 2.0**-53  # The largest float64 below 1 is 1 − 2⁻⁵³.
        return self.quantile(u.clamp(tiny, 1 - tiny))


@dataclass(frozen=True)
class LogNormal(NoiseDistribution):
    """ln σ ~ N(P_mean, P_std²): EDM's distribution.

    Args:
        p_mean: mean of ln σ. −1.2 in the paper, −0.4 for EDM2's latents. None means the paper's in units of the data:
            −1.2 + ln(σ_data/0.5).
        p_std: standard deviation of ln σ, > 0. 1.2 in the paper, 1.0 for EDM2's latents.

    Raises:
        ValueError: p_std is not > 0.
    """

    p_mean: float | None = None
    p_std: float = 1.2

    def __post_init__(self) -> None:
        if self.p_mean is not None:
            checks.finite("p_mean", self.p_mean)
        checks.positive("p_std", self.p_std)

    def for_data(self, sigma_data: float) -> "LogNormal":
        """The distribution with P_mean = −1.2 + ln(σ_data/0.5) unless one is given."""
        if self.p_mean is not None:
            return self
        return replace(self, p_mean=EDM_P_MEAN + math.log(sigma_data / levels.EDM_SIGMA_DATA))

    def quantile(self, u: Values) -> Float64[Tensor, "*shape"]:
        """exp(P_mean + P_std Φ⁻¹(u)); P_mean is the paper's if it is None."""
        normal: Tensor = torch.special.ndtri(float64_between("u", u, 0, 1))
        mean = EDM_P_MEAN if self.p_mean is None else self.p_mean
        return (mean + self.p_std * normal).exp()


@dataclass(frozen=True)
class UniformTime(NoiseDistribution):
    """σ(t) with t ~ U(ε_t, 1) of a schedule: VP's distribution, or any schedule's.

    Args:
        schedule: the noise schedule.
        epsilon_t: the smallest time, in (0, 1).
        t_max: the largest time, above epsilon_t; for schedules that are infinite at t = 1, less than 1.

    Raises:
        ValueError: not 0 < epsilon_t < t_max, or σ is not finite and positive there.
    """

    schedule: schedules.Schedule = schedules.VP()
    epsilon_t: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("epsilon_t", self.epsilon_t)
        checks.ordered("epsilon_t", self.epsilon_t, "t_max", self.t_max)
        checks.positive(f"sigma at epsilon_t={self.epsilon_t}", float(self.schedule.sigma(self.epsilon_t)))
        checks.positive(f"sigma at t_max={self.t_max}", float(self.schedule.sigma(self.t_max)))

    def quantile(self, u: Values) -> Float64[Tensor, "*shape"]:
        """σ(ε_t + u (t_max − ε_t))."""
        return self.schedule.sigma(self.epsilon_t + float64_between("u", u, 0, 1) * (self.t_max - self.epsilon_t))


@dataclass(frozen=True)
class LogUniform(NoiseDistribution):
    """ln σ ~ U(ln σ_min, ln σ_max): VE's distribution.

    Args:
        sigma_min: lowest noise level, > 0.
        sigma_max: highest noise level.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        checks.positive("sigma_min", self.sigma_min)
        checks.ordered("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    def quantile(self, u: Values) -> Float64[Tensor, "*shape"]:
        """σ_min (σ_max/σ_min)^u."""
        return self.sigma_min * (float64_between("u", u, 0, 1) * math.log(self.sigma_max / self.sigma_min)).exp()


@dataclass(frozen=True)
class UniformTable(NoiseDistribution):
    """σ = u_j with j ~ U{0…M−1}: Improved DDPM's distribution.

    Args:
        table: the levels u_0 > … > u_M = 0, of which the last is never drawn; None means `levels.iddpm_table()`.

    Raises:
        ValueError: the table has fewer than two entries, does not decrease or does not end with 0.
    """

    table: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        u = self._levels()
        if len(u) < 2 or u[-1] != 0:
            raise ValueError(f"table must hold at least 2 levels, the last of them 0, got {u[-2:]} at the end")
        checks.decreasing("table", u)

    def _levels(self) -> tuple[float, ...]:
        return levels.iddpm_table() if self.table is None else self.table

    def quantile(self, u: Values) -> Float64[Tensor, "*shape"]:
        """The entry of index M−1−⌊M u⌋: increasing in u."""
        u = float64_between("u", u, 0, 1)
        table = torch.tensor(self._levels()[:-1], dtype=torch.float64, device=u.device)
        return table.flip(0)[(u * len(table)).long().clamp(max=len(table) - 1)]


class Weighting(Choice, ABC):
    """λ(σ): the weight of each noise level in the loss."""

    @abstractmethod
    def weight(self, sigma: Values, sigma_data: float) -> Float64[Tensor, "*shape"]:
        """λ(σ) for data of standard deviation `sigma_data`.

        Raises:
            ValueError: a σ on the host is not finite and ≥ 0, or sigma_data is not > 0.
        """


@dataclass(frozen=True)
class EDMWeighting(Weighting):
    """λ = (σ²+σ_d²)/(σ σ_d)² = 1/c_out² of EDM's preconditioning: the loss is 1 at every σ when training starts."""

    def weight(self, sigma: Values, sigma_data: float) -> Float64[Tensor, "*shape"]:
        """(σ²+σ_d²)/(σ σ_d)²."""
        checks.positive("sigma_data", sigma_data)
        sigma = noise_levels(sigma)
        return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()


@dataclass(frozen=True)
class InverseVariance(Weighting):
    """λ = 1/σ² = 1/c_out² of the VP, VE and iDDPM preconditionings."""

    def weight(self, sigma: Values, sigma_data: float) -> Float64[Tensor, "*shape"]:
        """1/σ²."""
        return noise_levels(sigma).square().reciprocal()


@dataclass(frozen=True)
class Objective(Choice, ABC):
    """A noise distribution, a weighting, and the way in which the levels of a batch are drawn.

    Args:
        noise: p(σ).
        weighting: λ(σ).
        stratified: draw one level from each of B equal parts of p(σ) instead of B independent ones: a lower variance of
            the gradient at no cost.
        learned_uncertainty: train a function u(σ) beside the network and minimise λ/e^{u(σ)} ‖·‖² + u(σ), so that every
            noise level contributes equally (Karras et al. 2024, EDM2, eq. 21).
    """

    noise: NoiseDistribution = LogNormal()
    weighting: Weighting = EDMWeighting()
    stratified: bool = True
    learned_uncertainty: bool = False

    trains_consistency: ClassVar[bool] = False
    """Whether what is trained is a consistency function f(x; σ) instead of a denoiser."""
    uses_teacher: ClassVar[bool] = False
    """Whether the loss evaluates the denoiser from which training starts."""

    def for_data(self, sigma_data: float) -> "Objective":
        """The objective with p(σ) for data of standard deviation `sigma_data`."""
        return replace(self, noise=self.noise.for_data(sigma_data))

    def target_levels(
        self, sigma: Float64[Tensor, " batch"], sigma_data: float, progress: float
    ) -> Float64[Tensor, " batch"] | None:
        """The noise level of each sample at which the network itself gives the target; None: the target is y.

        Args:
            sigma: the noise level of each sample.
            sigma_data: standard deviation of the data.
            progress: images seen, as a fraction of those of the run.
        """
        return None

    def distance(
        self, denoised: Float[Tensor, "batch *event"], target: Float[Tensor, "batch *event"], sigma_data: float
    ) -> Float[Tensor, " batch"]:
        """‖D − target‖²/n of each sample, n the number of dimensions, in float32 or better."""
        return _mean_square(denoised, target)


@dataclass(frozen=True)
class EDM(Objective):
    """EDM's objective: log-normal p(σ), λ = 1/c_out²."""


@dataclass(frozen=True)
class VP(Objective):
    """The VP column of Table 1: t ~ U(1e-5, 1), λ = 1/σ²."""

    noise: NoiseDistribution = UniformTime()
    weighting: Weighting = InverseVariance()


@dataclass(frozen=True)
class VE(Objective):
    """The VE column of Table 1: ln σ uniform between 0.02 and 100, λ = 1/σ²."""

    noise: NoiseDistribution = LogUniform()
    weighting: Weighting = InverseVariance()


@dataclass(frozen=True)
class IDDPM(Objective):
    """The iDDPM column of Table 1: σ uniform over its table, λ = 1/σ²."""

    noise: NoiseDistribution = UniformTable()
    weighting: Weighting = InverseVariance()


@dataclass(frozen=True)
class EDM2(Objective):
    """EDM2's objective for latents: P_mean −0.4, P_std 1.0, learned uncertainty.

    For images of 64² the paper has `noise=LogNormal(-0.8, 1.6)`.
    """

    noise: NoiseDistribution = LogNormal(p_mean=-0.4, p_std=1.0)
    learned_uncertainty: bool = True


class Uncertainty(nn.Module):
    """u(σ): a linear map of random Fourier features of ¼ ln σ, zero at first (Karras et al. 2024, Appendix B.3).

    Args:
        channels: the number of features, ≥ 1.
        seed: the seed of the fixed frequencies and phases.

    Raises:
        ValueError: channels is out of its range.
    """

    frequencies: Float[Tensor, "channels"]
    phases: Float[Tensor, "channels"]

    def __init__(self, channels: int = 128, seed: int = 0) -> None:
        super().__init__()
        checks.at_least("channels", channels, 1)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(channels, generator=generator))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels, generator=generator))
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, sigma: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """u(σ), one value a noise level."""
        c_noise = (noise_levels(sigma).log() / 4).to(self.weight)
        features = (c_noise[:, None] * self.frequencies + self.phases).cos() * math.sqrt(2 / len(self.weight))
        return features @ self.weight


class Loss(NamedTuple):
    """The loss of each sample of a batch.

    Attributes:
        total: what is minimised: λ ‖D − y‖²/n, with learned uncertainty λ/e^u ‖D − y‖²/n + u.
        weighted: λ ‖D − y‖²/n, comparable between runs.
    """

    total: Float[Tensor, "batch"]
    weighted: Float[Tensor, "batch"]


def denoising_loss(
    denoised: Float[Tensor, "batch *event"],
    clean: Float[Tensor, "batch *event"],
    weight: Float64[Tensor, "batch"],
    uncertainty: Float[Tensor, "batch"] | None = None,
) -> Loss:
    """λ ‖D − y‖²/n for each sample, n the number of dimensions   (eq. 2).

    Args:
        denoised: D(y + σ n; σ).
        clean: y.
        weight: λ(σ).
        uncertainty: u(σ), where it is learned.
    """
    return weighted_loss(_mean_square(denoised, clean), weight, uncertainty)


def _mean_square(a: Float[Tensor, "batch *event"], b: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
    dtype = torch.promote_types(a.dtype, torch.float32)
    return (a.to(dtype) - b.to(dtype)).square().flatten(1).mean(1)


def weighted_loss(
    distance: Float[Tensor, " batch"],
    weight: Float64[Tensor, " batch"],
    uncertainty: Float[Tensor, " batch"] | None = None,
) -> Loss:
    """λ(σ) times the distance of each sample from its target, with learned uncertainty λ/e^u times it, plus u.

    Args:
        distance: what `Objective.distance` returns.
        weight: λ(σ).
        uncertainty: u(σ), where it is learned.
    """
    weighted = weight.to(distance) * distance
    if uncertainty is None:
        return Loss(weighted, weighted.detach())
    return Loss(weighted / uncertainty.exp() + uncertainty, weighted.detach())
