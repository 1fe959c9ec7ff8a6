"""What a solver is, and one-step solvers as Butcher tableaux.

A step of size h from (t, x): k_i = dx/dt(x + h Σ_{j<i} a_ij k_j, t + c_i h), x_next = x + h Σ_i b_i k_i, with
c_i = Σ_j a_ij and dx/dt = (σ̇/σ + ṡ/s) x − (σ̇ s/σ) D(x/s; σ)  (Karras et al. 2022, eq. 81).

| solver | order | a | b |
|---|---|---|---|
| Euler | 1 | | 1 |
| Alpha(α) (Karras et al. 2022, Algorithm 3) | 2 | α | 1 − 1/(2α), 1/(2α) |
| Heun, Midpoint, Ralston | 2 | α = 1, ½, ⅔ | |
| RK4 | 4 | ½; 0 ½; 0 0 1 | ⅙ ⅓ ⅓ ⅙ |
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.sampling.grid import Grid
from openedm.sampling.noise import NoiseSource
from openedm.sampling.plan import Combination, Plan, Stage, State, Step, execute


class Tableau(NamedTuple):
    """An explicit Runge–Kutta method.

    Attributes:
        a: row i holds a_i0 … a_i,i−1; the first row is empty.
        b: the weights of the slopes; they sum to 1.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    @property
    def c(self) -> tuple[float, ...]:
        """The nodes c_i = Σ_j a_ij."""
        return tuple(sum(row) for row in self.a)


class Solver(Choice, ABC):
    """Follows the sampling equation from the first level of a grid to the last, and on to 0."""

    @property
    @abstractmethod
    def order(self) -> int:
        """The global order of convergence p: error ∝ N^{−p}."""

    @property
    def curved(self) -> bool:
        """Whether the schedule and the scaling change what it does; else they must be left at their defaults."""
        return False

    @property
    def churns(self) -> bool:
        """Whether it can have noise added before its steps."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise of its own."""
        return False

    @property
    def follows_paths(self) -> bool:
        """Whether noise of its own belongs to steps from level to level, so that it can be taken from a path."""
        return self.stochastic

    @abstractmethod
    def evaluations(self, num_steps: int) -> int | None:
        """The number of evaluations of a run through `num_steps` levels; None where it depends on the sample."""

    def prepare(self, grid: Grid) -> None:
        """Refuse, before any evaluation, a grid that it cannot follow.

        Raises:
            ValueError: the grid does not suit.
        """

    @abstractmethod
    def run(
        self, denoiser: Denoiser, x: Tensor, grid: Grid, condition: Condition, source: NoiseSource | None
    ) -> Iterator[State]:
        """The states at the levels of the grid, from x at the first one, and then the sample."""

    @abstractmethod
    def climb(self, denoiser: Denoiser, x: Tensor, grid: Grid, condition: Condition) -> Iterator[State]:
        """The states at the levels of an upward grid, from x at the lowest one; D is not evaluated at the highest."""


class PlannedSolver(Solver):
    """A solver all of whose numbers are known before it starts."""

    @property
    def adds_levels(self) -> bool:
        """Whether it visits levels of its own, rounded to what the denoiser knows."""
        return False

    @abstractmethod
    def plan(self, grid: Grid) -> Plan:
        """The steps through the grid.

        Raises:
            ValueError: the grid does not suit the solver.
        """

    def prepare(self, grid: Grid) -> None:
        """Plan, which refuses what cannot be followed."""
        planned(self, grid)

    def run(
        self, denoiser: Denoiser, x: Tensor, grid: Grid, condition: Condition, source: NoiseSource | None
    ) -> Iterator[State]:
        """Carry out the plan."""
        return execute(planned(self, grid), denoiser, x, condition, source)

    def climb(self, denoiser: Denoiser, x: Tensor, grid: Grid, condition: Condition) -> Iterator[State]:
        """Carry out the plan, without the last step, which would leave the highest level."""
        steps = planned(self, grid).steps
        for state in execute(Plan(steps[:-1]), denoiser, x, condition, None):
            top = steps[state.index]
            yield replace(state, time=top.time, sigma=top.sigma, scale=top.scale)


def planned(solver: PlannedSolver, grid: Grid) -> Plan:
    """The solver's plan; remembered where all levels are the grid's own, which the denoiser has rounded already."""
    if grid.churn.s_churn > 0 or solver.adds_levels:
        return solver.plan(grid)
    return _remembered(solver, replace(grid, round_sigma=Grid.round_sigma))  # The grid's would keep a denoiser alive.


@lru_cache(maxsize=64)
def _remembered(solver: PlannedSolver, grid: Grid) -> Plan:
    return solver.plan(grid)


class RungeKutta(PlannedSolver):
    """A one-step solver in the time t of the schedule, given by its tableau."""

    @property
    @abstractmethod
    def tableau(self) -> Tableau:
        """Its coefficients."""

    @property
    def curved(self) -> bool:
        """It steps in t and on x(t) = s(t) (y + σ(t) n)."""
        return True

    @property
    def churns(self) -> bool:
        """Steps do not know of one another."""
        return True

    def evaluations(self, num_steps: int) -> int:
        """One a stage, and one for the last step."""
        return (num_steps - 1) * len(self.tableau.b) + 1

    def plan(self, grid: Grid) -> Plan:
        """Steps between the times of the levels (Karras et al. 2022, Algorithms 2 and 3).

        Raises:
            ValueError: a stage falls where the schedule has no finite σ > 0, for example below t = 0, or where it
                stands still because σ is clipped.
        """
        times = [*grid.schedule.time(torch.tensor(grid.sigmas, dtype=torch.float64)).tolist(), 0.0]
        return Plan(tuple(self._step(grid, i, times[i], times[i + 1]) for i in range(len(grid.sigmas))))

    def _step(self, grid: Grid, i: int, time: float, time_next: float) -> Step:
        sigma = sigma_hat = grid.sigmas[i]
        time_hat, scale = time, grid.scale(sigma)
        gamma = grid.churn.gamma(sigma, len(grid.sigmas))
        if gamma > 0:
            sigma_hat = grid.rounded(sigma + gamma * sigma)
            time_hat = float(grid.schedule.time(sigma_hat))
        is_final = i == len(grid.sigmas) - 1
        tableau = Euler().tableau if is_final else self.tableau
        h = time_next - time_hat
        slopes = [_slope(grid, i, time_hat + c * h, sigma_hat if c == 0 else None) for c in tableau.c]
        stages = tuple(
            Stage(s.time, torch.tensor(s.sigma, dtype=torch.float64), s.scale, s.of_denoised, _moved(h, row, slopes))
            for s, row in zip(slopes, tableau.a, strict=True)
        )
        return Step(
            index=i,
            time=time,
            sigma=sigma,
            scale=scale,
            stages=stages,
            advance=None if is_final and grid.final == "denoise" else _moved(h, tableau.b, slopes),
            rescale=slopes[0].scale / scale,
            noise_std=math.sqrt(max(sigma_hat**2 - sigma**2, 0.0)) * slopes[0].scale * grid.churn.s_noise,
            churned=gamma > 0,
            sigma_after=0.0 if is_final else grid.sigmas[i + 1],
        )


class _Slope(NamedTuple):
    """dx/dt = `weight` · (x + `of_denoised` · D), or `weight` · D where `of_denoised` is None."""

    time: float
    sigma: float
    scale: float
    weight: float
    of_denoised: float | None


def _slope(grid: Grid, index: int, time: float, sigma: float | None) -> _Slope:
    """The ODE's coefficients at `time`; `sigma` is given where it is known exactly."""
    level = float(grid.schedule.sigma(time)) if sigma is None else sigma
    speed = float(grid.schedule.sigma_derivative(time))
    if not (time > 0 and level > 0 and math.isfinite(level) and speed > 0 and math.isfinite(speed)):
        raise ValueError(
            f"the solver would evaluate step {index} at t = {time:.6g}, where {grid.schedule} has sigma = {level:.6g} "
            f"and derivative {speed:.6g}: a stage must stay inside the schedule's domain. Use alpha <= 1, more steps, "
            "or levels that the schedule reaches"
        )
    scale = grid.scale(level)
    stretch = float(grid.scaling.derivative(level)) * speed / scale
    of_x, of_denoised = speed / level + stretch, -speed * scale / level
    if of_x == 0:
        return _Slope(time, level, scale, of_denoised, None)
    return _Slope(time, level, scale, of_x, of_denoised / of_x)


def _moved(h: float, weights: tuple[float, ...], slopes: list[_Slope]) -> Combination | None:
    """x + h Σ_j weights_j k_j, the directions in the order in which they are remembered; None for x itself."""
    if not weights:
        return None
    return Combination(1.0, tuple(h * w * s.weight for w, s in reversed(list(zip(weights, slopes, strict=False)))))


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Euler's method: order 1, one evaluation a step. With σ(t) = t it is DDIM."""

    @property
    def tableau(self) -> Tableau:
        """b = (1)."""
        return Tableau(((),), (1.0,))

    @property
    def order(self) -> int:
        """1."""
        return 1


@dataclass(frozen=True)
class Alpha(RungeKutta):
    """The family of two-stage methods of order 2 (Karras et al. 2022, Algorithm 3).

    Args:
        alpha: where the second slope is taken, as a fraction of the step; > 0. 1 is Heun, ½ midpoint, ⅔ Ralston. Values
            above 1 look beyond the step's end; a step that would end below t = 0 is refused when sampling starts.

    Raises:
        ValueError: alpha is not > 0.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("alpha", self.alpha)

    @property
    def tableau(self) -> Tableau:
        """a = (α), b = (1 − 1/(2α), 1/(2α))."""
        return Tableau(((), (self.alpha,)), (1 - 1 / (2 * self.alpha), 1 / (2 * self.alpha)))

    @property
    def order(self) -> int:
        """2."""
        return 2


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method (Karras et al. 2022, Algorithm 1): order 2, two evaluations a step."""

    @property
    def tableau(self) -> Tableau:
        """`Alpha(1)`."""
        return Alpha(1.0).tableau

    @property
    def order(self) -> int:
        """2."""
        return 2


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The midpoint method: order 2, two evaluations a step."""

    @property
    def tableau(self) -> Tableau:
        """`Alpha(1/2)`."""
        return Alpha(0.5).tableau

    @property
    def order(self) -> int:
        """2."""
        return 2


@dataclass(frozen=True)
class Ralston(RungeKutta):
    """Ralston's method: order 2 with the smallest error bound, two evaluations a step."""

    @property
    def tableau(self) -> Tableau:
        """`Alpha(2/3)`."""
        return Alpha(2 / 3).tableau

    @property
    def order(self) -> int:
        """2."""
        return 2


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical Runge–Kutta method: order 4, four evaluations a step."""

    @property
    def tableau(self) -> Tableau:
        """The 1901 coefficients."""
        return Tableau(((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))

    @property
    def order(self) -> int:
        """4."""
        return 4
