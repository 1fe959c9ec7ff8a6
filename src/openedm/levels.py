"""The noise levels {σ_i}, i = 0…N−1, that a sampler visits, from σ_max down to σ_min (σ_N = 0 is implied).

Row "Time steps" of Table 1 of Karras et al. 2022, stated in σ (the paper's t_i are σ⁻¹(σ_i)). Most rules are even
steps in the time t of a schedule, σ_i = σ(t_max + i/(N−1) (t_min − t_max)) with t_min, t_max the times of σ_min, σ_max:

| rule | schedule or σ_i |
|---|---|
| Uniform | any schedule |
| Karras (EDM, eq. 5) | PowerSigma(ρ): (σ_max^{1/ρ} + i/(N−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ |
| VP | the VP schedule with σ(ε_s) = σ_min, σ(1) = σ_max: σ_VP(1 + i/(N−1) (ε_s − 1)) |
| LogLinear, VE | LogSigma: σ_max (σ_min/σ_max)^{i/(N−1)} |
| IDDPM | u_{j(i)}, the table below |
| Logistic | quantiles of a logistic distribution of ln σ |
| Explicit | given one by one |

N = 1 means the single level σ_max. Levels are planned in float64 on the host.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float64
from torch import Tensor

from openedm import schedules
from openedm.ground import checks
from openedm.ground.choices import Choice

__all__ = [
    "IDDPM",
    "VE",
    "VP",
    "EvenLevels",
    "Explicit",
    "Karras",
    "Levels",
    "LogLinear",
    "Logistic",
    "Uniform",
    "iddpm_table",
]


class Levels(Choice, ABC):
    """A rule for the noise levels, complete with its number of steps and its range."""

    num_steps: int
    sigma_min: float
    sigma_max: float

    @abstractmethod
    def sigmas(self) -> Float64[Tensor, "num_steps"]:
        """The levels σ_0 = σ_max > … > σ_{N−1}, strictly decreasing; the final 0 is not among them."""

    def within(self, low: float, high: float) -> "Levels":
        """The same rule with its range cut to [`low`, `high`], the noise levels that a denoiser supports.

        Raises:
            ValueError: the rule's range and [`low`, `high`] do not overlap.
        """
        sigma_min, sigma_max = max(self.sigma_min, low), min(self.sigma_max, high)
        if sigma_min > sigma_max:
            raise ValueError(
                f"levels between {self.sigma_min:g} and {self.sigma_max:g} are outside the denoiser's range "
                f"[{low:g}, {high:g}]"
            )
        unchanged = (sigma_min, sigma_max) == (self.sigma_min, self.sigma_max)
        return self if unchanged else self._with_range(sigma_min, sigma_max)

    def _with_range(self, sigma_min: float, sigma_max: float) -> "Levels":
        return replace(self, sigma_min=sigma_min, sigma_max=sigma_max)  # type: ignore[call-arg]

    def _check_range(self) -> None:
        checks.integer("num_steps", self.num_steps, 1)
        checks.positive("sigma_min", self.sigma_min)
        checks.positive("sigma_max", self.sigma_max)
        if self.num_steps > 1 or self.sigma_min > self.sigma_max:
            checks.ordered("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    def _fractions(self) -> Float64[Tensor, "num_steps"]:
        """i/(N−1), i = 0…N−1; 0 for N = 1."""
        return torch.arange(self.num_steps, dtype=torch.float64) / max(self.num_steps - 1, 1)


class EvenLevels(Levels):
    """Levels evenly spaced in the time of a schedule."""

    @property
    @abstractmethod
    def schedule(self) -> schedules.Schedule:
        """The schedule in whose time the levels are even."""

    def sigmas(self) -> Float64[Tensor, "num_steps"]:
        """σ(t_max + i/(N−1) (t_min − t_max))."""
        if self.num_steps == 1:
            return torch.tensor([self.sigma_max], dtype=torch.float64)
        schedule = self.schedule
        high, low = schedule.time(self.sigma_max), schedule.time(self.sigma_min)
        return _with_exact_ends(schedule.sigma(high + self._fractions() * (low - high)), self.sigma_min, self.sigma_max)


def _with_exact_ends(sigmas: Float64[Tensor, "n"], low: float, high: float) -> Float64[Tensor, "n"]:
    """The levels with their ends set to σ_min and σ_max, from which rounding may have moved them by an ulp."""
    sigmas[-1] = low
    sigmas[0] = high
    return sigmas


@dataclass(frozen=True)
class Uniform(EvenLevels):
    """Levels evenly spaced in the time of any schedule.

    Args:
        schedule: the schedule; `PowerSigma(7)` gives Karras's levels, `LogSigma()` those of `LogLinear`.
        num_steps: N ≥ 1.
        sigma_min: lowest level, > 0, in data units.
        sigma_max: highest level.

    Raises:
        ValueError: a value is out of its range, or the levels do not decrease strictly.
    """

    schedule: schedules.Schedule = schedules.EDM()
    num_steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        self._check_range()
        sigmas = self.sigmas()
        if not bool((sigmas[1:] < sigmas[:-1]).all()):
            raise ValueError(
                f"schedule must reach all levels from {self.sigma_max:g} to {self.sigma_min:g}, got {self.schedule}"
            )


@dataclass(frozen=True)
class Karras(EvenLevels):
    """EDM's levels (eq. 5): uniform in σ^{1/ρ}.

    Args:
        num_steps: N ≥ 1.
        sigma_min: lowest level, > 0, in data units.
        sigma_max: highest level.
        rho: ρ > 0; larger values put more levels near σ_min.

    Raises:
        ValueError: a value is out of its range.

    >>> Karras(num_steps=3, sigma_min=0.01, sigma_max=10.0, rho=1.0).sigmas()
    tensor([10.0000,  5.0050,  0.0100], dtype=torch.float64)
    """

    num_steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        self._check_range()
        checks.positive("rho", self.rho)

    @property
    def schedule(self) -> schedules.Schedule:
        """σ(t) = t^ρ."""
        return schedules.PowerSigma(self.rho)


@dataclass(frozen=True)
class VP(EvenLevels):
    """Song et al.'s VP levels: uniform in the time of the VP schedule that spans [σ_min, σ_max].

    Args:
        num_steps: N ≥ 1.
        sigma_min: lowest level; None means σ(ε_s) of the schedule with β_d = 19.9, β_min = 0.1.
        sigma_max: highest level; the default is σ(1) of the same schedule.
        epsilon_s: ε_s, the time of σ_min, in (0, 1).

    Raises:
        ValueError: a value is out of its range, or no VP schedule spans it.
    """

    num_steps: int = 18
    sigma_min: float | None = None  # type: ignore[assignment]  # a number once the object is made
    sigma_max: float = float(schedules.VP().sigma(1.0))
    epsilon_s: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.epsilon_s < 1:
            raise ValueError(f"epsilon_s must be between 0 and 1, got {self.epsilon_s!r}")
        if self.sigma_min is None:
            object.__setattr__(self, "sigma_min", float(schedules.VP().sigma(self.epsilon_s)))
        self._check_range()
        if self.num_steps > 1:
            _ = self.schedule

    @property
    def schedule(self) -> schedules.Schedule:
        """The VP schedule with σ(ε_s) = σ_min and σ(1) = σ_max."""
        low: float = self.sigma_min  # type: ignore[assignment]
        return schedules.VP.fit(low, self.sigma_max, self.epsilon_s)


@dataclass(frozen=True)
class LogLinear(EvenLevels):
    """Levels evenly spaced in ln σ.

    Args:
        num_steps: N ≥ 1.
        sigma_min: lowest level, > 0.
        sigma_max: highest level.

    Raises:
        ValueError: a value is out of its range.
    """

    num_steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        self._check_range()

    @property
    def schedule(self) -> schedules.Schedule:
        """σ(t) = e^t."""
        return schedules.LogSigma()


@dataclass(frozen=True)
class VE(LogLinear):
    """Song et al.'s VE levels: σ² in geometric progression, that is `LogLinear` with VE's range."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0


@dataclass(frozen=True)
class Logistic(Levels):
    """Levels at the quantiles of a logistic distribution of ln σ, cut to the range: dense around a centre.

    With F the distribution function 1/(1 + e^{−(ln σ − ln c)/w}), F(σ_i) = F(σ_max) + p_i (F(σ_min) − F(σ_max)), where
    p_i = i/(N−1) + Σ_k v_k sin(πk i/(N−1))/(πk). With w = 1 levels are even in the time σ/(σ+c) of rectified flow, with
    w = ½ in the fraction σ²/(σ²+c²) of the variance that is noise, and with w → ∞ in ln σ.

    Args:
        num_steps: N ≥ 1.
        sigma_min: lowest level, > 0, in data units.
        sigma_max: highest level.
        centre: c > 0, where levels are densest, in data units; about half of σ_data.
        spread: w > 0, the width of the distribution of levels, in units of ln σ.
        warp: v_1, v_2, …: a smooth displacement of the quantiles that keeps their order, found by `fit_levels`.

    Raises:
        ValueError: a value is out of its range, or the levels do not decrease strictly.
    """

    num_steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    centre: float = 0.25
    spread: float = 1.5
    warp: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._check_range()
        checks.positive("centre", self.centre)
        checks.positive("spread", self.spread)
        for k, value in enumerate(self.warp):
            checks.finite(f"warp[{k}]", value)
        sigmas = self.sigmas()
        if not bool((sigmas[1:] < sigmas[:-1]).all()):
            raise ValueError(f"warp must keep the order of the levels, got {self.warp}")

    def sigmas(self) -> Float64[Tensor, "num_steps"]:
        """The quantiles, from σ_max down."""
        ramp = self._fractions()
        parts = [v * (math.pi * k * ramp).sin() / (math.pi * k) for k, v in enumerate(self.warp, start=1)]
        shares = torch.stack([ramp, *parts]).sum(0)
        ends = torch.tensor([self.sigma_max, self.sigma_min], dtype=torch.float64)
        scaled = (ends.log() - math.log(self.centre)) / self.spread
        # Logits of F(σ_max) + p (F(σ_min) − F(σ_max)), of both F and 1 − F, which keeps digits where F is close to 1.
        below, above = scaled.sigmoid(), (-scaled).sigmoid()
        quantile, rest = (end[0] + shares * (end[1] - end[0]) for end in (below, above))
        logits = quantile.clamp(min=1e-300).log() - rest.clamp(min=1e-300).log()
        return _with_exact_ends((math.log(self.centre) + self.spread * logits).exp(), self.sigma_min, self.sigma_max)


@dataclass(frozen=True)
class Explicit(Levels):
    """Levels given one by one.

    Args:
        values: the levels, strictly decreasing, all > 0; the final 0 is implied.

    Raises:
        ValueError: no values, or they are not finite, positive and strictly decreasing.
    """

    values: tuple[float, ...] = (80.0, 0.002)

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("values must hold at least one level, got ()")
        for i, value in enumerate(self.values):
            checks.positive(f"values[{i}]", value)
        checks.decreasing("values", self.values)

    @property
    def num_steps(self) -> int:  # type: ignore[override]
        """The number of levels."""
        return len(self.values)

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        """The last level."""
        return self.values[-1]

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        """The first level."""
        return self.values[0]

    def sigmas(self) -> Float64[Tensor, "num_steps"]:
        """The values as given."""
        return torch.tensor(self.values, dtype=torch.float64)

    def _with_range(self, sigma_min: float, sigma_max: float) -> Levels:
        raise ValueError(
            f"values between {self.sigma_min:g} and {self.sigma_max:g} exceed the range "
            f"[{sigma_min:g}, {sigma_max:g}] that the denoiser supports"
        )


@lru_cache(maxsize=8)
def iddpm_table(m: int = 1000, c_1: float = 0.001, c_2: float = 0.008) -> tuple[float, ...]:
    """The noise levels of Improved DDPM, u_0 > u_1 > … > u_M = 0 (Karras et al. 2022, Table 1 and Appendix B.1).

    u_{j−1} = √((u_j² + 1)/max(ᾱ_{j−1}/ᾱ_j, C₁) − 1), ᾱ_j = sin²(½π j/(M (C₂+1))), in float64 throughout (the reference
    computes ᾱ in float32, with errors of up to 4.6e-4; to reproduce its numbers, pass its table).

    Args:
        m: M ≥ 1, the number of non-zero levels.
        c_1: C₁ > 0, the bound on the ratio.
        c_2: C₂ > 0, the offset.
    """
    checks.at_least("m", m, 1)
    checks.positive("c_1", c_1)
    checks.positive("c_2", c_2)
    alpha_bar = [math.sin(0.5 * math.pi * j / (m * (c_2 + 1))) ** 2 for j in range(m + 1)]
    u = [0.0] * (m + 1)
    for j in range(m, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], c_1) - 1)
    return tuple(u)


@dataclass(frozen=True)
class IDDPM(Levels):
    """Levels picked from a table of trained noise levels, evenly in its index (Improved DDPM).

    Of the K entries inside [σ_min, σ_max], level i is entry round((K−1)/(N−1) · i).

    Args:
        num_steps: 1 ≤ N ≤ K.
        sigma_min: entries below are not used.
        sigma_max: entries above are not used.
        table: the levels u_0 > … > u_M ≥ 0; None means `iddpm_table()`, with M = 1000.

    Raises:
        ValueError: a value is out of its range, the table does not decrease, or num_steps exceeds the number of
            entries.
    """

    num_steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 81.0
    table: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self._check_range()
        if self.table is not None:
            checks.decreasing("table", self.table)
        if self.num_steps > len(self._entries()):
            raise ValueError(
                f"num_steps must be at most {len(self._entries())}, the number of table entries in "
                f"[{self.sigma_min:g}, {self.sigma_max:g}], got {self.num_steps}"
            )

    def _entries(self) -> list[float]:
        table = iddpm_table() if self.table is None else self.table
        return [u for u in table if self.sigma_min <= u <= self.sigma_max]

    def sigmas(self) -> Float64[Tensor, "num_steps"]:
        """u[round((K−1)/(N−1) · i)] among the K entries kept; halves round to even."""
        kept = torch.tensor(self._entries(), dtype=torch.float64)
        step = (len(kept) - 1) / max(self.num_steps - 1, 1)
        return kept[(step * torch.arange(self.num_steps, dtype=torch.float64)).round().long()]
