"""Inversion: the same ODE, followed upward, leads from data to the noise that it came from."""

import math
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from openedm.denoiser import Denoiser, Preconditioned
from openedm.exact import ExactDataset, GaussianMixture
from openedm.levels import Karras
from openedm.networks import DDPMpp
from openedm.preconditioning import EDM as EDMPreconditioning
from openedm.sampling import RK4, Churn, Euler, Heun, Sampler, Solver
from openedm.schedules import EDM, VE, VP, Cosine, FlowScaling, NoScaling, RectifiedFlow, Scaling, Schedule, VPScaling

pytestmark = pytest.mark.usefixtures("without_type_checker")  # which takes longer than the arithmetic
CURVES = list(product([EDM(), VP(), VE(), Cosine(), RectifiedFlow()], [NoScaling(), VPScaling(), FlowScaling()]))
GAUSSIAN = GaussianMixture([1.0], [[0.5, -1.0]], [[[2.0, 0.6], [0.6, 0.3]]])
MIXTURE = GaussianMixture(
    [0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [[[0.20, 0.05], [0.05, 0.10]], [[0.05, 0.0], [0.0, 0.3]]]
)
RUNS = [(*curve, Heun()) for curve in CURVES] + [(VP(), VPScaling(), solver) for solver in (Euler(), RK4())]
LOW, HIGH = 0.3, 6.0
DATA = torch.randn(5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def sampler(intervals: int, schedule: Schedule, scaling: Scaling, solver: Solver) -> Sampler:
    return Sampler(Karras(intervals + 1, LOW, HIGH, 3.0), schedule, scaling, solver)


def there_and_back(sampler: Sampler, denoiser: Denoiser) -> Tensor:
    """The state at the lowest level of the run that starts from the noise that inversion gives for DATA."""
    noise = sampler.invert(denoiser, DATA)
    last = list(sampler.steps(denoiser, noise=noise))[-2]
    return last.x / last.scale


@pytest.mark.parametrize(("schedule", "scaling", "solver"), RUNS, ids=repr)
def test_the_inverse_of_a_gaussian_tends_to_its_closed_form_at_the_order_of_the_solver(
    schedule: Schedule, scaling: Scaling, solver: Solver
) -> None:
    exact = (GAUSSIAN.ode_solution(DATA, LOW, HIGH) - GAUSSIAN.means) / HIGH
    intervals = {1: (256, 512), 2: (32, 64), 4: (48, 96)}[solver.order]
    errors = [float((sampler(n, schedule, scaling, solver).invert(GAUSSIAN, DATA) - exact).norm()) for n in intervals]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.2)


@pytest.mark.parametrize(("schedule", "scaling", "solver"), RUNS, ids=repr)
def test_sampling_undoes_inversion_to_the_error_of_the_solver(
    schedule: Schedule, scaling: Scaling, solver: Solver
) -> None:
    errors = [float((there_and_back(sampler(n, schedule, scaling, solver), MIXTURE) - DATA).norm()) for n in (32, 64)]
    # The errors of both ways may partly cancel, which leaves at least the solver's order; nothing else is left over.
    assert errors[1] < errors[0] / 2 ** (solver.order - 0.2)


def test_a_sample_inverted_and_drawn_again_is_itself() -> None:
    run = sampler(64, EDM(), NoScaling(), RK4())
    again = run.sample(MIXTURE, noise=run.invert(MIXTURE, DATA))
    # The last step returns D(x(σ_min)), the state's best guess of the data below σ_min.
    torch.testing.assert_close(again, MIXTURE(DATA, LOW), rtol=0, atol=1e-5)


def test_the_noise_of_data_is_distributed_as_noise() -> None:
    count = 4000
    data = MIXTURE.sample(count, torch.Generator().manual_seed(0), sigma=0.01)
    noise = Sampler(Karras(40, 0.01, 80.0), solver=Heun()).invert(MIXTURE, data)
    # Five standard errors, and the share of the data in what is at σ = 80.
    assert noise.mean(0).abs().max() < 5 / math.sqrt(count) + 1 / 80
    assert (noise.var(0) - 1).abs().max() < 5 * math.sqrt(2 / count) + 1e-3


def test_the_callback_gets_the_levels_from_the_lowest_up() -> None:
    run, states = sampler(6, VP(), VPScaling(), Heun()), []
    noise = run.invert(MIXTURE, DATA, callback=states.append)
    assert [s.index for s in states] == list(range(7))
    assert [s.sigma for s in states] == run.levels.sigmas().flip(0).tolist()
    assert all(low.time < high.time for low, high in pairwise(states))
    for state in states:
        torch.testing.assert_close(state.denoised, MIXTURE(state.x / state.scale, state.sigma), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(states[0].x / states[0].scale, DATA, rtol=1e-15, atol=0)
    top = states[-1].x / states[-1].scale - MIXTURE.mean(HIGH)
    torch.testing.assert_close(top / states[-1].sigma, noise, rtol=1e-13, atol=1e-14)
    assert torch.equal(run.invert(MIXTURE, DATA), noise)


def test_inversion_evaluates_every_stage_below_the_highest_level() -> None:
    asked: list[float] = []

    class Counting(GaussianMixture):
        def denoise(self, x, sigma, condition, **options):  # type: ignore[no-untyped-def]
            asked.append(float(sigma))
            return super().denoise(x, sigma, condition, **options)

    sampler(6, EDM(), NoScaling(), Heun()).invert(Counting([1.0], [[0.0, 0.0]], torch.eye(2)[None]), DATA)
    assert len(asked) == 12
    assert (min(asked), max(asked)) == (LOW, pytest.approx(HIGH, rel=1e-15))


def test_inversion_is_conditional() -> None:
    denoiser = ExactDataset(DATA, torch.arange(5))
    classes = torch.tensor([2, 0, 1, 4, 3])
    x = DATA[classes] + LOW * torch.ones(5, 2).double()
    noise = sampler(8, EDM(), NoScaling(), Heun()).invert(denoiser, x, condition=classes)
    # With one point a class, D = y: the trajectory is the ray from y, which every solver follows exactly.
    torch.testing.assert_close(noise, torch.ones(5, 2).double(), rtol=1e-12, atol=0)


def test_one_level_has_no_way_up_and_is_refused() -> None:
    with pytest.raises(ValueError, match="num_steps of an inversion must be >= 2, got 1"):
        Sampler(Karras(1, sigma_max=4.0)).invert(MIXTURE, DATA)


def test_what_cannot_be_inverted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"s_churn must be 0 for inversion, got 5.0"):
        Sampler(churn=Churn(5.0)).invert(MIXTURE, DATA)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 2\), got \(1, 3\)"):
        Sampler().invert(MIXTURE, torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"condition must have one row a sample \(5\), got 2 rows"):
        Sampler().invert(ExactDataset(DATA, torch.arange(5)), DATA, condition=torch.tensor([0, 1]))
    network = DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1, dropout=0.1).build((1, 8, 8), seed=0).train()
    with pytest.raises(ValueError, match=r"call denoiser.eval\(\)"):
        Sampler().invert(Preconditioned(network, EDMPreconditioning()), torch.zeros(1, 1, 8, 8))
