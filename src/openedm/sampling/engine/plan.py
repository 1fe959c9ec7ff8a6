"""Solvers on fixed levels: each plans its numbers before it starts, in float64 on the host.

A new method on fixed levels is a `PlannedSolver`, which makes a `Plan` from a `Grid`; `engine.steps` has what a plan is
made of and executes it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from openedm import schedules
from openedm.denoiser import Condition, Denoiser
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.levels import EDM_SIGMA_DATA, Levels
from openedm.sampling.engine.steps import Combination, Noise, Plan, Stage, State, Step, execute, unscaled
from openedm.sampling.noise import NoiseSource
from openedm.schedules import NoScaling, Scaling, Schedule

__all__ = [
    "Churn",
    "Combination",
    "Grid",
    "Noise",
    "Plan",
    "PlannedSolver",
    "Solver",
    "Stage",
    "State",
    "Step",
    "execute",
    "supported_sigmas",
    "unscaled",
]

Final = Literal["denoise", "euler"]


@dataclass(frozen=True)
class Churn(Choice):
    """EDM's stochastic sampling (Karras et al. 2022, Algorithm 2): noise is added back before each step.

    γ = min(S_churn/N, √2 − 1) for σ in [S_min, S_max], else 0; σ̂ = σ + γ σ. Without churn no noise is drawn.

    Args:
        s_churn: amount of stochasticity over the whole run, ≥ 0; 0 is the deterministic sampler.
        s_min: lowest noise level at which noise is added, ≥ 0.
        s_max: highest noise level at which noise is added.
        s_noise: standard deviation of the added noise, > 0; a little above 1 counteracts the loss of detail.

    Raises:
        ValueError: a value is out of its range, or an option is set that has no effect at `s_churn = 0`.
    """

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        checks.at_least("s_churn", self.s_churn, 0)
        checks.at_least("s_min", self.s_min, 0)
        checks.at_least("s_max", self.s_max, self.s_min)
        checks.positive("s_noise", self.s_noise)
        if self.s_churn == 0 and (self.s_min, self.s_max, self.s_noise) != (0.0, math.inf, 1.0):
            raise ValueError(
                f"s_min={self.s_min}, s_max={self.s_max}, s_noise={self.s_noise} have no effect while s_churn is 0: "
                "set s_churn > 0 or leave them at their defaults"
            )

    def gamma(self, sigma: float, num_steps: int) -> float:
        """γ at noise level `sigma` in a run of `num_steps` steps."""
        inside = self.s_min <= sigma <= self.s_max
        return min(self.s_churn / num_steps, math.sqrt(2) - 1) if inside else 0.0


def _identity(sigma: Tensor) -> Tensor:
    return sigma


@dataclass(frozen=True)
class Grid:
    """The levels of one run and the curve through them.

    Attributes:
        sigmas: σ_0 … σ_{N−1}, rounded to levels that the denoiser supports; decreasing, or increasing for an inversion.
        schedule: σ(t).
        scaling: s(σ).
        churn: the amount of noise that is added at each level.
        final: the step from the lowest level to 0.
        round_sigma: the denoiser's rounding, applied to levels that a solver adds.
        sigma_data: the denoiser's σ_data, for numbers of a solver that follow it.
    """

    sigmas: tuple[float, ...]
    schedule: Schedule = schedules.EDM()
    scaling: Scaling = NoScaling()
    churn: Churn = Churn()
    final: Final = "denoise"
    round_sigma: Callable[[Tensor], Tensor] = field(default=_identity, compare=False)
    sigma_data: float = EDM_SIGMA_DATA

    def rounded(self, sigma: float) -> float:
        """The nearest level that the denoiser supports."""
        return float(self.round_sigma(torch.tensor(sigma, dtype=torch.float64)))

    def scale(self, sigma: float) -> float:
        """s(σ)."""
        return float(self.scaling.scale(sigma))


class Solver(Choice, ABC):
    """A method that solves the sampling equation from the first level of a grid to the last, and then to 0."""

    @property
    @abstractmethod
    def order(self) -> int:
        """The global order of convergence p: error ∝ N^{−p}."""

    @property
    def one_step(self) -> bool:
        """Whether a step depends on the state at its start alone."""
        return False

    @property
    def uses_schedule(self) -> bool:
        """Whether the steps depend on the schedule and the scaling; otherwise these must be left at their defaults."""
        return False

    @property
    def allows_churn(self) -> bool:
        """Whether noise can be added before its steps."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether the solver draws noise itself, without churn."""
        return False

    @property
    def for_consistency(self) -> bool:
        """Whether it is for consistency functions, and only for them."""
        return False

    @property
    def uses_path_noise(self) -> bool:
        """Whether that noise belongs to steps from level to level, so that it can be the increment of a path."""
        return self.stochastic

    @abstractmethod
    def evaluations(self, num_steps: int) -> int | None:
        """The number of evaluations of a run through `num_steps` levels; None if it depends on the sample."""

    def check(self, grid: Grid) -> None:
        """Raise an error, before any evaluation, if the solver does not support a grid.

        Raises:
            ValueError: the grid does not suit the solver.
        """

    def check_denoiser(self, denoiser: Denoiser) -> None:
        """Raise an error unless the denoiser is of the kind that the solver is for.

        Raises:
            ValueError: it is a consistency function and the solver is not for them, or the reverse.
        """
        if denoiser.consistency == self.for_consistency:
            return
        got = type(self).__name__
        if denoiser.consistency:
            raise ValueError(
                "solver must be MultistepConsistency for a consistency function, which gives no direction of an ODE, "
                f"got {got}: sampling.Consistency(nfe=2) chooses levels, too; on the command line, --nfe 2"
            )
        raise ValueError(
            f"solver must be one for denoisers, got {got}, which is for consistency functions: openedm distill makes "
            "one of a trained denoiser"
        )

    @abstractmethod
    def run(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "batch *event"],
        grid: Grid,
        condition: Condition,
        source: NoiseSource | None,
    ) -> Iterator[State]:
        """The states at the levels of the grid, starting from x at the first one, and then the sample."""

    @abstractmethod
    def run_upward(
        self, denoiser: Denoiser, x: Float[Tensor, "batch *event"], grid: Grid, condition: Condition
    ) -> Iterator[State]:
        """The states at the levels of an upward grid, from x at the lowest one; D is not evaluated at the highest."""


class PlannedSolver(Solver):
    """A solver whose numbers do not depend on x, so that all are known before it starts."""

    @property
    def adds_levels(self) -> bool:
        """Whether it evaluates D at levels that are not in the grid, rounded to those that the denoiser supports."""
        return False

    @abstractmethod
    def plan(self, grid: Grid) -> Plan:
        """The steps through the grid.

        Raises:
            ValueError: the grid does not suit the solver.
        """

    def planned(self, grid: Grid) -> Plan:
        """The plan; cached if all levels are those of the grid, which the denoiser has rounded."""
        if grid.churn.s_churn > 0 or self.adds_levels:
            return self.plan(grid)
        return _cached_plan(self, replace(grid, round_sigma=_identity))  # A cached grid would keep its denoiser alive.

    def check(self, grid: Grid) -> None:
        """Make the plan, which raises an error if the solver does not support the grid."""
        self.planned(grid)

    def run(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "batch *event"],
        grid: Grid,
        condition: Condition,
        source: NoiseSource | None,
    ) -> Iterator[State]:
        """Execute the plan."""
        return execute(self.planned(grid).fused, denoiser, x, condition, source)

    def run_upward(
        self, denoiser: Denoiser, x: Float[Tensor, "batch *event"], grid: Grid, condition: Condition
    ) -> Iterator[State]:
        """Execute the plan without its last step, which would start at the highest level."""
        *steps, top = self.planned(grid).steps
        return execute(Plan(tuple(steps), top.time, top.sigma, top.scale), denoiser, x, condition, None)


def supported_sigmas(levels: Levels, sigma_data: float, low: float, high: float) -> tuple[float, ...]:
    """The levels of a rule for data of this σ_data, cut to [`low`, `high`] and checked.

    They are computed once for the same numbers and an equal rule. A rule of one's own is asked anew each time unless it
    is compared by its fields: other rules may be equal, or change, while their levels differ.

    Raises:
        ValueError: the levels are outside the range, or not levels (`Levels.checked_sigmas`).
    """
    find = _cached_sigmas if _is_compared_by_fields(levels) else _find_sigmas
    return find(levels, float(sigma_data), float(low), float(high))


def _is_compared_by_fields(levels: Levels) -> bool:
    """Whether the class itself is a frozen dataclass, whose fields all have a hash."""
    parameters = vars(type(levels)).get("__dataclass_params__")
    try:
        hash(levels)
    except TypeError:
        return False
    return parameters is not None and parameters.frozen and parameters.eq


def _find_sigmas(levels: Levels, sigma_data: float, low: float, high: float) -> tuple[float, ...]:
    return tuple(levels.for_data(sigma_data).within(low, high).checked_sigmas().tolist())


_cached_sigmas = lru_cache(maxsize=64)(_find_sigmas)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _cached_plan(solver: PlannedSolver, grid: Grid) -> Plan:
    return solver.plan(grid)
