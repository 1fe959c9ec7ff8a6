"""Learned solvers: what they reproduce, that they improve on fitted levels at other starts, and what is refused."""

import json
import re
from dataclasses import replace
from functools import cache

import pytest
import torch

from openedm.denoiser import Condition, Denoiser, FunctionDenoiser
from openedm.exact import GaussianMixture
from openedm.ground.choices import from_config, to_config
from openedm.guidance import ClassifierFree
from openedm.levels import Karras, Logistic
from openedm.preconditioning import IDDPM
from openedm.sampling import (
    DDIM,
    Ancestral,
    Auto,
    Heun,
    LearnedSolver,
    Sampler,
    SolverFit,
    UniPC,
    fit_solver,
    load_solver,
    save_solver,
    solver_seeds,
)

pytestmark = pytest.mark.usefixtures("without_type_checker")

MIXTURE = GaussianMixture(
    [0.4, 0.6], [[0.5, 0.2], [-0.6, 0.0]], [[[0.01, 0.0], [0.0, 0.04]], [[0.02, 0.01], [0.01, 0.02]]]
)
FEW = (range(2**31, 2**31 + 64), range(2**31 + 64, 2**31 + 192))
UNSEEN = range(300)


@cache
def learned(nfe: int = 5) -> SolverFit:
    return fit_solver(MIXTURE, Auto(nfe=nfe), seeds=FEW, iterations=12, progress=False)


def errors(sampler: Sampler) -> torch.Tensor:
    """The distance to the converged solution, at starts that had no part in a fit."""
    levels = Logistic(400, *sampler.levels.ends, 0.25, 1.5)
    solution = replace(Auto(nfe=32).choose(MIXTURE), levels=levels).sample(MIXTURE, UNSEEN)
    return (sampler.sample(MIXTURE, UNSEEN) - solution).norm(dim=1)


@pytest.mark.parametrize("solver", [DDIM(), UniPC(), Auto(nfe=6).choose(MIXTURE).solver], ids=["DDIM", "UniPC", "Auto"])
def test_the_numbers_of_a_plan_draw_what_the_plan_draws(solver):
    given = Sampler(Karras(6, 0.01, 20.0), solver=solver)
    same = LearnedSolver.of_plan(given.plan(MIXTURE), 20.0, MIXTURE.sigma_data)
    assert same.levels.values == pytest.approx(given.levels.sigmas().tolist())
    x = given.sample(MIXTURE, UNSEEN)
    torch.testing.assert_close(Sampler(same.levels, solver=same).sample(MIXTURE, UNSEEN), x, rtol=1e-9, atol=1e-11)


def test_a_learned_solver_improves_on_fitted_levels_where_it_was_not_fitted():
    fit = learned()
    assert fit.learned
    assert fit.sampler.nfe == 5
    before, after = errors(Auto(nfe=5).fit(MIXTURE).sampler), errors(fit.sampler)
    assert after.median() < before.median() / 2
    assert fit.error < fit.error_before / 2
    assert fit.largest <= fit.largest_before


def test_the_same_arguments_give_the_same_solver():
    again = fit_solver(MIXTURE, Auto(nfe=5), seeds=FEW, iterations=12, progress=False)
    assert again == learned()


def test_what_is_reported_is_what_the_sampler_does_for_the_judging_starts():
    fit = learned()
    levels = Logistic(128, *Auto(nfe=5).choose(MIXTURE).levels.ends, MIXTURE.sigma_data / 2, 1.5)
    solution = replace(Auto(nfe=32).choose(MIXTURE), levels=levels).sample(MIXTURE, FEW[1])
    found = (fit.sampler.sample(MIXTURE, FEW[1]) - solution).square().mean(1).sqrt()
    assert float(found.sqrt().mean().square()) == pytest.approx(fit.error, rel=0.01)
    assert float(found.max()) == pytest.approx(fit.largest, rel=0.01)


def test_if_no_step_is_better_the_fitted_levels_are_kept():
    """The largest error of the levels is 0 where the data are one point, and nothing is below it."""
    point = FunctionDenoiser(lambda x, sigma, _: torch.zeros_like(x), (2,), mean=0.0)
    fit = fit_solver(point, Auto(nfe=4), seeds=FEW, iterations=1, progress=False)
    assert not fit.learned
    assert (fit.error, fit.largest) == (fit.error_before, fit.largest_before)
    with pytest.raises(ValueError, match="fitted levels alone were better"):
        save_solver("none.json", fit, point)


def test_a_guided_conditional_denoiser_is_learned_with_its_conditions(tmp_path):
    def shifted(x: torch.Tensor, sigma: torch.Tensor, condition: Condition) -> torch.Tensor:
        where = torch.zeros(len(x), 1).to(x) if condition is None else condition.to(x)
        where = where.nan_to_num(0.0)
        return where + 0.1**2 * (x - where) / (0.1**2 + sigma**2) + 0.05 * torch.tanh(x)

    inner = FunctionDenoiser(shifted, (1,), mean=0.0)
    inner.condition_shape, inner.condition_dropout = (1,), True
    guided = ClassifierFree(inner, 1.5)
    condition = torch.linspace(-1, 1, 96, dtype=torch.float64)[torch.randperm(96, generator=torch.Generator())][:, None]
    seeds = (range(32), range(32, 96))
    fit = fit_solver(guided, Auto(nfe=4), seeds=seeds, condition=condition, iterations=15, progress=False)
    assert fit.learned
    assert fit.error < fit.error_before
    save_solver(tmp_path / "s.json", fit, guided, condition=condition)
    assert load_solver(tmp_path / "s.json", guided) == fit.sampler
    with pytest.raises(ValueError, match="what it returns differs by"):
        load_solver(tmp_path / "s.json", ClassifierFree(inner, 2.5))


def test_levels_of_a_denoiser_with_discrete_levels_stay_among_them():
    table = IDDPM(num_levels=200)
    discrete = FunctionDenoiser(MIXTURE.forward, (2,), table.sigma_min, table.sigma_max, mean=0.0)
    discrete.round_sigma = table.round_sigma  # type: ignore[method-assign, assignment]
    fit = fit_solver(discrete, Auto(nfe=5), seeds=FEW, iterations=5, progress=False)
    assert fit.learned
    sigmas = torch.tensor(fit.sampler.solver.sigmas, dtype=torch.float64)
    torch.testing.assert_close(table.round_sigma(sigmas), sigmas, rtol=1e-6, atol=0)


def test_a_file_gives_the_sampler_back(tmp_path):
    file = tmp_path / "solver.json"
    save_solver(file, learned(), MIXTURE)
    sampler = load_solver(file, MIXTURE, nfe=5, sigma_min=1e-6, sigma_max=learned().sampler.levels.ends[1])
    assert sampler == learned().sampler
    assert from_config(Sampler, to_config(sampler)) == sampler


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nfe": 6}, "nfe must be 5, the number of evaluations that .* was learned for, got 6"),
        ({"sigma_max": 10.0}, "sigma_max must be .*, the highest noise level that .* was learned for, got 10"),
        ({"sigma_min": 1.0}, "sigma_min must be at most .*, the lowest noise level that .* was learned for, got 1"),
    ],
    ids=["evaluations", "highest level", "lowest level"],
)
def test_a_solver_for_something_else_is_refused(tmp_path, given, message):
    save_solver(tmp_path / "solver.json", learned(), MIXTURE)
    with pytest.raises(ValueError, match=message):
        load_solver(tmp_path / "solver.json", MIXTURE, **given)


def like(function, shape=(2,), width=MIXTURE.sigma_data) -> Denoiser:
    denoiser = FunctionDenoiser(function, shape, mean=0.0)
    denoiser.sigma_data = width
    return denoiser


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (like(lambda x, s, _: 1.1 * MIXTURE(x, s)), "denoiser must be that which .* what it returns differs by"),
        (like(MIXTURE.forward, width=1.5), "sigma_data that LearnedSolver was learned for"),
        (like(lambda x, s, _: x, (3,)), r"of samples \(2,\), got \(3,\)"),
    ],
    ids=["other values", "other width", "other shape"],
)
def test_a_solver_of_another_denoiser_is_refused(tmp_path, other, message):
    save_solver(tmp_path / "solver.json", learned(), MIXTURE)
    with pytest.raises(ValueError, match=message):
        load_solver(tmp_path / "solver.json", other)


def test_files_that_are_none_are_refused(tmp_path):
    save_solver(tmp_path / "solver.json", learned(), MIXTURE)
    content = json.loads((tmp_path / "solver.json").read_text())
    for change, message in (
        ({"version": 9}, "must be of version 1, got version 9"),
        ({"learned": to_config(Sampler())}, "does not hold a LearnedSolver, got Heun"),
        ({"learned": 3}, "does not hold a learned solver"),
        ({"print": "x"}, "does not hold a learned solver"),
    ):
        (tmp_path / "other.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=message):
            load_solver(tmp_path / "other.json", MIXTURE)


def test_a_learned_solver_runs_on_its_own_levels_alone():
    solver = learned().sampler.solver
    with pytest.raises(ValueError, match="levels must be the 5 that LearnedSolver was learned for, got 6"):
        Sampler(Karras(6), solver=solver).sample(MIXTURE, range(2))
    with pytest.raises(ValueError, match="levels must be those that LearnedSolver was learned for"):
        Sampler(Karras(5), solver=solver).sample(MIXTURE, range(2))
    with pytest.raises(ValueError, match="LearnedSolver"):
        learned().sampler.invert(MIXTURE, torch.zeros(1, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Sampler(Karras(6), solver=Ancestral()), "solver must be deterministic and on fixed levels"),
        (Sampler(Karras(4), solver=Heun()), "one evaluation a level, .* got 7 evaluations of 4 levels by Heun"),
        (Auto(nfe=21), "nfe of a learned solver must be between 3 and 20"),
        (Auto(tolerance=0.1), "solver must be deterministic and on fixed levels"),
    ],
    ids=["stochastic", "two evaluations a level", "many", "tolerance"],
)
def test_what_cannot_be_learned_is_refused(sampler, message):
    with pytest.raises(ValueError, match=message):
        fit_solver(MIXTURE, sampler)


def test_seeds_of_pilots_and_judges_differ():
    with pytest.raises(ValueError, match="seeds must be two sets without common seeds"):
        fit_solver(MIXTURE, Auto(nfe=4), seeds=(range(8), range(4, 12)))
    for shape in ((2,), (64,), (3, 32, 32)):
        pilots, judges = solver_seeds(shape)
        assert not set(pilots) & set(judges)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": (20.0, 30.0)}, "sigmas must decrease"),
        ({"of_noise": (1.0,)}, "of_noise must hold one number an evaluation (2), got 1"),
        ({"of_noise": (1.0, 0.0)}, "of_noise[1] must be finite and not 0"),
        ({"of_denoised": ((), (1.0, 2.0), (1.0,))}, "of_denoised must have rows of 0, 1, … 2 numbers, got rows of"),
        ({"sigma_max": 10.0}, "sigma_max must be >= 20"),
    ],
)
def test_numbers_that_are_no_solver_are_refused(change, message):
    numbers = {"sigma_max": 20.0, "sigmas": (20.0, 1.0), "of_noise": (1.0, 0.05), "sigma_data": 0.5}
    numbers["of_denoised"] = ((), (1.0,), (0.0, 1.0))
    LearnedSolver(**numbers)
    with pytest.raises(ValueError, match=re.escape(message)):
        LearnedSolver(**{**numbers, **change})
