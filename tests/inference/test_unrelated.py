"""Which columns of x are left out because they have nothing to do with anything, and which must not be."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from openedm.inference import Settings, tasks
from openedm.inference.prepare import prepare
from openedm.inference.unrelated import unrelated_columns

ROWS, NOISE = 1000, 30


def numbers(seed: int = 0) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def beside_noise(make: Callable[[Tensor, Callable[..., Tensor]], Tensor], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Parameters, and columns that a function makes of them with columns of noise after them."""
    random = numbers(seed)
    theta = random(ROWS, 2)
    return torch.cat([make(theta, random), random(ROWS, NOISE)], 1), theta


def ancillary(theta: Tensor, random: Callable[..., Tensor]) -> Tensor:
    """x₀ = θ₀ + z and x₁ = z: the second alone is independent of θ, and tells θ₀ exactly with the first."""
    z = random(ROWS, 1)
    return torch.cat([theta[:, :1] + z, z, theta[:, 1:] + random(ROWS, 1)], 1)


def sizes(theta: Tensor, random: Callable[..., Tensor]) -> Tensor:
    """Only the size of the columns depends on θ₀."""
    return torch.cat([(theta[:, :1] / 2).exp() * random(ROWS, 4), theta[:, 1:] + random(ROWS, 1)], 1)


def product(theta: Tensor, random: Callable[..., Tensor]) -> Tensor:
    """x₁ = a θ₀ and x₀ = a: neither is correlated with θ₀, their product is."""
    a = random(ROWS, 1)
    return torch.cat([a, a * theta[:, :1] + 0.1 * random(ROWS, 1), theta[:, 1:] + random(ROWS, 1)], 1)


def correlation(theta: Tensor, random: Callable[..., Tensor]) -> Tensor:
    """Two standard normal columns whose correlation is tanh θ₀."""
    rho, first = theta[:, :1].tanh(), random(ROWS, 1)
    second = rho * first + (1 - rho.square()).sqrt() * random(ROWS, 1)
    return torch.cat([first, second, theta[:, 1:] + random(ROWS, 1)], 1)


@pytest.mark.parametrize("make", [ancillary, sizes, product, correlation])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_columns_that_tell_something_are_kept_however_they_do(
    make: Callable[[Tensor, Callable[..., Tensor]], Tensor], seed: int
) -> None:
    x, theta = beside_noise(make, seed)
    left_out = unrelated_columns(x, theta)
    telling = x.shape[1] - NOISE
    assert min(left_out) >= telling
    assert len(left_out) >= NOISE - 1


@pytest.mark.parametrize("slope", [0.05, 0.07])
def test_many_columns_that_each_tell_too_little_to_be_seen_are_kept(slope: float) -> None:
    random = numbers()
    theta = random(ROWS, 2)
    assert unrelated_columns(slope * theta[:, :1] + random(ROWS, 100), theta) == []
    x = torch.cat([slope * theta[:, :1] + random(ROWS, 100), theta[:, 1:] + random(ROWS, 1)], 1)
    assert unrelated_columns(x, theta) == []


def test_waves_of_random_phase_are_kept() -> None:
    random = numbers()
    theta = random(ROWS, 2)
    phase = 2 * math.pi * torch.rand(ROWS, 1, generator=torch.Generator().manual_seed(1))
    wave = torch.cos(phase + (1 + 0.3 * theta[:, :1]) * torch.arange(40)) + 0.1 * random(ROWS, 40)
    assert unrelated_columns(torch.cat([theta[:, 1:] + 0.1 * random(ROWS, 1), wave], 1), theta) == []


def test_nothing_is_left_out_where_nothing_tells_anything_or_rows_are_few() -> None:
    random = numbers()
    assert unrelated_columns(random(ROWS, 20), random(ROWS, 2)) == []
    theta = random(60, 1)
    assert unrelated_columns(torch.cat([theta, random(60, 20)], 1), theta) == []


def test_distractors_of_the_benchmark_are_found() -> None:
    task = tasks.get("slcp_distractors")
    theta = task.prior.sample(ROWS, 1)
    kept = set(range(100)) - set(unrelated_columns(task.simulate(theta, 2), theta))
    assert kept == {16, 21, 22, 23, 33, 42, 67, 90}


def test_preparation_leaves_them_out_with_a_warning_and_settings_can_keep_them() -> None:
    x, theta = beside_noise(ancillary)
    with pytest.warns(UserWarning, match=r"neither with theta nor with the other columns are left out: 3, 4.*screen"):
        data = prepare(theta, x)
    assert data.data.keep == (0, 1, 2)
    assert data.settings == Settings.of(ROWS, 2, (3,))
    whole = prepare(theta, x, settings=Settings(screen=False))
    assert whole.data.keep == tuple(range(33))
