"""A learned likelihood is corrected by simulations near the observation, where held-out simulations gain by it."""

from dataclasses import replace

import pytest
import torch

from fitted import TINY
from openedm.inference import Box, fit, load
from openedm.inference.refine import Refinement
from openedm.inference.settings import MixtureOptions
from openedm.inference.trained import DenoiserPosterior
from openedm.networks.nearby import RememberingDensity

NOISE = 0.05
PRIOR = Box(low=[-1, -1], high=[1, 1], names=["a", "b"])


def mean(theta: torch.Tensor) -> torch.Tensor:
    a, b = theta.unbind(-1)
    return torch.stack([torch.sin(3 * a) + b, a * b, torch.exp(b), torch.cos(2 * a - b)], -1)


@pytest.fixture(scope="module")
def posterior() -> DenoiserPosterior:
    theta = PRIOR.sample(1200, seed=0).double()
    x = mean(theta) + NOISE * torch.randn(1200, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    settings = replace(
        TINY,
        emulator=MixtureOptions(
            members=2, components=(1,), structures=("constant",), width=8, num_blocks=1, steps=60, folds=2
        ),
        refinement=Refinement(num_steps=25, num_pilots=64, max_steps=100, density_steps=True),
        judged=3,
    )
    return fit(theta.float(), x.float(), PRIOR, settings=settings)


X = mean(torch.tensor([[0.3, -0.4], [-0.5, 0.5]])).float()


def exact(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and width of each parameter by a grid."""
    line = torch.linspace(-1, 1, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    weights = (-0.5 * ((x - mean(grid)) / NOISE).square().sum(1)).softmax(0)
    centre = weights @ grid
    return centre, (weights @ (grid - centre).square()).sqrt()


def test_a_badly_learned_likelihood_is_corrected(posterior: DenoiserPosterior) -> None:
    assert isinstance(posterior.parts.emulator, RememberingDensity)
    assert "prior × learned likelihood, corrected nearby" in posterior.report["held_out_log_prob"]
    samples = posterior.sample(X, 2000, seed=3)
    for x, drawn in zip(X, samples, strict=True):
        centre, width = exact(x)
        assert ((drawn.double().mean(0) - centre).abs() < 0.5 * width).all()
        assert ((drawn.std(0) / width - 1).abs() < 0.3).all()


def test_its_density_is_normalised_and_that_of_its_samples(posterior: DenoiserPosterior) -> None:
    centre, width = exact(X[0])
    line = torch.linspace(-6, 6, 121, dtype=torch.float64)
    grid = centre + width * torch.cartesian_prod(line, line)
    density = posterior.log_prob(grid, X[0]).double().exp()
    cell = (0.1 * width).prod()
    assert float((density * cell).sum()) == pytest.approx(1, abs=0.1)
    by_density = (density[:, None] * grid).sum(0) / density.sum()
    samples = posterior.sample(X[0], 2000, seed=3).double()
    assert ((samples.mean(0) - by_density).abs() < 0.2 * width).all()


def test_observations_do_not_mix(posterior: DenoiserPosterior) -> None:
    both = posterior.sample(X, 200, seed=3)
    torch.testing.assert_close(posterior.sample(X[1], 200, seed=3), both[1], atol=1e-3, rtol=1e-3)


def test_it_is_kept_with_its_simulations(posterior: DenoiserPosterior, tmp_path) -> None:
    posterior.save(tmp_path / "kept")
    again = load(tmp_path / "kept")
    assert torch.equal(again.sample(X, 50, seed=3), posterior.sample(X, 50, seed=3))
    torch.testing.assert_close(again.log_prob(X[:, :2], X[0]), posterior.log_prob(X[:, :2], X[0]))


def test_verdict_and_agreement_are_of_the_corrected_one(posterior: DenoiserPosterior) -> None:
    assert posterior.verdict(X[0]) is not None
