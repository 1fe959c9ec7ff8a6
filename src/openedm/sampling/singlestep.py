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

from openedm import checks
from openedm.sampling.exponential import (
    DataPrediction,
    EpsilonPrediction,
    LogSigma,
    Prediction,
    Rule,
    Variable,
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
        """The stages lie at σ^{1−c} σ'^c.

        Raises:
            ValueError: two neighbouring levels are equal (after rounding to what the denoiser knows).
        """
        tableau, variable = self.tableau, LogSigma()
        steps = []
        for i, sigma in enumerate(grid.sigmas):
            if i == len(grid.sigmas) - 1:
                steps.append(Step(i, sigma, sigma, 1.0, (self._stage(sigma, None),), None))
                continue
            end = grid.sigmas[i + 1]
            levels = [sigma, *(float(sigma ** (1 - c) * end**c) for c in tableau.nodes), end]
            points = [
                self._combination(variable, levels[0], target, [levels[j] for j in stencil], stencil, known)
                for known, (target, stencil) in enumerate(zip(levels[1:], tableau.stencils, strict=True), start=1)
            ]
            stages = [self._stage(sigma, None)]
            stages += [self._stage(level, point) for level, point in zip(levels[1:-1], points, strict=False)]
            steps.append(Step(i, sigma, sigma, 1.0, tuple(stages), points[-1], sigma_after=end))
        return Plan(tuple(steps))

    def _stage(self, sigma: float, point: Combination | None) -> Stage:
        of_x, of_denoised = self._coefficients(sigma)
        return Stage(
            sigma,
            torch.tensor(sigma, dtype=torch.float64),
            1.0,
            None if of_x == 0 else of_denoised / of_x,
            point,
        )

    def _coefficients(self, sigma: float) -> tuple[float, float]:
        of_x, of_denoised = self.prediction.coefficients(np.array(sigma))
        return float(of_x), float(of_denoised)

    def _combination(
        self, variable: Variable, start: float, end: float, levels: list[float], stencil: tuple[int, ...], known: int
    ) -> Combination:
        """x at `end`, from the `known` directions so far, newest first."""
        found = step_weights(
            self.prediction, variable, np.array([start]), np.array([end]), np.array([levels]), rule=self.tableau.rule
        )
        weights = [0.0] * known
        for j, level, weight in zip(stencil, levels, found.of_past[0], strict=True):
            of_x, of_denoised = self._coefficients(level)
            weights[known - 1 - j] = float(weight) * (of_x or of_denoised)
        return Combination(float(found.keep[0]), tuple(weights))


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
