"""The figure of estimates after each evaluation."""

import pytest
import torch

from openedm.plots import jumps
from openedm.sampling import State


def states(shape, sigmas):
    return [State(i, s, s, 1.0, torch.zeros(shape), torch.full(shape, 0.1 * i)) for i, s in enumerate(sigmas)]


@pytest.mark.parametrize("shape", [(4, 1, 3, 3), (4, 3, 3, 3), (4, 2)])
def test_a_row_has_a_panel_an_evaluation_and_none_for_the_finished_sample(shape):
    figure = jumps({"slow": states(shape, (80.0, 5.0, 0.5, 0.0)), "fast": states(shape, (80.0, 0.0))})
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["σ = 80", "σ = 5", "σ = 0.5", "σ = 80"]
    assert [axes.texts[0].get_text() for axes in figure.axes if axes.texts] == ["slow", "fast"]


def test_short_runs_share_a_row_with_room_for_a_title_between_them():
    short, long = states((4, 1, 3, 3), (80.0, 0.0)), states((4, 1, 3, 3), (80.0, 20.0, 5.0, 0.5, 0.0))
    figure = jumps({"four": long, "one": short, "another": short, "more": long})
    rows = [a.get_subplotspec().rowspan.start for a in figure.axes]
    columns = [a.get_subplotspec().colspan.start for a in figure.axes]
    assert rows == [0] * 4 + [1] * 2 + [2] * 4
    assert columns == [0, 1, 2, 3, 0, 2, 0, 1, 2, 3]
    drawn = {axes.texts[0].get_text(): axes for axes in figure.axes if axes.texts}
    assert list(drawn) == ["four", "one", "another", "more"]
    figure.draw_without_rendering()
    title = drawn["another"].texts[0].get_window_extent()
    assert title.x0 > drawn["one"].get_window_extent().x1


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="images or points in two dimensions, got samples of shape"):
        jumps({"a": states((4, 7), (1.0,))})
    with pytest.raises(ValueError, match="at least one evaluation"):
        jumps({"a": states((4, 2), (0.0,))})
    with pytest.raises(ValueError, match="the number of runs must be"):
        jumps({})
