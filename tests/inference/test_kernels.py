"""The density that samples show integrates to one, follows separate modes, and is the density of its draws."""

import math

import pytest
import torch

from openedm.inference.kernels import Kernels


def two_modes(n: int, std: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    side = (torch.rand(n, 1, generator=generator) < 0.5).double() * 2 - 1
    return side + std * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def test_it_is_a_density() -> None:
    points = torch.stack([two_modes(40, 0.3), 5 + 2 * two_modes(40, 1.0, 1)])
    grid = torch.linspace(-400, 400, 200_001, dtype=torch.float64)
    density = Kernels.of(points).log_prob(grid[None, :, None].expand(2, -1, -1)).exp()
    assert density.sum(1).mul(800 / 200_000).tolist() == pytest.approx([1, 1], abs=1e-4)


def test_kernels_are_narrow_where_modes_are() -> None:
    wide, narrow = Kernels.of(torch.stack([two_modes(256, 1.0), two_modes(256, 0.01)])).factor.flatten().tolist()
    assert narrow < 0.1 < wide


def test_draws_have_the_density() -> None:
    kernels = Kernels.of(two_modes(64, 0.05)[None])
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(64, (1, 20_000), generator=generator)
    drawn = kernels.at(which, torch.randn(1, 20_000, 6, generator=generator))
    for edge in (-1.0, 0.0, 1.1):
        grid = torch.linspace(-30, edge, 60_001, dtype=torch.float64)
        below = float(kernels.log_prob(grid[None, :, None]).exp().sum() * (edge + 30) / 60_000)
        assert float((drawn < edge).double().mean()) == pytest.approx(below, abs=0.015)


def test_a_row_does_not_depend_on_the_others() -> None:
    points = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    u = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(1))
    both, one = Kernels.of(points), Kernels.of(points[1:])
    assert torch.equal(both.log_prob(u)[1:], one.log_prob(u[1:]))
    assert torch.equal(one.log_prob(u[1:])[:, :7], one.log_prob(u[1:, :7]))


def test_samples_without_any_spread_have_a_finite_density() -> None:
    kernels = Kernels.of(torch.ones(1, 5, 2))
    assert math.isfinite(float(kernels.log_prob(torch.ones(1, 1, 2))))
