"""The default sampler against the exact conditional Gaussian, and what a posterior of an exact denoiser gives."""

import math

import pytest
import torch

from openedm.denoiser import Denoiser
from openedm.inference.bijections import Bijection
from openedm.inference.columns import Columns
from openedm.inference.maps import DataMap, ParameterMap
from openedm.inference.trained import Average, DenoiserPosterior, Parts
from openedm.levels import Karras
from openedm.sampling import (
    Ancestral,
    Auto,
    Churn,
    DPMSolverPP2M,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    Restart,
    Sampler,
)

IDENTITY = Columns(("identity",), (0.0,), (1.0,), (0.0,), (1.0,))


class ConditionalGaussian(Denoiser):
    """The denoiser of r ~ N(y, std²)."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std, self.sigma_data, self.event_shape, self.condition_shape = std, 1.0, (1,), (1,)

    def denoise(self, x, sigma, condition):
        gain = self.std**2 / (self.std**2 + sigma.to(x.dtype).reshape(-1, *[1] * (sigma.ndim > 0)) ** 2)
        return condition + gain * (x - condition)


def posterior_of(denoiser: Denoiser) -> DenoiserPosterior:
    bijection = Bijection((-math.inf,), (math.inf,))
    parts = Parts(denoiser, ParameterMap(bijection, IDENTITY, IDENTITY), DataMap((1,), (0,), IDENTITY, (False,)))
    return DenoiserPosterior(parts)


class Quantiles:
    """Noise that is −1, 0 and 1: the sampler is affine in it on a Gaussian."""

    def __init__(self, *_) -> None: ...

    def draw(self, event_shape):
        return torch.tensor([[-1.0], [0.0], [1.0]])


@pytest.mark.parametrize("std", [1.0, 0.5, 0.2, 0.05, 0.02])
@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_the_default_sampler_errs_by_less_than_a_fifth_of_a_percent(std, mean, monkeypatch) -> None:
    monkeypatch.setattr("openedm.inference.flow.SampleNoise", Quantiles)
    flow = posterior_of(ConditionalGaussian(std)).flow
    low, centre, high = flow.samples(torch.tensor([[mean]]), 3, [0])[0, :, 0].tolist()
    assert abs((high - low) / (2 * std) - 1) < 0.002
    assert abs(centre - mean) / std < 0.002


@pytest.mark.parametrize("std", [1.0, 0.05])
def test_densities_are_those_of_the_gaussian(std) -> None:
    posterior, x = posterior_of(ConditionalGaussian(std)), torch.tensor([0.7])
    theta = posterior.sample(x, 50)
    exact = torch.distributions.Normal(0.7, std).log_prob(theta)[:, 0]
    torch.testing.assert_close(posterior.log_prob(theta, x), exact, atol=0.01, rtol=0)


class Correlated(Denoiser):
    """The denoiser of r ~ N(y, C), every two of twenty numbers correlated by 0.9."""

    covariance = 0.1 * torch.eye(20) + 0.9

    def __init__(self) -> None:
        super().__init__()
        self.sigma_data, self.event_shape, self.condition_shape = 1.0, (20,), (20,)

    def denoise(self, x, sigma, condition):
        noisy = self.covariance + sigma.double().reshape(-1, 1, 1) ** 2 * torch.eye(20)
        gain = torch.linalg.solve(noisy, self.covariance.double())
        return condition + ((x - condition)[:, None].double() @ gain)[:, 0].to(x.dtype)


def test_densities_of_twenty_correlated_parameters_are_exact_too() -> None:
    """Eight random probes of the trace, the same for all rows, erred by nats, which no mean over rows took away."""
    same = Columns(("identity",) * 20, (0.0,) * 20, (1.0,) * 20, (0.0,) * 20, (1.0,) * 20)
    data = DataMap((20,), tuple(range(20)), same, (False,) * 20)
    posterior = DenoiserPosterior(Parts(Correlated(), ParameterMap(Bijection.unbounded(20), same, same), data))
    x = torch.linspace(-1.0, 1.0, 20)
    exact = torch.distributions.MultivariateNormal(x, Correlated.covariance)
    theta = exact.sample((4,))
    torch.testing.assert_close(posterior.log_prob(theta, x).float(), exact.log_prob(theta), atol=0.02, rtol=0)


def test_any_sampler_of_the_library_draws_after_training() -> None:
    posterior = posterior_of(ConditionalGaussian(0.5)).with_sampler(Sampler(solver=Heun()))
    samples = posterior.sample(torch.tensor([0.7]), 4000)
    assert float(samples.mean()) == pytest.approx(0.7, abs=0.04)
    assert float(samples.std()) == pytest.approx(0.5, abs=0.04)


def test_few_samples_of_many_observations_are_those_of_each_alone() -> None:
    posterior, x = posterior_of(ConditionalGaussian(0.5)), torch.linspace(-1, 1, 5)[:, None]
    torch.testing.assert_close(posterior.sample(x, 4)[2], posterior.sample(x[2], 4))


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    narrow, wide = ConditionalGaussian(0.1), ConditionalGaussian(1.0)
    x, y = torch.randn(4, 1), torch.randn(4, 1)
    both = Average([narrow, wide])
    torch.testing.assert_close(both(x, 0.3, y), (narrow(x, 0.3, y) + wide(x, 0.3, y)) / 2)
    with pytest.raises(ValueError, match="number of members"):
        Average([])


@pytest.mark.usefixtures("without_type_checker")
def test_a_solver_is_not_a_sampler() -> None:
    with pytest.raises(TypeError, match=r"sampler must be a Sampler or Auto, got Heun\(\)"):
        posterior_of(ConditionalGaussian(0.5)).with_sampler(Heun())  # type: ignore[arg-type]


SHORT = Karras(16, sigma_min=0.02, sigma_max=8.0)
STOCHASTIC = {
    "churn": Sampler(SHORT, churn=Churn(s_churn=5.0)),
    "SDE": Sampler(SHORT, solver=EulerMaruyama()),
    "multistep SDE": Sampler(SHORT, solver=DPMSolverPP2M(eta=1.0)),
    "ancestral": Sampler(SHORT, solver=Ancestral()),
    "corrector": Sampler(SHORT, solver=PredictorCorrector()),
    "restart": Sampler(SHORT, solver=Restart(low=0.1, high=1.0)),
}
PATHS = [name for name, sampler in STOCHASTIC.items() if sampler.uses_path_noise]


@pytest.mark.parametrize(
    ("name", "noise"), [*((name, "independent") for name in STOCHASTIC), *((name, "path") for name in PATHS)]
)
def test_samples_with_noise_do_not_depend_on_the_batch_and_are_the_posteriors(name, noise) -> None:
    posterior = posterior_of(ConditionalGaussian(0.5)).with_sampler(STOCHASTIC[name], noise)
    x = torch.tensor([[0.7], [-1.0], [2.0]])
    together = posterior.sample(x, 70)
    torch.testing.assert_close(posterior.sample(x.flip(0)[1:], 10), together.flip(0)[1:, :10])
    assert not bool((posterior.sample(x[0], 10, seed=1) == together[0, :10]).any())
    # Steps this large change the width.
    unit = (together - x[:, None]) / 0.5
    assert float(unit.mean()) == pytest.approx(0.0, abs=4 / math.sqrt(210))
    assert float(unit.std()) == pytest.approx(1.0, abs=0.35)


def test_with_a_path_more_steps_refine_the_same_samples() -> None:
    posterior, x = posterior_of(ConditionalGaussian(0.5)), torch.tensor([0.7])

    def distance(noise):
        few, many = (
            posterior.with_sampler(Sampler(Karras(steps, 0.01, 10.0), solver=DPMSolverPP2M(eta=1.0)), noise).sample(
                x, 500
            )
            for steps in (40, 80)
        )
        return float((few - many).std())

    assert distance("path") < 0.1 * distance("independent")


@pytest.mark.usefixtures("without_type_checker")
def test_the_noise_of_a_sampler_is_kept_and_refused_where_it_has_no_effect() -> None:
    churned = posterior_of(ConditionalGaussian(0.5)).with_sampler(STOCHASTIC["churn"], "path")
    assert churned.plain().noise == "path"
    for sampler in (Auto(32), Sampler(), STOCHASTIC["restart"]):
        with pytest.raises(ValueError, match=r"noise='path' has no effect"):
            churned.with_sampler(sampler, "path")
    with pytest.raises(ValueError, match=r"noise must be one of 'independent', 'path'"):
        churned.with_sampler(Auto(32), "published")  # type: ignore[arg-type]
