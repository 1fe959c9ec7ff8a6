import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from openedm.exact import GaussianMixture
from openedm.levels import Karras
from openedm.plots import (
    calibration_plot,
    pair_plot,
    posterior_trajectories,
    predictive_histograms,
    predictive_plot,
    save_figure,
)
from openedm.plots.calibration import uniform_band
from openedm.plots.histograms import credible_thresholds, smooth_histogram
from openedm.sampling import Sampler, State


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def states(steps=12, samples=40):
    exact = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [(0.04 * torch.eye(2)).tolist()] * 2)
    return list(Sampler(levels=Karras(num_steps=steps)).steps(exact, list(range(samples))))


def visible(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def legend(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_pairs_are_named_once_and_marked_with_the_truth(tmp_path):
    truth = torch.tensor([0.1, -0.2, 0.3])
    figure = pair_plot({"ours": normal(500, 3), "theirs": normal(300, 3, seed=1)}, names=["a", "b", "c"], truth=truth)
    shown = visible(figure)
    assert len(shown) == 6
    assert [axes.get_xlabel() for axes in shown if axes.get_xlabel()] == ["a", "b", "c"]
    assert [axes.get_ylabel() for axes in shown if axes.get_ylabel()] == ["density", "b", "c"]
    assert legend(figure) == ["ours", "theirs", "50 % of samples", "90 % of samples", "truth"]
    marks = [line.get_xydata()[0] for axes in shown for line in axes.lines if line.get_marker() == "s"]
    assert np.array(marks) == pytest.approx(np.array([[0.1, -0.2], [0.1, 0.3], [-0.2, 0.3]]))
    save_figure(figure, tmp_path / "pairs.png")


def test_a_single_parameter_and_a_constant_one_are_drawn(tmp_path):
    save_figure(pair_plot(normal(50, 1), truth=[0.0]), tmp_path / "one.png")
    save_figure(pair_plot(torch.cat([normal(50, 1), torch.ones(50, 1)], 1)), tmp_path / "constant.png")


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_medians_and_intervals_or_means_stand_above_the_marginals(tmp_path):
    samples = torch.stack([torch.linspace(0, 4, 1001), 1e-5 * torch.linspace(-3, 1, 1001)], 1)
    figure = pair_plot(samples, ["a", "b"])
    assert [texts(axes) for axes in visible(figure)] == [
        ["2.00 [0.10, 3.90]"],
        [],
        [r"−1.00 [−2.90, 0.90] $\times10^{-5}$"],
    ]
    assert figure.legends[0].get_title().get_text() == "median [95 % interval]"
    both = pair_plot({"x": samples[:, :1] + 100, "y": samples[:, :1] - 1}, numbers="mean")
    assert texts(visible(both)[0]) == ["1.0 ± 1.2", "102.0 ± 1.2"]
    assert texts(visible(pair_plot(samples, numbers=None))[0]) == []
    five = pair_plot(normal(50, 5), list("abcde"))
    assert [texts(axes)[-1] for axes in visible(five) if texts(axes)] == list("abcde")
    save_figure(five, tmp_path / "five.png")


def test_the_prior_is_a_curve_on_the_diagonal_that_ends_where_the_prior_does():
    prior = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(3)) * torch.tensor([1.0, 50.0])
    samples = torch.stack([0.1 * normal(500).abs(), 20 + 0.1 * normal(500)], 1)
    figure = pair_plot(samples, ["a", "b"], prior=prior)
    assert legend(figure) == ["50 % of samples", "90 % of samples", "prior"]
    first, region, second = visible(figure)
    (curve,) = [line for line in first.lines if line.get_linestyle() == "--"]
    x, y = curve.get_xydata().T
    assert y[0] == y[-1] == 0
    assert (x[0], x[-1]) == pytest.approx((0, 1), abs=1e-3)
    assert y[1:-1] == pytest.approx(1, abs=0.1)
    assert -0.01 < first.get_xlim()[0] < x[0]
    assert first.get_xlim()[1] < 0.5
    (flat,) = [line for line in second.lines if line.get_linestyle() == "--"]
    inside = flat.get_xydata()[(flat.get_xdata() > 19.5) & (flat.get_xdata() < 20.5)]
    assert inside[:, 1] == pytest.approx(1 / 50, rel=0.3)
    assert not [line for line in region.lines if line.get_linestyle() == "--"]


def test_pictures_contain_the_truth_however_far_it_lies():
    axes = pair_plot(normal(100, 2), truth=[9.0, 0.0]).axes[0]
    assert axes.get_xlim()[1] > 9


def test_regions_hold_their_share_of_a_gaussian():
    # {|θ|² ≤ −2 ln(1 − p)} is the region of share p of a standard normal pair.
    points = normal(40_000, 2).double().numpy()
    mass, (x, y) = smooth_histogram(points, [(-5.0, 5.0), (-5.0, 5.0)])
    cell = (x[1] - x[0]) * (y[1] - y[0])
    for level, threshold in zip((0.5, 0.9), credible_thresholds(mass, (0.5, 0.9)), strict=True):
        assert threshold / cell == pytest.approx((1 - level) / (2 * math.pi), rel=0.1)
        assert (mass >= threshold).sum() * cell == pytest.approx(-2 * math.pi * math.log(1 - level), rel=0.1)


def test_histograms_are_smoothed_as_much_as_their_samples_ask():
    smooth, (edges,) = smooth_histogram(normal(2000, 1).double().numpy(), [(-4.0, 4.0)])
    centres = (edges[1:] + edges[:-1]) / 2
    assert np.abs(smooth / (edges[1] - edges[0]) - norm.pdf(centres)).max() < 0.03
    # Two modes a twentieth of the range wide stay apart.
    modes = torch.cat([normal(1000, 1), normal(1000, 1, seed=1) + 40]).double().numpy()
    apart, _ = smooth_histogram(modes, [(-10.0, 50.0)])
    assert apart[35:45].sum() < 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), "samples must hold at least one set"),
        (({"a": torch.zeros(5, 2), "b": torch.zeros(5, 3)},), "samples must be .* with one d"),
        ((torch.zeros(1, 2),), "samples must be"),
        ((torch.zeros(5),), r"samples must have 2 dimension\(s\), got the shape \(5,\)"),
        ((torch.full((5, 2), math.nan),), "samples must hold finite numbers only"),
        ((torch.zeros(5, 2), ["a"]), r"names must be 2 names, got \['a'\]"),
        ((torch.zeros(5, 2), None, [1.0]), "truth must be 2 values, got 1"),
        ((torch.zeros(5, 2), None, None, ()), "the number of levels must be >= 1"),
        ((torch.zeros(5, 2), None, None, (1.5,)), r"levels\[0\] must be between"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pair_plot(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": torch.zeros(5, 3)}, r"prior must be samples \(n >= 2, 2\), got \(5, 3\)"),
        ({"prior": torch.zeros(1, 2)}, r"prior must be samples \(n >= 2, 2\), got \(1, 2\)"),
        ({"prior": torch.full((5, 2), math.inf)}, "prior must hold finite numbers only"),
        ({"numbers": "mode"}, "numbers must be one of 'median', 'mean', None, got 'mode'"),
    ],
)
@pytest.mark.usefixtures("without_type_checker")
def test_priors_and_numbers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pair_plot(torch.rand(5, 2), **options)


def test_trajectories_run_from_noise_to_the_samples(tmp_path):
    run = states()
    figure = posterior_trajectories(run, ["a", "b"], truth=[1.0, 0.0], lines=10)
    first, second = visible(figure)
    assert (first.get_ylabel(), second.get_ylabel()) == ("a", "b")
    assert first.get_xlim()[0] > first.get_xlim()[1]
    paths = [line.get_xydata() for line in first.lines[:10]]
    assert all(len(path) == len(run) for path in paths)
    assert {round(float(path[-1, 1]), 4) for path in paths} <= {round(v, 4) for v in run[-1].x[:, 0].tolist()}
    # Divided by √(1 + σ²), the noise at σ = 80 has a spread of one.
    assert np.std([path[0, 1] for path in paths]) == pytest.approx(1, abs=0.5)
    assert legend(figure) == ["truth"]
    save_figure(figure, tmp_path / "paths.png")


@pytest.mark.parametrize(
    ("count", "settings", "message"),
    [
        (1, {}, "the number of states must be >= 2"),
        (5, {"lines": 0}, "lines must be >= 1"),
        (5, {"sigma_data": 0.0}, "sigma_data must be finite and > 0"),
        (5, {"truth": [1.0]}, "truth must be 2 values, got 1"),
        (5, {"names": ["a"]}, "names must be 2 names"),
    ],
)
def test_trajectories_that_do_not_fit_are_refused(count, settings, message):
    with pytest.raises(ValueError, match=message):
        posterior_trajectories(states(5, 4)[:count], **settings)


def test_trajectories_are_of_vectors():
    image = torch.zeros(2, 1, 4, 4)
    run = [State(i, s, s, 1.0, image, image) for i, s in enumerate((1.0, 0.1))]
    with pytest.raises(ValueError, match=r"states must hold samples \(n, d\), got \(2, 1, 4, 4\)"):
        posterior_trajectories(run)


def test_calibration_has_three_pictures_and_names_every_line(tmp_path):
    u = np.random.default_rng(0).random((200, 5))
    figure = calibration_plot(u[:, :3], u[:, 3], u[:, 4], names=["a", "b", "c"], level=0.9)
    assert [axes.get_title() for axes in figure.axes] == ["SBC ranks", "highest-density regions", "TARP"]
    assert set(legend(figure)) == {"90% of right posteriors", "a", "b", "c"}
    save_figure(figure, tmp_path / "calibration.png")
    plain = calibration_plot(u[:, :3], u[:, 3])
    assert plain.axes[1].get_title() == "central intervals"
    assert len(plain.axes[1].lines) == 4


def test_lines_of_calibration_are_distribution_functions():
    u = np.linspace(0.001, 0.999, 500)
    figure = calibration_plot(u[:, None], u**2)
    line = figure.axes[0].lines[-1].get_ydata()
    assert np.abs(line).max() < 0.01
    alpha, coverage = figure.axes[2].lines[-1].get_xydata().T
    assert np.abs(coverage - np.sqrt(alpha)).max() < 0.01


def test_bands_hold_whole_lines_at_their_level():
    at = np.linspace(0, 1, 101)
    low, high = uniform_band(200, 0.9, at)
    lines = np.sort(np.random.default_rng(1).random((2000, 200)), axis=1)
    functions = np.stack([np.searchsorted(line, at, side="right") for line in lines]) / 200
    held = ((functions >= low) & (functions <= high)).all(1).mean()
    # 1000 simulated sets set the level to ±.01, 2000 measure it to ±.007, and counts are whole numbers.
    assert held == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((np.full((30, 2), 1.2), np.full(30, 0.5)), {}, r"sbc must lie in \[0, 1\], got 1.2 to 1.2"),
        ((np.full((30, 2), 0.2), np.full(29, 0.5)), {}, "must have one length, got 30 and 29"),
        ((np.full((30, 2), 0.2), np.full(30, 0.5)), {"names": ["a"]}, "names must be 2 names"),
        ((np.full((30, 2), 0.2), np.full(30, 0.5)), {"level": 1.0}, "level must be between"),
    ],
)
def test_calibrations_that_do_not_fit_are_refused(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        calibration_plot(*arguments, **settings)


def test_predictions_have_a_picture_for_each_series(tmp_path):
    draws, t = normal(300, 2, 8).exp(), torch.arange(1900, 1908)
    figure = predictive_plot(draws[0], draws[1:], t, names=["hare", "lynx"], time_label="year", scale="log")
    assert [axes.get_ylabel() for axes in figure.axes] == ["hare", "lynx"]
    assert legend(figure) == ["95% of draws", "80% of draws", "50% of draws", "median", "observed"]
    median, seen = figure.axes[1].lines
    assert median.get_ydata() == pytest.approx(np.median(draws[1:, 1].numpy(), axis=0), rel=1e-6)
    assert seen.get_ydata() == pytest.approx(draws[0, 1].numpy())
    save_figure(figure, tmp_path / "fan.png")
    assert len(predictive_plot(draws[0, 0], draws[:, 0], t).axes) == 1


def test_observed_numbers_stand_over_their_predictions_with_two_sided_p_values(tmp_path):
    draws = torch.stack([torch.arange(100.0), torch.zeros(100), 1e6 + normal(100)], 1)
    figure = predictive_histograms(torch.tensor([4.5, 0.0, 1e6 + 40]), draws, names=["a", "b", "c"])
    assert [axes.get_xlabel() for axes in figure.axes] == ["a", "b", "c"]
    assert [axes.get_title() for axes in figure.axes] == ["p = 0.1", "p = 1", "p = 0"]
    assert figure.axes[2].get_xlim()[1] > 1e6 + 40
    assert legend(figure) == ["observed", "simulated from posterior samples"]
    save_figure(figure, tmp_path / "numbers.png")
    many = predictive_histograms(torch.zeros(7), normal(50, 7))
    assert [axes.get_xlabel() for axes in visible(many)] == [f"x[{i}]" for i in range(7)]
    for observed, given in [(torch.zeros(2), normal(50, 3)), (torch.zeros(3), normal(1, 3))]:
        with pytest.raises(ValueError, match=r"draws must be \(n >= 2, "):
            predictive_histograms(observed, given)


def test_more_than_three_series_stand_in_rows():
    figure = predictive_plot(torch.zeros(4, 5), normal(20, 4, 5), torch.arange(5))
    assert len(visible(figure)) == 4
    assert figure.axes[3].get_subplotspec().rowspan.start == 1


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((torch.zeros(8), torch.zeros(5, 7), torch.arange(8)), {}, "observed and draws must be"),
        ((torch.zeros(8), torch.full((5, 8), math.nan), torch.arange(8)), {}, "observed and draws must be finite"),
        ((torch.zeros(8), torch.zeros(5, 8), torch.arange(8)), {"scale": "square"}, "scale must be one of"),
        ((torch.zeros(2, 8), torch.zeros(5, 2, 8), torch.arange(8)), {"names": ["a"]}, "names must be 2 names"),
    ],
)
@pytest.mark.usefixtures("without_type_checker")
def test_predictions_that_do_not_fit_are_refused(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        predictive_plot(*arguments, **settings)
