import math
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from openedm import objective, schedules
from openedm.data.pictures import to_uint8
from openedm.exact import GaussianMixture
from openedm.levels import Karras
from openedm.plots import (
    Run,
    denoising_trajectory,
    error_versus_nfe,
    loss_curve,
    loss_per_sigma,
    sample_grid,
    save_figure,
    trajectories_1d,
    trajectories_2d,
)
from openedm.plots.losses import density_of_log_sigma, running_average
from openedm.plots.sampling import density_of_x, nearest_state
from openedm.sampling import Sampler, State
from openedm.schedules import NoScaling, VPScaling
from openedm.training import ValidationLoss


def images(count=6, channels=1, size=8, seed=0):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def image_states(levels=5, count=3, channels=1):
    sigmas = [80.0, 10.0, 1.0, 0.1, 0.0][:levels]
    x, denoised = images(count, channels, seed=1), images(count, channels, seed=2)
    return [State(i, s, s, 1.0, x * (s + 0.1), denoised) for i, s in enumerate(sigmas)]


def mixture(dimensions=1):
    means = [[-1.0] * dimensions, [1.0] * dimensions]
    return GaussianMixture([0.5, 0.5], means, [(0.04 * torch.eye(dimensions)).tolist()] * 2)


def run(schedule=schedules.EDM(), dimensions=1, count=8, num_steps=12, scaling=None):
    sampler = Sampler(levels=Karras(num_steps, 0.002, 80.0), schedule=schedule, scaling=scaling)
    return Run(sampler, list(sampler.steps(mixture(dimensions), list(range(count)))))


def picture(figure):
    return np.asarray(figure.axes[0].images[0].get_array())


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def lines_by_label(axes):
    return {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}


def test_saving_writes_the_named_format_and_nothing_else(tmp_path):
    save_figure(sample_grid(images()), tmp_path / "a.png")
    save_figure(sample_grid(images()), str(tmp_path / "b.PDF"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "b.PDF").read_bytes().startswith(b"%PDF")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.PDF"}


def test_a_figure_that_cannot_be_drawn_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    figure = Figure()
    figure.text(0.5, 0.5, r"$\nosuchcommand$")
    with pytest.raises(ValueError, match="nosuchcommand"):
        save_figure(figure, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_saving_refuses_a_suffix_that_matplotlib_does_not_write(tmp_path):
    with pytest.raises(ValueError, match=r"suffix of path must be one of .*'png'.*, got 'docx'"):
        save_figure(Figure(), tmp_path / "a.docx")


def test_figures_leave_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    for figure in (
        sample_grid(images()),
        loss_curve([(1, 1.0), (2, 0.5)]),
        trajectories_1d({"a": run()}, mixture().log_prob),
        trajectories_2d({"a": run(dimensions=2)}),
        error_versus_nfe({"a": {"Euler": [(8, 0.1), (16, 0.05)]}}),
    ):
        save_figure(figure, tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in vars(matplotlib) or matplotlib.pyplot.get_fignums() == []


def test_a_grid_shows_the_bytes_of_its_images_row_by_row():
    x = images(6)
    shown = picture(sample_grid(x, columns=3))
    expected = to_uint8(x)[:, 0].numpy()
    assert shown.shape == (17, 26)
    for i in range(6):
        top, left = i // 3 * 9, i % 3 * 9
        assert np.array_equal(shown[top : top + 8, left : left + 8], expected[i])


def test_a_grid_of_colour_images_has_colours():
    assert picture(sample_grid(images(4, channels=3))).shape == (17, 17, 3)


def test_titles_stand_above_their_images():
    figure = sample_grid(images(5), columns=3, titles=list("abcde"))
    assert texts(figure) == list("abcde")
    across = [text.get_position()[0] for text in figure.axes[0].texts]
    down = [text.get_position()[1] for text in figure.axes[0].texts]
    assert across == [3.5, 13.5, 23.5, 3.5, 13.5]
    assert down == [-1, -1, -1, 9, 9]


def test_titles_must_be_as_many_as_the_images():
    with pytest.raises(ValueError, match=r"titles must hold one text an image \(6\), got 2"):
        sample_grid(images(6), titles=["a", "b"])


def test_a_trajectory_shows_the_noisy_image_above_the_denoised_at_every_level():
    states = image_states()
    shown = picture(denoising_trajectory(states, samples=2, columns=5))
    assert shown.shape == (2 * 17 + 2, 5 * 9 - 1)
    for sample, top in ((0, 0), (1, 19)):
        for column, state in enumerate(states):
            left = column * 9
            noisy = to_uint8(state.x[sample, 0] / math.sqrt(1 + 4 * state.sigma**2)).numpy()
            denoised = to_uint8(state.denoised[sample, 0]).numpy()
            assert np.array_equal(shown[top : top + 8, left : left + 8], noisy)
            assert np.array_equal(shown[top + 9 : top + 17, left : left + 8], denoised)


def test_a_trajectory_divides_the_scaling_out():
    plain, scaled = image_states(), image_states()
    scaled = [State(s.index, s.time, s.sigma, 0.25, 0.25 * s.x, s.denoised) for s in scaled]
    assert np.array_equal(picture(denoising_trajectory(plain)), picture(denoising_trajectory(scaled)))


def test_a_trajectory_of_latents_shows_both_rows_decoded():
    def decode(latents):
        return latents.repeat_interleave(2, 2).repeat_interleave(2, 3)

    states = image_states()
    large = [State(s.index, s.time, s.sigma, s.scale, decode(s.x), decode(s.denoised)) for s in states]
    shown = picture(denoising_trajectory(states, decode=decode))
    assert np.array_equal(shown, picture(denoising_trajectory(large)))


def test_a_trajectory_picks_levels_evenly_and_names_them():
    figure = denoising_trajectory(image_states(), samples=1, columns=3)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["σ = 80", "1", "0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["noisy", "denoised"]


def test_a_trajectory_of_fewer_states_and_samples_than_asked_shows_all():
    figure = denoising_trajectory(image_states(levels=2, count=1), samples=6, columns=8)
    assert picture(figure).shape == (17, 17)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "samples must be >= 1, got 0"),
        ({"columns": 0}, "columns must be >= 1, got 0"),
        ({"states": []}, "number of states must be >= 1, got 0"),
        ({"states": run().states}, r"states must hold images \(batch, channels, height, width\), got \(8, 1\)"),
    ],
)
def test_a_trajectory_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        denoising_trajectory(**{"states": image_states(), **change})


def test_a_loss_curve_plots_the_records():
    progress = [(128 * i, 1.0 / i) for i in range(1, 40)]
    validation = [(1280, 0.4), (2560, 0.3)]
    axes = loss_curve(progress, validation).axes[0]
    lines = lines_by_label(axes)
    assert np.allclose(axes.lines[0].get_xydata(), progress)
    assert np.allclose(lines["training, running average"], running_average(progress))
    assert np.allclose(lines["validation, averaged weights"], validation)
    assert "training data, averaged weights" in lines_by_label(loss_curve([], validation, held_out=False).axes[0])
    assert "images" in axes.get_xlabel()
    assert "loss" in axes.get_ylabel()


def test_a_loss_curve_leaves_out_skipped_steps():
    progress = [(1, 1.0), (2, math.nan), (3, math.inf), (4, 0.5)]
    assert np.allclose(loss_curve(progress).axes[0].lines[0].get_xydata(), [(1, 1.0), (4, 0.5)])


def test_a_loss_curve_needs_something_finite():
    assert len(loss_curve([], [(1, 0.5)]).axes[0].lines) == 1
    with pytest.raises(ValueError, match="progress or validation must hold at least one finite loss"):
        loss_curve([(1, math.nan)])


def test_a_running_average_of_a_line_is_the_line_inside_and_a_constant_stays():
    rows = [(10 * i, 3.0 + i) for i in range(101)]
    averaged = running_average(rows, span=0.1)
    assert averaged[50] == (500, pytest.approx(53.0))
    assert [images for images, _ in averaged] == [images for images, _ in rows]
    assert running_average([(5, 2.0)]) == [(5, 2.0)]


def test_a_running_average_of_noise_has_the_variance_of_a_mean():
    generator = torch.Generator().manual_seed(0)
    losses = torch.randn(5000, generator=generator).tolist()
    averaged = [loss for _, loss in running_average(list(enumerate(losses)), span=0.02)]
    assert np.var(averaged) == pytest.approx(1 / 100, rel=0.5)


def measured(losses):
    return ValidationLoss((0.1, 0.5, 2.0), (0.0,) * 3, tuple(losses), sum(losses) / 3)


def test_a_loss_per_sigma_has_one_line_a_measurement():
    figure = loss_per_sigma({"early": measured([0.9, 0.8, 0.95]), "late": measured([0.7, 0.3, 0.9])})
    axes = figure.axes[0]
    lines = lines_by_label(axes)
    assert np.allclose(lines["early"], [(0.1, 0.9), (0.5, 0.8), (2.0, 0.95)])
    assert np.allclose(lines["late"], [(0.1, 0.7), (0.5, 0.3), (2.0, 0.9)])
    assert axes.get_xscale() == "log"
    assert axes.get_ylim()[0] == 0
    assert not axes.collections


def test_a_loss_per_sigma_shades_where_training_looks():
    figure = loss_per_sigma({"a": measured([0.9, 0.8, 0.9])}, objective.EDM())
    axes = figure.axes[0]
    outline = axes.collections[0].get_paths()[0].vertices
    assert outline[outline[:, 1].argmax(), 0] == pytest.approx(math.exp(-1.2), rel=0.05)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "a",
        "density of ln σ in training\n(height not to scale)",
    ]


def test_a_loss_per_sigma_needs_a_measurement():
    with pytest.raises(ValueError, match="validations must hold at least one measurement"):
        loss_per_sigma({})


def test_the_density_of_a_log_normal_is_a_bell_in_log_sigma():
    sigma, density = density_of_log_sigma(objective.LogNormal(p_mean=-1.2, p_std=1.2))
    bell = np.exp(-(((np.log(sigma) + 1.2) / 1.2) ** 2) / 2) / (1.2 * math.sqrt(2 * math.pi))
    assert np.allclose(density, bell, atol=2e-3)


@pytest.mark.parametrize(
    "noise", [objective.LogNormal(), objective.UniformTime(), objective.LogUniform(), objective.UniformTable()]
)
def test_densities_of_sigma_hold_all_but_the_tails(noise):
    sigma, density = density_of_log_sigma(noise)
    assert (density >= 0).all()
    assert density.sum() * np.diff(np.log(sigma)).mean() == pytest.approx(0.99, abs=0.01)


@pytest.mark.parametrize("schedule", [schedules.EDM(), schedules.VP(), schedules.VE(), schedules.RectifiedFlow()])
def test_paths_are_drawn_against_the_time_of_the_schedule(schedule):
    made = run(schedule)
    axes = trajectories_1d({"a": made}, mixture().log_prob, sigma_shown=[3.0], lines=8).axes[0]
    assert len(axes.lines) == 8
    states = made.below(3.0)
    for sample, line in enumerate(axes.lines):
        expected = [(s.time, float(s.x[sample, 0])) for s in states]
        assert np.allclose(line.get_xydata(), expected)
    assert axes.get_xlim() == pytest.approx((0, float(schedule.time(3.0))))
    assert type(schedule).__name__ in axes.get_xlabel()


def test_paths_against_log_sigma_end_at_the_lowest_level():
    made = run(schedules.VP())
    axes = trajectories_1d({"a": made}, mixture().log_prob, sigma_shown=[3.0], against="log_sigma").axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == pytest.approx((0.002, 3.0))
    states = made.below(3.0)
    assert np.allclose(axes.lines[0].get_xdata(), [max(s.sigma, 0.002) for s in states])


@pytest.mark.parametrize("scaling", [NoScaling(), VPScaling()])
def test_the_density_behind_the_paths_is_that_of_the_scaled_noisy_data(scaling):
    made = run(scaling=scaling)
    sigmas = torch.tensor([0.1, 1.0], dtype=torch.float64)
    positions = torch.linspace(-3, 3, 61, dtype=torch.float64)
    density = density_of_x(made, mixture().log_prob, sigmas, positions)
    for column, sigma in enumerate(sigmas):
        scale = scaling.scale(sigma)
        variance = scale**2 * (0.04 + sigma**2)
        bells = [torch.exp(-((positions - scale * mean) ** 2) / (2 * variance)) for mean in (-1, 1)]
        expected = bells[0] + bells[1]
        assert torch.allclose(density[:, column], expected / expected.max())


def test_rows_show_ranges_of_sigma_and_like_curves_share_their_axis():
    runs = {"one": run(count=2), "two": run(count=8), "three": run(schedules.VP())}
    figure = trajectories_1d(runs, mixture().log_prob, sigma_shown=[25.0, 1.0])
    *panels, key = figure.axes
    grid = np.array(panels).reshape(2, 3)
    assert key.get_ylabel() == "density of x(t), relative to its maximum"
    assert [axes.get_title() for axes in grid[0]] == ["one", "two", "three"]
    assert grid[0, 0].get_xlabel() == "time t of the EDM schedule, up to σ = 25"
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["x(t)", "x(t)"]
    assert grid[0, 0].get_ylim() == grid[0, 1].get_ylim() != grid[0, 2].get_ylim()
    assert [axes.get_xlim()[1] for axes in grid[1, :2]] == [1.0, 1.0]
    assert all(axes.collections for axes in panels)


def test_points_are_shown_with_their_spread_divided_by_the_noise():
    made = run(dimensions=2, count=20)
    figure = trajectories_2d({"a": made}, sigmas=[0.0, 1.0, math.inf], sigma_data=0.5, lines=7)
    assert len(figure.axes) == 4
    for axes, sigma in zip(figure.axes, [0.0, 1.0, math.inf], strict=False):
        state = made.states[nearest_state(made.states, sigma)]
        expected = state.x / math.sqrt(1 + 4 * state.sigma**2)
        assert np.allclose(axes.lines[0].get_xydata(), expected)
        followed = [line.get_xydata()[0] for line in axes.lines[1:]]
        assert np.allclose(followed, expected[:6])


def test_paths_in_two_dimensions_lead_from_the_noise_to_the_sample():
    made = run(schedules.VP(), dimensions=2, count=20)
    paths = trajectories_2d({"a": made}, sigmas=[0.0], lines=7).axes[-1]
    drawn = [line.get_xydata() for line in paths.lines if len(line.get_xydata()) == len(made.states)]
    assert len(drawn) == 7
    first, last = made.states[0], made.states[-1]
    for sample, path in enumerate(drawn):
        assert np.allclose(path[0], first.x[sample] / (first.scale * math.sqrt(1 + 80.0**2)))
        assert np.allclose(path[-1], last.x[sample])


def test_levels_are_named_once_where_rows_agree():
    same, other = run(dimensions=2), run(dimensions=2, num_steps=5)
    titles = [
        [axes.get_title() for axes in row]
        for row in np.array(trajectories_2d({"a": same, "b": same, "c": other}, sigmas=[1.0]).axes).reshape(3, 2)
    ]
    assert titles[0][1] == "paths"
    assert titles[0][0].startswith("σ = ")
    assert titles[1] == ["", ""]
    assert titles[2][0] not in ("", titles[0][0])


def test_the_nearest_state_is_found_for_any_level():
    states = run(num_steps=12).states
    sigmas = [s.sigma for s in states]
    assert nearest_state(states, 0.0) == 12
    assert nearest_state(states, math.inf) == 0
    for i, sigma in enumerate(sigmas):
        assert nearest_state(states, sigma * 1.0001) == i


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: trajectories_1d({}, mixture().log_prob), "runs must hold at least one run"),
        (
            lambda: trajectories_1d({"a": run(dimensions=2)}, mixture().log_prob),
            r"runs\['a'\] must .*\(batch, 1\), got",
        ),
        (
            lambda: trajectories_1d({"a": run()}, mixture().log_prob, sigma_shown=[]),
            "number of sigma_shown must be >= 1",
        ),
        (lambda: trajectories_1d({"a": run()}, mixture().log_prob, sigma_shown=[1.0, 0.0]), r"sigma_shown\[1\] must"),
        (lambda: trajectories_1d({"a": run()}, mixture().log_prob, lines=0), "lines must be >= 1, got 0"),
        (lambda: trajectories_2d({"a": run()}), r"runs\['a'\] must hold samples \(batch, 2\), got \(8, 1\)"),
        (lambda: trajectories_2d({"a": run(dimensions=2)}, sigmas=[]), "number of sigmas must be >= 1"),
        (lambda: trajectories_2d({"a": run(dimensions=2)}, sigma_data=0.0), "sigma_data must be finite and > 0"),
        (lambda: trajectories_2d({"a": Run(Sampler(), [])}), r"runs\['a'\] must hold states"),
        (lambda: trajectories_2d({"a": Run(Sampler(), run().states[-1:])}), "start at a noise level above 0"),
    ],
)
def test_trajectories_say_what_is_wrong(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_errors_are_plotted_on_logarithmic_axes_with_one_colour_a_solver():
    euler, heun = [(8, 0.1), (16, 0.05)], [(7, 0.2), (15, 0.05)]
    figure = error_versus_nfe({"one": {"Euler": euler, "Heun": heun}, "two": {"Heun": heun}})
    one, two = figure.axes
    assert (one.get_xscale(), one.get_yscale()) == ("log", "log")
    assert np.allclose(lines_by_label(one)["Euler"], euler)
    assert np.allclose(lines_by_label(two)["Heun"], heun)
    assert one.lines[1].get_color() == two.lines[0].get_color() != one.lines[0].get_color()
    assert [axes.get_title() for axes in figure.axes] == ["one", "two"]


def test_guides_fall_with_their_order():
    figure = error_versus_nfe({"a": {"Euler": [(8, 0.1), (256, 1e-6)]}}, orders=[1, 2, 4])
    guides = [line.get_xydata() for line in figure.axes[0].lines[1:]]
    slopes = [np.diff(np.log(guide[:, 1]))[0] / np.diff(np.log(guide[:, 0]))[0] for guide in guides]
    assert np.allclose(slopes, [-1, -2, -4])
    assert texts(figure) == ["order 1", "order 2", "order 4"]


def test_errors_of_zero_are_left_out(tmp_path):
    save_figure(error_versus_nfe({"a": {"Heun": [(8, 0.1), (16, 0.0)]}}, orders=[2]), tmp_path / "a.png")
    save_figure(error_versus_nfe({"a": {"Heun": [(8, 0.0), (16, 0.0)]}}, orders=[2]), tmp_path / "a.png")


@pytest.mark.parametrize("panels", [{}, {"a": {}}])
def test_a_picture_of_errors_needs_solvers(panels):
    with pytest.raises(ValueError, match="panels must hold at least one panel, and each at least one solver"):
        error_versus_nfe(panels)


def test_paths_of_data_far_from_0_are_shown_around_the_data():
    far, line = (GaussianMixture([1.0], [[280.0] * n], torch.eye(n)[None]) for n in (2, 1))
    noise = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    states = []
    Sampler(Karras(6)).sample(far, noise=noise, callback=states.append)
    made = Run(Sampler(Karras(6)), states)
    axes = trajectories_2d({"a": made}, sigmas=[math.inf], sigma_data=1.0, location=280.0).axes
    for panel in axes:
        assert panel.get_xlim() == pytest.approx((277.2, 282.8))
    first = states[0]
    expected = 280 + (first.x - 280) / math.sqrt(1 + first.sigma**2)
    assert np.allclose(axes[0].lines[0].get_xydata(), expected)
    flat = Run(made.sampler, [replace(state, x=state.x[:, :1], denoised=state.denoised[:, :1]) for state in states])
    low, high = trajectories_1d({"a": flat}, line.log_prob, sigma_shown=[1.0], lines=4).axes[0].get_ylim()
    assert 270 < low < 280 < high < 290


def test_images_of_data_far_from_0_keep_their_brightness_at_every_level():
    x = 0.9 + 0.02 * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    states = [State(i, s, s, 1.0, x + s * noise, x) for i, s in enumerate((4.0, 0.0))]
    where = {"sigma_data": 0.02, "location": torch.full((1, 1, 1), 0.9)}
    shown = picture(denoising_trajectory(states, samples=1, columns=2, **where))
    assert shown[:8, :8].mean() == pytest.approx(shown[:8, 9:17].mean(), abs=3)
