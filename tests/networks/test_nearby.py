"""Learned densities are corrected by the rows near a region."""

import math

import pytest
import torch

from openedm.networks.layers import seeded
from openedm.networks.nearby import (
    CorrectedDensity,
    RememberingDensity,
    density_config,
    density_from_config,
    means_of,
)
from openedm.networks.structured import build_mixture
from openedm.networks.trends import KernelTrend, TrendedMixture

NOISE = 0.02


def rows(n: int = 1500, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A mean that bends, with little noise."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(n, 2, generator=generator)
    return u, mean(u) + NOISE * torch.randn(n, 3, generator=generator)


def mean(u: torch.Tensor) -> torch.Tensor:
    a, b = u.unbind(1)
    return torch.stack([torch.sin(a) + b**2, a * b, torch.cos(a + b)], 1)


def least_squares(structure: str, members: int = 2, *, trend: bool = False) -> RememberingDensity:
    """A density that only knows the straight part of the mean, with wide noise."""
    u, y = rows()
    with seeded(3):
        mixture = build_mixture(structure, 2, 3, members=members, components=1, width=8, num_blocks=1)
    mixture.fit_linear(y, u)
    density = TrendedMixture(KernelTrend(members, 4, 2, 1, 3), mixture) if trend else mixture
    return RememberingDensity(density, u, y).eval().requires_grad_(False)


def region(centre: tuple[float, float] = (0.5, -0.3)) -> torch.Tensor:
    return torch.tensor(centre) + 0.05 * torch.randn(64, 2, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("structure", ["full", "banded", "scaled", "constant"])
@pytest.mark.parametrize("trend", [False, True])
def test_mean_and_noise_near_a_region_are_those_of_the_rows_there(structure: str, trend: bool) -> None:
    density, points = least_squares(structure, trend=trend), region()
    corrected = density.near(points)
    assert isinstance(corrected, CorrectedDensity)
    means = means_of(corrected.density, points) + corrected.shifts(points)
    assert (means.mean(0) - mean(points)).square().mean().sqrt() < NOISE / 2
    assert (means_of(density.density, points).mean(0) - mean(points)).square().mean().sqrt() > 10 * NOISE
    fresh = mean(points) + NOISE * torch.randn(64, 3, generator=torch.Generator().manual_seed(2))
    exact = -3 * math.log(NOISE) - 1.5 * math.log(2 * math.pi) - 1.5
    assert float(corrected.log_prob(fresh, points).mean()) == pytest.approx(exact, abs=0.5)
    assert float(density.log_prob(fresh, points).mean()) < exact - 3


def test_a_density_that_is_right_stays_so() -> None:
    u = rows()[0]
    generator = torch.Generator().manual_seed(5)
    y = u @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]) + 0.3 * torch.randn(len(u), 3, generator=generator)
    with seeded(3):
        mixture = build_mixture("constant", 2, 3, members=2, components=1, width=8, num_blocks=1)
    mixture.fit_linear(y, u)
    density = RememberingDensity(mixture, u, y).requires_grad_(False)
    for centre in ((0.0, 0.0), (1.0, 0.5), (-0.5, 1.0)):
        points = region(centre)
        corrected = density.near(points)
        assert isinstance(corrected, CorrectedDensity)
        assert corrected.shifts(points).mean(0).square().mean().sqrt() < 0.3 / 4
        change = corrected.log_prob(y[:500], points[:1].expand(500, -1)) - mixture.log_prob(
            y[:500], points[:1].expand(500, -1)
        )
        near = (y[:500] - means_of(mixture, points[:1])[0]).abs().amax(1) < 0.6
        assert change[near].abs().mean() < 0.3


def test_far_away_the_mean_is_the_densitys_own() -> None:
    density = least_squares("constant")
    corrected = density.near(region())
    assert isinstance(corrected, CorrectedDensity)
    assert torch.equal(corrected.shifts(torch.tensor([[40.0, 40.0]])), torch.zeros(2, 1, 3, dtype=torch.float64))


@pytest.mark.parametrize("noise", ["learned", "of the rows"])
def test_densities_and_samples_of_members_agree(noise: str) -> None:
    density, points = least_squares("constant"), region()
    corrected = density.near(points)
    assert isinstance(corrected, CorrectedDensity)
    assert corrected.fit.noise is not None
    if noise == "learned":
        fit = corrected.fit
        corrected = CorrectedDensity(
            corrected.density, type(fit)(fit.region, fit.degree, fit.weights, None, fit.log_probs)
        )
    y = mean(points)
    each = corrected.each_log_prob(y, points)
    for e in range(2):
        torch.testing.assert_close(corrected.member(e).each_log_prob(y, points)[0], each[e])
    together = corrected.member_log_prob(y.expand(2, -1, -1), points.expand(2, -1, -1))
    torch.testing.assert_close(together, each)
    product = corrected.product_log_prob(y[:3], points)
    alone = sum(corrected.log_prob(one.expand(64, -1), points).double() for one in y[:3])
    torch.testing.assert_close(product, alone)
    many = points[:1].expand(4000, -1)
    drawn = corrected.sample(many, torch.Generator().manual_seed(0))
    expected = (means_of(corrected.density, points[:1]) + corrected.shifts(points[:1])).mean((0, 1))
    spread = drawn.std(0)
    assert ((drawn.mean(0) - expected).abs() < 5 * spread / 4000**0.5).all()


def test_few_rows_a_flat_region_or_many_conditions_correct_nothing() -> None:
    density = least_squares("constant")
    few = RememberingDensity(density.density, density.u[:50], density.y[:50])
    assert few.near(region()) is density.density
    assert density.near(torch.ones(64, 2) * float("nan")) is density.density
    wide = build_mixture("constant", 13, 3, members=1, components=1, width=8, num_blocks=1)
    assert not RememberingDensity.may_correct(wide)
    assert not RememberingDensity.may_correct(build_mixture("full", 2, 3, members=1, components=8))
    assert not RememberingDensity.may_correct(build_mixture("counts", 2, 3, members=1, components=1))
    assert RememberingDensity.may_correct(density.density)


def test_plain_data_and_weights_give_the_same_density() -> None:
    for trend in (False, True):
        density = least_squares("scaled", trend=trend)
        again = density_from_config(density_config(density))
        assert isinstance(again, RememberingDensity)
        again.load_state_dict(density.state_dict())
        u, y = rows(5, seed=9)
        torch.testing.assert_close(again.log_prob(y, u), density.log_prob(y, u))
        torch.testing.assert_close(again.near(region()).log_prob(y, u), density.near(region()).log_prob(y, u))


def test_regressions_that_are_not_finite_are_left_out() -> None:
    density, points = least_squares("constant"), region()
    nearest = int((density.u - points.mean(0)).square().sum(1).argmin())
    y = density.y.clone()
    y[nearest] = torch.inf
    assert RememberingDensity(density.density, density.u, y).near(points) is density.density
