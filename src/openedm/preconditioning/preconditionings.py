"""How a network F becomes a denoiser: D(x; σ) = c_skip x + c_out F(c_in x; c_noise)   (Karras et al. 2022, eq. 7).

c_skip and c_out follow from what the network predicts (`predictions`); a preconditioning adds the network's inputs:

| preconditioning | prediction | c_in | c_noise |
|---|---|---|---|
| EDM | NetworkPrediction(σ_d) | 1/√(σ²+σ_d²) | ¼ ln σ |
| VP | EpsilonPrediction | 1/√(σ²+1) | (M−1) σ_VP⁻¹(σ) |
| VE | ScorePrediction | 1 | ln(½ σ) |
| IDDPM | EpsilonPrediction | 1/√(σ²+1) | M−1−argmin_j |u_j − σ| |
| Adapter, a network of another library | epsilon, v, sample or velocity | s | time or index of its schedule |

σ_d, the standard deviation of the data, belongs to the denoiser, which passes it in. All in float64.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from openedm import levels, schedules
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.preconditioning.predictions import (
    DataPrediction,
    EpsilonPrediction,
    NetworkPrediction,
    Prediction,
    ScheduleVelocity,
    ScorePrediction,
    Sigma,
    VPrediction,
)


class Coefficients(NamedTuple):
    """The four functions of eq. 7 at given noise levels; each has the shape of σ."""

    c_skip: Sigma
    c_out: Sigma
    c_in: Sigma
    c_noise: Sigma


class Preconditioning(Choice, ABC):
    """How a network F becomes a denoiser D."""

    @property
    def sigma_min(self) -> float:
        """The lowest noise level the denoiser supports."""
        return 0.0

    @property
    def sigma_max(self) -> float:
        """The highest noise level the denoiser supports."""
        return math.inf

    @property
    def outputs_per_channel(self) -> int:
        """How many channels the network predicts for each channel of the data; the first of them are used."""
        return 1

    def round_sigma(self, sigma: schedules.Values) -> Sigma:
        """The nearest noise level that the network was trained on; the identity for continuous models.

        Raises:
            ValueError: a σ on the host is not finite and ≥ 0.
        """
        return schedules.noise_levels(sigma)

    @abstractmethod
    def prediction(self, sigma_data: float) -> Prediction:
        """What the network predicts, for data of standard deviation `sigma_data`."""

    @abstractmethod
    def inputs(self, sigma: schedules.Values, sigma_data: float) -> tuple[Sigma, Sigma]:
        """c_in and c_noise."""

    def coefficients(self, sigma: schedules.Values, sigma_data: float) -> Coefficients:
        """c_skip, c_out, c_in, c_noise at one or several σ, for data of standard deviation `sigma_data`.

        Raises:
            TypeError: σ is neither a number nor a tensor of them.
            ValueError: a σ on the host is not finite and ≥ 0.

        >>> [round(float(c), 4) for c in EDM().coefficients(0.5, sigma_data=0.5)]
        [0.5, 0.3536, 1.4142, -0.1733]
        """
        sigma = schedules.noise_levels(sigma)
        return Coefficients(*self.prediction(sigma_data).denoising(sigma), *self.inputs(sigma, sigma_data))


@dataclass(frozen=True)
class EDM(Preconditioning):
    """EDM's preconditioning (eq. 7, Appendix B.6): network input and target have unit variance at every σ."""

    def prediction(self, sigma_data: float) -> Prediction:
        """EDM's F."""
        return NetworkPrediction(sigma_data)

    def inputs(self, sigma: schedules.Values, sigma_data: float) -> tuple[Sigma, Sigma]:
        """1/√(σ²+σ_d²), ¼ ln σ."""
        sigma = schedules.noise_levels(sigma)
        return (sigma.square() + sigma_data**2).rsqrt(), sigma.log() / 4


@dataclass(frozen=True)
class VP(Preconditioning):
    """The DDPM++ cont. (VP) model of Song et al. 2021: F predicts the unit noise n.

    Args:
        beta_d: β_d of the VP schedule of training.
        beta_min: β_min of the same schedule.
        num_levels: M ≥ 2; c_noise runs from 0 to M−1.
        epsilon_t: ε_t, the smallest time of training, in (0, 1).

    Raises:
        ValueError: a value is out of its range, or not 0 < σ_VP(ε_t) < σ_VP(1) < ∞.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    num_levels: int = 1000
    epsilon_t: float = 1e-5

    def __post_init__(self) -> None:
        checks.at_least("num_levels", self.num_levels, 2)
        checks.between("epsilon_t", self.epsilon_t, 1e-12, 1 - 1e-12)
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"beta_d, beta_min and epsilon_t must give 0 < sigma(epsilon_t) < sigma(1) < inf, got {self.sigma_min} "
                f"and {self.sigma_max} from {self.beta_d}, {self.beta_min} and {self.epsilon_t}"
            )

    @property
    def schedule(self) -> schedules.VP:
        """The VP schedule of training."""
        return schedules.VP(self.beta_d, self.beta_min)

    @property
    def sigma_min(self) -> float:
        """σ_VP(ε_t)."""
        return float(self.schedule.sigma(self.epsilon_t))

    @property
    def sigma_max(self) -> float:
        """σ_VP(1)."""
        return float(self.schedule.sigma(1.0))

    def prediction(self, sigma_data: float) -> Prediction:
        """The noise."""
        return EpsilonPrediction()

    def inputs(self, sigma: schedules.Values, sigma_data: float) -> tuple[Sigma, Sigma]:
        """1/√(σ²+1), (M−1) σ_VP⁻¹(σ)."""
        sigma = schedules.noise_levels(sigma)
        return (sigma.square() + 1).rsqrt(), (self.num_levels - 1) * self.schedule.time(sigma)


@dataclass(frozen=True)
class VE(Preconditioning):
    """The NCSN++ cont. (VE) model of Song et al. 2021: the input is not scaled.

    Args:
        sigma_min: lowest noise level of training, > 0.
        sigma_max: highest noise level of training.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max < ∞.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        checks.positive("sigma_min", self.sigma_min)
        checks.ordered("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)
        checks.finite("sigma_max", self.sigma_max)

    def prediction(self, sigma_data: float) -> Prediction:
        """The score in units of 1/σ."""
        return ScorePrediction()

    def inputs(self, sigma: schedules.Values, sigma_data: float) -> tuple[Sigma, Sigma]:
        """1, ln(½ σ)."""
        sigma = schedules.noise_levels(sigma)
        return torch.ones_like(sigma), (sigma / 2).log()


@lru_cache(maxsize=16)
def _table_tensor(table: tuple[float, ...], device: torch.device) -> Float64[Tensor, "levels"]:
    return torch.tensor(table, dtype=torch.float64, device=device)


def nearest_level(table: tuple[float, ...], sigma: Sigma) -> Int64[Tensor, "*shape"]:
    """The index j of the entry with the smallest |u_j − σ| in a table that increases; the higher level on ties.

    A binary search: O(log M) for each σ, without an (M × batch) table of differences.
    """
    levels = _table_tensor(table, sigma.device)
    right = torch.searchsorted(levels, sigma.detach().contiguous()).clamp(1, len(table) - 1)
    nearer_left = sigma - levels[right - 1] < levels[right] - sigma
    return right - nearer_left.long()


def level_index(table: tuple[float, ...], sigma: Sigma) -> Sigma:
    """The index of σ in a table that increases, linear in ln σ between two entries > 0; the first or last outside."""
    levels = _table_tensor(table, sigma.device)
    right = torch.searchsorted(levels, sigma.detach().contiguous()).clamp(1, len(table) - 1)
    low, high = levels[right - 1].log(), levels[right].log()
    return right - 1 + ((sigma.log() - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class IDDPM(Preconditioning):
    """Improved DDPM (Nichol & Dhariwal 2021): trained at M discrete levels; predicts 2C channels, the first C are used.

    Args:
        c_1: C₁ of `levels.iddpm_table`.
        c_2: C₂ of `levels.iddpm_table`.
        num_levels: M.
        table: the trained levels u_0 > … > u_M, the last of them 0; None means `iddpm_table(num_levels, c_1, c_2)`.

    Raises:
        ValueError: a value is out of its range, or the table does not have M + 1 strictly decreasing entries down to 0.
    """

    c_1: float = 0.001
    c_2: float = 0.008
    num_levels: int = 1000
    table: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        checks.at_least("num_levels", self.num_levels, 1)
        u = self.levels
        if len(u) != self.num_levels + 1:
            raise ValueError(f"table must hold num_levels + 1 = {self.num_levels + 1} levels, got {len(u)}")
        checks.decreasing("table", u)
        if u[-1] != 0:
            raise ValueError(f"table must end with 0, got {u[-1]!r}")

    @property
    def levels(self) -> tuple[float, ...]:
        """u_0 > … > u_M."""
        return self.table if self.table is not None else levels.iddpm_table(self.num_levels, self.c_1, self.c_2)

    @property
    def sigma_min(self) -> float:
        """u_{M−1}."""
        return self.levels[-2]

    @property
    def sigma_max(self) -> float:
        """u_0."""
        return self.levels[0]

    @property
    def outputs_per_channel(self) -> int:
        """2: the second half predicts variances, which the ODE does not use."""
        return 2

    def round_sigma(self, sigma: schedules.Values) -> Sigma:
        """The table entry nearest to σ by |u_j − σ|."""
        increasing, sigma = self.levels[::-1], schedules.noise_levels(sigma)
        return _table_tensor(increasing, sigma.device)[nearest_level(increasing, sigma)]

    def prediction(self, sigma_data: float) -> Prediction:
        """The noise."""
        return EpsilonPrediction()

    def inputs(self, sigma: schedules.Values, sigma_data: float) -> tuple[Sigma, Sigma]:
        """1/√(σ²+1), M−1−argmin_j |u_j − σ|."""
        sigma = schedules.noise_levels(sigma)
        return (sigma.square() + 1).rsqrt(), nearest_level(self.levels[::-1], sigma).double() - 1


@dataclass(frozen=True)
class Adapter(Preconditioning):
    """A network trained with another library: its input is s(t) x at time t of its schedule, its output `predicts`.

    Args:
        predicts: "epsilon" (the noise n; DDPM), "v" (s (n − σ y); Salimans & Ho 2022), "sample" (the clean y) or
            "velocity" (dx/dt of its schedule; n − y for rectified flow).
        schedule: the noise schedule of its training; the schedule's own scaling s multiplies the input.
        time_scale: c_noise = `time_scale` · t, for example 999 for networks that count steps from 0 to 999.
        table: for networks trained at discrete steps j = 0, 1, …: their noise levels, strictly increasing. c_noise is
            then the index of the nearest level, σ is rounded to that level, and `time_scale` must stay 1.
        interpolate: with a table, evaluate the network between its steps instead: c_noise is linear in ln σ between the
            indices of the two nearest levels, and σ is not rounded.

    Raises:
        ValueError: a value is out of its range, the table does not increase, `time_scale` and a table are both given,
            `interpolate` is set without a table of levels > 0, or `predicts` is "v" and the schedule does not preserve
            the variance.
    """

    predicts: Literal["epsilon", "v", "sample", "velocity"] = "epsilon"
    schedule: schedules.Schedule = schedules.VP()
    time_scale: float = 1.0
    table: tuple[float, ...] | None = None
    interpolate: bool = False

    def __post_init__(self) -> None:
        checks.one_of("predicts", self.predicts, ("epsilon", "v", "sample", "velocity"))
        checks.positive("time_scale", self.time_scale)
        if self.predicts == "v" and self.schedule.scaling != schedules.VPScaling():
            raise ValueError(
                f"predicts='v' needs a schedule with VPScaling (s = 1/√(1+σ²)), got schedule={self.schedule}"
            )
        if self.interpolate and (self.table is None or not self.table[0] > 0):
            raise ValueError(f"interpolate needs a table of levels > 0, got table={self.table and self.table[:2]}")
        if self.table is None:
            return
        if self.time_scale != 1.0:
            raise ValueError(f"time_scale has no effect with a table and must be 1.0, got {self.time_scale!r}")
        if len(self.table) < 2 or any(not a < b for a, b in pairwise(self.table)):
            raise ValueError(f"table must hold at least 2 strictly increasing levels, got {len(self.table)} values")
        checks.at_least("table[0]", self.table[0], 0)
        checks.finite("table[-1]", self.table[-1])

    @property
    def sigma_min(self) -> float:
        """The lowest level of the table; 0 without one."""
        return self.table[0] if self.table else 0.0

    @property
    def sigma_max(self) -> float:
        """The highest level of the table; infinite without one."""
        return self.table[-1] if self.table else math.inf

    def round_sigma(self, sigma: schedules.Values) -> Sigma:
        """The nearest level of the table; σ itself without one, or between its levels with `interpolate`."""
        sigma = schedules.noise_levels(sigma)
        if self.table is None or self.interpolate:
            return sigma
        return _table_tensor(self.table, sigma.device)[nearest_level(self.table, sigma)]

    def prediction(self, sigma_data: float) -> Prediction:
        """The quantity that `predicts` names."""
        if self.predicts == "velocity":
            return ScheduleVelocity(self.schedule)
        return {"epsilon": EpsilonPrediction(), "v": VPrediction(), "sample": DataPrediction()}[self.predicts]

    def inputs(self, sigma: schedules.Values, sigma_data: float) -> tuple[Sigma, Sigma]:
        """s, and the time (or the index) that the network expects."""
        sigma = schedules.noise_levels(sigma)
        return self.schedule.scaling.scale(sigma), self._c_noise(sigma)

    def _c_noise(self, sigma: Sigma) -> Sigma:
        if self.table is None:
            return self.time_scale * self.schedule.time(sigma)
        return level_index(self.table, sigma) if self.interpolate else nearest_level(self.table, sigma).double()
