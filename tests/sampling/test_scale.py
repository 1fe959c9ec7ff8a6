"""Data in other units: the same samples in those units, and a warning where a denoiser does not know its units."""

import warnings
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marks import FAR_APART
from openedm.denoiser import FunctionDenoiser, per_sample
from openedm.exact import GaussianMixture
from openedm.levels import Karras, Logistic, LogLinear, Uniform
from openedm.sampling import (
    Auto,
    BandEta,
    Churn,
    DormandPrince,
    EulerMaruyama,
    Exponential23,
    Heun,
    Multistep,
    Restart,
    Sampler,
    SamplerChoice,
    SeededNoise,
    Tsit5,
    UniPC,
    fit_levels,
)
from openedm.schedules import PowerSigma
from properties.strategies import NAMED, all_solvers, log_uniform, stochastic_solvers

pytestmark = pytest.mark.usefixtures("without_type_checker")


@cache
def mixture(scale: float = 1.0) -> GaussianMixture:
    """Two correlated components in two dimensions."""
    covariances = torch.tensor([[[0.04, 0.01], [0.01, 0.09]], [[0.02, 0.0], [0.0, 0.01]]], dtype=torch.float64)
    means = torch.tensor([[0.5, -0.2], [-0.3, 0.4]], dtype=torch.float64)
    return GaussianMixture([0.4, 0.6], means * scale, covariances * scale**2)


def assert_samples_scale(sampler: SamplerChoice, scale: float, rtol: float = 1e-5) -> None:
    plain, large = (sampler.sample(mixture(s), SeededNoise(range(4))) for s in (1.0, scale))
    torch.testing.assert_close(large / scale, plain, rtol=rtol, atol=rtol)


RULES = [
    *(Auto(nfe) for nfe in (6, 12, 20, 32)),
    Auto(tolerance=1e-3),
    Sampler(),
    Sampler(LogLinear(9)),
    Sampler(Logistic(9, warp=(0.2,))),
    Sampler(Uniform(PowerSigma(5.0), 9)),
    Sampler(Karras(9), churn=Churn(3.0)),
    Sampler(Karras(9), solver=UniPC()),
    Sampler(Karras(9), solver=Restart(Heun())),
    Sampler(Karras(9), solver=EulerMaruyama(BandEta(0.5))),
    *(Sampler(Karras(2), solver=solver) for solver in (DormandPrince(), Tsit5(), Exponential23())),
]


@pytest.mark.parametrize("sampler", RULES, ids=repr)
@given(scale=log_uniform(1e-6, 1e6))
@settings(max_examples=6)
def test_samples_of_data_in_other_units_are_the_same_in_those_units(sampler: SamplerChoice, scale: float) -> None:
    assert_samples_scale(sampler, scale)


@FAR_APART
@given(st.one_of(all_solvers(), st.sampled_from(NAMED), stochastic_solvers()), log_uniform(1e-3, 1e3))
@settings(max_examples=20)
def test_every_solver_on_levels_of_the_paper_samples_data_in_any_units(solver: object, scale: float) -> None:
    assert_samples_scale(Sampler(Karras(9), solver=solver), scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", NAMED, ids=repr)
def test_every_named_multistep_method_samples_data_in_any_units(solver: Multistep) -> None:
    assert_samples_scale(Sampler(Karras(9), solver=solver), 100.0)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_levels_fitted_to_data_in_other_units_are_the_fitted_ones_in_those_units(scale: float) -> None:
    plain, large = (fit_levels(mixture(s), Sampler(Karras(6), solver=UniPC()), iterations=2) for s in (1.0, scale))
    sigmas = plain.sampler.levels.sigmas()
    torch.testing.assert_close(large.sampler.levels.sigmas() / scale, sigmas, rtol=1e-4, atol=0)
    assert large.error / scale == pytest.approx(plain.error, rel=1e-3)


def shrinking(std: float, mean: float = 0.0, **options: float) -> FunctionDenoiser:
    """The denoiser of N(mean, std²) as a function that does not tell its width."""

    def denoise(x: torch.Tensor, sigma: torch.Tensor, condition: object) -> torch.Tensor:
        return mean + (x - mean) * per_sample(std**2 / (std**2 + sigma**2), x)

    return FunctionDenoiser(denoise, (4,), **options)


@pytest.mark.parametrize(("std", "mean"), [(10.0, 0.0), (10.0, 280.0), (1e-4, 0.0)])
@pytest.mark.parametrize("sampler", [Sampler(), Auto(), Auto(tolerance=1e-2)], ids=repr)
def test_a_denoiser_that_does_not_tell_the_width_of_its_data_is_warned_of(
    sampler: SamplerChoice, std: float, mean: float
) -> None:
    denoiser = shrinking(std, mean)
    with pytest.warns(UserWarning, match=r"sigma_data is 0\.5, the default, but the samples .* pass sigma_data"):
        sampler.sample(denoiser, range(32))


@pytest.mark.parametrize("slope", [1.0, 1.1])
def test_samples_that_are_still_noise_are_warned_of_also_where_sigma_data_is_given(slope: float) -> None:
    denoiser = FunctionDenoiser(lambda x, sigma, _: slope * x, sigma_data=1.0, event_shape=(4,))
    with pytest.warns(
        UserWarning, match=r"standard deviation \d+, where sigma_data is 1 and the noise .* has 160: the"
    ):
        Sampler().sample(denoiser, range(32))


@pytest.mark.parametrize("std", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 64])
def test_ordinary_data_and_data_of_a_known_width_give_no_warning(std: float, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Auto(8).sample(shrinking(std), range(count))
        Auto(8).sample(shrinking(1e3 * std, sigma_data=1e3 * std), range(count))
        Auto(8).sample(shrinking(1e-3 * std, sigma_data=1e-3 * std), range(count))


def test_samples_from_no_noise_at_all_are_drawn() -> None:
    even = GaussianMixture([0.75, 0.25], [[-1.0], [3.0]], [[[0.1]], [[0.2]]])  # its mean is 0, as the noise
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Sampler().sample(even, noise=torch.zeros(2, 1)).isfinite().all()
