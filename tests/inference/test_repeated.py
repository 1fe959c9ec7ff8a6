"""Several observations of one θ: against the closed form of a linear Gaussian model, of up to a hundred of them."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from fitted import tiny_posterior
from gaussian_posteriors import LinearGaussian
from openedm.denoiser import Denoiser
from openedm.exact import GaussianMixture
from openedm.inference import calibrate
from openedm.inference.bijections import Bijection
from openedm.inference.columns import Columns
from openedm.inference.composition import Composed, Moments
from openedm.inference.maps import DataMap, ParameterMap
from openedm.inference.refine import Refinement
from openedm.inference.trained import DenoiserPosterior, Parts
from openedm.levels import Karras
from openedm.networks.mixtures import ConditionalMixture
from openedm.sampling import Churn, Sampler

MODEL = LinearGaussian(dim=2, noise=1.0)
CHAINS = Refinement(num_steps=25, num_pilots=64, max_steps=75, density_steps=True)


class Exact(Denoiser):
    """D(θ; σ, x) of the model, one Gaussian for each x."""

    def __init__(self) -> None:
        super().__init__()
        self.sigma_data, self.event_shape, self.condition_shape = 1.0, (2,), (3,)

    def denoise(self, x, sigma, condition):
        mean, covariance = MODEL.mean(condition.float()).double(), (MODEL.factor @ MODEL.factor.T).double()
        noisy = covariance + sigma.double().reshape(-1, 1, 1) ** 2 * torch.eye(2).double()
        found = mean + ((x - mean)[:, None] @ torch.linalg.solve(noisy, covariance))[:, 0]
        return found.to(x.dtype)


def columns(count: int) -> Columns:
    return Columns(("identity",) * count, (0.0,) * count, (1.0,) * count, (0.0,) * count, (1.0,) * count)


def single(*, refined: bool = False) -> DenoiserPosterior:
    """The posterior of one observation: exact, or refined by a likelihood that was fitted by least squares."""
    data = DataMap((3,), (0, 1, 2), columns(3), (False,) * 3)
    parts = Parts(Exact(), ParameterMap(Bijection.unbounded(2), columns(2), columns(2)), data)
    if refined:
        theta, x = MODEL.joint(20_000)
        emulator = ConditionalMixture(2, 3, width=1, num_blocks=1)
        emulator.fit_linear(x, theta)
        parts = replace(parts, emulator=emulator.eval().requires_grad_(False), refinement=CHAINS)
    return DenoiserPosterior(parts, prior=MODEL.prior)


def closed_form(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance given all rows of x."""
    matrix, variance = MODEL.matrix.double(), MODEL.noise**2
    covariance = torch.linalg.inv(torch.eye(2).double() + len(x) * matrix.T @ matrix / variance)
    return covariance @ matrix.T @ x.double().sum(0) / variance, covariance


def observed(count: int) -> torch.Tensor:
    return MODEL.simulate(torch.tensor([0.8, -0.5]).expand(count, 2), seed=5)


@pytest.mark.parametrize(
    ("count", "refined"),
    [(1, False), (3, False), (100, False), (1, True), (20, True)],
    ids=lambda value: {False: "composed", True: "refined"}.get(value, str(value)) if isinstance(value, bool) else None,
)
def test_samples_are_those_of_the_closed_form(count, refined) -> None:
    x = observed(count)
    mean, covariance = closed_form(x)
    many = not refined and count > 10
    with pytest.warns(UserWarning, match="100 denoisers are composed") if many else nullcontext():
        posterior = single(refined=refined).repeated(count)
    samples = posterior.sample(x, 1000).double()
    std = covariance.diagonal().sqrt()
    assert ((samples.mean(0) - mean) / std).abs().max() < (0.2 if refined else 0.12)
    assert (samples.std(0) / std - 1).abs().max() < 0.08


@pytest.mark.parametrize("refined", [False, True], ids=["composed", "refined"])
def test_densities_are_those_of_the_closed_form(refined) -> None:
    x = observed(4)
    mean, covariance = closed_form(x)
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    theta = exact.sample((20,)).float()
    found = single(refined=refined).repeated(4).log_prob(theta, x).double()
    assert (found - exact.log_prob(theta.double())).abs().max() < 0.15


def test_the_composed_denoiser_is_that_of_the_product_at_every_level() -> None:
    x = observed(7)
    mean, covariance = closed_form(x)
    own = torch.linalg.inv((MODEL.factor @ MODEL.factor.T).double())
    prior = Moments(torch.zeros(1, 2).double(), torch.eye(2).double()[None])
    moments = Moments(MODEL.mean(x).double(), own.expand(7, 2, 2)).beyond(prior)
    composed = Composed(Exact(), x, torch.zeros(7, 2).double(), moments, prior)
    exact = GaussianMixture([1.0], mean[None].tolist(), covariance[None].tolist())
    for sigma in (1e-3, 0.1, 1.0, 80.0):
        points = mean + (0.3 + sigma) * torch.randn(10, 2).double()
        torch.testing.assert_close(composed(points, sigma), exact(points, sigma), atol=1e-5 * (1 + sigma), rtol=0)
    each = torch.tensor([0.1, 80.0])
    torch.testing.assert_close(composed(points[:2], each)[1], composed(points[1:2], 80.0)[0])


def test_a_posterior_wider_than_its_prior_counts_as_wide_as_it() -> None:
    prior = Moments(torch.zeros(1, 2).double(), torch.eye(2).double()[None])
    wide = Moments(torch.zeros(50, 2).double(), torch.diag(torch.tensor([0.9, 4.0])).double().expand(50, 2, 2))
    product = wide.beyond(prior).product(prior)
    torch.testing.assert_close(product.precisions[0], torch.diag(torch.tensor([1.0, 1 + 50 * 3.0])).double())


def test_samples_depend_on_seed_set_and_number_alone() -> None:
    posterior, sets = single(refined=True).repeated(3), torch.stack([observed(3), observed(6)[3:]])
    both = posterior.sample(sets, 100)
    torch.testing.assert_close(both[1], posterior.sample(sets[1], 100))
    torch.testing.assert_close(both[1, :40], single(refined=True).repeated(3).sample(sets[1], 40))
    assert not torch.equal(both[1], posterior.sample(sets[1], 100, seed=1))


def test_chains_do_without_composed_denoisers_whose_widths_differ() -> None:
    base, x = ConditionalMixture(3, 2, width=1, num_blocks=1), observed(3)
    with torch.no_grad():
        base.linear.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    known = single(refined=True)
    uneven = DenoiserPosterior(replace(known.parts, base=base.eval().requires_grad_(False)), prior=MODEL.prior)
    mean, covariance = closed_form(x)
    samples, std = uneven.repeated(3).sample(x, 1000).double(), covariance.diagonal().sqrt()
    assert ((samples.mean(0) - mean) / std).abs().max() < 0.2
    assert (samples.std(0) / std - 1).abs().max() < 0.1
    with pytest.raises(ValueError, match="another width at each observation"):
        uneven.repeated(3, plain=True).sample(x, 10)


def test_noise_of_a_path_is_used_where_it_is_asked_for() -> None:
    x, churned = observed(3), Sampler(Karras(12, sigma_min=0.02, sigma_max=8.0), churn=Churn(s_churn=3.0))
    one, path = (single().with_sampler(churned, noise).repeated(3).sample(x, 400) for noise in ("independent", "path"))
    assert not torch.equal(one, path)
    assert (one.std(0) / path.std(0) - 1).abs().max() < 0.15


def test_a_bounded_prior_and_a_fitted_posterior_go_all_the_way() -> None:
    posterior = tiny_posterior("two_moons").repeated(3)
    x = posterior.single.prior.sample(3)
    samples = posterior.sample(x, 50)
    assert samples.abs().max() < 1
    assert posterior.log_prob(samples, x).isfinite().all()
    plain = posterior.single.repeated(3, plain=True)
    assert plain.sample(x, 50).abs().max() < 1
    assert plain.log_prob(samples[:5], x).isfinite().all()


def test_calibration_takes_sets() -> None:
    theta = MODEL.prior.sample(20, seed=9)
    x = torch.stack([MODEL.simulate(theta, seed) for seed in (11, 12)], 1)
    found = calibrate(single().repeated(2), theta, x, num_samples=50)
    assert min(found.sbc_p_values) > 0.001


def test_errors_name_what_was_given() -> None:
    posterior = single()
    with pytest.raises(ValueError, match="count must be >= 1, got 0"):
        posterior.repeated(0)
    with pytest.raises(ValueError, match=r"x must be one observation \(3, 3\) or a batch \(b, 3, 3\), got \(4, 3\)"):
        posterior.repeated(3).sample(observed(4), 10)
    bad = observed(3)
    bad[1, 2] = torch.nan
    with pytest.raises(ValueError, match="x must be finite"):
        posterior.repeated(3).sample(bad, 10)
