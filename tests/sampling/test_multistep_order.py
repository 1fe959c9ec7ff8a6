"""Every multistep method converges at the order that it states, and what its start by lower orders adds to that."""

import math
from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor

from openedm import schedules
from openedm.exact import GaussianMixture
from openedm.levels import Karras, Levels, LogLinear
from openedm.preconditioning import VelocityPrediction
from openedm.sampling import (
    DDIM,
    DEIS,
    IPNDM,
    LMS,
    RK4,
    AdamsBashforth,
    DPMSolver2M,
    DPMSolverPP2M,
    DPMSolverPP3M,
    Multistep,
    Sampler,
    UniPC,
)
from openedm.schedules import FlowTime

pytestmark = pytest.mark.usefixtures("without_type_checker")  # which takes longer than the arithmetic

GAUSSIAN = GaussianMixture([1.0], [[0.0, 0.0]], [[[2.0, 0.6], [0.6, 0.3]]])
MIXTURE = GaussianMixture(
    [0.4, 0.6], [[-0.9, 0.3], [0.6, -0.2]], [[[0.6, 0.15], [0.15, 0.5]], [[0.4, 0.1], [0.1, 0.8]]]
)
NOISE = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
HIGH, LOW = 4.0, 0.4
FINE = 768  # intervals, 4 and 8 to one of the solver's
SOLVERS: list[tuple[Multistep, int]] = [
    (DDIM(), 1),
    (LMS(), 4),
    (LMS(predictor=2), 2),
    (DEIS(), 3),
    (DEIS(variable=schedules.VP()), 3),
    (IPNDM(), 2),
    (DPMSolver2M(), 2),
    (DPMSolverPP2M(), 2),
    (DPMSolverPP3M(), 2),
    (DPMSolverPP3M(rule="exact"), 3),
    (DPMSolverPP3M(corrector=4), 3),
    (DPMSolverPP3M(predictor=4), 4),
    (UniPC(predictor=1, corrector=2), 2),
    (UniPC(), 3),
    (UniPC(predictor=3, corrector=4), 4),
    (AdamsBashforth(), 3),
    (AdamsBashforth(predictor=4), 4),
    (Multistep(predictor=2, corrector=3, rule="adams-bashforth"), 2),
    (Multistep(predictor=1, corrector=4), 2),
    (Multistep(VelocityPrediction(), FlowTime(), 2, 3), 3),
    (Multistep(VelocityPrediction(), FlowTime(), 4, 5), 5),
    (Multistep(VelocityPrediction(), FlowTime(), 2, 3, correction=0.8), 2),
    (Multistep(VelocityPrediction(), FlowTime(), 3, 3, correction=0.6), 3),
]
FAMILIES = {"log-linear": LogLinear, "karras": lambda n, low, high: Karras(n, low, high, 3.0)}
# Every solver where neither the flow is linear nor the steps are equal, and one of each rule in the easier cases.
HARD = [(*case, "karras", False) for case in SOLVERS]
EASIER = [("karras", True), ("log-linear", False), ("log-linear", True)]
CASES = HARD + [(*SOLVERS[i], *easier) for i, easier in product((0, 1, 5, 9, 14, 16, 19), EASIER)]


def levels(family: str, intervals: int) -> Levels:
    return FAMILIES[family](intervals + 1, LOW, HIGH)


def solution(family: str, intervals: int, gaussian: bool) -> list[Tensor]:
    """The exact states at the levels; of the mixture by RK4, to 1e-12."""
    if gaussian:
        sigmas = levels(family, intervals).sigmas().tolist()
        return [GAUSSIAN.ode_solution(HIGH * NOISE, HIGH, sigma) for sigma in sigmas]
    return fine_solution(family)[:: FINE // intervals]


@cache
def fine_solution(family: str) -> list[Tensor]:
    """Of the mixture, at levels among which are those of fewer intervals."""
    return [state.x for state in Sampler(levels(family, FINE), solver=RK4()).steps(MIXTURE, noise=NOISE)][:-1]


def error(solver: Multistep, family: str, intervals: int, gaussian: bool) -> float:
    """How far the solver ends from the solution, given the solution at as many levels as it looks back on."""
    denoiser, exact = GAUSSIAN if gaussian else MIXTURE, solution(family, intervals, gaussian)
    given = max(solver.predictor, solver.corrector)
    x, before, directions = exact[0], exact[0], []
    for i, step in enumerate(Sampler(levels(family, intervals), solver=solver).plan(denoiser).steps[:-1]):
        x = exact[i] if i < given else x
        (stage,) = step.stages
        directions.insert(0, stage.direction(x, denoiser(x, stage.sigma)))
        if step.correct is not None and i >= given:
            x = step.correct(before, directions)
        before, x = x, step.advance(x, directions)
    return float((x - exact[-1]).norm())


@pytest.mark.parametrize(("solver", "order", "family", "gaussian"), CASES, ids=repr)
def test_a_multistep_method_with_a_start_converges_at_its_order(
    solver: Multistep, order: int, family: str, gaussian: bool
) -> None:
    assert solver.order == order
    errors = [error(solver, family, n, gaussian) for n in (96, 192)]
    assert errors[1] > 1e-12  # above rounding
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


# The start by lower orders.


def end_error(solver: Multistep, low: float, high: float, intervals: int) -> float:
    """How far an ordinary run ends from the solution."""
    run = Sampler(Karras(intervals + 1, low, high, 7.0), solver=solver).steps(GAUSSIAN, noise=NOISE)
    return float((list(run)[-2].x - GAUSSIAN.ode_solution(high * NOISE, high, low)).norm())


@pytest.mark.parametrize("solver", [solver for solver, order in SOLVERS if order <= 3], ids=repr)
def test_a_run_from_far_above_the_data_converges_at_its_order(solver: Multistep) -> None:
    errors = [end_error(solver, 0.5, 80.0, n) for n in (128, 256)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.25)


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (LMS(), 2),
        (DEIS(), 2),
        (AdamsBashforth(predictor=4), 2),
        (UniPC(predictor=3, corrector=4), 3),
        (Multistep(VelocityPrediction(), FlowTime(), 4, 5), 3),
    ],
    ids=repr,
)
def test_the_start_adds_an_error_of_order_2_or_3_with_a_corrector(solver: Multistep, order: int) -> None:
    errors = [end_error(solver, 0.5, 1.0, n) for n in (128, 256)]
    # The first step has one level to look back on: order 1, and 2 with a corrector, which leaves N⁻² and N⁻³.
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)
