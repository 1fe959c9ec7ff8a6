"""The growth of noise: predicted from the numbers of a plan, and warned of where samples would be far too wide."""

import warnings
from dataclasses import replace

import pytest
import torch

from openedm.exact import GaussianMixture
from openedm.levels import Karras
from openedm.sampling import (
    DDIM,
    DEIS,
    LMS,
    Ancestral,
    Churn,
    DPMSolverPP2M,
    DPMSolverPP3M,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    Sampler,
)
from openedm.sampling.engine.growth import noise_growth
from openedm.sampling.engine.plan import Combination, Plan

GAUSSIAN = GaussianMixture([1.0], [[0.0]], [[[0.25]]])


def sampler(solver, num_steps, churn=0.0):
    return Sampler(Karras(num_steps, 0.002, 80.0), solver=solver, churn=Churn(churn))


@pytest.mark.parametrize(
    "given",
    [
        sampler(DEIS(eta=1.0), 10),
        sampler(EulerMaruyama(), 8),
        sampler(PredictorCorrector(snr=0.5), 8),
        sampler(Heun(), 8, churn=10.0),
    ],
    ids=["DEIS", "Euler-Maruyama", "predictor-corrector", "churn"],
)
@pytest.mark.filterwarnings("ignore:.*is unstable")
def test_the_width_of_every_state_is_as_predicted(given):
    grid = given.grid(GAUSSIAN)
    growth, at = noise_growth(given.solver.planned(grid), 0.5)
    found = {
        state.sigma: float((state.x / state.scale).std()) / (state.sigma**2 + 0.25) ** 0.5
        for state in given.steps(GAUSSIAN, range(4000))
        if state.sigma > 0
    }
    assert found[at] == pytest.approx(growth, rel=0.05)  # of 4,000 samples: 1.1 %
    assert max(found.values()) == pytest.approx(growth, rel=0.05)


@pytest.mark.parametrize(
    ("solver", "num_steps"),
    [
        (DEIS(eta=1.0), 26),
        (LMS(eta=1.0), 23),
        (DDIM(eta=1.0), 8),
        (EulerMaruyama(), 9),
        (PredictorCorrector(predictor=DDIM(eta=1.0), snr=0.5), 6),
    ],
    ids=["DEIS", "LMS", "DDIM", "Euler-Maruyama", "predictor-corrector"],
)
def test_a_sampler_that_multiplies_its_noise_warns_and_says_where(solver, num_steps):
    with pytest.warns(UserWarning, match=r"is unstable with \d+ noise levels so far apart: at sigma = .* too wide"):
        sampler(solver, num_steps).sample(GAUSSIAN, range(2))


@pytest.mark.parametrize(
    ("solver", "num_steps"),
    [
        (DEIS(eta=1.0), 27),
        (LMS(eta=1.0), 24),
        (DDIM(eta=1.0), 9),
        (EulerMaruyama(), 10),
        (Ancestral(), 3),
        (DPMSolverPP2M(eta=1.0), 3),
        (DPMSolverPP3M(eta=1.0), 5),
        (PredictorCorrector(snr=0.5), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_stable_sampler_does_not_warn(solver, num_steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool(sampler(solver, num_steps).sample(GAUSSIAN, range(2)).isfinite().all())


def test_long_plans_and_plans_with_weights_of_coordinates_are_not_examined():
    assert noise_growth(sampler(EulerMaruyama(), 300).plan(GAUSSIAN), 0.5)[0] == 1.0
    step, *further = sampler(EulerMaruyama(), 4).plan(GAUSSIAN).steps
    of_coordinates = replace(step, advance=Combination(torch.ones(2)))
    assert noise_growth(Plan((of_coordinates, *further)), 0.5)[0] == 1.0


class Units:
    """Draws of which each has one row alone: of a linear sampler the rows are then the weights of the draws."""

    def __init__(self, rows: int) -> None:
        self.rows, self.drawn = rows, 0

    def draw(self, event_shape):
        self.drawn += 1
        return torch.eye(self.rows, dtype=torch.float64)[self.drawn - 1 : self.drawn].T


@pytest.mark.parametrize(("levels", "alone", "corrected"), [(8, 0.54, 0.66), (18, 0.74, 0.85), (70, 0.92, 0.99)])
def test_few_levels_narrow_gaussian_data_more_than_langevin_steps_widen_them(levels, alone, corrected):
    """The numbers of docs/sampling.md."""
    for solver, expected in ((Ancestral(), alone), (PredictorCorrector(Ancestral(), snr=0.5), corrected)):
        weights = sampler(solver, levels).sample(GAUSSIAN, Units(2 * levels))
        assert float(weights.norm()) / 0.5 == pytest.approx(expected, abs=0.0051)
