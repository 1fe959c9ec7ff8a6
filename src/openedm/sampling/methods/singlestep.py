"""Exponential Runge–Kutta methods: the stages of a step interpolate q (see `engine.quadrature`) at earlier stages.

A tableau here is a list of nodes c_i in the step, in units of u = ln σ, and for every stage after the first, and for
the end of the step, the earlier stages that its interpolant passes through:

| solver | c | stages | end | rule |
|---|---|---|---|---|
| DPMSolver2S(r), DPMSolverPP2S(r) | r | (0) | (0, 1) | midpoint |
| DPMSolver3S(r₁, r₂), DPMSolverPP3S | r₁, r₂ | (0), (0, 1) | (0, 2) | exact |

The published updates below have h = ln(σ_i/σ_{i+1}), s = σ_i e^{−rh} and ε(x; σ) = (x − D(x; σ))/σ; here α = 1.

Source: Lu et al. 2022a (DPM-Solver, Algorithms 1 and 2), Lu et al. 2022b (DPM-Solver++, Algorithm 1).
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from openedm.ground import checks
from openedm.preconditioning import DataPrediction, EpsilonPrediction, Prediction
from openedm.sampling.engine.plan import Combination, Grid, Plan, PlannedSolver, Step
from openedm.sampling.engine.quadrature import RuleName, stages_at, step_weights, unit_of
from openedm.schedules import LogSigma

__all__ = [
    "DPMSolver2S",
    "DPMSolver3S",
    "DPMSolverPP2S",
    "DPMSolverPP3S",
    "ExponentialRungeKutta",
    "ExponentialTableau",
]


class ExponentialTableau(NamedTuple):
    """An explicit exponential Runge–Kutta method.

    Attributes:
        nodes: c_1, c_2, …: the nodes of the further stages, relative to the step, 0 < c < 1.
        stencils: for each of these, and finally for the end of the step, the stages through which q is interpolated.
        rule: the rule for the integrals.
    """

    nodes: tuple[float, ...]
    stencils: tuple[tuple[int, ...], ...]
    rule: RuleName = "exact"


class ExponentialRungeKutta(PlannedSolver):
    """A one-step exponential solver in u = ln σ, defined by its tableau and its predicted quantity."""

    prediction: Prediction
    one_step = True

    @property
    @abstractmethod
    def tableau(self) -> ExponentialTableau:
        """The coefficients."""

    def evaluations(self, num_steps: int) -> int:
        """One evaluation a stage, and one for the last step."""
        return (num_steps - 1) * len(self.tableau.stencils) + 1

    def plan(self, grid: Grid) -> Plan:
        """Steps between the levels, with stages at σ (σ'/σ)^c.

        Raises:
            ValueError: two neighbouring levels are equal (after rounding to those that the denoiser supports).
        """
        sigmas = torch.tensor(grid.sigmas, dtype=torch.float64)
        start, end = sigmas[:-1], sigmas[1:]
        levels = torch.stack([start, *(start * (end / start) ** c for c in self.tableau.nodes), end], 1)
        *stages, last = stages_at(self.prediction, torch.cat([levels[:, :-1].flatten(), sigmas[-1:]]))
        steps, count = [], len(self.tableau.stencils)
        for i, (*points, advance) in enumerate(self._points(levels)):
            sigma, (first, *further) = grid.sigmas[i], stages[count * i : count * (i + 1)]
            later_stages = (replace(stage, point=point) for stage, point in zip(further, points, strict=True))
            steps.append(Step(sigma, sigma, 1.0, (first, *later_stages), advance))
        return Plan((*steps, Step(grid.sigmas[-1], grid.sigmas[-1], 1.0, (last,), None)))

    def _points(self, levels: Float64[Tensor, "steps points"]) -> list[list[Combination]]:
        """For every step: x at the second stage, the third, …, and the end, as combinations of earlier directions."""
        units = unit_of(self.prediction, levels)
        points: list[list[Combination]] = [[] for _ in levels]
        for known, stencil in enumerate(self.tableau.stencils, start=1):
            nodes = list(stencil)
            ends = levels[:, 0], levels[:, known]
            step = step_weights(self.prediction, LogSigma(), *ends, levels[:, nodes], rule=self.tableau.rule)
            of_stages = torch.zeros(len(levels), known, dtype=torch.float64)
            of_stages[:, nodes] = step.of_past * units[:, nodes]
            newest_first = of_stages.flip(1).tolist()
            for row, keep, weights in zip(points, step.keep.tolist(), newest_first, strict=True):
                row.append(Combination(keep, tuple(weights)))
        return points


@dataclass(frozen=True)
class DPMSolver2S(ExponentialRungeKutta):
    """DPM-Solver-2 (Lu et al. 2022a, Algorithm 1) on ε: order 2, two evaluations a step.

    u = x_i − s (e^{rh} − 1) ε(x_i; σ_i),
    x_{i+1} = x_i − σ_{i+1} (e^h − 1) ε(x_i; σ_i) − σ_{i+1} (e^h − 1)/(2r) (ε(u; s) − ε(x_i; σ_i)).

    Args:
        r: the node of the second stage, 0 < r < 1; ½ is the exponential midpoint method.
        prediction: the quantity that is interpolated.

    Raises:
        ValueError: r is out of its range.
    """

    order = 2
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
    """DPM-Solver++(2S) (Lu et al. 2022b, Algorithm 1): `DPMSolver2S` on D.

    u = s/σ_i x_i − (e^{−rh} − 1) D(x_i; σ_i),
    x_{i+1} = σ_{i+1}/σ_i x_i − (e^{−h} − 1) ((1 − 1/(2r)) D(x_i; σ_i) + 1/(2r) D(u; s)).
    """

    prediction: Prediction = DataPrediction()


@dataclass(frozen=True)
class DPMSolver3S(ExponentialRungeKutta):
    """DPM-Solver-3 (Lu et al. 2022a, Algorithm 2) on ε: order 3, three evaluations a step.

    With s_k = σ_i e^{−r_k h}, ε_i = ε(x_i; σ_i), d_1 = ε(u_1; s_1) − ε_i, d_2 = ε(u_2; s_2) − ε_i:
    u_1 = x_i − s_1 (e^{r_1 h} − 1) ε_i,
    u_2 = x_i − s_2 (e^{r_2 h} − 1) ε_i − s_2 r_2/r_1 ((e^{r_2 h} − 1)/(r_2 h) − 1) d_1,
    x_{i+1} = x_i − σ_{i+1} (e^h − 1) ε_i − σ_{i+1}/r_2 ((e^h − 1)/h − 1) d_2.

    Args:
        r1: the node of the second stage.
        r2: the node of the third stage, 0 < r1 < r2 < 1. The order is 3 for r2 = ⅔.
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
        """3 if r2 = ⅔, otherwise 2."""
        return 3 if abs(self.r2 - 2 / 3) < 1e-12 else 2


@dataclass(frozen=True)
class DPMSolverPP3S(DPMSolver3S):
    """DPM-Solver++ with three stages a step: `DPMSolver3S` on D.

    With d_1 = D(u_1; s_1) − D_i, d_2 = D(u_2; s_2) − D_i:
    u_1 = s_1/σ_i x_i − (e^{−r_1 h} − 1) D_i,
    u_2 = s_2/σ_i x_i − (e^{−r_2 h} − 1) D_i + r_2/r_1 ((e^{−r_2 h} − 1)/(r_2 h) + 1) d_1,
    x_{i+1} = σ_{i+1}/σ_i x_i − (e^{−h} − 1) D_i + ((e^{−h} − 1)/h + 1)/r_2 d_2.
    """

    prediction: Prediction = DataPrediction()


def _check_inside(name: str, value: float, low: float, high: float) -> None:
    checks.finite(name, value)
    if not low < value < high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}, both excluded, got {value!r}")
