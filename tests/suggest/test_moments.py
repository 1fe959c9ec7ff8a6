import math

import pytest
import torch

from openedm.data import InMemory
from openedm.exact import GaussianMixture
from openedm.suggest.moments import draw, moments, noisy


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestMoments:
    """Mean, covariance, and the linear denoiser."""

    @pytest.mark.parametrize("count", [20, 400])
    def test_the_error_of_the_linear_denoiser_is_that_of_one_gaussian(self, count):
        rows = normal(count, 50) @ normal(50, 50, seed=1) / 7
        found = moments(rows)
        covariance = torch.cov(rows.T, correction=0)
        trace, squares = float(covariance.trace()), float(covariance.square().sum())
        a = (0.96 * squares + trace**2) / ((count + 0.96) * (squares - trace**2 / 50))
        assert 0 < a < 1
        shrunk = (1 - a) * covariance + a * trace / 50 * torch.eye(50).double()
        y, n = normal(6, 50, seed=2), normal(6, 50, seed=3)
        for given, which in ((covariance, False), (shrunk, True)):
            expected = (GaussianMixture([1.0], rows.mean(0)[None], given[None])(y + 0.4 * n, 0.4) - y).square().sum(1)
            error = noisy(found, y, n).error(0.4, *found.gains(0.4, shrunk=which))
            torch.testing.assert_close(error, expected, rtol=1e-9, atol=0)
        assert float(found.values.sum()) + found.rest * found.others == pytest.approx(trace)
        assert found.variance * 50 == pytest.approx(trace)

    def test_few_samples_of_equal_scales_have_equal_eigenvalues(self):
        found = moments(normal(40, 100))
        assert float(found.measured.max()) > 4
        assert float(found.values.max()) == pytest.approx(1, abs=0.1)

    def test_the_squared_mean_is_without_the_error_of_a_mean(self):
        # ‖mean of N‖² is ‖μ‖² + tr(Σ)/N on average, with a standard deviation of √(2 n)/N about 0.
        assert moments(normal(50, 400)).squared_mean == pytest.approx(0, abs=4 * math.sqrt(800) / 50)
        assert moments(normal(50, 400) + 1).squared_mean == pytest.approx(400, abs=4 * 2 * math.sqrt(400 / 50))

    def test_samples_are_drawn_once_each_and_the_same_ones_for_a_seed(self):
        data = InMemory(torch.arange(500.0)[:, None])
        rows = draw(data, 100, seed=3, batch_size=7)
        assert len(set(rows[:, 0].tolist())) == 100
        assert torch.equal(rows, draw(data, 100, seed=3))
        assert not torch.equal(rows, draw(data, 100, seed=4))
