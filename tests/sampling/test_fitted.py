"""Fitted levels: the error that is minimised, what is fitted to what, and what cannot be fitted."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch

from openedm.denoiser import Condition, FunctionDenoiser
from openedm.exact import GaussianMixture
from openedm.levels import Explicit, Karras, Logistic
from openedm.preconditioning import IDDPM
from openedm.sampling import (
    DEIS,
    Ancestral,
    Churn,
    DPMSolverPP2M,
    Heun,
    Multistep,
    Sampler,
    Solver,
    fit_levels,
    pilot_seeds,
)
from openedm.schedules import VP

pytestmark = pytest.mark.usefixtures("without_type_checker")

MIXTURE = GaussianMixture(
    [0.4, 0.6], [[0.5, 0.2], [-0.6, 0.0]], [[[0.01, 0.0], [0.0, 0.04]], [[0.02, 0.01], [0.01, 0.02]]]
)
SOLVERS = [DPMSolverPP2M(), DEIS(), Heun(), Multistep(predictor=2, corrector=3)]


def error(sampler: Sampler) -> float:
    """The median distance to the converged solution, at starts that are no pilots."""
    return float((sampler.sample(MIXTURE, range(200)) - solution()).norm(dim=1).median())


@cache
def solution() -> torch.Tensor:
    """To 1e-6."""
    return Sampler(Karras(1000), solver=Heun()).sample(MIXTURE, range(200))


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_levels_fitted_to_a_solver_improve_on_karras(solver: Solver) -> None:
    before = Sampler(Karras(10), solver=solver)
    fit = fit_levels(MIXTURE, before)
    after = fit.sampler
    assert (after.solver, after.nfe) == (solver, before.nfe)
    assert after.levels.num_steps == 10
    assert after.levels.ends == before.levels.for_data(MIXTURE.sigma_data).ends
    assert fit.error < 0.6 * fit.error_before
    assert error(after) < 0.7 * error(before)


def test_levels_are_fitted_to_the_solver_that_will_use_them() -> None:
    """Each solver errs least on its own levels."""
    fitted = {solver: fit_levels(MIXTURE, Sampler(Karras(10), solver=solver)).sampler for solver in SOLVERS[:3]}
    for solver, own in fitted.items():
        others = [replace(own, levels=other.levels) for name, other in fitted.items() if name != solver]
        assert all(error(own) < error(other) for other in others)


def test_a_fit_is_reproducible_and_counts_its_evaluations() -> None:
    counts, calls = [], []
    counting = FunctionDenoiser(lambda x, sigma, _: calls.append(len(x)) or MIXTURE(x, sigma), (2,), mean=0.0)
    first = fit_levels(
        counting, Sampler(Karras(8), solver=DEIS()), progress=lambda name, done, total: counts.append(done)
    )
    assert first == fit_levels(MIXTURE_LIKE, Sampler(Karras(8), solver=DEIS()))
    assert len(calls) == first.evaluations == counts[-1]
    assert set(calls) == {len(pilot_seeds((2,)))}
    assert counts == sorted(counts)


MIXTURE_LIKE = FunctionDenoiser(MIXTURE.forward, (2,), mean=0.0)


def test_without_iterations_the_best_of_the_placements_is_taken() -> None:
    given = Sampler(Logistic(8, centre=0.2, spread=1.2), solver=DEIS())
    coarse, fine = (fit_levels(MIXTURE, given, iterations=n) for n in (0, 6))
    assert fine.error < coarse.error <= coarse.error_before
    assert coarse.evaluations == 128 + 12 * 8  # the solution, the given levels, ten placements, and what is kept


def test_levels_are_fitted_inside_the_range_of_the_denoiser() -> None:
    narrow = FunctionDenoiser(MIXTURE.forward, (2,), sigma_min=0.01, sigma_max=10.0)
    levels = fit_levels(narrow, Sampler(Karras(8), solver=DEIS()), iterations=1).sampler.levels
    assert (levels.sigma_min, levels.sigma_max) == (0.01, 10.0)


def test_pilots_have_the_conditions_that_are_given() -> None:
    seen = []

    def shifted(x: torch.Tensor, sigma: torch.Tensor, condition: Condition) -> torch.Tensor:
        assert condition is not None
        seen.append(condition.tolist())
        return (x + condition[:, None] * sigma**2) / (1 + sigma**2)

    condition = torch.linspace(-1, 1, 5, dtype=torch.float64)
    fit_levels(FunctionDenoiser(shifted, (1,)), Sampler(Karras(6), solver=DEIS()), seeds=range(5), condition=condition)
    assert all(rows == condition.tolist() for rows in seen)


@pytest.mark.parametrize(("shape", "count"), [((2,), 64), ((64,), 16), ((3, 32, 32), 8)])
def test_there_are_fewer_pilots_the_larger_the_sample(shape: tuple[int, ...], count: int) -> None:
    assert len(pilot_seeds(shape)) == count
    assert min(pilot_seeds(shape)) == 2**31


def test_a_denoiser_of_discrete_levels_is_followed_through_those_it_knows() -> None:
    """The 128 levels of the converged solution fall on fewer of the table's."""
    table = IDDPM(num_levels=100)
    discrete = FunctionDenoiser(MIXTURE.forward, (2,), table.sigma_min, table.sigma_max)
    discrete.round_sigma = table.round_sigma  # type: ignore[method-assign, assignment]
    given = Sampler(Karras(8, 0.1, 80.0), solver=DEIS())
    fit = fit_levels(discrete, given, iterations=2)
    assert fit.error < 0.7 * fit.error_before
    with pytest.raises(ValueError, match="num_steps must suit the solver and the levels that the denoiser supports"):
        fit_levels(discrete, replace(given, levels=Karras(90, 0.1, 80.0)), iterations=0)


def test_levels_that_are_better_than_those_found_are_kept() -> None:
    best = fit_levels(MIXTURE, Sampler(Karras(8), solver=DEIS())).sampler
    given = replace(best, levels=Explicit(tuple(best.levels.sigmas().tolist())))
    fit = fit_levels(MIXTURE, given, iterations=0)
    assert (fit.sampler, fit.error) == (given, fit.error_before)


def test_a_denoiser_that_returns_nan_is_refused() -> None:
    broken = FunctionDenoiser(lambda x, sigma, _: x * torch.nan, (2,))
    with pytest.raises(ValueError, match="denoiser must give finite samples for a fit"):
        fit_levels(broken, Sampler(Karras(8)))


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (
            Sampler(Karras(8), solver=Ancestral()),
            "solver must be deterministic and on fixed levels for a fit",
        ),
        (Sampler(Karras(8), churn=Churn(4.0)), "solver must be deterministic and on fixed levels for a fit"),
        (Sampler(Karras(2)), "num_steps of fitted levels must be >= 3, got 2"),
    ],
    ids=["stochastic", "churn", "two levels"],
)
def test_what_cannot_be_fitted_is_refused(sampler: Sampler, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_levels(MIXTURE, sampler)


def test_a_sampler_keeps_its_curve() -> None:
    given = Sampler(Karras(8, 0.01, 20.0), schedule=VP(), solver=Heun())
    fitted = fit_levels(MIXTURE, given, iterations=1).sampler
    assert replace(fitted, levels=given.levels) == given
