"""Exponential Runge–Kutta methods take the steps of their papers, here written out again, and have their orders."""

import math
import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from openedm.exact import GaussianMixture
from openedm.levels import Explicit, Karras, Levels, LogLinear
from openedm.preconditioning import DataPrediction, EpsilonPrediction, NetworkPrediction, VelocityPrediction
from openedm.sampling import RK4, DPMSolver2S, DPMSolver3S, DPMSolverPP2S, DPMSolverPP3S, Sampler
from openedm.sampling.methods.singlestep import ExponentialRungeKutta

pytestmark = pytest.mark.usefixtures("without_type_checker")  # which takes longer than the arithmetic

MIXTURE = GaussianMixture(
    [0.4, 0.6], [[-0.9, 0.3], [0.6, -0.2]], [[[0.6, 0.15], [0.15, 0.5]], [[0.4, 0.1], [0.1, 0.8]]]
)
GAUSSIAN = GaussianMixture([1.0], [[0.0, 0.0]], [[[2.0, 0.6], [0.6, 0.3]]])
NOISE = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SIGMAS = (80.0, 31.0, 9.0, 2.5, 1.1, 0.3, 0.05)

Step = Callable[[Tensor, float, float], Tensor]


def assert_steps(solver: ExponentialRungeKutta, step: Step) -> None:
    """The solver's states at the levels are those of `step`, and the sample is D at the last."""
    states = [state.x for state in Sampler(Explicit(SIGMAS), solver=solver).steps(MIXTURE, noise=NOISE)]
    x = 80.0 * NOISE
    for i, (sigma, following) in enumerate(pairwise(SIGMAS)):
        x = step(x, sigma, following)
        torch.testing.assert_close(states[i + 1], x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(states[-1], MIXTURE(x, SIGMAS[-1]), rtol=1e-12, atol=1e-12)


def epsilon(x: Tensor, sigma: float) -> Tensor:
    return (x - MIXTURE(x, sigma)) / sigma


# The published steps, with α = 1 and λ = −ln σ.


@pytest.mark.parametrize("r", [0.2, 0.5, 0.9])
def test_dpm_solver_2_is_algorithm_1(r: float) -> None:
    def step(x: Tensor, sigma: float, following: float) -> Tensor:
        h = math.log(sigma / following)
        middle = sigma * math.exp(-r * h)
        first = epsilon(x, sigma)
        second = epsilon(x - middle * math.expm1(r * h) * first, middle)
        return x - following * math.expm1(h) * first - following * math.expm1(h) / (2 * r) * (second - first)

    assert_steps(DPMSolver2S(r), step)


@pytest.mark.parametrize("r", [0.2, 0.5, 0.9])
def test_dpm_solver_plus_plus_2s_is_its_algorithm_1(r: float) -> None:
    def step(x: Tensor, sigma: float, following: float) -> Tensor:
        h = math.log(sigma / following)
        middle = sigma * math.exp(-r * h)
        first = MIXTURE(x, sigma)
        second = MIXTURE(middle / sigma * x - math.expm1(-r * h) * first, middle)
        mixed = (1 - 1 / (2 * r)) * first + 1 / (2 * r) * second
        return following / sigma * x - math.expm1(-h) * mixed

    assert_steps(DPMSolverPP2S(r), step)


@pytest.mark.parametrize(("r1", "r2"), [(1 / 3, 2 / 3), (0.25, 0.8)])
def test_dpm_solver_3_is_algorithm_2(r1: float, r2: float) -> None:
    def step(x: Tensor, sigma: float, following: float) -> Tensor:
        h = math.log(sigma / following)
        near, far = sigma * math.exp(-r1 * h), sigma * math.exp(-r2 * h)
        first = epsilon(x, sigma)
        change = epsilon(x - near * math.expm1(r1 * h) * first, near) - first
        u = x - far * math.expm1(r2 * h) * first - far * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * change
        change = epsilon(u, far) - first
        return x - following * math.expm1(h) * first - following / r2 * (math.expm1(h) / h - 1) * change

    assert_steps(DPMSolver3S(r1, r2), step)


@pytest.mark.parametrize(("r1", "r2"), [(1 / 3, 2 / 3), (0.25, 0.8)])
def test_dpm_solver_plus_plus_3s_is_the_same_on_the_denoised(r1: float, r2: float) -> None:
    def step(x: Tensor, sigma: float, following: float) -> Tensor:
        h = math.log(sigma / following)
        near, far = sigma * math.exp(-r1 * h), sigma * math.exp(-r2 * h)
        first = MIXTURE(x, sigma)
        change = MIXTURE(near / sigma * x - math.expm1(-r1 * h) * first, near) - first
        u = far / sigma * x - math.expm1(-r2 * h) * first + r2 / r1 * (math.expm1(-r2 * h) / (r2 * h) + 1) * change
        change = MIXTURE(u, far) - first
        return following / sigma * x - math.expm1(-h) * first + (math.expm1(-h) / h + 1) / r2 * change

    assert_steps(DPMSolverPP3S(r1, r2), step)


def test_the_named_methods_have_the_published_nodes_and_predictions() -> None:
    assert DPMSolver2S() == DPMSolver2S(0.5, EpsilonPrediction())
    assert DPMSolverPP2S() == DPMSolverPP2S(0.5, DataPrediction())
    assert DPMSolver3S() == DPMSolver3S(1 / 3, 2 / 3, EpsilonPrediction())
    assert DPMSolverPP3S() == DPMSolverPP3S(1 / 3, 2 / 3, DataPrediction())


# Orders.

HIGH, LOW = 4.0, 0.4
FAMILIES: dict[str, Callable[[int], Levels]] = {
    "log-linear": lambda n: LogLinear(n + 1, LOW, HIGH),
    "karras": lambda n: Karras(n + 1, LOW, HIGH, 3.0),
}


@cache
def solution(gaussian: bool) -> Tensor:
    """The exact end; of the mixture by RK4 in 512 steps, to 1e-12."""
    if gaussian:
        return GAUSSIAN.ode_solution(HIGH * NOISE, HIGH, LOW)
    return list(Sampler(FAMILIES["karras"](512), solver=RK4()).steps(MIXTURE, noise=NOISE))[-2].x


SOLVERS: list[tuple[ExponentialRungeKutta, int]] = [
    (DPMSolver2S(), 2),
    (DPMSolver2S(0.9), 2),
    (DPMSolver2S(prediction=VelocityPrediction(1.0)), 2),
    (DPMSolverPP2S(0.3), 2),
    (DPMSolver3S(), 3),
    (DPMSolver3S(0.5, 2 / 3), 3),
    (DPMSolver3S(0.25, 0.5), 2),
    (DPMSolver3S(prediction=NetworkPrediction(0.3)), 3),
    (DPMSolverPP3S(), 3),
    (DPMSolverPP3S(0.25, 0.9), 2),
]
# Every solver where neither the flow is linear nor the steps are equal, and one of each number of stages elsewhere.
HARD = [(*case, "karras", False) for case in SOLVERS]
EASIER = [("karras", True), ("log-linear", False), ("log-linear", True)]


@pytest.mark.parametrize(
    ("solver", "order", "family", "gaussian"),
    HARD + [(*SOLVERS[i], *easier) for i, easier in product((0, 8), EASIER)],
    ids=repr,
)
def test_a_step_of_several_stages_converges_at_its_order(
    solver: ExponentialRungeKutta, order: int, family: str, gaussian: bool
) -> None:
    assert solver.order == order
    denoiser, exact = GAUSSIAN if gaussian else MIXTURE, solution(gaussian)
    samplers = [Sampler(FAMILIES[family](n), solver=solver) for n in (48, 96)]
    errors = [float((list(s.steps(denoiser, noise=NOISE))[-2].x - exact).norm()) for s in samplers]
    assert errors[1] > 1e-11  # above rounding
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


# Errors.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPMSolver2S(0.0), "r must be between 0 and 1, both excluded, got 0.0"),
        (lambda: DPMSolver2S(1.0), "r must be between 0 and 1, both excluded, got 1.0"),
        (lambda: DPMSolverPP2S(-0.5), "r must be between 0 and 1, both excluded, got -0.5"),
        (lambda: DPMSolver2S(math.nan), "r must be a finite number, got nan"),
        (lambda: DPMSolver3S(r1=0.0), "r1 must be between 0 and 1, both excluded, got 0.0"),
        (lambda: DPMSolver3S(r1=0.7), "r2 must be between 0.7 and 1, both excluded, got 0.6666666666666666"),
        (lambda: DPMSolverPP3S(0.5, 0.5), "r2 must be between 0.5 and 1, both excluded, got 0.5"),
        (lambda: DPMSolverPP3S(r2=1.0), "r2 must be between 0.333333 and 1, both excluded, got 1.0"),
    ],
)
def test_nodes_outside_the_step_or_in_another_order_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
