"""A plan carried out from outside, one evaluation at a time, is the plan carried out by `execute`."""

import copy
from dataclasses import replace

import pytest
import torch

from openedm.exact import GaussianMixture
from openedm.levels import Karras
from openedm.sampling import (
    RK4,
    Ancestral,
    Churn,
    DPMSolverPP2M,
    DPMSolverPP3S,
    Heun,
    PredictorCorrector,
    Restart,
    Sampler,
    SeededNoise,
    UniPC,
)
from openedm.sampling.engine.steps import Run, unscaled
from openedm.schedules import VP

MIXTURE = GaussianMixture([0.5, 0.5], [[1.0, 0.75], [-1.0, -0.75]], [[[0.1, 0.0], [0.0, 0.2]]] * 2)
SAMPLERS = [
    Sampler(Karras(6)),
    Sampler(Karras(6), schedule=VP(), solver=RK4()),
    Sampler(Karras(6), churn=Churn(4.0)),
    Sampler(Karras(6), schedule=VP(), final="euler"),
    Sampler(Karras(6), solver=UniPC()),
    Sampler(Karras(6), solver=DPMSolverPP3S()),
    Sampler(Karras(6), solver=Ancestral()),
    Sampler(Karras(6), solver=PredictorCorrector(corrections=2)),
    Sampler(Karras(8), solver=Restart()),
]


def run_outside(run: Run) -> torch.Tensor:
    while not run.finished:
        run.advance(MIXTURE(unscaled(run.point, run.stage.scale), run.stage.sigma))
    return run.x


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s.solver).__name__)
def test_a_run_from_outside_returns_what_the_sampler_returns(sampler: Sampler) -> None:
    """Exactly with the fused plan, which the sampler executes, and but for rounding with the plan itself."""
    noise = SeededNoise([0, 1, 2]).draw((2,)).double()
    plan, grid = sampler.plan(MIXTURE), sampler.grid(MIXTURE)
    top = grid.sigmas[0] * grid.scale(grid.sigmas[0])
    fused, plain = (run_outside(Run(p, noise * top, SeededNoise([3, 4, 5]))) for p in (plan.fused, plan))
    inside = sampler.sample(MIXTURE, SeededNoise([3, 4, 5]), noise=noise)
    assert torch.equal(fused, inside)
    torch.testing.assert_close(plain, inside, rtol=1e-12, atol=1e-12)


def test_a_copy_of_a_run_goes_on_by_itself() -> None:
    run = Run(Sampler(Karras(5), solver=DPMSolverPP2M()).plan(MIXTURE), torch.full((1, 2), 80.0).double(), None)
    for _ in range(3):
        run.advance(MIXTURE(run.point, run.stage.sigma))
    other = copy.deepcopy(run)
    expected = run_outside(run)
    assert run.finished
    assert not other.finished
    assert torch.equal(run_outside(other), expected)


def test_the_state_of_a_run_can_be_replaced_between_steps() -> None:
    """As for inpainting: a step of Euler's method from the new state, with the directions of the new state."""
    sampler = replace(Sampler(Karras(3)), solver=Heun())
    plan = sampler.plan(MIXTURE)
    run = Run(plan, torch.zeros(1, 2).double(), None)
    moved = torch.full((1, 2), 160.0).double()
    first = MIXTURE(moved, run.stage.sigma)
    run.advance(first, moved)
    second = MIXTURE(run.point, run.stage.sigma)
    run.advance(second)
    from_there = Run(plan, moved, None)
    from_there.advance(first)
    from_there.advance(second)
    assert torch.equal(run.x, from_there.x)
