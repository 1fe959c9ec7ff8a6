import math
import re

import pytest
import torch
from torch.nn.functional import pad, unfold

from openedm.data import InMemory, Toy
from openedm.exact import GaussianMixture
from openedm.suggest import suggest
from openedm.suggest.reducible import WINDOW_SIZE, fit_mixture, log_normal_of, windows_at


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pictures(count=200, channels=2, size=9):
    """Smooth random images."""
    x = normal(count, channels, size, size).cumsum(2).cumsum(3)
    return x / x.std()


class TestReducible:
    """Moments of the curve, windows and mixtures."""

    def test_a_bell_in_ln_sigma_has_its_own_mean_and_width(self):
        log_sigma = torch.linspace(-9, 7, 60, dtype=torch.float64)
        bell = (-((log_sigma + 1.2) ** 2) / (2 * 1.3**2)).exp()
        assert log_normal_of(log_sigma.exp(), bell) == pytest.approx((-1.2, 1.3), abs=1e-6)
        assert log_normal_of(log_sigma.exp(), bell - 1e-12) == pytest.approx((-1.2, 1.3), abs=1e-6)

    def test_windows_are_those_of_the_image_continued_by_reflection(self):
        images = pictures(count=3)
        places = torch.tensor([[[0, 0], [4, 8]], [[8, 8], [2, 3]], [[8, 0], [0, 5]]])
        every = unfold(pad(images, (2, 2, 2, 2), mode="reflect"), WINDOW_SIZE).unflatten(2, (9, 9))
        expected = torch.stack([every[i, :, r, c] for i in range(3) for r, c in places[i].tolist()])
        assert torch.equal(windows_at(images, places), expected)

    def test_a_mixture_finds_components_and_survives_constant_ones(self):
        exact = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [[[0.01, 0.0], [0.0, 0.0]]] * 2)
        rows = exact.sample(2000, torch.Generator().manual_seed(0))
        x = rows[:200] + 0.2 * normal(200, 2)
        found = fit_mixture(rows, 0.01, seed=0)
        assert float((found(x, 0.2) - exact(x, 0.2)).square().mean().sqrt()) < 0.02

    def test_pictures_are_denoised_better_by_windows_than_by_anything_at_low_sigma(self):
        found = suggest(InMemory(pictures(channels=1).float(), kind="vectors"), levels=8)
        assert "windows" in found.reducible.by
        assert found.reducible.values[-1] < 0.01

    def test_chance_is_not_reducible(self):
        found = suggest(InMemory((0.3 * normal(90, 1, 6, 6, seed=1)).clamp(-1, 1).float()), levels=8)
        assert found.reducible.p_mean is None
        assert found.p_mean == pytest.approx(-1.2 + math.log(found.sigma_data / 0.5))
        assert re.search(
            r"almost none of the loss is reducible, \d% ± \d% at most, of \d+ samples", found.reasons()["p_mean"]
        )

    def test_what_a_few_samples_show_is_uncertain(self):
        found = suggest(Toy(num_samples=64).load())
        assert found.reducible.p_mean is None
        assert "is uncertain" in found.reasons()["p_mean"]
