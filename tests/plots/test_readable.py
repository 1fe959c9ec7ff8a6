"""Laws of all figures: both axes have labels, lines differ without colour, no scale is without its label."""

import inspect
from functools import partial
from itertools import combinations, cycle, islice

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from openedm import objective, plots
from openedm.data import as_dataset
from openedm.exact import GaussianMixture
from openedm.exploring import State as Explored
from openedm.exploring.exact_figures import EXACT
from openedm.exploring.problems import Budget
from openedm.levels import Karras
from openedm.plots.comparison import MetricValues, comparison
from openedm.plots.style import DASHES, dashes, line_style
from openedm.sampling import Euler, Sampler, State
from openedm.suggest import suggest
from openedm.training import ValidationLoss

RANDOM = np.random.default_rng(0)
SAMPLES = torch.tensor(RANDOM.normal(size=(64, 2))).float()


def run(dimensions):
    mixture = GaussianMixture([1.0], [[0.0] * dimensions], [torch.eye(dimensions).tolist()])
    sampler = Sampler(levels=Karras(3, 0.1, 5.0))
    return plots.Run(sampler, list(sampler.steps(mixture, range(3)))), mixture.log_prob


def loss(scale):
    return ValidationLoss((0.1, 1.0, 10.0), (0.1, 0.2, 0.3), (0.9 * scale, 0.5, 0.8), 0.7)


def states():
    return [State(i, s, s, 1.0, torch.randn(20, 4), torch.zeros(20, 4)) for i, s in enumerate((10.0, 1.0, 0.1, 0.0))]


def one_d(**options):
    made, log_prob = run(1)
    return plots.trajectories_1d({"a": made, "b": made}, log_prob, lines=2, **options)


SOLVERS = {name: [(8, 1 / (i + 1)), (16, 0.1 / (i + 1))] for i, name in enumerate("ABCDEFGHI")}
EULER = Explored(sampler=Sampler(Karras(4), solver=Euler()))
METRICS = {"Fréchet distance": MetricValues({"a": (1.0, 0.9, 1.1), "b": (2.0, 1.9, 2.1)}, 0.5)}
FIGURES = {
    "loss_curve": lambda: plots.loss_curve([(1, 1.0), (2, 0.5)], [(2, 0.6)]),
    "loss_per_sigma": lambda: plots.loss_per_sigma({str(i): loss(i) for i in range(3)}, objective.EDM()),
    "reducible_loss": lambda: plots.reducible_loss(
        suggest(as_dataset(torch.tensor(RANDOM.normal(size=(64, 2))).float()))
    ),
    "trajectories_1d": lambda: one_d(sigma_shown=(4.0, 1.0)),
    "trajectories_1d over sigma": lambda: one_d(against="log_sigma"),
    "trajectories_2d": lambda: plots.trajectories_2d({"a": run(2)[0], "b": run(2)[0]}, sigmas=(0.0, 1.0), lines=2),
    "error_versus_nfe": lambda: plots.error_versus_nfe({"one": SOLVERS, "two": SOLVERS}, orders=(1, 2)),
    "pair_plot": lambda: plots.pair_plot({"a": RANDOM.normal(size=(50, 2)), "b": RANDOM.normal(size=(50, 2))}),
    "posterior_trajectories": lambda: plots.posterior_trajectories(states(), lines=5),
    "calibration_plot": lambda: plots.calibration_plot(RANDOM.random((20, 3)), RANDOM.random(20)),
    "predictive_plot": lambda: plots.predictive_plot(np.ones((4, 5)), RANDOM.random((20, 4, 5)), np.arange(5.0)),
    "predictive_plot of one": lambda: plots.predictive_plot(np.ones(5), RANDOM.random((20, 5)), np.arange(5.0)),
    "predictive_histograms": lambda: plots.predictive_histograms(np.ones(6), RANDOM.random((20, 6))),
    "comparison": lambda: comparison("ab", {"a": [(1, 1.0), (2, 0.5)]}, {"a": loss(1), "b": loss(2)}, METRICS),
}
FIGURES |= {f"explorer's {name}": partial(EXACT[name][1], EULER, Budget()) for name in ("curvature", "level_rule")}
PICTURES = {"Run", "RunFigures", "denoising_trajectory", "event_grid", "jumps", "sample_grid", "save_figure"}
"""Public names whose figures are pictures without axes, or that draw nothing."""


class Drawn(dict):
    """The figures, each drawn when it is first asked for."""

    def __missing__(self, name):
        self[name] = FIGURES[name]()
        return self[name]


@pytest.fixture(scope="module")
def drawn():
    return Drawn()


def test_every_public_figure_is_among_those_below():
    functions = {name for name in plots.__all__ if inspect.isroutine(getattr(plots, name)) or name in PICTURES}
    assert functions - PICTURES == {name.partition(" ")[0] for name in FIGURES} - {"comparison", "explorer's"}


def panels(figure: Figure):
    """The panels that are seen, without those that are marks beside another, such as histograms of a margin."""
    return [axes for axes in figure.axes if axes.get_visible() and axes.axison]


def row_of(figure, axes):
    """The panels that stand beside this one and have its scale."""
    box = axes.get_position()
    others = [other for other in panels(figure) if abs(other.get_position().y0 - box.y0) < 1e-3]
    return [other for other in others if other.get_ylim() == axes.get_ylim()]


def column_of(figure, axes):
    box = axes.get_position()
    others = [other for other in panels(figure) if abs(other.get_position().x0 - box.x0) < 1e-3]
    return [other for other in others if other.get_xlim() == axes.get_xlim()]


@pytest.mark.parametrize("name", FIGURES)
def test_both_axes_of_every_panel_have_a_label(drawn, name):
    figure = drawn[name]
    figure.draw_without_rendering()
    for axes in panels(figure):
        shown_x = axes.get_xlabel() or figure.get_supxlabel() or any(o.get_xlabel() for o in column_of(figure, axes))
        shown_y = axes.get_ylabel() or figure.get_supylabel() or any(o.get_ylabel() for o in row_of(figure, axes))
        bar = axes.get_label() == "<colorbar>"  # one axis alone has values
        assert shown_x or bar, f"{name}: no label on the horizontal axis of {axes}"
        named = [text.get_text() for text in axes.get_yticklabels() if text.get_visible()]
        assert shown_y or not any(named) or any(text.isalpha() for text in named), f"{name}: no vertical label: {axes}"


@pytest.mark.parametrize("name", FIGURES)
def test_lines_with_names_differ_without_colour(drawn, name):
    for axes in panels(drawn[name]):
        lines = [line for line in axes.lines if not line.get_label().startswith("_")]
        for one, other in combinations(lines, 2):
            looks = [(line.get_linestyle(), line.get_marker(), line._dash_pattern) for line in (one, other)]
            assert looks[0] != looks[1], f"{name}: {one.get_label()} and {other.get_label()} differ by colour alone"


@pytest.mark.parametrize("name", FIGURES)
def test_no_panel_has_a_second_scale_without_a_label(drawn, name):
    for one, other in combinations(panels(drawn[name]), 2):
        same_place = np.allclose(one.get_position().bounds, other.get_position().bounds)
        assert not same_place or (one.get_ylabel() and other.get_ylabel()), f"{name}: a twin axis without a label"


@pytest.mark.parametrize("name", ["loss_per_sigma", "reducible_loss"])
def test_a_density_that_is_not_to_scale_says_so(drawn, name):
    (axes,) = panels(drawn[name])
    shaded = [patch.get_label() for patch in axes.collections]
    assert any("height not to scale" in label for label in shaded), shaded


def test_the_density_behind_paths_has_a_key(drawn):
    assert "density of x(t), relative to its maximum" in [axes.get_ylabel() for axes in drawn["trajectories_1d"].axes]


def test_dashes_and_styles_of_lines_are_all_different():
    assert len({str(dashes(i)) for i in range(len(DASHES))}) == len(DASHES)
    looks = [(style["color"], str(style["linestyle"])) for style in map(line_style, range(20))]
    assert len(set(looks)) == 20
    assert dashes(len(DASHES)) == next(islice(cycle(DASHES), len(DASHES), None))
