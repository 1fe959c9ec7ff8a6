"""Truncated priors are densities; rounds come nearer to the posterior of one observation."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fitted import TINY
from openedm.inference import Box, LogNormal, Normal
from openedm.inference.composite import Truncated, prior_from_config, prior_to_config
from openedm.inference.sequential import fit_sequentially

SETTINGS = replace(
    TINY,
    network=TINY.drawn_network,
    members=1,
    passes=200,
    batch_size=64,
    learning_rate=1e-2,
    weight_decay=0.0,
    emulator=None,
    refinement=None,
)


@pytest.mark.parametrize(
    ("prior", "low", "high"),
    [
        (Box([-1.0, 0.0], [1.0, 2.0]), [-0.5, 0.5], [0.1, 1.0]),
        (Normal([0.0, 1.0], [1.0, 2.0]), [-0.5, 0.0], [1.5, 3.0]),
        (LogNormal([0.0, 0.0], [0.5, 0.3]), [0.5, 0.8], [1.0, 2.0]),
    ],
)
def test_a_truncated_prior_is_the_prior_inside_and_integrates_to_one(prior, low, high) -> None:
    cut = Truncated(prior, low, high)
    axes = [torch.linspace(a, b, 301, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    middle = [(axis[1:] + axis[:-1]) / 2 for axis in axes]
    points = torch.cartesian_prod(*middle)
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    assert float(cut.log_prob(points).exp().sum()) * cell == pytest.approx(1, abs=0.01)
    assert cut.mass == pytest.approx(float(prior.log_prob(points).exp().sum()) * cell, rel=0.02)
    difference = cut.log_prob(points) - prior.log_prob(points)
    assert float(difference.max() - difference.min()) < 1e-9
    draws = cut.sample(4000, seed=1)
    assert bool(cut.contains(draws).all())
    weights = cut.log_prob(points).exp()
    mean = (weights[:, None] * points).sum(0) / weights.sum()
    std = ((weights[:, None] * (points - mean) ** 2).sum(0) / weights.sum()).sqrt()
    assert bool(((draws.mean(0) - mean).abs() < 5 * std / math.sqrt(4000)).all())
    assert torch.equal(cut.sample(10, seed=1), cut.sample(10, seed=1))
    assert float(cut.log_prob(torch.tensor([9.0, 9.0]))) == -math.inf


def test_the_box_around_samples_holds_them_with_a_margin_and_stays_inside_the_last_one() -> None:
    prior = Box([-1.0, 0.0], [1.0, 2.0])
    samples = torch.tensor([[0.0, 1.0], [0.2, 1.4]])
    box = Truncated.around(prior, samples, 0.2)
    assert bool(box.contains(samples).all())
    assert -0.1 < box.low[0] < 0.0
    assert 1.4 < box.high[1] < 1.6
    assert 0.02 < box.mass < 0.06
    inner = Truncated.around(prior, samples, 0.2, Truncated(prior, [-0.01, 0.5], [0.21, 1.41]))
    assert inner.low[0] == pytest.approx(-0.01)
    assert inner.high[1] == pytest.approx(1.41)


def test_a_truncated_prior_comes_back_from_its_plain_data() -> None:
    cut = Truncated(LogNormal([0.0], [0.5]), [0.5], [1.0])
    back = prior_from_config(json.loads(json.dumps(prior_to_config(cut))))
    assert torch.equal(back.sample(10, seed=1), cut.sample(10, seed=1))


def test_rounds_simulate_where_the_posterior_is(without_type_checker) -> None:
    prior = Box([-10.0, -10.0], [10.0, 10.0])

    def simulator(theta, seed):
        return theta + 0.2 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(int(seed)))

    observed = torch.tensor([3.0, -4.0])
    first, second = fit_sequentially(simulator, prior, observed, rounds=2, simulations=200, settings=SETTINGS)
    volumes = [math.prod(b - a for a, b in zip(r.low, r.high, strict=True)) for r in (first, second)]
    assert volumes[1] < 0.5 * volumes[0]
    assert all(a < v < b for a, v, b in zip(second.low, observed.tolist(), second.high, strict=True))
    assert second.used >= 200
    samples = second.posterior.sample(n=200)
    assert bool(((samples > torch.tensor(second.low)) & (samples < torch.tensor(second.high))).all())


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds must be >= 1"):
        fit_sequentially(lambda theta: theta, Box([0.0], [1.0]), [0.5], rounds=0)
    with pytest.raises(ValueError, match="prior must be given"):
        fit_sequentially(lambda theta: theta, None, [0.5])
