"""Exponential solvers in the sampler: evaluations, levels, seeds, inversion, and the options that do not go with it."""

import gc
import math
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from openedm import schedules
from openedm.cli.parsing import dump, parse
from openedm.denoiser import Condition, Denoiser, FunctionDenoiser, Preconditioned
from openedm.exact import ExactDataset, GaussianMixture
from openedm.levels import Explicit, Karras, LogLinear
from openedm.networks import MLP
from openedm.preconditioning import (
    EDM,
    Adapter,
    DataPrediction,
    EpsilonPrediction,
    NetworkPrediction,
    VelocityPrediction,
)
from openedm.sampling import (
    DDIM,
    DEIS,
    AdamsBashforth,
    Churn,
    DPMSolver2S,
    DPMSolverPP2M,
    DPMSolverPP3S,
    Heun,
    Multistep,
    Sampler,
    Solver,
    State,
    UniPC,
)
from openedm.sampling.engine.plan import Grid
from openedm.schedules import Angle, FlowTime, PowerSigma
from properties.strategies import exponential_solvers

MIXTURE = GaussianMixture(
    [0.3, 0.7], [[-1.4, 0.7], [0.6, -0.3]], [[[0.20, 0.05], [0.05, 0.10]], [[0.05, 0.0], [0.0, 0.3]]]
)
SOME = [DDIM(), DEIS(), DPMSolverPP2M(), UniPC(), AdamsBashforth(), DPMSolver2S(), DPMSolverPP3S()]
names = pytest.mark.parametrize("solver", SOME, ids=lambda solver: type(solver).__name__)


def unit_noise(batch: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(batch, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Counting(Denoiser):
    """The mixture's denoiser; records the levels that it is asked at."""

    def __init__(self) -> None:
        super().__init__()
        self.sigma_data = MIXTURE.sigma_data
        self.event_shape, self.seen = (2,), []

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition, **options: Any) -> Tensor:
        self.seen.append(float(sigma))
        return MIXTURE.denoise(x, sigma, condition)


# Laws.


@settings(max_examples=30)
@given(exponential_solvers(), st.integers(1, 7))
def test_nfe_is_the_number_of_evaluations_and_every_level_is_visited(solver: Solver, num_steps: int) -> None:
    sampler, denoiser = Sampler(LogLinear(num_steps, 0.05, 20.0), solver=solver), Counting()
    states: list[State] = []
    x = sampler.sample(denoiser, noise=unit_noise(), callback=states.append)
    stages = 1 if isinstance(solver, Multistep) else len(solver.tableau.stencils)
    assert sampler.nfe == len(denoiser.seen) == stages * (num_steps - 1) + 1
    visited = sampler.levels.sigmas().tolist()
    assert denoiser.seen[::stages] == visited
    assert [(s.index, s.sigma, s.time, s.scale) for s in states[:-1]] == [(i, s, s, 1) for i, s in enumerate(visited)]
    for state in states[:-1]:
        assert torch.equal(state.denoised, MIXTURE(state.x, state.sigma))
    assert torch.equal(states[-1].x, x)
    assert torch.equal(x, states[-2].denoised)


@settings(max_examples=40)
@given(exponential_solvers(), st.integers(2, 7))
def test_where_the_data_is_one_point_the_path_is_a_straight_line_to_it(solver: Solver, num_steps: int) -> None:
    point, sampler = torch.tensor([[2.0, -1.0]], dtype=torch.float64), Sampler(Karras(num_steps, 0.05), solver=solver)
    one_point = FunctionDenoiser(ExactDataset(point), (2,), mean=0.0)  # so that the run does not start around it
    states = list(sampler.steps(one_point, noise=unit_noise()))
    # ε, D and the velocity are constant on it; the network's output is not.
    if isinstance(solver.prediction, NetworkPrediction):
        return
    for state in states[:-1]:
        expected = point + state.sigma / 80.0 * (80.0 * unit_noise() - point)
        # Weights of both signs cancel where levels lie so unevenly for the variable.
        torch.testing.assert_close(state.x, expected, rtol=0, atol=1e-9)


@settings(max_examples=20)
@given(exponential_solvers(), st.integers(0, 4), st.integers(1, 5))
def test_a_sample_is_the_same_to_the_bit_whatever_its_batch(solver: Solver, start: int, count: int) -> None:
    denoiser = FunctionDenoiser(lambda x, sigma, condition: x / (1 + sigma**2), event_shape=(3,))
    sampler, seeds = Sampler(Karras(6), solver=solver), range(100, 109)
    together, part = sampler.sample(denoiser, seeds), seeds[start : start + count]
    assert torch.equal(sampler.sample(denoiser, part), together[start : start + count])


@given(exponential_solvers())
def test_a_run_is_differentiable_from_noise_to_sample(solver: Solver) -> None:
    gaussian = GaussianMixture([1.0], [[0.0, 0.0]], [[[2.0, 0.6], [0.6, 0.3]]])
    sampler, noise = Sampler(Karras(4, 0.1, 5.0), solver=solver), unit_noise(1).requires_grad_()
    (gradient,) = torch.autograd.grad(list(sampler.steps(gaussian, noise=noise))[-1].x[0, 0], noise)
    # A Gaussian's flow is linear, so that differences are exact.
    moved = [sampler.sample(gaussian, noise=noise.detach() + d)[0, 0] for d in torch.eye(2).double()]
    base = sampler.sample(gaussian, noise=noise)[0, 0]
    torch.testing.assert_close(gradient[0], torch.stack(moved) - base, rtol=0, atol=1e-10)


# Levels.


def table_denoiser() -> Preconditioned:
    """A denoiser that was trained at σ = 0.01 · 1.1^j, j = 0…99."""

    class Net(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
            return torch.zeros_like(x)

    return Preconditioned(Net(), Adapter(table=tuple(0.01 * 1.1**j for j in range(100))), event_shape=(2,))


@names
def test_the_plan_takes_the_levels_that_a_denoiser_of_discrete_levels_knows(solver: Solver) -> None:
    denoiser = table_denoiser()
    sampler = Sampler(Karras(7, 0.002, 80.0), solver=solver)
    rounded = [float(denoiser.round_sigma(s)) for s in sampler.levels.within(0.01, denoiser.sigma_max).sigmas()]
    assert [step.sigma for step in sampler.plan(denoiser).steps] == rounded
    explicit = Sampler(Explicit(tuple(rounded)), solver=solver)
    assert torch.equal(sampler.sample(denoiser, [0, 1]), explicit.sample(denoiser, [0, 1]))


@names
def test_levels_that_round_to_the_same_are_refused_before_any_evaluation(solver: Solver) -> None:
    message = "levels must differ for an exponential solver, got sigma = .* twice in a row: use fewer steps"
    with pytest.raises(ValueError, match=message):
        Sampler(Karras(60), solver=solver).steps(table_denoiser(), [0])
    Sampler(Karras(60)).steps(table_denoiser(), [0])  # Runge–Kutta methods stand still there.


@names
def test_a_plan_is_made_once_and_keeps_no_denoiser_alive(solver: Solver) -> None:
    sampler, denoiser = Sampler(Karras(9, 0.0123, 45.6), solver=solver), Counting()
    assert sampler.plan(denoiser) is sampler.plan(Counting())
    sampler.sample(denoiser, [0])
    watched = weakref.ref(denoiser)
    del denoiser
    gc.collect()
    assert watched() is None


def test_plans_of_rounded_runs_with_churn_are_not_mixed_up() -> None:
    grid = Grid((4.0, 2.0, 1.0), churn=Churn(1.0))
    coarse = Grid((4.0, 2.0, 1.0), churn=Churn(1.0), round_sigma=lambda sigma: sigma.round())
    assert [float(p.steps[0].stages[0].sigma) for p in (Heun().planned(grid), Heun().planned(coarse))] == [
        4.0 + 4.0 / 3,
        5.0,
    ]


@names
def test_a_float32_network_is_followed_in_float64(solver: Solver) -> None:
    denoiser = Preconditioned(MLP(width=8, num_blocks=1).build((2,), seed=0), EDM(), event_shape=(2,)).eval()
    assert {s.x.dtype for s in Sampler(Karras(4), solver=solver).steps(denoiser, [0, 1])} == {torch.float64}


# Inversion.


@pytest.mark.usefixtures("without_type_checker")
@names
def test_inversion_is_undone_by_sampling_to_the_error_of_the_solver(solver: Solver) -> None:
    data = unit_noise(5, 3)

    def back(intervals: int) -> float:
        sampler = Sampler(LogLinear(intervals + 1, 0.3, 30.0), solver=solver)
        noise = sampler.invert(MIXTURE, data)
        return float((list(sampler.steps(MIXTURE, noise=noise))[-2].x - data).norm())

    # On the way up the start by lower orders is at the lowest level, where the path bends: it leaves N⁻².
    expected = min(solver.order, 2) if isinstance(solver, Multistep) else solver.order
    errors = [back(n) for n in (128, 256)]
    assert errors[1] < errors[0] / 2 ** (expected - 0.3)
    assert errors[1] < 0.1


@names
def test_inversion_passes_the_levels_from_the_lowest_up_and_evaluates_below_the_highest(solver: Solver) -> None:
    sampler, denoiser = Sampler(Karras(6, 0.3, 6.0, 3.0), solver=solver), Counting()
    states: list[State] = []
    noise = sampler.invert(denoiser, unit_noise())
    assert sampler.nfe is not None
    assert len(denoiser.seen) == sampler.nfe - 1
    sampler.invert(MIXTURE, unit_noise(), callback=states.append)
    assert [s.sigma for s in states] == sampler.levels.sigmas().flip(0).tolist()
    assert torch.equal(states[-1].x / 6.0, noise)
    gaussian = GaussianMixture([1.0], [[0.0, 0.0]], [[[2.0, 0.6], [0.6, 0.3]]])
    fine = Sampler(LogLinear(400, 0.3, 6.0), solver=solver).invert(gaussian, unit_noise())
    exact = gaussian.ode_solution(unit_noise(), 0.3, 6.0) / 6.0
    torch.testing.assert_close(fine, exact, rtol=0, atol=2e-2 if solver.order == 1 else 2e-4)


@pytest.mark.parametrize("solver", [DDIM(eta=1.0), DPMSolverPP2M(eta=0.5)], ids=repr)
def test_a_run_with_noise_needs_seeds_and_has_no_inverse(solver: Multistep) -> None:
    assert solver.stochastic
    with pytest.raises(ValueError, match=r"seeds must be given if a run adds noise"):
        Sampler(solver=solver).sample(MIXTURE, noise=unit_noise())
    with pytest.raises(ValueError, match=r"solver must be deterministic for inversion, got .*eta="):
        Sampler(solver=solver).invert(MIXTURE, unit_noise())


# Options.


@names
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": schedules.VP()}, "schedule has no effect on {}, whose steps do not depend on the schedule"),
        ({"scaling": schedules.VPScaling()}, "scaling has no effect on {}"),
        ({"final": "euler"}, "final has no effect on {}"),
        ({"churn": Churn(5.0)}, "s_churn must be 0 for {}, since churn requires a Runge-Kutta solver"),
    ],
)
def test_options_that_cannot_take_effect_are_refused(solver: Solver, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message.format(type(solver).__name__))):
        Sampler(solver=solver, **options)


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Multistep(predictor=0), ValueError, "predictor must be between 1 and 6, got 0"),
        (lambda: Multistep(predictor=7), ValueError, "predictor must be between 1 and 6, got 7"),
        (lambda: Multistep(predictor=2.0), TypeError, "predictor must be an integer, got 2.0"),
        (lambda: Multistep(corrector=1), ValueError, "corrector must be one of 0, 2, 3, 4, 5, 6, got 1"),
        (lambda: Multistep(corrector=True), TypeError, "corrector must be an integer, got True"),
        (lambda: Multistep(rule="trapezoid"), ValueError, "rule must be one of 'exact', 'midpoint'"),
        (lambda: Multistep(eta=-0.1), ValueError, "eta must be >= 0, got -0.1"),
        (lambda: Multistep(eta=math.nan), ValueError, "eta must be >= 0, got nan"),
        (lambda: Multistep(eta=math.inf), ValueError, "eta must be a finite number, got inf"),
        (lambda: UniPC(correction=1.1), ValueError, "correction must be between 1e-09 and 1, got 1.1"),
        (lambda: UniPC(correction=0.0), ValueError, "correction must be between 1e-09 and 1, got 0.0"),
        (lambda: DEIS(correction=0.5), ValueError, "correction must be 1 without a corrector, got 0.5"),
        (lambda: UniPC(eta=1.0), ValueError, "corrector must be 0 if eta > 0 (noise is not corrected), got 3"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


def command(sampler: Sampler = Sampler()) -> None:
    """A command with a sampler.

    Args:
        sampler: how samples are drawn.
    """


@pytest.mark.parametrize(
    ("typed", "solver"),
    [
        ("--solver DPMSolverPP2M", DPMSolverPP2M()),
        ("--solver=UniPC --solver.predictor=3 --solver.corrector=4", UniPC(predictor=3, corrector=4)),
        ("--solver DPMSolverPP2M --solver.eta 1", DPMSolverPP2M(eta=1.0)),
        (
            "--solver Multistep --solver.prediction NetworkPrediction --solver.variable Angle",
            Multistep(NetworkPrediction(), Angle()),
        ),
        (
            "--solver Multistep --solver.prediction VelocityPrediction --solver.prediction.sigma_data 2 "
            "--solver.variable FlowTime --solver.variable.sigma_data 2 --solver.predictor 4 --solver.corrector 5",
            Multistep(VelocityPrediction(2.0), FlowTime(2.0), 4, 5),
        ),
        ("--solver DEIS --solver.variable openedm.schedules.VP", DEIS(variable=schedules.VP())),
        ("--solver DEIS --solver.variable Cosine", DEIS(variable=schedules.Cosine())),
        ("--solver AdamsBashforth --solver.variable.rho 5", AdamsBashforth(variable=PowerSigma(5.0))),
        ("--solver DPMSolver2S --solver.r 0.4", DPMSolver2S(0.4)),
        ("--solver DPMSolverPP3S --solver.prediction EpsilonPrediction", DPMSolverPP3S(prediction=EpsilonPrediction())),
        (
            "--solver Multistep --solver.prediction DataPrediction --solver.rule midpoint",
            Multistep(DataPrediction(), rule="midpoint"),
        ),
    ],
)
def test_the_command_line_and_a_config_file_name_every_setting(typed: str, solver: Solver, tmp_path: Path) -> None:
    arguments = typed.replace("--", "--sampler.").split()
    read = parse("openedm", command, arguments)["sampler"]
    assert read == Sampler(solver=solver)
    file = tmp_path / "config.yaml"
    file.write_text(dump({"sampler": read}))
    assert parse("openedm", command, ["--config", str(file)])["sampler"] == read
