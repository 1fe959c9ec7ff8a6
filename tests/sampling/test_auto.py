"""The automatic sampler: at most the error of the best published sampler of its budget, and it says what it picked."""

import math
import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from openedm.denoiser import Denoiser, FunctionDenoiser
from openedm.exact import ExactDataset, GaussianMixture
from openedm.ground.choices import from_config, to_config
from openedm.levels import Logistic
from openedm.preconditioning import VelocityPrediction
from openedm.sampling import Auto, Multistep, Sampler, SamplerChoice, SeededNoise, fit_levels
from openedm.schedules import FlowTime, Values, float64

pytestmark = pytest.mark.usefixtures("without_type_checker")


def circle(scale: float = 1.0) -> GaussianMixture:
    """Eight narrow components on a circle."""
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = 0.7 * scale * torch.stack([angles.cos(), angles.sin()], 1)
    return GaussianMixture(torch.ones(8), means, torch.eye(2).expand(8, 2, 2) * (0.05 * scale) ** 2)


def low_rank() -> GaussianMixture:
    """Eight flat components in 64 dimensions."""
    generator = torch.Generator().manual_seed(0)
    means = 0.4 * torch.randn(8, 64, generator=generator, dtype=torch.float64)
    bases = [torch.linalg.qr(torch.randn(64, 4, generator=generator, dtype=torch.float64))[0] for _ in range(8)]
    shape = torch.diag(torch.tensor([4, 1, 0.25, 1 / 16], dtype=torch.float64))
    covariances = torch.stack([u @ shape @ u.T + 1e-4 * torch.eye(64) for u in bases])
    return GaussianMixture(torch.ones(8), means, covariances)


# The lowest median of any peer at each number of evaluations, each of another method.
BEST_PEER = {
    circle: {8: 2.3e-2, 12: 2.9e-3, 18: 4.9e-4, 35: 3.7e-4, 79: 1.1e-5},
    low_rank: {8: 2.4e-2, 12: 8.5e-3, 18: 1.9e-3, 35: 2.1e-4, 79: 1.2e-5},
}
STARTS = 64


@cache
def solved(problem: Callable[[], GaussianMixture]) -> tuple[GaussianMixture, Tensor, Tensor]:
    """A mixture, unit noise, and where the ODE takes it: to 1e-9, by RK4's better in 800 steps."""
    denoiser = problem()
    noise = SeededNoise(range(100, 100 + STARTS)).draw(denoiser.event_shape or ())
    width = denoiser.sigma_data
    fine = Sampler(
        Logistic(800, centre=width / 2, spread=2.0), solver=Multistep(VelocityPrediction(width), FlowTime(width), 4, 5)
    )
    return denoiser, noise, fine.sample(denoiser, noise=noise)


def median_error(problem: Callable[[], GaussianMixture], sampler: SamplerChoice) -> float:
    denoiser, noise, solution = solved(problem)
    difference = sampler.sample(denoiser, noise=noise) - solution
    return float(difference.square().mean(1).sqrt().median())


@pytest.mark.parametrize("nfe", [8, 12, 18, 35, 79])
@pytest.mark.parametrize("problem", BEST_PEER, ids=lambda p: p.__name__)
def test_its_median_error_is_at_most_that_of_the_best_peer(problem: Callable[[], GaussianMixture], nfe: int) -> None:
    assert median_error(problem, Auto(nfe)) <= BEST_PEER[problem][nfe]


@pytest.mark.parametrize("nfe", [12, 18])
@pytest.mark.parametrize("problem", BEST_PEER, ids=lambda p: p.__name__)
def test_fitted_levels_halve_the_error_of_the_best_peer(problem: Callable[[], GaussianMixture], nfe: int) -> None:
    fit = Auto(nfe).fit(problem())
    assert fit.error < fit.error_before
    assert median_error(problem, fit.sampler) <= 0.5 * BEST_PEER[problem][nfe]


@pytest.mark.parametrize("problem", BEST_PEER, ids=lambda p: p.__name__)
def test_ten_evaluations_do_what_edms_sampler_does_in_35(problem: Callable[[], GaussianMixture]) -> None:
    fitted = Auto(10).fit(problem()).sampler
    assert fitted.nfe == 10
    assert median_error(problem, fitted) <= median_error(problem, Sampler())


@pytest.mark.parametrize("nfe", [3, 4, 9, 10, 15, 16, 27, 28, 40])
def test_it_takes_the_evaluations_that_it_may_and_no_more(nfe: int) -> None:
    calls = []
    exact = circle()
    counting = FunctionDenoiser(lambda x, sigma, _: calls.append(float(sigma)) or exact(x, sigma), (2,), mean=0.0)
    sampler = Auto(nfe).choose(counting)
    sampler.sample(counting, seeds=[1, 2])
    assert len(calls) == nfe == sampler.nfe
    assert calls == sampler.levels.sigmas().tolist()


@pytest.mark.parametrize("problem", BEST_PEER, ids=lambda p: p.__name__)
def test_a_tolerance_is_kept_by_every_sample_and_most_err_by_a_tenth(problem: Callable[[], GaussianMixture]) -> None:
    denoiser, noise, solution = solved(problem)
    sampler = Auto(tolerance=1e-3).choose(denoiser)
    assert sampler.nfe is None
    errors = (sampler.sample(denoiser, noise=noise) - solution).square().mean(1).sqrt()
    assert float(errors.median()) < 1e-4
    assert float(errors.max()) < 1e-2


@pytest.mark.parametrize("nfe", [8, 12, 18, 30])
def test_data_in_other_units_are_sampled_in_those_units(nfe: int) -> None:
    noise = SeededNoise(range(20)).draw((2,))
    plain = Auto(nfe).sample(circle(), noise=noise)
    large = Auto(nfe).sample(circle(10.0), noise=noise)
    torch.testing.assert_close(large, 10 * plain, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("width", [1e-3, 1e3])
def test_the_range_of_levels_grows_with_data_that_need_it(width: float) -> None:
    gaussian = GaussianMixture([1.0], [[0.0, 0.0]], torch.eye(2, dtype=torch.float64)[None] * width**2)
    x = Auto(24).sample(gaussian, seeds=range(2000))
    assert float(x.std()) == pytest.approx(width, rel=4 / math.sqrt(2 * 4000) + 0.002)
    levels = Auto(24).choose(gaussian).levels
    assert levels.ends == pytest.approx((0.004 * width, 160 * width), rel=1e-9)
    before = Auto(24, relative=False)
    assert before.choose(circle()).levels.ends == (0.002, 80.0)
    assert before.choose(gaussian).levels.ends == pytest.approx((min(0.002, 0.04 * width), max(80, 40 * width)))


@pytest.mark.parametrize("width", [1e-4, 0.5, 10.0, 1e5])
@pytest.mark.parametrize("auto", [Auto(), Auto(tolerance=1e-3)], ids=repr)
def test_a_gaussian_of_any_width_is_sampled_to_a_thousandth_of_it(auto: Auto, width: float) -> None:
    gaussian = GaussianMixture([1.0], [[0.0]], [[[width**2]]])
    noise = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    torch.testing.assert_close(auto.sample(gaussian, noise=noise) / width, noise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("nfe", [8, 40, 200])
def test_a_denoiser_that_knows_few_levels_is_asked_for_each_at_most_once(nfe: int) -> None:
    calls = []

    class Discrete(FunctionDenoiser):
        def round_sigma(self, sigma: Values) -> Tensor:
            return float64(sigma).clamp(min=0.01).log10().mul(10).round().div(10).mul(math.log(10)).exp()

    exact = circle()
    denoiser = Discrete(lambda x, sigma, _: calls.append(float(sigma)) or exact(x, sigma), (2,), mean=0.0)
    assert Auto(nfe).sample(denoiser, seeds=[0, 1]).isfinite().all()
    assert len(calls) == len(set(calls)) <= min(nfe, 40)


def test_it_keeps_to_the_range_of_the_denoiser() -> None:
    narrow = FunctionDenoiser(circle().forward, (2,), sigma_min=0.01, sigma_max=20.0)
    sigmas = Auto(16).choose(narrow).levels.within(0.01, 20.0).sigmas()
    assert (float(sigmas[0]), float(sigmas[-1])) == (20.0, 0.01)
    assert Auto(16).sample(narrow, seeds=[0]).isfinite().all()


def test_the_exact_denoisers_know_the_width_of_their_data() -> None:
    assert circle().sigma_data == pytest.approx(math.sqrt(0.7**2 / 2 + 0.05**2), rel=1e-7)
    assert ExactDataset(torch.tensor([[1.0, 5.0], [3.0, 9.0]])).sigma_data == pytest.approx(math.sqrt(2.5), rel=1e-12)
    assert ExactDataset(torch.ones(3, 2)).sigma_data == 0.5  # a single point has no width


def test_the_same_choice_comes_back_from_its_config() -> None:
    for auto in (Auto(), Auto(12), Auto(tolerance=1e-3)):
        assert from_config(Auto, to_config(auto)) == auto
    sampler = Auto(12).choose(circle())
    assert from_config(Sampler, to_config(sampler)) == sampler
    assert from_config(SamplerChoice, to_config(sampler)) == sampler.choose(circle()) == sampler


def test_without_budget_and_tolerance_it_takes_32_evaluations() -> None:
    """Files of version 0.1 give the number, which was the default."""
    assert Auto().choose(circle()) == Auto(32).choose(circle())
    assert Auto().choose(circle()).nfe == 32
    config = {"class_path": "openedm.sampling.Auto", "init_args": {"nfe": 32, "tolerance": None}}
    assert from_config(SamplerChoice, config) == Auto(32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Auto(2), "nfe must be >= 3, got 2"),
        (lambda: Auto(12, tolerance=1e-3), "nfe and tolerance are mutually exclusive, got nfe=12 and tolerance=0.001"),
        (lambda: Auto(tolerance=0.0), "tolerance must be finite and > 0, got 0.0"),
        (lambda: Auto(12, sigma_min=3.0, sigma_max=2.0), "sigma_min must be < sigma_max"),
        (lambda: Auto(tolerance=1e-3).fit(circle()), "tolerance must be None for a fit, got 0.001"),
    ],
)
def test_what_cannot_be_chosen_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_denoiser_of_unknown_shape_needs_one_for_the_pilots() -> None:
    shapeless: Denoiser = FunctionDenoiser(lambda x, sigma, _: x / (1 + sigma**2))
    with pytest.raises(ValueError, match="event_shape must be given"):
        fit_levels(shapeless, Auto(8).choose(shapeless))
    assert Auto(8).fit(shapeless, event_shape=(3,)).sampler.nfe == 8
