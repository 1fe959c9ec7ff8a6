"""Restart sampling: the ODE, and noise all at once instead of in every step (Xu et al. 2023, Algorithm 1).

x ~ N(0, σ_max² I); x = the solver's run from σ_max to σ_low
K times: x = x + √(σ_high² − σ_low²) n; x = the solver's run from σ_high to σ_low
return the solver's run from σ_low to 0
"""

import math
from dataclasses import dataclass, replace

from openedm.ground import checks
from openedm.levels import Karras
from openedm.sampling.engine.plan import Grid, Noise, Plan, PlannedSolver, Step
from openedm.sampling.methods.runge_kutta import Heun

__all__ = ["Restart"]


@dataclass(frozen=True)
class Restart(PlannedSolver):
    """Restart sampling (Xu et al. 2023): a solver of the ODE, and noise all at once instead of in every step.

    Where the levels first fall to `low` or below, noise of variance high² − low² is added and the solver goes down from
    `high` again, on levels of its own, `repeats` times.

    Args:
        solver: any deterministic solver on fixed levels.
        low: σ_low > 0, where noise is added. The level of the grid next below it is taken.
        high: σ_high > low, how far up it leads.
        repeats: K ≥ 1.
        num_steps: steps from σ_high to σ_low, ≥ 1, at Karras's levels.

    Raises:
        ValueError: a value is out of its range, or the solver is stochastic.
    """

    stochastic = True
    adds_levels = True
    uses_path_noise = False

    solver: PlannedSolver = Heun()
    low: float = 0.06
    high: float = 0.3
    repeats: int = 2
    num_steps: int = 3

    def __post_init__(self) -> None:
        checks.positive("low", self.low)
        checks.positive("high", self.high)
        checks.ordered("low", self.low, "high", self.high)
        checks.integer("repeats", self.repeats, 1)
        checks.integer("num_steps", self.num_steps, 1)
        if self.solver.stochastic:
            raise ValueError(f"solver must be deterministic, got {self.solver}")

    @property
    def order(self) -> int:
        """The solver's."""
        return self.solver.order

    @property
    def uses_schedule(self) -> bool:
        """As the solver."""
        return self.solver.uses_schedule

    def evaluations(self, num_steps: int) -> int:
        """The solver's, and those of the repeated segments."""
        per_step = (self.solver.evaluations(3) or 0) - (self.solver.evaluations(2) or 0)
        return (self.solver.evaluations(num_steps) or 0) + self.repeats * self.num_steps * per_step

    def plan(self, grid: Grid) -> Plan:
        """The segments from the start to σ_low, K − 1 times from σ_high to σ_low, and from σ_high to the end.

        Raises:
            ValueError: the levels do not pass both `low` and `high`.
        """
        above = tuple(sigma for sigma in grid.sigmas if sigma > self.low)
        below = grid.sigmas[len(above) :]
        if not above or not below or grid.sigmas[0] < self.high:
            raise ValueError(
                f"low={self.low:g} and high={self.high:g} must lie inside the levels, which go from "
                f"{grid.sigmas[0]:g} to {grid.sigmas[-1]:g}"
            )
        low = below[0]
        again = tuple(grid.rounded(sigma) for sigma in Karras(self.num_steps + 1, low, self.high).sigmas().tolist())
        # D is not evaluated at the end of a segment but the last: noise is added to what has arrived there.
        *start, arrived = self._segment(grid, (*above, low))
        *repeated, _ = self._from(arrived, self._segment(grid, again))
        end = self._from(arrived, self._segment(grid, (*again, *below[1:])))
        return Plan((*start, *repeated * (self.repeats - 1), *end))

    def _segment(self, grid: Grid, sigmas: tuple[float, ...]) -> tuple[Step, ...]:
        return self.solver.planned(replace(grid, sigmas=sigmas)).steps

    def _from(self, arrived: Step, segment: tuple[Step, ...]) -> tuple[Step, ...]:
        """The segment from σ_high, begun by noise at σ_low, where `arrived` is: one step with a very high churn."""
        first, *further = segment
        std = math.sqrt(first.sigma**2 - arrived.sigma**2) * first.scale
        noise = Noise(std, rescale=first.scale / arrived.scale)
        first = replace(first, time=arrived.time, sigma=arrived.sigma, scale=arrived.scale, before=noise)
        return (first, *further)
