"""Kernel trends and mixtures of what they leave."""

import pytest
import torch

from openedm.networks.structured import build_mixture
from openedm.networks.trends import KernelTrend, TrendedMixture, density_config, density_from_config, gaussian_kernel


@pytest.fixture
def density() -> TrendedMixture:
    """Of three columns and two members; both trend and mixture depend on u."""
    torch.manual_seed(0)
    mixture = build_mixture("scaled", 2, 3, members=2, components=1, width=8, num_blocks=1)
    trend = KernelTrend(members=2, centres=4, condition_dim=2, directions=2, dim=3)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        for name, buffer in trend.named_buffers():
            buffer.copy_(torch.rand_like(buffer) + 0.5 if name == "lengths" else torch.randn_like(buffer))
    return TrendedMixture(trend, mixture).requires_grad_(False)


def test_a_trend_is_the_sum_of_its_kernels(density: TrendedMixture) -> None:
    trend, u = density.trend, torch.randn(5, 2, dtype=torch.float64)
    expected = torch.zeros(2, 5, 3, dtype=torch.float64)
    for i, centre in enumerate(trend.centres):
        for j, lengths in enumerate(trend.lengths):
            kernel = (-0.5 * ((u - centre) / lengths).square().sum(1)).exp()
            expected += trend.weights[j, i][:, None, None] * kernel[:, None] * trend.directions[j]
    torch.testing.assert_close(trend(u), expected)
    torch.testing.assert_close(trend.member(1)(u), expected[1:])


def test_densities_are_those_of_the_mixture_moved_by_the_trend(density: TrendedMixture) -> None:
    y, u = torch.randn(7, 3), torch.randn(7, 2)
    rest = (y - density.trend(u)).float()
    expected = torch.stack([density.mixture.member(e).log_prob(rest[e], u) for e in (0, 1)])
    torch.testing.assert_close(density.each_log_prob(y, u), expected)
    torch.testing.assert_close(density.member_log_prob(y.expand(2, 7, 3), u.expand(2, 7, 2)), expected)
    torch.testing.assert_close(density.member(1).log_prob(y, u), density.each_log_prob(y, u)[1])
    product = sum(density.log_prob(one.expand(7, 3), u) for one in y[:2])
    torch.testing.assert_close(density.product_log_prob(y[:2], u), product, check_dtype=False)


def test_samples_are_those_of_the_mixture_moved_by_the_trend(density: TrendedMixture) -> None:
    u = torch.randn(5, 2)
    rest = density.mixture.sample(u, torch.Generator().manual_seed(3))
    moved = density.sample(u, torch.Generator().manual_seed(3))
    trend = torch.stack([density.trend(u)[i % 2, i] for i in range(5)])
    torch.testing.assert_close(moved - trend.float(), rest, atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", [{"members": 1}, {"condition_dim": 3}, {"dim": 2}])
def test_a_trend_of_other_sizes_is_refused(density: TrendedMixture, change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"trend must have the {next(iter(change))} of the mixture"):
        TrendedMixture(KernelTrend(**{**density.trend.sizes, **change}), density.mixture)


def test_kernels_have_gradients(density: TrendedMixture) -> None:
    u, lengths = torch.randn(4, 2, dtype=torch.float64), density.trend.lengths[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda each: gaussian_kernel(u, density.trend.centres, each), (lengths,))


def test_plain_data_and_weights_give_the_same_density(density: TrendedMixture) -> None:
    again = density_from_config(density_config(density))
    again.load_state_dict(density.state_dict())
    y, u = torch.randn(7, 3), torch.randn(7, 2)
    torch.testing.assert_close(again.log_prob(y, u), density.log_prob(y, u))
    assert type(density_from_config(density_config(density.mixture))) is type(density.mixture)
    assert density_from_config(None) is None
