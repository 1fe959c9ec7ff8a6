import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from openedm.data import Digits, FashionMNIST, InMemory, Toy, measure, wrap
from openedm.data.standard import DEBIAN_PATH
from openedm.exact import GaussianMixture
from openedm.objective import EDMWeighting
from openedm.plots import reducible_loss
from openedm.suggest import suggest

FACTORS = ("sigma_data", "sigma_min", "sigma_max")


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(stds, mean=0.0, count=4000, seed=0):
    """Samples along the axes of a Gaussian."""
    stds = torch.as_tensor(stds, dtype=torch.float64)
    return InMemory((mean + stds * normal(count, len(stds), seed=seed)).float(), kind="vectors")


def two_modes(separation, width=0.05, count=4000):
    """Two Gaussians on a line, and the mixture itself."""
    exact = GaussianMixture([0.5, 0.5], [[-separation / 2], [separation / 2]], [[[width**2]]] * 2)
    x = exact.sample(count, torch.Generator().manual_seed(0))
    return InMemory(x.float()), exact


def pictures(count=200, channels=2, size=9):
    """Smooth random images."""
    x = normal(count, channels, size, size).cumsum(2).cumsum(3)
    return x / x.std()


def trivial_loss(sigmas, variance):
    return variance * sigmas**2 / (variance + sigmas**2)


def moments_under(sigmas, reducible, sigma_data):
    """Mean and standard deviation of ln σ under reducible/λ^¼, in numpy."""
    log_sigma = np.log(sigmas)
    values = reducible * np.sqrt(sigmas * sigma_data / np.hypot(sigmas, sigma_data))
    mean = np.trapezoid(values * log_sigma, log_sigma) / np.trapezoid(values, log_sigma)
    square = np.trapezoid(values * (log_sigma - mean) ** 2, log_sigma) / np.trapezoid(values, log_sigma)
    return mean, math.sqrt(square)


def crossing(curve, height, *, last):
    """The σ at which the reducible loss first rises, or last falls, through `height`."""
    sigmas, values = np.log(curve.sigmas), np.array(curve.values)
    above = np.flatnonzero(values >= height)
    i = above[-1] if last else above[0] - 1
    share = (height - values[i]) / (values[i + 1] - values[i])
    return math.exp(sigmas[i] + share * (sigmas[i + 1] - sigmas[i]))


STDS = (0.05, 0.1, 0.3, 1.0, 1.0, 3.0)


@pytest.fixture(scope="module")
def of_gaussian():
    return suggest(gaussian(STDS, mean=0.2, count=6000), levels=20)


class TestGaussianData:
    """Everything is known in closed form."""

    def test_sigma_data_is_what_training_measures(self, of_gaussian):
        found = of_gaussian
        variances = np.square(STDS)
        assert found.sigma_data == measure(gaussian(STDS, mean=0.2, count=6000)).std
        assert found.sigma_data == pytest.approx(math.sqrt(variances.mean()), abs=4 * found.scale.error)
        # The variance of a mean over dimensions of squares is 2 Σ λ²/n².
        error = math.sqrt(2 * np.square(variances).sum()) / 6 / math.sqrt(6000) / (2 * found.sigma_data)
        assert found.scale.error == pytest.approx(error, rel=0.1)
        assert found.scale.rms == pytest.approx(math.hypot(found.sigma_data, found.scale.mean))
        assert found.scale.within == pytest.approx(found.sigma_data, rel=1e-3)

    def test_sigma_max_is_where_the_divergence_of_the_start_is_as_asked(self, of_gaussian):
        found = of_gaussian

        def excess(sigma):
            ratios = np.square(STDS) / sigma**2
            return 0.5 * (ratios - np.log1p(ratios)).sum() + 6 * 0.2**2 / (2 * sigma**2) - 0.01

        def of_variances(sigma):
            return excess(sigma) - 6 * 0.2**2 / (2 * sigma**2) + 0.01 - 1e-6

        centred = brentq(of_variances, 0.1, 1000)
        assert found.sigma_max == pytest.approx(max(brentq(excess, 0.1, 100), centred), abs=4 * found.highest.error)
        assert found.highest.centred == pytest.approx(centred, abs=4 * found.highest.error)
        share = 6 * 0.2**2 / (2 * found.sigma_max**2) / found.highest.nats
        assert found.highest.mean_share == pytest.approx(share, rel=0.2)

    def test_the_reducible_loss_is_what_the_best_linear_denoiser_gains(self, of_gaussian):
        found = of_gaussian
        curve = found.reducible
        sigmas = np.array(curve.sigmas)
        variances = np.square(STDS)
        best = np.mean([trivial_loss(sigmas, v) for v in variances], axis=0)
        weight = EDMWeighting().weight(torch.from_numpy(sigmas), found.sigma_data).numpy()
        expected = weight * (trivial_loss(sigmas, variances.mean()) - best)
        assert (np.abs(curve.values - expected) < 5 * np.array(curve.errors) + 5e-3).all()
        mean, std = moments_under(sigmas, expected, found.sigma_data)
        assert curve.p_mean == pytest.approx(mean, abs=4 * curve.p_mean_error)
        assert curve.p_std == pytest.approx(std, abs=4 * curve.p_std_error)
        assert curve.p_mean_error < 0.06

    def test_dimensions_of_different_scale_are_warned_about(self, of_gaussian):
        found = of_gaussian
        assert found.scale.unevenness == pytest.approx(60, rel=0.05)
        assert any("differ in scale by" in warning and "divide each dimension" in warning for warning in found.warnings)

    def test_equal_scales_leave_nothing_to_reduce_and_EDMs_numbers_in_units_of_sigma_data(self):
        found = suggest(gaussian([2.0] * 8, count=1000), levels=12)
        assert max(found.reducible.values) < 0.02
        assert found.p_mean == pytest.approx(-1.2 + math.log(found.sigma_data / 0.5))
        assert found.p_std == pytest.approx(max(1.2, (math.log(found.sigma_max) - found.p_mean) / 4.65))
        assert found.reducible.p_mean is None
        assert len(found.warnings) == 1
        assert "isotropic Gaussian" in found.warnings[0]
        # n/2 (u − ln(1 + u)) = 1e-6 at u = σ_data²/σ².
        u = brentq(lambda u: 4 * (u - math.log1p(u)) - 1e-6, 1e-7, 1)
        assert found.sigma_max == pytest.approx(2 / math.sqrt(u), abs=4 * found.highest.error)

    def test_the_errors_of_sigma_max_and_p_mean_are_those_of_repetitions(self):
        many = [suggest(gaussian([0.1, 0.5, 1.0], mean=0.3, count=400, seed=s), levels=12, seed=s) for s in range(16)]
        # The standard deviation of 16 repetitions is within 50 % of the truth, three standard errors of it.
        for values, errors in (
            ([s.sigma_max for s in many], [s.highest.error for s in many]),
            ([s.reducible.p_mean for s in many], [s.reducible.p_mean_error for s in many]),
        ):
            assert np.std(values) == pytest.approx(np.mean(errors), rel=0.6)


def mixture_reducible(sigmas, exact, sigma_data, variance):
    """reducible(σ) of a mixture on a line, by Gauss-Legendre quadrature.

    y − x given x has the mean D − x, so that E‖D − y‖² = σ² − E‖D − x‖².
    """
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(2000))
    found = []
    for sigma in sigmas:
        x = nodes[:, None] * (3 + 8 * sigma)
        density = weights * (3 + 8 * sigma) * exact.log_prob(x, sigma).exp()
        best = sigma**2 - float(density @ (exact(x, sigma) - x)[:, 0].square())
        weight = EDMWeighting().weight(torch.tensor(sigma, dtype=torch.float64), sigma_data).item()
        found.append(weight * (trivial_loss(sigma, variance) - best))
    return np.array(found)


WIDTH = 0.05


@pytest.fixture(scope="module")
def of_modes():
    return {separation: suggest(two_modes(separation, WIDTH)[0], levels=32) for separation in (2.0, 4.0)}


class TestTwoModes:
    """A denoiser can tell which mode x is from while σ is between the modes' width and their separation."""

    @pytest.mark.parametrize("separation", [2.0, 4.0])
    def test_the_reducible_loss_is_that_of_the_mixture_itself(self, separation, of_modes):
        curve, sigma_data = of_modes[separation].reducible, of_modes[separation].sigma_data
        exact = two_modes(separation, WIDTH)[1]
        expected = mixture_reducible(curve.sigmas, exact, sigma_data, separation**2 / 4 + WIDTH**2)
        assert (np.abs(curve.values - expected) < 5 * np.array(curve.errors) + 5e-3).all()
        mean, std = moments_under(np.array(curve.sigmas), expected, sigma_data)
        assert curve.p_mean == pytest.approx(mean, abs=4 * curve.p_mean_error)
        assert curve.p_std == pytest.approx(std, abs=4 * curve.p_std_error)

    @pytest.mark.parametrize("separation", [2.0, 4.0])
    def test_half_of_the_loss_is_reducible_from_the_width_to_a_third_of_the_separation(self, separation, of_modes):
        curve = of_modes[separation].reducible
        # Far below the separation the loss is that of one mode: s²/(s² + σ²), ½ at σ = s.
        assert crossing(curve, 0.5, last=False) == pytest.approx(WIDTH, rel=0.1)
        # Without a width, D = (d/2) tanh(x d/(2 σ²)), for which it is ½ at σ = 0.289 d.
        assert crossing(curve, 0.5, last=True) == pytest.approx(0.289 * separation, rel=0.12)
        assert WIDTH < math.exp(of_modes[separation].p_mean) < separation / 2


def test_scaling_the_data_scales_the_noise_levels_and_shifts_p_mean():
    image_like = InMemory(pictures(count=100, channels=1).float(), kind="vectors")
    for data in (gaussian([0.1, 1.0, 2.0], mean=0.5, count=400), two_modes(1.0, count=400)[0], image_like):
        x = data.fetch(range(len(data)))[0]
        found = suggest(data, levels=8)
        for factor, tolerance in ((4.0, 1e-9), (0.3, 1e-5)):  # × 4 is exact in binary, × 0.3 is rounded to float32
            scaled = suggest(InMemory(factor * x, kind="vectors"), levels=8)
            for name in FACTORS:
                assert getattr(scaled, name) == pytest.approx(factor * getattr(found, name), rel=tolerance)
            assert scaled.p_mean == pytest.approx(found.p_mean + math.log(factor), abs=100 * tolerance)
            assert scaled.p_std == pytest.approx(found.p_std, abs=100 * tolerance)


@pytest.fixture(scope="module")
def digits():
    return suggest(Digits().load())


class TestPictures:
    """Digits, Fashion-MNIST and toy densities."""

    def test_digits_ask_for_nearly_the_noise_levels_of_EDM(self, digits):
        assert digits.p_mean == pytest.approx(-0.76, abs=0.1)
        assert digits.p_mean == digits.reducible.p_mean
        assert digits.reducible.p_std == pytest.approx(1.08, abs=0.1)
        assert digits.p_std == digits.reducible.p_std
        assert digits.sigma_min == pytest.approx(0.125 / math.sqrt(12), rel=1e-6)
        assert digits.lowest.bound == "rounding"
        assert digits.sigma_max == pytest.approx(50.7, abs=0.5)
        assert digits.highest.centred == pytest.approx(50.7, abs=0.5)
        assert digits.highest.perplexity > 0.99
        assert digits.highest.uniform < digits.sigma_max
        assert "windows" in digits.reducible.by

    def test_constant_pixels_and_empty_borders_are_warned_about(self, digits):
        x = Digits().load().fetch(range(1437))[0].flatten(1)
        assert digits.scale.constant == int((x.std(0) == 0).sum())
        assert digits.scale.constant == 3
        assert any("empty borders" in warning for warning in digits.warnings)

    @pytest.mark.skipif(not Path(DEBIAN_PATH).is_dir(), reason="Fashion-MNIST is not installed")
    def test_fashion_mnist_asks_for_more_noise_than_EDM(self):
        found = suggest(FashionMNIST().load(), max_samples=1500)
        assert (found.samples, found.looked_at) == (60_000, 1500)
        assert found.sigma_min == pytest.approx(2 / 255 / math.sqrt(12), rel=1e-4)
        assert found.p_mean == pytest.approx(-0.25, abs=0.2)
        assert found.reducible.p_std == pytest.approx(1.73, abs=0.2)
        assert found.p_std == pytest.approx((found.p_mean - math.log(found.sigma_min)) / 4.65)
        assert found.sigma_max == pytest.approx(218, abs=4 * found.highest.error)

    def test_a_toy_density_is_asked_for_the_levels_between_its_width_and_its_size(self):
        found = suggest(Toy("eight_gaussians", num_samples=2000).load())
        assert 0.1 < math.exp(found.reducible.p_mean) < 1.0
        assert found.p_mean == pytest.approx(-1.2 + math.log(found.sigma_data / 0.5))
        assert found.reasons()["p_mean"].startswith("EDM's −1.2 in units of σ_data; the mean of ln σ under")
        assert found.p_std == pytest.approx((found.p_mean - math.log(found.sigma_min)) / 4.65)
        assert found.reasons()["p_std"].endswith("σ_min is within 4.65 of it of p_mean and occurs in training")
        assert found.lowest.bound == "ratio"
        assert found.sigma_min == pytest.approx(found.sigma_data / 250)


@pytest.fixture(scope="module")
def found():
    return suggest(Toy("two_moons", num_samples=500).load(), levels=12)


class TestTheResult:
    """What a suggestion holds."""

    def test_it_is_the_same_every_time_and_can_be_written_as_JSON(self, found):
        again = suggest(Toy("two_moons", num_samples=500).load(), levels=12)
        assert found == again
        written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert written["p_mean"] == found.p_mean
        assert written["reducible"]["sigmas"] == list(found.reducible.sigmas)
        assert written.keys() == {field.name for field in dataclasses.fields(found)}

    def test_its_levels_span_the_suggested_range_evenly_in_their_logarithm(self, found):
        steps = np.diff(np.log(found.reducible.sigmas))
        assert len(steps) == 11
        assert steps == pytest.approx([steps[0]] * 11)
        assert found.reducible.sigmas[0] == found.sigma_min
        assert found.reducible.sigmas[-1] == pytest.approx(found.sigma_max)

    def test_another_seed_finds_the_same_within_errors(self, found):
        other = suggest(Toy("two_moons", num_samples=500).load(), levels=12, seed=1)
        assert other != found
        error = math.hypot(found.reducible.p_mean_error, other.reducible.p_mean_error)
        assert other.reducible.p_mean == pytest.approx(found.reducible.p_mean, abs=4 * error)

    def test_each_number_has_a_reason_on_one_line(self, found):
        reasons = found.reasons()
        assert list(reasons) == ["sigma_data", "sigma_min", "sigma_max", "p_mean", "p_std"]
        assert all("\n" not in reason and len(reason) > 20 for reason in reasons.values())
        assert found.noise.p_mean == found.p_mean

    def test_data_far_from_zero_are_warned_about(self):
        found = suggest(gaussian([1.0, 1.5], mean=4.0, count=200), levels=8)
        assert any("subtract the mean" in warning for warning in found.warnings)
        assert "by the mean (centred" in found.reasons()["sigma_max"]

    def test_the_figure_shows_the_curve_the_density_and_the_levels(self, found):
        figure = reducible_loss(found)
        lines = {line.get_label(): np.asarray(line.get_xydata()) for line in figure.axes[0].lines}
        curve = found.reducible
        assert np.allclose(lines["reducible: the difference"], np.c_[curve.sigmas, curve.values])
        assert np.allclose(lines["trivial denoiser"][:, 1], curve.trivial)
        marks = [line[0, 0] for line in lines.values() if len(line) == 2]
        assert marks == [found.sigma_min, found.sigma_data, found.sigma_max]
        density = figure.axes[0].collections[0].get_paths()[0].vertices
        upper = density[density[:, 1] > 0]
        peak = upper[upper[:, 1].argmax()]
        assert math.log(peak[0]) == pytest.approx(found.p_mean, abs=0.05 * found.p_std)
        area = np.trapezoid(curve.values, np.log(curve.sigmas))
        assert peak[1] == pytest.approx(area / (found.p_std * math.sqrt(2 * math.pi)), rel=1e-3)


class TestErrors:
    """What is refused."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"terminal_nats": 0.0}, r"terminal_nats must be in \(0, 1\], got 0.0"),
            ({"terminal_nats": 1.5}, r"terminal_nats must be in \(0, 1\], got 1.5"),
            ({"max_samples": 63}, "max_samples must be >= 64, got 63"),
            ({"levels": 7}, "levels must be >= 8, got 7"),
            ({"seed": -1}, "seed must be >= 0, got -1"),
        ],
    )
    def test_arguments_out_of_range(self, change, message):
        with pytest.raises(ValueError, match=message):
            suggest(gaussian([1.0], count=100), **change)

    def test_too_few_samples(self):
        with pytest.raises(ValueError, match="the number of samples in data must be >= 64, got 63"):
            suggest(gaussian([1.0], count=63))

    @pytest.mark.parametrize("sample", [torch.zeros(3), torch.arange(3.0)])
    def test_samples_that_are_all_the_same(self, sample):
        with pytest.raises(ValueError, match="data must not be constant, but all 100 samples that were used are equal"):
            suggest(InMemory(sample.expand(100, 3).clone()))

    def test_values_that_are_not_finite(self):
        class Broken(type(gaussian([1.0], count=2))):
            def fetch(self, indices):
                x, labels = super().fetch(indices)
                return x.where(x.abs() < 2, torch.nan), labels

        with pytest.raises(ValueError, match="data must be finite, found NaN or infinity among samples"):
            suggest(Broken(normal(100, 2).float()))
        x = normal(100, 2).float()
        x[30, 1] = torch.inf
        with pytest.raises(ValueError, match=r"dataset\[30\] has values that are not finite"):
            suggest(wrap(torch.utils.data.TensorDataset(x)))
