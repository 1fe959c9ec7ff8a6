"""Ensembles of conditional mixtures: densities, draws, and the least-squares fit that they start from."""

import pytest
import torch

from openedm.networks import ConditionalMixture


def perturbed(members: int, components: int, dim: int = 2) -> ConditionalMixture:
    torch.manual_seed(0)
    mixture = ConditionalMixture(3, dim, members=members, components=components, width=8, num_blocks=1)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixture.requires_grad_(False)


@pytest.mark.parametrize(("members", "components"), [(1, 1), (3, 1), (1, 4), (2, 3)])
def test_the_density_integrates_to_one(members: int, components: int) -> None:
    mixture = perturbed(members, components)
    axis = torch.linspace(-25, 25, 601)
    points = torch.cartesian_prod(axis, axis)
    u = torch.randn(1, 3).expand(len(points), 3)
    total = mixture.log_prob(points, u).double().exp().sum() * (axis[1] - axis[0]).double() ** 2
    assert float(total) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("members", "components"), [(1, 1), (2, 3)])
def test_draws_have_the_density_s_moments(members: int, components: int) -> None:
    mixture = perturbed(members, components)
    u = torch.randn(1, 3).expand(40_000, 3)
    draws = mixture.sample(u, torch.Generator().manual_seed(1)).double()
    axis = torch.linspace(-25, 25, 401)
    points = torch.cartesian_prod(axis, axis)
    weights = mixture.log_prob(points, u[:1].expand(len(points), 3)).double().softmax(0)
    mean = weights @ points.double()
    std = (weights @ (points.double() - mean).square()).sqrt()
    assert ((draws.mean(0) - mean).abs() < 5 * std / 200).all()
    torch.testing.assert_close(draws.std(0), std, rtol=0.04, atol=0)


def test_a_linear_gaussian_problem_is_solved_from_the_start() -> None:
    torch.manual_seed(0)
    u = torch.randn(5000, 3)
    slope, spread = torch.randn(3, 2), torch.tensor([[0.5, 0.0], [0.3, 0.2]])
    y = u @ slope + 1 + torch.randn(5000, 2) @ spread.T
    mixture = ConditionalMixture(3, 2, members=2, width=8, num_blocks=1)
    mixture.fit_linear(y, u)
    exact = torch.distributions.MultivariateNormal(u @ slope + 1, scale_tril=spread)
    torch.testing.assert_close(mixture.log_prob(y, u).mean(), exact.log_prob(y).mean(), atol=0.005, rtol=0)


def test_a_row_s_draw_does_not_fail_where_rows_are_no_multiple_of_members() -> None:
    assert perturbed(3, 1).sample(torch.randn(10, 3), torch.Generator().manual_seed(0)).shape == (10, 2)
    assert perturbed(3, 1).sample(torch.randn(1, 3), torch.Generator().manual_seed(0)).shape == (1, 2)


def test_counts_are_checked() -> None:
    with pytest.raises(ValueError, match="components must be >= 1, got 0"):
        ConditionalMixture(3, 2, components=0)


@pytest.mark.parametrize("components", [1, 3])
def test_a_member_alone_is_what_it_is_in_the_ensemble(components: int) -> None:
    mixture = perturbed(3, components)
    y, u = torch.randn(5, 2), torch.randn(5, 3)
    each = mixture.each_log_prob(y, u)
    for number in range(3):
        torch.testing.assert_close(mixture.member(number).log_prob(y, u), each[number])


def test_a_member_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="number must be between 0 and 2, got 3"):
        perturbed(3, 1).member(3)


@pytest.mark.parametrize("components", [1, 3])
def test_the_density_is_that_of_its_gaussians(components: int) -> None:
    mixture = perturbed(2, components, dim=4)
    y, u = torch.randn(2, 6, 4), torch.randn(2, 6, 3)
    weights, means, factors, _ = mixture.parameters_of(u)
    gaussians = torch.distributions.MultivariateNormal(
        means.double(), precision_matrix=factors.double().mT @ factors.double()
    )
    expected = (weights.double() + gaussians.log_prob(y[:, :, None].double())).logsumexp(-1)
    torch.testing.assert_close(mixture.member_log_prob(y, u).double(), expected, rtol=1e-4, atol=1e-4)
