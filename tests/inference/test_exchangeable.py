"""Columns that are draws of one distribution are told from others."""

import pytest
import torch

from openedm.inference.exchangeable import are_exchangeable

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
