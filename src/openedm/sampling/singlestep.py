"""Exponential Runge–Kutta methods: the stages of a step interpolate q (see `exponential`) at earlier stages.

A tableau here is a list of nodes c_i in the step, in units of u, and for every stage after the first, and for the end
of the step, which of the earlier stages its interpolant passes through:

| solver | c | stages | end | rule |
|---|---|---|---|---|
| DPMSolver2S(r), DPMSolverPP2S(r) | r | (0) | (0, 1) | midpoint |
| DPMSolver3S(r₁, r₂), DPMSolverPP3S | r₁, r₂ | (0), (0, 1) | (0, 2) | exact |

Source: Lu et al. 2022a (DPM-Solver, Algorithms 1 and 2), Lu et al. 2022b (DPM-Solver++, Algorithm 1).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64

from openedm.ground import checks
from openedm.sampling.exponential import (
    Array,
    DataPrediction,
    EpsilonPrediction,
    LogSigma,
    Prediction,
    Rule,
    step_weights,
)
from openedm.sampling.grid import Grid
from openedm.sampling.plan import Combination, Plan, Stage, Step
from openedm.sampling.solvers import PlannedSolver


class ExponentialTableau(NamedTuple):
    """An explicit exponential Runge–Kutta method.

    Attributes:
        nodes: c_1, c_2, …: where the further stages lie in the step, 0 < c < 1.
        stencils: for each of these, and last for the end of the step, the stages through which q is interpolated.
        rule: how the integrals are taken.
    """

    nodes: tuple[float, ...]
    stencils: tuple[tuple[int, ...], ...]
    rule: Rule = "exact"


class ExponentialRungeKutta(PlannedSolver):
    """A one-step exponential solver in u = ln σ, given by its tableau and its predicted quantity."""

    prediction: Prediction

    @property
    @abstractmethod
    def tableau(self) -> ExponentialTableau:
        """Its coefficients."""

    @property
    def order(self) -> int:
        """As many as it has stages."""
        return len(self.tableau.stencils)

    def evaluations(self, num_steps: int) -> int:
        """One a stage, and one for the last step."""
        return (num_steps - 1) * len(self.tableau.stencils) + 1

    def plan(self, grid: Grid) -> Plan:
        """The stages lie at σ (σ'/σ)^c.

        Raises:
            ValueError: two neighbouring levels are equal (after rounding to what the denoiser knows).
        """
        sigmas, nodes = np.array(grid.sigmas), self.tableau.nodes
        start, end = sigmas[:-1], sigmas[1:]
        levels = np.stack([start, *(start * (end / start) ** c for c in nodes), end], axis=1)
        points = self._points(levels)
        steps = []
        for i, sigma in enumerate(grid.sigmas[:-1]):
            stages = [self._stage(sigma)]
            stages += [self._stage(level, point) for level, point in zip(levels[i, 1:-1], points[i], strict=False)]
            steps.append(Step(i, sigma, sigma, 1.0, tuple(stages), points[i][-1], sigma_after=grid.sigmas[i + 1]))
        last = grid.sigmas[-1]
        return Plan((*steps, Step(len(steps), last, last, 1.0, (self._stage(last),), None)))

    def _stage(self, sigma: float, point: Combination | None = None) -> Stage:
        (of_x,), (of_denoised,) = self.prediction.coefficients(np.array([sigma]))
        record = None if of_x == 0 else float(of_denoised / of_x)
        return Stage(float(sigma), torch.tensor(sigma, dtype=torch.float64), 1.0, record, point)

    def _points(self, levels: Float64[Array, "steps points"]) -> list[list[Combination]]:
        """For every step: x at the second stage, at the third, …, and at the end, of the directions known by then."""
        of_x, of_denoised = self.prediction.coefficients(levels)
        units = np.where(of_x != 0, of_x, of_denoised)
        points: list[list[Combination]] = [[] for _ in levels]
        for known, stencil in enumerate(self.tableau.stencils, start=1):
            used = list(stencil)
            found = step_weights(
                self.prediction, LogSigma(), levels[:, 0], levels[:, known], levels[:, used], rule=self.tableau.rule
            )
            newest_first = np.zeros((len(levels), known))
            newest_first[:, [known - 1 - j for j in used]] = found.of_past * units[:, used]
            for row, keep, weights in zip(points, found.keep.tolist(), newest_first.tolist(), strict=True):
                row.append(Combination(keep, tuple(weights)))
        return points


@dataclass(frozen=True)
class DPMSolver2S(ExponentialRungeKutta):
    """DPM-Solver-2 (Lu et al. 2022a, Algorithm 1) on ε: order 2, two evaluations a step.

    Args:
        r: where the second stage lies, 0 < r < 1; ½ is the exponential midpoint method.
        prediction: the quantity that is interpolated.

    Raises:
        ValueError: r is out of its range.
    """

    r: float = 0.5
    prediction: Prediction = EpsilonPrediction()

    def __post_init__(self) -> None:
        _check_inside("r", self.r, 0, 1)

    @property
    def tableau(self) -> ExponentialTableau:
        """c = (r); the end passes through both stages, by the midpoint rule."""
        return ExponentialTableau((self.r,), ((0,), (0, 1)), "midpoint")


@dataclass(frozen=True)
class DPMSolverPP2S(DPMSolver2S):
    """DPM-Solver++(2S) (Lu et al. 2022b, Algorithm 1): the same on D."""

    prediction: Prediction = DataPrediction()


@dataclass(frozen=True)
class DPMSolver3S(ExponentialRungeKutta):
    """DPM-Solver-3 (Lu et al. 2022a, Algorithm 2) on ε: order 3, three evaluations a step.

    Args:
        r1: where the second stage lies.
        r2: where the third stage lies, 0 < r1 < r2 < 1. The order is 3 for r2 = ⅔.
        prediction: the quantity that is interpolated.

    Raises:
        ValueError: a node is out of its range.
    """

    r1: float = 1 / 3
    r2: float = 2 / 3
    prediction: Prediction = EpsilonPrediction()

    def __post_init__(self) -> None:
        _check_inside("r1", self.r1, 0, 1)
        _check_inside("r2", self.r2, self.r1, 1)

    @property
    def tableau(self) -> ExponentialTableau:
        """c = (r1, r2); the third stage passes through the first two, the end through the first and the third."""
        return ExponentialTableau((self.r1, self.r2), ((0,), (0, 1), (0, 2)))

    @property
    def order(self) -> int:
        """3 where r2 = ⅔, else 2."""
        return 3 if abs(self.r2 - 2 / 3) < 1e-12 else 2


@dataclass(frozen=True)
class DPMSolverPP3S(DPMSolver3S):
    """DPM-Solver++ with three stages a step: the same on D."""

    prediction: Prediction = DataPrediction()


def _check_inside(name: str, value: float, low: float, high: float) -> None:
    checks.finite(name, value)
    if not low < value < high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}, both excluded, got {value!r}")
