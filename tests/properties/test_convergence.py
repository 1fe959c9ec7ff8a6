"""Every solver converges at its stated order to the closed-form flow of a Gaussian, along every curve."""

import math
from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor

from openedm.denoiser import Denoiser, FunctionDenoiser
from openedm.exact import GaussianMixture
from openedm.levels import Karras, Levels, LogLinear
from openedm.sampling import RK4, Alpha, Euler, Heun, Midpoint, Ralston, Sampler, Solver
from openedm.schedules import (
    EDM,
    VE,
    VP,
    Cosine,
    FlowScaling,
    NoScaling,
    RectifiedFlow,
    Scaling,
    Schedule,
    VPScaling,
)

pytestmark = pytest.mark.usefixtures("without_type_checker")  # which takes longer than the arithmetic

# Widths on both sides of σ, so that no direction is at rest under any scaling.
GAUSSIAN = GaussianMixture([1.0], [[0.5, -1.0]], [[[2.0, 0.6], [0.6, 0.3]]])
SIGMA_MAX, SIGMA_MIN = 4.0, 0.4
SCHEDULES = [EDM(), VP(), VE(), Cosine(), RectifiedFlow()]
SCALINGS = [NoScaling(), VPScaling(), FlowScaling()]
SOLVERS = [Euler(), Alpha(0.3), Midpoint(), Ralston(), Alpha(0.85), Heun(), RK4()]
NOISE = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def trajectory(sampler: Sampler, denoiser: Denoiser) -> Tensor:
    """x/s at every level, without the step to 0: (levels, batch, n)."""
    centred = FunctionDenoiser(denoiser, (2,), mean=0.0)  # so that runs start from the noise itself
    return torch.stack([s.x / s.scale for s in sampler.steps(centred, noise=NOISE)][:-1])


def error(levels: Levels, schedule: Schedule, scaling: Scaling, solver: Solver) -> float:
    """Distance from the exact solution at the lowest level."""
    arrived = trajectory(Sampler(levels, schedule, scaling, solver), GAUSSIAN)[-1]
    exact = GAUSSIAN.ode_solution(SIGMA_MAX * NOISE, SIGMA_MAX, SIGMA_MIN)
    return float((arrived - exact).norm())


# Here x(t)² of a Gaussian is a quadratic of t, along which the midpoint rule's error x‴/24 + f_x x″/8 vanishes.
QUADRATIC = [(EDM(), NoScaling()), (VE(), NoScaling()), (RectifiedFlow(), FlowScaling())]


def order_on_a_gaussian(solver: Solver, schedule: Schedule, scaling: Scaling) -> int:
    return 3 if solver == Midpoint() and (schedule, scaling) in QUADRATIC else solver.order


def intervals(solver: Solver) -> tuple[int, int]:
    return (12, 24) if solver.order == 4 else (16, 32)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize(("schedule", "scaling"), list(product(SCHEDULES, SCALINGS)), ids=repr)
def test_a_solver_converges_at_its_order(schedule: Schedule, scaling: Scaling, solver: Solver) -> None:
    errors = [error(Karras(n + 1, SIGMA_MIN, SIGMA_MAX, 3.0), schedule, scaling, solver) for n in intervals(solver)]
    assert errors[1] > 1e-10  # far above rounding
    expected = order_on_a_gaussian(solver, schedule, scaling)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("rho", [1.0, 7.0, math.inf])
def test_the_order_does_not_depend_on_where_the_levels_lie(solver: Solver, rho: float) -> None:
    def levels(n: int) -> Levels:
        ends = (n + 1, SIGMA_MIN, SIGMA_MAX)
        return LogLinear(*ends) if rho == math.inf else Karras(*ends, rho)

    errors = [error(levels(n), VP(), VPScaling(), solver) for n in (24, 48)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.2)


MIXTURE = GaussianMixture(
    [0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [[[0.20, 0.05], [0.05, 0.10]], [[0.05, 0.0], [0.0, 0.3]]]
)


@cache
def reference() -> Tensor:
    """The end of the mixture's trajectories: RK4's error falls 16-fold with each doubling, to 16³ below 64 steps'."""
    return trajectory(Sampler(Karras(513, SIGMA_MIN, SIGMA_MAX, 3.0), solver=RK4()), MIXTURE)[-1]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_solver_converges_at_its_order_where_the_flow_is_not_linear(solver: Solver) -> None:
    samplers = [Sampler(Karras(n + 1, SIGMA_MIN, SIGMA_MAX, 3.0), solver=solver) for n in (32, 64)]
    errors = [float((trajectory(sampler, MIXTURE)[-1] - reference()).norm()) for sampler in samplers]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.2)


@pytest.mark.parametrize(("schedule", "scaling"), list(product(SCHEDULES, SCALINGS))[1:], ids=repr)
def test_trajectories_agree_across_schedules_and_scalings_as_steps_grow(schedule: Schedule, scaling: Scaling) -> None:
    distances = []
    for n in (24, 48):
        levels = Karras(n + 1, SIGMA_MIN, SIGMA_MAX, 3.0)
        one, other = (trajectory(s, MIXTURE) for s in (Sampler(levels), Sampler(levels, schedule, scaling)))
        distances.append(float((one - other).norm(dim=-1).max()))
    # Both err by O(N⁻²), with constants of their own, so their distance falls four-fold.
    assert distances[1] < distances[0] / 3
    assert distances[1] < 0.01
