"""The base of the rules for noise levels, the rules that are even in the time of a schedule, and explicit levels."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float64
from torch import Tensor

from openedm import schedules
from openedm.ground import checks
from openedm.ground.choices import Choice

__all__ = [
    "EDM_SIGMA_DATA",
    "VE",
    "VP",
    "EvenLevels",
    "Explicit",
    "Karras",
    "Levels",
    "LogLinear",
    "Uniform",
    "numbers_for_data",
    "with_exact_ends",
]

EDM_SIGMA_DATA = 0.5
"""The σ_data of Karras et al. 2022, for which their noise levels and P_mean are."""
MAX_STEPS = 100_000
"""The largest number of steps or evaluations of a run: a hundred times what any sample needs."""
FIELDS = ("num_steps", "sigma_min", "sigma_max")
"""The fields that every rule has."""

C = TypeVar("C", bound=Choice)
AnyLevels = TypeVar("AnyLevels", bound="Levels")


def numbers_for_data(choice: C, sigma_data: float, numbers: Mapping[str, float]) -> C:
    """The choice with `numbers` times σ_data/0.5 for those of its fields that are None; itself if there are none.

    Args:
        choice: any choice with noise levels among its fields.
        sigma_data: standard deviation of the data, > 0.
        numbers: the value of each such field for σ_data = 0.5.

    Raises:
        ValueError: the numbers do not fit those that are given.
    """
    unit = sigma_data / EDM_SIGMA_DATA
    missing = {name: value * unit for name, value in numbers.items() if getattr(choice, name, value) is None}
    return replace(choice, **missing) if missing else choice


class Levels(Choice, ABC):
    """A rule for the noise levels, complete with its number of steps and its range.

    Attributes:
        num_steps: N.
        sigma_min: lowest level, in data units; None means EDM's, in proportion to σ_data.
        sigma_max: highest level; None as for `sigma_min`.
        relative_numbers: the values for σ_data = 0.5 of the fields that may be None.
    """

    relative_numbers: ClassVar[Mapping[str, float]] = {"sigma_min": 0.002, "sigma_max": 80.0}

    num_steps: int
    sigma_min: float | None
    sigma_max: float | None

    @property
    def follows_data(self) -> bool:
        """Whether a number is None, so that it follows σ_data."""
        return any(getattr(self, name, value) is None for name, value in self.relative_numbers.items())

    def for_data(self: "AnyLevels", sigma_data: float) -> "AnyLevels":
        """The same rule with all its numbers: EDM's times σ_data/0.5 where they are None.

        Args:
            sigma_data: standard deviation of the data, > 0, such as that of a denoiser.

        Raises:
            TypeError: a rule of one's own lacks a field.
            ValueError: the range that results is empty, because one end is given and out of the proportion.
        """
        missing = [name for name in FIELDS if not hasattr(self, name)]
        if missing:
            raise TypeError(f"{type(self).__name__} must have the fields {', '.join(FIELDS)}, lacks {missing}")
        return numbers_for_data(self, sigma_data, self.relative_numbers)

    @property
    def ends(self) -> tuple[float, float]:
        """σ_min and σ_max; EDM's for σ_data = 0.5 where they are None.

        Raises:
            ValueError: σ_min is not below σ_max.
        """
        rule = self.for_data(EDM_SIGMA_DATA)
        assert rule.sigma_min is not None
        assert rule.sigma_max is not None
        return rule.sigma_min, rule.sigma_max

    @abstractmethod
    def sigmas(self) -> Float64[Tensor, "num_steps"]:
        """The levels σ_0 = σ_max > … > σ_{N−1}, strictly decreasing; the final 0 is not among them.

        Numbers that are None are EDM's, for σ_data = 0.5.
        """

    def checked_sigmas(self) -> Float64[Tensor, "num_steps"]:
        """The levels, as `sigmas` gives them, which is not checked in a rule of one's own.

        Raises:
            TypeError: they are not numbers.
            ValueError: they are not `num_steps`, finite, > 0 and strictly decreasing, or outside the range of the rule.
        """
        sigmas = schedules.float64(self.sigmas())
        if tuple(sigmas.shape) != (self.num_steps,):
            raise ValueError(f"sigmas must be num_steps levels, got shape {tuple(sigmas.shape)} from {self}")
        first, last = sigmas[0].item(), sigmas[-1].item()
        if not (bool((sigmas.diff() < 0).all()) and last > 0 and math.isfinite(first)):
            try:
                checks.decreasing("sigmas", sigmas.tolist())
                checks.positive("sigmas[-1]", last)
            except ValueError as error:
                raise ValueError(f"{error}, from {self}") from error
        low, high = self.ends
        if first > high * (1 + 1e-6) or last < low * (1 - 1e-6):
            raise ValueError(f"sigmas must be between {low:g} and {high:g}, got {first:g} … {last:g} from {self}")
        return sigmas

    def _check_order(self) -> None:
        """Raise ValueError unless the levels decrease strictly; those that follow σ_data are checked once it is known.

        Levels of a range that is too narrow for their number, or of a schedule that does not reach them, do not.
        """
        if not self.follows_data:
            self.checked_sigmas()

    def within(self, low: float, high: float) -> "Levels":
        """The same rule with its range cut to [`low`, `high`], the noise levels that a denoiser supports.

        Raises:
            ValueError: the rule's range and [`low`, `high`] do not overlap.
        """
        lowest, highest = self.ends
        sigma_min, sigma_max = max(lowest, low), min(highest, high)
        if sigma_min > sigma_max:
            raise ValueError(
                f"levels between {lowest:g} and {highest:g} are outside the denoiser's range [{low:g}, {high:g}]"
            )
        unchanged = (sigma_min, sigma_max) == (lowest, highest)
        return self if unchanged else self._with_range(sigma_min, sigma_max)

    def _with_range(self, sigma_min: float, sigma_max: float) -> "Levels":
        return replace(self, sigma_min=sigma_min, sigma_max=sigma_max)  # type: ignore[call-arg]

    def _check_range(self) -> None:
        checks.integer("num_steps", self.num_steps, 1, MAX_STEPS)
        for name, value in (("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)):
            if value is not None:
                checks.positive(name, value)
        if self.sigma_min is None or self.sigma_max is None:
            return
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
        low, high = self.ends
        if self.num_steps == 1:
            return torch.tensor([high], dtype=torch.float64)
        schedule = self.schedule
        first, last = schedule.time(high), schedule.time(low)
        return with_exact_ends(schedule.sigma(first + self._fractions() * (last - first)), low, high)


def with_exact_ends(sigmas: Float64[Tensor, "n"], low: float, high: float) -> Float64[Tensor, "n"]:
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
        sigma_min: lowest level, > 0, in data units; None means EDM's 0.002 σ_data/0.5.
        sigma_max: highest level; None means EDM's 80 σ_data/0.5.

    Raises:
        ValueError: a value is out of its range, or the levels do not decrease strictly.
    """

    schedule: schedules.Schedule = schedules.EDM()
    num_steps: int = 18
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        self._check_range()
        try:
            self._check_order()
        except ValueError as error:
            raise ValueError(
                f"schedule must reach all levels from {self.sigma_max:g} to {self.sigma_min:g}, got {self.schedule}"
            ) from error


@dataclass(frozen=True)
class Karras(EvenLevels):
    """EDM's levels (eq. 5): uniform in σ^{1/ρ}.

    Args:
        num_steps: N ≥ 1.
        sigma_min: lowest level, > 0, in data units; None means EDM's 0.002 σ_data/0.5.
        sigma_max: highest level; None means EDM's 80 σ_data/0.5.
        rho: ρ > 0; larger values put more levels near σ_min.

    Raises:
        ValueError: a value is out of its range.

    >>> Karras(num_steps=3, sigma_min=0.01, sigma_max=10.0, rho=1.0).sigmas()
    tensor([10.0000,  5.0050,  0.0100], dtype=torch.float64)
    """

    num_steps: int = 18
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 7.0

    def __post_init__(self) -> None:
        self._check_range()
        checks.positive("rho", self.rho)
        self._check_order()

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
        sigma_max: highest level, σ(1) of the same schedule by default; None means EDM's 80 σ_data/0.5.
        epsilon_s: ε_s, the time of σ_min, in (0, 1).

    Raises:
        ValueError: a value is out of its range, or no VP schedule spans it.
    """

    num_steps: int = 18
    sigma_min: float | None = None  # a number once the object is made
    sigma_max: float | None = float(schedules.VP().sigma(1.0))
    epsilon_s: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.epsilon_s < 1:
            raise ValueError(f"epsilon_s must be between 0 and 1, got {self.epsilon_s!r}")
        if self.sigma_min is None:
            object.__setattr__(self, "sigma_min", float(schedules.VP().sigma(self.epsilon_s)))
        self._check_range()
        self._check_order()

    @property
    def schedule(self) -> schedules.Schedule:
        """The VP schedule with σ(ε_s) = σ_min and σ(1) = σ_max."""
        return schedules.VP.fit(*self.ends, self.epsilon_s)


@dataclass(frozen=True)
class LogLinear(EvenLevels):
    """Levels evenly spaced in ln σ.

    Args:
        num_steps: N ≥ 1.
        sigma_min: lowest level, > 0, in data units; None means EDM's 0.002 σ_data/0.5.
        sigma_max: highest level; None means EDM's 80 σ_data/0.5.

    Raises:
        ValueError: a value is out of its range.
    """

    num_steps: int = 18
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        self._check_range()
        self._check_order()

    @property
    def schedule(self) -> schedules.Schedule:
        """σ(t) = e^t."""
        return schedules.LogSigma()


@dataclass(frozen=True)
class VE(LogLinear):
    """Song et al.'s VE levels: σ² in geometric progression, that is `LogLinear` with VE's range.

    Args and errors as for `LogLinear`.
    """

    sigma_min: float | None = 0.02
    sigma_max: float | None = 100.0


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
