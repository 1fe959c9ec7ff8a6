"""Solvers whose weights are learned for one denoiser: every number of a run with N evaluations is free.

Any deterministic solver on fixed levels is linear in what it evaluates. With n the unit noise of a sample, its
evaluations D_i and its result are

    D_i = D(p_i; σ_i),   p_i = a_i σ_max n + Σ_{j<i} b_ij D_j,   x = Σ_j c_j D_j,   i = 0 … N − 1,

and a method is a rule for a, b and c. Here they are numbers that `fit_solver` found together with the levels σ_i for
the smallest distance to the converged solution. Solvers learned in this way are those of S4S (Frankel et al. 2025,
arXiv 2502.17423, coefficients and levels together) and DyWeight (arXiv 2603.11607, weights of all past evaluations that
need not sum to one); both descend along gradients through the network, which is not needed here.

The noise level σ_i at which D is evaluated need not be the a_i σ_max of the noise in p_i, as in S4S.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.ground import checks
from openedm.levels import Explicit
from openedm.sampling.engine.plan import Combination, Grid, Plan, PlannedSolver, Stage, State, Step
from openedm.sampling.engine.steps import Run

__all__ = ["LearnedSolver"]

MIN_EVALUATIONS = 2
SAME = 1e-6
"""The largest relative difference between levels that are the same up to rounding."""


@dataclass(frozen=True)
class LearnedSolver(PlannedSolver):
    """A solver of N evaluations whose levels and weights were learned for one denoiser (`fit_solver`).

    It runs on its own levels alone: `LearnedSolver.levels` are those of the `Sampler`. A denoiser of another σ_data is
    refused; whether it is the one that the solver was learned for is checked by `load_solver`.

    Args:
        sigma_max: the level of the start, in units of the denoiser's scale; the start is `sigma_max` times unit noise.
        sigmas: σ_0 … σ_{N−1}, strictly decreasing, at most `sigma_max`, N ≥ 2.
        of_noise: a_0 … a_{N−1}, none of them 0, a_0 > 0.
        of_denoised: b, row i with i numbers; and then c, N numbers that give the sample.
        sigma_data: σ_data of the denoiser.

    Raises:
        ValueError: a value is out of its range, or there are more or fewer than N.
    """

    sigma_max: float
    sigmas: tuple[float, ...]
    of_noise: tuple[float, ...]
    of_denoised: tuple[tuple[float, ...], ...]
    sigma_data: float

    def __post_init__(self) -> None:
        count = len(self.sigmas)
        checks.at_least("the number of sigmas", count, MIN_EVALUATIONS)
        checks.positive("sigma_data", self.sigma_data)
        for i, value in enumerate(self.sigmas):
            checks.positive(f"sigmas[{i}]", value)
        checks.decreasing("sigmas", self.sigmas)
        checks.at_least("sigma_max", self.sigma_max, self.sigmas[0])
        checks.finite("sigma_max", self.sigma_max)
        if len(self.of_noise) != count:
            raise ValueError(f"of_noise must hold one number an evaluation ({count}), got {len(self.of_noise)}")
        checks.positive("of_noise[0]", self.of_noise[0])
        for i, value in enumerate(self.of_noise):
            if value == 0 or not math.isfinite(value):
                raise ValueError(f"of_noise[{i}] must be finite and not 0, got {value!r}")
        lengths = [len(row) for row in self.of_denoised]
        if lengths != list(range(count + 1)):
            raise ValueError(f"of_denoised must have rows of 0, 1, … {count} numbers, got rows of {lengths}")
        for i, row in enumerate(self.of_denoised):
            for j, value in enumerate(row):
                checks.finite(f"of_denoised[{i}][{j}]", value)

    @property
    def levels(self) -> Explicit:
        """The levels of its sampler: σ_max, where a run starts, and then σ_1 … σ_{N−1}."""
        return Explicit((self.sigma_max, *self.sigmas[1:]))

    @property
    def order(self) -> int:
        """1: it is not a method for any number of evaluations, and converges to nothing."""
        return 1

    def evaluations(self, num_steps: int) -> int:
        """One evaluation a level."""
        return num_steps

    def plan(self, grid: Grid) -> Plan:
        """Every number of the run.

        Raises:
            ValueError: the grid has another number of levels, other levels, or a denoiser of another σ_data.
        """
        self._check_grid(grid)
        steps = []
        for i, sigma in enumerate(self.sigmas):
            # D sees the state divided by `scale`, and the first state has the noise of σ_max.
            scale = 1.0 if i else 1 / self.of_noise[0]
            stages = (Stage(torch.tensor(sigma, dtype=torch.float64), scale, None),)
            steps.append(Step(sigma, sigma, scale, stages, self._advance(i), remember=i + 1))
        return Plan(tuple(steps))

    def _advance(self, i: int) -> Combination:
        """p_{i+1} from p_i and D_0 … D_i, or the sample."""
        *_, result = self.of_denoised
        if i + 1 == len(self.sigmas):
            return Combination(0.0, result[::-1])
        keep = self.of_noise[i + 1] / (self.of_noise[i] if i else 1.0)
        before = (*self.of_denoised[i], 0.0)
        weights = [new - keep * old for new, old in zip(self.of_denoised[i + 1], before, strict=True)]
        return Combination(keep, tuple(weights[::-1]))

    def _check_grid(self, grid: Grid) -> None:
        own, given = self.levels.values, grid.sigmas
        if len(own) != len(given):
            raise ValueError(
                f"levels must be the {len(own)} that LearnedSolver was learned for, got {len(given)}: a learned solver "
                "has one number of evaluations; learn another with fit_solver, or on the command line --levels learned"
            )
        if any(not math.isclose(a, b, rel_tol=SAME) for a, b in zip(own, given, strict=True)):
            raise ValueError(
                f"levels must be those that LearnedSolver was learned for, from {own[0]:g} to {own[-1]:g} "
                f"(LearnedSolver.levels), got {len(given)} from {given[0]:g} to {given[-1]:g}"
            )
        if not math.isclose(grid.sigma_data, self.sigma_data, rel_tol=SAME):
            raise ValueError(
                f"denoiser must have the sigma_data that LearnedSolver was learned for, {self.sigma_data:g}, got "
                f"{grid.sigma_data:g}: it is another denoiser; learn a solver for it with fit_solver"
            )

    def run_upward(
        self, denoiser: Denoiser, x: Float[Tensor, "batch *event"], grid: Grid, condition: Condition
    ) -> Iterator[State]:
        """Not supported: the weights were learned for the way down.

        Raises:
            ValueError: always.
        """
        raise ValueError("solver must not be a LearnedSolver for an inversion: its weights were learned for sampling")

    @classmethod
    def of_plan(cls, plan: Plan, sigma_max: float, sigma_data: float) -> "LearnedSolver":
        """The numbers of a plan without noise whose evaluations have decreasing levels.

        Args:
            plan: a plan from x = `sigma_max` n.
            sigma_max: its highest level.
            sigma_data: σ_data of the denoiser.

        Raises:
            ValueError: a level is evaluated twice, or the plan adds noise.
        """
        if any(step.before or step.after for step in plan.steps):
            raise ValueError("plan must not add noise")
        count = sum(len(step.stages) for step in plan.steps)
        # The coefficients of σ_max n and of D_0 … D_{N−1} are carried through the plan instead of a state.
        unit = torch.eye(count + 1, dtype=torch.float64)
        run, sigmas, points = Run(plan, unit[:1], None), [], []
        while not run.finished:
            sigmas.append(float(run.stage.sigma))
            points.append((run.point[0] / run.stage.scale).tolist())
            run.advance(unit[len(sigmas)][None])
        rows = [tuple(point[1 : i + 1]) for i, point in enumerate(points)]
        result = run.x[0].tolist()
        return cls(sigma_max, tuple(sigmas), tuple(p[0] for p in points), (*rows, tuple(result[1:])), sigma_data)


def strictly_decreasing(values: Sequence[float]) -> bool:
    """Whether each value is below the one before."""
    return all(b < a for a, b in pairwise(values))
