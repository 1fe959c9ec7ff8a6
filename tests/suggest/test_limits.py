import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from openedm.data import InMemory
from openedm.exact import ExactDataset
from openedm.suggest import suggest
from openedm.suggest.limits import farthest, lowest, nearest, posteriors, rounding_step, terminal_divergence
from openedm.suggest.moments import Moments, moments, noisy


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestSigmaMax:
    """The divergence of the start."""

    def test_the_divergence_is_that_of_the_two_gaussians(self):
        a = normal(5, 5)
        covariance, mean = a @ a.T, normal(5, seed=1)
        values, basis = torch.linalg.eigh(covariance)
        # Of infinitely many samples: nothing is subtracted from ‖μ‖².
        exact = Moments(mean, basis, values, values, 0.0, float(values.mean()), 10**15)
        for sigma in (0.5, 3.0, 20.0):
            start = MultivariateNormal(torch.zeros(5).double(), sigma**2 * torch.eye(5).double())
            for shift, centred in ((mean, False), (0 * mean, True)):
                noisy = MultivariateNormal(shift, covariance + sigma**2 * torch.eye(5))
                expected = float(kl_divergence(noisy, start))
                assert terminal_divergence(exact, sigma, centred=centred) == pytest.approx(expected, rel=1e-6)

    def test_fewer_nats_ask_for_more_noise(self):
        found = [suggest(InMemory(normal(200, 2).float()), terminal_nats=nats).sigma_max for nats in (0.1, 0.01, 0.001)]
        # Σ f(λ/σ²)/2 → Σ λ²/(4 σ⁴): σ grows with the fourth root.
        assert found[1] / found[0] == pytest.approx(10**0.25, rel=0.15)
        assert found[2] / found[1] == pytest.approx(10**0.25, rel=0.05)

    def test_the_largest_distance_is_found_in_chunks(self):
        rows = normal(100, 3)
        assert farthest(rows, chunk=7) == pytest.approx(float(torch.pdist(rows).max()))

    @pytest.mark.parametrize("count", [4, 30])
    def test_posteriors_are_those_of_the_exact_denoiser(self, count):
        points, clean, noise = normal(count, 7), normal(5, 7, seed=1), normal(5, 7, seed=2)
        found = moments(points)
        x = noisy(found, clean, noise)
        against = posteriors(x, (points - found.mean) @ found.basis)
        for sigma in (0.1, 1.0, 30.0):
            expected = ExactDataset(points)(clean + sigma * noise, sigma)
            answer = against.denoised(sigma)
            torch.testing.assert_close(found.mean + answer @ found.basis.T, expected, rtol=0, atol=1e-9)
            torch.testing.assert_close(x.error_of(answer), (expected - clean).square().sum(1), rtol=1e-9, atol=0)

    def test_the_perplexity_rises_from_one_point_to_all(self):
        points = normal(30, 4)
        of = moments(points)
        found = posteriors(noisy(of, points, normal(30, 4, seed=2)), (points - of.mean) @ of.basis)
        assert found.perplexity(1e-3) == pytest.approx(1 / 30)
        assert found.perplexity(1e4) == pytest.approx(1)


class TestSigmaMin:
    """Steps and neighbours."""

    @pytest.mark.parametrize("scale", [1.0, 0.37, 1e-4, 5e6])
    def test_the_step_of_rounded_values_is_found(self, scale):
        bytes_ = torch.randint(256, (100, 12), generator=torch.Generator().manual_seed(0)).float() / 127.5 - 1
        assert rounding_step((scale * bytes_).double()) == pytest.approx(scale * 2 / 255, rel=1e-5)
        assert rounding_step((scale * bytes_.sign()).double()) == pytest.approx(scale * 2, rel=1e-5)

    def test_a_step_that_only_a_few_values_take_is_found_too(self):
        x = torch.tensor([[0.0, 3.0], [5.0, 11.0]]).double()
        assert rounding_step(x / 10) is None  # The smallest difference is 2, and does not divide 3.
        assert rounding_step(torch.cat([x, x + 1]) / 10) == pytest.approx(0.1)

    def test_continuous_values_have_no_step(self):
        assert rounding_step(normal(1000, 3)) is None
        assert rounding_step(normal(1000, 3).float().double()) is None
        assert rounding_step(torch.cat([torch.ones(100, 1), normal(100, 1)]).double()) is None

    def test_neighbours_are_the_nearest_that_are_no_copies(self):
        rows, clean = normal(200, 3), normal(20, 3, seed=1)
        expected = float(torch.cdist(clean, rows).amin(1).median())
        assert nearest(clean, torch.cat([rows, clean]), chunk=64) == pytest.approx(expected)
        assert nearest(clean[:1], clean[:1].expand(4, 3)) == 0

    def test_noise_moves_a_sample_by_a_tenth_of_the_distance_to_its_neighbour(self):
        rows, clean = normal(2000, 16), normal(100, 16, seed=1)
        found = lowest(clean, rows, 1.0)
        assert found.bound == "neighbours"
        assert found.sigma * math.sqrt(16) == pytest.approx(nearest(clean, rows) / 10)

    def test_it_stays_between_a_250th_and_a_tenth_of_sigma_data(self):
        assert lowest(normal(100, 1), normal(2000, 1, seed=1), 1.0).sigma == 1 / 250
        far = 10 * torch.eye(200).double() + 1e-3 * normal(200, 200)
        assert lowest(far[:50], far[50:], 0.5).sigma == 0.05
        binary = (normal(100, 4) > 0).double()
        found = lowest(binary[:50], binary[50:], 0.5)
        assert (found.sigma, found.step, found.bound) == (0.05, 1.0, "ratio")


@pytest.mark.parametrize("mean", [0.0, 1e2, 1e6])
def test_copies_are_no_neighbours_wherever_the_data_lie(mean):
    rows = normal(400, 4)
    alone = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    expected = float(alone.amin(1).median())
    assert nearest(rows + mean, torch.cat([rows, rows]) + mean) == pytest.approx(expected, rel=1e-6)
