"""Series, images and volumes whose means and noise are functions of the place."""

import math

import pytest
import torch
from scipy.stats import kstest

from openedm.inference.mixtures import fit_mixture
from openedm.inference.settings import MixtureOptions
from openedm.networks.placed import HeavyPlacedMixture, PlacedMixture
from openedm.networks.structured import PLACED, build_mixture, mixture_config, mixture_from_config
from openedm.networks.tails import log_student, student

SHAPES = [(1, 7), (2, 6), (1, 3, 4), (2, 4, 3), (1, 2, 3, 2)]


def mixture_of(shape: tuple[int, ...], members: int = 2, structure: str = "placed") -> PlacedMixture:
    """A mixture whose means, scales and correlations depend on the condition."""
    torch.manual_seed(0)
    size = math.prod(shape)
    mixture = build_mixture(structure, 2, size, shape=shape, members=members, width=8, num_blocks=1, curve=True)
    assert isinstance(mixture, PlacedMixture)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return mixture.requires_grad_(False)


@pytest.mark.parametrize("shape", SHAPES)
def test_density_is_that_of_the_gaussian_that_draws_come_from(shape: tuple[int, ...]) -> None:
    mixture, u = mixture_of(shape, members=1), torch.randn(1, 2)
    drawn = mixture.sample(u.expand(40_000, 2), torch.Generator().manual_seed(0)).double()
    mean, covariance = drawn.mean(0), drawn.T.cov()
    assert float((covariance - covariance.diagonal().diag()).abs().max()) > 0.1 * float(covariance.diagonal().min())
    values = mixture.log_prob(drawn[:50].float(), u.expand(50, 2)).double()
    gaussian = torch.distributions.MultivariateNormal(mean, covariance)
    assert float((values - gaussian.log_prob(drawn[:50])).abs().mean()) < 0.1


@pytest.mark.parametrize("structure", PLACED)
@pytest.mark.parametrize("shape", SHAPES)
def test_members_and_files_are_those_of_the_whole(shape: tuple[int, ...], structure: str) -> None:
    mixture, u, y = mixture_of(shape, structure=structure), torch.randn(5, 2), torch.randn(5, math.prod(shape))
    each = mixture.each_log_prob(y, u)
    torch.testing.assert_close(mixture.member(1).log_prob(y, u), each[1])
    again = mixture_from_config(mixture_config(mixture))
    assert again is not None
    again.load_state_dict(mixture.state_dict())
    torch.testing.assert_close(again.each_log_prob(y, u), each)
    product = mixture.product_log_prob(y[:3], u)
    torch.testing.assert_close(product, sum(mixture.log_prob(one.expand(5, -1), u).double() for one in y[:3]))


def test_a_spot_in_noise_that_is_correlated_is_learned_from_few_images() -> None:
    generator = torch.Generator().manual_seed(0)
    u = 2 * torch.rand(700, 2, generator=generator) - 1
    places = torch.linspace(-1, 1, 8)
    down, right = (torch.exp(-0.5 * ((places - u[:, i : i + 1]) / 0.4).square()) for i in (0, 1))
    mean = down[:, :, None] * right[:, None]
    white = torch.randn(700, 9, 8, generator=generator)
    noise = 0.3 * (white[:, 1:] + 0.9 * white[:, :-1])
    y = (mean + noise).flatten(1)
    options = MixtureOptions(members=1, width=32, num_blocks=1, steps=400, folds=5)
    fitted = fit_mixture(y[:400], u[:400], options, 1, structure="placed", curve=True, shape=(1, 8, 8))
    found = float(fitted.mixture.log_prob(y[400:], u[400:]).mean())
    covariance = torch.kron((white.new_ones(8).diag() * 1.81 + 0.9 * _near(8)) * 0.09, torch.eye(8))
    exact = torch.distributions.MultivariateNormal(torch.zeros(64), covariance).log_prob(noise[400:].flatten(1)).mean()
    independent = torch.distributions.Normal(0.0, 0.3 * math.sqrt(1.81)).log_prob(noise[400:]).flatten(1).sum(1).mean()
    assert float(independent) < float(exact) - 12
    assert float(exact) - 5 < found < float(exact) + 0.5


def test_values_that_are_the_same_in_all_rows_tell_nothing() -> None:
    torch.manual_seed(0)
    u, y = torch.randn(100, 1), torch.randn(100, 6)
    y[:, 2] = 3.0
    mixture = build_mixture("placed", 1, 6, width=8, num_blocks=1)
    mixture.fit_linear(y, u)
    assert mixture.varies[0, 0].tolist() == [1, 1, 0, 1, 1, 1]
    other = y.clone()
    other[:, 2] = -50.0
    torch.testing.assert_close(mixture.log_prob(other, u), mixture.log_prob(y, u))
    assert (mixture.sample(u, torch.Generator().manual_seed(0))[:, 2] == 3).all()
    rest = torch.distributions.Normal(float(y.mean()), float(y.std())).log_prob(y[:, [0, 1, 3, 4, 5]]).sum(1)
    torch.testing.assert_close(mixture.log_prob(y, u), rest, atol=0.2, rtol=0)


def test_noise_has_student_t_distributions_with_degrees_of_freedom_of_each_channel() -> None:
    mixture, gaussian = (mixture_of((2, 4), 1, structure) for structure in reversed(PLACED))
    state = mixture.state_dict()
    state["log_freedom"].copy_(torch.tensor([[2.0, 1e9]]).log())  # the second counts as 200
    gaussian.load_state_dict({name: value for name, value in state.items() if name != "log_freedom"})
    u, y = torch.randn(5, 2), torch.randn(5, 8)
    means, logs, weights = gaussian._terms(gaussian._outputs(u[None]))
    errors = y.reshape(1, 5, 2, 4) - means
    z = logs.exp() * (errors + gaussian._from_neighbours(errors, weights))
    student = torch.distributions.StudentT(torch.tensor([2.0, 200.0])[:, None]).log_prob(z)
    torch.testing.assert_close(mixture.log_prob(y, u), (student + logs).sum((-1, -2))[0])
    many = u[:1].expand(40_000, 2)
    drawn = mixture.sample(many, torch.Generator().manual_seed(0)).reshape(1, -1, 2, 4)
    means, logs, weights = gaussian._terms(gaussian._outputs(many[None]))
    z = logs.exp() * (drawn - means + gaussian._from_neighbours(drawn - means, weights))
    for channel, nu in enumerate((2.0, 200.0)):
        assert kstest(z[0, :, channel].flatten()[::4].numpy(), "t", args=(nu,)).pvalue > 1e-3


def test_long_tails_are_learned_from_data_whose_spread_is_that_of_a_few() -> None:
    generator = torch.Generator().manual_seed(0)
    u = 2 * torch.rand(600, 1, generator=generator) - 1
    nu = torch.full((600, 12), 1.5)
    y = 0.01 * (u * torch.linspace(-1, 1, 12) + 0.3 * student(nu, generator))
    options = MixtureOptions(members=1, width=16, num_blocks=1, steps=400, folds=5)
    fitted = [fit_mixture(y, u, options, 1, structure=s, curve=True, shape=(1, 12)) for s in PLACED]
    mixture = fitted[1].mixture
    assert isinstance(mixture, HeavyPlacedMixture)
    assert float(mixture.log_freedom.exp()) == pytest.approx(1.5, rel=0.3)
    exact = (log_student(y / 0.003 - u * torch.linspace(-1, 1, 12) / 0.3, nu) - math.log(0.003)).sum(1).mean()
    assert fitted[0].log_prob + 10 < float(exact) - 1 < fitted[1].log_prob


def _near(size: int) -> torch.Tensor:
    """Ones beside the diagonal."""
    ones = torch.ones(size - 1)
    return ones.diag(1) + ones.diag(-1)


@pytest.mark.parametrize("shape", [(12,), (1, 11), (1, 2, 2, 1, 3)])
def test_shapes_that_are_no_series_image_or_volume_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape must have two to 4 axes, the first that of channels, and 12 values"):
        build_mixture("placed", 2, 12, shape=shape)


def test_it_is_a_curve() -> None:
    with pytest.raises(ValueError, match="curve must be True for structure 'placed'"):
        build_mixture("placed", 2, 12, curve=False)
