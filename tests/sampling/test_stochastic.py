"""Stochastic samplers: their steps in closed form, and the marginals p(x; σ), which all of them keep."""

import math
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from marks import FAR_APART
from openedm import schedules
from openedm.denoiser import Condition, Denoiser, FunctionDenoiser, Preconditioned
from openedm.exact import GaussianMixture
from openedm.levels import Explicit, Karras, LogLinear
from openedm.preconditioning import Adapter
from openedm.sampling import (
    DDIM,
    DEIS,
    RK4,
    Ancestral,
    BandEta,
    BrownianNoise,
    Churn,
    ConstantEta,
    DPMSolver3S,
    DPMSolverPP2M,
    DPMSolverPP3M,
    Euler,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    Restart,
    Sampler,
    Solver,
    State,
    UniPC,
)
from properties.strategies import EPS, log_uniform, stochastic_solvers

MIXTURE = GaussianMixture(
    [0.3, 0.7], [[-1.4, 0.7], [0.6, -0.3]], [[[0.20, 0.05], [0.05, 0.10]], [[0.05, 0.0], [0.0, 0.3]]]
)
SIGMAS = (80.0, 31.0, 9.0, 2.5, 1.1, 0.3, 0.05)
NOISES = torch.randn(20, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Given:
    """The given noises, one a draw."""

    def __init__(self, noises: Tensor = NOISES) -> None:
        self.noises, self.drawn = noises, 0

    def draw(self, event_shape: tuple[int, ...]) -> Tensor:
        self.drawn += 1
        return self.noises[self.drawn - 1]


class Counting(Denoiser):
    """The mixture's denoiser; records the levels that it is asked at."""

    def __init__(self) -> None:
        super().__init__()
        self.event_shape, self.seen = (2,), []

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition, **options: Any) -> Tensor:
        self.seen.append(float(sigma))
        return MIXTURE.denoise(x, sigma, condition)


def states(solver: Solver, schedule: schedules.Schedule = schedules.EDM()) -> list[State]:
    """The states of a run with the given noises, the first of which it starts from."""
    return list(Sampler(Explicit(SIGMAS), schedule, solver=solver).steps(MIXTURE, Given()))


def assert_followed(solver: Solver, step: Callable[[Tensor, float, float, Iterator[Tensor]], Tensor]) -> None:
    """The states are those that `step` makes from x, the two levels and the noises; the sample is D at the last."""
    noises = iter(NOISES)
    reached = [80.0 * next(noises)]
    for sigma, following in pairwise(SIGMAS):
        reached.append(step(reached[-1], sigma, following, noises))
    reached.append(MIXTURE(reached[-1], SIGMAS[-1]))
    torch.testing.assert_close(torch.stack([s.x for s in states(solver)]), torch.stack(reached), rtol=1e-12, atol=1e-12)


# Steps in closed form.


@FAR_APART
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0, 3.0])
def test_euler_maruyama_takes_the_drift_and_the_noise_at_the_start_of_the_step(eta: float) -> None:
    def step(x: Tensor, sigma: float, following: float, noises: Iterator[Tensor]) -> Tensor:
        drift = (1 + eta) * (x - MIXTURE(x, sigma)) / sigma
        noise = math.sqrt(2 * eta * sigma * (sigma - following)) * next(noises) if eta > 0 else 0
        return x + drift * (following - sigma) + noise

    assert_followed(EulerMaruyama(ConstantEta(eta)), step)


def test_eta_may_be_confined_to_a_band_of_levels_and_draws_no_noise_outside() -> None:
    def step(x: Tensor, sigma: float, following: float, noises: Iterator[Tensor]) -> Tensor:
        eta = 0.7 if 1.1 <= sigma <= 9.0 else 0.0
        moved = x + (1 + eta) * (x - MIXTURE(x, sigma)) / sigma * (following - sigma)
        return moved + math.sqrt(2 * eta * sigma * (sigma - following)) * next(noises) if eta > 0 else moved

    assert_followed(EulerMaruyama(BandEta(0.7, 1.1, 9.0)), step)


@pytest.mark.parametrize("eta", [0.3, 1.0, 1.7])
def test_ancestral_sampling_goes_down_too_far_and_adds_what_is_missing(eta: float) -> None:
    def step(x: Tensor, sigma: float, following: float, noises: Iterator[Tensor]) -> Tensor:
        up = min(following, eta * math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2))
        down = math.sqrt(following**2 - up**2)
        denoised = MIXTURE(x, sigma)
        return denoised + down * (x - denoised) / sigma + up * next(noises)

    assert_followed(Ancestral(eta), step)


def test_ancestral_sampling_at_eta_1_is_the_posterior_of_the_forward_noising() -> None:
    def step(x: Tensor, sigma: float, following: float, noises: Iterator[Tensor]) -> Tensor:
        # x' | x, y for x' = y + σ' n and x = x' + √(σ² − σ'²) n, at y = D.
        share = following**2 / sigma**2
        mean = share * x + (1 - share) * MIXTURE(x, sigma)
        return mean + following * math.sqrt(1 - share) * next(noises)

    assert_followed(Ancestral(), step)


@pytest.mark.parametrize("corrections", [1, 2])
def test_the_corrector_takes_langevin_steps_at_the_level_that_the_predictor_reached(corrections: int) -> None:
    def step(x: Tensor, sigma: float, following: float, noises: Iterator[Tensor]) -> Tensor:
        x = x + (following - sigma) * (x - MIXTURE(x, sigma)) / sigma
        delta = 2 * (0.1 * following) ** 2
        for _ in range(corrections):
            x = x + delta * MIXTURE.score(x, following) + math.sqrt(2 * delta) * next(noises)
        return x

    assert_followed(PredictorCorrector(Euler(), 0.1, corrections), step)


PLANNED = [(Heun(), schedules.VP()), *((solver, schedules.EDM()) for solver in (Heun(), DEIS(), UniPC()))]


@pytest.mark.parametrize(("solver", "schedule"), PLANNED, ids=repr)
def test_restart_follows_the_solver_down_to_the_level_and_again_from_noise_added_there(
    solver: Any, schedule: schedules.Schedule
) -> None:
    restart = Restart(solver, low=0.5, high=5.0, repeats=2, num_steps=3)
    again = tuple(Karras(4, 0.3, 5.0).sigmas().tolist())  # The first level below 0.5 is 0.3.

    def down(x: Tensor, sigmas: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        run = list(Sampler(Explicit(sigmas), schedule, solver=solver).steps(MIXTURE, noise=x / sigmas[0]))
        return run[-2].x / run[-2].scale, run[-1].x

    x, _ = down(80.0 * NOISES[0], SIGMAS[:6])
    x, _ = down(x + math.sqrt(5.0**2 - 0.3**2) * NOISES[1], again)
    _, sample = down(x + math.sqrt(5.0**2 - 0.3**2) * NOISES[2], (*again, 0.05))
    source = Given()
    found = Sampler(Explicit(SIGMAS), schedule, solver=restart).sample(MIXTURE, source)
    torch.testing.assert_close(found, sample, rtol=1e-11, atol=1e-12)
    assert source.drawn == 3


def test_the_states_of_restart_tell_where_it_stands() -> None:
    restart = Restart(Heun(), low=0.5, high=5.0, repeats=2, num_steps=3)
    run, curved = states(restart), states(restart, schedules.VP())
    again = Karras(4, 0.3, 5.0).sigmas().tolist()
    assert [s.index for s in run] == list(range(len(run)))
    # A state that gets noise is told as it arrived, like one that is churned.
    assert [s.sigma for s in run] == [*SIGMAS[:5], 0.3, *again[1:3], 0.3, *again[1:], 0.05, 0.0]
    assert [s.sigma for s in curved] == [s.sigma for s in run]
    for state in curved[:-1]:
        assert state.time == pytest.approx(float(schedules.VP().time(state.sigma)), rel=4 * EPS)
        assert state.scale == pytest.approx(1 / math.sqrt(1 + state.sigma**2), rel=4 * EPS)


def test_restart_adds_only_levels_that_the_denoiser_knows() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
            return torch.zeros_like(x)

    fine, coarse = (
        Preconditioned(Net(), Adapter(table=tuple(0.01 * step**j for j in range(count))), event_shape=(2,))
        for step, count in ((1.1, 100), (1.21, 50))
    )
    rounded = tuple(float(coarse.round_sigma(torch.tensor(s))) for s in SIGMAS)
    for denoiser in (fine, coarse):  # The same levels of the grid, in turn: a remembered plan would be the other's.
        plan = Sampler(Explicit(rounded), solver=Restart(Euler(), 0.5, 5.0)).plan(denoiser)
        asked = [float(stage.sigma) for step in plan.steps for stage in step.stages]
        assert asked == [float(denoiser.round_sigma(torch.tensor(s))) for s in asked]
        again = next(step for step in plan.steps if step.before is not None)
        assert again.before.std == pytest.approx(math.sqrt(float(again.stages[0].sigma) ** 2 - again.sigma**2))


# Marginals. A Gaussian's denoiser is linear: the variance of x is the sum of its squared responses to the draws.

WIDTHS = torch.tensor([0.0, 0.09, 0.25, 1.0, 9.0], dtype=torch.float64)
LINEAR = FunctionDenoiser(lambda x, sigma, condition: x * WIDTHS / (WIDTHS + sigma**2), event_shape=(5,))


class Responses:
    """Draw k is 1 in row k and 0 in the others; the first is as wide as p(x; 80), of which 80 n lacks the data."""

    def __init__(self, rows: int) -> None:
        self.rows, self.drawn = rows, 0

    def draw(self, event_shape: tuple[int, ...]) -> Tensor:
        noise = torch.zeros(self.rows, *event_shape, dtype=torch.float64)
        noise[self.drawn] = (1 + WIDTHS / 80.0**2).sqrt() if self.drawn == 0 else 1.0
        self.drawn += 1
        return noise


def excess(solver: Solver, intervals: int, low: float = 0.2) -> Tensor:
    """Variance of the state at each level, relative to that of p(x; σ), less 1: (levels, widths)."""
    levels = LogLinear(intervals + 1, low, 80.0)
    run = list(Sampler(levels, solver=solver).steps(LINEAR, Responses(4 * intervals + 8)))[:-1]
    return torch.stack([s.x.square().sum(0) / (WIDTHS + s.sigma**2) - 1 for s in run])


@given(log_uniform(0.01, 10.0), st.integers(1, 12), st.sampled_from([Ancestral, DPMSolverPP2M, DPMSolverPP3M]))
@settings(max_examples=30)
def test_where_the_data_is_a_point_steps_on_the_denoised_keep_the_noise_level_exactly(
    eta: float, intervals: int, kind: Any
) -> None:
    assert excess(kind(eta=eta), intervals)[:, 0].abs().max() < 1e-12


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(
    ("make", "order"),
    [
        (lambda eta: EulerMaruyama(ConstantEta(eta)), 1),
        (lambda eta: DDIM(eta=eta), 1),
        (Ancestral, 1),
        (lambda eta: DPMSolverPP2M(eta=eta), 2),
        (lambda eta: DPMSolverPP3M(eta=eta), 2),
    ],
    ids=["euler-maruyama", "ddim", "ancestral", "2m", "3m"],
)
def test_the_variance_of_data_of_every_width_is_kept_to_the_order_of_the_solver(
    make: Callable[[float], Solver], order: int, eta: float
) -> None:
    errors = [float(excess(make(eta), n)[-1].abs().max()) for n in (100, 200)]
    assert errors[1] < (0.08 if order == 1 else 8e-4)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("solver", [RK4(), DPMSolver3S(), UniPC()], ids=lambda solver: type(solver).__name__)
def test_restart_keeps_the_marginal_to_the_error_of_its_solver(solver: Any) -> None:
    restarts = [(n, Restart(solver, 0.5, 5.0, repeats=3, num_steps=n // 4)) for n in (64, 128)]
    errors = [float(excess(restart, n)[-1].abs().max()) for n, restart in restarts]
    assert errors[1] < 1e-4
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.25)


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("snr", [0.05, 0.16, 0.3])
def test_langevin_steps_widen_the_marginal_by_less_than_the_square_of_the_step(snr: float) -> None:
    found = excess(PredictorCorrector(RK4(), snr, corrections=1), 100)[1:]
    # At rest V = (1 − δ/v)² V + 2δ, that is V/v = 1/(1 − δ/(2v)) with v = λ + σ², δ = 2 (r σ)².
    assert found.min() > -1e-4
    assert found.max() < 1 / (1 - snr**2) - 1 + 1e-4
    point = PredictorCorrector(RK4(), snr, corrections=math.ceil(5 / snr**2))
    resting = list(Sampler(Explicit((80.0, 40.0)), solver=point).steps(LINEAR, Responses(1200 + math.ceil(5 / snr**2))))
    widened = resting[1].x.square().sum(0) / (WIDTHS + 40.0**2)
    torch.testing.assert_close(widened, 1 / (1 - (snr * 40.0) ** 2 / (WIDTHS + 40.0**2)), rtol=1e-4, atol=0)


GAUSSIAN = GaussianMixture([1.0], [[0.5, -1.0]], [[[2.0, 0.6], [0.6, 0.3]]])


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize(
    "solver",
    [
        EulerMaruyama(ConstantEta(1.0)),
        EulerMaruyama(BandEta(2.0, 0.1, 10.0)),
        Ancestral(0.5),
        DPMSolverPP2M(eta=1.0),
        Restart(Heun(), 0.3, 3.0),
        PredictorCorrector(Heun(), 0.1),
    ],
    ids=repr,
)
def test_samples_have_the_mean_and_the_covariance_of_the_data(solver: Solver) -> None:
    count = 2000
    last = list(Sampler(LogLinear(150, 0.1, 80.0), solver=solver).steps(GAUSSIAN, range(count)))[-2]
    covariance = torch.tensor([[2.01, 0.6], [0.6, 0.31]], dtype=torch.float64)
    # Five standard errors of a mean and of a product of Gaussians, and the errors of 150 steps measured above.
    variances = covariance.diag()
    standard = (variances[:, None] * variances + covariance.square()).div(count).sqrt()
    assert (last.x.mean(0) - torch.tensor([0.5, -1.0])).abs().max() < 5 * math.sqrt(2.01 / count) + 0.02
    assert ((last.x.T.cov() - covariance).abs() < 5 * standard + 0.04 * covariance).all()


@pytest.mark.usefixtures("without_type_checker")
def test_euler_maruyama_converges_to_the_path_of_its_noise_at_order_one() -> None:
    def end(intervals: int) -> Tensor:
        sampler = Sampler(LogLinear(intervals + 1, 0.3, 30.0), solver=EulerMaruyama())
        return list(sampler.steps(MIXTURE, BrownianNoise(range(200))))[-2].x

    reference = end(2048)
    errors = [float((end(n) - reference).norm()) for n in (64, 128, 256)]
    # Strong order 1, for the noise is additive; the reference's own error is an eighth of the last.
    assert math.log2(errors[0] / errors[2]) / 2 == pytest.approx(1.0, abs=0.2)


# Evaluations, seeds, refusals.


@FAR_APART
@settings(max_examples=30)
@given(stochastic_solvers(), st.integers(2, 8))
def test_nfe_is_the_number_of_evaluations(solver: Solver, num_steps: int) -> None:
    sampler, denoiser = Sampler(Karras(num_steps, 0.02), solver=solver), Counting()
    assert sampler.stochastic
    sampler.sample(denoiser, [0, 1])
    assert sampler.nfe == len(denoiser.seen)


def test_the_budgets_of_restart_and_of_the_corrector() -> None:
    assert Sampler(Karras(18), solver=Restart(Heun(), repeats=2, num_steps=3)).nfe == 35 + 2 * 3 * 2
    assert Sampler(Karras(18), solver=PredictorCorrector(corrections=2)).nfe == 18 + 2 * 17


@FAR_APART
@settings(max_examples=20)
@given(stochastic_solvers(), st.permutations(range(5)))
def test_a_sample_is_the_same_to_the_bit_whatever_its_batch(solver: Solver, order: list[int]) -> None:
    denoiser = FunctionDenoiser(lambda x, sigma, condition: x / (1 + sigma**2), event_shape=(3,))
    sampler, seeds = Sampler(Karras(6), solver=solver), [3, 1, 4, 159, 26]
    together = sampler.sample(denoiser, seeds)
    assert torch.equal(sampler.sample(denoiser, [seeds[i] for i in order]), together[order])
    assert torch.equal(sampler.sample(denoiser, seeds[2:3]), together[2:3])
    assert float((together[1:] - together[:-1]).abs().max()) > 0


@pytest.mark.parametrize(
    "solver", [EulerMaruyama(), Ancestral(), Restart(), PredictorCorrector()], ids=lambda solver: type(solver).__name__
)
def test_a_run_needs_seeds_and_has_no_inverse(solver: Solver) -> None:
    with pytest.raises(ValueError, match=r"seeds must be given if a run adds noise"):
        Sampler(solver=solver).sample(MIXTURE, noise=NOISES[0])
    with pytest.raises(ValueError, match=r"solver must be deterministic for inversion, got "):
        Sampler(solver=solver).invert(MIXTURE, NOISES[0])
    with pytest.raises(ValueError, match=r"s_churn must be 0 for .*, since churn requires a Runge-Kutta solver"):
        Sampler(solver=solver, churn=Churn(5.0))


def test_a_schedule_goes_with_a_restart_whose_solver_follows_it_and_with_no_other() -> None:
    Sampler(schedule=schedules.VP(), solver=Restart(Heun()))
    for solver in (Restart(UniPC()), PredictorCorrector(Heun()), Ancestral(), EulerMaruyama()):
        with pytest.raises(ValueError, match=rf"schedule has no effect on {type(solver).__name__}"):
            Sampler(schedule=schedules.VP(), solver=solver)


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ConstantEta(-1.0), ValueError, "eta must be >= 0, got -1.0"),
        (lambda: ConstantEta(math.inf), ValueError, "eta must be a finite number, got inf"),
        (lambda: BandEta(1.0, -0.1), ValueError, "low must be >= 0, got -0.1"),
        (lambda: BandEta(1.0, 2.0, 2.0), ValueError, "low must be < high, got low=2.0 and high=2.0"),
        (lambda: Ancestral(0.0), ValueError, "eta must be finite and > 0, got 0.0"),
        (lambda: Restart(low=0.0), ValueError, "low must be finite and > 0, got 0.0"),
        (lambda: Restart(low=0.3, high=0.3), ValueError, "low must be < high, got low=0.3 and high=0.3"),
        (lambda: Restart(repeats=0), ValueError, "repeats must be >= 1, got 0"),
        (lambda: Restart(repeats=1.5), TypeError, "repeats must be an integer, got 1.5"),
        (lambda: Restart(Ancestral()), ValueError, "solver must be deterministic, got Ancestral(eta=1.0)"),
        (lambda: Restart(DDIM(eta=1.0)), ValueError, "solver must be deterministic, got DDIM("),
        (lambda: PredictorCorrector(snr=0.0), ValueError, "snr must be between 0 and 1, both excluded, got 0.0"),
        (lambda: PredictorCorrector(snr=1.0), ValueError, "snr must be between 0 and 1, both excluded, got 1.0"),
        (lambda: PredictorCorrector(corrections=0), ValueError, "corrections must be >= 1, got 0"),
        (lambda: PredictorCorrector(UniPC()), ValueError, "predictor must be a one-step solver, got UniPC("),
        (lambda: PredictorCorrector(Restart()), ValueError, "predictor must be a one-step solver, got Restart("),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("low", "high", "sigmas"),
    [(0.01, 0.3, SIGMAS), (90.0, 100.0, SIGMAS), (0.5, 90.0, SIGMAS), (0.5, 5.0, (0.4, 0.2))],
)
def test_a_restart_outside_the_levels_is_refused_before_the_run(
    low: float, high: float, sigmas: tuple[float, ...]
) -> None:
    denoiser = Counting()
    message = f"low={low:g} and high={high:g} must be inside the levels, which go from {sigmas[0]:g} to"
    with pytest.raises(ValueError, match=message):
        Sampler(Explicit(sigmas), solver=Restart(Heun(), low, high)).steps(denoiser, [0])
    assert denoiser.seen == []
