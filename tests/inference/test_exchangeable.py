"""Columns that are draws of one distribution are told from others."""

import pytest
import torch

from openedm.inference.exchangeable import are_exchangeable, are_steady
from openedm.inference.forms import choose_form
from openedm.inference.settings import MixtureOptions

THETA = torch.rand(600, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_draws_of_one_distribution_are_exchangeable() -> None:
    assert are_exchangeable(THETA[:, :1] + THETA[:, 1:] * noise(600, 6), THETA)
    assert are_exchangeable(torch.poisson(10 * THETA[:, :1].expand(600, 6), torch.Generator().manual_seed(2)), THETA)
    assert are_exchangeable((3 * noise(600, 5)).tan() + THETA[:, :1], THETA)


@pytest.mark.parametrize(
    "x",
    [
        THETA[:, :1] * torch.linspace(0, 2, 6) + noise(600, 6),  # a line
        THETA[:, :1] + torch.linspace(0.5, 2, 6) * noise(600, 6),  # noise that grows
        noise(600, 7).unfold(1, 2, 1).sum(2) + THETA[:, :1],  # neighbours are alike
        torch.cat([THETA[:, :1].expand(600, 3), THETA[:, 1:].expand(600, 3)], 1) + noise(600, 6),  # of other parameters
        noise(600, 6) * torch.cat([THETA[:, :1].expand(600, 3), THETA[:, 1:].expand(600, 3)], 1),
        noise(600, 1),
    ],
    ids=["curve", "scale", "series", "means", "scales", "single"],
)
def test_others_are_not(x: torch.Tensor) -> None:
    assert not are_exchangeable(x, THETA)


def process(rows: int = 600, steps: int = 12, low: float = 0.0) -> torch.Tensor:
    """An autoregressive process in its steady state, whose coefficient, from `low` to 0.9, and size are parameters."""
    phi, size, n = low + (0.9 - low) * THETA[:rows, 0], 0.5 + THETA[:rows, 1], noise(rows, steps)
    values = [size * n[:, 0] / (1 - phi.square()).sqrt()]
    for t in range(1, steps):
        values.append(phi * values[-1] + size * n[:, t])
    return torch.stack(values, 1)


def test_a_process_is_steady_where_all_times_are_alike() -> None:
    x = process()
    assert are_steady(x, THETA)
    assert not are_exchangeable(x, THETA)
    assert are_steady(x.exp(), THETA)  # whatever its distribution is
    assert not are_steady(x[:, :7], THETA)  # too short to tell
    growing = torch.linspace(0.5, 2, 12)
    assert not are_steady(x * growing, THETA)
    assert not are_steady(x + growing * THETA[:, :1], THETA)
    assert not are_steady(x.cumsum(1), THETA)
    assert not are_steady(x[:, torch.randperm(12, generator=torch.Generator().manual_seed(0))], THETA)
    # of thousands of pairs some are farther off by chance, the more the more alike the columns are
    assert are_steady(process(steps=150, low=-0.9), THETA)
    assert not are_exchangeable(process(steps=8, low=-0.5), THETA)  # which single pairs do not show
    assert not are_steady(process(steps=150) + torch.linspace(-1, 1, 150) * THETA[:, :1], THETA)


def test_a_steady_process_is_learned_as_one() -> None:
    x = process()
    options = MixtureOptions(width=8, num_blocks=1, pilot_steps=80, steps=150, learning_rate=1e-2, components=(1,))
    y, u = (x / x.std()).float(), (THETA - THETA.mean(0)).float() / THETA.std(0).float()
    assert choose_form([(y, 0.0)], u, options, steady=True).structure == "stationary"
    assert choose_form([(y, 0.0)], u, options).structure != "stationary"
