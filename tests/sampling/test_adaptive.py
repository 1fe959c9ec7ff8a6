"""Adaptive solvers hold their tolerance for each sample, with few evaluations, in any variable and both directions."""

import math
import re
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from openedm.conditioning import MMPS
from openedm.denoiser import Condition, Denoiser, FunctionDenoiser
from openedm.exact import ExactDataset, GaussianMixture
from openedm.ground.choices import from_config, to_config
from openedm.guidance import Guided
from openedm.levels import Explicit, Karras, LogLinear
from openedm.likelihood import log_prob
from openedm.measurements import Matrix, Measurement
from openedm.preconditioning import DataPrediction, EpsilonPrediction, NetworkPrediction
from openedm.sampling import (
    RK4,
    AdaptiveSolver,
    DormandPrince,
    Exponential23,
    Sampler,
    Solver,
    State,
    Tsit5,
    adaptive_flow,
    adaptive_sample,
)
from openedm.schedules import VP, Angle, LogSigma, PowerSigma, Schedule

SOLVERS: list[AdaptiveSolver] = [
    DormandPrince(),
    Tsit5(),
    Exponential23(),
    Exponential23(prediction=DataPrediction()),
]
VARIABLES: list[Schedule] = [
    Angle(0.5, rho=2.0),
    Angle(0.5),
    LogSigma(),
    PowerSigma(7.0),
    PowerSigma(3.0),
    VP(),
]
GAUSSIAN = GaussianMixture([1.0], [[0.5, -1.0]], [[[2.0, 0.6], [0.6, 0.3]]])
HIGH, LOW = 80.0, 0.002


def tight(solver: AdaptiveSolver) -> float:
    """A tolerance that takes some hundred evaluations or less."""
    return 1e-5 if solver.order == 5 else 1e-3


def with_tolerance(solver: AdaptiveSolver, tolerance: float) -> AdaptiveSolver:
    return type(solver)(**{**vars(solver), "tolerance": tolerance})


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@cache
def circle() -> GaussianMixture:
    """8 narrow Gaussians on a circle."""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    means = 0.7 * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(torch.ones(8), means, 0.05**2 * torch.eye(2).double().expand(8, 2, 2))


@cache
def low_rank() -> GaussianMixture:
    """8 Gaussians near subspaces of 4 dimensions in 64."""
    means, basis = 0.4 * noise(8, 64, seed=1), torch.linalg.qr(noise(8, 64, 4, seed=2)).Q
    spread = torch.tensor([4.0, 1.0, 0.25, 0.0625], dtype=torch.float64)
    return GaussianMixture(torch.ones(8), means, (basis * spread) @ basis.mT + 1e-4 * torch.eye(64).double())


def error(x: Tensor, y: Tensor) -> Tensor:
    """The root of the mean square over the coordinates of each sample."""
    return (x - y).square().mean(1).sqrt()


@cache
def circle_solution() -> Tensor:
    """Where a fixed grid of 797 evaluations leads from `noise(512, 2)`, to about 1e-6."""
    fixed = Sampler(LogLinear(200, LOW, HIGH), solver=RK4())
    return fixed.sample(circle(), noise=noise(512, 2))


def test_a_tolerance_of_a_thousandth_is_held_on_the_circle_with_fifty_evaluations() -> None:
    found = adaptive_sample(circle(), HIGH * noise(512, 2), HIGH, LOW, solver=DormandPrince(1e-3))
    distance = error(found.x, circle_solution())
    assert bool(found.finished.all())
    assert float(distance.median()) < 1e-4
    assert float(distance.max()) < 1e-2
    assert float(found.nfe.double().mean()) < 50
    assert int(found.nfe.max()) < 100


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_the_error_on_the_circle_is_proportional_to_the_tolerance(solver: AdaptiveSolver) -> None:
    x = HIGH * noise(512, 2)[:64]
    tolerances = (1e-2, 1e-4) if solver.order == 5 else (1e-2, 1e-3)
    for tolerance in tolerances:
        found = adaptive_sample(circle(), x, HIGH, LOW, solver=with_tolerance(solver, tolerance))
        ratio = error(found.x, circle_solution()[:64]) / tolerance
        assert 1e-3 < float(ratio.median()) < 0.1
        assert float(ratio.max()) < 10


def test_many_dimensions_cost_no_more_steps_and_stay_within_the_tolerance() -> None:
    x = HIGH * noise(48, 64)
    converged = adaptive_sample(low_rank(), x, HIGH, LOW, solver=DormandPrince(1e-6)).x
    found = adaptive_sample(low_rank(), x, HIGH, LOW, solver=DormandPrince(1e-3))
    assert float(error(found.x, converged).median()) < 1.1e-4
    assert float(error(found.x, converged).max()) < 1e-2
    assert float(found.nfe.double().mean()) < 70


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize(("start", "end"), [(HIGH, LOW), (LOW, HIGH), (3.0, 0.5)])
def test_a_gaussian_is_taken_along_its_closed_form_in_both_directions(
    solver: AdaptiveSolver, start: float, end: float
) -> None:
    x = GAUSSIAN.ode_solution(HIGH * noise(16, 2), HIGH, start)
    found = adaptive_flow(GAUSSIAN, x, start, end, solver=with_tolerance(solver, tight(solver)))
    truth = GAUSSIAN.ode_solution(x, start, end)
    # The tolerance is of the error as it will be at σ = 0, after the flow has shrunk it by c(σ).
    shrunk = GAUSSIAN.sigma_data / math.hypot(end, GAUSSIAN.sigma_data)
    assert float(error(found.x, truth).max()) * shrunk < 10 * tight(solver)
    assert torch.equal(found.time, torch.full((16,), end, dtype=torch.float64))


@pytest.mark.parametrize("variable", VARIABLES, ids=repr)
@pytest.mark.parametrize("pair", [DormandPrince, Tsit5])
def test_every_variable_leads_to_the_same_samples(variable: Schedule, pair: type[DormandPrince]) -> None:
    x = HIGH * noise(16, 2)
    found = adaptive_flow(GAUSSIAN, x, HIGH, 0.01, solver=pair(1e-6, variable=variable))
    assert float(error(found.x, GAUSSIAN.ode_solution(x, HIGH, 0.01)).max()) < 1e-5


@pytest.mark.parametrize("variable", [*VARIABLES, Angle(2.0, rho=3.0), PowerSigma(1.0)], ids=repr)
def test_a_variable_is_inverted_and_differentiated(variable: Schedule) -> None:
    sigma = np.array([0.0021, 0.05, 0.7, 6.0, 79.0])
    value = variable.time(torch.from_numpy(sigma)).requires_grad_(True)
    back = variable.sigma(value)
    np.testing.assert_allclose(back.detach(), sigma, rtol=1e-9)
    (slope,) = torch.autograd.grad(back.sum(), value)
    torch.testing.assert_close(variable.sigma_derivative(value.detach()), slope, rtol=1e-9, atol=0)


def test_the_default_variable_follows_the_width_of_the_data() -> None:
    x, evaluations = noise(32, 2), []
    for scale in (0.01, 1.0, 100.0):
        scaled = GaussianMixture(
            [0.5, 0.5], [[-scale, 0.0], [scale, 0.0]], (0.1 * scale) ** 2 * torch.eye(2).double().expand(2, 2, 2)
        )
        run = adaptive_sample(scaled, 80 * scale * x, 80 * scale, 0.002 * scale, solver=DormandPrince(1e-3))
        evaluations.append(run.nfe)
    assert torch.equal(evaluations[0], evaluations[1])
    assert torch.equal(evaluations[1], evaluations[2])


class Counting(Denoiser):
    """Counts the evaluations of each condition, and the range of σ."""

    def __init__(self, inner: Denoiser, classes: int) -> None:
        super().__init__()
        self.inner, self.counts, self.sigmas = inner, torch.zeros(classes, dtype=torch.int64), []
        self.sigma_data = inner.sigma_data

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.counts.index_add_(0, condition, torch.ones_like(condition))
        self.sigmas += [float(sigma.min()), float(sigma.max())]
        return self.inner(x, sigma)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_evaluations_are_counted_and_stay_between_the_levels(solver: AdaptiveSolver) -> None:
    counting = Counting(circle(), 20)
    found = adaptive_sample(
        counting, HIGH * noise(20, 2), HIGH, LOW, solver=solver, condition=torch.arange(20, dtype=torch.int64)
    )
    assert torch.equal(counting.counts, found.nfe)
    assert len(set(found.nfe.tolist())) > 1
    assert (min(counting.sigmas), max(counting.sigmas)) == (LOW, HIGH)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_sample_does_not_depend_on_its_neighbours(solver: AdaptiveSolver) -> None:
    x = HIGH * noise(12, 2)
    together = adaptive_sample(circle(), x, HIGH, LOW, solver=solver)
    for i in (0, 5, 11):
        alone = adaptive_sample(circle(), x[i : i + 1], HIGH, LOW, solver=solver)
        assert int(alone.nfe) == int(together.nfe[i])
        # Sums over components are rounded differently in batches of another size.
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=1e-10, atol=1e-12)


def test_the_condition_stays_with_its_sample() -> None:
    points = noise(5, 3)
    classes = torch.tensor([3, 0, 4, 1, 1, 2])
    denoiser = ExactDataset(points, torch.arange(5))
    found = adaptive_sample(denoiser, HIGH * noise(6, 3, seed=1), HIGH, 0.1, solver=DormandPrince(), condition=classes)
    torch.testing.assert_close(found.x, points[classes])


def capped(solver: AdaptiveSolver, max_nfe: int) -> AdaptiveSolver:
    return type(solver)(**{**vars(solver), "max_nfe": max_nfe})


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_sample_that_runs_out_of_evaluations_spends_those_that_are_left_on_the_rest_of_its_path(
    solver: AdaptiveSolver,
) -> None:
    x = HIGH * noise(512, 2)[:32]
    with pytest.warns(UserWarning, match="max_nfe=25 ended the adaptive steps of 32 of 32 samples early"):
        found = adaptive_sample(circle(), x, HIGH, LOW, solver=capped(solver, 25))
    assert not bool(found.finished.any())
    assert not bool(found.failed.any())
    assert found.nfe.tolist() == [25] * 32
    stopped = adaptive_flow(circle(), x, HIGH, LOW, solver=capped(solver, 25))
    assert torch.equal(stopped.time, found.time)
    assert bool((stopped.time > LOW).all())
    there = error(circle()(stopped.x, stopped.time), circle_solution()[:32])
    assert float(error(found.x, circle_solution()[:32]).median()) < min(0.03, 0.2 * float(there.median()))


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_samples_that_need_no_more_than_the_limit_are_those_without_it(solver: AdaptiveSolver) -> None:
    x = HIGH * noise(32, 2)
    free = adaptive_sample(circle(), x, HIGH, LOW, solver=solver)
    limit = int(free.nfe.median())
    with pytest.warns(UserWarning, match="samples early, the worst at noise level .* raise max_nfe or tolerance"):
        some = adaptive_sample(circle(), x, HIGH, LOW, solver=capped(solver, limit))
    torch.testing.assert_close(some.x[some.finished], free.x[some.finished], rtol=1e-10, atol=1e-12)
    assert torch.equal(some.finished, free.nfe <= limit)
    assert some.nfe[~some.finished].tolist() == [limit] * int((~some.finished).sum())


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("max_nfe", [2, 3, 5, 13])
def test_even_the_smallest_limits_are_kept(solver: AdaptiveSolver, max_nfe: int) -> None:
    counting, x = Counting(circle(), 2), HIGH * noise(2, 2)
    with pytest.warns(UserWarning, match=f"max_nfe={max_nfe} ended the adaptive steps of 2 of 2 samples early"):
        found = adaptive_sample(counting, x, HIGH, LOW, solver=capped(solver, max_nfe), condition=torch.arange(2))
    assert torch.equal(counting.counts, found.nfe)
    assert found.nfe.tolist() == [max_nfe, max_nfe]
    if max_nfe <= 3:  # there is one evaluation beside those for the first step
        torch.testing.assert_close(found.x, circle()(x, HIGH))


def test_a_sampler_says_that_samples_ran_out_of_evaluations() -> None:
    sampler = Sampler(Karras(2), solver=DormandPrince(max_nfe=20))
    with pytest.warns(UserWarning, match="max_nfe=20 ended the adaptive steps of 8 of 8 samples early"):
        sampler.sample(circle(), noise=noise(8, 2))


def test_a_tolerance_is_in_standard_deviations_of_the_data_unless_it_is_said_to_be_in_data_units() -> None:
    wide, x = GaussianMixture([1.0], [[0.0]], [[[100.0]]]), noise(8, 1)
    relative = DormandPrince(1e-3, variable=LogSigma())
    absolute = DormandPrince(1e-2, variable=LogSigma(), relative=False)
    first, second = (adaptive_sample(wide, HIGH * x, HIGH, LOW, solver=solver) for solver in (relative, absolute))
    assert torch.equal(first.x, second.x)


@pytest.mark.parametrize("rows", [1, 5])
def test_a_condition_of_another_number_of_rows_is_refused(rows: int, without_type_checker: None) -> None:
    denoiser, condition = ExactDataset(noise(5, 2), torch.arange(5)), torch.arange(rows)
    message = re.escape(f"condition must have one row a sample (3), got {rows} rows")
    with pytest.raises(ValueError, match=message):
        adaptive_flow(denoiser, noise(3, 2), 1.0, 0.1, solver=DormandPrince(), condition=condition)
    with pytest.raises(ValueError, match=message):
        Sampler(solver=DormandPrince()).invert(denoiser, noise(3, 2), condition=condition)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_dense_output_gives_the_states_at_levels_in_between(solver: AdaptiveSolver) -> None:
    x, at = HIGH * noise(8, 2), torch.tensor([80.0, 10.0, 1.0, 0.2, 0.01], dtype=torch.float64)
    found = adaptive_flow(GAUSSIAN, x, HIGH, 0.01, solver=with_tolerance(solver, tight(solver)), at=at)
    assert found.dense is not None
    for sigma, state in zip(at.tolist(), found.dense, strict=True):
        truth = GAUSSIAN.ode_solution(x, HIGH, sigma)
        shrunk = GAUSSIAN.sigma_data / math.hypot(sigma, GAUSSIAN.sigma_data)
        assert float(error(state, truth).max()) * shrunk < 30 * tight(solver)
    torch.testing.assert_close(found.dense[-1], found.x, rtol=1e-12, atol=1e-12)


def test_a_denoiser_that_is_not_finite_is_reported() -> None:
    broken = FunctionDenoiser(lambda x, sigma, condition: torch.where(x[:, :1] > 0, math.nan, 0 * x))
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    found = adaptive_flow(broken, x, 1.0, 0.1, solver=DormandPrince())
    assert (found.finished.tolist(), found.failed.tolist()) == ([False, True], [True, False])
    message = "the step size of 1 of 2 samples fell below rounding, of sample 0 at sigma = 1: the denoiser is not"
    with pytest.raises(FloatingPointError, match=message):
        found.check()
    with pytest.raises(FloatingPointError, match=message):
        Sampler(Karras(2, 0.1, 1.0), solver=DormandPrince()).sample(broken, noise=x)
    sound = adaptive_flow(broken, x[1:], 1.0, 0.1, solver=DormandPrince())
    assert sound.check() is sound


def test_samples_in_single_precision_follow_those_in_double() -> None:
    x = HIGH * noise(32, 2)
    single = adaptive_sample(circle(), x.float(), HIGH, LOW, solver=DormandPrince(1e-3))
    double = adaptive_sample(circle(), x, HIGH, LOW, solver=DormandPrince(1e-3))
    assert single.x.dtype == torch.float32
    assert float(error(single.x, double.x).median()) < 1e-4


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_sampler_takes_an_adaptive_solver(solver: AdaptiveSolver) -> None:
    states: list[State] = []
    sampler = Sampler(Karras(18, LOW, HIGH), solver=solver)
    x = sampler.sample(circle(), noise=noise(8, 2), callback=states.append)
    expected = adaptive_sample(circle(), HIGH * noise(8, 2), HIGH, LOW, solver=solver)
    assert torch.equal(x, expected.x)
    assert sampler.nfe is None
    assert [(s.index, s.sigma, s.scale) for s in states] == [(0, HIGH, 1.0), (1, LOW, 1.0), (2, 0.0, 1.0)]
    torch.testing.assert_close(states[0].denoised, circle()(HIGH * noise(8, 2), HIGH))
    assert torch.equal(states[1].denoised, x)
    with pytest.raises(TypeError, match=f"solver must be a PlannedSolver, .* got {type(solver).__name__}"):
        sampler.plan(circle())


def test_from_a_single_level_the_sample_is_denoised() -> None:
    x = Sampler(Explicit((2.0,)), solver=DormandPrince()).sample(circle(), noise=noise(4, 2))
    torch.testing.assert_close(x, circle()(2 * noise(4, 2), 2.0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_sampling_undoes_inversion_to_the_tolerance(solver: AdaptiveSolver) -> None:
    sampler = Sampler(Karras(2, 0.05, HIGH), solver=with_tolerance(solver, tight(solver)))
    data, states = circle().sample(16, torch.Generator().manual_seed(0), sigma=0.05), []
    back = sampler.invert(circle(), data, callback=states.append)
    assert float(error(sampler.sample(circle(), noise=back), circle()(data, 0.05)).median()) < tight(solver)
    assert [(s.index, s.sigma) for s in states] == [(0, 0.05), (1, HIGH)]
    torch.testing.assert_close(states[0].denoised, circle()(data, 0.05))
    torch.testing.assert_close(states[1].denoised, circle()(states[1].x, HIGH))
    short = Sampler(Karras(2, 0.05, HIGH), solver=DormandPrince(max_nfe=10))
    with pytest.raises(ValueError, match="max_nfe must be large enough for an inversion, got 10"):
        short.invert(circle(), data)


@pytest.mark.parametrize(
    "solver",
    [*SOLVERS, DormandPrince(1e-5, 100, 0.1, LogSigma()), Tsit5(variable=Angle(0.3, 1.5))],
    ids=repr,
)
def test_a_solver_is_a_value_that_is_written_and_read(solver: AdaptiveSolver) -> None:
    assert from_config(Solver, to_config(solver)) == solver
    assert solver.evaluations(18) is None
    assert (solver.uses_schedule, solver.allows_churn, solver.stochastic) == (False, False, False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DormandPrince(0.0), "tolerance must be finite and > 0, got 0.0"),
        (lambda: Tsit5(max_nfe=1), "max_nfe must be >= 2, got 1"),
        (lambda: Exponential23(first_step=-1.0), "first_step must be finite and > 0, got -1.0"),
        (lambda: Exponential23(tolerance=math.nan), "tolerance must be finite and > 0, got nan"),
        (
            lambda: adaptive_flow(GAUSSIAN, noise(1, 2), 1.0, 1.0, solver=DormandPrince()),
            "sigma_end must differ from sigma_start, got 1.0 for both",
        ),
        (
            lambda: adaptive_flow(GAUSSIAN, noise(1, 2), 1.0, 0.0, solver=DormandPrince()),
            "sigma_end must be finite and > 0, got 0.0",
        ),
        (
            lambda: adaptive_flow(GAUSSIAN, noise(1, 2), 1.0, 0.1, solver=DormandPrince(), at=torch.tensor([0.2, 0.3])),
            "at must hold levels from 1.0 to 0.1, in that order, got [0.2",
        ),
        (
            lambda: adaptive_flow(GAUSSIAN, noise(1, 2), 0.01, 0.1, solver=DormandPrince(), at=torch.tensor([0.1])),
            "at must hold levels from 0.01 to 0.1, in that order, got [0.10000000149",
        ),
    ],
)
def test_an_argument_out_of_range_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_types_that_do_not_fit_are_named(without_type_checker: None) -> None:
    with pytest.raises(TypeError, match=re.escape("max_nfe must be an integer, got 50.0")):
        DormandPrince(max_nfe=50.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=re.escape("prediction must be EpsilonPrediction or DataPrediction, got Netw")):
        Exponential23(prediction=NetworkPrediction())
    assert Exponential23(prediction=EpsilonPrediction()) == Exponential23()


def test_settings_for_each_sample_are_refused_before_any_evaluation() -> None:
    """Samples that arrive leave the batch: the rows that stay would be taken for others."""
    mixture = GaussianMixture([0.5, 0.5], [[1.0], [-1.0]], [[[0.1]], [[0.1]]])
    wide = GaussianMixture([1.0], [[0.0]], [[[1.0]]])
    guided = Guided(mixture, wide, torch.tensor([1.5, 2.0, 3.0]))
    measured = MMPS(mixture, Measurement(Matrix(torch.eye(1)), torch.zeros(3, 1), sigma_y=0.5))
    for denoiser in (guided, measured, Guided(measured, wide, 2.0)):
        assert denoiser.rows == 3
        for run in (
            lambda d: Sampler(solver=DormandPrince()).sample(d, range(3)),
            lambda d: log_prob(d, torch.zeros(3, 1)),
        ):
            with pytest.raises(ValueError, match="denoiser must have one setting for all samples, but has"):
                run(denoiser)
    assert Guided(mixture, wide, 2.0).rows is None


@pytest.mark.filterwarnings("ignore:max_nfe=60")
def test_a_tolerance_below_what_float32_resolves_is_named():
    class Float32(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.sigma_data, self.event_shape = 1.0, (1,)

        def denoise(self, x: Tensor, sigma: Tensor, condition: Condition, **options: object) -> Tensor:
            return ((x / (1 + sigma.reshape(-1, 1) ** 2)).float() * self.weight).to(x.dtype)

    sampler = Sampler(Karras(2), solver=DormandPrince(1e-14, max_nfe=60))
    with pytest.warns(UserWarning, match="tolerance=1e-14 is below what a network in float32 resolves"):
        sampler.sample(Float32(), seeds=range(2))
