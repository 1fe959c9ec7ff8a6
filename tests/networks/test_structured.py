"""Conditional mixtures of each structure: densities, samples and what they start from."""

import math

import pytest
import torch

from openedm.networks.structured import PLACED, STRUCTURES, build_mixture

MIXED = [structure for structure in STRUCTURES if structure not in PLACED]  # these have one component: test_placed.py


def perturbed(structure: str, dim: int = 3, components: int = 2):
    """A mixture of two members that depends on its condition."""
    torch.manual_seed(0)
    mixture = build_mixture(structure, 2, dim, members=2, components=components, width=8, num_blocks=1)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return mixture.requires_grad_(False)


@pytest.mark.parametrize("structure", ["full", "banded", "scaled", "constant", "stationary"])
def test_the_density_is_that_of_its_parameters(structure: str) -> None:
    mixture, y, u = perturbed(structure), torch.randn(7, 3), torch.randn(7, 2)
    weights, means, factors, logs = mixture.parameters_of(u.expand(2, -1, -1))
    errors = torch.einsum("mrkij,mrkj->mrki", factors, y[None, :, None] - means)
    each = weights + logs - 0.5 * errors.square().sum(-1) - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(mixture.each_log_prob(y, u), each.logsumexp(-1))
    torch.testing.assert_close(factors, factors.tril())
    if structure == "constant":
        torch.testing.assert_close(factors[:, :1].expand_as(factors), factors)


@pytest.mark.parametrize("structure", MIXED)
def test_a_member_alone_is_the_member(structure: str) -> None:
    mixture, y, u = perturbed(structure), torch.randn(7, 3), torch.randn(7, 2)
    torch.testing.assert_close(mixture.member(1).log_prob(y, u), mixture.each_log_prob(y, u)[1])


def test_independent_draws_have_the_product_of_one_density() -> None:
    mixture, u = perturbed("independent"), torch.randn(7, 2)
    one = build_mixture("independent", 2, 1, members=2, components=2, width=8, num_blocks=1)
    one.load_state_dict(mixture.state_dict())
    y = torch.randn(7, 3)
    product = sum(one.each_log_prob(y[:, [i]], u) for i in range(3))
    torch.testing.assert_close(mixture.each_log_prob(y, u), product.detach())
    axis = torch.linspace(-30, 30, 4001)[:, None]
    total = one.log_prob(axis, u[:1].expand(4001, 2)).exp().sum() * (axis[1, 0] - axis[0, 0])
    assert float(total.detach()) == pytest.approx(1, abs=1e-3)


def test_heavy_noise_has_student_t_distributions_around_the_mean() -> None:
    mixture, scaled = perturbed("heavy", components=1), perturbed("scaled", components=1)
    y, u = torch.randn(7, 3), torch.randn(7, 2)
    scaled.load_state_dict({k: v for k, v in mixture.state_dict().items() if k != "log_freedom"})
    with torch.no_grad():
        mixture.log_freedom.copy_(torch.tensor([1.5, 2.0, 1000.0]).log().expand(2, 1, 3))  # 1000 counts as 200
    _, means, factors, logs = scaled.parameters_of(u.expand(2, -1, -1))
    z = torch.einsum("mrkij,mrkj->mrki", factors, y[None, :, None] - means)
    expected = torch.distributions.StudentT(torch.tensor([1.5, 2.0, 200.0])).log_prob(z).sum(-1) + logs
    torch.testing.assert_close(mixture.each_log_prob(y, u), expected[..., 0])
    with pytest.raises(NotImplementedError, match="no parameters of Gaussians"):
        mixture.parameters_of(u.expand(2, -1, -1))


@pytest.mark.parametrize("structure", [s for s in MIXED if s != "stationary"])
def test_samples_have_the_moments_of_the_density(structure: str) -> None:
    mixture = perturbed(structure, dim=1)
    if structure == "heavy":
        mixture.log_freedom.fill_(math.log(30))  # else the moments of samples hardly converge
    u = torch.tensor([[0.3, -0.7]]).expand(40_000, 2)
    drawn = mixture.sample(u, torch.Generator().manual_seed(0))
    axis = torch.linspace(-40, 40, 20_001)[:, None]
    weight = mixture.log_prob(axis, u[:20_001]).exp()
    mean = (weight * axis[:, 0]).sum() / weight.sum()
    spread = ((weight * (axis[:, 0] - mean).square()).sum() / weight.sum()).sqrt()
    assert float(drawn.mean()) == pytest.approx(float(mean), abs=5 * float(spread) / 200)
    assert float(drawn.std()) == pytest.approx(float(spread), rel=0.05)


def test_a_process_depends_on_the_two_times_before_alike_at_all_times() -> None:
    mixture, u = perturbed("stationary", dim=6, components=1), torch.tensor([[0.3, -0.7]]).expand(2, 40_000, 2)
    _, means, factors, _ = (part[:, 0, 0] for part in mixture.parameters_of(u[:, :1]))
    torch.testing.assert_close(means, means[:, :1].expand(2, 6))
    torch.testing.assert_close(factors, factors.tril() - factors.tril(-3))
    for below in range(3):  # from the third row on
        diagonal = factors.diagonal(-below, 1, 2)[:, 2 - below :]
        torch.testing.assert_close(diagonal, diagonal[:, :1].expand_as(diagonal))
        assert float(diagonal.abs().min()) > 1e-3
    drawn = mixture.member(0).sample(u[0], torch.Generator().manual_seed(0))
    covariance = torch.linalg.inv(factors[0].T @ factors[0])
    torch.testing.assert_close(torch.cov(drawn.T), covariance, rtol=0.05, atol=0.05)
    torch.testing.assert_close(drawn.mean(0), means[0], rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="dim must be >= 3, got 2"):
        build_mixture("stationary", 1, 2)


@pytest.mark.parametrize("structure", ["full", "banded", "scaled", "constant"])
def test_a_linear_gaussian_is_exact_from_the_start(structure: str) -> None:
    torch.manual_seed(0)
    u, mix = torch.randn(4000, 2), torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [0.0, -0.4, 0.6]])
    noise = torch.randn(4000, 3) @ mix.T
    y = u @ torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]]) + noise
    mixture = build_mixture(structure, 2, 3, width=8)
    mixture.fit_linear(y, u)
    exact = torch.distributions.MultivariateNormal(torch.zeros(3), mix @ mix.T).log_prob(noise)
    torch.testing.assert_close(mixture.log_prob(y, u).detach(), exact, atol=0.1, rtol=0.05)


def test_an_unknown_structure_is_refused() -> None:
    with pytest.raises(ValueError, match="structure"):
        build_mixture("diagonal", 2, 3)
    with pytest.raises(NotImplementedError, match="all draws together"):
        perturbed("independent").parameters_of(torch.zeros(2, 1, 2))
