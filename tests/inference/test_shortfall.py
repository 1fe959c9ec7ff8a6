"""What a posterior loses for want of simulations."""

import math
from dataclasses import replace

import pytest
import torch

from fitted import TINY
from openedm.inference import fit
from openedm.inference.shortfall import Shortfall
from openedm.networks import ConditionalMLP, VectorSummary


def test_the_estimate_is_the_divergence_of_a_fit_of_maximum_likelihood() -> None:
    # The mean of 50 Gaussians from 100 rows: KL = |mean|²/2, whose expectation is 50/200.
    generator = torch.Generator().manual_seed(0)
    trained, others = (torch.randn(100, 50, generator=generator, dtype=torch.float64) for _ in range(2))
    mean = trained.mean(0)
    scores = [-(rows - mean).square().sum(1) / 2 for rows in (trained, others)]
    found = Shortfall.of(*scores, dim=50, simulations=100)
    assert found.nats == pytest.approx(float(mean.square().sum() / 2), abs=3 * found.error)
    assert found.nats == pytest.approx(0.25, abs=3 * found.error)


def test_enough_and_too_few_are_told_apart_in_words() -> None:
    few = Shortfall(nats=0.32, error=0.1, dim=2, simulations=1000)
    assert few.is_large
    assert few.needed == 4000
    assert str(few).startswith("more simulations are needed: with 1,000, an estimated 0.32 ± 0.10 nats are lost")
    assert "some 4,000 simulations" in str(few)
    enough = Shortfall(nats=0.05, error=0.03, dim=2, simulations=10_000)
    assert not enough.is_large
    assert str(enough).startswith("10,000 simulations seem to be enough")


def test_a_density_that_is_not_finite_needs_more_simulations() -> None:
    found = Shortfall.of(torch.zeros(3), torch.tensor([0.0, -math.inf]), dim=1, simulations=100)
    assert found.is_large
    assert "no density at all" in str(found)


def test_a_fit_says_that_more_simulations_are_needed(without_type_checker) -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(150, 3, generator=generator)
    x = theta + 0.05 * torch.randn(150, 3, generator=generator)
    network = ConditionalMLP(width=32, num_blocks=2, summary=VectorSummary(width=32))
    plain = replace(TINY, network=network, emulator=None, refinement=None, judged=40)
    settings = replace(plain, images=20_000, passes=300, batch_size=64, learning_rate=5e-3)
    with pytest.warns(UserWarning, match="more simulations are needed: with 150") as warned:
        posterior = fit(theta, x, settings=settings)
    assert posterior.report["verdict"] == str(warned[0].message)
    assert posterior.report["shortfall"] > 0.15
