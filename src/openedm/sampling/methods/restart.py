"""Restart sampling: the ODE, with noise at one level instead of in every step (Xu et al. 2023, Algorithm 1).

x ~ N(0, σ_max² I); x = the solver's run from σ_max to σ_low
K times: x = x + √(σ_high² − σ_low²) n; x = the solver's run from σ_high to σ_low
return the solver's run from σ_low to 0
"""

import math
from dataclasses import dataclass, replace

from openedm.ground import checks
from openedm.levels import Karras, numbers_for_data
from openedm.sampling.engine.plan import Grid, Noise, Plan, PlannedSolver, Step
from openedm.sampling.methods.runge_kutta import Heun

__all__ = ["Restart"]


@dataclass(frozen=True)
class Restart(PlannedSolver):
    """Restart sampling (Xu et al. 2023): a solver of the ODE, with noise at one level instead of in every step.

    At the first level ≤ `low`, noise of variance high² − low² is added and the solver runs from `high` again, on
    separate levels, `repeats` times.

    Args:
        solver: any deterministic solver on fixed levels.
        low: σ_low > 0, the level at which noise is added; the first level of the grid at or below it is used. None
            means 0.06 for σ_data = 0.5, in proportion to σ_data.
        high: σ_high > low, the level after noise is added; None means 0.3, in the same proportion.
        repeats: K ≥ 1, the number of restarts.
        num_steps: number of steps from σ_high to σ_low, ≥ 1, at Karras's levels.

    Raises:
        ValueError: a value is out of its range, or the solver is stochastic.
    """

    stochastic = True
    adds_levels = True
    uses_path_noise = False

    solver: PlannedSolver = Heun()
    low: float | None = None
    high: float | None = None
    repeats: int = 2
    num_steps: int = 3

    def __post_init__(self) -> None:
        for name, value in (("low", self.low), ("high", self.high)):
            if value is not None:
                checks.positive(name, value)
        if self.low is not None and self.high is not None:
            checks.ordered("low", self.low, "high", self.high)
        checks.integer("repeats", self.repeats, 1)
        checks.integer("num_steps", self.num_steps, 1)
        if self.solver.stochastic:
            raise ValueError(f"solver must be deterministic, got {self.solver}")

    @property
    def order(self) -> int:
        """The order of the solver."""
        return self.solver.order

    @property
    def uses_schedule(self) -> bool:
        """Whether the solver uses the schedule."""
        return self.solver.uses_schedule

    def evaluations(self, num_steps: int) -> int:
        """The evaluations of the solver and of the repeated segments."""
        per_step = (self.solver.evaluations(3) or 0) - (self.solver.evaluations(2) or 0)
        return (self.solver.evaluations(num_steps) or 0) + self.repeats * self.num_steps * per_step

    def plan(self, grid: Grid) -> Plan:
        """The segments from the start to σ_low, K − 1 times from σ_high to σ_low, and from σ_high to the end.

        Raises:
            ValueError: the levels do not pass both `low` and `high`.
        """
        bounds = numbers_for_data(self, grid.sigma_data, {"low": 0.06, "high": 0.3})
        assert bounds.low is not None
        assert bounds.high is not None
        above = tuple(sigma for sigma in grid.sigmas if sigma > bounds.low)
        below = grid.sigmas[len(above) :]
        if not above or not below or grid.sigmas[0] < bounds.high:
            raise ValueError(
                f"low={bounds.low:g} and high={bounds.high:g} must be inside the levels, which go from "
                f"{grid.sigmas[0]:g} to {grid.sigmas[-1]:g}"
            )
        low = below[0]
        restart_levels = tuple(
            grid.rounded(sigma) for sigma in Karras(self.num_steps + 1, low, bounds.high).sigmas().tolist()
        )
        # D is not evaluated at the end of a segment, except the last: noise is added to the state.
        *start, last = self._segment(grid, (*above, low))
        *repeated, _ = self._with_noise(last, self._segment(grid, restart_levels))
        end = self._with_noise(last, self._segment(grid, (*restart_levels, *below[1:])))
        return Plan((*start, *repeated * (self.repeats - 1), *end))

    def _segment(self, grid: Grid, sigmas: tuple[float, ...]) -> tuple[Step, ...]:
        return self.solver.planned(replace(grid, sigmas=sigmas)).steps

    def _with_noise(self, last: Step, segment: tuple[Step, ...]) -> tuple[Step, ...]:
        """The segment from σ_high, with noise added at the step `last` at σ_low: one step with a very high churn."""
        first, *further = segment
        std = math.sqrt(first.sigma**2 - last.sigma**2) * first.scale
        noise = Noise(std, rescale=first.scale / last.scale)
        first = replace(first, time=last.time, sigma=last.sigma, scale=last.scale, before=noise)
        return (first, *further)
